//! Fee bumps of LDK's commitments.
//!
//! A factory channel's commitment waits until its leaf is on the chain, and its bumps with it. LDK does not
//! know that nobody could send what it asked for: it raises the feerate by a quarter each time it asks
//! again, which is with every block, so that after an ordinary path it would be at its maximum. The count
//! begins anew here when the commitment may go.

use std::collections::HashMap;
use std::sync::Mutex;

use lightning::events::bump_transaction::BumpTransactionEvent;
use lightning::ln::types::ChannelId;

use super::Parts;
use crate::ldk::virt::Bump;
use crate::ldk::Gate;
use crate::util::lock;

/// Blocks that a commitment gets before its child is replaced by a better one.
const PATIENCE_BLOCKS: u32 = 2;

/// The feerate at which a commitment was sent last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sent {
    height: u32,
    sat_per_kwu: u32,
}

/// The commitments that were let go. In memory: after a restart the count begins anew.
#[derive(Default)]
pub(crate) struct BumpMemory {
    sent: Mutex<HashMap<ChannelId, Sent>>,
}

/// The feerate for a commitment at `height`: the estimate at first, a quarter more each time it has
/// lingered; never more than LDK asks for unless the estimate is.
fn feerate(before: Option<Sent>, height: u32, estimate: u32, asked: u32) -> Sent {
    let most = asked.max(estimate);
    match before {
        Some(b) if height < b.height.saturating_add(PATIENCE_BLOCKS) => b,
        Some(b) => {
            let raised = b.sat_per_kwu.saturating_mul(5) / 4;
            Sent { height, sat_per_kwu: raised.max(estimate).min(most) }
        }
        None => Sent { height, sat_per_kwu: estimate.min(most) },
    }
}

impl Parts {
    /// Does what LDK asks for, in its time and at the right price; LDK asks again with every block.
    pub(super) fn handle_bump(&self, mut bump: BumpTransactionEvent) {
        let translated = self.outward.bump(&mut bump);
        if let BumpTransactionEvent::ChannelClose {
            commitment_tx,
            channel_id,
            package_target_feerate_sat_per_1000_weight: target,
            ..
        } = &mut bump
        {
            let inputs: Vec<_> = commitment_tx.input.iter().map(|i| i.previous_output).collect();
            let gate = match translated {
                Bump::Plain => self.outpoints.gate(&inputs),
                Bump::Real => Gate::Open,
                Bump::Held => return,
            };
            match gate {
                Gate::Held(_) => {
                    tracing::debug!(channel = %channel_id, "commitment held: the leaf is not confirmed");
                    return;
                }
                Gate::Open => {
                    let estimate = u32::try_from(self.fees.urgent().to_sat_per_kwu()).unwrap_or(u32::MAX);
                    let mut sent = lock(&self.bumps.sent);
                    let now = feerate(sent.get(channel_id).copied(), self.height(), estimate, *target);
                    sent.insert(*channel_id, now);
                    *target = now.sat_per_kwu;
                }
                Gate::Foreign => {}
            }
        }
        if translated == Bump::Held {
            return;
        }
        self.bump.handle_event(&bump);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commitment_starts_at_the_estimate_however_long_it_was_held() {
        let sent = |height, sat_per_kwu| Sent { height, sat_per_kwu };
        let first = feerate(None, 100, 1_000, 50_000);
        assert_eq!(first, sent(100, 1_000));
        assert_eq!(feerate(Some(first), 101, 1_000, 60_000), first, "its two blocks");
        let second = feerate(Some(first), 102, 1_000, 60_000);
        assert_eq!(second, sent(102, 1_250));
        assert_eq!(feerate(Some(second), 104, 4_000, 60_000), sent(104, 4_000), "the estimate has risen");
        assert_eq!(feerate(Some(second), 104, 500, 1_300), sent(104, 1_300), "LDK asks for less");
        assert_eq!(feerate(None, 100, 1_000, 253), sent(100, 1_000), "never below the estimate");
    }
}
