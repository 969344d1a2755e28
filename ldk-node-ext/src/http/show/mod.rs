//! Readable output of the command lines: amounts with units, tables, trees and bars.

mod factory;
mod format;
mod node;
mod tree;

pub use factory::{
    close_text, creation_progress, exit_state, exit_text, factories, factory, leaf, state, step,
};
pub use format::{bar, deadline, msat, sat, short, table, time_left, utc, Align};
pub use node::{
    admission, balance, channels, clients, event, info, invoice, jit, jit_policies, offer, payment, payments,
};
pub use tree::tree;

#[cfg(test)]
pub(crate) use factory::tests;
