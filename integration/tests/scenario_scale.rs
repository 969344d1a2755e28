//! A factory of many clients, each a process of its own: created, paid through, closed, and every satoshi accounted
//! for. `make scale` does the same with up to 256.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::Result;
use integration::scale;

#[test]
fn thirty_two_clients() -> Result<()> {
    let row = scale::run(32, 48)?;
    println!("{}", scale::table(std::slice::from_ref(&row)));
    assert_eq!((row.clients, row.payments), (32, 48));
    // Accept, PlanOk, Nonces, Partials, Persisted; Invite, Plan, Path, AggNonces, Signed, Funded: whatever N is.
    assert_eq!(row.messages, (5, 6));
    Ok(())
}
