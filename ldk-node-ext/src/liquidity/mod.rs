//! Liquidity for clients: what is done with a payment for which a client has no room.

pub mod decide;
