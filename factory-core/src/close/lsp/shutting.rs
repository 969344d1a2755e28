//! How the provider's closing machine shuts the channels down, names who is late with it, and goes on after a standstill.
//!
//! A client that has agreed and then keeps its channel open would hold up all the others, whose channels are shut
//! meanwhile. The time it has begins anew with every channel that is shut, so many channels may take long, but one that
//! stands still does not. What the machine cannot see is whose fault that is: the caller tells it by
//! [`LspCloseInput::Excused`].
//!
//! What could not be stored has not happened: the caller carries out nothing that comes after it, and says
//! [`LspCloseInput::Retry`] when there is room again. Every way on begins with the same thing to store.

use super::*;

impl LspClose {
    /// Whether every channel is shut down.
    pub(super) fn all_shut(&self) -> bool {
        self.clients.iter().all(|c| c.client_msat.is_some())
    }

    /// Stores what the clients have agreed to, and only then asks for their channels.
    pub(super) fn shut_down(&mut self, out: &mut Actions) {
        out.push(LspCloseAction::PersistState(Box::new(self.state())));
        self.enter(LspClosePhase::Shutting, Some(self.config.signing_secs), out);
        self.ask_shutdowns(out);
    }

    pub(super) fn ask_shutdowns(&self, out: &mut Actions) {
        for client in self.clients.iter().filter(|c| c.client_msat.is_none()) {
            out.push(LspCloseAction::ShutdownChannel { client: client.id, outpoint: client.outpoint });
        }
    }

    pub(super) fn channel_shut(
        &mut self,
        id: PublicKey,
        client_msat: u64,
        lsp_msat: u64,
        out: &mut Actions,
    ) -> Result<(), Error> {
        // Who was named may still do it.
        if !matches!(self.phase, LspClosePhase::Shutting | LspClosePhase::Stalled) {
            return Ok(());
        }
        let Some(client) = self.clients.iter_mut().find(|c| c.id == id && c.client_msat.is_none()) else {
            return Ok(());
        };
        let capacity = client.capacity_sat.saturating_mul(1000);
        if client_msat.checked_add(lsp_msat) != Some(capacity) && !switch("lsp.close.balances") {
            return Err(Error::Value {
                what: "balances of a channel in msat",
                got: client_msat.saturating_add(lsp_msat),
                expected: capacity,
            });
        }
        client.client_msat = Some(client_msat);
        out.push(LspCloseAction::PersistState(Box::new(self.state())));
        match self.phase {
            // It was the last one that was missing: there is nothing to wait for.
            LspClosePhase::Stalled if self.all_shut() => self.enter(LspClosePhase::Shutting, None, out),
            LspClosePhase::Shutting => self.set_timer(Some(self.config.signing_secs), out),
            _ => {}
        }
        Ok(())
    }

    /// No channel was shut for so long: names whose are missing, but for those that cannot help it.
    pub(super) fn late_shutdowns(&mut self, missing: Vec<PublicKey>, out: &mut Actions) {
        let excused = std::mem::take(&mut self.excused);
        let reason = || ExcludeReason::ChannelFailed { text: "not shut down in time".into() };
        let late = missing.into_iter().filter(|id| !excused.contains(id));
        let blamed: Vec<_> = late.map(|id| (id, reason())).collect();
        if blamed.is_empty() {
            self.set_timer(Some(self.config.signing_secs), out);
        } else {
            self.stall(blamed, out);
        }
    }

    /// A connection was lost while nonces or partial signatures are gathered: the client's secret nonce may be gone
    /// with it, so the round is lost, also if the public nonce is here already.
    pub(super) fn client_gone(&mut self, id: PublicKey, out: &mut Actions) {
        let spoilt = |c: &Client| match self.phase {
            LspClosePhase::Nonces => true,
            LspClosePhase::Partials => c.partial.is_none(),
            _ => false,
        };
        if self.clients.iter().any(|c| c.id == id && spoilt(c)) {
            self.stall(vec![(id, ExcludeReason::Gone)], out);
        }
    }

    /// Goes on from what is certain. What the last try may have failed to store comes first.
    pub(super) fn retry(&mut self, out: &mut Actions) -> Result<(), Error> {
        match self.phase {
            LspClosePhase::Asking | LspClosePhase::Done | LspClosePhase::Failed => {}
            LspClosePhase::Recording => self.persist_close(out),
            _ if self.all_shut() => return self.ask_nonces(out),
            _ => self.shut_down(out),
        }
        Ok(())
    }

    pub(super) fn persist_close(&self, out: &mut Actions) {
        let Some(close) = &self.close else { return };
        out.push(LspCloseAction::PersistClose {
            tx: Box::new(close.tx.clone()),
            paid: close.paid.clone(),
            to_fees: close.to_fees.clone(),
            lsp_sat: close.lsp_sat,
            fee_sat: close.fee_sat,
        });
    }
}
