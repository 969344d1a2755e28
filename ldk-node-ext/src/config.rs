//! How a node is configured: plain structs with defaults; files, environment and flags are the
//! binaries' business.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bitcoin::secp256k1::PublicKey;
use bitcoin::Network;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::keys;
use crate::liquidity::decide::JitPolicy;
use crate::store::StoreKind;
use crate::watch::HandoverConfig;

/// How to log in to bitcoind's RPC.
#[derive(Clone, Debug)]
pub enum RpcAuth {
    /// `rpcuser` and `rpcpassword`.
    UserPass {
        /// User.
        user: String,
        /// Password.
        pass: String,
    },
    /// bitcoind's `.cookie` file, read anew at each start.
    CookieFile(PathBuf),
}

/// Which side of a factory the node is, and what only that side needs.
#[derive(Clone, Debug)]
pub enum RoleConfig {
    /// Lightning service provider.
    Lsp(LspSettings),
    /// Client of one LSP.
    Client(ClientSettings),
}

/// Settings of an LSP.
#[derive(Clone, Debug)]
pub struct LspSettings {
    /// Liquidity stock a leaf unless the request says otherwise, sat.
    pub default_stock_sat: u64,
    /// How long a ceremony waits for its clients in each phase.
    pub phase_timeout: Duration,
    /// Fewest clients with which a factory is still made.
    pub min_clients: usize,
    /// Accept ordinary channels that others open.
    pub accept_inbound_channels: bool,
    /// Base fee for forwards, msat.
    pub forwarding_fee_base_msat: u32,
    /// Proportional fee for forwards, millionths.
    pub forwarding_fee_proportional_millionths: u32,
    /// Most inbound connections at a time.
    pub max_connections: usize,
    /// Failed ceremonies and closes by its own fault after which a client is paused; 0: never.
    pub admission_strikes: u32,
    /// For how long such a failure counts, blocks.
    pub admission_window_blocks: u32,
    /// How long a client is paused the first time, blocks; then twice as long each time, up to 1008.
    pub admission_pause_blocks: u32,
    /// Let clients ask for the close of their factory. Who then does not sign costs all others their channels, until
    /// it signs or they leave.
    pub accept_close_asks: bool,
    /// By how much a client may grow its channel out of its leaf's stock by asking, beyond what it had at the creation,
    /// sat; nothing is charged for it. 0: clients cannot ask, only the operator changes capacities.
    pub free_liquidity_sat: u64,
    /// Receive for clients what no single channel of theirs has room for, and pay it on over all of them.
    pub relay: bool,
    /// Base fee for that, msat.
    pub relay_fee_base_msat: u32,
    /// Proportional fee for that, millionths of what the client gets.
    pub relay_fee_ppm: u32,
    /// How long such a payment waits for a client that is not there, seconds.
    pub relay_hold_secs: u64,
    /// Most of such invoices and payments that may be open at a time.
    pub relay_max_open: usize,
    /// Most of them of one client.
    pub relay_max_open_per_client: usize,
    /// What is done with payments for which a client has no room.
    pub jit: JitPolicy,
    /// Channels that any wallet may buy.
    pub lsps2: Lsps2Settings,
}

/// How channels are sold to wallets by LSPS2.
#[derive(Clone, Debug)]
pub struct Lsps2Settings {
    /// Whether they are.
    pub enabled: bool,
    /// Least fee for a channel, msat.
    pub min_fee_msat: u64,
    /// Fee in millionths of the payment that it is opened for.
    pub proportional_ppm: u32,
    /// How long an offer stands.
    pub valid: Duration,
    /// Smallest payment that a channel is opened for, msat.
    pub min_payment_msat: u64,
    /// Largest one, msat.
    pub max_payment_msat: u64,
}

impl Default for Lsps2Settings {
    fn default() -> Self {
        Self {
            enabled: false,
            min_fee_msat: 2_000_000,
            proportional_ppm: 5_000,
            valid: Duration::from_secs(3600),
            min_payment_msat: 10_000_000,
            max_payment_msat: 1_000_000_000,
        }
    }
}

/// Settings of a client.
#[derive(Clone, Debug)]
pub struct ClientSettings {
    /// The LSP's node id.
    pub lsp_node_id: PublicKey,
    /// The LSP's `host:port`.
    pub lsp_address: String,
    /// Ask to be in a factory whenever in none.
    pub join: bool,
    /// Most that payers may have to pay on top for what the LSP receives in the client's place, millionths.
    pub relay_max_fee_ppm: u32,
    /// Whether money in channels beside the factory is moved into the factory when there is room.
    pub jit_move: JitMove,
    /// What it agrees to.
    pub policy: FactoryPolicy,
}

/// When a client moves money from a channel beside its factory into the factory's, and closes the former.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JitMove {
    /// By itself.
    #[default]
    Auto,
    /// On command only.
    Never,
}

impl std::str::FromStr for JitMove {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "never" => Ok(Self::Never),
            _ => Err("must be auto or never".into()),
        }
    }
}

/// What a client agrees to sign. All is checked by the client itself on every plan.
#[derive(Clone, Debug)]
pub struct FactoryPolicy {
    /// Smallest channel, sat.
    pub min_capacity_sat: u64,
    /// Largest channel, sat.
    pub max_capacity_sat: u64,
    /// Shortest lifetime (active and dying period together), blocks.
    pub min_lifetime_blocks: u32,
    /// Longest worst exit, blocks.
    pub max_exit_blocks: u32,
    /// Most clients in a factory.
    pub max_clients: usize,
    /// Consent to cooperative closes that the LSP proposes.
    pub accept_close: bool,
    /// How long a payment may wait for this client to come online before the LSP would have to
    /// break the factory, blocks; it is added to the invoices' final expiry delta.
    pub payment_patience_blocks: u16,
    /// Most capacity of channels beside the factory that the LSP may open and that are not confirmed yet, sat: until
    /// then their money is trust in the LSP. 0: none are accepted.
    pub max_jit_sat: u64,
    /// Most such channels, confirmed ones too.
    pub max_jit_channels: usize,
}

/// A node's configuration.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// In which kind of store; a data directory stays with the one it began with.
    pub store: StoreKind,
    /// Bitcoin network.
    pub network: Network,
    /// bitcoind's RPC address.
    pub bitcoind_rpc: SocketAddr,
    /// bitcoind's RPC login.
    pub bitcoind_auth: RpcAuth,
    /// Where to accept Lightning connections (port 0: any free one).
    pub listen: Option<SocketAddr>,
    /// How often bitcoind is asked for new blocks.
    pub poll_interval: Duration,
    /// Used where bitcoind has no estimate, sat/vB.
    pub fallback_feerate_sat_per_vb: u32,
    /// Never pay more than this, sat/vB.
    pub max_feerate_sat_per_vb: u32,
    /// Most that the fee-paying children of one exit's path may cost together, sat; none: only the feerate
    /// is bounded.
    pub exit_max_fee_sat: Option<u64>,
    /// Blocks that an HTLC on a factory channel must have beyond the factory's claim budget, for heights that
    /// differ between nodes and for reaction, 1 to 144. The LSP's must not exceed its clients', who offer as
    /// much as their own asks for: else it refuses their payments.
    pub claim_margin_blocks: u16,
    /// Watchers that are handed this node's paths.
    pub watchers: HandoverConfig,
    /// Folders of other nodes, whose leaves a watcher inside this process guards, with a fee wallet of its own.
    pub watch_folders: Vec<PathBuf>,
    /// Name in announcements, at most 32 bytes.
    pub alias: Option<String>,
    /// LSP or client.
    pub role: RoleConfig,
}

impl NodeConfig {
    /// An LSP with defaults.
    pub fn lsp(
        data_dir: PathBuf,
        network: Network,
        bitcoind_rpc: SocketAddr,
        bitcoind_auth: RpcAuth,
    ) -> Self {
        let role = RoleConfig::Lsp(LspSettings::default());
        Self {
            listen: Some(SocketAddr::from(([0, 0, 0, 0], 9735))),
            ..Self::with(data_dir, network, bitcoind_rpc, bitcoind_auth, role)
        }
    }

    /// The provider of a client.
    pub(crate) fn provider(&self) -> Option<PublicKey> {
        match &self.role {
            RoleConfig::Lsp(_) => None,
            RoleConfig::Client(c) => Some(c.lsp_node_id),
        }
    }

    /// A client with defaults.
    pub fn client(
        data_dir: PathBuf,
        network: Network,
        bitcoind_rpc: SocketAddr,
        bitcoind_auth: RpcAuth,
        lsp_node_id: PublicKey,
        lsp_address: String,
    ) -> Self {
        let policy = FactoryPolicy::default_for(network);
        let role = RoleConfig::Client(ClientSettings {
            lsp_node_id,
            lsp_address,
            join: true,
            relay_max_fee_ppm: 10_000,
            jit_move: JitMove::default(),
            policy,
        });
        Self::with(data_dir, network, bitcoind_rpc, bitcoind_auth, role)
    }

    fn with(
        data_dir: PathBuf,
        network: Network,
        bitcoind_rpc: SocketAddr,
        bitcoind_auth: RpcAuth,
        role: RoleConfig,
    ) -> Self {
        Self {
            data_dir,
            store: StoreKind::default(),
            network,
            bitcoind_rpc,
            bitcoind_auth,
            listen: None,
            poll_interval: Duration::from_secs(5),
            fallback_feerate_sat_per_vb: 5,
            max_feerate_sat_per_vb: 500,
            exit_max_fee_sat: None,
            claim_margin_blocks: 12,
            watchers: HandoverConfig::default(),
            watch_folders: Vec::new(),
            alias: None,
            role,
        }
    }

    /// Checks every limit.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field.
    pub fn validate(&self) -> Result<(), Error> {
        check_feerates(self.fallback_feerate_sat_per_vb, self.max_feerate_sat_per_vb)?;
        check_poll_interval(self.poll_interval)?;
        if self.exit_max_fee_sat == Some(0) {
            return Err(Error::invalid("exit_max_fee_sat", "must be at least 1"));
        }
        if self.claim_margin_blocks == 0 || self.claim_margin_blocks > 144 {
            return Err(Error::invalid("claim_margin_blocks", "must be from 1 to 144"));
        }
        if self.alias.as_ref().is_some_and(|a| a.len() > 32) {
            return Err(Error::invalid("alias", "must be at most 32 bytes"));
        }
        self.watchers.validate()?;
        if let Some(own) = self.watchers.folders.iter().find(|folder| self.watch_folders.contains(folder)) {
            let reason = format!("{} is also in watchers: a node is no watcher of its own", own.display());
            return Err(Error::invalid("watch_folders", reason));
        }
        match &self.role {
            RoleConfig::Lsp(s) => {
                if s.min_clients < 2 || s.min_clients > 1000 {
                    return Err(Error::invalid("min_clients", "must be from 2 to 1000"));
                }
                if s.default_stock_sat != 0 && s.default_stock_sat < 330 {
                    return Err(Error::invalid("default_stock_sat", "must be 0 or at least 330 (dust)"));
                }
                if s.phase_timeout < Duration::from_secs(1) || s.phase_timeout > Duration::from_secs(3600) {
                    return Err(Error::invalid("phase_timeout", "must be from 1 s to 3600 s"));
                }
                if s.max_connections == 0 || s.max_connections > 100_000 {
                    return Err(Error::invalid("max_connections", "must be from 1 to 100000"));
                }
                if s.relay_fee_ppm > 1_000_000 {
                    return Err(Error::invalid("relay_fee_ppm", "must be at most 1000000"));
                }
                if s.relay_hold_secs == 0 || s.relay_hold_secs > 86_400 {
                    return Err(Error::invalid("relay_hold_secs", "must be from 1 to 86400 (a day)"));
                }
                if s.relay_max_open > 100_000 {
                    return Err(Error::invalid("relay_max_open", "must be at most 100000"));
                }
                if s.relay_max_open_per_client > 1000 {
                    return Err(Error::invalid("relay_max_open_per_client", "must be at most 1000"));
                }
                if s.admission_strikes > 100 {
                    return Err(Error::invalid("admission_strikes", "must be at most 100"));
                }
                if s.admission_window_blocks == 0 || s.admission_window_blocks > 2016 {
                    return Err(Error::invalid("admission_window_blocks", "must be from 1 to 2016"));
                }
                check_jit(&s.jit)?;
                check_lsps2(&s.lsps2)?;
                if s.admission_pause_blocks == 0 || s.admission_pause_blocks > 2016 {
                    return Err(Error::invalid("admission_pause_blocks", "must be from 1 to 2016"));
                }
            }
            RoleConfig::Client(s) => {
                if s.relay_max_fee_ppm > 1_000_000 {
                    return Err(Error::invalid("relay_max_fee_ppm", "must be at most 1000000"));
                }
                if s.policy.min_capacity_sat > s.policy.max_capacity_sat {
                    return Err(Error::invalid("min_capacity_sat", "must not exceed max_capacity_sat"));
                }
                if s.policy.max_exit_blocks == 0 || s.policy.max_exit_blocks > 2016 {
                    return Err(Error::invalid("max_exit_blocks", "must be from 1 to 2016"));
                }
                if s.policy.max_clients < 2 || s.policy.max_clients > 1000 {
                    return Err(Error::invalid("max_clients", "must be from 2 to 1000"));
                }
                if s.policy.max_jit_channels > 100 {
                    return Err(Error::invalid("max_jit_channels", "must be at most 100"));
                }
            }
        }
        Ok(())
    }
}

/// Checks the feerates, sat/vB.
pub(crate) fn check_feerates(fallback: u32, max: u32) -> Result<(), Error> {
    if fallback == 0 || fallback > max {
        let reason = format!("must be from 1 to max_feerate_sat_per_vb = {max}");
        return Err(Error::invalid("fallback_feerate_sat_per_vb", reason));
    }
    if max > 10_000 {
        return Err(Error::invalid("max_feerate_sat_per_vb", "must be at most 10000"));
    }
    Ok(())
}

/// Checks what is done with payments for clients without room.
pub(crate) fn check_jit(jit: &JitPolicy) -> Result<(), Error> {
    if jit.hold < Duration::from_secs(1) || jit.hold > Duration::from_secs(600) {
        return Err(Error::invalid("jit_hold_secs", "must be from 1 to 600"));
    }
    if jit.min_channel_sat < 20_000 {
        return Err(Error::invalid("jit_min_channel_sat", "must be at least 20000"));
    }
    if jit.max_channel_sat != 0 && jit.max_channel_sat < jit.min_channel_sat {
        return Err(Error::invalid("jit_max_channel_sat", "must be 0 or at least jit_min_channel_sat"));
    }
    if jit.headroom_percent > 1000 {
        return Err(Error::invalid("jit_headroom_percent", "must be at most 1000"));
    }
    if jit.max_channels > 100 {
        return Err(Error::invalid("jit_max_channels", "must be at most 100"));
    }
    if jit.max_untaken == 0 || jit.max_untaken > 100 {
        return Err(Error::invalid("jit_max_untaken", "must be from 1 to 100"));
    }
    if jit.max_per_day > 1000 {
        return Err(Error::invalid("jit_max_per_day", "must be at most 1000"));
    }
    Ok(())
}

/// Checks what wallets are offered.
fn check_lsps2(lsps2: &Lsps2Settings) -> Result<(), Error> {
    if lsps2.proportional_ppm > 1_000_000 {
        return Err(Error::invalid("lsps2_proportional_ppm", "must be at most 1000000"));
    }
    if lsps2.valid < Duration::from_secs(60) || lsps2.valid > Duration::from_secs(86_400) {
        return Err(Error::invalid("lsps2_valid_secs", "must be from 60 to 86400"));
    }
    if lsps2.min_payment_msat == 0 || lsps2.min_payment_msat > lsps2.max_payment_msat {
        let most = lsps2.max_payment_msat;
        let reason = format!("must be from 1 to lsps2_max_payment_msat = {most}");
        return Err(Error::invalid("lsps2_min_payment_msat", reason));
    }
    Ok(())
}

/// Checks how often bitcoind is asked.
pub(crate) fn check_poll_interval(interval: Duration) -> Result<(), Error> {
    if interval < Duration::from_millis(50) || interval > Duration::from_secs(600) {
        return Err(Error::invalid("poll_interval", "must be from 50 ms to 600 s"));
    }
    Ok(())
}

impl Default for LspSettings {
    fn default() -> Self {
        Self {
            default_stock_sat: 20_000,
            phase_timeout: Duration::from_secs(30),
            min_clients: 2,
            accept_inbound_channels: true,
            forwarding_fee_base_msat: 1000,
            forwarding_fee_proportional_millionths: 100,
            max_connections: 1200,
            admission_strikes: 5,
            admission_window_blocks: 144,
            admission_pause_blocks: 6,
            accept_close_asks: true,
            free_liquidity_sat: 0,
            relay: true,
            relay_fee_base_msat: 0,
            relay_fee_ppm: 1000,
            relay_hold_secs: 60,
            relay_max_open: 1000,
            relay_max_open_per_client: 20,
            jit: JitPolicy::default(),
            lsps2: Lsps2Settings::default(),
        }
    }
}

impl FactoryPolicy {
    /// Defaults: a month of life, at most 432 blocks of exit; on regtest shorter lives are accepted.
    pub fn default_for(network: Network) -> Self {
        Self {
            min_capacity_sat: 20_000,
            max_capacity_sat: 1_000_000_000,
            min_lifetime_blocks: if network == Network::Regtest { 1 } else { 4320 },
            max_exit_blocks: 432,
            max_clients: 1000,
            accept_close: true,
            payment_patience_blocks: 36,
            max_jit_sat: 1_000_000,
            max_jit_channels: 8,
        }
    }
}

/// Creates `data_dir` and a new seed in it (0600).
///
/// # Errors
/// [`Error::Conflict`] if there is a seed already; [`Error::Io`].
pub fn init_seed(data_dir: &Path) -> Result<(), Error> {
    keys::create_seed(data_dir).map(|_| ())
}
