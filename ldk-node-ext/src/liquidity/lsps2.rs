//! JIT channels that wallets buy by LSPS2 (bLIP-52): any wallet that speaks it, ours or not.
//!
//! `lightning-liquidity` speaks the protocol: menus, promises, answers. What follows when the payment comes is done here,
//! with the same means as for our own clients: the library's own part (0.3.0-rc3) does not recognize a fee that is taken
//! in parts, and leaves payments in its queue after a restart. The wallet does not have to trust us: the funding
//! transaction is broadcast before the payment is sent on.

use std::sync::Arc;
use std::time::Duration;

use bitcoin::hashes::{sha256, Hash};
use bitcoin::secp256k1::PublicKey;
use lightning::ln::channel_state::ChannelDetails;
use lightning::types::payment::PaymentHash;
use lightning_liquidity::events::LiquidityEvent;
use lightning_liquidity::lsps0::ser::LSPSDateTime;
use lightning_liquidity::lsps2::event::LSPS2ServiceEvent;
use lightning_liquidity::lsps2::msgs::LSPS2RawOpeningFeeParams;
use lightning_liquidity::lsps2::service::LSPS2ServiceConfig;
use lightning_liquidity::LiquidityServiceConfig;
use serde_json::json;
use tokio::sync::watch;

use super::decide::{decide, Action, Amount, JitPolicy};
use super::hold::{Key, Payment};
use super::offer::{taken_off, Charge, Offer, Terms};
use super::open::For;
use super::record::Record;
use crate::config::{Lsps2Settings, NodeConfig, RoleConfig};
use crate::error::Error;
use crate::factory::PaymentView;
use crate::faults;
use crate::htlc_rules::Refusal;
use crate::keys::Keys;
use crate::ldk::{Broadcaster, ChannelManager, LspsManager, CLTV_EXPIRY_DELTA};
use crate::node::Parts;
use crate::store::Store;
use crate::util::{lock, unix_now};

/// How often the library is asked even if nobody has sent anything.
const TICK: Duration = Duration::from_secs(10);
/// How long a channel is kept after its confirmation, blocks.
const MIN_LIFETIME: u32 = 1008;
/// How many channels may be opened for wallets in [`UNPAID_FOR`] blocks that then take no payment: who sells a channel
/// pays for its transaction first.
const MAX_UNPAID: usize = 20;
/// For how long such a channel counts, blocks: about a day.
pub(super) const UNPAID_FOR: u32 = 144;
/// The cause of such channels in the records.
pub(super) const SOLD: &str = "lsps2";
/// Longest `to_self_delay` that a wallet may ask of us, blocks.
const MAX_TO_SELF_DELAY: u32 = 2016;

/// What the promises of menus are made with comes from the seed, by this name.
const PROMISES: &[u8] = b"lsps2 promises";

/// What speaks LSPS, if the settings want it.
///
/// # Errors
/// [`Error::Store`], [`Error::Wallet`].
pub(crate) fn lsps(
    config: &NodeConfig,
    keys: &Arc<Keys>,
    manager: &Arc<ChannelManager>,
    store: &Arc<Store>,
    broadcaster: &Arc<Broadcaster>,
) -> Result<Option<Arc<LspsManager>>, Error> {
    let RoleConfig::Lsp(settings) = &config.role else { return Ok(None) };
    if !settings.lsps2.enabled {
        return Ok(None);
    }
    let name = sha256::Hash::hash(PROMISES).to_byte_array();
    let promise_secret = keys.factory_key(&name)?.secret_bytes();
    let service = LiquidityServiceConfig {
        lsps1_service_config: None,
        lsps2_service_config: Some(LSPS2ServiceConfig { promise_secret }),
        lsps5_service_config: None,
        advertise_service: true,
    };
    let lsps = LspsManager::new(
        Arc::clone(keys),
        Arc::clone(keys),
        Arc::clone(manager),
        Arc::clone(store),
        Arc::clone(broadcaster),
        Some(service),
        None,
    );
    Ok(Some(Arc::new(lsps.map_err(|e| Error::Store(format!("LSPS2: {e}")))?)))
}

/// Answers wallets until told to stop.
pub(crate) async fn run(parts: Arc<Parts>, mut stop: watch::Receiver<bool>) {
    let Some(lsps) = parts.lsps.clone() else { return };
    loop {
        while let Some(event) = lsps.next_event() {
            if let Err(e) = parts.answer_wallet(event) {
                tracing::warn!(error = %e, "LSPS2 request not answered");
            }
        }
        if let Err(e) = lsps.persist() {
            tracing::error!(error = %e, "LSPS2 state not stored; will be tried again");
        }
        parts.peers.process_events();
        tokio::select! {
            () = parts.lsps_asked.notified() => {}
            () = tokio::time::sleep(TICK) => {}
            _ = stop.changed() => return,
        }
    }
}

impl Parts {
    fn lsps2_settings(&self) -> Option<&Lsps2Settings> {
        match &self.config.role {
            RoleConfig::Lsp(settings) if settings.lsps2.enabled => Some(&settings.lsps2),
            _ => None,
        }
    }

    fn answer_wallet(&self, event: LiquidityEvent) -> Result<(), Error> {
        let service = self.lsps.as_ref().and_then(|lsps| lsps.lsps2_service_handler());
        let (Some(settings), Some(service)) = (self.lsps2_settings(), service) else { return Ok(()) };
        match event {
            LiquidityEvent::LSPS2Service(LSPS2ServiceEvent::GetInfo {
                request_id,
                counterparty_node_id,
                ..
            }) => {
                let until = Duration::from_secs(unix_now()).saturating_add(settings.valid);
                let menu = vec![LSPS2RawOpeningFeeParams {
                    min_fee_msat: settings.min_fee_msat,
                    proportional: settings.proportional_ppm,
                    valid_until: LSPSDateTime::new_from_duration_since_epoch(until),
                    min_lifetime: MIN_LIFETIME,
                    max_client_to_self_delay: MAX_TO_SELF_DELAY,
                    min_payment_size_msat: settings.min_payment_msat,
                    max_payment_size_msat: settings.max_payment_msat,
                }];
                service.opening_fee_params_generated(&counterparty_node_id, request_id, menu)?;
            }
            LiquidityEvent::LSPS2Service(LSPS2ServiceEvent::BuyRequest {
                request_id,
                counterparty_node_id: peer,
                opening_fee_params: fees,
                payment_size_msat,
            }) => {
                let scid = self.manager.get_intercept_scid();
                let offer = Offer {
                    peer,
                    min_fee_msat: fees.min_fee_msat,
                    proportional: fees.proportional,
                    min_payment_msat: fees.min_payment_size_msat,
                    max_payment_msat: fees.max_payment_size_msat,
                    size_msat: payment_size_msat,
                    valid_until: u64::try_from(fees.valid_until.0.timestamp()).unwrap_or(0),
                    channel: None,
                    charged: None,
                    paid: false,
                };
                // On disk before anybody can pay it.
                self.liquidity.offers.add(scid, offer)?;
                let delta = u32::from(CLTV_EXPIRY_DELTA);
                service.invoice_parameters_generated(
                    &peer,
                    request_id,
                    scid,
                    delta,
                    false,
                    super::new_id(),
                )?;
                let data = json!({"peer": peer.to_string(), "amount_msat": payment_size_msat});
                self.events.push("lsps2_offer_taken", data);
            }
            // What follows from a payment is done without the library.
            _ => {}
        }
        Ok(())
    }

    /// Pays for HTLCs that came to an offer's id and are held: all parts, a channel, then sent on with the fee taken off.
    pub(super) fn serve_bought(
        &self,
        client: PublicKey,
        (hash, payment): (PaymentHash, &Payment),
        (reserve_sat, policy): (u64, &JitPolicy),
    ) {
        let key = (client, hash);
        let first = payment.parts.first();
        let offer = first.and_then(|p| Some((p.next_scid, self.liquidity.offers.get(p.next_scid)?)));
        let Some((scid, offer)) = offer else { return self.give_back_held(&key, "its LSPS2 offer is over") };
        let fee_msat = match offer.terms(&payment.amounts(), unix_now()) {
            Terms::Incomplete => return,
            Terms::No(why) => return self.give_back_held(&key, why),
            Terms::Free => 0,
            Terms::Fee(fee_msat) => fee_msat,
        };
        let open = self.manager.list_channels();
        let is_its = |c: &&ChannelDetails| {
            offer.channel.as_ref().is_some_and(|id| *id == format!("{:032x}", c.user_channel_id))
        };
        // Another payment that pays for the channel: it may fail yet, or this one need not pay.
        let other =
            offer.charged.as_ref().filter(|charge| fee_msat > 0 && charge.hash != hex::encode(hash.0));
        if other.is_some_and(|charge| self.is_on_its_way(&client, &charge.hash, &open)) {
            return;
        }
        match open.iter().find(is_its) {
            Some(c) if c.is_usable => self.send_bought(&key, (scid, fee_msat), c),
            Some(_) => {}
            None if payment.opening || offer.paid => {
                self.give_back_held(&key, "its channel could not be opened");
            }
            None if self.peers.peer_by_node_id(&client).is_some() => {
                self.open_bought(&key, (scid, payment), &open, (reserve_sat, policy));
            }
            None => {}
        }
    }

    fn open_bought(
        &self,
        key: &Key,
        (scid, payment): (u64, &Payment),
        open: &[ChannelDetails],
        (reserve_sat, policy): (u64, &JitPolicy),
    ) {
        let client = &key.0;
        let amount = Amount::Parts(vec![payment.total_msat()]);
        let view = PaymentView { reserve_sat, ..PaymentView::default() };
        let mut situation = self.situation(client, amount, &view, open, payment);
        if self.unpaid_bought() >= MAX_UNPAID {
            return self
                .give_back_held(key, "too many wallets have not paid for the channels that they bought");
        }
        // What it has beside is another matter: a channel has been promised.
        situation.others_msat = Vec::new();
        situation.opening = false;
        let decision = decide(&situation, &JitPolicy { rotate_first: false, ..policy.clone() });
        self.tell(key, &decision);
        let Action::Jit { capacity_sat } = decision.action else {
            return self.give_back_held(key, "no channel can be opened for its LSPS2 offer");
        };
        if let Some(payment) = lock(&self.liquidity.held).get_mut(key) {
            payment.opening = true;
        }
        // First, so that a channel that is there after a restart is known to be this one's.
        let id = super::new_id();
        if let Some(payment) = lock(&self.liquidity.held).get_mut(key) {
            payment.channel = Some(id);
        }
        let stored = self.liquidity.offers.change(scid, |offer| offer.channel = Some(format!("{id:032x}")));
        if let Err(e) = stored.and_then(|()| self.open_jit(*client, capacity_sat, For::Offer(id))) {
            if let Err(e) = self.liquidity.offers.closed(id, false) {
                tracing::error!(error = %e, "LSPS2 offer not stored");
            }
            self.jit_failed(client, &e.to_string());
            self.give_back_held(key, "its channel could not be opened");
        }
    }

    /// Channels opened for wallets that have not taken the payment, and so have paid nothing for them, less those that were
    /// closed and not opened lately. Anybody can be such a wallet, any number of times.
    fn unpaid_bought(&self) -> usize {
        let from = self.height().saturating_sub(UNPAID_FOR);
        let all = self.liquidity.records.all();
        let unpaid =
            |r: &Record| r.cause.as_deref() == Some(SOLD) && !r.taken && (!r.closed || r.height >= from);
        all.iter().filter(|(_, r)| unpaid(r)).count()
    }

    /// Whether a payment to a wallet has been sent on, and is not over.
    fn is_on_its_way(&self, wallet: &PublicKey, hash: &str, open: &[ChannelDetails]) -> bool {
        let of_wallet = open.iter().filter(|c| c.counterparty.node_id == *wallet);
        let mut pending = of_wallet.flat_map(|c| &c.pending_outbound_htlcs);
        // What it came by shows it until LDK has told of its end.
        let mut came = open.iter().flat_map(|c| &c.pending_inbound_htlcs);
        pending.any(|htlc| hex::encode(htlc.payment_hash.0) == hash)
            || came.any(|htlc| hex::encode(htlc.payment_hash.0) == hash)
            || self.is_handed(wallet, hash)
    }

    fn send_bought(&self, key: &Key, (scid, fee_msat): (u64, u64), channel: &ChannelDetails) {
        let client = key.0;
        faults::point("lsp.jit.forward");
        let Some(payment) = lock(&self.liquidity.held).take(key) else { return };
        let open = self.manager.list_channels();
        let refused = payment.parts.iter().find_map(|part| self.check_bought(&open, part).err());
        if let Some(refusal) = refused {
            return self.fail_parts(&payment.parts, &refusal);
        }
        let off = taken_off(&payment.amounts(), fee_msat);
        let amounts: Vec<u64> =
            payment.amounts().iter().zip(&off).map(|(msat, off)| msat.saturating_sub(*off)).collect();
        let needed = amounts.iter().fold(0u64, |sum, msat| sum.saturating_add(*msat));
        if needed > channel.next_outbound_htlc_limit_msat {
            let why = "the channel of its LSPS2 offer has no room for it";
            return self.fail_parts(&payment.parts, &Refusal::NoRoom(why));
        }
        if fee_msat > 0 {
            let due_msat = off.into_iter().filter(|msat| *msat > 0).collect();
            let charge = Charge { hash: hex::encode(key.1 .0), due_msat, seen: Vec::new() };
            if let Err(e) = self.liquidity.offers.change(scid, |offer| offer.charged = Some(charge)) {
                tracing::error!(error = %e, "LSPS2 offer not stored");
                return self.fail_parts(&payment.parts, &Refusal::NotUsable);
            }
        }
        for (part, msat) in payment.parts.iter().zip(amounts) {
            let sent = self.manager.forward_intercepted_htlc(part.id, &channel.channel_id, client, msat);
            match sent {
                Ok(()) => self.note_handed(client, part.payment_hash, msat),
                Err(_) => self.fail_parts(std::slice::from_ref(part), &Refusal::NotUsable),
            }
        }
        faults::point("lsp.jit.forwarded");
    }

    /// A sold channel whose opening fee has not been paid: nothing else goes over it.
    pub(crate) fn is_unpaid(&self, user_channel_id: u128) -> bool {
        let record = self.liquidity.records.get(user_channel_id);
        record.is_some_and(|r| r.cause.as_deref() == Some(SOLD) && !r.taken)
    }
}
