//! What the wallet has to hold so that this node can leave: said before it is needed.

use std::collections::HashMap;

use bitcoin::Txid;
use factory_core::exit::ExitStep;
use serde_json::json;

use super::super::stored::{Factory, Signed, Stage};
use super::super::Service;
use crate::api::ExitReserve;
use crate::ldk::InstanceId;

impl Service {
    /// What publishing all of this node's leaves would cost at the present feerate, and what is there. Shared
    /// transactions count once; what is confirmed or paid for already does not.
    pub(in crate::factory) fn exit_reserve(&self, factory: &Factory) -> ExitReserve {
        let mut steps: HashMap<Txid, ExitStep> = HashMap::new();
        let over = match &factory.signed {
            Signed::Lsp(_) => factory.all_left(),
            Signed::Client(_) => factory.state.exits.values().any(|e| e.done && e.distribution.is_some()),
        };
        for leaf in factory.leaves().into_iter().filter(|_| !over) {
            let ended = self.is_distributed(factory, &leaf);
            let Ok(plan) = factory.followed_plan(leaf.first, &self.parts.index, self.parts.height()) else {
                continue;
            };
            steps.extend(plan.steps.into_iter().filter(|_| !ended).map(|s| (s.txid, s)));
        }
        let needed_sat = steps
            .values()
            .filter(|s| {
                self.parts.index.confirmation(&s.txid).is_none() && self.publisher.paid_sat(&s.txid) == 0
            })
            .map(|s| self.publisher.estimate_sat(s))
            .fold(0, u64::saturating_add);
        ExitReserve { needed_sat, available_sat: self.parts.wallet.free_coins().1 }
    }

    /// Tells once when the wallet cannot pay for this node's way out, and again when it could in between.
    pub(in crate::factory) fn check_reserves(&mut self) {
        // One that leaves already says itself when it wants a coin.
        let mut alive: Vec<_> = self
            .factories
            .iter()
            .filter(|(_, f)| matches!(f.state.stage, Stage::Funded | Stage::Live) && !f.is_exiting())
            .collect();
        alive.sort_by_key(|(id, f)| (f.expiry_height(), **id));
        // The same coins cannot pay for two: those that expire first come first.
        let mut before_sat: u64 = 0;
        let mut low: Vec<(InstanceId, ExitReserve)> = Vec::new();
        for (id, factory) in alive {
            let own = self.exit_reserve(factory);
            before_sat = before_sat.saturating_add(own.needed_sat);
            let reserve = ExitReserve { needed_sat: before_sat, ..own };
            if own.needed_sat > 0 && reserve.available_sat < reserve.needed_sat {
                low.push((*id, reserve));
            }
        }
        for (id, reserve) in &low {
            if !self.reserve_low.contains(id) {
                let data = json!({"instance_id": hex::encode(id), "needed_sat": reserve.needed_sat,
                    "available_sat": reserve.available_sat});
                self.parts.events.push("exit_reserve_low", data);
            }
        }
        self.reserve_low = low.into_iter().map(|(id, _)| id).collect();
    }
}
