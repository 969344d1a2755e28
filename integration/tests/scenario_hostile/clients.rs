//! Hostile clients: named with a reason that fits, left out, and the factory is made with the rest within its time.

use std::collections::BTreeMap;
use std::time::Instant;

use super::*;

/// A client, its switches, and what the LSP may say of it.
type Cheat<'a> = (usize, &'a str, &'a [&'a str]);

const GONE: &[&str] = &["connection lost"];
const LATE: &[&str] = &["no answer"];
const FLOOD: &str = "client.flood";

/// Makes a factory of these clients, of whom some cheat. The cheats are named and left out, with their money as it was;
/// the others are in it, and nothing of the attempts that failed stays.
fn round(world: &World, clients: &[usize], cheats: &[Cheat<'_>]) -> Result<Factory> {
    let before = Snapshot::take(world)?;
    let reserved = world.lsp.balance()?.onchain.reserved_sat;
    let channels = world.lsp.channels()?.len();
    for (client, switches, _) in cheats {
        let list: Vec<String> = switches.split(' ').map(|name| format!("on@{name}")).collect();
        world.client(*client)?.faults().set(&list.join(","))?;
    }
    let started = Instant::now();
    let id = begin(world, &request(world, clients)?)?;
    let guilty: Vec<_> = cheats.iter().filter(|(_, _, reasons)| !reasons.is_empty()).collect();
    world.wait_state(&id, "confirming", limit(guilty.len()))?;
    eprintln!("{cheats:?}: {:.1} s", started.elapsed().as_secs_f32());
    for (client, _, _) in cheats {
        world.client(*client)?.faults().clear()?;
    }
    let factory = activate(world, &id, PATIENCE)?;

    let named: BTreeMap<&str, &str> =
        factory.excluded.iter().map(|e| (e.node_id.as_str(), e.reason.as_str())).collect();
    assert_eq!(named.len(), guilty.len(), "left out: {named:?}");
    for (client, switches, reasons) in &guilty {
        let reason = named.get(world.client(*client)?.node_id()).copied().unwrap_or("nothing");
        let fits = reasons.iter().any(|wanted| reason.contains(wanted));
        assert!(
            fits,
            "client {client} with {switches}: left out for {reason:?}, expected one of {reasons:?}"
        );
    }
    let inside: Vec<usize> =
        clients.iter().copied().filter(|i| guilty.iter().all(|(cheat, _, _)| cheat != i)).collect();
    let mut members: Vec<&str> = factory.clients.iter().map(|m| m.node_id.as_str()).collect();
    members.sort_unstable();
    let mut expected: Vec<&str> =
        inside.iter().map(|i| Ok(world.client(*i)?.node_id())).collect::<Result<_>>()?;
    expected.sort_unstable();
    assert_eq!(members, expected);
    assert_eq!(factory.funding_sat, CAPACITY * inside.len() as u64);

    // No channel of an attempt that failed, on either side, and no coin that is still set aside for one.
    assert_eq!(world.lsp.channels()?.len(), channels + inside.len());
    for (client, _, _) in &guilty {
        let left = world.client(*client)?.channels()?;
        assert!(factory_channel(&left, &id, world.lsp.node_id()).is_err(), "client {client} lists {left:?}");
    }
    assert_eq!(world.lsp.balance()?.onchain.reserved_sat, reserved);
    // What the members got at birth, the LSP gave; nobody else holds another millisatoshi than before.
    let after = Snapshot::take(world)?;
    check_conserved(world, &before, &after)?;
    for (index, client) in world.clients.iter().enumerate() {
        let given = if inside.contains(&index) { CAPACITY / 2 * 1000 } else { 0 };
        assert_eq!(after.of(client.name())?, before.of(client.name())? + given, "client {index}");
    }
    pay_exactly(world, inside[0], inside[1])?;
    Ok(factory)
}

/// Three cheat, each in another way, one after the other is found out; three are merely a nuisance and stay in. Then two
/// work together while a third keeps silent.
#[test]
fn hostile_clients_are_named_and_the_others_get_their_factory() -> Result<()> {
    let world = World::start_with_lsp("hostile-clients", 8, &["--phase-timeout-secs", &PHASE.to_string()])?;
    world.wait_waiting(8)?;
    let all: Vec<usize> = (0..8).collect();
    let cheats: &[Cheat<'_>] = &[
        (2, "client.slow", &[]),
        (3, "client.duplicate", &[]),
        (4, "client.stale", &[]),
        (5, "client.bad_partial", &["partial signature 0 does not verify"]),
        (6, "client.truncated", GONE),
        (7, "client.bad_nonce", &["nonce 0 does not parse"]),
    ];
    round(&world, &all, cheats)?;
    // The errors of the two make up for each other at the root, whose signature is right; not below it.
    let cheats: &[Cheat<'_>] = &[
        (5, "client.partial_plus client.stale", &["does not verify"]),
        (6, "client.partial_minus client.duplicate", &["does not verify"]),
        (7, "client.withholds.partials", LATE),
    ];
    round(&world, &all, cheats)?;
    world.finish();
    Ok(())
}

/// Every other way.
#[test]
#[ignore = "long: make hostile"]
fn every_hostile_client_is_named() -> Result<()> {
    // Nobody is paused here, however often he fails.
    let flags = ["--phase-timeout-secs", &PHASE.to_string(), "--admission-strikes", "0"];
    let mut world = World::start_with_lsp("hostile-each", 6, &flags)?;
    world.wait_waiting(6)?;
    let all: Vec<usize> = (0..6).collect();
    let rounds: &[&[Cheat<'_>]] = &[
        &[
            (3, "client.withholds.accept", LATE),
            (4, "client.withholds.plan_ok", LATE),
            (5, "client.withholds.nonces", LATE),
        ],
        &[
            (3, "client.withholds.persisted", LATE),
            (4, "client.out_of_turn", &["was not due"]),
            (5, "client.garbage", GONE),
        ],
        &[
            // One key for two; nobody who plays by the rules signs with a key that is not its own.
            (3, "client.wrong_key", &["key is taken", "declined", "key"]),
            (4, "client.wrong_key", &["key is taken", "declined", "key"]),
            (5, "client.bad_script", &["payout script"]),
        ],
        &[
            (3, FLOOD, GONE),
            (4, "client.oversized", GONE),
            (5, "client.unreadable_partial", &["partial signature 0 does not parse"]),
        ],
        &[
            (3, "client.ahead", &["was not due"]),
            (4, "client.short_list", &["entries in a list"]),
            (5, "client.slow client.stale", &[]),
        ],
        // All at once, in the same step and in the same message.
        &[
            (3, "client.bad_partial", &["does not verify"]),
            (4, "client.bad_partial", &["does not verify"]),
            (5, "client.bad_partial", &["does not verify"]),
        ],
    ];
    for cheats in rounds {
        round(&world, &all, cheats)?;
        // Who is busy sending reads nothing, and notices only by the pings that its connection is gone: up to a minute.
        for (client, _, _) in cheats.iter().filter(|(_, switches, _)| *switches == FLOOD) {
            world.client_mut(*client)?.kill()?;
            world.client_mut(*client)?.start()?;
        }
        world.wait_waiting(all.len())?;
    }
    world.finish();
    Ok(())
}
