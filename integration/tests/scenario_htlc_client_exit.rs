//! Payments hang on the factory channel in both directions when a client leaves while the LSP is away.

use anyhow::Result;
use integration::htlc_exit::{play, Exiter, Plan};

const EXITER: Exiter = Exiter::Client;

#[test]
fn asked() -> Result<()> {
    play(Plan { name: "htlc-client", exiter: EXITER, small: true, asked: true, rotations: 0, slept: false })
}

#[test]
fn warned() -> Result<()> {
    play(Plan {
        name: "htlc-client-warned",
        exiter: EXITER,
        small: true,
        asked: false,
        rotations: 0,
        slept: false,
    })
}

#[test]
#[ignore = "long: make exits"]
fn default_asked() -> Result<()> {
    play(Plan {
        name: "htlc-client-long",
        exiter: EXITER,
        small: false,
        asked: true,
        rotations: 0,
        slept: false,
    })
}

#[test]
#[ignore = "long: make exits"]
fn default_warned() -> Result<()> {
    play(Plan {
        name: "htlc-client-long-warned",
        exiter: EXITER,
        small: false,
        asked: false,
        rotations: 0,
        slept: false,
    })
}
