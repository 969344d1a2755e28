//! Settings of the LSP, and how they become a node's configuration.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use ldk_node_ext::http::cli::{set, validate, CommonSettings, Layers, Settings};
use ldk_node_ext::http::{ApiOptions, HttpError};
use ldk_node_ext::{LspSettings, NodeConfig, RoleConfig};

/// Begin of every environment variable of this binary.
pub const PREFIX: &str = "LSP_SERVER";

ldk_node_ext::settings! {
    /// Settings that only an LSP has.
    #[derive(Debug)]
    pub struct LspServerSettings {
        /// Liquidity stock of a leaf unless the request says otherwise, sat, 0 or at least 330 [default: 20000]
        #[arg(value_name = "SAT")]
        pub default_stock_sat: u64,
        /// How long a ceremony waits for its clients in each phase, seconds, 1 to 3600 [default: 30]
        #[arg(value_name = "SECONDS")]
        pub phase_timeout_secs: u64,
        /// Fewest clients with which a factory is still made, 2 to 1000 [default: 2]
        #[arg(value_name = "N")]
        pub min_clients: usize,
        /// Accept ordinary channels that others open [default: true]
        #[arg(value_name = "BOOL")]
        pub accept_inbound_channels: bool,
        /// Base fee for forwarding a payment, msat [default: 1000]
        #[arg(value_name = "MSAT")]
        pub forwarding_fee_base_msat: u32,
        /// Proportional fee for forwarding, millionths of the amount [default: 100]
        #[arg(value_name = "PPM")]
        pub forwarding_fee_proportional_millionths: u32,
        /// Most inbound connections at a time, 1 to 100000 [default: 1200]
        #[arg(value_name = "N")]
        pub max_connections: usize,
        /// Failed ceremonies and closes by its own fault after which a client is paused, at most 100; 0: never [default: 5]
        #[arg(value_name = "N")]
        pub admission_strikes: u32,
        /// For how long such a failure counts, blocks, 1 to 2016 [default: 144]
        #[arg(value_name = "BLOCKS")]
        pub admission_window_blocks: u32,
        /// How long a client is paused at first, blocks, 1 to 2016; then twice as long, up to 1008 [default: 6]
        #[arg(value_name = "BLOCKS")]
        pub admission_pause_blocks: u32,
        /// Let clients ask for the close of their factory [default: true]
        #[arg(value_name = "BOOL")]
        pub accept_close_asks: bool,
        /// By how much a client may grow its channel by asking, beyond its capacity at the creation, sat [default: 0]
        #[arg(value_name = "SAT")]
        pub free_liquidity_sat: u64,
        /// Receive for clients what no single channel of theirs has room for [default: true]
        #[arg(value_name = "BOOL")]
        pub relay: bool,
        /// Base fee for that, msat [default: 0]
        #[arg(value_name = "MSAT")]
        pub relay_fee_base_msat: u32,
        /// Proportional fee for that, millionths of what the client gets, at most 1000000 [default: 1000]
        #[arg(value_name = "PPM")]
        pub relay_fee_ppm: u32,
        /// How long such a payment waits for a client that is not there, seconds, 1 to 86400 [default: 60]
        #[arg(value_name = "SECONDS")]
        pub relay_hold_secs: u64,
        /// Most of such invoices and payments that may be open, at most 100000 [default: 1000]
        #[arg(value_name = "N")]
        pub relay_max_open: usize,
        /// Most of them of one client, at most 1000 [default: 20]
        #[arg(value_name = "N")]
        pub relay_max_open_per_client: usize,
        /// Grow a client's factory channel before a channel beside it is opened, where all who sign are there [default: true]
        #[arg(value_name = "BOOL")]
        pub jit_rotate_first: bool,
        /// Smallest channel beside a factory, sat, at least 20000 [default: 50000]
        #[arg(value_name = "SAT")]
        pub jit_min_channel_sat: u64,
        /// Largest channel beside a factory, sat; 0: none are opened for payments [default: 2000000]
        #[arg(value_name = "SAT")]
        pub jit_max_channel_sat: u64,
        /// Most such channels of a client, at most 100 [default: 2]
        #[arg(value_name = "N")]
        pub jit_max_channels: u32,
        /// Most capacity of a client's such channels together, sat [default: 4000000]
        #[arg(value_name = "SAT")]
        pub jit_max_total_sat: u64,
        /// A client that has taken nothing over so many such channels gets no other one, 1 to 100 [default: 1]
        #[arg(value_name = "N")]
        pub jit_max_untaken: u32,
        /// Most JIT channels that are opened for one client in 144 blocks, whatever became of them, at most 1000 [default: 12]
        #[arg(value_name = "N")]
        pub jit_max_per_day: u32,
        /// What such a channel has beyond what the payment needs, percent, at most 1000 [default: 20]
        #[arg(value_name = "PERCENT")]
        pub jit_headroom_percent: u32,
        /// How long a payment is held for a client without room, seconds, 1 to 600 [default: 30]
        #[arg(value_name = "SECONDS")]
        pub jit_hold_secs: u64,
        /// Sell channels to any wallet by LSPS2 [default: false]
        #[arg(value_name = "BOOL")]
        pub lsps2: bool,
        /// Least fee for such a channel, msat [default: 2000000]
        #[arg(value_name = "MSAT")]
        pub lsps2_min_fee_msat: u64,
        /// Fee for it, millionths of the payment that it is opened for, at most 1000000 [default: 5000]
        #[arg(value_name = "PPM")]
        pub lsps2_proportional_ppm: u32,
        /// How long an offer stands, seconds, 60 to 86400 [default: 3600]
        #[arg(value_name = "SECONDS")]
        pub lsps2_valid_secs: u64,
        /// Smallest payment that a channel is opened for, msat [default: 10000000]
        #[arg(value_name = "MSAT")]
        pub lsps2_min_payment_msat: u64,
        /// Largest one, msat [default: 1000000000]
        #[arg(value_name = "MSAT")]
        pub lsps2_max_payment_msat: u64,
    }
}

/// Flags of `run`.
#[derive(Args, Clone, Default)]
pub struct RunArgs {
    /// Config file [default: config.toml in the data directory, if it is there]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Settings of both sides.
    #[command(flatten)]
    pub common: CommonSettings,
    /// Settings of the LSP.
    #[command(flatten)]
    pub lsp: LspServerSettings,
}

/// Puts flags, environment, config file and defaults together, and checks every limit.
///
/// # Errors
/// [`HttpError`] naming the setting, its value and what is wrong with it.
pub fn resolve(
    args: RunArgs,
    data_dir: PathBuf,
    variables: impl IntoIterator<Item = (String, String)>,
) -> Result<(NodeConfig, ApiOptions), HttpError> {
    let known = [CommonSettings::KEYS, LspServerSettings::KEYS];
    let layers = Layers::load(PREFIX, variables, args.config.as_deref(), &data_dir, &known)?;
    let common = CommonSettings::resolve(args.common, &layers)?;
    let own = layers.resolve(args.lsp)?;

    let mut lsp = LspSettings::default();
    apply(&own, &mut lsp);
    let mut config = NodeConfig::lsp(data_dir, common.network(), common.rpc()?, common.auth()?);
    config.role = RoleConfig::Lsp(lsp);
    common.apply(&mut config);
    validate(&config, &common, &own)?;
    Ok((config, common.api()?))
}

fn apply(own: &LspServerSettings, lsp: &mut LspSettings) {
    set(&mut lsp.default_stock_sat, own.default_stock_sat);
    set(&mut lsp.phase_timeout, own.phase_timeout_secs.map(Duration::from_secs));
    set(&mut lsp.min_clients, own.min_clients);
    set(&mut lsp.accept_inbound_channels, own.accept_inbound_channels);
    set(&mut lsp.forwarding_fee_base_msat, own.forwarding_fee_base_msat);
    set(&mut lsp.forwarding_fee_proportional_millionths, own.forwarding_fee_proportional_millionths);
    set(&mut lsp.max_connections, own.max_connections);
    set(&mut lsp.admission_strikes, own.admission_strikes);
    set(&mut lsp.admission_window_blocks, own.admission_window_blocks);
    set(&mut lsp.admission_pause_blocks, own.admission_pause_blocks);
    set(&mut lsp.accept_close_asks, own.accept_close_asks);
    set(&mut lsp.free_liquidity_sat, own.free_liquidity_sat);
    set(&mut lsp.relay, own.relay);
    set(&mut lsp.relay_fee_base_msat, own.relay_fee_base_msat);
    set(&mut lsp.relay_fee_ppm, own.relay_fee_ppm);
    set(&mut lsp.relay_hold_secs, own.relay_hold_secs);
    set(&mut lsp.relay_max_open, own.relay_max_open);
    set(&mut lsp.relay_max_open_per_client, own.relay_max_open_per_client);
    set(&mut lsp.jit.rotate_first, own.jit_rotate_first);
    set(&mut lsp.jit.min_channel_sat, own.jit_min_channel_sat);
    set(&mut lsp.jit.max_channel_sat, own.jit_max_channel_sat);
    set(&mut lsp.jit.max_channels, own.jit_max_channels);
    set(&mut lsp.jit.max_total_sat, own.jit_max_total_sat);
    set(&mut lsp.jit.max_untaken, own.jit_max_untaken);
    set(&mut lsp.jit.max_per_day, own.jit_max_per_day);
    set(&mut lsp.jit.headroom_percent, own.jit_headroom_percent);
    set(&mut lsp.jit.hold, own.jit_hold_secs.map(Duration::from_secs));
    set(&mut lsp.lsps2.enabled, own.lsps2);
    set(&mut lsp.lsps2.min_fee_msat, own.lsps2_min_fee_msat);
    set(&mut lsp.lsps2.proportional_ppm, own.lsps2_proportional_ppm);
    set(&mut lsp.lsps2.valid, own.lsps2_valid_secs.map(Duration::from_secs));
    set(&mut lsp.lsps2.min_payment_msat, own.lsps2_min_payment_msat);
    set(&mut lsp.lsps2.max_payment_msat, own.lsps2_max_payment_msat);
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../config.example.toml");

    fn with_file(text: &str, args: RunArgs) -> Result<(NodeConfig, ApiOptions), HttpError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.toml"), text).unwrap();
        resolve(args, dir.path().to_owned(), [])
    }

    /// The template with every setting switched on.
    fn uncommented() -> String {
        let setting = |line: &&str| line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '));
        EXAMPLE
            .lines()
            .map(|line| line.strip_prefix('#').filter(setting).unwrap_or(line))
            .fold(String::new(), |all, line| all + line + "\n")
    }

    #[test]
    fn the_template_is_valid_as_it_is() {
        with_file(EXAMPLE, RunArgs::default()).unwrap();
    }

    #[test]
    fn the_template_shows_every_setting_with_its_default() {
        let table: toml::Table = toml::from_str(&uncommented()).unwrap();
        let known = CommonSettings::KEYS.iter().chain(LspServerSettings::KEYS);
        for key in known {
            assert!(table.contains_key(*key), "{key} is not in config.example.toml");
        }
        // Two ways to log in exclude each other.
        let text = uncommented().replace("bitcoind_cookie", "#bitcoind_cookie");
        let (config, _) = with_file(&text, RunArgs::default()).unwrap();
        let plain = "bitcoind_user = \"lsp\"\nbitcoind_pass = \"change-me\"\nalias = \"my-lsp\"\nexit_max_fee_sat = 100000";
        let (defaults, _) = with_file(plain, RunArgs::default()).unwrap();
        let text = |c: NodeConfig| format!("{:?}", NodeConfig { data_dir: PathBuf::new(), ..c });
        assert_eq!(text(config), text(defaults));
    }

    #[test]
    fn flags_win_over_the_file() {
        let file = "bitcoind_cookie = \"/c\"\nmin_clients = 5\nphase_timeout_secs = 7";
        let mut args = RunArgs::default();
        args.lsp.min_clients = Some(9);
        let (config, _) = with_file(file, args).unwrap();
        let RoleConfig::Lsp(lsp) = config.role else { panic!("not an LSP") };
        assert_eq!((lsp.min_clients, lsp.phase_timeout), (9, Duration::from_secs(7)));
    }

    #[test]
    fn a_value_beyond_its_limit_is_named() {
        let e = with_file("bitcoind_cookie = \"/c\"\nphase_timeout_secs = 0", RunArgs::default());
        let e = e.unwrap_err().to_string();
        assert!(e.contains("phase_timeout_secs = 0") && e.contains("3600"), "{e}");
        let e = with_file("bitcoind_cookie = \"/c\"\nstore = \"postgres\"", RunArgs::default());
        let e = e.unwrap_err().to_string();
        assert!(e.contains("store = \"postgres\"") && e.contains("`filesystem`"), "{e}");
        let e = with_file("min_client = 3", RunArgs::default()).unwrap_err().to_string();
        assert!(e.contains("min_client;"), "{e}");
    }
}
