//! What a set of parameters means for those who take part: times, counts, bytes and money.
//!
//! An operator reads a [`PlanReport`] before opening a factory, a client can compute the same report from
//! a plan it was offered, and the rest of the software takes its deltas and deadlines from the same
//! functions, so that no figure of this kind is written by hand anywhere.

mod display;
mod exit;
pub mod limits;
mod report;
pub(crate) mod timing;

pub use exit::{exit_steps, ExitStep, StepKind};
pub use report::{plan, plan_with, ExitCost, LevelReport, PlanOptions, PlanReport};
