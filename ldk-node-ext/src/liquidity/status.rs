//! What the operator sees of it: decisions by kind and reason, the share of clients with a JIT channel, and what those
//! have cost so far.

use std::collections::{BTreeMap, HashSet};

use bitcoin::secp256k1::PublicKey;

use super::is_jit;
use crate::api::{DecisionCount, JitStatus};
use crate::config::RoleConfig;
use crate::node::{Node, Parts};
use crate::util::lock;

/// Counts since the start, by what was decided and why nothing better was.
#[derive(Default)]
pub(crate) struct Counts(BTreeMap<(&'static str, String), u64>);

impl Counts {
    /// A decision was taken; `against` is the last of its reasons, of which there are few.
    pub(super) fn decided(&mut self, action: &'static str, against: &str) {
        let count = self.0.entry((action, against.to_owned())).or_default();
        *count = count.saturating_add(1);
    }

    /// A payment that was held is given back.
    pub(super) fn gave_back(&mut self, why: &'static str) {
        self.decided("give_back", why);
    }

    fn list(&self) -> Vec<DecisionCount> {
        let one = |((action, reason), count): (&(&'static str, String), &u64)| DecisionCount {
            action: (*action).to_owned(),
            reason: reason.clone(),
            count: *count,
        };
        self.0.iter().map(one).collect()
    }
}

impl Parts {
    /// A payment was sent on at once.
    pub(crate) fn count_forward(&self) {
        lock(&self.liquidity.counts).decided("forward", "");
    }

    fn jit_status(&self) -> JitStatus {
        let mut status = JitStatus {
            decisions: lock(&self.liquidity.counts).list(),
            held_htlcs: lock(&self.liquidity.held).count(),
            ..JitStatus::default()
        };
        let (mut clients, mut with_jit) = (HashSet::<PublicKey>::new(), HashSet::new());
        for c in self.manager.list_channels() {
            let peer = c.counterparty.node_id;
            if is_jit(c.user_channel_id) {
                with_jit.insert(peer);
                status.channels = status.channels.saturating_add(1);
                status.capacity_sat = status.capacity_sat.saturating_add(c.channel_value_satoshis);
                let record = self.liquidity.records.get(c.user_channel_id);
                status.untaken = status.untaken.saturating_add(usize::from(record.is_some_and(|r| !r.taken)));
            } else if self.outpoints.is_factory(&c.channel_id) {
                clients.insert(peer);
            }
        }
        status.clients = clients.len();
        status.clients_with_jit = with_jit.intersection(&clients).count();
        // A client's own records are of what it trusts its LSP with.
        let opened = matches!(self.config.role, RoleConfig::Lsp(_)).then(|| self.liquidity.records.all());
        for (_, record) in opened.into_iter().flatten() {
            if record.signed {
                let fee_sat = record.fee_sat.saturating_add(record.child_fee_sat);
                status.fees_sat = status.fees_sat.saturating_add(fee_sat);
                let cause = record.cause.unwrap_or_else(|| "operator".to_owned());
                let count = status.causes.entry(cause).or_default();
                *count = count.saturating_add(1);
            }
        }
        status
    }
}

impl Node {
    /// Channels beside the factories and what they cost (LSP); all zero at a client that has none.
    pub fn jit_status(&self) -> JitStatus {
        self.parts().jit_status()
    }
}
