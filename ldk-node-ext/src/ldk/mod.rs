//! Our wrappers at LDK's boundary: the signer, the channel-message handler, the broadcaster, the
//! custom messages, and the index of the outpoints they have to know.
//!
//! Everything that crosses the boundary with an outpoint in it passes through one of these. While
//! factories do not change state, the outpoint LDK knows is the real one, so the wrappers only *hold
//! back* what must not leave yet: `channel_ready` until the funding is deep enough
//! ([`ChannelMessages`]), commitments until their leaf is confirmed and closing transactions for
//! good ([`Broadcaster`]). The signer notes which HTLCs are on our commitments ([`HeldHtlcs`]), and the
//! router leaves the provider the time that a factory channel needs ([`FactoryRouter`]). Who pays an offer of this
//! node's, or asks for its invoice, gets blinded paths of ours (`paths`). No HTLC passes over funding that a
//! reorganisation has made too shallow ([`FundingDepth`]).

mod broadcaster;
mod change;
mod channel_messages;
mod custom_messages;
mod depth;
mod factory_messages;
mod gossip;
mod held_htlcs;
mod monitor_store;
mod offer_messages;
mod outpoints;
mod paths;
mod router;
mod signer;
#[cfg(test)]
mod test_node;
mod user_config;
pub(crate) mod virt;

#[cfg(test)]
pub(crate) use broadcaster::tests as broadcaster_tests;
pub use broadcaster::Broadcaster;
pub(crate) use broadcaster::{Outgoing, FUNDING};
pub(crate) use change::Change;
pub use channel_messages::ChannelMessages;
pub use custom_messages::{CustomMessage, CustomMessages};
pub use depth::FundingDepth;
pub(crate) use factory_messages::PeerEvent;
pub use factory_messages::{FactoryMessages, FactoryWireMessage};
pub use gossip::BoundedGossip;
#[cfg(test)]
pub(crate) use held_htlcs::HeldHtlc;
pub use held_htlcs::HeldHtlcs;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use held_htlcs::Inbound;
pub use monitor_store::MonitorStore;
pub use offer_messages::OfferMessages;
pub(crate) use outpoints::{channel_id, Gate};
pub use outpoints::{FactoryChannel, InstanceId, Outpoints};
pub use paths::MessageRouter;
pub(crate) use paths::Receiving;
pub use router::FactoryRouter;
pub use signer::FactorySigner;
pub(crate) use user_config::CLTV_EXPIRY_DELTA;
pub use virt::{AllMonitors, Changes, Commitments, Mapping, Outward, Real, Retired, Streams};
pub(crate) use virt::{Needs, MAX_REALS};

use std::sync::{Arc, RwLock};

use lightning::chain::{Filter, WatchedOutput};
use lightning::ln::peer_handler::IgnoringMessageHandler;
use lightning::routing::gossip::P2PGossipSync;
use lightning::routing::router::DefaultRouter;
use lightning::routing::scoring::{ProbabilisticScorer, ProbabilisticScoringFeeParameters};
use lightning_net_tokio::SocketDescriptor;

use crate::chain::Fees;
use crate::keys::Keys;
use crate::logger::Logger;
use crate::store::Store;
use crate::wallet::Wallet;

/// LDK asks a [`Filter`] what to look at; we feed it whole blocks, so there is nothing to do.
#[derive(Debug)]
pub struct WholeBlocks;

impl Filter for WholeBlocks {
    fn register_tx(&self, _txid: &bitcoin::Txid, _script_pubkey: &bitcoin::Script) {}
    fn register_output(&self, _output: WatchedOutput) {}
}

pub(crate) type NetworkGraph = lightning::routing::gossip::NetworkGraph<Arc<Logger>>;
pub(crate) type Scorer = ProbabilisticScorer<Arc<NetworkGraph>, Arc<Logger>>;
pub(crate) type Router = FactoryRouter<
    DefaultRouter<
        Arc<NetworkGraph>,
        Arc<Logger>,
        Arc<Keys>,
        Arc<RwLock<Scorer>>,
        ProbabilisticScoringFeeParameters,
        Scorer,
    >,
>;
pub(crate) type ChainMonitor = lightning::chain::chainmonitor::ChainMonitor<
    FactorySigner,
    Arc<WholeBlocks>,
    Arc<Broadcaster>,
    Arc<Fees>,
    Arc<Logger>,
    Arc<MonitorStore>,
    Arc<Keys>,
>;
pub(crate) type ChannelManager = lightning::ln::channelmanager::ChannelManager<
    Arc<AllMonitors>,
    Arc<Broadcaster>,
    Arc<Keys>,
    Arc<Keys>,
    Arc<Keys>,
    Arc<Fees>,
    Arc<Router>,
    Arc<MessageRouter>,
    Arc<Logger>,
>;
pub(crate) type GossipSync = P2PGossipSync<
    Arc<NetworkGraph>,
    Arc<dyn lightning::routing::utxo::UtxoLookup + Send + Sync>,
    Arc<Logger>,
>;
pub(crate) type PeerManager = lightning::ln::peer_handler::PeerManager<
    SocketDescriptor,
    Arc<ChannelMessages>,
    Arc<BoundedGossip>,
    Arc<OnionMessenger>,
    Arc<Logger>,
    Arc<CustomMessages>,
    Arc<Keys>,
    Arc<ChainMonitor>,
>;
/// What speaks LSPS with wallets.
pub type LspsManager = lightning_liquidity::LiquidityManagerSync<
    Arc<Keys>,
    Arc<Keys>,
    Arc<ChannelManager>,
    Arc<Store>,
    lightning_liquidity::utils::time::DefaultTimeProvider,
    Arc<Broadcaster>,
>;
pub(crate) type OnionMessenger = lightning::onion_message::messenger::OnionMessenger<
    Arc<Keys>,
    Arc<Keys>,
    Arc<Logger>,
    Arc<ChannelManager>,
    Arc<MessageRouter>,
    Arc<OfferMessages>,
    IgnoringMessageHandler,
    IgnoringMessageHandler,
    IgnoringMessageHandler,
>;
pub(crate) type Sweeper = lightning::util::sweep::OutputSweeperSync<
    Arc<Broadcaster>,
    Arc<Wallet>,
    Arc<Fees>,
    Arc<WholeBlocks>,
    Arc<Store>,
    Arc<Logger>,
    Arc<Keys>,
>;
