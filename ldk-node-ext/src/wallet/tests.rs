//! The wallet on regtest blocks made by hand.

use bitcoin::absolute::LockTime;
use bitcoin::block::{Header, Version as BlockVersion};
use bitcoin::hashes::Hash;
use bitcoin::transaction::Version;
use bitcoin::{
    Amount, Block, CompactTarget, FeeRate, OutPoint, Psbt, ScriptBuf, Sequence, Transaction, TxIn,
    TxMerkleNode, TxOut, Witness,
};
use factory_core::exit::{ExitPlan, ExitStep, KnownChain};
use factory_core::transaction::TxKind;
use lightning::chain::ClaimId;
use lightning::util::logger::{Logger, Record};
use lightning::util::wallet_utils::{CoinSelectionSourceSync, Input, WalletSourceSync, WalletSync};

use super::*;
use crate::chain::{Bitcoind, Fees};
use crate::config::RpcAuth;
use crate::publish::{Publisher, StoredChild};
use crate::store::tx::StoredTx;

mod change;

/// Pay-to-anchor: OP_1 <4e73>.
const P2A: [u8; 4] = [0x51, 0x02, 0x4e, 0x73];

struct Quiet;

impl Logger for Quiet {
    fn log(&self, _record: Record) {}
}

struct Setup {
    _dir: tempfile::TempDir,
    store: Arc<Store>,
    wallet: Arc<Wallet>,
}

fn root() -> Xpriv {
    Xpriv::new_master(Network::Regtest, &[7; 32]).unwrap()
}

fn open(store: &Arc<Store>) -> Arc<Wallet> {
    let genesis = bitcoin::constants::genesis_block(Network::Regtest).block_hash();
    let tip = BlockLocator::new(genesis, 0);
    Arc::new(Wallet::open(root(), Network::Regtest, Arc::clone(store), tip).unwrap())
}

fn input(previous_output: OutPoint) -> TxIn {
    TxIn {
        previous_output,
        script_sig: ScriptBuf::new(),
        sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
        witness: Witness::new(),
    }
}

/// A transaction of somebody else's.
fn foreign(salt: u8, inputs: &[OutPoint], output: Vec<TxOut>) -> Transaction {
    let mut input: Vec<TxIn> = inputs.iter().copied().map(input).collect();
    if input.is_empty() {
        input.push(self::input(OutPoint { txid: Txid::from_byte_array([salt; 32]), vout: 0 }));
    }
    Transaction { version: Version(3), lock_time: LockTime::ZERO, input, output }
}

/// A zero-fee parent: an anchor and nothing else that matters.
fn parent(salt: u8) -> Transaction {
    let anchor = TxOut { value: Amount::ZERO, script_pubkey: ScriptBuf::from_bytes(P2A.to_vec()) };
    foreign(salt, &[], vec![anchor])
}

impl Setup {
    /// A wallet with these confirmed coins, sat.
    fn with_coins(values: &[u64]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(&dir.path().join("db")).unwrap());
        let wallet = open(&store);
        let output = values
            .iter()
            .map(|v| TxOut { value: Amount::from_sat(*v), script_pubkey: wallet.new_script().unwrap() });
        let tx = foreign(0xee, &[], output.collect());
        let setup = Self { _dir: dir, store, wallet };
        setup.mine(vec![tx]);
        setup
    }

    fn mine(&self, txdata: Vec<Transaction>) {
        self.mine_on(self.wallet.best_block(), txdata);
    }

    /// A block that takes the place of what was above `tip`.
    fn mine_on(&self, tip: BlockLocator, txdata: Vec<Transaction>) {
        let header = Header {
            version: BlockVersion::TWO,
            prev_blockhash: tip.block_hash,
            merkle_root: TxMerkleNode::all_zeros(),
            time: tip.height,
            bits: CompactTarget::from_consensus(0x207f_ffff),
            nonce: u32::try_from(txdata.len()).unwrap(),
        };
        self.wallet.apply_block(&Block { header, txdata }, tip.height + 1);
        assert_eq!(self.wallet.best_block().height, tip.height + 1);
    }

    fn mine_empty(&self, blocks: u32) {
        (0..blocks).for_each(|_| self.mine(vec![]));
    }

    /// Everything the wallet has in the store.
    fn written(&self) -> Vec<(String, Vec<u8>)> {
        [NAMESPACE, LENT_NAMESPACE]
            .iter()
            .flat_map(|ns| {
                let keys = self.store.list(ns, "").unwrap();
                keys.into_iter().map(move |k| (k.clone(), self.store.read(ns, "", &k).unwrap()))
            })
            .collect()
    }

    fn pay(&self, sat: u64) -> Result<Psbt, Error> {
        let rate = FeeRate::from_sat_per_vb(1).unwrap();
        self.wallet.build_payment(ScriptBuf::from_bytes(P2A.to_vec()), Amount::from_sat(sat), rate)
    }

    fn child(&self, parent: &Transaction, sat_per_vb: u64, reusable: &[OutPoint]) -> Result<Child, Error> {
        let feerate = FeeRate::from_sat_per_vb(sat_per_vb).unwrap();
        self.wallet.child_for(ChildRequest {
            parent,
            anchor_vout: 0,
            feerate,
            rival: None,
            reusable,
            outputs: 1,
        })
    }
}

/// What LDK does to bump one claim: choose coins, build, have it signed.
fn bump(
    source: &WalletSync<Arc<Wallet>, Arc<Quiet>>,
    parent: &Transaction,
    claim: u8,
    sat_per_kwu: u32,
) -> Result<Transaction, ()> {
    let anchor = OutPoint { txid: parent.compute_txid(), vout: 0 };
    let previous_utxo = parent.output[0].clone();
    let must_spend = Input { outpoint: anchor, previous_utxo: previous_utxo.clone(), satisfaction_weight: 2 };
    let chosen = source.select_confirmed_utxos(
        Some(ClaimId([claim; 32])),
        vec![must_spend],
        &[],
        sat_per_kwu,
        4000,
    )?;
    let mut prev = vec![previous_utxo];
    let mut inputs = vec![anchor];
    for coin in chosen.confirmed_utxos {
        inputs.push(coin.outpoint());
        prev.push(coin.into_output());
    }
    let output = chosen.change_output.into_iter().collect();
    let mut psbt = Psbt::from_unsigned_tx(foreign(0, &inputs, output)).unwrap();
    for (slot, out) in psbt.inputs.iter_mut().zip(prev) {
        slot.witness_utxo = Some(out);
    }
    source.sign_psbt(psbt)
}

fn bumper(wallet: &Arc<Wallet>) -> WalletSync<Arc<Wallet>, Arc<Quiet>> {
    WalletSync::new(Arc::clone(wallet), Arc::new(Quiet))
}

fn coins_of(tx: &Transaction) -> Vec<OutPoint> {
    tx.input.iter().skip(1).map(|i| i.previous_output).collect()
}

#[test]
fn one_coin_bumps_a_claim_again_and_again() {
    let s = Setup::with_coins(&[100_000]);
    let (source, commitment) = (bumper(&s.wallet), parent(1));
    let first = bump(&source, &commitment, 1, 1000).unwrap();
    s.wallet.saw_unconfirmed(&first);
    let second = bump(&source, &commitment, 1, 2000).unwrap();
    s.wallet.saw_unconfirmed(&second);
    assert_eq!(coins_of(&first), coins_of(&second));
    assert!(second.output[0].value < first.output[0].value, "it pays more");
    // the newer one counts, although both were seen in the same second
    assert_eq!(s.wallet.balance().unconfirmed_sat, second.output[0].value.to_sat());

    // also after a restart, when LDK has forgotten which claim has which coin
    let again = open_after(s);
    let third = bump(&bumper(&again.wallet), &commitment, 1, 3000).unwrap();
    assert_eq!(coins_of(&third), coins_of(&first));

    // a confirmed one uses the coin up
    again.mine(vec![second.clone()]);
    let left: Vec<OutPoint> =
        again.wallet.list_confirmed_utxos().unwrap().into_iter().map(|u| u.outpoint).collect();
    assert_eq!(left, [OutPoint { txid: second.compute_txid(), vout: 0 }]);
}

fn open_after(s: Setup) -> Setup {
    let Setup { _dir, store, wallet } = s;
    drop(wallet);
    let wallet = open(&store);
    Setup { _dir, store, wallet }
}

#[test]
fn a_lent_coin_is_nobody_elses() {
    let s = Setup::with_coins(&[100_000]);
    let bumped = bump(&bumper(&s.wallet), &parent(1), 1, 1000).unwrap();
    // signed, and not broadcast yet
    assert!(matches!(s.pay(10_000), Err(Error::InsufficientFunds { available_sat: 0, .. })));
    assert!(matches!(s.child(&parent(2), 1, &[]), Err(Error::InsufficientFunds { .. })));
    s.wallet.saw_unconfirmed(&bumped);
    assert!(s.pay(10_000).is_err() && s.child(&parent(2), 1, &[]).is_err());
    // LDK repeats its claims; once it does not, the coin comes back
    s.mine_empty(LENT_FOR_BLOCKS);
    assert!(s.pay(10_000).is_err());
    s.mine_empty(1);
    assert_eq!(s.wallet.balance().confirmed_sat, 100_000);
    assert!(s.pay(10_000).is_ok());
    assert!(lock(&s.wallet.inner).lent.is_empty());
    assert!(lock(&open_after(s).wallet.inner).lent.is_empty());
}

/// A claim confirms, LDK has nothing more to sign, and then a reorganisation gives the claim to somebody else.
#[test]
fn a_coin_of_a_claim_that_was_undone_comes_back() {
    let s = Setup::with_coins(&[100_000]);
    let bumped = bump(&bumper(&s.wallet), &parent(1), 1, 1000).unwrap();
    s.wallet.saw_unconfirmed(&bumped);
    s.mine_empty(LENT_FOR_BLOCKS - 2);
    let fork = s.wallet.best_block();
    s.mine(vec![parent(1), bumped]);
    s.mine_empty(5);
    s.mine_on(fork, vec![foreign(3, &[], vec![])]);
    s.mine_empty(LENT_FOR_BLOCKS + 1);
    assert_eq!(s.wallet.balance().confirmed_sat, 100_000);
    assert!(s.pay(10_000).is_ok());
}

#[test]
fn a_repeated_claim_keeps_its_coin() {
    let s = Setup::with_coins(&[100_000]);
    let (source, commitment) = (bumper(&s.wallet), parent(1));
    for _ in 0..3 {
        let bumped = bump(&source, &commitment, 1, 1000).unwrap();
        s.wallet.saw_unconfirmed(&bumped);
        s.mine_empty(LENT_FOR_BLOCKS);
        assert!(s.pay(10_000).is_err());
    }
}

#[test]
fn ldk_gets_no_coin_that_is_set_aside() {
    let s = Setup::with_coins(&[100_000]);
    let child = s.child(&parent(1), 1, &[]).unwrap();
    assert!(s.wallet.list_confirmed_utxos().unwrap().is_empty());
    assert!(bump(&bumper(&s.wallet), &parent(2), 1, 1000).is_err());
    // taken between LDK's choice and the signature
    let psbt = Psbt::from_unsigned_tx(foreign(0, &coins_of(&child.tx), vec![])).unwrap();
    assert!(WalletSourceSync::sign_psbt(&*s.wallet, psbt.clone()).is_err());
    // in the mempool it is still ours
    s.wallet.saw_unconfirmed(&child.tx);
    s.wallet.release(&child.tx);
    assert!(s.wallet.list_confirmed_utxos().unwrap().is_empty());
    assert!(WalletSourceSync::sign_psbt(&*s.wallet, psbt).is_err());
}

#[test]
fn a_search_for_coins_that_fails_writes_nothing() {
    let s = Setup::with_coins(&[1_000, 2_000]);
    let step = parent(1);
    let old = s.child(&step, 1, &[]).unwrap();
    s.wallet.saw_unconfirmed(&old.tx);
    s.wallet.release(&old.tx);
    let before = s.written();
    for _ in 0..3 {
        let e = s.child(&step, 1_000, &coins_of(&old.tx)).unwrap_err();
        assert!(matches!(e, Error::InsufficientFunds { available_sat: 3_000, .. }), "{e}");
        s.wallet.saw_unconfirmed(&old.tx);
    }
    assert_eq!(s.written(), before);
    assert!(lock(&s.wallet.inner).reserved.is_empty());
}

#[test]
fn a_refused_replacement_leaves_the_old_child_in_its_place() {
    let s = Setup::with_coins(&[100_000]);
    let step = parent(1);
    let old = s.child(&step, 2, &[]).unwrap();
    s.wallet.saw_unconfirmed(&old.tx);
    s.wallet.release(&old.tx);
    // its only coin serves the replacement, and nobody else
    assert!(s.child(&step, 5, &[]).is_err());
    let new = s.child(&step, 5, &coins_of(&old.tx)).unwrap();
    assert_eq!(coins_of(&new.tx), coins_of(&old.tx));
    assert!(new.fee > old.fee);
    // bitcoind refuses
    s.wallet.release(&new.tx);
    assert!(s.pay(1_000).is_err() && s.child(&parent(2), 1, &[]).is_err());
    assert!(s.wallet.list_confirmed_utxos().unwrap().is_empty());
    assert_eq!(s.wallet.balance().unconfirmed_sat, old.tx.output[0].value.to_sat());
    // bitcoind accepts
    s.wallet.saw_unconfirmed(&new.tx);
    s.wallet.evicted(old.tx.compute_txid());
    assert_eq!(s.wallet.balance().unconfirmed_sat, new.tx.output[0].value.to_sat());
    assert!(s.pay(1_000).is_err());
}

#[test]
fn what_was_evicted_and_seen_in_the_same_second_is_seen() {
    let s = Setup::with_coins(&[100_000]);
    let child = s.child(&parent(1), 2, &[]).unwrap();
    s.wallet.release(&child.tx);
    for _ in 0..3 {
        s.wallet.saw_unconfirmed(&child.tx);
        assert_eq!(s.wallet.balance().confirmed_sat, 0);
        s.wallet.evicted(child.tx.compute_txid());
        assert_eq!(s.wallet.balance().confirmed_sat, 100_000);
    }
}

#[test]
fn a_child_that_lost_its_anchor_gives_the_coin_back() {
    let s = Setup::with_coins(&[100_000]);
    let step = parent(1);
    let child = s.child(&step, 2, &[]).unwrap();
    s.wallet.saw_unconfirmed(&child.tx);
    s.wallet.release(&child.tx);
    let anchor = OutPoint { txid: step.compute_txid(), vout: 0 };
    s.mine(vec![step, foreign(0, &[anchor], vec![])]);
    assert_eq!(s.wallet.balance().confirmed_sat, 100_000);
    assert!(s.pay(1_000).is_ok());
}

/// The child of a later step was replaced while the wallet did not count it, since the coin had gone to an earlier step:
/// when that one is carried by somebody else, the coin is free.
#[test]
fn a_child_that_was_replaced_does_not_come_back() {
    let s = Setup::with_coins(&[100_000]);
    let (earlier, later) = (parent(1), parent(2));
    let old = s.child(&later, 2, &[]).unwrap();
    s.wallet.saw_unconfirmed(&old.tx);
    s.wallet.release(&old.tx);
    let child = s.child(&earlier, 2, &coins_of(&old.tx)).unwrap();
    s.wallet.saw_unconfirmed(&child.tx);
    s.wallet.release(&child.tx);
    s.wallet.evicted(old.tx.compute_txid());
    let anchor = OutPoint { txid: earlier.compute_txid(), vout: 0 };
    s.mine(vec![earlier, foreign(0, &[anchor], vec![])]);
    assert_eq!(s.wallet.balance().confirmed_sat, 100_000);
    assert!(s.pay(1_000).is_ok());
}

#[test]
fn a_child_pays_its_feerate_and_beats_the_one_there() {
    let s = Setup::with_coins(&[5_000, 100_000]);
    let step = parent(1);
    let plain = s.child(&step, 3, &[]).unwrap();
    assert_eq!(plain.tx.version, Version(3));
    let vsize = u64::try_from(step.vsize() + plain.tx.vsize()).unwrap();
    let paid = plain.fee.to_sat();
    assert!(paid >= 3 * vsize && paid <= 3 * (vsize + 3), "{paid} sat for {vsize} vB");
    let inputs: u64 = 5_000;
    assert_eq!(plain.tx.output[0].value.to_sat(), inputs - paid, "the smaller coin suffices");
    s.wallet.release(&plain.tx);

    let beat = |fee: u64, vsize: u64| {
        let relay = FeeRate::from_sat_per_vb(1).unwrap();
        let rival = Some(Rival { fee: Amount::from_sat(fee), vsize, relay, of_parent: false });
        let feerate = FeeRate::from_sat_per_vb(1).unwrap();
        let request =
            ChildRequest { parent: &step, anchor_vout: 0, feerate, rival, reusable: &[], outputs: 1 };
        let child = s.wallet.child_for(request).unwrap();
        s.wallet.release(&child.tx);
        (child.fee.to_sat(), u64::try_from(child.tx.vsize()).unwrap())
    };
    // a large cheap one: its fee and our own relay
    let (fee, vsize) = beat(1_000, 1_000);
    assert!(fee >= 1_000 + vsize && fee <= 1_000 + vsize + 3, "{fee}");
    // a small one at a high feerate: a higher feerate
    let (fee, vsize) = beat(6_500, 65);
    assert!(fee > 100 * vsize, "{fee} sat for {vsize} vB");
}

#[test]
fn several_coins_pay_where_one_does_not_and_a_child_stays_small() {
    let s = Setup::with_coins(&[1_000; 20]);
    // 150 vB of parent and child and 58 for each further coin
    let child = s.child(&parent(1), 8, &[]).unwrap();
    assert!(child.tx.input.len() > 2);
    assert!(child.tx.vsize() <= 1_000);
    s.wallet.release(&child.tx);
    assert!(matches!(s.child(&parent(1), 16, &[]), Err(Error::InsufficientFunds { .. })));
}

#[test]
fn a_step_that_was_overtaken_gives_its_coin_back() {
    let s = Setup::with_coins(&[50_000]);
    let contested = OutPoint { txid: Txid::from_byte_array([9; 32]), vout: 0 };
    let anchor = || TxOut { value: Amount::ZERO, script_pubkey: ScriptBuf::from_bytes(P2A.to_vec()) };
    let overtaken = foreign(0, &[contested], vec![anchor()]);
    let winner = foreign(0, &[contested], vec![anchor(), anchor()]);
    let child = s.child(&overtaken, 3, &[]).unwrap();
    s.wallet.saw_unconfirmed(&child.tx);
    s.wallet.release(&child.tx);
    // As the publisher has it on disk.
    let stored = StoredChild {
        tx: StoredTx(child.tx.clone()),
        fee_sat: child.fee.to_sat(),
        sent_at: 1,
        sat_per_kwu: 750,
    };
    let record = serde_json::json!({ "child": stored, "seen": null });
    let txid = overtaken.compute_txid();
    records::put(&*s.store, "published", &txid.to_string(), 1, &record).unwrap();
    let load = || {
        let auth = RpcAuth::UserPass { user: "u".into(), pass: "p".into() };
        let bitcoind = Arc::new(Bitcoind::new(([127, 0, 0, 1], 1).into(), auth).unwrap());
        let fees = Arc::new(Fees::new(5, 500));
        Publisher::load(Arc::clone(&s.store), Arc::clone(&s.wallet), bitcoind, fees).unwrap()
    };
    let step = |tx: &Transaction| ExitStep {
        kind: TxKind::Static { level: 0 },
        tx: tx.clone(),
        txid: tx.compute_txid(),
        parent: contested,
        relative_delay: 0,
        lock_height: 0,
        anchor_vout: 0,
        weight: tx.weight().to_wu(),
    };
    let plan = ExitPlan {
        funding: contested,
        steps: vec![step(&winner)],
        leaf_start: 0,
        distributions: vec![step(&overtaken)],
        expiry_height: 1,
    };
    let mut publisher = load();
    let mut chain = KnownChain::default();
    publisher.drop_lost(&plan, &chain).unwrap();
    assert_eq!(publisher.paid_sat(&txid), child.fee.to_sat(), "nothing is lost yet");
    s.mine(vec![winner.clone()]);
    chain.confirm(&winner, 2);
    assert!(matches!(s.child(&parent(1), 3, &[]), Err(Error::InsufficientFunds { .. })));
    // The path that has won does not hold it, another one does.
    let followed = ExitPlan { distributions: Vec::new(), ..plan.clone() };
    publisher.drop_lost(&followed, &chain).unwrap();
    assert_eq!(publisher.paid_sat(&txid), child.fee.to_sat(), "a path without it says nothing of it");
    publisher.drop_all_lost(&[followed, plan.clone()], &chain).unwrap();
    assert_eq!(publisher.paid_sat(&txid), 0);
    assert!(load().child(&txid).is_none(), "over a restart, too");
    assert!(s.child(&parent(1), 3, &[]).is_ok(), "the only coin is free for the next step");
}

/// What spends an unconfirmed coin has no txid that stays: the coin's own transaction may be replaced.
#[test]
fn a_payment_spends_confirmed_coins_only() {
    let s = Setup::with_coins(&[1_000_000, 50_000]);
    let first = s.wallet.sign(s.pay(400_000).unwrap()).unwrap();
    // It is in the mempool and lingers: its txid, and what is made from its change, may never confirm.
    s.wallet.saw_unconfirmed(&first);
    let built = s.pay(300_000);
    assert!(matches!(built, Err(Error::InsufficientFunds { .. })), "an unconfirmed coin was spent");
    s.mine(vec![first]);
    assert!(s.pay(300_000).is_ok());
}
