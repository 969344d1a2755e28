//! What a client wants of a factory, beyond the rules of the protocol.

use bitcoin::ScriptBuf;
use serde::{Deserialize, Serialize};

use crate::path::ClientPlan;
use crate::refuse::{refuse, Refusal, RefuseCode};

/// A client's own limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientPolicy {
    /// Whether the client wants to take part at all.
    pub accept: bool,
    /// Shortest active and dying period together, blocks.
    pub min_lifetime_blocks: u32,
    /// Most blocks from the client's tip to the expiry height T, from which on the distributions pay a
    /// client that has not been online since.
    pub max_expiry_blocks: u32,
    /// Longest worst exit, blocks.
    pub max_exit_blocks: u32,
    /// Smallest channel, sat.
    pub min_capacity_sat: u64,
    /// Largest channel, sat.
    pub max_capacity_sat: u64,
    /// Least amount on the client's side from the start, msat.
    pub min_push_msat: u64,
    /// Most clients.
    pub max_clients: u32,
    /// Most blocks between the plan's birth height and the client's tip.
    pub max_birth_skew_blocks: u32,
}

impl Default for ClientPolicy {
    fn default() -> Self {
        Self {
            accept: true,
            min_lifetime_blocks: 1008,
            max_expiry_blocks: 8640,
            max_exit_blocks: 1008,
            min_capacity_sat: 10_000,
            max_capacity_sat: 100_000_000,
            min_push_msat: 0,
            max_clients: 1000,
            max_birth_skew_blocks: 6,
        }
    }
}

impl ClientPolicy {
    /// Checks a plan against these limits. `height` is the client's tip, `payout_script` what it gave.
    ///
    /// # Errors
    /// The first limit that is broken, with its code.
    pub fn check(&self, plan: &ClientPlan, height: u32, payout_script: &ScriptBuf) -> Result<(), Refusal> {
        let params = &plan.params;
        let clients = u32::try_from(plan.clients()).unwrap_or(u32::MAX);
        if clients > self.max_clients {
            let text = format!("{clients} clients, policy allows {}", self.max_clients);
            return Err(Refusal::new(RefuseCode::TooManyClients, text));
        }
        let life = params.active.saturating_add(params.dying);
        if life < self.min_lifetime_blocks {
            let text = format!("life of {life} blocks, policy wants {}", self.min_lifetime_blocks);
            return Err(Refusal::new(RefuseCode::TooShort, text));
        }
        let expiry = plan.expiry_height.saturating_sub(height);
        if expiry > self.max_expiry_blocks {
            let text = format!("expires in {expiry} blocks, policy allows {}", self.max_expiry_blocks);
            return Err(Refusal::new(RefuseCode::TooLong, text));
        }
        let exit = params.worst_exit(params.confirm_blocks).map_err(refuse(RefuseCode::WorstExit))?;
        if exit > self.max_exit_blocks {
            let text = format!("worst exit of {exit} blocks, policy allows {}", self.max_exit_blocks);
            return Err(Refusal::new(RefuseCode::WorstExit, text));
        }
        let skew = plan.birth_height.abs_diff(height);
        if skew > self.max_birth_skew_blocks {
            let text = format!("born at {}, tip is {height}", plan.birth_height);
            return Err(Refusal::new(RefuseCode::BirthHeight, text));
        }
        let own = plan
            .own()
            .ok_or_else(|| Refusal::new(RefuseCode::LeafMembers, "leaf does not hold this client"))?;
        if own.capacity_sat < self.min_capacity_sat || own.capacity_sat > self.max_capacity_sat {
            let text = format!(
                "channel of {} sat, policy wants {} to {}",
                own.capacity_sat, self.min_capacity_sat, self.max_capacity_sat
            );
            return Err(Refusal::new(RefuseCode::Capacity, text));
        }
        if own.push_msat < self.min_push_msat {
            let text = format!("push of {} msat, policy wants {}", own.push_msat, self.min_push_msat);
            return Err(Refusal::new(RefuseCode::Push, text));
        }
        if own.payout_script != *payout_script {
            return Err(Refusal::new(RefuseCode::PayoutScript, "payout script is not the one given"));
        }
        Ok(())
    }
}
