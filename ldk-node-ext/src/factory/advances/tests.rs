use factory_core::exit::KnownChain;

use super::*;
use crate::factory::stored::State;
use crate::fuzzing::tests::{advanced, Advanced};
use crate::ldk::channel_id;

/// The leaf that has advanced, by its first client, and another one.
const FIRST: u32 = 2;
const OTHER: u32 = 0;

fn stored(signed: Signed) -> (tempfile::TempDir, Store, Factory) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("db")).unwrap();
    let factory = Factory::new(signed, State::new([1; 32], Vec::new()));
    factory.store_all(&store).unwrap();
    (dir, store, factory)
}

fn read(store: &Store) -> Result<Factory, Error> {
    Factory::load_all(store).map(|all| all.into_iter().next().unwrap())
}

#[test]
fn an_advance_is_kept_beside_the_creation() {
    let Advanced { lsp, burnt, advance, .. } = advanced();
    let (_dir, store, mut factory) = stored(Signed::Lsp(Box::new(lsp)));
    let (channels, before) = (factory.channels().unwrap(), factory.watched_txids());
    let channel = factory.leaves().into_iter().find(|l| l.first == FIRST).unwrap().channels[0].0;
    assert_eq!((factory.places(&channel), factory.newest_place(&channel)), (vec![channel], channel));

    factory.mark(&store, |marks| marks.attempts = 1).unwrap();
    factory.mark(&store, |marks| marks.burnt.push(burnt.clone())).unwrap();
    let again = read(&store).unwrap();
    assert_eq!((again.advances.marks.attempts, &again.advances.marks.burnt), (1, &vec![burnt]));
    assert_eq!((again.position(FIRST).unwrap(), again.superseded(FIRST)), (0, 0));

    factory.add_advance(&store, advance.clone()).unwrap();
    let again = read(&store).unwrap();
    assert_eq!(again.advances.lsp, vec![advance]);
    assert_eq!((again.position(FIRST).unwrap(), again.superseded(FIRST)), (1, 1));
    assert_eq!((again.position(OTHER).unwrap(), again.superseded(OTHER)), (0, 0));
    // A channel keeps its name, and has another place.
    assert_eq!(again.channels().unwrap(), channels);
    let place = again.newest_place(&channel);
    assert_ne!(place, channel);
    assert_eq!(again.places(&channel), vec![channel, place]);
    assert_eq!(again.leaf_path(FIRST).unwrap().path.last().unwrap().txid(), place.txid);
    assert_eq!(again.other_paths(FIRST).unwrap().len(), 1);
    assert!(again.other_paths(OTHER).unwrap().is_empty());
    assert!(again.creation_of(&channel).unwrap().input.iter().all(|input| !input.witness.is_empty()));
    // Nothing that was watched is forgotten.
    let after = again.watched_txids();
    assert!(before.iter().all(|txid| after.contains(txid)) && after.contains(&place.txid));
    assert!(again.watched_outpoints().unwrap().contains(&place));
}

#[test]
fn a_client_goes_by_what_is_complete_and_watches_what_is_pending() {
    let Advanced { client, pending, newest, .. } = advanced();
    let channel = client.channel().unwrap().outpoint;
    let (_dir, store, mut factory) = stored(Signed::Client(Box::new(client)));
    factory.mark(&store, |marks| marks.client = Some(pending)).unwrap();
    let again = read(&store).unwrap();
    let place = newest.channel().unwrap().outpoint;
    assert_eq!(again.places(&channel), vec![channel, place]);
    assert_eq!((again.newest_place(&channel), again.position(FIRST).unwrap()), (channel, 0));
    assert!(again.watched_outpoints().unwrap().contains(&place));

    factory.add_record(&store, 1, newest.clone()).unwrap();
    let again = read(&store).unwrap();
    assert_eq!(again.newest_record(), Some(&newest));
    assert_eq!((again.newest_place(&channel), again.position(FIRST).unwrap()), (place, 1));
    assert_eq!(again.channel_ids().unwrap(), vec![channel_id(channel)]);
}

#[test]
fn a_leaf_rotates_on_until_a_clock_of_its_path_runs() {
    let Advanced { lsp, advance, .. } = advanced();
    let (_dir, store, mut factory) = stored(Signed::Lsp(Box::new(lsp)));
    let old = factory.leaf_path(FIRST).unwrap();
    factory.add_advance(&store, advance).unwrap();
    let (newest, other) = (factory.leaf_path(FIRST).unwrap(), factory.leaf_path(OTHER).unwrap());
    let mut chain = KnownChain::default();
    assert_eq!(factory.begun(FIRST, &chain).unwrap(), None);
    // The static root, and all that is below it beside the leaf.
    for tx in &other.path {
        chain.confirm(&tx.tx, 200);
    }
    assert_eq!(factory.begun(FIRST, &chain).unwrap(), None);
    assert!(factory.begun(OTHER, &chain).unwrap().is_some());
    let kickoff = &newest.path[1];
    chain.confirm(&kickoff.tx, 201);
    assert_eq!(factory.begun(FIRST, &chain).unwrap(), kickoff.parent());
    // What is not of the newest path: a state before it, a distribution, a close.
    for tx in [&old.path[2], &newest.distributions[0]] {
        let mut chain = KnownChain::default();
        chain.confirm(&tx.tx, 201);
        assert_eq!(factory.begun(FIRST, &chain).unwrap(), tx.parent());
    }
    let mut close = newest.path[0].tx.clone();
    close.output.pop();
    let mut chain = KnownChain::default();
    chain.confirm(&close, 201);
    assert_eq!(factory.begun(FIRST, &chain).unwrap(), Some(factory.funding().outpoint));
}

#[test]
fn a_damaged_advance_is_no_way_out() {
    let Advanced { lsp, mut advance, .. } = advanced();
    let (_dir, store, factory) = stored(Signed::Lsp(Box::new(lsp)));
    let id = factory.id();
    // A signature of another transaction.
    let top = advance.nodes.first_mut().unwrap();
    top.txs.swap(0, 1);
    records::put(&store, ADVANCES, &key(&id, 1), VERSION, &advance).unwrap();
    let error = read(&store).unwrap_err();
    assert!(matches!(&error, Error::Corrupt { key, .. } if key.contains(&hex::encode(id))), "{error}");

    let (_dir, store, _factory) = stored(factory.signed);
    records::put(&store, ADVANCES, &key(&[9; 32], 1), VERSION, &advance).unwrap();
    let error = read(&store).unwrap_err().to_string();
    assert!(error.contains(&hex::encode([9; 32])) && error.contains("not there"), "{error}");
}
