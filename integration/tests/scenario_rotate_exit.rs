//! Exits after rotations, with payments on the channel in both directions: the commitment goes over the newest state, and
//! what was signed for the first one holds there too.

use anyhow::Result;
use integration::htlc_exit::{play, Exiter, Plan};

fn leaves(name: &'static str, exiter: Exiter, rotations: u64) -> Result<()> {
    play(Plan { name, exiter, small: true, asked: true, rotations, slept: false })
}

#[test]
fn the_client_leaves_after_three() -> Result<()> {
    leaves("rotate-client-3", Exiter::Client, 3)
}

#[test]
fn the_lsp_leaves_after_three() -> Result<()> {
    leaves("rotate-lsp-3", Exiter::Lsp, 3)
}

#[test]
#[ignore = "long: make adversaries"]
fn the_client_leaves_after_one() -> Result<()> {
    leaves("rotate-client-1", Exiter::Client, 1)
}

#[test]
#[ignore = "long: make adversaries"]
fn the_lsp_leaves_after_one() -> Result<()> {
    leaves("rotate-lsp-1", Exiter::Lsp, 1)
}

/// By itself, when the first payment comes near its expiry.
#[test]
#[ignore = "long: make adversaries"]
fn the_client_is_warned_after_two() -> Result<()> {
    play(Plan {
        name: "rotate-warned",
        exiter: Exiter::Client,
        small: true,
        asked: false,
        rotations: 2,
        slept: false,
    })
}

/// The commitment goes over a state that has won although it was superseded.
fn leaves_over_an_older_state(name: &'static str, exiter: Exiter) -> Result<()> {
    play(Plan { name, exiter, small: true, asked: true, rotations: 2, slept: true })
}

#[test]
#[ignore = "long: make adversaries"]
fn the_client_leaves_over_an_older_state() -> Result<()> {
    leaves_over_an_older_state("older-client", Exiter::Client)
}

#[test]
#[ignore = "long: make adversaries"]
fn the_lsp_leaves_over_an_older_state() -> Result<()> {
    leaves_over_an_older_state("older-lsp", Exiter::Lsp)
}
