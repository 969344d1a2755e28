//! The cooperative close: the API's side, routing of messages, and what both roles share.
//!
//! Once a channel has been shut down there is no way back for it: the close goes on, also over
//! restarts, until its transaction is confirmed, or a party leaves by its path with the closing
//! transaction that LDK made.

use std::time::Duration;

use bitcoin::secp256k1::PublicKey;
use bitcoin::OutPoint;
use bolt_tlv::payload::{self, Payload};
use factory_core::close::{ClientClose, LspClose, LspClosePhase};
use tokio::time::Instant;

use super::stored::{ExitReason, Factory, Stage, StoredClose};
use super::{Service, Timer};
use crate::error::Error;
use crate::ldk::{channel_id, InstanceId};

/// A close under way.
pub(super) enum Closing {
    /// The LSP's machine.
    Lsp(Box<LspClosing>),
    /// A client's machine.
    Client(Box<ClientClose>),
}

/// The LSP's side of a close.
pub(super) struct LspClosing {
    pub(super) machine: LspClose,
    pub(super) timer: Option<Timer>,
    /// Channels LDK has not shut down yet.
    pub(super) to_shut: Vec<(PublicKey, OutPoint)>,
    /// When a stalled close is tried again, and how long it waited last.
    pub(super) retry_at: Instant,
    pub(super) pause: Duration,
    /// The client that asked for it, if it was one.
    pub(super) asked_by: Option<PublicKey>,
    /// Something could not be stored: the round is given up and made anew.
    pub(super) broken: bool,
    /// The attempt of the machine's state on disk, once it is there.
    pub(super) stored: Option<u16>,
    /// LDK has been told to shut down what it may be told to.
    pub(super) told: bool,
}

impl Service {
    pub(super) fn found(&self, id: &InstanceId) -> Result<&Factory, Error> {
        self.factories.get(id).ok_or_else(|| Error::not_found(format!("factory {}", hex::encode(id))))
    }

    /// A factory that is alive, for those who want to leave or close it.
    pub(super) fn live(&self, id: &InstanceId) -> Result<&Factory, Error> {
        let factory = self.found(id)?;
        match factory.state.stage {
            Stage::Live => Ok(factory),
            Stage::Signed | Stage::Funded => {
                let depth = factory.params().min_depth;
                Err(Error::Conflict(format!("the factory's funding is not {depth} blocks deep yet")))
            }
            Stage::Closed | Stage::Exited | Stage::Void => {
                Err(Error::Conflict("the factory has ended".into()))
            }
        }
    }

    /// Whether the close of a factory can begin.
    pub(super) fn closable(&self, id: &InstanceId) -> Result<(), Error> {
        let factory = self.live(id)?;
        if factory.is_exiting() {
            return Err(Error::Conflict("a leaf of the factory is being left".into()));
        }
        if self.is_closing(factory) {
            return Err(Error::Conflict("the factory is being closed".into()));
        }
        if let Some((channel, _)) = factory.channels()?.iter().find(|(channel, _)| self.is_changing(channel))
        {
            let text = format!("the capacity of channel {} is being changed", channel_id(*channel));
            return Err(Error::Unavailable(text));
        }
        let mut rotating = self.rotating.iter().filter(|((of, _), r)| of == id && !r.is_complete());
        if let Some(((_, attempt), _)) = rotating.next() {
            return Err(Error::Conflict(format!("rotation {attempt} of a leaf of the factory is under way")));
        }
        Ok(())
    }

    /// The API's `close`.
    pub(super) async fn close_command(&mut self, id: InstanceId) -> Result<(), Error> {
        self.closable(&id)?;
        if self.is_lsp() {
            return self.begin_close(id, None).await;
        }
        // What is left of an earlier try is only its reason; an agreement that was given is kept.
        if let Some(close) = self.factories.get_mut(&id).and_then(|f| f.state.close.as_mut()) {
            close.reason = None;
        }
        let lsp = self.client_settings().map(|s| s.lsp_node_id);
        let asked = lsp.is_some_and(|lsp| self.send(lsp, payload::CloseAsk { instance_id: id }));
        if asked {
            Ok(())
        } else {
            Err(Error::Unavailable("the LSP is not connected".into()))
        }
    }

    /// Whether a message belongs to a close; if so it has been dealt with.
    pub(super) async fn close_message(&mut self, peer: PublicKey, payload: &Payload) -> bool {
        let from_client = matches!(
            payload,
            Payload::CloseAsk(_)
                | Payload::CloseConsent(_)
                | Payload::CloseRefuse(_)
                | Payload::CloseNonce(_)
                | Payload::ClosePartial(_)
        );
        let from_lsp = matches!(
            payload,
            Payload::ClosePropose(_)
                | Payload::CloseTx(_)
                | Payload::CloseAggNonce(_)
                | Payload::CloseDone(_)
                | Payload::CloseAbort(_)
        );
        let Some(id) = payload.instance_id().filter(|_| from_client || from_lsp) else { return false };
        match (self.is_lsp(), from_client) {
            (true, true) => self.lsp_close_message(id, peer, payload.clone()).await,
            (false, false) => self.client_close_message(id, payload.clone()).await,
            _ => tracing::debug!(%peer, number = payload.number(), "close message from the wrong side"),
        }
        true
    }

    /// LDK has shut a channel down; its balances are final.
    pub(super) async fn channel_shut(
        &mut self,
        id: &InstanceId,
        outpoint: OutPoint,
        local_msat: Option<u64>,
        capacity_sat: Option<u64>,
    ) -> Result<(), Error> {
        let factory = self.found(id)?;
        let channel = channel_id(outpoint);
        let (Some(local_msat), Some(capacity)) = (local_msat, capacity_sat) else {
            tracing::error!(%channel, "closed without a balance");
            return Ok(());
        };
        if !self.is_lsp() {
            return self.client_channel_shut(id, local_msat).await;
        }
        let client = factory.channels()?.into_iter().find(|(o, _)| *o == outpoint).and_then(|(_, c)| c);
        match client {
            Some(client) => {
                let client_msat = capacity.saturating_mul(1000).saturating_sub(local_msat);
                self.lsp_channel_shut(id, outpoint, client, client_msat, local_msat).await
            }
            None => Ok(()),
        }
    }

    /// The tree's root is on the chain, so no close can be any more. Who has shut its channel down
    /// leaves by its path, with the closing transaction that LDK made.
    pub(super) async fn close_prevented(&mut self, id: &InstanceId) -> Result<(), Error> {
        self.closing.remove(id);
        let Some(factory) = self.factories.get_mut(id) else { return Ok(()) };
        let reason = "the tree's root was published".to_owned();
        let shut = factory.state.close.as_ref().is_some_and(|c| c.own_msat.is_some());
        let news = factory.state.close.as_ref().is_some_and(|c| c.reason.as_ref() != Some(&reason));
        if news {
            let close = StoredClose { reason: Some(reason), ..StoredClose::default() };
            factory.update(&self.parts.store, |state| state.close = Some(close))?;
        }
        if shut && !self.is_lsp() && self.factories.get(id).is_some_and(|f| !f.is_exiting()) {
            self.start_exit(id, ExitReason::ChannelClosed, "the close was prevented").await?;
        }
        Ok(())
    }

    /// Whether a close of this factory has begun and not come to nothing.
    pub(super) fn is_closing(&self, factory: &Factory) -> bool {
        let stored = factory.state.close.as_ref();
        self.closing.contains_key(&factory.id())
            || stored.is_some_and(|c| c.machine.is_some() || c.signed.is_some())
    }

    /// The phase in words.
    pub(super) fn close_phase(&self, factory: &Factory) -> String {
        let phase = match self.closing.get(&factory.id()) {
            Some(Closing::Lsp(c)) => match c.machine.phase() {
                LspClosePhase::Asking => "asking",
                LspClosePhase::Shutting => "shutting",
                LspClosePhase::Nonces | LspClosePhase::Partials | LspClosePhase::Recording => "signing",
                LspClosePhase::Stalled => "stalled",
                LspClosePhase::Done => "broadcast",
                LspClosePhase::Failed => "failed",
            },
            Some(Closing::Client(_)) => "signing",
            None if factory.state.close.as_ref().is_some_and(|c| c.machine.is_some()) => "stalled",
            None => "failed",
        };
        phase.to_owned()
    }
}
