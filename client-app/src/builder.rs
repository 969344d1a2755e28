//! Sets up a [`FactoryClient`].

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bitcoin::Network;
use ldk_node_ext::{FactoryPolicy, NodeConfig, RoleConfig, RpcAuth};

use crate::{Error, FactoryClient, LspAddress};

/// Sets up a [`FactoryClient`]; made by [`FactoryClient::builder`].
///
/// Needed are [`data_dir`](Self::data_dir), [`network`](Self::network), [`bitcoind`](Self::bitcoind)
/// and [`lsp`](Self::lsp).
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct FactoryClientBuilder {
    data_dir: Option<PathBuf>,
    network: Option<Network>,
    bitcoind: Option<(SocketAddr, RpcAuth)>,
    lsp: Option<LspAddress>,
    join: Option<bool>,
    policy: Option<FactoryPolicy>,
    poll_interval: Option<Duration>,
}

impl FactoryClientBuilder {
    /// Where everything is kept; [`FactoryClient::init`] has made a seed there.
    pub fn data_dir(mut self, data_dir: impl Into<PathBuf>) -> Self {
        self.data_dir = Some(data_dir.into());
        self
    }

    /// The Bitcoin network.
    pub fn network(mut self, network: Network) -> Self {
        self.network = Some(network);
        self
    }

    /// bitcoind's RPC address and login.
    pub fn bitcoind(mut self, rpc: SocketAddr, auth: RpcAuth) -> Self {
        self.bitcoind = Some((rpc, auth));
        self
    }

    /// The LSP.
    pub fn lsp(mut self, lsp: LspAddress) -> Self {
        self.lsp = Some(lsp);
        self
    }

    /// Whether to ask for a factory whenever in none (the default).
    pub fn join(mut self, join: bool) -> Self {
        self.join = Some(join);
        self
    }

    /// What to agree to; [`FactoryPolicy::default_for`] the network unless set.
    pub fn policy(mut self, policy: FactoryPolicy) -> Self {
        self.policy = Some(policy);
        self
    }

    /// How often to ask bitcoind for blocks, 50 ms to 600 s.
    pub fn poll_interval(mut self, every: Duration) -> Self {
        self.poll_interval = Some(every);
        self
    }

    /// The configuration, checked, for whoever wants to set more than the builder offers; start it
    /// with [`FactoryClient::start`].
    ///
    /// # Errors
    /// [`Error::Missing`] for what is needed and was not set, [`Error::Node`] naming the field whose
    /// value is beyond its limit.
    pub fn build(self) -> Result<NodeConfig, Error> {
        let data_dir = self.data_dir.ok_or(Error::Missing { field: "data_dir" })?;
        let network = self.network.ok_or(Error::Missing { field: "network" })?;
        let (rpc, auth) = self.bitcoind.ok_or(Error::Missing { field: "bitcoind" })?;
        let LspAddress { node_id, address } = self.lsp.ok_or(Error::Missing { field: "lsp" })?;
        let mut config = NodeConfig::client(data_dir, network, rpc, auth, node_id, address);
        if let RoleConfig::Client(settings) = &mut config.role {
            settings.join = self.join.unwrap_or(settings.join);
            if let Some(policy) = self.policy {
                settings.policy = policy;
            }
        }
        config.poll_interval = self.poll_interval.unwrap_or(config.poll_interval);
        config.validate()?;
        Ok(config)
    }

    /// Builds the configuration and starts the client.
    ///
    /// # Errors
    /// As [`build`](Self::build) and [`FactoryClient::start`].
    pub async fn start(self) -> Result<FactoryClient, Error> {
        FactoryClient::start(self.build()?).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete() -> FactoryClientBuilder {
        let id = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
        FactoryClient::builder()
            .data_dir("/d")
            .network(Network::Regtest)
            .bitcoind("127.0.0.1:1".parse().unwrap(), RpcAuth::CookieFile("/c".into()))
            .lsp(format!("{id}@127.0.0.1:9735").parse().unwrap())
    }

    #[test]
    fn what_is_missing_is_named() {
        let fails = |b: FactoryClientBuilder| b.build().unwrap_err().to_string();
        assert_eq!(fails(FactoryClient::builder()), "data_dir is not set");
        assert_eq!(fails(FactoryClientBuilder { network: None, ..complete() }), "network is not set");
        assert_eq!(fails(FactoryClientBuilder { bitcoind: None, ..complete() }), "bitcoind is not set");
        assert_eq!(fails(FactoryClientBuilder { lsp: None, ..complete() }), "lsp is not set");
    }

    #[test]
    fn what_is_set_arrives() {
        let policy = FactoryPolicy { max_exit_blocks: 99, ..FactoryPolicy::default_for(Network::Regtest) };
        let config =
            complete().policy(policy).join(false).poll_interval(Duration::from_millis(200)).build().unwrap();
        assert_eq!(config.poll_interval, Duration::from_millis(200));
        let RoleConfig::Client(settings) = config.role else { panic!("not a client") };
        assert_eq!((settings.join, settings.policy.max_exit_blocks), (false, 99));
        assert_eq!(settings.lsp_address, "127.0.0.1:9735");
    }

    #[test]
    fn limits_are_checked_before_the_start() {
        let e = complete().poll_interval(Duration::ZERO).build().unwrap_err().to_string();
        assert!(e.contains("poll_interval") && e.contains("50 ms"), "{e}");
    }
}
