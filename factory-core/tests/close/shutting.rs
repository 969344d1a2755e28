//! Clients that hold a close up without a word: their channel stays open, or they go away.

use super::*;

fn late() -> ExcludeReason {
    ExcludeReason::ChannelFailed { text: "not shut down in time".into() }
}

fn time_is_up(closing: &mut Closing) {
    let id = closing.timer;
    closing.lsp_in(LspCloseInput::Timeout { id });
}

/// A close whose client 2 has agreed and keeps its channel open.
fn open() -> Closing {
    let mut closing = Closing::new(4);
    closing.open = vec![2];
    closing.pump();
    assert_eq!((closing.lsp.phase(), closing.lsp.missing()), (LspClosePhase::Shutting, vec![node_id(2)]));
    closing
}

#[test]
fn who_keeps_its_channel_open_is_named_and_asked_again() {
    let mut closing = open();
    time_is_up(&mut closing);
    assert_eq!(closing.blamed(), [(2, late())]);
    assert_eq!(closing.lsp.phase(), LspClosePhase::Stalled);
    // Once more, with the same end.
    closing.lsp_in(LspCloseInput::Retry);
    closing.pump();
    assert_eq!(closing.lsp.phase(), LspClosePhase::Shutting);
    time_is_up(&mut closing);
    assert_eq!(closing.blamed(), [(2, late()), (2, late())]);
    // It comes round, and is asked.
    closing.open.clear();
    closing.lsp_in(LspCloseInput::Retry);
    closing.pump();
    closing.assert_closed();
}

/// Also without being asked again.
#[test]
fn the_last_channel_that_is_shut_late_lets_the_close_go_on() {
    let mut closing = open();
    time_is_up(&mut closing);
    closing.channel_shut(2);
    closing.pump();
    closing.assert_closed();
    assert_eq!(closing.blamed(), [(2, late())]);
}

#[test]
fn who_cannot_help_it_is_not_named() {
    let mut closing = Closing::new(4);
    closing.open = vec![1, 2];
    closing.pump();
    for _ in 0..3 {
        let old = closing.timer;
        closing.lsp_in(LspCloseInput::Excused { clients: vec![node_id(1), node_id(2)] });
        time_is_up(&mut closing);
        assert_eq!(closing.lsp.phase(), LspClosePhase::Shutting);
        assert_ne!(closing.timer, old, "it goes on waiting");
    }
    assert!(closing.blamed().is_empty());
    // The other has no excuse, and this one none any more next time.
    closing.lsp_in(LspCloseInput::Excused { clients: vec![node_id(1)] });
    time_is_up(&mut closing);
    assert_eq!(closing.blamed(), [(2, late())]);
    closing.lsp_in(LspCloseInput::Retry);
    time_is_up(&mut closing);
    assert_eq!(closing.blamed(), [(2, late()), (1, late()), (2, late())]);
    closing.channel_shut(1);
    closing.channel_shut(2);
    closing.pump();
    closing.assert_closed();
}

/// Many channels take their time: what counts is how long none was shut.
#[test]
fn every_channel_that_is_shut_gives_the_others_time() {
    let mut closing = Closing::new(4);
    closing.open = vec![0, 1, 2, 3];
    closing.pump();
    for i in 0..3 {
        let old = closing.timer;
        closing.channel_shut(i);
        closing.lsp_in(LspCloseInput::Timeout { id: old });
        assert!(closing.blamed().is_empty());
    }
    time_is_up(&mut closing);
    assert_eq!(closing.blamed(), [(3, late())]);
}

/// After a restart nobody is connected, so nobody is late before everybody was asked again.
#[test]
fn a_restart_names_nobody() {
    let mut closing = open();
    let state = closing.states.last().unwrap().clone();
    let (lsp, actions) = LspClose::resume(lsp_config(&closing.world), &state, &mut rng(78)).unwrap();
    assert!(!actions.iter().any(|a| matches!(a, LspCloseAction::SetTimer { .. })));
    closing.lsp = lsp;
    closing.lsp_did(actions);
    closing.lsp_in(LspCloseInput::Retry);
    time_is_up(&mut closing);
    assert_eq!(closing.blamed(), [(2, late())]);
}

/// Who goes away after its nonce has spoilt the round for everybody, like one who says nothing.
#[test]
fn who_goes_away_while_the_others_sign_is_named() {
    // Its nonce is here, somebody else's is missing; then the same with partial signatures.
    for (number, named) in [(25, true), (27, false)] {
        let mut closing = Closing::new(4);
        let mut dropped = false;
        closing.to_lsp = Box::new(move |i, p| {
            if i == 3 && p.number() == number && !dropped {
                dropped = true;
                return vec![];
            }
            vec![p]
        });
        closing.pump();
        assert_eq!(closing.lsp.missing(), [node_id(3)]);
        closing.lsp_in(LspCloseInput::ClientGone { client: node_id(1) });
        // Its partial signature is all that is needed of it.
        let expected = if named { vec![(1, ExcludeReason::Gone)] } else { vec![] };
        assert_eq!(closing.blamed(), expected);
        // That the round was lost is one client's doing.
        closing.lsp_in(LspCloseInput::ClientGone { client: node_id(3) });
        let expected = if named { 1 } else { 3 };
        assert_eq!(closing.blamed(), [(expected, ExcludeReason::Gone)]);
        assert_eq!(closing.lsp.phase(), LspClosePhase::Stalled);
        closing.lsp_in(LspCloseInput::Retry);
        closing.pump();
        closing.assert_closed();
    }
}

/// Before the channels are shut, and when it is over, it is of no account.
#[test]
fn who_goes_away_at_another_time_is_not_named() {
    let mut closing = Closing::new(3);
    closing.lsp_in(LspCloseInput::ClientGone { client: node_id(1) });
    closing.pump();
    closing.lsp_in(LspCloseInput::ClientGone { client: node_id(1) });
    closing.assert_closed();
    let mut closing = open();
    closing.lsp_in(LspCloseInput::ClientGone { client: node_id(2) });
    assert!(closing.blamed().is_empty(), "it has its time");
}
