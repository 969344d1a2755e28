//! The command that leaves a factory, for both command lines.

use clap::Args;
use serde_json::Value;

use super::super::{show, ApiClient, HttpError};
use super::{exit_of, exiting, the_factory, Output, WaitArgs};
use crate::api::{ExitRequest, FactoryInfo};

/// Flags of `exit`.
#[derive(Args, Clone, Debug, Default)]
pub struct ExitArgs {
    /// Instance id, or the beginning of it; not needed if only one factory is alive
    pub instance_id: Option<String>,
    /// Most that the fee-paying children of the path may cost together, sat; given again for an exit that
    /// is under way, it changes the bound
    #[arg(long, value_name = "SAT", value_parser = clap::value_parser!(u64).range(1..))]
    pub max_fee_sat: Option<u64>,
    /// Whether to wait.
    #[command(flatten)]
    pub wait: WaitArgs,
}

impl ExitArgs {
    /// Runs the command and prints its outcome; `whose` is the client that an LSP leaves.
    ///
    /// # Errors
    /// [`HttpError`].
    pub fn execute(self, client: &ApiClient, output: Output, whose: Option<String>) -> Result<(), HttpError> {
        let id = the_factory(client, self.instance_id.as_deref())?;
        let request = ExitRequest { client: whose.clone(), max_fee_sat: self.max_fee_sat };
        let answer: Value = client.post(&format!("/v1/factories/{id}/exit"), &request)?;
        let whose = whose.as_deref();
        if self.wait.no_wait {
            // An exit that cannot go on needs its user now, not when he looks the next time.
            let factory: FactoryInfo = client.get(&format!("/v1/factories/{id}"))?;
            let waits = exit_of(&factory, whose).map(|e| format!("\n{}", show::exit_state(e)));
            return output.show(&answer, |_| format!("leaving factory {id}{}", waits.unwrap_or_default()));
        }
        output.show(&exiting(client, &id, whose, self.wait)?, |f: &FactoryInfo| {
            exit_of(f, whose).map_or("left".into(), show::exit_text)
        })
    }
}
