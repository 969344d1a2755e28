//! Exits that wait for something that does not come with a block.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::super::stored::{ExitReason, StoredExit};
use super::super::Service;
use super::FAILED;
use crate::ldk::InstanceId;

/// What bitcoind did not take is tried again with every block, and after so long without one: it may answer again, and
/// fees may be known better by then.
const RETRY: Duration = Duration::from_secs(10);

impl Service {
    /// Tries again what may go better now.
    pub(in crate::factory) async fn retry_exits(&mut self) {
        let now = Instant::now();
        // A bitcoind that does not answer is not asked for each of them.
        if now >= self.exits_retried + RETRY && self.parts.synced.load(Ordering::Acquire) {
            self.exits_retried = now;
            let failed = self.exits_that(|e| e.waits_for.starts_with(FAILED));
            self.run_exits(failed).await;
        }
        let waiting = self.exits_that(|e| e.needs_coin_sat.is_some());
        // Only what has changed in the wallet can help between blocks.
        let coins = if waiting.is_empty() { (0, 0) } else { self.parts.wallet.free_coins() };
        if std::mem::replace(&mut self.coins_seen, coins) != coins {
            self.run_exits(waiting).await;
        }
    }

    /// The exits under way of which this is true, the most urgent first.
    fn exits_that(&self, test: impl Fn(&StoredExit) -> bool) -> Vec<(ExitReason, InstanceId, u32)> {
        let mut list = self.exits_under_way();
        list.retain(|(_, id, first)| {
            let exit = self.factories.get(id).and_then(|f| f.exit_under_way(*first));
            exit.is_some_and(&test)
        });
        list
    }
}
