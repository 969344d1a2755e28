//! What is stored of a factory: the signed tree, which never changes, and where things stand.

use std::collections::BTreeMap;

use bitcoin::secp256k1::PublicKey;
use bitcoin::{OutPoint, Txid};
use factory_core::lifetime::Lifetime;
use factory_core::params::Params;
use factory_core::record::{ClientFactoryRecord, FundingOutput, LspFactoryRecord};
use lightning::ln::types::ChannelId;
use lightning::util::persist::KVStoreSync;
use serde::{Deserialize, Serialize};

use super::advances::{self, Advances};
use crate::api;
use crate::error::Error;
use crate::ldk::{channel_id, InstanceId};
pub(crate) use crate::store::tx::StoredTx;
use crate::store::{records, Store};

const TREES: &str = "factories";
const STATES: &str = "factory_states";
const VERSION: u32 = 1;

/// The signed tree as this node holds it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Signed {
    /// The whole tree.
    Lsp(Box<LspFactoryRecord>),
    /// The own path.
    Client(Box<ClientFactoryRecord>),
}

/// How far a factory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stage {
    /// The tree is stored; the funding transaction has not been shown to anybody.
    Signed,
    /// The funding transaction is out (LSP), or this node has said that it holds its exit (client).
    Funded,
    /// The funding transaction was as deep as the policy asks; channels are ready.
    Live,
    /// The funding output was spent by the cooperative close, deep enough.
    Closed,
    /// This node left by its path and has its money.
    Exited,
    /// It never came to life, and never will.
    Void,
}

/// Why a leaf is brought to the chain, the most urgent first: in this order exits get the wallet's coins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ExitReason {
    /// A payment on one of its channels expires soon.
    Htlc,
    /// The user asked for it.
    Asked,
    /// A channel was closed without an agreed close of the factory.
    ChannelClosed,
    /// The funding confirmed after the factory had been given up (client).
    LateFunding,
    /// T has come: a distribution pays (client).
    Expiry,
    /// Somebody else has begun to publish the leaf.
    Guard,
    /// The LSP settles before T.
    Settlement,
}

impl ExitReason {
    /// Whether an exit under way for another reason goes on for this one: if it is more urgent, and in any case if it
    /// only guards the leaf.
    pub(crate) fn replaces(self, other: Self) -> bool {
        let wanted = |reason| reason != Self::Guard;
        wanted(self) && (self < other || !wanted(other))
    }
}

/// An exit of one leaf, under way or done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredExit {
    /// Height at which it began.
    pub(crate) started_at: u32,
    pub(crate) reason: ExitReason,
    /// The reason in words.
    pub(crate) why: String,
    /// The channels that are closed with it; the others of the leaf live on, on the chain.
    pub(crate) leaving: Vec<OutPoint>,
    /// Most that the children of the path may pay together, sat.
    pub(crate) max_fee_sat: Option<u64>,
    /// What it waits for, in words.
    pub(crate) waits_for: String,
    /// The height that it waits for, if it is one.
    pub(crate) waits_until: Option<u32>,
    /// A coin is missing: the amount one coin needs to have, sat.
    pub(crate) needs_coin_sat: Option<u64>,
    /// The budget does not suffice: what the next step needs, sat.
    pub(crate) over_budget_sat: Option<u64>,
    /// The distribution that has taken the leaf's place.
    pub(crate) distribution: Option<Txid>,
    /// Money is in the wallet, or a distribution is final.
    pub(crate) done: bool,
}

impl StoredExit {
    /// An exit that begins now.
    pub(crate) fn new(started_at: u32, reason: ExitReason, why: &str, leaving: Vec<OutPoint>) -> Self {
        Self {
            started_at,
            reason,
            why: why.to_owned(),
            leaving,
            max_fee_sat: None,
            waits_for: "start".into(),
            waits_until: None,
            needs_coin_sat: None,
            over_budget_sat: None,
            distribution: None,
            done: false,
        }
    }
}

/// A leaf with channels of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leaf {
    /// Index of its first client: its name among the factory's leaves.
    pub(crate) first: u32,
    /// This node's channels on it: outpoint and, for the LSP, the client.
    pub(crate) channels: Vec<(OutPoint, Option<PublicKey>)>,
}

/// A cooperative close, once it has begun.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredClose {
    /// The machine's own record, to go on after a restart (LSP).
    #[serde(default)]
    pub(crate) machine: Option<serde_json::Value>,
    /// The client that asked for it, if it was one (LSP).
    #[serde(default)]
    pub(crate) asked_by: Option<PublicKey>,
    /// The final balance of this node's own channel (client), msat.
    #[serde(default)]
    pub(crate) own_msat: Option<u64>,
    /// Where the close pays this node (client).
    #[serde(default)]
    pub(crate) payout_script: Option<bitcoin::ScriptBuf>,
    /// The complete, signed transaction.
    #[serde(default)]
    pub(crate) signed: Option<StoredTx>,
    /// Who is paid what.
    #[serde(default)]
    pub(crate) paid: Vec<api::ClosePayout>,
    /// Whose balance went to fees.
    #[serde(default)]
    pub(crate) to_fees: Vec<api::ClosePayout>,
    /// Fee, sat.
    #[serde(default)]
    pub(crate) fee_sat: u64,
    /// Why it waits or failed.
    #[serde(default)]
    pub(crate) reason: Option<String>,
}

/// Where a factory stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct State {
    /// Derives the secret key.
    #[serde(with = "hex::serde")]
    pub(crate) salt: [u8; 32],
    pub(crate) stage: Stage,
    /// The signed funding transaction (LSP), or as the LSP showed it (client).
    pub(crate) funding_tx: Option<StoredTx>,
    /// Clients left out at creation.
    pub(crate) excluded: Vec<api::ExcludedClient>,
    /// Why it is void.
    pub(crate) failure: Option<String>,
    /// Given up, and T has passed: nothing of it matters any more (client).
    #[serde(default)]
    pub(crate) forgotten: bool,
    /// The name of an attempt that was superseded by another one of the same instance (client).
    #[serde(default)]
    pub(crate) alias: Option<InstanceId>,
    /// LSP: final balances of channels that are shut down, msat: the client's and ours.
    #[serde(default)]
    pub(crate) finals: BTreeMap<PublicKey, (u64, u64)>,
    /// Exits, by the leaf's first client.
    #[serde(default)]
    pub(crate) exits: BTreeMap<u32, StoredExit>,
    /// Blocks before the end of the dying period at which the user was told last.
    #[serde(default)]
    pub(crate) warned_at: Option<u32>,
    pub(crate) close: Option<StoredClose>,
    /// Highest number of a try to close.
    #[serde(default)]
    pub(crate) close_attempts: u16,
    /// LSP: clients whose channel was spent or whose leaf was distributed.
    #[serde(default)]
    pub(crate) left: Vec<PublicKey>,
}

impl State {
    pub(crate) fn new(salt: [u8; 32], excluded: Vec<api::ExcludedClient>) -> Self {
        let stage = Stage::Signed;
        Self {
            salt,
            stage,
            funding_tx: None,
            excluded,
            failure: None,
            forgotten: false,
            alias: None,
            finals: BTreeMap::new(),
            exits: BTreeMap::new(),
            warned_at: None,
            close: None,
            close_attempts: 0,
            left: Vec::new(),
        }
    }
}

/// A factory of this node.
#[derive(Clone, Debug)]
pub(crate) struct Factory {
    pub(crate) signed: Signed,
    pub(crate) state: State,
    /// What followed the creation.
    pub(crate) advances: Advances,
}

fn store_error(e: impl std::fmt::Display) -> Error {
    Error::Store(e.to_string())
}

impl Factory {
    /// A factory without advances.
    pub(crate) fn new(signed: Signed, state: State) -> Self {
        Self { signed, state, advances: Advances::default() }
    }

    /// The name it goes by in this node: the instance id, or an alias for a superseded attempt.
    pub(crate) fn id(&self) -> InstanceId {
        self.state.alias.unwrap_or_else(|| self.instance_id())
    }

    /// The instance id that messages carry.
    pub(crate) fn instance_id(&self) -> InstanceId {
        match &self.signed {
            Signed::Lsp(r) => r.plan.instance_id,
            Signed::Client(r) => r.path.instance_id,
        }
    }

    pub(crate) fn attempt(&self) -> u16 {
        match &self.signed {
            Signed::Lsp(r) => r.attempt,
            Signed::Client(r) => r.path.attempt,
        }
    }

    pub(crate) fn params(&self) -> &Params {
        match &self.signed {
            Signed::Lsp(r) => &r.plan.params,
            Signed::Client(r) => &r.path.params,
        }
    }

    pub(crate) fn clients(&self) -> usize {
        match &self.signed {
            Signed::Lsp(r) => r.plan.members.len(),
            Signed::Client(r) => usize::try_from(r.path.clients).unwrap_or(usize::MAX),
        }
    }

    pub(crate) fn birth_height(&self) -> u32 {
        match &self.signed {
            Signed::Lsp(r) => r.plan.birth_height,
            Signed::Client(r) => r.path.birth_height,
        }
    }

    pub(crate) fn expiry_height(&self) -> u32 {
        match &self.signed {
            Signed::Lsp(r) => r.plan.expiry_height,
            Signed::Client(r) => r.path.expiry_height,
        }
    }

    pub(crate) fn lifetime(&self) -> Result<Lifetime, Error> {
        Ok(Lifetime::check(self.birth_height(), self.expiry_height(), self.params(), self.clients())?)
    }

    pub(crate) fn funding(&self) -> &FundingOutput {
        match &self.signed {
            Signed::Lsp(r) => &r.funding,
            Signed::Client(r) => &r.path.funding,
        }
    }

    /// Whether every client has left by itself (LSP).
    pub(crate) fn all_left(&self) -> bool {
        matches!(&self.signed, Signed::Lsp(r) if r.client_ids.iter().all(|c| self.state.left.contains(c)))
    }

    /// The first transaction of the tree.
    pub(crate) fn root_txid(&self) -> Option<Txid> {
        let root = match &self.signed {
            Signed::Lsp(r) => r.nodes.first().and_then(|n| n.txs.first()),
            Signed::Client(r) => r.path.path.first(),
        };
        root.map(|t| t.txid())
    }

    /// The leaves with channels of this node.
    pub(crate) fn leaves(&self) -> Vec<Leaf> {
        match &self.signed {
            Signed::Lsp(r) => r
                .nodes
                .iter()
                .filter(|n| !n.distributions.is_empty())
                .filter_map(|n| {
                    let last = n.txs.last()?.txid();
                    let clients = r.client_ids.iter().skip(n.first as usize).take((n.end - n.first) as usize);
                    let channels =
                        (0u32..).zip(clients).map(|(vout, c)| (OutPoint { txid: last, vout }, Some(*c)));
                    Some(Leaf { first: n.first, channels: channels.collect() })
                })
                .collect(),
            Signed::Client(r) => vec![Leaf {
                first: r.index.saturating_sub(r.position),
                channels: r.channel().map(|c| (c.outpoint, None)).into_iter().collect(),
            }],
        }
    }

    /// The leaf with a channel.
    pub(crate) fn leaf_of(&self, outpoint: &OutPoint) -> Option<Leaf> {
        self.leaves().into_iter().find(|l| l.channels.iter().any(|(o, _)| o == outpoint))
    }

    /// The channel with a client (LSP).
    pub(crate) fn channel_with(&self, client: &PublicKey) -> Option<OutPoint> {
        let mut all = self.leaves().into_iter().flat_map(|l| l.channels);
        all.find(|(_, c)| c.as_ref() == Some(client)).map(|(o, _)| o)
    }

    /// An exit that is under way.
    pub(crate) fn exit_under_way(&self, first: u32) -> Option<&StoredExit> {
        self.state.exits.get(&first).filter(|e| !e.done)
    }

    /// Calls a cooperative close off: the money comes by the path, not by what may have been agreed to or
    /// signed before. What an LSP has signed stays: it may confirm as long as the root has not.
    pub(crate) fn call_off_close(&mut self, lsp: bool) {
        let Some(close) = self.state.close.as_mut() else { return };
        if lsp {
            close.own_msat = None;
        }
        close.machine = None;
        close.payout_script = None;
        close.reason = Some("a leaf is left by its path".into());
    }

    /// Whether any leaf is on its way to the chain because this node wants it there.
    pub(crate) fn is_exiting(&self) -> bool {
        self.state.exits.values().any(|e| !e.done && e.reason != ExitReason::Guard)
    }

    /// This node's channels: outpoint and, for the LSP, the client.
    pub(crate) fn channels(&self) -> Result<Vec<(OutPoint, Option<PublicKey>)>, Error> {
        Ok(self.leaves().into_iter().flat_map(|l| l.channels).collect())
    }

    pub(crate) fn channel_ids(&self) -> Result<Vec<ChannelId>, Error> {
        Ok(self.channels()?.into_iter().map(|(o, _)| channel_id(o)).collect())
    }

    /// Every transaction that matters on the chain.
    pub(crate) fn watched_txids(&self) -> Vec<Txid> {
        let mut out = vec![self.funding().outpoint.txid];
        out.extend(self.tree_txids());
        if let Some(close) = &self.state.close {
            out.extend(close.signed.iter().map(|t| t.0.compute_txid()));
        }
        out
    }

    /// Every outpoint whose spend matters: what the funding transaction spends, as far as it was shown, the funding
    /// output, the tree's inner outputs, the channels.
    pub(crate) fn watched_outpoints(&self) -> Result<Vec<OutPoint>, Error> {
        let mut out = vec![self.funding().outpoint];
        out.extend(self.tree_outpoints());
        out.extend(self.channels()?.iter().flat_map(|(o, _)| self.places(o)));
        out.extend(self.funding_inputs());
        Ok(out)
    }

    /// What the funding transaction spends; nothing before it was shown.
    pub(crate) fn funding_inputs(&self) -> impl Iterator<Item = OutPoint> + '_ {
        self.state.funding_tx.iter().flat_map(|tx| tx.0.input.iter().map(|i| i.previous_output))
    }

    /// Goes on to a stage. Where that cannot be written it stays where it was, and the next block tries again.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(crate) fn enter(&mut self, stage: Stage, store: &Store) -> Result<(), Error> {
        let before = std::mem::replace(&mut self.state.stage, stage);
        self.store_state(store).inspect_err(|_| self.state.stage = before)
    }

    /// Writes tree and state together.
    pub(crate) fn store_all(&self, store: &Store) -> Result<(), Error> {
        let key = hex::encode(self.id());
        let tree = records::encode(VERSION, &self.signed).map_err(store_error)?;
        let state = records::encode(VERSION, &self.state).map_err(store_error)?;
        store
            .write_all(&[(TREES, "", &key, &tree), (STATES, "", &key, &state)])
            .map_err(|e| crate::store::error(STATES, &e))
    }

    /// Changes the state and writes it. What cannot be written is not so in memory either: nobody acts on what a
    /// restart would not know.
    pub(crate) fn update(&mut self, store: &Store, change: impl FnOnce(&mut State)) -> Result<(), Error> {
        let before = self.state.clone();
        change(&mut self.state);
        self.store_state(store).inspect_err(|_| self.state = before)
    }

    /// Writes the state.
    pub(crate) fn store_state(&self, store: &Store) -> Result<(), Error> {
        records::put(store, STATES, &hex::encode(self.id()), VERSION, &self.state)
    }

    /// Removes a factory that goes by another name from now on.
    pub(crate) fn remove(store: &Store, id: &InstanceId) -> Result<(), Error> {
        let key = hex::encode(id);
        store.remove(STATES, "", &key, false).map_err(store_error)?;
        store.remove(TREES, "", &key, false).map_err(store_error)
    }

    /// Checks what was read: a tree that would not confirm is no way out, and is better known now than in need.
    ///
    /// # Errors
    /// [`Error::Factory`] with the first thing that does not hold.
    pub(crate) fn check(&self) -> Result<(), Error> {
        match &self.signed {
            Signed::Lsp(record) => Ok(record.verify()?),
            Signed::Client(record) => Ok(record.verify()?),
        }
    }

    /// Reads all factories.
    pub(crate) fn load_all(store: &Store) -> Result<Vec<Self>, Error> {
        let keys = store.list(STATES, "").map_err(store_error)?;
        let mut out = Vec::with_capacity(keys.len());
        for key in keys {
            let state = records::get(store, STATES, &key, VERSION)?;
            let signed = records::get(store, TREES, &key, VERSION)?;
            match (signed, state) {
                (Some(signed), Some(state)) => {
                    let factory = Self::new(signed, state);
                    factory.check().map_err(|e| Error::Corrupt {
                        key: format!("{TREES}/{key}"),
                        reason: e.to_string(),
                    })?;
                    out.push(factory);
                }
                _ => {
                    let reason = "the tree and its state must both be there".to_owned();
                    return Err(Error::Corrupt { key: format!("{TREES}/{key}"), reason });
                }
            }
        }
        advances::load(store, &mut out)?;
        Ok(out)
    }
}
