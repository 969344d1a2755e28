//! LDK's channel settings: for ordinary channels and for those of a factory.

use bitcoin::Network;
use lightning::util::config::{HTLCInterceptionFlags, UserConfig};

use crate::config::{NodeConfig, RoleConfig};

/// Delta that this node asks for when it forwards, blocks.
pub(crate) const CLTV_EXPIRY_DELTA: u16 = 80;
/// `to_self_delay` we ask of peers; LDK's smallest, blocks.
const TO_SELF_DELAY: u16 = 144;

impl NodeConfig {
    /// Settings for ordinary channels, and the node's defaults.
    pub(crate) fn user_config(&self) -> UserConfig {
        let mut c = UserConfig::default();
        let h = &mut c.channel_handshake_config;
        h.minimum_depth = if self.network == Network::Regtest { 1 } else { 6 };
        h.our_to_self_delay = TO_SELF_DELAY;
        h.announce_for_forwarding = false;
        h.negotiate_anchors_zero_fee_htlc_tx = true;
        h.negotiate_anchor_zero_fee_commitments = true;
        h.unannounced_channel_max_inbound_htlc_value_in_flight_percentage = 100;
        h.our_max_accepted_htlcs = 50;
        c.channel_handshake_limits.force_announced_channel_preference = false;
        c.channel_handshake_limits.their_to_self_delay = 2016;
        c.channel_config.cltv_expiry_delta = CLTV_EXPIRY_DELTA;
        c.accept_inbound_channels = true;
        // An invoice is on record before it is paid (`node/offers.rs`).
        c.manually_handle_bolt12_invoices = true;
        // Which splices are let in is said in `virt`: those of a factory's channels that were agreed.
        c.reject_inbound_splices = false;
        if let RoleConfig::Lsp(s) = &self.role {
            c.accept_forwards_to_priv_channels = true;
            // Every forward that could succeed is looked at first (`node/htlcs.rs`). Announced channels
            // too: LDK may take any other channel with the same peer instead. And those of clients that are away:
            // they may come back while it is held.
            c.htlc_interception_flags = HTLCInterceptionFlags::ToOnlinePrivateChannels as u8
                | HTLCInterceptionFlags::ToOfflinePrivateChannels as u8
                | HTLCInterceptionFlags::ToPublicChannels as u8;
            if s.lsps2.enabled {
                c.htlc_interception_flags |= HTLCInterceptionFlags::ToInterceptSCIDs as u8;
            }
            c.channel_config.forwarding_fee_base_msat = s.forwarding_fee_base_msat;
            c.channel_config.forwarding_fee_proportional_millionths =
                s.forwarding_fee_proportional_millionths;
        }
        c
    }

    /// Settings for a channel that an LSP opens to its client beside the factory: unannounced, reached by alias before
    /// and after its funding confirms.
    pub(crate) fn jit_channel_config(&self) -> UserConfig {
        let mut c = self.user_config();
        c.channel_handshake_config.negotiate_scid_privacy = true;
        c.channel_handshake_config.announce_for_forwarding = false;
        c
    }

    /// Settings for a factory's channels: unannounced, reached by alias, and closed at exactly the fee
    /// asked for, since the closing transaction is only a fall-back and its fee is the LSP's.
    pub(crate) fn factory_channel_config(&self, to_self_delay: u16) -> UserConfig {
        let mut c = self.user_config();
        c.channel_handshake_config.our_to_self_delay = to_self_delay;
        c.channel_handshake_config.negotiate_scid_privacy = true;
        c.channel_handshake_config.announce_for_forwarding = false;
        c.channel_config.force_close_avoidance_max_fee_satoshis = 0;
        c
    }
}
