//! A hostile LSP: for each check of a client a message that breaks just that. The client refuses with the check's code,
//! says why, and is none the worse: its coin, its other factory and payments through it are as they were.

use integration::ledger::wait_at_rest;

use super::*;

/// Clients of the ceremonies in which the LSP cheats.
const VICTIMS: [usize; 3] = [0, 1, 2];
/// A client that spoils the first attempt, where the LSP cheats in the second.
const SPOILER: usize = 3;

/// What becomes of one ceremony.
struct Case {
    /// The LSP's switch.
    switch: &'static str,
    /// The code of a client that refuses; none if the clients have nothing to refuse, and are left out.
    code: Option<&'static str>,
    /// The LSP cheats in the second attempt only.
    second: bool,
}

const fn refused(switch: &'static str, code: &'static str) -> Case {
    Case { switch, code: Some(code), second: false }
}

const fn second(switch: &'static str, code: &'static str) -> Case {
    Case { switch, code: Some(code), second: true }
}

const fn harmless(switch: &'static str) -> Case {
    Case { switch, code: None, second: false }
}

const CASES: &[Case] = &[
    refused("lsp.plan.network", "Network"),
    refused("lsp.plan.params", "Params"),
    refused("lsp.plan.lifetime", "Lifetime"),
    refused("lsp.plan.birth_height", "BirthHeight"),
    refused("lsp.plan.capacity", "Capacity"),
    refused("lsp.plan.push", "Push"),
    refused("lsp.plan.own_key", "OwnKey"),
    refused("lsp.plan.duplicate_key", "DuplicateKey"),
    refused("lsp.plan.payout_script", "PayoutScript"),
    refused("lsp.plan.leaf_members", "LeafMembers"),
    refused("lsp.plan.stock", "Stock"),
    refused("lsp.out_of_turn", "Unexpected"),
    refused("lsp.path.levels", "PathShape"),
    refused("lsp.path.conservation", "Conservation"),
    refused("lsp.path.child_key", "ChildKey"),
    refused("lsp.path.sibling", "SiblingOutput"),
    refused("lsp.path.funding_value", "FundingValue"),
    refused("lsp.path.channel_script", "ChannelScript"),
    refused("lsp.path.outpoint", "ChannelOutpoint"),
    refused("lsp.path.sibling_amount", "ChannelOutpoint"),
    refused("lsp.two_trees", "ChannelOutpoint"),
    refused("lsp.nonces.short", "ListLength"),
    refused("lsp.nonces.garbage", "AggregateNonce"),
    refused("lsp.nonces.twice", "NonceReuse"),
    refused("lsp.signed.path", "Signature"),
    refused("lsp.signed.distribution", "Signature"),
    second("lsp.plan.lsp_key", "LspKey"),
    second("lsp.plan.channel_id_again", "ChannelId"),
    second("lsp.path.funding_again", "FundingReused"),
    // Here a client signs, but for something else than the others: no signature comes of it.
    harmless("lsp.plan.substitute_key"),
    harmless("lsp.nonces.swapped"),
    // It refuses LDK's channel.
    harmless("lsp.channel.capacity"),
    harmless("lsp.signed.withheld"),
];

/// Runs one ceremony with a hostile LSP to its end.
fn cheated(world: &World, case: &Case) -> Result<()> {
    let before = Snapshot::take(world)?;
    let reserved = world.lsp.balance()?.onchain.reserved_sat;
    let channels = world.lsp.channels()?.len();
    let mut chosen = VICTIMS.to_vec();
    if case.second {
        chosen.push(SPOILER);
        world.client(SPOILER)?.faults().set("on@client.short_list")?;
    }
    world.lsp.faults().set(&format!("on@{}", case.switch))?;
    let id = begin(world, &request(world, &chosen)?)?;
    wait::until_value(
        &format!("the factory to fail with {}", case.switch),
        limit(chosen.len()),
        || world.lsp.factory(&id),
        |factory| factory.state == "failed",
    )?;

    // Every victim's ceremony ends; who refused said which check it was.
    let mut reasons = Vec::new();
    for index in VICTIMS {
        let client = world.client(index)?;
        let (refused, reason) = wait::until("the client to give up", PATIENCE, || {
            for (kind, refused) in [("factory_refused", true), ("factory_aborted", false)] {
                let ours = |e: &integration::types::Event| e.data["instance_id"] == id.as_str();
                if let Some(event) = client.events(kind)?.into_iter().find(ours) {
                    return Ok(Seen::Done((refused, event.data["reason"].to_string())));
                }
            }
            Ok(Seen::not_yet("no event"))
        })?;
        if refused {
            reasons.push(reason);
        }
    }
    match case.code {
        Some(code) => {
            assert!(!reasons.is_empty(), "{}: nobody refused", case.switch);
            for reason in &reasons {
                assert!(reason.starts_with(&format!("\"{code}: ")), "{}: {reason}", case.switch);
            }
        }
        None => assert!(reasons.is_empty(), "{}: {reasons:?}", case.switch),
    }
    world.lsp.faults().clear()?;
    world.client(SPOILER)?.faults().clear()?;
    // Nothing is lost, locked or left behind, on either side.
    wait_for(world, &before)?;
    assert_eq!(world.lsp.balance()?.onchain.reserved_sat, reserved, "{}", case.switch);
    wait::until_value(
        "no channel of the attempt",
        PATIENCE,
        || Ok((world.lsp.channels()?.len(), world.bitcoind.mempool()?)),
        |(count, mempool)| *count == channels && mempool.is_empty(),
    )?;
    for index in VICTIMS {
        assert_eq!(world.client(index)?.channels()?.len(), 1, "{}: client {index}", case.switch);
    }
    Ok(())
}

/// A world with a factory of all clients, in which a ceremony of three fails with the first that leaves.
fn world(name: &str) -> Result<(World, Factory)> {
    // Its clients are blamed for what it does itself.
    let phase = PHASE.to_string();
    let flags = ["--phase-timeout-secs", &phase, "--min-clients", "3", "--admission-strikes", "0"];
    let world = World::start_with_lsp(name, 4, &flags)?;
    let factory = world.create_factory(&request(&world, &[0, 1, 2, 3])?)?;
    Ok((world, factory))
}

#[test]
fn clients_refuse_what_a_hostile_lsp_sends() -> Result<()> {
    let (world, factory) = world("hostile-lsp")?;
    for (number, case) in CASES.iter().enumerate() {
        let started = std::time::Instant::now();
        cheated(&world, case)?;
        eprintln!("{}: {:.1} s", case.switch, started.elapsed().as_secs_f32());
        // Payments through the other factory go on.
        if number % 8 == 0 {
            pay_exactly(&world, number % 3, SPOILER)?;
        }
    }
    // As if nothing had been.
    world.wait_usable(&factory)?;
    let id = begin(&world, &request(&world, &VICTIMS)?)?;
    let next = activate(&world, &id, limit(0))?;
    assert!(next.excluded.is_empty(), "{:?}", next.excluded);
    pay_exactly(&world, 0, 2)?;
    pay_exactly(&world, SPOILER, 1)?;
    world.finish();
    Ok(())
}

/// The LSP signs its funding transaction and shows it to nobody, or shows another one: the clients have a path that leads
/// nowhere, no payment passes over it, and after 144 blocks they give it up and are free for another factory.
#[test]
#[ignore = "long: make hostile"]
fn a_factory_that_is_never_funded_costs_its_clients_nothing() -> Result<()> {
    let (world, other) = world("hostile-unfunded")?;
    for switch in ["lsp.never_funds", "lsp.other_funding"] {
        world.lsp.faults().set(&format!("on@{switch}"))?;
        let id = begin(&world, &request(&world, &VICTIMS)?)?;
        world.wait_state(&id, "confirming", limit(0))?;
        for blocks in [1, 6] {
            world.mine(blocks)?;
            assert!(world.bitcoind.mempool()?.is_empty(), "{switch}: the funding transaction is out");
        }
        for index in VICTIMS {
            let client = world.client(index)?;
            let channel = factory_channel(&client.channels()?, &id, world.lsp.node_id())?;
            assert!(!channel.usable && !channel.ready, "{switch}: {channel:?}");
        }
        // Through the other factory payments go on.
        pay(&world, Order { from: Party::Client(0), to: Party::Client(1), amount_msat: 1_000 })?;
        wait_at_rest(&world)?;
        let mut held = Vec::new();
        for index in VICTIMS {
            let channels = world.client(index)?.channels()?;
            held.push(factory_channel(&channels, &other.instance_id, world.lsp.node_id())?.local_msat);
        }
        world.mine(145)?;
        for index in VICTIMS {
            let client = world.client(index)?;
            wait::until_value(
                "the client to give the factory up",
                PATIENCE,
                || client.factory(&id),
                |factory| factory.state == "failed",
            )?;
            // Its coin, and its channel in the other factory.
            wait::until_value(
                "the client to hold what it held",
                PATIENCE,
                || client.balance(),
                |b| {
                    b.onchain.confirmed_sat == integration::world::CLIENT_COIN
                        && b.lightning.local_msat == held[index]
                },
            )?;
        }
    }
    world.finish();
    Ok(())
}
