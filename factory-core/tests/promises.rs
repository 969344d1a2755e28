//! What a party says is true when it says it: a message waits for the disk, the funding transaction for everybody.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::cell::RefCell;
use std::rc::Rc;

use bolt_tlv::payload::Payload;
use common::*;
use factory_core::ceremony::{ClientAction, ClientInput, LspAction, LspInput, ParamsChoice, Phase};
use factory_core::musig::{AggKey, NonceBytes, SecretSession};
use rand::rngs::StdRng;
use rand::SeedableRng;

const CLIENTS: usize = 3;

fn world() -> World {
    World::new(config(ParamsChoice::Reshape(regtest(CLIENTS, 1)), CLIENTS, 0))
}

/// Runs until nothing is left to do. Events that `held` picks do not happen yet; they are returned.
fn run_without(world: &mut World, held: impl Fn(&Event) -> bool) -> Vec<Event> {
    let mut kept = Vec::new();
    world.run_until(|_| true);
    while let Some(event) = world.queue.pop_front() {
        if held(&event) {
            kept.push(event);
        } else {
            world.step(event);
        }
    }
    kept
}

/// Then the events happen, and the factory is made.
fn go_on(mut world: World, kept: Vec<Event>) {
    assert!(!kept.is_empty());
    assert!(world.broadcast.is_empty());
    world.queue.extend(kept);
    world.run();
    world.assert_made(&[0, 1, 2]);
}

/// One client's disk is slow: it does not say that its exit is stored, and there is no funding transaction.
#[test]
fn persisted_means_on_disk() {
    let mut world = world();
    let kept = run_without(&mut world, |e| matches!(e, Event::Client(1, ClientInput::Persisted { .. })));
    let said = |i: usize| {
        let says = |a: &ClientAction| matches!(a, ClientAction::Send(Payload::Persisted(_)));
        world.client_actions.iter().any(|(client, a)| *client == i && says(a))
    };
    assert!(said(0) && said(2));
    assert!(!said(1), "said before it was on disk");
    assert!(world.broadcast.is_empty(), "funding broadcast before a client had stored its exit");
    assert_eq!(world.lsp.phase(), Phase::Persisting);
    go_on(world, kept);
}

/// The provider's disk is slow: nobody gets a signature.
#[test]
fn signatures_wait_for_the_record() {
    let mut world = world();
    let kept = run_without(&mut world, |e| matches!(e, Event::Lsp(LspInput::RecordPersisted { .. })));
    let signed = |a: &LspAction| matches!(a, LspAction::Send { payload: Payload::Signed(_), .. });
    assert!(!world.actions.iter().any(signed), "sent before the tree was on disk");
    assert_eq!(world.lsp.phase(), Phase::Recording);
    go_on(world, kept);
}

/// Everybody has stored its exit, but one client's signature on the provider's first commitment is missing: without it
/// the provider's money in that channel would be the client's to keep.
#[test]
fn the_funding_waits_for_the_first_commitments() {
    let mut world = world();
    let late = node_id(2);
    let kept = run_without(
        &mut world,
        |e| matches!(e, Event::Lsp(LspInput::CommitmentHeld { client, .. }) if *client == late),
    );
    assert_eq!(world.records.len(), CLIENTS);
    assert!(world.broadcast.is_empty(), "funding broadcast without a first commitment");
    assert_eq!(world.lsp.phase(), Phase::Persisting);
    go_on(world, kept);
}

/// The clients' nonces are the same in two attempts (the test replaces them), so an aggregate of the provider and one
/// client is the same twice only if the provider's nonce is.
#[test]
fn the_provider_draws_fresh_nonces() {
    let fixed: Vec<Vec<NonceBytes>> = (0..CLIENTS).map(nonces_of).collect();
    type OfAnAttempt = (u16, Vec<NonceBytes>);
    let seen: Rc<RefCell<Vec<OfAnAttempt>>> = Rc::default();
    let told = seen.clone();
    let mut world = world();
    world.to_lsp = Box::new(move |i, p| match p {
        Payload::Nonces(mut m) => {
            let count = m.nonces.len();
            m.nonces = fixed[i].iter().copied().cycle().take(count).collect();
            vec![m.into()]
        }
        // The last client is left out, which makes a second attempt.
        Payload::Partials(_) if i == CLIENTS - 1 => vec![],
        p => vec![p],
    });
    world.to_client = Box::new(move |i, p| {
        if let (0, Payload::AggNonces(m)) = (i, &p) {
            told.borrow_mut().push((m.attempt, m.nonces.clone()));
        }
        vec![p]
    });
    world.run();
    let seen = seen.borrow();
    let [(0, first), (1, second)] = seen.as_slice() else { panic!("not two attempts: {seen:?}") };
    // The first session is the root's, of different signers; the last is the leaf's, of the provider and this client.
    assert_ne!(first.last(), second.last(), "the provider's nonce was used twice");
    let mut all: Vec<_> = first.iter().chain(second).collect();
    let count = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), count, "the provider's nonce was used twice");
}

/// A valid nonce, the same each time.
fn nonces_of(client: usize) -> Vec<NonceBytes> {
    let key = AggKey::new(&[key("factory", client), key("other", 0)]).unwrap();
    let mut rng = StdRng::seed_from_u64(u64::try_from(client).unwrap());
    let session = SecretSession::new(&secret("factory", client), &key, [1; 32], &mut rng).unwrap();
    vec![session.public_nonce()]
}
