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
    // Whatever N is: Accept, PlanOk, Nonces, Partials, Persisted; and Invite, Plan, Path, AggNonces, Signed, of which
    // each has come, and perhaps Funded.
    assert_eq!(row.messages.0, 5);
    assert!([5, 6].contains(&row.messages.1), "{:?}", row.messages);
    Ok(())
}
