//! What a factory is made of: who takes part, with how much, under which parameters.
//!
//! [`FactoryPlan`] is the provider's whole view and exists only if every rule holds. A client never sees it: it
//! gets the keys of everybody and the members of its own leaf.

use std::collections::BTreeSet;
use std::ops::Deref;

use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, ScriptBuf, TxOut};
use serde::{Deserialize, Serialize};

use crate::faults::switch;
use crate::geometry;
use crate::lifetime::Lifetime;
use crate::params::Params;
use crate::transaction::check_dust;
use crate::Error;

/// Most transactions on one client's path, so that one message carries what it signs.
pub const MAX_PATH_TRANSACTIONS: usize = bolt_tlv::payload::MAX_PATH_TRANSACTIONS;

/// Value of the smallest channel: the dust limit of its P2WSH output, sat.
pub const MIN_CHANNEL_SAT: u64 = 330;

/// A client's share of its leaf.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeafMember {
    /// Capacity of its channel, sat.
    pub capacity_sat: u64,
    /// What of it belongs to the client from the start, msat.
    pub push_msat: u64,
    /// Where distributions pay the client.
    pub payout_script: ScriptBuf,
    /// The id under which the channel is opened (BOLT 2).
    #[serde(with = "hex::serde")]
    pub temporary_channel_id: [u8; 32],
}

/// A client of a factory, in the provider's plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its factory key, fresh for this factory.
    pub key: PublicKey,
    /// Its share.
    #[serde(flatten)]
    pub share: LeafMember,
}

/// The fields of a [`FactoryPlan`] before they are checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanParts {
    /// Identity of the factory.
    #[serde(with = "hex::serde")]
    pub instance_id: [u8; 32],
    /// Shape and times.
    pub params: Params,
    /// Height from which its life counts, blocks.
    pub birth_height: u32,
    /// Height T from which distributions are valid, blocks.
    pub expiry_height: u32,
    /// The provider's factory key.
    pub lsp_key: PublicKey,
    /// The clients in tree order.
    pub members: Vec<Member>,
    /// The liquidity stock of **each** leaf, sat; 0 for none.
    pub leaf_stock_sat: u64,
    /// Where a leaf's stock output pays: the provider's own script.
    pub stock_script: ScriptBuf,
}

/// A plan that keeps every rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "PlanParts", into = "PlanParts")]
pub struct FactoryPlan(PlanParts);

impl Deref for FactoryPlan {
    type Target = PlanParts;

    fn deref(&self) -> &PlanParts {
        &self.0
    }
}

impl From<FactoryPlan> for PlanParts {
    fn from(plan: FactoryPlan) -> Self {
        plan.0
    }
}

impl TryFrom<PlanParts> for FactoryPlan {
    type Error = Error;

    fn try_from(parts: PlanParts) -> Result<Self, Error> {
        Self::new(parts)
    }
}

impl FactoryPlan {
    /// Checks the parts: parameters, lifetime, keys all different, amounts above dust and below the money supply,
    /// payout scripts of a standard type, temporary channel ids all different.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn new(parts: PlanParts) -> Result<Self, Error> {
        let clients = parts.members.len();
        check_params(&parts.params, clients)?;
        Lifetime::check(parts.birth_height, parts.expiry_height, &parts.params, clients)?;
        let mut keys = vec![parts.lsp_key];
        keys.extend(parts.members.iter().map(|m| m.key));
        check_distinct(&keys)?;
        let mut ids = BTreeSet::new();
        let mut total = 0u64;
        for member in &parts.members {
            check_share(&member.share)?;
            if !ids.insert(member.share.temporary_channel_id) {
                return Err(Error::Mismatch { what: "temporary channel id, it is used twice," });
            }
            total = add(total, member.share.capacity_sat)?;
        }
        check_stock(parts.leaf_stock_sat, &parts.stock_script)?;
        for _ in 0..parts.params.shape.leaves(clients) {
            total = add(total, parts.leaf_stock_sat)?;
        }
        Ok(Self(parts))
    }

    /// The keys of all signers: the provider's first, then the clients' in tree order.
    pub fn keys(&self) -> Vec<PublicKey> {
        let mut keys = vec![self.lsp_key];
        keys.extend(self.members.iter().map(|m| m.key));
        keys
    }

    /// The leaf that covers the clients `first..end`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if there are no such clients.
    pub fn leaf(&self, first: usize, end: usize) -> Result<LeafSpec, Error> {
        let members = self.members.get(first..end).ok_or_else(|| index_error(first, self.members.len()))?;
        Ok(LeafSpec {
            members: members.iter().map(|m| m.share.clone()).collect(),
            stock_sat: self.leaf_stock_sat,
            stock_script: self.stock_script.clone(),
            expiry_height: self.expiry_height,
        })
    }
}

/// The position of something that does not exist.
pub(crate) fn index_error(index: usize, length: usize) -> Error {
    let wide = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    Error::OutOfRange { field: "index", value: wide(index), min: 0, max: wide(length).saturating_sub(1) }
}

/// Adds amounts within the money supply, sat.
pub(crate) fn add(a: u64, b: u64) -> Result<u64, Error> {
    a.checked_add(b)
        .filter(|sum| *sum <= Amount::MAX_MONEY.to_sat())
        .ok_or(Error::Overflow { field: "sum of amounts (money supply)" })
}

/// The rules for parameters plus the limit on the length of a path.
pub(crate) fn check_params(params: &Params, clients: usize) -> Result<(), Error> {
    params.validate(clients)?;
    let transactions: usize = params.shape.layers.iter().map(|layers| layers.len().saturating_add(1)).sum();
    if transactions > MAX_PATH_TRANSACTIONS {
        return Err(Error::OutOfRange {
            field: "transactions on a path",
            value: u64::try_from(transactions).unwrap_or(u64::MAX),
            min: 1,
            max: u64::try_from(MAX_PATH_TRANSACTIONS).unwrap_or(u64::MAX),
        });
    }
    Ok(())
}

/// Refuses a list that holds a key twice.
pub(crate) fn check_distinct(keys: &[PublicKey]) -> Result<(), Error> {
    let mut seen = BTreeSet::new();
    for key in keys {
        if !seen.insert(key.serialize()) {
            return Err(Error::DuplicateKey { key: key.to_string() });
        }
    }
    Ok(())
}

/// Refuses a payout script that is not P2WPKH, P2WSH or P2TR.
pub(crate) fn check_payout_script(what: &'static str, script: &ScriptBuf) -> Result<(), Error> {
    if script.is_p2wpkh() || script.is_p2wsh() || script.is_p2tr() {
        Ok(())
    } else {
        Err(Error::Script { what, expected: "p2wpkh, p2wsh or p2tr" })
    }
}

/// Checks a client's share by itself.
pub(crate) fn check_share(share: &LeafMember) -> Result<(), Error> {
    check_payout_script("payout script", &share.payout_script)?;
    if share.capacity_sat < MIN_CHANNEL_SAT || share.capacity_sat > Amount::MAX_MONEY.to_sat() {
        return Err(Error::OutOfRange {
            field: "capacity_sat",
            value: share.capacity_sat,
            min: MIN_CHANNEL_SAT,
            max: Amount::MAX_MONEY.to_sat(),
        });
    }
    let most = share.capacity_sat.saturating_mul(1000);
    if share.push_msat > most {
        return Err(Error::OutOfRange { field: "push_msat", value: share.push_msat, min: 0, max: most });
    }
    Ok(())
}

/// Checks the stock of a leaf by itself.
pub(crate) fn check_stock(stock_sat: u64, stock_script: &ScriptBuf) -> Result<(), Error> {
    if stock_sat == 0 {
        return Ok(());
    }
    check_payout_script("stock script", stock_script)?;
    add(stock_sat, 0)?;
    check_dust("stock", &TxOut { value: Amount::from_sat(stock_sat), script_pubkey: stock_script.clone() })
}

/// Everything about one leaf that does not depend on keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafSpec {
    /// The clients of the leaf in tree order.
    pub members: Vec<LeafMember>,
    /// The leaf's liquidity stock, sat; 0 for none.
    pub stock_sat: u64,
    /// Where the stock output pays.
    pub stock_script: ScriptBuf,
    /// Height from which the distributions are valid, blocks.
    pub expiry_height: u32,
}

impl LeafSpec {
    /// Value of the leaf: all channels and the stock, sat.
    ///
    /// # Errors
    /// [`Error::Overflow`].
    pub fn value_sat(&self) -> Result<u64, Error> {
        self.members.iter().try_fold(self.stock_sat, |sum, m| add(sum, m.capacity_sat))
    }

    /// The outputs of the leaf's last transaction without the anchor: one per channel, then the stock if there is
    /// any.
    ///
    /// # Errors
    /// [`Error::Count`] if there is not one script per member, [`Error::Script`] if one is not P2WSH.
    pub fn outputs(&self, channel_scripts: &[ScriptBuf]) -> Result<Vec<TxOut>, Error> {
        if channel_scripts.len() != self.members.len() {
            return Err(Error::Count {
                what: "channel scripts of a leaf",
                got: channel_scripts.len(),
                expected: self.members.len(),
            });
        }
        let mut outputs = Vec::with_capacity(self.members.len().saturating_add(2));
        for (member, script) in self.members.iter().zip(channel_scripts) {
            if !script.is_p2wsh() {
                return Err(Error::Script { what: "channel script", expected: "p2wsh" });
            }
            outputs
                .push(TxOut { value: Amount::from_sat(member.capacity_sat), script_pubkey: script.clone() });
        }
        if self.stock_sat > 0 {
            outputs.push(TxOut {
                value: Amount::from_sat(self.stock_sat),
                script_pubkey: self.stock_script.clone(),
            });
        }
        Ok(outputs)
    }

    /// The outputs of the leaf's distributions without the anchor: each client gets its full capacity and its
    /// share of the stock by capacity, rounded down; the first client gets what rounding leaves. The provider gets
    /// nothing.
    ///
    /// # Errors
    /// [`Error::Overflow`], or [`Error::Empty`] for a leaf without clients.
    pub fn distribution_outputs(&self) -> Result<Vec<TxOut>, Error> {
        let overflow = || Error::Overflow { field: "share of the stock" };
        let capacities =
            self.members.iter().try_fold(0u64, |sum, m| add(sum, m.capacity_sat)).map_err(|_| overflow())?;
        let mut left = self.stock_sat;
        let mut outputs = Vec::with_capacity(self.members.len().saturating_add(1));
        for member in &self.members {
            let share = u128::from(self.stock_sat)
                .checked_mul(u128::from(member.capacity_sat))
                .and_then(|product| product.checked_div(u128::from(capacities)))
                .and_then(|share| u64::try_from(share).ok())
                .ok_or_else(overflow)?;
            left = left.checked_sub(share).ok_or_else(overflow)?;
            outputs.push(TxOut {
                value: Amount::from_sat(add(member.capacity_sat, share)?),
                script_pubkey: if switch("distribution.to_lsp") {
                    self.stock_script.clone()
                } else {
                    member.payout_script.clone()
                },
            });
        }
        let first = outputs.first_mut().ok_or(Error::Empty { what: "leaf" })?;
        first.value = Amount::from_sat(add(first.value.to_sat(), left)?);
        Ok(outputs)
    }
}

/// The child ranges of a node, checked to be there.
pub(crate) fn child_ranges(
    params: &Params,
    clients: usize,
    node: &geometry::PathNode,
) -> Result<Vec<(usize, usize)>, Error> {
    let ranges = geometry::children(&params.shape, clients, node.level, node.first, node.end);
    if ranges.is_empty() {
        return Err(Error::Empty { what: "children of a node" });
    }
    Ok(ranges)
}
