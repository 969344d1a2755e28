//! Exact sizes of the factory's transactions, from the serialization rules of BIP 141 and BIP 144.
//!
//! Nothing here is measured or estimated. Where a size depends on a signature's length (ECDSA in LDK's
//! commitment, a P2WPKH wallet coin), the figure is the longest a low-S signature can be, 72 bytes with
//! its sighash byte, so a real transaction may be a byte or two shorter for each; the tree's own
//! transactions carry Schnorr signatures only and match to the byte.

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::geometry;
use crate::params::{as_u64, Shape};

/// Bytes of a P2TR output: value, script length, `1 <32>`.
const P2TR_OUT: u64 = 8 + 1 + 34;
/// Bytes of a P2WSH output: value, script length, `0 <32>`.
const P2WSH_OUT: u64 = 8 + 1 + 34;
/// Bytes of a P2WPKH output: value, script length, `0 <20>`.
const P2WPKH_OUT: u64 = 8 + 1 + 22;
/// Bytes of a P2A output: value, script length, `1 <2>`.
const P2A_OUT: u64 = 8 + 1 + 4;
/// Bytes of a segwit input without its witness: outpoint, empty script, nSequence.
const IN: u64 = 36 + 1 + 4;
/// Witness of a P2TR key path input with the default sighash: count, length, signature (BIP 341).
const KEY_PATH_WITNESS: u64 = 1 + 1 + 64;
/// Witness of a P2WPKH input: count, length and signature, length and key.
const P2WPKH_WITNESS: u64 = 1 + 1 + 72 + 1 + 33;
/// Witness of a P2A input: an empty stack.
const EMPTY_WITNESS: u64 = 1;
/// Witness of a commitment: count, empty item, two signatures, the 2-of-2 script (BOLT 3).
const FUNDING_WITNESS: u64 = 1 + 1 + (1 + 72) * 2 + 1 + 71;
/// Witness that claims `to_local` after the delay: count, signature, empty item, script (BOLT 3). The
/// script is 77 bytes for a delay of 128 to 32,767 blocks, which all delays LDK accepts are.
const TO_LOCAL_WITNESS: u64 = 1 + 1 + 72 + 1 + 1 + 77;
/// Weight of the witness of LDK's HTLC-success input in a channel with zero-fee commitments
/// (`HTLC_SUCCESS_INPUT_P2A_ANCHOR_WITNESS_WEIGHT` of `lightning` 0.3).
const HTLC_SUCCESS_WITNESS: u64 = 324;

/// Size of one transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TxSize {
    /// Bytes without witness data.
    pub base: u64,
    /// Bytes of witness data, marker and flag included.
    pub witness: u64,
}

impl TxSize {
    /// Weight units (BIP 141).
    pub fn weight(self) -> u64 {
        self.base.saturating_mul(4).saturating_add(self.witness)
    }

    /// Virtual size in vB, rounded up (BIP 141).
    pub fn vbytes(self) -> u64 {
        self.weight().div_ceil(4)
    }

    /// Serialized bytes, witness included.
    pub fn bytes(self) -> u64 {
        self.base.saturating_add(self.witness)
    }

    fn new(witnesses: &[u64], outputs: u64, output_bytes: u64) -> Self {
        let inputs = as_u64(witnesses.len());
        let base = 4u64
            .saturating_add(compact_size(inputs))
            .saturating_add(inputs.saturating_mul(IN))
            .saturating_add(compact_size(outputs))
            .saturating_add(output_bytes)
            .saturating_add(4);
        let witness = witnesses.iter().fold(2u64, |sum, w| sum.saturating_add(*w));
        Self { base, witness }
    }
}

/// Length of a compact size integer.
fn compact_size(n: u64) -> u64 {
    match n {
        0..=252 => 1,
        253..=0xffff => 3,
        0x1_0000..=0xffff_ffff => 5,
        _ => 9,
    }
}

/// A tree transaction with `outputs` outputs of 34-byte scripts (P2TR or P2WSH) and its P2A output, with
/// one key path input. Kickoffs and inner states have 1, interior nodes one per child, leaf states one per
/// client and one for the stock, distributions one per client.
pub fn tree_tx(outputs: u64) -> TxSize {
    let bytes = outputs.saturating_mul(P2TR_OUT).saturating_add(P2A_OUT);
    TxSize::new(&[KEY_PATH_WITNESS], outputs.saturating_add(1), bytes)
}

/// A kickoff, or a state that is not its level's last.
pub fn kickoff() -> TxSize {
    tree_tx(1)
}

/// A leaf state (or static leaf) of `clients` clients: a channel for each and the stock.
pub fn leaf_state(clients: u64) -> TxSize {
    tree_tx(clients.saturating_add(1))
}

/// A distribution that pays `clients` clients, P2TR each.
pub fn distribution(clients: u64) -> TxSize {
    tree_tx(clients)
}

/// A fee-paying child: spends the P2A output and one P2TR wallet coin into one P2TR change output.
pub fn child() -> TxSize {
    TxSize::new(&[EMPTY_WITNESS, KEY_PATH_WITNESS], 1, P2TR_OUT)
}

/// A fee-paying child as [`child`] that spends a P2WPKH wallet coin (longest signature).
pub fn child_p2wpkh() -> TxSize {
    TxSize::new(&[EMPTY_WITNESS, P2WPKH_WITNESS], 1, P2TR_OUT)
}

/// LDK's zero-fee commitment without HTLCs (longest signatures): `to_local`, `to_remote` (P2WPKH) and P2A.
pub fn commitment() -> TxSize {
    TxSize::new(&[FUNDING_WITNESS], 3, P2WSH_OUT + P2WPKH_OUT + P2A_OUT)
}

/// The sweep of `to_local` into one P2TR output (longest signature).
pub fn sweep() -> TxSize {
    TxSize::new(&[TO_LOCAL_WITNESS], 1, P2TR_OUT)
}

/// LDK's HTLC-success transaction with one P2TR wallet coin that pays the fee and its change.
pub fn htlc_success() -> TxSize {
    TxSize::new(&[HTLC_SUCCESS_WITNESS, KEY_PATH_WITNESS], 2, P2WSH_OUT + P2TR_OUT)
}

/// Per level, root first, the most outputs (P2A not counted) that the branching transaction of a node has:
/// children for an interior node, channels and stock for a leaf.
///
/// # Errors
/// The refusals of [`Shape::check_structure`].
pub fn widest_outputs(shape: &Shape, clients: usize) -> Result<Vec<u64>, Error> {
    let mut widest = vec![0u64; shape.levels()];
    for node in geometry::nodes(shape, clients)? {
        let outputs = branch_outputs(shape, node.level, node.children.len());
        if let Some(most) = widest.get_mut(node.level) {
            *most = (*most).max(outputs);
        }
    }
    Ok(widest)
}

/// Outputs (P2A not counted) of the branching transaction of a node at `level` with `children` children.
pub fn branch_outputs(shape: &Shape, level: usize, children: usize) -> u64 {
    let stock = u64::from(level >= shape.arity.len());
    as_u64(children).saturating_add(stock)
}
