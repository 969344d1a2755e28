//! The settings that LSP and client share, and how they become a [`NodeConfig`].

use std::convert::Infallible;
use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bitcoin::Network;
use serde::{Deserialize, Serialize};

use super::super::{ApiOptions, HttpError};
use super::Settings;
use crate::{Error, NodeConfig, RpcAuth, StoreKind};

crate::settings! {
    /// Settings of both sides. No `Debug`: one of them is a password.
    pub struct CommonSettings {
        /// bitcoin, testnet4, signet or regtest [default: regtest]
        pub network: Network,
        /// Where everything is kept: sqlite (one file) or filesystem (a file a key); cannot be changed later [default: sqlite]
        #[arg(value_name = "KIND")]
        pub store: StoreKind,
        /// Where to accept Lightning connections, ADDRESS:PORT [default: an LSP at 0.0.0.0:9735, a client nowhere]
        #[arg(value_name = "ADDRESS")]
        pub listen: SocketAddr,
        /// Where to serve the API [default: 127.0.0.1:0, any free port]
        #[arg(value_name = "ADDRESS")]
        pub api: SocketAddr,
        /// Allow an API address that other machines can reach; nothing is encrypted
        #[arg(num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
        pub dangerously_expose_api: bool,
        /// RPC of bitcoind, HOST:PORT [default: 127.0.0.1 and the network's port]
        #[arg(value_name = "ADDRESS")]
        pub bitcoind_rpc: String,
        /// RPC user
        #[arg(value_name = "USER")]
        pub bitcoind_user: String,
        /// RPC password; better in the config file or environment, where other users do not see it
        #[arg(value_name = "PASSWORD")]
        pub bitcoind_pass: String,
        /// bitcoind's .cookie file, instead of user and password
        #[arg(value_name = "FILE")]
        pub bitcoind_cookie: PathBuf,
        /// How often to ask bitcoind for blocks, ms, 50 to 600000 [default: 5000]
        #[arg(value_name = "MS")]
        pub poll_ms: u64,
        /// Feerate where bitcoind has no estimate, sat/vB [default: 5]
        #[arg(value_name = "SAT")]
        pub fallback_feerate_sat_per_vb: u32,
        /// Never pay more than this, sat/vB, at most 10000 [default: 500]
        #[arg(value_name = "SAT")]
        pub max_feerate_sat_per_vb: u32,
        /// Most that the fee-paying children of one exit's path may cost together, sat [default: no bound]
        #[arg(value_name = "SAT")]
        pub exit_max_fee_sat: u64,
        /// Blocks a payment over a factory channel must have left beyond the exit's claim budget, 1 to 144;
        /// the LSP's must not exceed its clients', or it refuses their payments [default: 12]
        #[arg(value_name = "BLOCKS")]
        pub claim_margin_blocks: u16,
        /// Folders shared with watchers, with commas between them: the newest path of every leaf is handed over there
        #[arg(value_name = "DIRS")]
        pub watchers: Folders,
        /// Rotate only with every watcher there, and retire no path that one of them has not replaced [default: false]
        #[arg(num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
        pub watchers_required: bool,
        /// How long a watcher may be silent before it counts as away, seconds, 4 to 3600 [default: 30]
        #[arg(value_name = "SECONDS")]
        pub watchers_wait_secs: u64,
        /// Folders of other nodes, with commas between them, whose leaves this process guards with a fee wallet of its own
        #[arg(value_name = "DIRS")]
        pub watch_folders: Folders,
        /// Name in announcements, at most 32 bytes
        #[arg(value_name = "NAME")]
        pub alias: String,
    }
}

/// Directories in flags, environment and file: with commas between them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct Folders(pub Vec<PathBuf>);

impl From<String> for Folders {
    fn from(text: String) -> Self {
        Self(text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(PathBuf::from).collect())
    }
}

impl From<Folders> for String {
    fn from(folders: Folders) -> Self {
        folders.to_string()
    }
}

impl FromStr for Folders {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(text.to_owned().into())
    }
}

impl fmt::Display for Folders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.0.iter().map(|folder| folder.display().to_string()).collect();
        f.write_str(&names.join(","))
    }
}

impl CommonSettings {
    /// The layers in order, highest first. Login by cookie and login by password are one setting:
    /// a higher layer that has either hides the other of a lower one.
    ///
    /// # Errors
    /// As [`super::Layers::resolve`].
    pub fn resolve(flags: Self, layers: &super::Layers) -> Result<Self, HttpError> {
        Ok(flags.over_with_login(layers.environment()?).over_with_login(layers.file()?))
    }

    fn over_with_login(self, mut lower: Self) -> Self {
        let cookie = self.bitcoind_cookie.is_some();
        let password = self.bitcoind_user.is_some() || self.bitcoind_pass.is_some();
        if cookie {
            (lower.bitcoind_user, lower.bitcoind_pass) = (None, None);
        }
        if password {
            lower.bitcoind_cookie = None;
        }
        self.over(lower)
    }

    /// The network.
    pub fn network(&self) -> Network {
        self.network.unwrap_or(Network::Regtest)
    }

    /// Where bitcoind's RPC is; a host name is looked up now.
    ///
    /// # Errors
    /// [`HttpError::BadSetting`].
    pub fn rpc(&self) -> Result<SocketAddr, HttpError> {
        let Some(text) = &self.bitcoind_rpc else {
            let port = match self.network() {
                Network::Bitcoin => 8332,
                Network::Signet => 38332,
                Network::Regtest => 18443,
                Network::Testnet => 18332,
                Network::Testnet4 => 48332,
            };
            return Ok(SocketAddr::from(([127, 0, 0, 1], port)));
        };
        let found = text.to_socket_addrs().map(|mut all| all.next());
        match found {
            Ok(Some(address)) => Ok(address),
            Ok(None) => Err(bad("bitcoind_rpc", text, "has no address")),
            Err(e) => Err(bad("bitcoind_rpc", text, format!("must be HOST:PORT: {e}"))),
        }
    }

    /// How to log in to bitcoind.
    ///
    /// # Errors
    /// [`HttpError::MissingSetting`] or [`HttpError::BadSetting`] if it is not exactly one way.
    pub fn auth(&self) -> Result<RpcAuth, HttpError> {
        match (&self.bitcoind_user, &self.bitcoind_pass, &self.bitcoind_cookie) {
            (Some(user), Some(pass), None) => {
                Ok(RpcAuth::UserPass { user: user.clone(), pass: pass.clone() })
            }
            (None, None, Some(file)) => Ok(RpcAuth::CookieFile(file.clone())),
            (Some(_), None, None) => Err(HttpError::MissingSetting {
                key: "bitcoind_pass",
                hint: "it goes with bitcoind_user".into(),
            }),
            (None, Some(_), None) => Err(HttpError::MissingSetting {
                key: "bitcoind_user",
                hint: "it goes with bitcoind_pass".into(),
            }),
            (None, None, None) => Err(HttpError::MissingSetting {
                key: "bitcoind_cookie",
                hint: "set it, or bitcoind_user and bitcoind_pass".into(),
            }),
            (_, _, Some(file)) => Err(bad(
                "bitcoind_cookie",
                file.display(),
                "not together with bitcoind_user or bitcoind_pass",
            )),
        }
    }

    /// Where to serve the API.
    ///
    /// # Errors
    /// [`HttpError::NotLoopback`].
    pub fn api(&self) -> Result<ApiOptions, HttpError> {
        let bind = self.api.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 0)));
        let expose = self.dangerously_expose_api.unwrap_or(false);
        match bind.ip().is_loopback() || expose {
            true => Ok(ApiOptions { bind, expose }),
            false => Err(HttpError::NotLoopback { address: bind }),
        }
    }

    /// Puts what is set over a configuration's defaults.
    pub fn apply(&self, config: &mut NodeConfig) {
        if self.listen.is_some() {
            config.listen = self.listen;
        }
        if let Some(ms) = self.poll_ms {
            config.poll_interval = Duration::from_millis(ms);
        }
        set(&mut config.store, self.store);
        set(&mut config.fallback_feerate_sat_per_vb, self.fallback_feerate_sat_per_vb);
        set(&mut config.max_feerate_sat_per_vb, self.max_feerate_sat_per_vb);
        if self.exit_max_fee_sat.is_some() {
            config.exit_max_fee_sat = self.exit_max_fee_sat;
        }
        set(&mut config.claim_margin_blocks, self.claim_margin_blocks);
        if let Some(Folders(folders)) = &self.watchers {
            config.watchers.folders.clone_from(folders);
        }
        set(&mut config.watchers.required, self.watchers_required);
        set(&mut config.watchers.wait, self.watchers_wait_secs.map(Duration::from_secs));
        if let Some(Folders(folders)) = &self.watch_folders {
            config.watch_folders.clone_from(folders);
        }
        if self.alias.is_some() {
            config.alias.clone_from(&self.alias);
        }
    }
}

/// Overwrites a default with a setting, if there is one.
pub fn set<T: Copy>(slot: &mut T, setting: Option<T>) {
    if let Some(value) = setting {
        *slot = value;
    }
}

/// A wrong value found after the layers were merged.
pub fn bad(key: &str, value: impl ToString, reason: impl Into<String>) -> HttpError {
    HttpError::BadSetting {
        place: "settings".into(),
        key: key.to_owned(),
        value: value.to_string(),
        reason: reason.into(),
    }
}

/// Checks every limit of a configuration; an error names the setting as it is written here, its
/// value and the limit.
///
/// # Errors
/// [`HttpError::BadSetting`].
pub fn validate<S: Settings>(
    config: &NodeConfig,
    common: &CommonSettings,
    role: &S,
) -> Result<(), HttpError> {
    let (field, reason) = match config.validate() {
        Ok(()) => return Ok(()),
        Err(Error::InvalidArgument { field, reason }) => (field, reason),
        Err(other) => return Err(other.into()),
    };
    let key = match field {
        "poll_interval" => "poll_ms",
        "phase_timeout" => "phase_timeout_secs",
        same => same,
    };
    let find = |table: Result<toml::Table, toml::ser::Error>| table.ok().and_then(|t| t.get(key).cloned());
    let value = find(toml::Table::try_from(common)).or(find(toml::Table::try_from(role)));
    Err(bad(key, value.map_or("(default)".into(), |v| v.to_string()), reason))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::http::cli::Layers;

    fn layers(file: &str, environment: &[(&str, &str)]) -> Layers {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.toml"), file).unwrap();
        let variables = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Layers::load("APP", variables, None, dir.path(), &[CommonSettings::KEYS]).unwrap()
    }

    #[test]
    fn a_login_flag_hides_the_other_login_of_the_file() {
        let file = layers("bitcoind_user = \"u\"\nbitcoind_pass = \"p\"", &[]);
        let flags = CommonSettings { bitcoind_cookie: Some("/c".into()), ..Default::default() };
        let auth = CommonSettings::resolve(flags, &file).unwrap().auth().unwrap();
        assert!(matches!(auth, RpcAuth::CookieFile(f) if f == Path::new("/c")));
        let secret = layers("bitcoind_user = \"u\"", &[("APP_BITCOIND_PASS", "p")]);
        let auth = CommonSettings::resolve(CommonSettings::default(), &secret).unwrap().auth().unwrap();
        assert!(matches!(auth, RpcAuth::UserPass { user, pass } if user == "u" && pass == "p"));
    }

    #[test]
    fn one_login_exactly() {
        let none = CommonSettings::default().auth().unwrap_err().to_string();
        assert!(none.contains("bitcoind_cookie") && none.contains("bitcoind_user"), "{none}");
        let half = CommonSettings { bitcoind_user: Some("u".into()), ..Default::default() };
        assert!(half.auth().unwrap_err().to_string().starts_with("bitcoind_pass"));
        let both = CommonSettings { bitcoind_cookie: Some("/c".into()), ..half };
        assert!(both.auth().is_err());
    }

    #[test]
    fn the_api_stays_on_loopback_unless_told() {
        let open = CommonSettings { api: Some("0.0.0.0:1".parse().unwrap()), ..Default::default() };
        assert!(matches!(open.api(), Err(HttpError::NotLoopback { .. })));
        let told = CommonSettings { dangerously_expose_api: Some(true), ..open };
        assert!(told.api().unwrap().expose);
        assert!(CommonSettings::default().api().unwrap().bind.ip().is_loopback());
    }

    #[test]
    fn limits_name_key_value_and_limit() {
        let settings = CommonSettings { poll_ms: Some(1), ..Default::default() };
        let auth = RpcAuth::CookieFile("/c".into());
        let mut config = NodeConfig::lsp("/d".into(), Network::Regtest, settings.rpc().unwrap(), auth);
        settings.apply(&mut config);
        let e = validate(&config, &settings, &CommonSettings::default()).unwrap_err().to_string();
        assert!(e.contains("poll_ms = 1") && e.contains("50 ms"), "{e}");
    }

    #[test]
    fn bitcoind_may_be_a_host_name() {
        let named = CommonSettings { bitcoind_rpc: Some("localhost:18443".into()), ..Default::default() };
        assert_eq!(named.rpc().unwrap().port(), 18443);
        let wrong = CommonSettings { bitcoind_rpc: Some("localhost".into()), ..Default::default() };
        assert!(wrong.rpc().unwrap_err().to_string().contains("HOST:PORT"));
    }
}
