//! A bitcoind on regtest with a wallet that mines and pays, and what the scenarios ask of the chain.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{anyhow, bail, Context, Result};
use bitcoin::consensus::encode::{deserialize_hex, serialize_hex};
use bitcoin::opcodes::all::OP_PUSHNUM_1;
use bitcoin::{Address, Amount, BlockHash, Network, OutPoint, ScriptBuf, Transaction, TxOut, Txid};
use serde::Deserialize;
use serde_json::{json, Value};

use crate::binaries;
use crate::http::Rpc;
use crate::process::Proc;
use crate::wait::{self, Seen};

/// The wallet that mines and pays.
const WALLET: &str = "miner";
/// RPC user; the password is random.
const USER: &str = "scenario";
/// Blocks on top of a coinbase until it can be spent.
const MATURITY: u32 = 100;
/// How long a start or a stop may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Starts with other ports, should another process have taken one in between.
const ATTEMPTS: usize = 5;

/// One bitcoind process. Its RPC port stays the same when it is stopped and started.
#[derive(Debug)]
pub struct Bitcoind {
    process: Proc,
    rpc: Rpc,
    address: String,
    password: String,
    data_dir: PathBuf,
}

/// Where a confirmed transaction is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confirmed {
    /// Height of its block.
    pub height: u32,
    /// The transaction.
    pub tx: Transaction,
}

#[derive(Deserialize)]
struct RawTransaction {
    hex: String,
    blockhash: Option<BlockHash>,
}

#[derive(Deserialize)]
struct Header {
    height: u32,
    /// -1 for a block that fell off the chain.
    confirmations: i64,
}

#[derive(Deserialize)]
struct Block {
    tx: Vec<BlockTransaction>,
}

#[derive(Deserialize)]
struct BlockTransaction {
    hex: String,
}

impl Bitcoind {
    /// Starts a bitcoind with its data under `folder`, mines until its wallet can pay, and returns when it answers.
    ///
    /// # Errors
    /// If there is no usable bitcoind or it does not come up; with the end of its log.
    pub fn start(folder: &Path) -> Result<Self> {
        let (program, flags) = binaries::bitcoind()?;
        let data_dir = folder.join("bitcoind");
        let mut last = anyhow!("never started");
        for _ in 0..ATTEMPTS {
            match Self::start_once(&program, &flags, &data_dir) {
                Ok(node) => {
                    node.rpc.call::<Value>("createwallet", json!([WALLET]))?;
                    node.mine_to_wallet()?;
                    node.mine(MATURITY)?;
                    return Ok(node);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn start_once(program: &Path, flags: &[String], data_dir: &Path) -> Result<Self> {
        fs::create_dir_all(data_dir)?;
        let port = free_port()?;
        let password = hex::encode(rand::random::<[u8; 16]>());
        let settings = format!(
            "regtest=1\nserver=1\ntxindex=1\nfastprune=1\nlisten=0\ndnsseed=0\nfixedseeds=0\nfallbackfee=0.00001\nkeypool=10\n\
             [regtest]\nrpcuser={USER}\nrpcpassword={password}\nrpcport={port}\nrpcbind=127.0.0.1\n\
             rpcallowip=127.0.0.1\nrpcthreads=8\nrpcworkqueue=256\n"
        );
        fs::write(data_dir.join("bitcoin.conf"), settings)?;
        let address = format!("127.0.0.1:{port}");
        let mut process = Proc::new("bitcoind", program, &data_dir.join("stdout.log"))
            .arg(format!("-datadir={}", data_dir.display()))
            .arg("-printtoconsole=1")
            .arg("-debuglogfile=0")
            .args(flags);
        process.start()?;
        let rpc = Rpc::new(&address, USER, &password);
        let mut node = Self { process, rpc, address, password, data_dir: data_dir.to_owned() };
        node.wait_ready()?;
        Ok(node)
    }

    fn wait_ready(&mut self) -> Result<()> {
        let (process, rpc) = (&mut self.process, &self.rpc);
        let mut dead = None;
        wait::until("bitcoind to answer", PATIENCE, || {
            if let Err(error) = process.expect_running() {
                dead = Some(error);
                return Ok(Seen::Done(()));
            }
            rpc.call::<Value>("getblockchaininfo", json!([]))?;
            Ok(Seen::Done(()))
        })?;
        dead.map_or(Ok(()), Err)
    }

    /// `HOST:PORT` of the RPC server.
    pub fn rpc_address(&self) -> &str {
        &self.address
    }

    /// RPC user and password.
    pub fn credentials(&self) -> (&str, &str) {
        (USER, &self.password)
    }

    /// The data folder.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The RPC connection, for what has no method here.
    pub fn rpc(&self) -> &Rpc {
        &self.rpc
    }

    /// Stops it in order (SIGTERM).
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn stop(&mut self) -> Result<()> {
        self.process.terminate(PATIENCE)
    }

    /// Ends it at once (SIGKILL), with every block so far on disk. A bitcoind that dies with blocks in memory fetches
    /// them again from its peers; this one has none, and its chain would be shorter than what others have seen.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill(&mut self) -> Result<()> {
        // The statistics are of no interest: this call flushes the block index and the chain state first.
        self.rpc.call::<Value>("gettxoutsetinfo", json!(["none"]))?;
        self.process.kill()
    }

    /// Adds a flag for the next start.
    pub fn add_flag(&mut self, flag: &str) {
        self.process.add_argument(flag);
    }

    /// Freezes it (SIGSTOP): it takes connections and answers nothing.
    ///
    /// # Errors
    /// If it does not run.
    pub fn freeze(&mut self) -> Result<()> {
        self.process.freeze()
    }

    /// Lets it go on after [`Bitcoind::freeze`].
    ///
    /// # Errors
    /// If it does not run.
    pub fn thaw(&mut self) -> Result<()> {
        self.process.thaw()
    }

    /// Starts it again on the same data and port.
    ///
    /// # Errors
    /// If it runs or does not come up.
    pub fn restart(&mut self) -> Result<()> {
        self.process.start()?;
        self.wait_ready()?;
        let loaded: Vec<String> = self.rpc.call("listwallets", json!([]))?;
        if !loaded.iter().any(|name| name == WALLET) {
            self.rpc.call::<Value>("loadwallet", json!([WALLET]))?;
        }
        Ok(())
    }

    /// Mines blocks and returns their hashes. Their coinbases pay nobody here: the wallet would write each to disk,
    /// which takes many times as long as the block.
    ///
    /// # Errors
    /// If the node refuses.
    pub fn mine(&self, blocks: u32) -> Result<Vec<BlockHash>> {
        let script = ScriptBuf::from_bytes(vec![OP_PUSHNUM_1.to_u8()]);
        let nobody = Address::p2wsh(&script, Network::Regtest).to_string();
        self.rpc.call("generatetoaddress", json!([blocks, nobody]))
    }

    /// Mines blocks that leave the mempool as it is.
    ///
    /// # Errors
    /// If the node refuses.
    pub fn mine_empty(&self, blocks: u32) -> Result<()> {
        let script = ScriptBuf::from_bytes(vec![OP_PUSHNUM_1.to_u8()]);
        let nobody = Address::p2wsh(&script, Network::Regtest).to_string();
        for _ in 0..blocks {
            let _: serde_json::Value = self.rpc.call("generateblock", json!([nobody, []]))?;
        }
        Ok(())
    }

    /// Takes the best `depth` blocks off the chain and mines one block more in their place, all empty. What was in
    /// them is in the mempool again, as far as the node takes it.
    ///
    /// # Errors
    /// If the node refuses.
    pub fn reorganize(&self, depth: u32) -> Result<()> {
        let first =
            self.height()?.checked_sub(depth.max(1) - 1).ok_or_else(|| anyhow!("no {depth} blocks"))?;
        self.take_off(first)?;
        // Paid to somebody else, lest an empty block come out as the one that was just called invalid.
        let script = ScriptBuf::from_bytes(rand::random::<[u8; 32]>().to_vec());
        let other = Address::p2wsh(&script, Network::Regtest).to_string();
        for _ in 0..=depth {
            let _: Value = self.rpc.call("generateblock", json!([other, []]))?;
        }
        Ok(())
    }

    /// Takes the block at a height and all above it off the chain.
    ///
    /// # Errors
    /// If there is none.
    pub fn take_off(&self, height: u32) -> Result<()> {
        let hash: BlockHash = self.rpc.call("getblockhash", json!([height]))?;
        self.rpc.call::<Value>("invalidateblock", json!([hash]))?;
        Ok(())
    }

    /// The transaction in the mempool that spends an output.
    ///
    /// # Errors
    /// If the node does not answer.
    pub fn mempool_spender(&self, outpoint: OutPoint) -> Result<Option<Txid>> {
        #[derive(Deserialize)]
        struct Answer {
            spendingtxid: Option<Txid>,
        }
        let asked = json!([[{ "txid": outpoint.txid, "vout": outpoint.vout }]]);
        let found: Vec<Answer> = self.rpc.call("gettxspendingprevout", asked)?;
        Ok(found.into_iter().next().and_then(|answer| answer.spendingtxid))
    }

    fn mine_to_wallet(&self) -> Result<Vec<BlockHash>> {
        self.rpc.call("generatetoaddress", json!([1, self.new_address()?]))
    }

    /// Mines until the chain has this height.
    ///
    /// # Errors
    /// If it is past it, or the node refuses.
    pub fn mine_to(&self, height: u32) -> Result<()> {
        let now = self.height()?;
        let missing =
            height.checked_sub(now).ok_or_else(|| anyhow!("height {height} is passed: it is {now}"))?;
        if missing > 0 {
            self.mine(missing)?;
        }
        Ok(())
    }

    /// A new address of the wallet.
    ///
    /// # Errors
    /// If the node refuses.
    pub fn new_address(&self) -> Result<String> {
        self.rpc.wallet(WALLET, "getnewaddress", json!([]))
    }

    /// Pays from the wallet; the transaction is unconfirmed.
    ///
    /// # Errors
    /// If the wallet cannot pay.
    pub fn pay(&self, address: &str, sat: u64) -> Result<Txid> {
        let amount = Amount::from_sat(sat).to_btc();
        self.rpc.wallet(
            WALLET,
            "sendtoaddress",
            json!({ "address": address, "amount": amount, "fee_rate": 2 }),
        )
    }

    /// Pays several addresses in one transaction and mines it. Returns the outpoint of each payment.
    ///
    /// # Errors
    /// If the wallet cannot pay.
    pub fn fund(&self, payments: &[(Address, u64)]) -> Result<Vec<OutPoint>> {
        let outputs: Vec<Value> = payments
            .iter()
            .map(|(address, sat)| json!({ address.to_string(): Amount::from_sat(*sat).to_btc() }))
            .collect();
        #[derive(Deserialize)]
        struct Sent {
            txid: Txid,
        }
        let sent: Sent = self.rpc.wallet(WALLET, "send", json!({ "outputs": outputs, "fee_rate": 2 }))?;
        self.mine(1)?;
        let tx = self.confirmed(sent.txid)?.ok_or_else(|| anyhow!("{} is not in the block", sent.txid))?.tx;
        payments
            .iter()
            .map(|(address, sat)| {
                let wanted = TxOut { value: Amount::from_sat(*sat), script_pubkey: address.script_pubkey() };
                let vout = tx
                    .output
                    .iter()
                    .position(|output| *output == wanted)
                    .ok_or_else(|| anyhow!("no output of {sat} sat to {address}"))?;
                Ok(OutPoint::new(sent.txid, u32::try_from(vout)?))
            })
            .collect()
    }

    /// Height of the chain.
    ///
    /// # Errors
    /// If the node does not answer.
    pub fn height(&self) -> Result<u32> {
        self.rpc.call("getblockcount", json!([]))
    }

    /// Hash of the best block.
    ///
    /// # Errors
    /// If the node does not answer.
    pub fn best_block(&self) -> Result<BlockHash> {
        self.rpc.call("getbestblockhash", json!([]))
    }

    /// The transactions of the block at `height`, coinbase first.
    ///
    /// # Errors
    /// If there is no such block.
    pub fn block(&self, height: u32) -> Result<Vec<Transaction>> {
        let hash: BlockHash = self.rpc.call("getblockhash", json!([height]))?;
        let block: Block = self.rpc.call("getblock", json!([hash, 2]))?;
        block.tx.iter().map(|tx| deserialize_hex(&tx.hex).context("transaction of a block")).collect()
    }

    /// A transaction, confirmed or in the mempool; none if the node does not know it.
    ///
    /// # Errors
    /// If the node does not answer.
    pub fn transaction(&self, txid: Txid) -> Result<Option<Transaction>> {
        Ok(self.raw(txid)?.map(|(tx, _)| tx))
    }

    /// A transaction of the chain with its height; none if it is not confirmed.
    ///
    /// # Errors
    /// If the node does not answer.
    pub fn confirmed(&self, txid: Txid) -> Result<Option<Confirmed>> {
        match self.raw(txid)? {
            Some((tx, Some(block))) => {
                let header: Header = self.rpc.call("getblockheader", json!([block]))?;
                // The index of transactions remembers those of blocks that fell.
                Ok((header.confirmations > 0).then_some(Confirmed { height: header.height, tx }))
            }
            _ => Ok(None),
        }
    }

    fn raw(&self, txid: Txid) -> Result<Option<(Transaction, Option<BlockHash>)>> {
        let raw: RawTransaction = match self.rpc.call("getrawtransaction", json!([txid, true])) {
            Ok(raw) => raw,
            Err(error) if error.to_string().contains("(-5)") => return Ok(None), // not known
            Err(error) => return Err(error),
        };
        Ok(Some((deserialize_hex(&raw.hex)?, raw.blockhash)))
    }

    /// The output if it is unspent in the chain (the mempool is not looked at).
    ///
    /// # Errors
    /// If the node does not answer.
    pub fn unspent(&self, outpoint: OutPoint) -> Result<Option<Amount>> {
        let found: Value = self.rpc.call("gettxout", json!([outpoint.txid, outpoint.vout, false]))?;
        match found["value"].as_f64() {
            None => Ok(None),
            Some(value) => Ok(Some(Amount::from_btc(value)?)),
        }
    }

    /// Transaction ids in the mempool.
    ///
    /// # Errors
    /// If the node does not answer.
    pub fn mempool(&self) -> Result<Vec<Txid>> {
        self.rpc.call("getrawmempool", json!([]))
    }

    /// Waits until a transaction is in the mempool or confirmed.
    ///
    /// # Errors
    /// If it is not seen within `limit`.
    pub fn wait_seen(&self, txid: Txid, limit: Duration) -> Result<Transaction> {
        wait::until(&format!("transaction {txid}"), limit, || match self.transaction(txid)? {
            Some(tx) => Ok(Seen::Done(tx)),
            None => Ok(Seen::NotYet(format!("mempool {:?}", self.mempool()?))),
        })
    }

    /// Offers a package, parents first and the child last, to the mempool (`submitpackage`).
    ///
    /// # Errors
    /// If it is not accepted whole: the reason of each transaction.
    pub fn submit_package(&self, package: &[&Transaction]) -> Result<()> {
        let raw: Vec<String> = package.iter().map(|tx| serialize_hex(*tx)).collect();
        let result: Value = self.rpc.call("submitpackage", json!([raw]))?;
        let message = result["package_msg"].as_str().unwrap_or_default();
        if message == "success" {
            return Ok(());
        }
        let reasons: Vec<String> = result["tx-results"]
            .as_object()
            .into_iter()
            .flat_map(|results| results.values())
            .filter_map(|each| Some(format!("{}: {}", each["txid"].as_str()?, each["error"].as_str()?)))
            .collect();
        bail!("package refused: {message}; {}", reasons.join("; "))
    }

    /// Offers one transaction to the mempool.
    ///
    /// # Errors
    /// If it is refused: the node's reason.
    pub fn send(&self, tx: &Transaction) -> Result<Txid> {
        self.rpc.call("sendrawtransaction", json!([serialize_hex(tx)]))
    }

    /// All fees paid in the blocks `first..=last`, sat: what their coinbases take beyond the subsidy.
    ///
    /// # Errors
    /// If there are no such blocks.
    pub fn fees(&self, first: u32, last: u32) -> Result<u64> {
        /// Blocks between two halvings on regtest.
        const HALVING: u32 = 150;
        let mut sum = 0u64;
        for height in first..=last {
            let block = self.block(height)?;
            let coinbase = block.first().ok_or_else(|| anyhow!("block {height} is empty"))?;
            let taken: u64 = coinbase.output.iter().map(|output| output.value.to_sat()).sum();
            let subsidy = 5_000_000_000u64.checked_shr(height / HALVING).unwrap_or(0);
            sum += taken
                .checked_sub(subsidy)
                .ok_or_else(|| anyhow!("block {height} takes less than its subsidy"))?;
        }
        Ok(sum)
    }

    /// An address of this text, for regtest.
    ///
    /// # Errors
    /// If it is none.
    pub fn parse_address(text: &str) -> Result<Address> {
        Ok(Address::from_str(text)?.require_network(Network::Regtest)?)
    }
}

/// A TCP port of loopback that is free now.
///
/// # Errors
/// If the system has none.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
