//! What can go wrong, one step of a script at a time.

use std::collections::VecDeque;

use bolt_tlv::payload::Payload;
use factory_core::close::{
    ClientClose, ClientCloseInput, ClientClosePhase, LspClose, LspCloseInput, LspClosePhase,
};

use super::{client_config, lsp_config, rng, Closing};
use crate::alter::alter;
use crate::script::Script;

impl Closing {
    pub(super) fn step(&mut self, script: &mut Script<'_>) {
        let kind = script.below(24);
        let i = script.below(self.sides.len());
        match kind {
            0..=2 => {
                for _ in 0..script.below(30) {
                    self.deliver(script.below(4));
                }
            }
            3..=6 => {
                self.deliver(script.below(12));
            }
            7 => {
                self.link(i, script).0.pop_front();
                self.sides[i].faulty = true;
            }
            8 => {
                let (link, up) = self.link(i, script);
                if let Some(first) = link.front().cloned() {
                    link.push_back(first);
                    self.sides[i].faulty |= !up;
                }
            }
            9 => {
                let (link, _) = self.link(i, script);
                if link.len() > 1 {
                    link.swap(0, 1);
                    self.sides[i].faulty = true;
                }
            }
            10..=13 => self.alter(i, script),
            14 | 15 => {
                let at = script.below(self.said.len());
                if let Some(message) = self.said.get(at).cloned() {
                    self.push(i, message, script);
                }
            }
            16 => {
                let len = script.below(200);
                if let Ok(message) = Payload::decode(script.take(len)) {
                    self.push(i, message, script);
                }
            }
            17 => {
                self.sides.iter_mut().for_each(|s| s.faulty = true);
                let id = self.timer.wrapping_sub(script.below(3) as u64);
                self.lsp_in(LspCloseInput::Timeout { id });
            }
            18 => {
                self.sides.iter_mut().for_each(|s| s.faulty = true);
                self.lsp_in(LspCloseInput::Retry);
            }
            19 => {
                // A payment can begin until the client has agreed to the close.
                let idle = self.sides[i].machine.phase() == ClientClosePhase::Idle;
                let pending = idle && script.below(2) == 0;
                self.sides[i].pending = pending;
                self.sides[i].faulty = true;
                self.client_in(i, ClientCloseInput::PendingPayments(pending));
            }
            20 | 21 => self.restart_client(i),
            _ => self.restart_lsp(script),
        }
    }

    fn link(&mut self, i: usize, script: &mut Script<'_>) -> (&mut VecDeque<Payload>, bool) {
        let side = &mut self.sides[i];
        match script.below(2) {
            0 => (&mut side.to_client, false),
            _ => (&mut side.to_lsp, true),
        }
    }

    fn alter(&mut self, i: usize, script: &mut Script<'_>) {
        let said = std::mem::take(&mut self.said);
        let (link, _) = self.link(i, script);
        if let Some(message) = link.pop_front() {
            link.extend(alter(&message, &said, script));
            self.sides[i].faulty = true;
            self.forged = true;
        }
        self.said = said;
    }

    fn push(&mut self, i: usize, message: Payload, script: &mut Script<'_>) {
        let first = script.below(2) == 0;
        let (link, _) = self.link(i, script);
        if first {
            link.push_front(message);
        } else {
            link.push_back(message);
        }
        self.sides[i].faulty = true;
        self.forged = true;
    }

    /// From the state on disk; before there is one, a restart is a new close.
    fn restart_client(&mut self, i: usize) {
        let Some(state) = self.sides[i].state.clone() else { return };
        self.starts += 1;
        let seed = 1_000 + 10 * self.starts + i as u64;
        let fresh = ClientClose::resume(client_config(i, true), &state, &mut rng(seed)).unwrap();
        assert_eq!(fresh.frozen(), state.frozen);
        let side = &mut self.sides[i];
        side.starts += 1;
        side.faulty = true;
        side.rules.restarted();
        side.to_client.clear();
        side.to_lsp.clear();
        side.reports.clear();
        let old = std::mem::replace(&mut side.machine, fresh);
        self.weigh(old);
    }

    /// The same for the LSP. What it has stored signed is broadcast by its node.
    fn restart_lsp(&mut self, script: &mut Script<'_>) {
        let Some(mut state) = self.state.clone() else { return };
        if self.stored.is_some() || self.lsp.phase() == LspClosePhase::Done {
            return;
        }
        if script.below(8) == 0 {
            // Another factory's state, or one of another version, is refused.
            state.version += 1;
            assert!(LspClose::resume(lsp_config(), &state, &mut rng(0)).is_err());
            state.version -= 1;
            state.instance_id[0] ^= 1;
            assert!(LspClose::resume(lsp_config(), &state, &mut rng(0)).is_err());
            return;
        }
        self.starts += 1;
        let (fresh, actions) = LspClose::resume(lsp_config(), &state, &mut rng(5_000 + self.starts)).unwrap();
        for side in &mut self.sides {
            side.to_client.clear();
            side.to_lsp.clear();
            side.faulty = true;
        }
        self.reports.clear();
        let old = std::mem::replace(&mut self.lsp, fresh);
        self.weigh(old);
        self.lsp_did(actions);
    }
}
