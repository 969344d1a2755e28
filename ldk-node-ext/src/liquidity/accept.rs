//! Which channels beside the factory a client accepts: its own LSP's, unannounced, within its policy.

use bitcoin::secp256k1::PublicKey;
use bitcoin::Network;
use lightning::events::ClaimedHTLC;
use lightning::ln::channel_state::ChannelDetails;
use lightning::ln::channelmanager::TrustedChannelFeatures;
use lightning::ln::types::ChannelId;
use serde_json::json;

use super::record::Record;
use super::{is_jit, new_id, TEMPORARY_MARK};
use crate::config::{FactoryPolicy, RoleConfig};
use crate::node::Parts;

/// Depth from which a funding transaction counts as final, blocks; on regtest it is 1.
const DEEP: u32 = 6;

/// For how long one counts that was closed before its funding was deep, blocks: a week. Whether its money comes is not
/// certain, and who closes one after the other must not be trusted with more each time.
const CLOSED_FOR: u32 = 1008;

/// A channel that somebody opens to this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OpenedToUs {
    /// Its temporary id.
    pub(crate) temporary: ChannelId,
    /// Who opens it.
    pub(crate) peer: PublicKey,
    /// Capacity, sat.
    pub(crate) capacity_sat: u64,
    /// Whether it shall be announced.
    pub(crate) announced: bool,
    /// Whether it is opened by interactive construction of its funding transaction, and so could take our coins.
    pub(crate) dual_funded: bool,
}

/// What a client has of such channels already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Present {
    /// All of them.
    count: usize,
    /// Capacity of those whose funding is not deep, or was not when they were closed lately, sat.
    trusted_sat: u64,
}

/// Why a client refuses one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotTaken {
    #[error("only unannounced channels, paid by the LSP alone, are accepted beside a factory")]
    Form,
    #[error("max_jit_channels: {0} channels beside the factory are the most")]
    Count(usize),
    #[error("max_jit_sat: {asked} sat more would be unconfirmed, at most {left} of {limit} are left")]
    Trust { asked: u64, left: u64, limit: u64 },
}

fn check(policy: &FactoryPolicy, present: Present, opened: &OpenedToUs) -> Result<(), NotTaken> {
    if opened.announced || opened.dual_funded {
        return Err(NotTaken::Form);
    }
    if present.count >= policy.max_jit_channels {
        return Err(NotTaken::Count(policy.max_jit_channels));
    }
    let (asked, limit) = (opened.capacity_sat, policy.max_jit_sat);
    let left = limit.saturating_sub(present.trusted_sat);
    if asked > left {
        return Err(NotTaken::Trust { asked, left, limit });
    }
    Ok(())
}

impl Parts {
    /// Whether a channel's funding is so deep that nobody has to be trusted for it.
    pub(crate) fn is_deep(&self, c: &ChannelDetails) -> bool {
        let wanted = if self.config.network == Network::Regtest { 1 } else { DEEP };
        c.confirmations.unwrap_or(0) >= wanted
    }

    /// Whether a channel that this node's LSP opens beside the factory is accepted; none if it is not one.
    pub(crate) fn jit_offered(&self, opened: &OpenedToUs) -> Option<Result<(), NotTaken>> {
        let RoleConfig::Client(client) = &self.config.role else { return None };
        if opened.peer != client.lsp_node_id || !opened.temporary.0.starts_with(&TEMPORARY_MARK) {
            return None;
        }
        let all = self.manager.list_channels_with_counterparty(&opened.peer);
        let mut present = Present::default();
        for c in all.iter().filter(|c| is_jit(c.user_channel_id)) {
            present.count = present.count.saturating_add(1);
            if !self.is_deep(c) {
                present.trusted_sat = present.trusted_sat.saturating_add(c.channel_value_satoshis);
            }
        }
        for (_, record) in self.liquidity.records.all().iter().filter(|(_, r)| r.closed) {
            present.trusted_sat = present.trusted_sat.saturating_add(record.capacity_sat);
        }
        Some(check(&client.policy, present, opened))
    }

    /// Accepts such a channel or refuses it, and tells the user.
    pub(crate) fn answer_jit(&self, opened: &OpenedToUs, answer: Result<(), NotTaken>) {
        let OpenedToUs { temporary, peer, capacity_sat, .. } = opened;
        let done = match answer {
            Ok(()) => {
                let id = new_id();
                let record = Record::new(*peer, *capacity_sat, None, self.height());
                match self.liquidity.records.put(id, record) {
                    Ok(()) => {
                        self.events.push("jit_channel_accepted", json!({"peer": peer.to_string(), "capacity_sat": capacity_sat, "trust": "until it is confirmed, its money is trust in the LSP"}));
                        self.manager.accept_inbound_channel_from_trusted_peer(
                            temporary,
                            peer,
                            id,
                            TrustedChannelFeatures::ZeroConf,
                            None,
                        )
                    }
                    Err(e) => {
                        tracing::error!(error = %e, "channel of the LSP refused: it cannot be stored");
                        let reason = "not stored".to_owned();
                        self.manager.force_close_broadcasting_latest_txn(temporary, peer, reason)
                    }
                }
            }
            Err(reason) => {
                let reason = reason.to_string();
                tracing::warn!(%peer, capacity_sat, reason, "channel of the LSP refused");
                let data = json!({"peer": peer.to_string(), "capacity_sat": capacity_sat, "reason": reason});
                self.events.push("jit_channel_refused", data);
                self.manager.force_close_broadcasting_latest_txn(temporary, peer, reason)
            }
        };
        if let Err(e) = done {
            tracing::warn!(error = ?e, "channel of the LSP");
        }
    }

    /// Client: what is deep, or was closed long ago, is trust no more.
    pub(super) fn look_at_trust(&self, open: &[ChannelDetails]) {
        if !matches!(self.config.role, RoleConfig::Client(_)) {
            return;
        }
        for (id, record) in self.liquidity.records.all() {
            let deep = open.iter().find(|c| c.user_channel_id == id).map(|c| self.is_deep(c));
            let old = self.height() >= record.closed_at.unwrap_or(record.height).saturating_add(CLOSED_FOR);
            if deep == Some(true) || (deep.is_none() && old) {
                if let Err(e) = self.liquidity.records.remove(id) {
                    tracing::error!(error = %e, "JIT channel not stored");
                }
            }
        }
    }

    /// Whether a channel is used although its funding is not deep: what this node has in it is trust in who opened it.
    pub(crate) fn is_trusting(&self, c: &ChannelDetails) -> bool {
        !self.outpoints.is_factory(&c.channel_id) && c.is_channel_ready && !self.is_deep(c)
    }

    /// What of a payment came over such channels, msat.
    pub(crate) fn trusted_msat(&self, htlcs: &[ClaimedHTLC]) -> u64 {
        let open = self.manager.list_channels();
        let trusting = |id| open.iter().any(|c| c.channel_id == id && self.is_trusting(c));
        let trusted = htlcs.iter().filter(|htlc| trusting(htlc.channel_id));
        trusted.map(|htlc| htlc.value_msat).fold(0, u64::saturating_add)
    }

    /// Whether the LSP receives for a node, and makes room for what it is to get: it has a channel in a factory. Anybody can
    /// speak our protocol under any number of names, and each channel costs a transaction.
    pub(crate) fn is_served(&self, peer: &PublicKey) -> bool {
        let channels = self.manager.list_channels_with_counterparty(peer);
        matches!(self.config.role, RoleConfig::Lsp(_))
            && channels.iter().any(|c| self.outpoints.is_factory(&c.channel_id))
    }

    /// Whether a node is one of our clients (LSP): it speaks our protocol now, or has a channel in a factory.
    pub(crate) fn is_client(&self, peer: &PublicKey) -> bool {
        matches!(self.config.role, RoleConfig::Lsp(_))
            && (self.factory_messages.ready_peers().contains(peer)
                || self
                    .manager
                    .list_channels_with_counterparty(peer)
                    .iter()
                    .any(|c| self.outpoints.is_factory(&c.channel_id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_bounds_what_is_trusted_and_how_many_there_are() {
        let policy = FactoryPolicy {
            max_jit_sat: 1_000,
            max_jit_channels: 3,
            ..FactoryPolicy::default_for(Network::Regtest)
        };
        let peer = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798".parse().unwrap();
        let temporary = crate::liquidity::new_temporary();
        let opened =
            |capacity_sat| OpenedToUs { temporary, peer, capacity_sat, announced: false, dual_funded: false };
        let present = |count, trusted_sat| Present { count, trusted_sat };
        assert_eq!(check(&policy, present(0, 0), &opened(1_000)), Ok(()));
        let over = NotTaken::Trust { asked: 1_001, left: 1_000, limit: 1_000 };
        assert_eq!(check(&policy, present(0, 0), &opened(1_001)), Err(over));
        assert_eq!(check(&policy, present(2, 400), &opened(600)), Ok(()));
        assert!(check(&policy, present(2, 401), &opened(600)).is_err());
        assert_eq!(check(&policy, present(3, 0), &opened(1)), Err(NotTaken::Count(3)));
        let public = OpenedToUs { announced: true, ..opened(1) };
        assert_eq!(check(&policy, present(0, 0), &public), Err(NotTaken::Form));
        let dual = OpenedToUs { dual_funded: true, ..opened(1) };
        assert_eq!(check(&policy, present(0, 0), &dual), Err(NotTaken::Form));
        let none = FactoryPolicy { max_jit_sat: 0, ..policy };
        assert!(check(&none, present(0, 0), &opened(1)).is_err());
    }
}
