//! What can go wrong, one step of a script at a time.

use std::collections::VecDeque;

use bolt_tlv::payload::Payload;
use factory_core::ceremony::{ClientInput, LspInput};

use super::{machine, Ceremony};
use crate::alter::alter;
use crate::common::{node_id, HEIGHT};
use crate::script::Script;

impl Ceremony {
    /// One fault, or a few deliveries.
    pub(super) fn step(&mut self, script: &mut Script<'_>) {
        let kind = script.below(24);
        let i = script.below(self.sides.len());
        match kind {
            0..=2 => {
                for _ in 0..script.below(40) {
                    self.deliver(script.below(4));
                }
            }
            3..=6 => {
                self.deliver(script.below(12));
            }
            7 => self.drop_one(i, script),
            8 => self.repeat(i, script),
            9 => self.swap(i, script),
            10..=13 => self.alter(i, script),
            14 => self.replay(i, script),
            15 => self.make_up(i, script),
            16 => {
                self.sides.iter_mut().for_each(|s| s.faulty = true);
                let id = self.timer.wrapping_sub(script.below(3) as u64);
                self.lsp_in(LspInput::Timeout { id });
            }
            17 => {
                self.sides[i].faulty = true;
                let id = self.sides[i].timer;
                self.client_in(i, ClientInput::Timeout { id });
            }
            18 => self.disconnect(i),
            19 => self.restart(i),
            20 => {
                let height = HEIGHT.wrapping_add(u32::from(script.number()) % 300);
                self.sides[i].faulty = true;
                self.client_in(i, ClientInput::Height(height));
            }
            21 => {
                self.sides.iter_mut().for_each(|s| s.faulty = true);
                let height = HEIGHT.wrapping_add(u32::from(script.number()) % 300);
                self.lsp_in(LspInput::Height(height));
            }
            22 => self.channel_failed(i, script),
            _ => match script.below(8) {
                0 => {
                    self.called_off = true;
                    self.lsp_in(LspInput::Cancel);
                }
                1 => {
                    self.called_off = true;
                    self.lsp_in(LspInput::FundingFailed { reason: "no coin".into() });
                }
                _ => {}
            },
        }
    }

    fn link(&mut self, i: usize, script: &mut Script<'_>) -> (&mut VecDeque<Payload>, bool) {
        let side = &mut self.sides[i];
        match script.below(2) {
            0 => (&mut side.to_client, false),
            _ => (&mut side.to_lsp, true),
        }
    }

    fn drop_one(&mut self, i: usize, script: &mut Script<'_>) {
        self.link(i, script).0.pop_front();
        self.sides[i].faulty = true;
    }

    /// The LSP ignores what it has; a client takes a second aggregate nonce for an attack.
    fn repeat(&mut self, i: usize, script: &mut Script<'_>) {
        let (link, up) = self.link(i, script);
        if let Some(first) = link.front().cloned() {
            link.push_back(first);
            self.sides[i].faulty |= !up;
        }
    }

    fn swap(&mut self, i: usize, script: &mut Script<'_>) {
        let (link, _) = self.link(i, script);
        if link.len() > 1 {
            link.swap(0, 1);
            self.sides[i].faulty = true;
        }
    }

    fn alter(&mut self, i: usize, script: &mut Script<'_>) {
        let said = std::mem::take(&mut self.said);
        let (link, up) = self.link(i, script);
        let mut garbage = false;
        if let Some(message) = link.pop_front() {
            match alter(&message, &said, script) {
                Some(other) => link.push_front(other),
                None => garbage = true,
            }
            self.sides[i].faulty = true;
            self.sides[i].lies |= up;
        }
        self.said = said;
        if garbage {
            self.disconnect(i);
        }
    }

    fn replay(&mut self, i: usize, script: &mut Script<'_>) {
        let at = script.below(self.said.len());
        let Some(message) = self.said.get(at).cloned() else { return };
        self.push(i, message, script);
    }

    fn make_up(&mut self, i: usize, script: &mut Script<'_>) {
        let len = script.below(200);
        match Payload::decode(script.take(len)) {
            Ok(message) => self.push(i, message, script),
            Err(_) => self.disconnect(i),
        }
    }

    fn push(&mut self, i: usize, message: Payload, script: &mut Script<'_>) {
        let first = script.below(2) == 0;
        let (link, up) = self.link(i, script);
        if first {
            link.push_front(message);
        } else {
            link.push_back(message);
        }
        self.sides[i].faulty = true;
        self.sides[i].lies |= up;
    }

    fn disconnect(&mut self, i: usize) {
        let side = &mut self.sides[i];
        side.faulty = true;
        side.to_client.clear();
        side.to_lsp.clear();
        self.client_in(i, ClientInput::Disconnected);
        self.lsp_in(LspInput::ClientGone { client: node_id(i) });
    }

    /// Memory is gone, the disk stays.
    fn restart(&mut self, i: usize) {
        let side = &mut self.sides[i];
        side.starts += 1;
        let fresh = machine(i, side.starts, true);
        let old = std::mem::replace(&mut side.machine, fresh);
        side.rules.restarted();
        side.reports.clear();
        self.weigh(old);
        self.disconnect(i);
    }

    fn channel_failed(&mut self, i: usize, script: &mut Script<'_>) {
        let Some(temporary_channel_id) = self.rules.opened(i) else { return };
        self.sides[i].faulty = true;
        let reason = "x".repeat(script.below(600));
        let client = node_id(i);
        self.lsp_in(LspInput::ChannelFailed { client, temporary_channel_id, reason });
    }
}
