//! A client that stops, at each step; and either side that keeps its companions to itself.

use anyhow::{Context, Result};
use bitcoin::OutPoint;
use integration::payments::Party;
use integration::superseded::OldPath;
use integration::wait;
use integration::world::{factory_channel, PATIENCE};
use serde_json::json;

use super::{newest_of_lsp, Kind, Scene, MOVER, OTHER};

/// The client stops at each step; each time it is named, payments go on, and a later rotation works. In the end the LSP
/// leaves it.
fn a_client_stops(kind: Kind) -> Result<()> {
    let mut scene = Scene::start("stops", kind, 2)?;
    scene.pays()?;
    // The inner layer ticks: there are outer partial signatures only.
    scene.world.client(MOVER)?.faults().set("on@client.advance.withholds_outer")?;
    scene.fails_at_the_client()?;
    scene.world.client(MOVER)?.faults().clear()?;
    scene.goes_on(true)?;
    // The outer one ticks.
    for step in ["withholds_partials", "withholds_outer"] {
        while scene.leaves()?.0.position % 2 == 0 {
            scene.rotates_on()?;
        }
        scene.world.client(MOVER)?.faults().set(&format!("on@client.advance.{step}"))?;
        scene.fails_at_the_client()?;
        scene.world.client(MOVER)?.faults().clear()?;
        scene.goes_on(step == "withholds_outer")?;
    }
    // It has the new state, and does not say so: complete is complete.
    scene.world.client(MOVER)?.faults().set("on@client.advance.withholds_persisted")?;
    let before = scene.leaves()?.0.position;
    scene.asks()?;
    wait::until_value(
        "both sides to have the new state",
        PATIENCE,
        || scene.leaves(),
        |(lsp, own)| lsp.position > before && own.position == lsp.position,
    )?;
    // A capacity is not locked before the LSP has heard of it.
    if kind != Kind::Plain {
        scene.world.client(MOVER)?.faults().clear()?;
        scene.world.client_mut(MOVER)?.stop()?;
        scene.world.client_mut(MOVER)?.start()?;
        integration::liquidity::wait_agreed(&scene.world, &scene.id, MOVER)?;
    }
    scene.pays()?;
    scene.rotates_on()?;
    scene.world.client(MOVER)?.faults().clear()?;
    scene.pays()?;
    let place = newest_of_lsp(&scene)?;
    scene.leaves_by(Party::Lsp, place)
}

#[test]
#[ignore = "long: make adversaries"]
fn a_client_stops_at_every_step() -> Result<()> {
    a_client_stops(Kind::Plain)
}

#[test]
#[ignore = "long: make adversaries"]
fn a_client_stops_at_every_step_of_a_sale() -> Result<()> {
    a_client_stops(Kind::Sale)
}

#[test]
#[ignore = "long: make adversaries"]
fn a_client_stops_at_every_step_of_giving_back() -> Result<()> {
    a_client_stops(Kind::GiveBack)
}

/// A side keeps its companions to itself while a leaf rotates. The rotation fails; when they come, all goes on.
fn companions_are_late(kind: Kind, late: Party) -> Result<()> {
    let mut scene = Scene::start("late", kind, 8)?;
    scene.pays()?;
    for round in 0..2 {
        println!("round {round}");
        let set = |list: &str| match late {
            Party::Lsp => scene.world.lsp.faults().set(list),
            _ => scene.world.client(MOVER)?.faults().set(list),
        };
        set("on@companions.late")?;
        scene.fails_at_the_client()?;
        set("")?;
        scene.goes_on(false)?;
    }
    let place = OldPath::of(&scene.world, MOVER)?.place()?;
    let by = if late == Party::Lsp { Party::Client(MOVER) } else { Party::Lsp };
    scene.leaves_by(by, place)
}

#[test]
#[ignore = "long: make adversaries"]
fn a_clients_companions_are_late() -> Result<()> {
    companions_are_late(Kind::Plain, Party::Client(MOVER))
}

#[test]
#[ignore = "long: make adversaries"]
fn an_lsps_companions_are_late() -> Result<()> {
    companions_are_late(Kind::Plain, Party::Lsp)
}

#[test]
#[ignore = "long: make adversaries"]
fn a_clients_companions_are_late_in_a_sale() -> Result<()> {
    companions_are_late(Kind::Sale, Party::Client(MOVER))
}

#[test]
#[ignore = "long: make adversaries"]
fn an_lsps_companions_are_late_in_a_sale() -> Result<()> {
    companions_are_late(Kind::Sale, Party::Lsp)
}

/// A leaf of two clients: one of them stops, the other's channel goes on, the leaf rotates later, and the other leaves it.
fn a_neighbour_stops(kind: Kind) -> Result<()> {
    let params = json!({ "clients_per_leaf": 2, "arity": [2], "layers": [[], [[8, 4, 8], [2, 4, 0]]] });
    let mut scene = Scene::of("neighbour", kind, 4, params)?;
    scene.rotates_on()?;
    scene.pays()?;
    for step in ["withholds_partials", "withholds_outer", "withholds_persisted"] {
        while scene.leaves()?.0.position % 2 == 0 {
            scene.rotates_on()?;
        }
        let neighbour = scene.world.client(OTHER)?;
        neighbour.faults().set(&format!("on@client.advance.{step}"))?;
        let named = neighbour.node_id().to_owned();
        if step == "withholds_persisted" {
            let before = scene.leaves()?.0.position;
            scene.asks()?;
            integration::rotate::wait_position(&scene.world, &scene.id, MOVER, before + 1)?;
        } else {
            scene.fails_at(&named)?;
            scene.world.client(OTHER)?.faults().clear()?;
        }
        scene.goes_on(step == "withholds_outer")?;
        scene.world.client(OTHER)?.faults().clear()?;
        scene.pays()?;
    }
    let channel =
        factory_channel(&scene.world.client(MOVER)?.channels()?, &scene.id, scene.world.lsp.node_id())?;
    let funding: OutPoint = channel.funding.context("funding")?.into();
    let place = OutPoint { vout: funding.vout, ..OldPath::of(&scene.world, MOVER)?.place()? };
    scene.leaves_by(Party::Client(MOVER), place)
}

#[test]
#[ignore = "long: make adversaries"]
fn a_neighbour_stops_in_a_rotation() -> Result<()> {
    a_neighbour_stops(Kind::Plain)
}

#[test]
#[ignore = "long: make adversaries"]
fn a_neighbour_stops_in_a_sale() -> Result<()> {
    a_neighbour_stops(Kind::Sale)
}
