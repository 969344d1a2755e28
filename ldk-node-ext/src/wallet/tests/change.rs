//! Children that the change of a transaction pays for.

use super::*;

#[test]
fn the_change_of_a_transaction_that_lingers_pays_for_a_child() {
    let s = Setup::with_coins(&[100_000]);
    let psbt = s.pay(40_000).unwrap();
    let parent_fee = psbt.fee().unwrap().to_sat();
    let parent = s.wallet.sign(psbt).unwrap();
    // Not seen by bitcoind yet: the wallet knows of it through the child.
    let rate = FeeRate::from_sat_per_vb(10).unwrap();
    let first = s.wallet.child_of_change(&parent, parent_fee, rate, None).unwrap();
    let [spent] = &first.tx.input[..] else { panic!("{:?}", first.tx) };
    let vout = usize::try_from(spent.previous_output.vout).unwrap();
    let change = parent.output[vout].value;
    assert_eq!((spent.previous_output.txid, change.to_sat()), (parent.compute_txid(), 60_000 - parent_fee));
    assert_eq!(first.tx.output[0].value, change - first.fee);
    assert!(!spent.witness.is_empty());
    let weight = parent.weight() + first.tx.weight();
    let paid = (first.fee.to_sat() + parent_fee) * 1000 / weight.to_wu();
    assert!((2_500..2_600).contains(&paid), "{paid} sat per 1000 wu");

    // A better one: more than the first, with the price of its relay.
    s.wallet.saw_unconfirmed(&first.tx);
    let vsize = u64::try_from(first.tx.vsize()).unwrap();
    let relay = FeeRate::BROADCAST_MIN;
    let rival = Rival { fee: first.fee, vsize, relay, of_parent: false };
    let second = s.wallet.child_of_change(&parent, parent_fee, rate, Some(rival)).unwrap();
    assert_eq!(second.tx.input[0].previous_output, spent.previous_output);
    assert!(second.fee.to_sat() >= first.fee.to_sat() + vsize, "{} {}", first.fee, second.fee);
    assert!(!second.tx.input[0].witness.is_empty());

    // What the change cannot pay it pays in part, and what would not help is named.
    let rate = FeeRate::from_sat_per_vb(1_000).unwrap();
    let most = s.wallet.child_of_change(&parent, parent_fee, rate, None).unwrap();
    assert_eq!(most.fee.to_sat(), change.to_sat() - 330);
    assert_eq!(most.tx.output[0].value.to_sat(), 330);
    let beyond = Rival { fee: change, ..rival };
    let e = s.wallet.child_of_change(&parent, parent_fee, rate, Some(beyond)).unwrap_err();
    assert!(matches!(e, Error::InsufficientFunds { available_sat, .. } if available_sat == change.to_sat()));
    let none = s.wallet.child_of_change(&super::parent(9), 0, rate, None);
    assert!(matches!(none, Err(Error::InsufficientFunds { available_sat: 0, .. })));
}
