//! The transactions of a factory tree: what they look like and how they are signed.
//!
//! Every one has version 3 (TRUC, BIP 431), one input, pays no fee and carries one pay-to-anchor output of 0 sat
//! as its last output, so that a child pays for both when it is broadcast. Relative delays are BIP 68 blocks.

use std::sync::LazyLock;

use bitcoin::hashes::Hash;
use bitcoin::secp256k1::{Secp256k1, VerifyOnly};
use bitcoin::sighash::{Prevouts, SighashCache};
use bitcoin::{
    absolute, transaction, Amount, OutPoint, ScriptBuf, Sequence, TapSighashType, Transaction, TxIn, TxOut,
    Txid, Witness,
};
use serde::{Deserialize, Serialize};

use crate::musig::SignatureBytes;
use crate::Error;

/// One for all: making one takes a multiplication on the curve.
static VERIFIER: LazyLock<Secp256k1<VerifyOnly>> = LazyLock::new(Secp256k1::verification_only);

/// nSequence of an input without a relative delay: replaceable, and nLockTime counts.
pub const NO_DELAY: Sequence = Sequence(0xffff_fffd);

/// The nSequence for a relative delay in blocks (BIP 68); 0 is none.
pub(crate) fn sequence(relative_delay: u16) -> Sequence {
    if relative_delay == 0 {
        NO_DELAY
    } else {
        Sequence::from_height(relative_delay)
    }
}

/// The script of a pay-to-anchor output (`OP_1 <4e73>`), which anybody can spend without a witness.
pub fn anchor_script() -> ScriptBuf {
    ScriptBuf::from_bytes(vec![0x51, 0x02, 0x4e, 0x73])
}

/// The 0 sat pay-to-anchor output that ends every transaction of the tree.
pub fn anchor_output() -> TxOut {
    TxOut { value: Amount::ZERO, script_pubkey: anchor_script() }
}

/// Which transaction of the tree this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum TxKind {
    /// The one transaction of a level without DW layers.
    Static {
        /// The level, 0 is the root.
        level: u16,
    },
    /// The transaction that starts the clock of a level with DW layers.
    Kickoff {
        /// The level.
        level: u16,
    },
    /// A state of one DW layer.
    State {
        /// The level.
        level: u16,
        /// The layer, 0 is the outermost.
        layer: u16,
        /// The state, 0 is the oldest.
        state: u16,
    },
    /// Pays a leaf's clients after the expiry height. `position` counts the transactions of the leaf that
    /// were published before: 0 spends the leaf's input, 1 the output of the leaf's first transaction, and so on.
    Distribution {
        /// Transactions of the leaf above it.
        position: u16,
    },
}

impl std::fmt::Display for TxKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Static { level } => write!(f, "static transaction of level {level}"),
            Self::Kickoff { level } => write!(f, "kickoff of level {level}"),
            Self::State { level, layer, state } => {
                write!(f, "state {state} of layer {layer} of level {level}")
            }
            Self::Distribution { position } => write!(f, "distribution {position}"),
        }
    }
}

/// An unsigned transaction of the tree together with the output it spends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeTx {
    /// Its place in the tree.
    pub kind: TxKind,
    /// The transaction, without a witness.
    pub tx: Transaction,
    /// The output it spends.
    pub spends: TxOut,
    /// Blocks that the spent output must be deep (BIP 68); 0 for none.
    pub relative_delay: u16,
}

impl TreeTx {
    /// Builds a transaction that spends `input` into `outputs` and the anchor.
    ///
    /// # Errors
    /// [`Error::Value`] if the outputs are not worth exactly what is spent, [`Error::Dust`] if one is too small.
    pub(crate) fn new(
        kind: TxKind,
        input: OutPoint,
        spends: TxOut,
        relative_delay: u16,
        lock_time: u32,
        mut outputs: Vec<TxOut>,
    ) -> Result<Self, Error> {
        let mut sum = 0u64;
        for output in &outputs {
            check_dust("tree output", output)?;
            sum = sum
                .checked_add(output.value.to_sat())
                .ok_or(Error::Overflow { field: "sum of tree outputs" })?;
        }
        let value = spends.value.to_sat();
        if sum != value {
            return Err(Error::Value { what: "sum of the outputs of a node", got: sum, expected: value });
        }
        outputs.push(anchor_output());
        let tx = Transaction {
            version: transaction::Version(3),
            lock_time: absolute::LockTime::from_height(lock_time)
                .map_err(|_| Error::Overflow { field: "lock time" })?,
            input: vec![TxIn {
                previous_output: input,
                script_sig: ScriptBuf::new(),
                sequence: sequence(relative_delay),
                witness: Witness::new(),
            }],
            output: outputs,
        };
        Ok(Self { kind, tx, spends, relative_delay })
    }

    /// The transaction id; it does not change when the witness is added.
    pub fn txid(&self) -> Txid {
        self.tx.compute_txid()
    }

    /// The message to sign: the BIP 341 key-path signature hash with `SIGHASH_DEFAULT`.
    ///
    /// # Errors
    /// [`Error::Sighash`].
    pub fn sighash(&self) -> Result<[u8; 32], Error> {
        taproot_sighash(&self.tx, &self.spends)
    }

    /// The transaction with its signature as witness. The signature is not verified here.
    pub fn signed(&self, signature: &SignatureBytes) -> SignedTx {
        let mut tx = self.unsigned();
        tx.set_signature(signature);
        tx
    }

    /// The transaction as it would be stored, without its signature.
    pub(crate) fn unsigned(&self) -> SignedTx {
        let (tx, spends) = (self.tx.clone(), self.spends.clone());
        SignedTx { kind: self.kind, tx, spends, relative_delay: self.relative_delay }
    }
}

/// The BIP 341 key-path signature hash of the only input of `tx`, `SIGHASH_DEFAULT`.
///
/// # Errors
/// [`Error::Sighash`].
pub(crate) fn taproot_sighash(tx: &Transaction, spends: &TxOut) -> Result<[u8; 32], Error> {
    SighashCache::new(tx)
        .taproot_key_spend_signature_hash(0, &Prevouts::All(&[spends]), TapSighashType::Default)
        .map(|hash| hash.to_byte_array())
        .map_err(|e| Error::Sighash(e.to_string()))
}

/// Refuses an output below the dust limit of its script.
pub(crate) fn check_dust(what: &'static str, output: &TxOut) -> Result<(), Error> {
    let limit = output.script_pubkey.minimal_non_dust().to_sat();
    let got = output.value.to_sat();
    if got < limit {
        return Err(Error::Dust { what, got, limit });
    }
    Ok(())
}

/// A completely signed transaction of the tree, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedTx {
    /// Its place in the tree.
    #[serde(flatten)]
    pub kind: TxKind,
    /// The transaction with its witness; stored as consensus hex.
    #[serde(with = "crate::hexed::transaction")]
    pub tx: Transaction,
    /// The output it spends.
    pub spends: TxOut,
    /// Blocks that the spent output must be deep (BIP 68); 0 for none.
    pub relative_delay: u16,
}

impl SignedTx {
    /// The transaction id.
    pub fn txid(&self) -> Txid {
        self.tx.compute_txid()
    }

    /// Puts a signature in, which is not verified here.
    pub(crate) fn set_signature(&mut self, signature: &SignatureBytes) {
        let witness = Witness::from_slice(&[signature.as_slice()]);
        for input in &mut self.tx.input {
            input.witness = witness.clone();
        }
    }

    /// The output it spends.
    pub fn parent(&self) -> Option<OutPoint> {
        self.tx.input.first().map(|input| input.previous_output)
    }

    /// The position of the pay-to-anchor output: the last one.
    pub fn anchor_vout(&self) -> u32 {
        u32::try_from(self.tx.output.len().saturating_sub(1)).unwrap_or(u32::MAX)
    }

    /// Weight with the witness, weight units.
    pub fn weight(&self) -> u64 {
        self.tx.weight().to_wu()
    }

    /// Verifies the stored signature against the spent output.
    ///
    /// # Errors
    /// [`Error::BadSignature`] if it is missing, of the wrong form or wrong.
    pub fn verify(&self) -> Result<(), Error> {
        let bad = || Error::BadSignature { what: self.kind.to_string() };
        let script = self.spends.script_pubkey.as_bytes();
        let [0x51, 0x20, key @ ..] = script else { return Err(bad()) };
        let key = bitcoin::XOnlyPublicKey::from_slice(key).map_err(|_| bad())?;
        let witness = self.tx.input.first().map(|input| input.witness.to_vec()).unwrap_or_default();
        let [signature] = witness.as_slice() else { return Err(bad()) };
        let signature = bitcoin::secp256k1::schnorr::Signature::from_slice(signature).map_err(|_| bad())?;
        let message = bitcoin::secp256k1::Message::from_digest(taproot_sighash(&self.tx, &self.spends)?);
        VERIFIER.verify_schnorr(&signature, &message, &key).map_err(|_| bad())
    }
}
