//! The ordinary Lightning node: a process of `integration/peer`, controlled by lines of JSON.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{anyhow, bail, Context, Result};
use serde::de::DeserializeOwned;
use serde::Deserialize;
use serde_json::{json, Value};

use crate::bitcoind::free_port;
use crate::process::Proc;
use crate::types::{Invoice, Outpoint, Payment};
use crate::wait::{self, Seen};
use crate::{binaries, Bitcoind};

/// How long a start or a stop may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a payment to an offer may take: LDK waits for the payee's answer for two minutes at most.
const PAYEE: Duration = Duration::from_secs(150);
/// How long a request may last.
const CALL: Duration = Duration::from_secs(180);

/// An ordinary Lightning node that knows nothing of factories.
#[derive(Debug)]
pub struct Peer {
    process: Proc,
    data_dir: PathBuf,
    listen: String,
    node_id: String,
}

/// A channel of the peer.
#[derive(Clone, Debug, Deserialize)]
pub struct PeerChannel {
    /// The other side's node id.
    pub peer: String,
    /// Funding output.
    pub funding: Option<Outpoint>,
    /// Capacity, sat.
    pub capacity_sat: u64,
    /// Own balance, reserve included, msat.
    pub local_msat: u64,
    /// Sendable, msat.
    pub outbound_capacity_msat: u64,
    /// Usable now.
    pub usable: bool,
}

/// A payment that the peer held since its start, whatever became of it.
#[derive(Clone, Debug, Deserialize)]
pub struct PeerHeld {
    /// Payment hash, hex.
    pub payment_hash: String,
    /// Amount, msat.
    pub amount_msat: u64,
    /// Height at which the peer gives it back.
    pub claim_by_height: Option<u32>,
}

#[derive(Deserialize)]
struct PeerInfo {
    node_id: String,
    height: u32,
}

impl Peer {
    /// Starts the node with its data under `folder`.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start(folder: &Path, bitcoind: &Bitcoind) -> Result<Self> {
        Self::start_as("peer", folder, bitcoind, &[])
    }

    /// Starts one that buys channels of an LSP (LSPS2), `NODE_ID@HOST:PORT`, with its data under `folder`.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start_wallet(folder: &Path, bitcoind: &Bitcoind, lsp: &str) -> Result<Self> {
        Self::start_as("wallet", folder, bitcoind, &[lsp])
    }

    fn start_as(name: &str, folder: &Path, bitcoind: &Bitcoind, more: &[&str]) -> Result<Self> {
        let data_dir = folder.join(name);
        fs::create_dir_all(&data_dir)?;
        let listen = format!("127.0.0.1:{}", free_port()?);
        let (user, password) = bitcoind.credentials();
        let process = Proc::new(name, &binaries::peer()?, &folder.join(format!("{name}.log")))
            .arg(data_dir.as_os_str())
            .args([listen.as_str(), bitcoind.rpc_address(), user, password])
            .args(more);
        let mut peer = Self { process, data_dir, listen, node_id: String::new() };
        peer.restart()?;
        Ok(peer)
    }

    /// Starts it after [`Peer::stop`] or [`Peer::kill`].
    ///
    /// # Errors
    /// If it does not come up.
    pub fn restart(&mut self) -> Result<()> {
        let file = self.data_dir.join("api-address");
        match fs::remove_file(file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        self.process.start()?;
        let mut dead = None;
        let info = wait::until("the ordinary node to answer", PATIENCE, || {
            if let Err(error) = self.process.expect_running() {
                dead = Some(error);
                return Ok(Seen::Done(None));
            }
            Ok(Seen::Done(Some(request::<PeerInfo>(&self.data_dir, &json!({ "method": "info" }))?)))
        })?;
        if let Some(error) = dead {
            return Err(error);
        }
        self.node_id = info.ok_or_else(|| anyhow!("the ordinary node did not start"))?.node_id;
        Ok(())
    }

    /// Stops it in order.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn stop(&mut self) -> Result<()> {
        self.call::<Value>(&json!({ "method": "stop" }))?;
        let status = self.process.wait_exit(PATIENCE)?;
        if !status.success() {
            bail!("the ordinary node ended with {status}");
        }
        Ok(())
    }

    /// Ends it at once.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Node id, hex.
    pub fn node_id(&self) -> &str {
        &self.node_id
    }

    /// `HOST:PORT` of its Lightning port.
    pub fn listen(&self) -> &str {
        &self.listen
    }

    /// Any request.
    ///
    /// # Errors
    /// If the node refuses or does not answer.
    pub fn call<T: DeserializeOwned>(&self, body: &Value) -> Result<T> {
        request(&self.data_dir, body)
    }

    /// A new on-chain address.
    ///
    /// # Errors
    /// If the call fails.
    pub fn address(&self) -> Result<String> {
        let answer: Value = self.call(&json!({ "method": "address" }))?;
        answer["address"].as_str().map(str::to_owned).ok_or_else(|| anyhow!("no address in {answer}"))
    }

    /// On-chain coins, sat.
    ///
    /// # Errors
    /// If the call fails.
    pub fn onchain_sat(&self) -> Result<u64> {
        let answer: Value = self.call(&json!({ "method": "balance" }))?;
        answer["onchain_sat"].as_u64().ok_or_else(|| anyhow!("no onchain_sat in {answer}"))
    }

    /// All that the node holds, coins and channels, msat.
    ///
    /// # Errors
    /// If a call fails.
    pub fn held_msat(&self) -> Result<u64> {
        let channels: u64 = self.channels()?.iter().map(|channel| channel.local_msat).sum();
        Ok(self.onchain_sat()? * 1000 + channels)
    }

    /// Channels.
    ///
    /// # Errors
    /// If the call fails.
    pub fn channels(&self) -> Result<Vec<PeerChannel>> {
        self.call(&json!({ "method": "channels" }))
    }

    /// A BOLT 11 invoice.
    ///
    /// # Errors
    /// If the call fails.
    pub fn invoice(&self, amount_msat: u64, description: &str) -> Result<Invoice> {
        self.call(&json!({ "method": "invoice", "amount_msat": amount_msat, "description": description }))
    }

    /// A BOLT 11 invoice that is paid over a channel bought for it, for a fee of at most `max_fee_msat`.
    ///
    /// # Errors
    /// If the call fails.
    pub fn jit_invoice(&self, amount_msat: u64, max_fee_msat: u64) -> Result<Invoice> {
        self.call(
            &json!({ "method": "jit_invoice", "amount_msat": amount_msat, "max_fee_msat": max_fee_msat }),
        )
    }

    /// Pays an invoice and waits for the outcome, which may be a failure.
    ///
    /// # Errors
    /// If the call fails.
    pub fn pay(&self, invoice: &str) -> Result<Payment> {
        self.call(&json!({ "method": "pay", "invoice": invoice, "wait_secs": 90 }))
    }

    /// Pays to an offer and waits for the outcome, which may be a failure; `amount_msat` if the offer has none.
    ///
    /// # Errors
    /// If the call fails.
    pub fn pay_offer(&self, offer: &str, amount_msat: Option<u64>) -> Result<Payment> {
        let wait_secs = PAYEE.as_secs();
        self.call(&json!({
            "method": "pay_offer", "offer": offer, "amount_msat": amount_msat, "wait_secs": wait_secs,
        }))
    }

    /// An offer.
    ///
    /// # Errors
    /// If the call fails.
    pub fn offer(&self, amount_msat: u64) -> Result<String> {
        let answer: Value = self.call(&json!({ "method": "offer", "amount_msat": amount_msat }))?;
        answer["offer"].as_str().map(str::to_owned).ok_or_else(|| anyhow!("no offer in {answer}"))
    }

    /// Begins to pay an invoice and does not wait for the outcome.
    ///
    /// # Errors
    /// If the call fails.
    pub fn send(&self, invoice: &str) -> Result<Payment> {
        self.call(&json!({ "method": "pay", "invoice": invoice, "wait_secs": 0 }))
    }

    /// Every Lightning payment, in and out.
    ///
    /// # Errors
    /// If the call fails.
    pub fn payments(&self) -> Result<Vec<Payment>> {
        self.call(&json!({ "method": "payments" }))
    }

    /// A BOLT 11 invoice over a hash; what is paid on it is held.
    ///
    /// # Errors
    /// If the call fails.
    pub fn hold_invoice(&self, amount_msat: u64, payment_hash: &str) -> Result<Invoice> {
        let body =
            json!({ "method": "hold_invoice", "amount_msat": amount_msat, "payment_hash": payment_hash });
        self.call(&body)
    }

    /// The payments that were held since the start of the process, whatever became of them.
    ///
    /// # Errors
    /// If the call fails.
    pub fn held(&self) -> Result<Vec<PeerHeld>> {
        self.call(&json!({ "method": "held" }))
    }

    /// Claims a held payment.
    ///
    /// # Errors
    /// If the call fails.
    pub fn claim(&self, preimage: &str) -> Result<()> {
        self.call::<Value>(&json!({ "method": "hold_claim", "preimage": preimage }))?;
        Ok(())
    }

    /// Gives a held payment back.
    ///
    /// # Errors
    /// If the call fails.
    pub fn fail(&self, payment_hash: &str) -> Result<()> {
        self.call::<Value>(&json!({ "method": "hold_fail", "payment_hash": payment_hash }))?;
        Ok(())
    }

    /// Connects to a node.
    ///
    /// # Errors
    /// If that node cannot be reached.
    pub fn connect(&self, node_id: &str, address: &str) -> Result<()> {
        let body = json!({ "method": "connect", "node_id": node_id, "address": address });
        self.call::<Value>(&body)?;
        Ok(())
    }

    /// Opens a channel.
    ///
    /// # Errors
    /// If the call fails.
    pub fn open_channel(&self, node_id: &str, address: &str, capacity_sat: u64, push_sat: u64) -> Result<()> {
        let body = json!({
            "method": "open_channel", "node_id": node_id, "address": address, "capacity_sat": capacity_sat,
            "push_msat": push_sat * 1000,
        });
        self.call::<Value>(&body)?;
        Ok(())
    }

    /// Waits until the node has seen bitcoind's best block.
    ///
    /// # Errors
    /// If it has not within a minute.
    pub fn wait_synced(&self, bitcoind: &Bitcoind) -> Result<()> {
        let height = bitcoind.height()?;
        wait::until(&format!("the ordinary node at height {height}"), PATIENCE, || {
            let info: PeerInfo = self.call(&json!({ "method": "info" }))?;
            Ok(if info.height == height { Seen::Done(()) } else { Seen::not_yet(info.height) })
        })
    }
}

fn request<T: DeserializeOwned>(data_dir: &Path, body: &Value) -> Result<T> {
    let address = fs::read_to_string(data_dir.join("api-address")).context("read the peer's api-address")?;
    let mut stream = TcpStream::connect(address.trim()).context("connect to the ordinary node")?;
    stream.set_read_timeout(Some(CALL))?;
    writeln!(stream, "{body}")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).with_context(|| format!("answer to {body}"))?;
    let mut answer: Value =
        serde_json::from_str(&line).with_context(|| format!("answer to {body}: {line}"))?;
    if let Some(error) = answer["error"].as_str() {
        bail!("ordinary node, {}: {error}", body["method"]);
    }
    serde_json::from_value(answer["ok"].take()).with_context(|| format!("answer to {body}: {line}"))
}
