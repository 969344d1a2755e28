//! Fee rates for LDK and for ourselves: bitcoind's estimates, kept between calls, within bounds.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Mutex;

use bitcoin::FeeRate;
use lightning::chain::chaininterface::{ConfirmationTarget, FeeEstimator, FEERATE_FLOOR_SATS_PER_KW};

use super::Bitcoind;
use crate::util::lock;

/// Confirmation targets asked of bitcoind: urgent, normal, relaxed.
const TARGETS: [u16; 3] = [2, 12, 144];

/// Current fee rates.
pub struct Fees {
    /// sat per 1000 weight units for each of [`TARGETS`].
    rates: [AtomicU32; 3],
    mempool_min: AtomicU32,
    fallback: u32,
    max: u32,
    failure: Mutex<Option<String>>,
}

impl Fees {
    /// Starts with the fallback (sat/vB) until [`Self::refresh`] has run.
    pub(crate) fn new(fallback_sat_per_vb: u32, max_sat_per_vb: u32) -> Self {
        let fallback = fallback_sat_per_vb.saturating_mul(250).max(FEERATE_FLOOR_SATS_PER_KW);
        let max = max_sat_per_vb.saturating_mul(250).max(fallback);
        let rates = [(); 3].map(|()| AtomicU32::new(fallback));
        let mempool_min = AtomicU32::new(FEERATE_FLOOR_SATS_PER_KW);
        Self { rates, mempool_min, fallback, max, failure: Mutex::new(None) }
    }

    /// Asks bitcoind; keeps the old rates where it has none.
    pub(crate) async fn refresh(&self, bitcoind: &Bitcoind) {
        for (slot, target) in self.rates.iter().zip(TARGETS) {
            match bitcoind.estimate(target).await {
                Ok(Some(rate)) => slot.store(self.bound(rate), Ordering::Relaxed),
                // Too little data (regtest, a fresh node): the configured rate, not a stale one.
                Ok(None) => slot.store(self.fallback, Ordering::Relaxed),
                Err(e) => return self.failed(e.to_string()),
            }
        }
        match bitcoind.mempool_min().await {
            // A little more: LDK counts the weight of what it signs by estimate, and a package that is one sat short of
            // the minimum is not relayed, however often it is sent.
            Ok(rate) => self.mempool_min.store(self.bound(more(rate)), Ordering::Relaxed),
            Err(e) => return self.failed(e.to_string()),
        }
        *lock(&self.failure) = None;
    }

    fn failed(&self, reason: String) {
        let mut failure = lock(&self.failure);
        if failure.as_ref() != Some(&reason) {
            tracing::warn!(reason, "no fee estimates; using the last ones");
        }
        *failure = Some(reason);
    }

    fn bound(&self, rate: FeeRate) -> u32 {
        u32::try_from(rate.to_sat_per_kwu()).unwrap_or(u32::MAX).clamp(FEERATE_FLOOR_SATS_PER_KW, self.max)
    }

    fn rate(&self, slot: usize) -> u32 {
        let rate = self.rates.get(slot).map_or(self.fallback, |r| r.load(Ordering::Relaxed));
        rate.max(self.mempool_min.load(Ordering::Relaxed)).min(self.max)
    }

    /// For transactions that have to be in one of the next blocks.
    pub(crate) fn urgent(&self) -> FeeRate {
        FeeRate::from_sat_per_kwu(u64::from(self.rate(0)))
    }

    /// For funding and closing.
    pub(crate) fn normal(&self) -> FeeRate {
        FeeRate::from_sat_per_kwu(u64::from(self.rate(1)))
    }

    /// The user's upper bound.
    pub(crate) fn max(&self) -> FeeRate {
        FeeRate::from_sat_per_kwu(u64::from(self.max))
    }
}

/// 2 % more, rounded up.
fn more(rate: FeeRate) -> FeeRate {
    FeeRate::from_sat_per_kwu(rate.to_sat_per_kwu().saturating_mul(51).div_ceil(50))
}

impl FeeEstimator for Fees {
    fn get_est_sat_per_1000_weight(&self, target: ConfirmationTarget) -> u32 {
        match target {
            ConfirmationTarget::MaximumFeeEstimate => self.max,
            ConfirmationTarget::UrgentOnChainSweep => self.rate(0),
            ConfirmationTarget::NonAnchorChannelFee | ConfirmationTarget::OutputSpendingFee => self.rate(1),
            ConfirmationTarget::AnchorChannelFee | ConfirmationTarget::ChannelCloseMinimum => self.rate(2),
            ConfirmationTarget::MinAllowedAnchorChannelRemoteFee
            | ConfirmationTarget::MinAllowedNonAnchorChannelRemoteFee => FEERATE_FLOOR_SATS_PER_KW,
        }
    }
}
