//! bitcoind over JSON-RPC: what LDK's block source does not cover.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use bitcoin::base64::prelude::{Engine, BASE64_STANDARD};
use bitcoin::consensus::encode;
use bitcoin::{Amount, BlockHash, FeeRate, Network, OutPoint, Transaction, Txid};
use lightning::chain::BlockLocator;
use lightning_block_sync::rpc::{RpcClient, RpcClientError};
use lightning_block_sync::{BlockData, BlockHeaderData, BlockSource, BlockSourceResult};
use serde_json::{json, Value};
use tokio::time::Instant;

use crate::config::RpcAuth;
use crate::error::Error;
use crate::util::{lock, read, write};

/// How long a call may take. bitcoind answers within milliseconds unless it is stuck or writes its chain state to
/// a slow disk; whoever asked tries again with the next block.
const CALL_LIMIT: Duration = Duration::from_secs(15);
/// After a call that got no answer the next ones fail at once for so long, so that what hangs holds up the factory
/// service once and not once a call. Ends early when the feed of blocks, which waits patiently, hears from bitcoind.
const SILENCE: Duration = Duration::from_secs(60);

/// Why a transaction was not taken.
#[derive(Debug)]
pub(crate) enum SubmitError {
    /// bitcoind has looked at it and refused.
    Rejected(String),
    /// bitcoind could not be asked.
    Unreachable(String),
}

impl std::fmt::Display for SubmitError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Rejected(r) => write!(f, "refused: {r}"),
            Self::Unreachable(r) => write!(f, "bitcoind cannot be asked: {r}"),
        }
    }
}

/// RPC client, and the source of blocks. bitcoind makes a new cookie at each start, so after a failure
/// it is read again.
pub(crate) struct Bitcoind {
    rpc: RwLock<(String, Arc<RpcClient>)>,
    auth: RpcAuth,
    url: String,
    /// [`CALL_LIMIT`], but for tests.
    limit: Duration,
    /// Until then bitcoind counts as silent.
    silent_until: Mutex<Option<Instant>>,
}

/// Why a call failed.
enum CallError {
    Rpc(RpcClientError),
    /// No answer in time, now or a moment ago.
    Silent,
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Rpc(e) => e.fmt(f),
            Self::Silent => f.write_str("bitcoind does not answer"),
        }
    }
}

fn login(auth: &RpcAuth) -> Result<String, Error> {
    match auth {
        RpcAuth::UserPass { user, pass } => Ok(format!("{user}:{pass}")),
        RpcAuth::CookieFile(path) => {
            std::fs::read_to_string(path).map(|s| s.trim().to_owned()).map_err(|e| {
                Error::invalid("bitcoind_cookie", format!("{}: {e}; is bitcoind running?", path.display()))
            })
        }
    }
}

fn client(login: &str, url: &str) -> Arc<RpcClient> {
    Arc::new(RpcClient::new(&BASE64_STANDARD.encode(login), url.to_owned()))
}

fn rpc_error(e: CallError) -> Error {
    Error::Bitcoind(e.to_string())
}

impl Bitcoind {
    pub(crate) fn new(address: SocketAddr, auth: RpcAuth) -> Result<Self, Error> {
        let url = format!("http://{address}");
        let login = login(&auth)?;
        let rpc = client(&login, &url);
        let rpc = RwLock::new((login, rpc));
        Ok(Self { rpc, auth, url, limit: CALL_LIMIT, silent_until: Mutex::new(None) })
    }

    fn rpc(&self) -> Arc<RpcClient> {
        Arc::clone(&read(&self.rpc).1)
    }

    /// After a failure: the next call logs in with what the cookie file says now.
    fn renew_login(&self) {
        let RpcAuth::CookieFile(_) = &self.auth else { return };
        let Ok(now) = login(&self.auth) else { return };
        let mut rpc = write(&self.rpc);
        if rpc.0 != now {
            tracing::info!("bitcoind has a new cookie");
            *rpc = (now.clone(), client(&now, &self.url));
        }
    }

    async fn call(&self, method: &str, params: &[Value]) -> Result<Value, CallError> {
        if lock(&self.silent_until).is_some_and(|until| Instant::now() < until) {
            return Err(CallError::Silent);
        }
        let rpc = self.rpc();
        let Ok(answer) = tokio::time::timeout(self.limit, rpc.call_method::<Value>(method, params)).await
        else {
            tracing::warn!(method, seconds = self.limit.as_secs(), "bitcoind does not answer");
            *lock(&self.silent_until) = Some(Instant::now() + SILENCE);
            self.reconnect();
            return Err(CallError::Silent);
        };
        if matches!(answer, Err(RpcClientError::Http(_))) {
            self.renew_login();
        }
        answer.map_err(CallError::Rpc)
    }

    /// Leaves the connections on which an answer is outstanding: it would be taken for that of the next call.
    fn reconnect(&self) {
        let mut rpc = write(&self.rpc);
        rpc.1 = client(&rpc.0, &self.url);
    }

    /// Checks that bitcoind is on our network and new enough for TRUC packages with 0-sat anchors.
    pub(crate) async fn check(&self, network: Network) -> Result<(), Error> {
        let chain = self.call("getblockchaininfo", &[]).await.map_err(rpc_error)?;
        let theirs = chain.get("chain").and_then(Value::as_str).unwrap_or_default();
        if Network::from_core_arg(theirs).ok() != Some(network) {
            return Err(Error::invalid(
                "network",
                format!("bitcoind is on {theirs:?}, the node on {network}"),
            ));
        }
        let info = self.call("getnetworkinfo", &[]).await.map_err(rpc_error)?;
        let version = info.get("version").and_then(Value::as_u64).unwrap_or(0);
        if version < 290_000 {
            return Err(Error::Bitcoind(format!(
                "version {version} is too old: exits need packages with 0-sat anchors, that is 29.0 (290000) or newer"
            )));
        }
        Ok(())
    }

    /// The block of the best chain at a height.
    pub(crate) async fn block_at(&self, height: u32) -> Result<BlockLocator, Error> {
        let answer = self.call("getblockhash", &[json!(height)]).await.map_err(rpc_error)?;
        let hash = answer.as_str().and_then(|hash| hash.parse().ok());
        let hash = hash.ok_or_else(|| Error::Bitcoind("getblockhash: not a block hash".into()))?;
        Ok(BlockLocator::new(hash, height))
    }

    /// The first block that is kept whole; 0 unless bitcoind prunes.
    pub(crate) async fn first_block(&self) -> Result<u64, Error> {
        let chain = self.call("getblockchaininfo", &[]).await.map_err(rpc_error)?;
        Ok(chain.get("pruneheight").and_then(Value::as_u64).unwrap_or(0))
    }

    /// The estimate for confirmation within `blocks`, if bitcoind has one.
    pub(crate) async fn estimate(&self, blocks: u16) -> Result<Option<FeeRate>, Error> {
        let answer = self.call("estimatesmartfee", &[json!(blocks)]).await.map_err(rpc_error)?;
        let btc_per_kvb = answer.get("feerate").and_then(Value::as_f64);
        Ok(btc_per_kvb.map(|f| FeeRate::from_sat_per_kwu((f * 100_000_000.0 / 4.0).ceil().max(250.0) as u64)))
    }

    /// Least feerate that the mempool takes now.
    pub(crate) async fn mempool_min(&self) -> Result<FeeRate, Error> {
        let answer = self.call("getmempoolinfo", &[]).await.map_err(rpc_error)?;
        let btc_per_kvb = answer.get("mempoolminfee").and_then(Value::as_f64).unwrap_or(0.00001);
        Ok(FeeRate::from_sat_per_kwu((btc_per_kvb * 100_000_000.0 / 4.0).ceil() as u64))
    }

    /// Submits transactions: one alone, several as a package whose last one pays for the others.
    /// "Already there" counts as success.
    pub(crate) async fn submit(&self, txs: &[Transaction]) -> Result<(), SubmitError> {
        let hex: Vec<String> = txs.iter().map(encode::serialize_hex).collect();
        let answer = match hex.as_slice() {
            [] => return Ok(()),
            [one] => self.call("sendrawtransaction", &[json!(one)]).await,
            _ => self.call("submitpackage", &[json!(hex)]).await,
        };
        match answer {
            Ok(v) => package_verdict(&v),
            Err(CallError::Rpc(RpcClientError::Rpc(e))) => {
                // -27: already in the chain's UTXO set
                if e.code == -27
                    || e.message.contains("txn-already-in-mempool")
                    || e.message.contains("txn-already-known")
                {
                    Ok(())
                } else {
                    Err(SubmitError::Rejected(e.message))
                }
            }
            Err(other) => Err(SubmitError::Unreachable(other.to_string())),
        }
    }

    /// What a replacement has to pay for its own relay here.
    pub(crate) async fn incremental_relay(&self) -> Result<FeeRate, Error> {
        let answer = self.call("getmempoolinfo", &[]).await.map_err(rpc_error)?;
        let btc_per_kvb = answer.get("incrementalrelayfee").and_then(Value::as_f64).unwrap_or(0.00001);
        Ok(FeeRate::from_sat_per_kwu((btc_per_kvb * 100_000_000.0 / 4.0).ceil() as u64))
    }

    /// The transaction in the mempool that spends an output, if there is one.
    pub(crate) async fn mempool_spender(&self, outpoint: &OutPoint) -> Result<Option<Txid>, Error> {
        let asked = json!([{"txid": outpoint.txid.to_string(), "vout": outpoint.vout}]);
        let answer = self.call("gettxspendingprevout", &[asked]).await.map_err(rpc_error)?;
        let spender = answer.get(0).and_then(|o| o.get("spendingtxid")).and_then(Value::as_str);
        spender
            .map(|id| id.parse())
            .transpose()
            .map_err(|_| Error::Bitcoind("gettxspendingprevout: not a transaction id".into()))
    }

    /// A mempool transaction with its descendants, `None` if it is not there.
    pub(crate) async fn mempool_entry(&self, txid: Txid) -> Result<Option<MempoolEntry>, Error> {
        match self.call("getmempoolentry", &[json!(txid.to_string())]).await {
            Ok(v) => MempoolEntry::read(&v)
                .map(Some)
                .ok_or_else(|| Error::Bitcoind("getmempoolentry: a field is missing".into())),
            Err(CallError::Rpc(RpcClientError::Rpc(e))) if e.code == -5 => Ok(None),
            Err(e) => Err(rpc_error(e)),
        }
    }
}

/// A transaction in bitcoind's mempool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MempoolEntry {
    /// Its size, vB.
    pub(crate) vsize: u64,
    /// Size of it and all its descendants, vB.
    pub(crate) descendant_vsize: u64,
    /// Fee of it and all its descendants.
    pub(crate) descendant_fee: Amount,
    /// Its children.
    pub(crate) spent_by: Vec<Txid>,
}

impl MempoolEntry {
    fn read(answer: &Value) -> Option<Self> {
        let fee = answer.get("fees")?.get("descendant")?.as_f64()?;
        Some(Self {
            vsize: answer.get("vsize")?.as_u64()?,
            descendant_vsize: answer.get("descendantsize")?.as_u64()?,
            descendant_fee: Amount::from_btc(fee).ok()?,
            spent_by: answer
                .get("spentby")?
                .as_array()?
                .iter()
                .map(|id| id.as_str()?.parse().ok())
                .collect::<Option<_>>()?,
        })
    }

    /// Feerate of it and its descendants together.
    pub(crate) fn feerate(&self) -> FeeRate {
        let weight = self.descendant_vsize.saturating_mul(4).max(1);
        FeeRate::from_sat_per_kwu(self.descendant_fee.to_sat().saturating_mul(1000) / weight)
    }
}

impl BlockSource for Bitcoind {
    async fn get_header<'a>(
        &'a self,
        hash: &'a BlockHash,
        height: Option<u32>,
    ) -> BlockSourceResult<BlockHeaderData> {
        self.rpc().get_header(hash, height).await
    }

    async fn get_block<'a>(&'a self, hash: &'a BlockHash) -> BlockSourceResult<BlockData> {
        self.rpc().get_block(hash).await
    }

    async fn get_best_block(&self) -> BlockSourceResult<(BlockHash, Option<u32>)> {
        let answer = self.rpc().get_best_block().await;
        match answer {
            Ok(_) => *lock(&self.silent_until) = None,
            Err(_) => self.renew_login(),
        }
        answer
    }
}

/// `submitpackage` answers with a message and one entry per transaction; anything but "success" is a
/// refusal, unless every entry is in the mempool already.
fn package_verdict(answer: &Value) -> Result<(), SubmitError> {
    let Some(message) = answer.get("package_msg").and_then(Value::as_str) else { return Ok(()) };
    if message == "success" {
        return Ok(());
    }
    let results = answer.get("tx-results").and_then(Value::as_object);
    let errors: Vec<String> = results
        .into_iter()
        .flat_map(|m| m.values())
        .filter_map(|r| r.get("error").and_then(Value::as_str).map(str::to_owned))
        .filter(|e| !e.contains("already-in-mempool") && !e.contains("already-known"))
        .collect();
    if results.is_some_and(|m| !m.is_empty()) && errors.is_empty() && message == "transaction failed" {
        return Ok(());
    }
    Err(SubmitError::Rejected(format!("{message}: {}", errors.join("; "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_answers_are_judged_by_every_entry() {
        assert!(package_verdict(&json!("txid")).is_ok());
        assert!(package_verdict(&json!({"package_msg": "success", "tx-results": {}})).is_ok());
        let known = json!({"package_msg": "transaction failed",
            "tx-results": {"a": {"error": "txn-already-in-mempool"}, "b": {"txid": "x"}}});
        assert!(package_verdict(&known).is_ok());
        let bad =
            json!({"package_msg": "transaction failed", "tx-results": {"a": {"error": "non-BIP68-final"}}});
        assert!(
            matches!(package_verdict(&bad), Err(SubmitError::Rejected(r)) if r.contains("non-BIP68-final"))
        );
    }

    #[test]
    fn a_mempool_entry_is_read_with_its_descendants() {
        let child = "11".repeat(32);
        let answer = json!({"vsize": 150, "descendantsize": 300, "spentby": [child],
            "fees": {"base": 0.0, "descendant": 0.00000600}});
        let entry = MempoolEntry::read(&answer).unwrap();
        assert_eq!(entry.descendant_fee, Amount::from_sat(600));
        assert_eq!(entry.feerate(), FeeRate::from_sat_per_vb(2).unwrap());
        assert_eq!(entry.spent_by, [child.parse().unwrap()]);
        assert_eq!(MempoolEntry::read(&json!({"vsize": 150})), None);
    }

    #[tokio::test]
    async fn one_call_waits_for_a_bitcoind_that_hangs_and_no_other() {
        // It takes connections and answers nothing.
        let hung = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let auth = RpcAuth::UserPass { user: "u".into(), pass: "p".into() };
        let mut bitcoind = Bitcoind::new(hung.local_addr().unwrap(), auth).unwrap();
        bitcoind.limit = Duration::from_millis(100);
        let e = bitcoind.mempool_min().await.unwrap_err();
        assert!(e.to_string().contains("does not answer"), "{e}");
        // This one would not come back.
        bitcoind.limit = Duration::from_secs(3600);
        assert!(bitcoind.mempool_min().await.is_err());
        let tx = Transaction {
            version: bitcoin::transaction::Version::TWO,
            lock_time: bitcoin::absolute::LockTime::ZERO,
            input: vec![],
            output: vec![],
        };
        assert!(matches!(bitcoind.submit(&[tx]).await, Err(SubmitError::Unreachable(_))));
    }
}
