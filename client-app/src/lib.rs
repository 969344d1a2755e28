//! A Lightning wallet whose channels live in factories of one LSP, for wallet teams.
//!
//! [`FactoryClient`] is a thin layer over [`ldk_node_ext::Node`]: it finds the LSP, joins factories
//! within its [`FactoryPolicy`], pays and is paid, and leaves a factory without the LSP's help if it
//! has to. All it keeps is in one directory.
//!
//! Two things are asked of the app around it. Open it before [`FactoryClient::next_deadline`], a day
//! early at best: a factory ends at a known height, and until then the money has to be moved by
//! payment, close or exit. And keep a confirmed coin of a few thousand satoshi in its on-chain
//! wallet ([`FactoryClient::new_address`]): it pays the fees of an exit.
//!
//! ```no_run
//! use client_app::{FactoryClient, InvoiceRequest, RpcAuth};
//!
//! # async fn wallet() -> Result<(), Box<dyn std::error::Error>> {
//! let data_dir = "/home/alice/.wallet";
//! FactoryClient::init(data_dir)?; // Once: makes the seed.
//!
//! let client = FactoryClient::builder()
//!     .data_dir(data_dir)
//!     .network(client_app::Network::Regtest)
//!     .bitcoind("127.0.0.1:18443".parse()?, RpcAuth::CookieFile("/home/alice/.bitcoin/regtest/.cookie".into()))
//!     .lsp("03aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa@lsp.example.com:9735".parse()?)
//!     .start()
//!     .await?;
//!
//! let invoice = client.create_invoice(InvoiceRequest { amount_msat: Some(50_000_000), ..Default::default() }).await?;
//! println!("pay me: {}", invoice.invoice);
//!
//! let mut seen = 0; // Keep it with your own data, and no event is ever lost.
//! while let Some(event) = client.next_event(seen).await? {
//!     println!("{}: {}", event.kind, event.data);
//!     seen = event.index;
//!     if let Some(due) = client.next_deadline() {
//!         println!("{} in {} blocks", due.what, due.blocks);
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A wallet that embeds this crate depends on it with `default-features = false`: the feature `cli`
//! is for the command line `client-app` and brings an HTTP server.

mod builder;
mod client;
mod error;
mod lsp;

pub use bitcoin::Network;
pub use ldk_node_ext::api::{
    Balance, ChannelInfo, ClaimRequest, Deadline, EventRecord, FactoryInfo, FailRequest, Invoice,
    InvoiceRequest, JitMoveRequest, JitMoved, LiquidityAnswer, NodeInfo, Offer, OfferRequest, PayRequest,
    Payment,
};
pub use ldk_node_ext::watch;
pub use ldk_node_ext::{FactoryPolicy, NodeConfig, RpcAuth};

pub use builder::FactoryClientBuilder;
pub use client::FactoryClient;
pub use error::Error;
pub use lsp::LspAddress;
