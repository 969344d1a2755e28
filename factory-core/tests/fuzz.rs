//! Arbitrary inputs in arbitrary order: the machines never panic, and money rules hold whatever arrives.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use bitcoin::{OutPoint, ScriptBuf};
use bolt_tlv::payload::*;
use common::*;
use factory_core::ceremony::{ClientAction, ClientInput, LspAction, LspInput, ParamsChoice, Phase};
use factory_core::close::{
    ClientClose, ClientCloseConfig, ClientCloseInput, LspClose, LspCloseConfig, LspCloseInput,
};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::SeedableRng;

const INSTANCE: [u8; 32] = [7; 32];

/// Messages with the right instance and plausible or silly content.
fn payload() -> impl Strategy<Value = Payload> {
    let nonce = prop_oneof![Just([0u8; 66]), Just([2u8; 66]), any::<u8>().prop_map(|b| [b; 66])];
    let nonces = prop::collection::vec(nonce, 0..8);
    let word = prop_oneof![Just([0u8; 32]), Just([0xff; 32]), any::<u8>().prop_map(|b| [b; 32])];
    let partials = prop::collection::vec(word, 0..8);
    let signatures = prop::collection::vec(any::<u8>().prop_map(|b| [b; 64]), 0..8);
    (0u16..30, 0u16..3, any::<u64>(), nonces, partials, signatures).prop_map(
        |(number, attempt, sat, nonces, partials, signatures)| {
            let instance_id = INSTANCE;
            let text = "x".to_owned();
            let i = usize::try_from(sat % 5).unwrap();
            let tx = bitcoin::Transaction {
                version: bitcoin::transaction::Version(2),
                lock_time: bitcoin::absolute::LockTime::ZERO,
                input: vec![],
                output: vec![],
            };
            match number {
                1 => Join { version: 1, min_capacity_sat: sat, max_capacity_sat: 0 }.into(),
                2 => Invite { instance_id, attempt }.into(),
                3 => {
                    Accept { instance_id, attempt, factory_key: key("factory", i), payout_script: payout(i) }
                        .into()
                }
                4 => Decline { instance_id, attempt, code: 1, text }.into(),
                5 => Plan {
                    instance_id,
                    attempt,
                    network_magic: bitcoin::Network::Regtest.magic().to_bytes(),
                    birth_height: u32::try_from(sat % 2000).unwrap(),
                    expiry_height: u32::try_from(sat >> 32).unwrap(),
                    params: PlanParams {
                        clients_per_leaf: u16::try_from(sat % 4).unwrap(),
                        arity: vec![u16::try_from(sat % 9).unwrap(); i],
                        layers: vec![vec![DwLayer { states: 2, step: 40, base: 0 }]; i + 1],
                        active: u32::MAX,
                        dying: u32::MAX,
                        margin: 1,
                        confirm_blocks: 6,
                        reorg_margin: 6,
                        to_self_delay: 144,
                        min_depth: 1,
                    },
                    keys: (0..i).map(|i| key("factory", i)).collect(),
                    index: u32::try_from(i).unwrap(),
                    leaf: vec![],
                    stock_sat: sat,
                    stock_script: ScriptBuf::new(),
                }
                .into(),
                6 => PlanOk { instance_id, attempt }.into(),
                7 => Path {
                    instance_id,
                    attempt,
                    funding_outpoint: OutPoint::null(),
                    funding_sat: sat,
                    levels: vec![vec![(sat, payout(i)); i]; i],
                    channel_scripts: vec![payout(i); i],
                }
                .into(),
                8 => Nonces { instance_id, attempt, nonces }.into(),
                9 => AggNonces { instance_id, attempt, nonces }.into(),
                10 => Partials { instance_id, attempt, partials }.into(),
                11 => Signed { instance_id, attempt, signatures }.into(),
                12 => Persisted { instance_id, attempt }.into(),
                13 => Funded { instance_id, attempt, transaction: tx }.into(),
                14 => Abort { instance_id, attempt, code: 1, text, culprit: None }.into(),
                20 => CloseAsk { instance_id }.into(),
                21 => ClosePropose { instance_id, attempt }.into(),
                22 => CloseConsent { instance_id, attempt, payout_script: payout(i) }.into(),
                23 => CloseRefuse { instance_id, attempt, code: 1, text }.into(),
                24 => CloseTx { instance_id, attempt, transaction: tx, keys: vec![key("lsp", 0); i] }.into(),
                25 => CloseNonce { instance_id, attempt, nonce: [2; 66] }.into(),
                26 => CloseAggNonce { instance_id, attempt, nonce: [0; 66] }.into(),
                27 => ClosePartial { instance_id, attempt, partial: [1; 32] }.into(),
                28 => CloseDone { instance_id, attempt, signature: [1; 64] }.into(),
                29 => CloseAbort { instance_id, attempt, code: 1, text }.into(),
                n => Payload::UnknownOdd(n),
            }
        },
    )
}

#[derive(Clone, Debug)]
enum Noise {
    /// Let so many honest events happen.
    Honest(usize),
    ToLsp(usize, Payload),
    ToClient(usize, Payload),
    Gone(usize),
    Disconnected(usize),
    Timeout(u64),
    Held(usize, u8),
    RecordPersisted(u16),
    ClientPersisted(usize, u16),
    Built(u64),
}

fn noise() -> impl Strategy<Value = Noise> {
    prop_oneof![
        4 => (1usize..12).prop_map(Noise::Honest),
        4 => (0usize..4, payload()).prop_map(|(i, p)| Noise::ToLsp(i, p)),
        4 => (0usize..4, payload()).prop_map(|(i, p)| Noise::ToClient(i, p)),
        1 => (0usize..4).prop_map(Noise::Gone),
        1 => (0usize..4).prop_map(Noise::Disconnected),
        1 => (0u64..12).prop_map(Noise::Timeout),
        1 => (0usize..4, any::<u8>()).prop_map(|(i, b)| Noise::Held(i, b)),
        1 => (0u16..3).prop_map(Noise::RecordPersisted),
        1 => (0usize..4, 0u16..3).prop_map(|(i, a)| Noise::ClientPersisted(i, a)),
        1 => any::<u64>().prop_map(Noise::Built),
    ]
}

/// How often each client sent partial signatures, by attempt: never twice.
fn partials_once(world: &World) -> bool {
    let mut seen = std::collections::BTreeSet::new();
    world.client_actions.iter().all(|(i, a)| match a {
        ClientAction::Send(Payload::Partials(m)) => seen.insert((*i, m.attempt)),
        _ => true,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Honest events and noise mixed. The world's own assertions include that nothing is broadcast before every
    /// member has stored a complete exit.
    #[test]
    fn ceremonies_with_noise(noise in prop::collection::vec(noise(), 0..60)) {
        let mut world = World::new(config(ParamsChoice::Reshape(regtest(4, 1)), 4, 0));
        world.run_until(|_| true);
        for n in noise {
            match n {
                Noise::Honest(count) => {
                    for _ in 0..count {
                        let Some(event) = world.queue.pop_front() else { break };
                        world.step(event);
                    }
                },
                Noise::ToLsp(i, payload) => world.step(Event::Lsp(LspInput::Message { client: node_id(i), payload })),
                Noise::ToClient(i, payload) => world.step(Event::Client(i, ClientInput::Message(payload))),
                Noise::Gone(i) => world.step(Event::Lsp(LspInput::ClientGone { client: node_id(i) })),
                Noise::Disconnected(i) => world.step(Event::Client(i, ClientInput::Disconnected)),
                Noise::Timeout(id) => world.step(Event::Lsp(LspInput::Timeout { id })),
                Noise::Held(i, b) => {
                    let held = LspInput::CommitmentHeld { client: node_id(i), temporary_channel_id: [b; 32] };
                    world.step(Event::Lsp(held));
                },
                Noise::RecordPersisted(attempt) => {
                    // Only what was asked for can have been stored.
                    let attempt = attempt.saturating_add(world.lsp.attempt()).saturating_add(1);
                    world.step(Event::Lsp(LspInput::RecordPersisted { attempt }));
                },
                Noise::ClientPersisted(i, attempt) => {
                    let attempt = attempt.saturating_add(world.clients[i].attempt()).saturating_add(1);
                    world.step(Event::Client(i, ClientInput::Persisted { attempt }));
                },
                Noise::Built(value_sat) => {
                    let script = payout(1);
                    let outpoint = OutPoint::null();
                    world.step(Event::Lsp(LspInput::FundingBuilt { outpoint, script, value_sat }));
                },
            }
        }
        world.run();
        prop_assert!(partials_once(&world));
        prop_assert!(world.broadcast.len() <= 1);
        match world.lsp.phase() {
            Phase::Done => prop_assert_eq!(world.broadcast.len(), 1),
            Phase::Failed => {
                prop_assert!(world.broadcast.is_empty() && world.open.is_empty() && world.built.is_none());
                let failed = matches!(world.actions.last(), Some(LspAction::Failed { .. }));
                prop_assert!(failed);
            },
            phase => prop_assert!(false, "still in {:?}", phase),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn closes_with_noise(noise in prop::collection::vec((0usize..3, payload(), 0u8..8), 0..80)) {
        let (record, clients) = factory();
        let config = LspCloseConfig {
            record,
            advances: Vec::new(),
            secret_key: secret("lsp", 0),
            lsp_script: payout(500),
            feerate_sat_per_kwu: 1000,
            attempt: 0,
            consent_secs: 1,
            signing_secs: 1,
        };
        let (mut lsp, _) = LspClose::new(config, &mut StdRng::seed_from_u64(3)).unwrap();
        let mut machines: Vec<_> = clients
            .into_iter()
            .enumerate()
            .map(|(i, record)| {
                let config = ClientCloseConfig {
                    record,
                    secret_key: secret("factory", i),
                    payout_script: payout(i),
                    allow: true,
                };
                ClientClose::new(config, &mut StdRng::seed_from_u64(4)).unwrap()
            })
            .collect();
        for (i, payload, what) in noise {
            let client = node_id(i);
            let (to_lsp, to_client) = match what {
                0 => (LspCloseInput::Retry, ClientCloseInput::PendingPayments(i == 0)),
                1 => (
                    LspCloseInput::ChannelShut { client, client_msat: 5_000_000, lsp_msat: capacity(i) * 1000 - 5_000_000 },
                    ClientCloseInput::ChannelShut { own_msat: 5_000_000 },
                ),
                2 => (LspCloseInput::RecordPersisted, ClientCloseInput::Persisted { attempt: 1 }),
                3 => (
                    LspCloseInput::ChannelShut { client, client_msat: u64::MAX, lsp_msat: 1 },
                    ClientCloseInput::Persisted { attempt: 0 },
                ),
                4 => (LspCloseInput::Timeout { id: 3 }, ClientCloseInput::Message(payload)),
                _ => (
                    LspCloseInput::Message { client, payload: payload.clone() },
                    ClientCloseInput::Message(payload),
                ),
            };
            lsp.handle(to_lsp).unwrap();
            machines[i].handle(to_client).unwrap();
        }
    }
}

/// One factory for all cases.
fn factory() -> (factory_core::record::LspFactoryRecord, Vec<factory_core::record::ClientFactoryRecord>) {
    static MADE: std::sync::OnceLock<(
        factory_core::record::LspFactoryRecord,
        Vec<factory_core::record::ClientFactoryRecord>,
    )> = std::sync::OnceLock::new();
    MADE.get_or_init(|| {
        let mut world = World::new(config(ParamsChoice::Reshape(regtest(3, 1)), 3, 0));
        world.run();
        (world.lsp_record.unwrap(), world.records.into_values().collect())
    })
    .clone()
}
