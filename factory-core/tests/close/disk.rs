//! The provider's disk is full in the middle of a close: nothing that depends on what is not stored is done, and the
//! close goes through when there is room again, or after a restart.

use super::*;

/// What the provider has on disk, and how much more there is room for.
#[derive(Default)]
pub struct Disk {
    /// Writes until it is full; none: it never is.
    pub room: Option<usize>,
    state: Option<LspCloseState>,
    signed: Option<Transaction>,
    failed: usize,
}

impl Disk {
    /// Whether an action can be carried out, and those that come after it. Ends the test if it promises what is not here.
    pub fn takes(&mut self, action: &LspCloseAction) -> bool {
        match action {
            LspCloseAction::PersistState(state) => {
                return self.write(|disk| disk.state = Some(*state.clone()));
            }
            LspCloseAction::PersistClose { tx, .. } => {
                return self.write(|disk| disk.signed = Some(*tx.clone()));
            }
            LspCloseAction::ShutdownChannel { .. } => {
                let state = self.state.as_ref().expect("a channel is shut before the consents are on disk");
                assert!(state.clients.iter().all(|c| !c.payout_script.is_empty()));
            }
            LspCloseAction::Send { payload: Payload::CloseTx(m), .. } => {
                let state = self.state.as_ref().expect("a transaction before anything is on disk");
                assert_eq!(state.attempt, m.attempt, "an attempt that is not on disk");
                assert!(
                    state.clients.iter().all(|c| c.client_msat.is_some()),
                    "balances that are not on disk"
                );
            }
            LspCloseAction::Send { payload: Payload::CloseDone(_), .. } => {
                assert!(self.signed.is_some(), "a signature that is not on disk is shown");
            }
            LspCloseAction::Broadcast(tx) => {
                assert_eq!(self.signed.as_ref(), Some(&**tx), "broadcast before it is on disk");
            }
            _ => {}
        }
        true
    }

    fn write(&mut self, write: impl FnOnce(&mut Self)) -> bool {
        match &mut self.room {
            Some(0) => {
                self.failed += 1;
                return false;
            }
            Some(room) => *room -= 1,
            None => {}
        }
        write(self);
        true
    }
}

/// A close whose disk has room for so many writes. It is tried again a few times before there is more.
fn stuck(room: usize) -> Closing {
    let mut closing = Closing::new(3);
    closing.provider_disk.room = Some(room);
    closing.pump();
    for _ in 0..3 {
        if closing.provider_disk.failed == 0 {
            break;
        }
        closing.lsp_in(LspCloseInput::Retry);
        closing.pump();
        assert!(closing.broadcast.is_none(), "broadcast with the disk full");
    }
    closing
}

/// How many writes a close takes.
fn writes() -> usize {
    (0..).find(|room| stuck(*room).provider_disk.failed == 0).unwrap()
}

#[test]
fn a_full_disk_holds_a_close_up_and_no_more() {
    let writes = writes();
    // The consents, each balance, the attempt, the transaction.
    assert_eq!(writes, 6);
    for room in 0..writes {
        let mut closing = stuck(room);
        assert!(closing.broadcast.is_none());
        closing.provider_disk.room = None;
        closing.lsp_in(LspCloseInput::Retry);
        closing.pump();
        closing.assert_closed();
        assert!(closing.blamed().is_empty(), "room for {room}: {:?}", closing.blamed());
    }
}

/// The same, and it dies while the disk is full.
#[test]
fn a_restart_goes_on_from_what_was_stored() {
    for room in 0..writes() {
        let mut closing = stuck(room);
        let Some(state) = closing.provider_disk.state.clone() else {
            let shut = |a: &LspCloseAction| matches!(a, LspCloseAction::ShutdownChannel { .. });
            assert!(!closing.actions.iter().any(shut), "nothing is on disk");
            assert_eq!(room, 0);
            continue;
        };
        closing.provider_disk.room = None;
        let (lsp, actions) = LspClose::resume(lsp_config(&closing.world), &state, &mut rng(78)).unwrap();
        closing.lsp = lsp;
        closing.queue.clear();
        closing.lsp_did(actions);
        closing.pump();
        closing.lsp_in(LspCloseInput::Retry);
        closing.pump();
        closing.assert_closed();
    }
}
