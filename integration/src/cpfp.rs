//! The fee-paying child of a tree transaction, made with a key of the test.
//!
//! Tree transactions pay no fee and carry one pay-to-anchor output of 0 sat. The child spends that output (it needs no
//! signature) and a coin of its own, and goes with its parent as a package (BIP 431: version 3, at most 1000 vbytes).

use anyhow::{anyhow, Result};
use bitcoin::absolute::LockTime;
use bitcoin::key::{CompressedPublicKey, Secp256k1};
use bitcoin::secp256k1::{All, Message, SecretKey};
use bitcoin::sighash::{EcdsaSighashType, SighashCache};
use bitcoin::transaction::Version;
use bitcoin::{
    Address, Amount, Network, OutPoint, PrivateKey, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness,
};

use crate::Bitcoind;

/// Fee of every child, sat: a package of at most 11,000 vbytes then pays more than 1 sat/vB.
pub const CHILD_FEE: u64 = 12_000;

/// A P2WPKH key of the test, with one coin for each child that it will make.
pub struct Purse {
    secp: Secp256k1<All>,
    secret: SecretKey,
    public: CompressedPublicKey,
    coins: Vec<(OutPoint, u64)>,
}

impl Purse {
    /// A new key with `coins` confirmed coins of twice the child's fee each.
    ///
    /// # Errors
    /// If bitcoind cannot pay.
    pub fn fill(bitcoind: &Bitcoind, coins: usize) -> Result<Self> {
        Self::fill_with(bitcoind, coins, 2 * CHILD_FEE)
    }

    /// As [`Purse::fill`], with coins of `each` sat.
    ///
    /// # Errors
    /// As [`Purse::fill`].
    pub fn fill_with(bitcoind: &Bitcoind, coins: usize, each: u64) -> Result<Self> {
        let secp = Secp256k1::new();
        let secret = SecretKey::from_slice(&rand::random::<[u8; 32]>())?;
        let public =
            CompressedPublicKey::from_private_key(&secp, &PrivateKey::new(secret, Network::Regtest))?;
        let mut purse = Self { secp, secret, public, coins: Vec::new() };
        let count = u64::try_from(coins)?;
        // Paid in one sum and split by a transaction of its own, at 40 sat a coin for its fee.
        let total = (each + 40) * count + 1_000;
        let address = Address::p2wpkh(&public, Network::Regtest);
        let source = bitcoind.fund(&[(address, total)])?.into_iter().next();
        let source = source.ok_or_else(|| anyhow!("bitcoind paid nothing"))?;
        let output = TxOut { value: Amount::from_sat(each), script_pubkey: purse.script() };
        let mut split = Transaction {
            version: Version::TWO,
            lock_time: LockTime::ZERO,
            input: vec![input(source)],
            output: vec![output; coins],
        };
        purse.sign(&mut split, 0, total)?;
        let txid = bitcoind.send(&split)?;
        bitcoind.mine(1)?;
        for vout in 0..u32::try_from(coins)? {
            purse.coins.push((OutPoint::new(txid, vout), each));
        }
        Ok(purse)
    }

    /// A child of `parent` that spends its output `anchor` and one coin.
    ///
    /// # Errors
    /// If no coin is left.
    pub fn child(&mut self, parent: &Transaction, anchor: u32) -> Result<Transaction> {
        self.child_with(parent, anchor, 1, CHILD_FEE)
    }

    /// As [`Purse::child`], with this fee in sat and so many outputs, that is as fat as wanted.
    ///
    /// # Errors
    /// As [`Purse::child`].
    pub fn child_with(
        &mut self,
        parent: &Transaction,
        anchor: u32,
        outputs: usize,
        fee: u64,
    ) -> Result<Transaction> {
        let anchor = OutPoint::new(parent.compute_txid(), anchor);
        self.spend(Version::non_standard(3), Some(anchor), outputs, fee)
    }

    /// A transaction that spends one coin into so many outputs and pays `fee` sat.
    ///
    /// # Errors
    /// If no coin is left.
    pub fn divide(&mut self, outputs: usize, fee: u64) -> Result<Transaction> {
        self.spend(Version::TWO, None, outputs, fee)
    }

    fn spend(
        &mut self,
        version: Version,
        anchor: Option<OutPoint>,
        outputs: usize,
        fee: u64,
    ) -> Result<Transaction> {
        let (coin, sat) = self.coins.pop().ok_or_else(|| anyhow!("the purse is empty"))?;
        let rest = sat.checked_sub(fee).ok_or_else(|| anyhow!("the coin has {sat} sat, the fee is {fee}"))?;
        let share = rest.checked_div(u64::try_from(outputs)?).ok_or_else(|| anyhow!("no outputs"))?;
        let output = TxOut { value: Amount::from_sat(share), script_pubkey: self.script() };
        let inputs: Vec<TxIn> = anchor.into_iter().chain([coin]).map(input).collect();
        let last = inputs.len() - 1;
        let mut tx =
            Transaction { version, lock_time: LockTime::ZERO, input: inputs, output: vec![output; outputs] };
        self.sign(&mut tx, last, sat)?;
        Ok(tx)
    }

    /// Takes back the coin of a child that was refused.
    ///
    /// # Errors
    /// If it is not a child of this purse.
    pub fn give_back(&mut self, child: &Transaction) -> Result<()> {
        let ([_, coin], [output]) = (child.input.as_slice(), child.output.as_slice()) else {
            return Err(anyhow!("{} is no child of this purse", child.compute_txid()));
        };
        self.coins.push((coin.previous_output, output.value.to_sat() + CHILD_FEE));
        Ok(())
    }

    fn script(&self) -> ScriptBuf {
        ScriptBuf::new_p2wpkh(&self.public.wpubkey_hash())
    }

    fn sign(&self, tx: &mut Transaction, index: usize, sat: u64) -> Result<()> {
        let mut cache = SighashCache::new(tx);
        let amount = Amount::from_sat(sat);
        let hash = cache.p2wpkh_signature_hash(index, &self.script(), amount, EcdsaSighashType::All)?;
        let signature = bitcoin::ecdsa::Signature {
            signature: self.secp.sign_ecdsa(&Message::from(hash), &self.secret),
            sighash_type: EcdsaSighashType::All,
        };
        let witness = cache.witness_mut(index).ok_or_else(|| anyhow!("no input {index}"))?;
        *witness = Witness::p2wpkh(&signature, &self.public.0);
        Ok(())
    }
}

fn input(previous_output: OutPoint) -> TxIn {
    TxIn {
        previous_output,
        script_sig: ScriptBuf::new(),
        sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
        witness: Witness::new(),
    }
}
