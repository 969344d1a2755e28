//! Channels, balances, connections.

use std::collections::HashSet;

use bitcoin::secp256k1::PublicKey;
use lightning::chain::channelmonitor::{Balance as ChainBalance, BalanceSource};
use lightning::events::ClosureReason;
use lightning::ln::channel_state::{ChannelDetails, ChannelShutdownState};
use lightning::ln::types::ChannelId;
use lightning::util::sweep::OutputSpendStatus;

use super::{net, parse_node_id, Node, Parts};
use crate::api::{
    Balance, ChannelInfo, ChannelKind, ChannelState, CloseChannelRequest, ConnectRequest, LightningBalance,
    OpenChannelRequest, Outpoint,
};
use crate::config::NodeConfig;
use crate::error::Error;
use crate::liquidity::{self, For};
use crate::util::lock;

/// Value of the two anchors of an anchors-type channel, which its funder pays (BOLT 3), msat.
const ANCHORS_MSAT: u64 = 660_000;
/// Smallest ordinary channel, sat.
const MIN_CHANNEL_SAT: u64 = 20_000;

/// This side's balance, exact to the msat. LDK gives the two capacities with the reserves taken off;
/// one of the two is above zero in every channel, and gives the balance exactly. While a splice is signed and not locked
/// LDK gives the smaller one of two channels for each, of which one is of the channel as it is: that of the splice's
/// side, the funder, if it `grows`, else that of the other.
fn local_msat(c: &ChannelDetails, grows: Option<bool>) -> u64 {
    let anchors = match &c.channel_type {
        Some(t) if t.supports_anchors_zero_fee_htlc_tx() => ANCHORS_MSAT,
        _ => 0,
    };
    let (own_anchors, their_anchors) = if c.is_outbound { (anchors, 0) } else { (0, anchors) };
    if c.outbound_capacity_msat > 0 && grows.is_none_or(|grows| grows == c.is_outbound) {
        let reserve = c.unspendable_punishment_reserve.unwrap_or(0).saturating_mul(1000);
        return c.outbound_capacity_msat.saturating_add(reserve).saturating_add(own_anchors);
    }
    let pending: u64 = c
        .pending_inbound_htlcs
        .iter()
        .map(|h| h.amount_msat)
        .chain(c.pending_outbound_htlcs.iter().map(|h| h.amount_msat))
        .fold(0, u64::saturating_add);
    c.channel_value_satoshis
        .saturating_mul(1000)
        .saturating_sub(c.inbound_capacity_msat)
        .saturating_sub(c.counterparty.unspendable_punishment_reserve.saturating_mul(1000))
        .saturating_sub(their_anchors)
        .saturating_sub(pending)
}

fn is_in_wallet(balance: &ChainBalance) -> bool {
    matches!(balance, ChainBalance::ClaimableAwaitingConfirmations { source: BalanceSource::CoopClose, .. })
}

/// What a closed channel's monitor still has to bring home, sat.
fn claimable_sat(balances: &[ChainBalance]) -> u64 {
    balances
        .iter()
        .map(|b| match b {
            ChainBalance::ClaimableOnChannelClose {
                balance_candidates,
                confirmed_balance_candidate_index,
                ..
            } => balance_candidates.get(*confirmed_balance_candidate_index).map_or(0, |c| c.amount_satoshis),
            ChainBalance::ClaimableAwaitingConfirmations { amount_satoshis, .. }
            | ChainBalance::ContentiousClaimable { amount_satoshis, .. }
            | ChainBalance::MaybeTimeoutClaimableHTLC { amount_satoshis, .. }
            | ChainBalance::CounterpartyRevokedOutputClaimable { amount_satoshis } => *amount_satoshis,
            ChainBalance::MaybePreimageClaimableHTLC { .. } => 0,
        })
        .fold(0, u64::saturating_add)
}

impl Parts {
    fn local_msat(&self, c: &ChannelDetails) -> u64 {
        local_msat(c, self.mapping.grows(&c.channel_id))
    }

    /// What a closed channel's monitor still has to bring home, sat.
    pub(crate) fn to_come_sat(&self, channel: &ChannelId) -> u64 {
        // LDK's own monitor waits for what cannot be there any more.
        if let Some(balances) = self.retired.balances(channel) {
            return claimable_sat(&balances);
        }
        if self.depth.is_stuck(channel) {
            return 0;
        }
        let Ok(monitor) = self.monitor.get_monitor(*channel) else { return 0 };
        let mut balances = monitor.get_claimable_balances();
        if !self.outpoints.is_factory(channel) {
            // What an ordinary channel's cooperative close pays is the wallet's own from its first block on.
            balances.retain(|b| !is_in_wallet(b));
        }
        claimable_sat(&balances)
    }

    /// An ordinary channel is closed. What both have agreed on pays to the wallet, which counts it from then on.
    pub(super) fn note_closed(&self, channel: ChannelId, reason: &ClosureReason) {
        let agreed = matches!(
            reason,
            ClosureReason::LegacyCooperativeClosure
                | ClosureReason::CounterpartyInitiatedCooperativeClosure
                | ClosureReason::LocallyInitiatedCooperativeClosure
        );
        if agreed {
            lock(&self.settled).insert(channel);
        }
    }

    /// Closed channels' money on its way to the wallet, sat.
    fn pending_sweep_sat(&self) -> u64 {
        let open: HashSet<ChannelId> =
            self.manager.list_channels().into_iter().map(|c| c.channel_id).collect();
        let settled = lock(&self.settled).clone();
        let closed: u64 = self
            .monitor
            .list_monitors()
            .into_iter()
            .filter(|id| !open.contains(id) && !settled.contains(id))
            .map(|id| self.to_come_sat(&id))
            .fold(0, u64::saturating_add);
        let sweeping: u64 = self
            .sweeper
            .tracked_spendable_outputs()
            .into_iter()
            .filter(|o| matches!(o.status, OutputSpendStatus::PendingInitialBroadcast { .. }))
            .map(|o| match o.descriptor {
                lightning::sign::SpendableOutputDescriptor::StaticOutput { output, .. } => {
                    output.value.to_sat()
                }
                lightning::sign::SpendableOutputDescriptor::DelayedPaymentOutput(d) => {
                    d.output.value.to_sat()
                }
                lightning::sign::SpendableOutputDescriptor::StaticPaymentOutput(d) => d.output.value.to_sat(),
            })
            .fold(0, u64::saturating_add);
        closed.saturating_add(sweeping)
    }

    fn channel_info(&self, c: &ChannelDetails) -> ChannelInfo {
        let factory = self.outpoints.get(&c.channel_id);
        let (stuck, deep) = (self.depth.is_stuck(&c.channel_id), self.depth.is_deep(&c.channel_id));
        let closing = c.channel_shutdown_state.is_some_and(|s| s != ChannelShutdownState::NotShuttingDown);
        let state = match factory {
            _ if stuck => ChannelState::Stuck,
            _ if closing => ChannelState::Closing,
            // Also one that has been ready, when a reorganisation took its funding off the chain.
            _ if !deep => ChannelState::WaitingForDepth,
            _ if c.is_channel_ready => ChannelState::Ready,
            Some(f) if !f.released => ChannelState::WaitingForDepth,
            _ if c.funding_txo.is_some() => ChannelState::WaitingForDepth,
            _ => ChannelState::Opening,
        };
        ChannelInfo {
            channel_id: hex::encode(c.channel_id.0),
            peer: c.counterparty.node_id.to_string(),
            // LDK knows the outpoint that it was born with; here counts where the chain will have it.
            funding: c.funding_txo.map(|o| {
                let born = o.into_bitcoin_outpoint();
                Outpoint::from(factory.map_or(born, |f| f.place))
            }),
            capacity_sat: c.channel_value_satoshis,
            local_msat: self.local_msat(c),
            inbound_capacity_msat: c.inbound_capacity_msat,
            outbound_capacity_msat: c.outbound_capacity_msat,
            pending_htlcs: c.pending_inbound_htlcs.len().saturating_add(c.pending_outbound_htlcs.len()),
            ready: c.is_channel_ready,
            usable: c.is_usable && deep && !stuck,
            announced: c.is_announced,
            kind: match factory {
                Some(_) => ChannelKind::Factory,
                None if liquidity::is_jit(c.user_channel_id) => ChannelKind::Jit,
                None => ChannelKind::Onchain,
            },
            trusted: factory.is_none() && self.is_trusting(c),
            factory: factory.map(|f| hex::encode(f.instance)),
            state,
        }
    }
}

impl Node {
    /// All open channels.
    pub fn channels(&self) -> Vec<ChannelInfo> {
        self.parts.manager.list_channels().iter().map(|c| self.parts.channel_info(c)).collect()
    }

    /// All the money of this node.
    ///
    /// # Errors
    /// None at present; the type leaves room.
    pub fn balance(&self) -> Result<Balance, Error> {
        let onchain = self.parts.wallet.balance();
        let settled = lock(&self.parts.settled).clone();
        let open = self.parts.manager.list_channels();
        let counted = open.iter().filter(|c| !settled.contains(&c.channel_id));
        let sum = |msat: u64, c: &ChannelDetails| msat.saturating_add(self.parts.local_msat(c));
        let local = counted.clone().fold(0, sum);
        let trusted_msat = counted.filter(|c| self.parts.is_trusting(c)).fold(0, sum);
        let pending = self.parts.pending_sweep_sat();
        let total_sat = onchain
            .confirmed_sat
            .saturating_add(onchain.unconfirmed_sat)
            .saturating_add(local / 1000)
            .saturating_add(pending);
        let lightning = LightningBalance { local_msat: local, trusted_msat, pending_sweep_sat: pending };
        Ok(Balance { onchain, lightning, total_sat })
    }

    /// Connects to a peer, if not connected already.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], [`Error::Unavailable`].
    pub async fn connect(&self, request: ConnectRequest) -> Result<(), Error> {
        let peer = parse_node_id(&request.node_id)?;
        net::connect(&self.parts, peer, &request.address).await
    }

    /// Opens an ordinary channel, paid from the wallet. Returns its user channel id.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], [`Error::InsufficientFunds`], [`Error::Unavailable`].
    pub async fn open_channel(&self, request: OpenChannelRequest) -> Result<String, Error> {
        let peer: PublicKey = parse_node_id(&request.node_id)?;
        if request.capacity_sat < MIN_CHANNEL_SAT {
            return Err(Error::invalid("capacity_sat", format!("must be at least {MIN_CHANNEL_SAT}")));
        }
        if request.push_sat > request.capacity_sat {
            return Err(Error::invalid("push_sat", "must not exceed capacity_sat"));
        }
        let onchain = self.parts.wallet.balance();
        let available = onchain.confirmed_sat.saturating_sub(onchain.reserved_sat);
        if available < request.capacity_sat {
            return Err(Error::InsufficientFunds {
                needed_sat: request.capacity_sat,
                available_sat: available,
            });
        }
        match &request.address {
            Some(address) => net::connect(&self.parts, peer, address).await?,
            None if self.parts.peers.peer_by_node_id(&peer).is_none() => {
                return Err(Error::Unavailable("the peer is not connected; give its address".into()));
            }
            None => {}
        }
        let push_msat = request.push_sat.saturating_mul(1000);
        // A client takes it unconfirmed; it is known by its number from the beginning.
        if !request.announce && self.parts.is_client(&peer) {
            let id = self.parts.open_jit(peer, request.capacity_sat, For::Operator(push_msat))?;
            return Ok(format!("{id:032x}"));
        }
        let mut config = NodeConfig::user_config(&self.parts.config);
        config.channel_handshake_config.announce_for_forwarding = request.announce;
        let user_channel_id = u128::from_be_bytes(rand::random());
        self.parts.manager.create_channel(
            peer,
            request.capacity_sat,
            push_msat,
            user_channel_id,
            None,
            Some(config),
        )?;
        self.parts.peers.process_events();
        Ok(format!("{user_channel_id:032x}"))
    }
}

impl Node {
    /// Begins to close an ordinary channel or a JIT channel; it stays in the list until that is done. A factory's channel is
    /// not closed by itself: it is left (exit), or closed with its factory.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field, [`Error::NotFound`], [`Error::Conflict`] for a factory's channel,
    /// [`Error::Unavailable`] if the peer is not connected and `force` is not given, [`Error::Ldk`].
    pub fn close_channel(&self, request: &CloseChannelRequest) -> Result<(), Error> {
        let mut id = [0; 32];
        hex::decode_to_slice(&request.channel_id, &mut id)
            .map_err(|_| Error::invalid("channel_id", "must be 64 hex digits"))?;
        let id = ChannelId(id);
        let open = self.parts.manager.list_channels();
        let missing = || Error::not_found(format!("channel {}", request.channel_id));
        let channel = open.iter().find(|c| c.channel_id == id).ok_or_else(missing)?;
        if self.parts.outpoints.is_factory(&id) || self.parts.outpoints.expected(&id).is_some() {
            let what = "a factory's channel is left by an exit, or closed with its factory";
            return Err(Error::Conflict(what.into()));
        }
        let peer = channel.counterparty.node_id;
        if request.force {
            let reason = "the operator closes it".to_owned();
            self.parts.manager.force_close_broadcasting_latest_txn(&id, &peer, reason)?;
        } else if self.parts.peers.peer_by_node_id(&peer).is_none() {
            return Err(Error::Unavailable(format!("{peer} is not connected, and has to agree")));
        } else {
            self.parts.manager.close_channel(&id, &peer)?;
        }
        self.parts.peers.process_events();
        Ok(())
    }
}

impl Parts {
    /// Whether no payment was pending on a channel when it was closed: then its last balances are
    /// final. LDK counts a pending one as the sender's.
    pub(crate) fn is_quiet(&self, channel: &ChannelId) -> bool {
        let Ok(monitor) = self.monitor.get_monitor(*channel) else { return false };
        monitor.get_claimable_balances().iter().all(|b| {
            matches!(
                b,
                ChainBalance::ClaimableOnChannelClose {
                    outbound_payment_htlc_rounded_msat: 0,
                    outbound_forwarded_htlc_rounded_msat: 0,
                    inbound_claiming_htlc_rounded_msat: 0,
                    inbound_htlc_rounded_msat: 0,
                    ..
                }
            )
        })
    }

    /// Sweeps what has become spendable. LDK's own timer for this is half a minute; money that is due
    /// does not have to wait for it.
    pub(crate) fn sweep(&self) {
        if self.sweeper.regenerate_and_broadcast_spend_if_necessary().is_err() {
            tracing::error!("sweep could not be stored; will be tried again");
        }
    }

    /// Whether all of a closed channel's money is confirmed in the wallet. `settled_anyway` says that
    /// enough blocks have passed for LDK to hand out everything there is.
    pub(crate) fn is_swept(&self, channel: &ChannelId, settled_anyway: bool) -> bool {
        let claimable = self.to_come_sat(channel);
        let tracked: Vec<_> = self
            .sweeper
            .tracked_spendable_outputs()
            .into_iter()
            .filter(|o| o.channel_id == Some(*channel))
            .map(|o| matches!(o.status, OutputSpendStatus::PendingThresholdConfirmations { .. }))
            .collect();
        claimable == 0
            && tracked.iter().all(|confirmed| *confirmed)
            && (settled_anyway || !tracked.is_empty())
    }
}
