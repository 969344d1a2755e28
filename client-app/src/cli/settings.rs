//! Settings of the client, and how they become a node's configuration.

use std::path::PathBuf;

use clap::Args;
use client_app::LspAddress;
use ldk_node_ext::http::cli::{set, validate, CommonSettings, Layers, Settings};
use ldk_node_ext::http::{ApiOptions, HttpError};
use ldk_node_ext::{ClientSettings, JitMove, NodeConfig, RoleConfig};
use serde::{Deserialize, Serialize};

/// Begin of every environment variable of this binary.
pub const PREFIX: &str = "CLIENT_APP";

/// The LSP in flags, environment and file: `NODE_ID@HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LspSetting(pub LspAddress);

impl std::str::FromStr for LspSetting {
    type Err = client_app::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

impl TryFrom<String> for LspSetting {
    type Error = client_app::Error;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<LspSetting> for String {
    fn from(setting: LspSetting) -> Self {
        setting.0.to_string()
    }
}

ldk_node_ext::settings! {
    /// Settings that only a client has.
    #[derive(Debug)]
    pub struct ClientAppSettings {
        /// The LSP, NODE_ID@HOST:PORT
        #[arg(value_name = "LSP")]
        pub lsp: LspSetting,
        /// Ask to be in a factory whenever in none [default: true]
        #[arg(value_name = "BOOL")]
        pub join: bool,
        /// Most that payers may pay on top for what the LSP receives for this wallet, millionths, at most 1000000 [default: 10000]
        #[arg(value_name = "PPM")]
        pub relay_max_fee_ppm: u32,
        /// Whether money in channels beside the factory is moved into it when there is room: auto or never [default: auto]
        #[arg(value_name = "WHEN")]
        pub jit_move: JitMove,
        /// Smallest channel to agree to, sat [default: 20000]
        #[arg(value_name = "SAT")]
        pub min_capacity_sat: u64,
        /// Largest channel to agree to, sat [default: 1000000000]
        #[arg(value_name = "SAT")]
        pub max_capacity_sat: u64,
        /// Shortest lifetime of a factory to agree to, blocks [default: 4320; 1 on regtest]
        #[arg(value_name = "BLOCKS")]
        pub min_lifetime_blocks: u32,
        /// Longest worst exit to agree to, blocks [default: 432]
        #[arg(value_name = "BLOCKS")]
        pub max_exit_blocks: u32,
        /// Most clients in a factory, 2 to 1000 [default: 1000]
        #[arg(value_name = "N")]
        pub max_clients: usize,
        /// Agree to closes that the LSP proposes [default: true]
        #[arg(value_name = "BOOL")]
        pub accept_close: bool,
        /// How long a payment may wait for this wallet to come online, blocks [default: 36]
        #[arg(value_name = "BLOCKS")]
        pub payment_patience_blocks: u16,
        /// Most capacity of unconfirmed channels that the LSP may open beside the factory, sat; 0: none [default: 1000000]
        #[arg(value_name = "SAT")]
        pub max_jit_sat: u64,
        /// Most channels that the LSP may open beside the factory, at most 100 [default: 8]
        #[arg(value_name = "N")]
        pub max_jit_channels: usize,
    }
}

/// Flags of `init` and `run`.
#[derive(Args, Clone, Default)]
pub struct RunArgs {
    /// Config file [default: config.toml in the data directory, if it is there]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Settings of both sides.
    #[command(flatten)]
    pub common: CommonSettings,
    /// Settings of the client.
    #[command(flatten)]
    pub client: ClientAppSettings,
}

/// Puts flags, environment and config file together.
///
/// # Errors
/// [`HttpError`] naming the setting, its value and what is wrong with it.
pub fn merge(
    args: RunArgs,
    data_dir: &std::path::Path,
    variables: impl IntoIterator<Item = (String, String)>,
) -> Result<(CommonSettings, ClientAppSettings), HttpError> {
    let known = [CommonSettings::KEYS, ClientAppSettings::KEYS];
    let layers = Layers::load(PREFIX, variables, args.config.as_deref(), data_dir, &known)?;
    Ok((CommonSettings::resolve(args.common, &layers)?, layers.resolve(args.client)?))
}

/// Puts the defaults below the settings, and checks every limit.
///
/// # Errors
/// As [`merge`].
pub fn configure(
    common: &CommonSettings,
    own: &ClientAppSettings,
    data_dir: PathBuf,
) -> Result<(NodeConfig, ApiOptions), HttpError> {
    let LspAddress { node_id, address } = match &own.lsp {
        Some(LspSetting(lsp)) => lsp.clone(),
        None => {
            return Err(HttpError::MissingSetting { key: "lsp", hint: "set it to NODE_ID@HOST:PORT".into() })
        }
    };
    let mut config =
        NodeConfig::client(data_dir, common.network(), common.rpc()?, common.auth()?, node_id, address);
    if let RoleConfig::Client(client) = &mut config.role {
        apply(own, client);
    }
    common.apply(&mut config);
    validate(&config, common, own)?;
    Ok((config, common.api()?))
}

/// [`merge`] and [`configure`].
///
/// # Errors
/// As [`merge`].
pub fn resolve(
    args: RunArgs,
    data_dir: PathBuf,
    variables: impl IntoIterator<Item = (String, String)>,
) -> Result<(NodeConfig, ApiOptions), HttpError> {
    let (common, own) = merge(args, &data_dir, variables)?;
    configure(&common, &own, data_dir)
}

fn apply(own: &ClientAppSettings, client: &mut ClientSettings) {
    set(&mut client.join, own.join);
    set(&mut client.relay_max_fee_ppm, own.relay_max_fee_ppm);
    set(&mut client.jit_move, own.jit_move);
    let policy = &mut client.policy;
    set(&mut policy.min_capacity_sat, own.min_capacity_sat);
    set(&mut policy.max_capacity_sat, own.max_capacity_sat);
    set(&mut policy.min_lifetime_blocks, own.min_lifetime_blocks);
    set(&mut policy.max_exit_blocks, own.max_exit_blocks);
    set(&mut policy.max_clients, own.max_clients);
    set(&mut policy.accept_close, own.accept_close);
    set(&mut policy.payment_patience_blocks, own.payment_patience_blocks);
    set(&mut policy.max_jit_sat, own.max_jit_sat);
    set(&mut policy.max_jit_channels, own.max_jit_channels);
}

#[cfg(test)]
mod tests {
    use super::*;

    const LSP: &str = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798@127.0.0.1:9735";

    fn with(file: &str, variables: &[(&str, &str)]) -> Result<ClientSettings, HttpError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.toml"), file).unwrap();
        let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let (config, _) = resolve(RunArgs::default(), dir.path().to_owned(), variables)?;
        match config.role {
            RoleConfig::Client(client) => Ok(client),
            RoleConfig::Lsp(_) => panic!("not a client"),
        }
    }

    #[test]
    fn policy_comes_from_file_and_environment() {
        let file =
            format!("lsp = \"{LSP}\"\nbitcoind_cookie = \"/c\"\nmax_exit_blocks = 300\nmax_clients = 9");
        let client = with(&file, &[("CLIENT_APP_MAX_CLIENTS", "50"), ("CLIENT_APP_JOIN", "false")]).unwrap();
        let policy = &client.policy;
        assert_eq!((policy.max_exit_blocks, policy.max_clients, client.join), (300, 50, false));
        assert_eq!(policy.min_capacity_sat, 20_000, "the default stays");
    }

    #[test]
    fn a_wrong_lsp_is_named_with_its_place() {
        let e = with("lsp = \"02@host\"\nbitcoind_cookie = \"/c\"", &[]).unwrap_err().to_string();
        assert!(e.contains("config.toml") && e.contains("lsp = \"02@host\""), "{e}");
        let e = with("bitcoind_cookie = \"/c\"", &[]).unwrap_err().to_string();
        assert!(e.starts_with("lsp is not set") && e.contains("NODE_ID@HOST:PORT"), "{e}");
    }
}
