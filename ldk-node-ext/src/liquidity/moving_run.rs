//! Client: moves money into the factory by itself, where its settings say so.
//!
//! It tries when a channel's funding has become deep, when a channel has become ready or has grown, with each block, and
//! in between after pauses that grow: who has to sign is known to the LSP alone.

use std::sync::Arc;
use std::time::Duration;

use lightning::ln::channel_state::ChannelDetails;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::{JitMove, RoleConfig};
use crate::error::Error;
use crate::node::Parts;

/// How often the channels are looked at.
const LOOK: Duration = Duration::from_secs(5);
/// Between a try that failed and the next one at least.
const FIRST: Duration = Duration::from_secs(5);
/// And at most.
const LONGEST: Duration = Duration::from_secs(600);
/// How long a payment is awaited before the channels are looked at again.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a look ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Nothing,
    Moved,
    Failed,
}

/// The pause after a try that failed.
fn longer(pause: Duration) -> Duration {
    pause.saturating_mul(2).min(LONGEST)
}

/// Moves what can be moved until told to stop.
pub(crate) async fn run(parts: Arc<Parts>, mut stop: watch::Receiver<bool>) {
    let wanted = matches!(&parts.config.role, RoleConfig::Client(c) if c.jit_move == JitMove::Auto);
    if !wanted {
        let _ = stop.wait_for(|stop| *stop).await;
        return;
    }
    let (mut tip, mut pause) = (parts.tip.clone(), FIRST);
    while !*stop.borrow() {
        let look = tokio::select! {
            look = parts.move_by_itself() => look,
            // What has begun is found again.
            _ = stop.changed() => return,
        };
        let wait = match look {
            Look::Nothing | Look::Moved => LOOK,
            Look::Failed => pause,
        };
        pause = if look == Look::Failed { longer(pause) } else { FIRST };
        // What was refused a moment ago is asked for again no sooner, whatever happens.
        let soonest = if look == Look::Failed { FIRST } else { Duration::ZERO };
        tokio::select! {
            () = tokio::time::sleep(soonest) => {}
            _ = stop.changed() => return,
        }
        tokio::select! {
            () = tokio::time::sleep(wait.saturating_sub(soonest)) => {}
            () = parts.liquidity.moving.room.notified() => pause = FIRST,
            changed = tip.changed() => if changed.is_err() { return },
            _ = stop.changed() => return,
        }
    }
}

impl Parts {
    async fn move_by_itself(&self) -> Look {
        let mut look = Look::Nothing;
        for c in self.jit_to_move() {
            let due = match self.is_due(&c) {
                Ok(due) => due,
                Err(e) => {
                    tracing::error!(error = %e, "what to move into the factory");
                    return Look::Failed;
                }
            };
            if !due {
                continue;
            }
            match self.move_in(c.channel_id, Instant::now() + PATIENCE).await {
                Ok(answer) if answer.closing => look = Look::Moved,
                Ok(answer) => {
                    self.move_failed(c.channel_id, answer.not_closed.unwrap_or_default());
                    return Look::Failed;
                }
                Err(e) => {
                    self.move_failed(c.channel_id, e.to_string());
                    return Look::Failed;
                }
            }
        }
        look
    }

    /// Whether a channel has something that can be moved, or had and can be closed.
    fn is_due(&self, c: &ChannelDetails) -> Result<bool, Error> {
        if super::moving::movable_msat(c).is_some() {
            return Ok(true);
        }
        self.was_moved(&c.channel_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_are_bounded() {
        let pauses: Vec<u64> =
            std::iter::successors(Some(FIRST), |p| Some(longer(*p))).take(9).map(|p| p.as_secs()).collect();
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 320, 600, 600]);
    }
}
