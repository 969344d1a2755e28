//! Payments hang on the factory channel in both directions when the LSP leaves a client that is away.

use anyhow::Result;
use integration::htlc_exit::{play, Exiter, Plan};

const EXITER: Exiter = Exiter::Lsp;

#[test]
fn asked() -> Result<()> {
    play(Plan { name: "htlc-lsp", exiter: EXITER, small: true, asked: true, rotations: 0, slept: false })
}

#[test]
fn warned() -> Result<()> {
    play(Plan {
        name: "htlc-lsp-warned",
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
        name: "htlc-lsp-long",
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
        name: "htlc-lsp-long-warned",
        exiter: EXITER,
        small: false,
        asked: false,
        rotations: 0,
        slept: false,
    })
}
