//! Advances of factories that were made in a ceremony: the provider's machine, the clients' and the rules that hold
//! whatever happens around them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod aborts;
mod altered;
mod attacks;
mod blamed;
#[path = "../common/mod.rs"]
mod common;
mod honest;
mod paths;
mod pending;
mod random;
mod restarts;
mod rules;
mod world;
