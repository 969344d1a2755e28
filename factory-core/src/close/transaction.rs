//! The closing transaction.

use bitcoin::secp256k1::PublicKey;
use bitcoin::{absolute, transaction, Amount, ScriptBuf, Transaction, TxIn, TxOut, Witness};
use serde::{Deserialize, Serialize};

use crate::plan::{add, check_payout_script};
use crate::record::FundingOutput;
use crate::transaction::NO_DELAY;
use crate::Error;

/// A balance below this many sat gets no output: the largest dust limit of the payout scripts allowed.
pub const DUST_SAT: u64 = 330;

/// The lowest feerate that nodes relay by default (1 sat/vbyte, rounded up), sat per 1000 weight units.
pub const MIN_FEERATE_SAT_PER_KWU: u64 = 253;

/// What one client has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payout {
    /// The client's node id.
    pub client: PublicKey,
    /// Where it is paid.
    pub script: ScriptBuf,
    /// Its balance, msat.
    pub balance_msat: u64,
}

/// An unsigned closing transaction and where the money goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloseTransaction {
    /// Version 2, lock time 0, one input; a client's output in tree order each, the provider's last.
    pub tx: Transaction,
    /// Paid to clients, sat.
    pub paid: Vec<(PublicKey, u64)>,
    /// Balances too small for an output, which go to the fee, sat.
    pub to_fees: Vec<(PublicKey, u64)>,
    /// Paid to the provider, sat; 0 if it has no output.
    pub lsp_sat: u64,
    /// The fee, sat.
    pub fee_sat: u64,
}

fn fee(weight: u64, feerate: u64) -> Result<u64, Error> {
    weight.checked_mul(feerate).map(|f| f.div_ceil(1000)).ok_or(Error::Overflow { field: "closing fee" })
}

/// Builds the transaction that closes a factory.
///
/// Each client gets its balance rounded down to whole sat; one below [`DUST_SAT`] gets no output and counts towards
/// the fee. The provider gets the rest and pays what of the fee is left. If its share cannot pay the fee asked for but
/// at least that of [`MIN_FEERATE_SAT_PER_KWU`], or would be left with dust, all of the share goes to the fee.
///
/// Outputs: clients in the order of `balances`, then the provider.
///
/// # Errors
/// [`Error::Fee`] if the provider's share cannot pay the lowest fee, [`Error::Value`] if the balances exceed the
/// funding output, [`Error::Script`] for a payout script of another type, [`Error::OutOfRange`] for a feerate below
/// the lowest.
pub fn close_transaction(
    funding: &FundingOutput,
    balances: &[Payout],
    lsp_script: &ScriptBuf,
    feerate_sat_per_kwu: u64,
) -> Result<CloseTransaction, Error> {
    let feerate = feerate_sat_per_kwu;
    crate::params::range("feerate_sat_per_kwu", feerate, MIN_FEERATE_SAT_PER_KWU, 10_000_000)?;
    check_payout_script("provider's script", lsp_script)?;
    let mut tx = Transaction {
        version: transaction::Version::TWO,
        lock_time: absolute::LockTime::ZERO,
        input: vec![TxIn {
            previous_output: funding.outpoint,
            script_sig: ScriptBuf::new(),
            sequence: NO_DELAY,
            witness: Witness::from_slice(&[[0u8; 64].as_slice()]),
        }],
        output: Vec::new(),
    };
    let (mut paid, mut to_fees) = (Vec::new(), Vec::new());
    let (mut owed, mut small) = (0u64, 0u64);
    for payout in balances {
        check_payout_script("payout script", &payout.script)?;
        let sat = payout.balance_msat / 1000;
        owed = add(owed, sat)?;
        if sat < DUST_SAT {
            small = add(small, sat)?;
            if sat > 0 {
                to_fees.push((payout.client, sat));
            }
        } else {
            paid.push((payout.client, sat));
            tx.output.push(TxOut { value: Amount::from_sat(sat), script_pubkey: payout.script.clone() });
        }
    }
    let share = funding.value_sat.checked_sub(owed).ok_or(Error::Value {
        what: "sum of the balances",
        got: owed,
        expected: funding.value_sat,
    })?;
    let available = add(share, small)?;
    tx.output.push(TxOut { value: Amount::ZERO, script_pubkey: lsp_script.clone() });
    // The provider pays what the small balances do not, and never touches what is owed to clients.
    let wanted = fee(tx.weight().to_wu(), feerate)?.max(small);
    let rest = available.checked_sub(wanted).filter(|rest| *rest >= DUST_SAT);
    let (lsp_sat, fee_sat) = match (rest, tx.output.last_mut()) {
        (Some(rest), Some(last)) => {
            last.value = Amount::from_sat(rest);
            (rest, wanted)
        }
        _ => {
            tx.output.pop();
            if tx.output.is_empty() {
                return Err(Error::Empty { what: "outputs of the closing transaction" });
            }
            let least = fee(tx.weight().to_wu(), MIN_FEERATE_SAT_PER_KWU)?;
            if available < least {
                return Err(Error::Fee { what: "provider's share", got: available, fee: least });
            }
            (0, available)
        }
    };
    for input in &mut tx.input {
        input.witness = Witness::new();
    }
    Ok(CloseTransaction { tx, paid, to_fees, lsp_sat, fee_sat })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::hashes::Hash;
    use bitcoin::{OutPoint, PubkeyHash, Txid, WPubkeyHash};

    fn script(i: u8) -> ScriptBuf {
        ScriptBuf::new_p2wpkh(&WPubkeyHash::from_byte_array([i; 20]))
    }

    fn key(i: u8) -> PublicKey {
        crate::musig::public_key(&[i; 32]).unwrap()
    }

    fn funding(value_sat: u64) -> FundingOutput {
        let outpoint = OutPoint::new(Txid::from_byte_array([1; 32]), 0);
        FundingOutput { outpoint, value_sat, script: script(0) }
    }

    fn payout(i: u8, balance_msat: u64) -> Payout {
        Payout { client: key(i), script: script(i), balance_msat }
    }

    fn outputs(close: &CloseTransaction) -> u64 {
        close.tx.output.iter().map(|o| o.value.to_sat()).sum()
    }

    #[test]
    fn pays_to_the_satoshi() {
        let balances = [payout(1, 50_000_999), payout(2, 329_999), payout(3, 330_000), payout(4, 999)];
        let close = close_transaction(&funding(200_000), &balances, &script(9), 1000).unwrap();
        assert_eq!(close.paid, [(key(1), 50_000), (key(3), 330)]);
        assert_eq!(close.to_fees, [(key(2), 329)]);
        let mut signed = close.tx.clone();
        signed.input[0].witness.push([0u8; 64]);
        let weight = signed.weight().to_wu();
        assert_eq!(close.fee_sat, weight.div_ceil(1));
        assert_eq!(close.lsp_sat, 200_000 - 50_000 - 330 - close.fee_sat);
        assert_eq!(outputs(&close) + close.fee_sat, 200_000);
        assert_eq!(close.tx.output.last().unwrap().script_pubkey, script(9));
        assert_eq!(close.tx.input[0].sequence.0, 0xffff_fffd);
        assert!(close.tx.input[0].witness.is_empty());
    }

    #[test]
    fn clients_never_pay_the_fee() {
        // 50 sat are left: less than the lowest fee of 1 sat/vbyte.
        let balances = [payout(1, 99_950_000)];
        assert!(matches!(
            close_transaction(&funding(100_000), &balances, &script(9), 1000),
            Err(Error::Fee { got: 50, .. })
        ));
        // 200 sat are left: not the fee asked for, but the lowest one.
        let balances = [payout(1, 99_800_000)];
        let close = close_transaction(&funding(100_000), &balances, &script(9), 5000).unwrap();
        assert_eq!((close.lsp_sat, close.fee_sat), (0, 200));
        assert_eq!(outputs(&close), 99_800);
        assert!(matches!(
            close_transaction(&funding(99_000), &balances, &script(9), 1000),
            Err(Error::Value { .. })
        ));
    }

    #[test]
    fn refuses_other_scripts_and_feerates() {
        let odd = ScriptBuf::new_p2pkh(&PubkeyHash::from_byte_array([1; 20]));
        assert!(close_transaction(&funding(100_000), &[], &odd, 1000).is_err());
        let balances = [Payout { client: key(1), script: odd, balance_msat: 1_000_000 }];
        assert!(close_transaction(&funding(100_000), &balances, &script(9), 1000).is_err());
        assert!(close_transaction(&funding(100_000), &[], &script(9), 252).is_err());
    }
}
