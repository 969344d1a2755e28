//! All custom messages of the node: those of factories, and at an LSP those of LSPS (bLIP-50).
//!
//! LDK takes one handler for them. This one looks at the type and passes on.

use std::sync::Arc;

use bitcoin::secp256k1::PublicKey;
use lightning::ln::msgs::{DecodeError, Init, LightningError};
use lightning::ln::peer_handler::CustomMessageHandler;
use lightning::ln::wire::{CustomMessageReader, Type};
use lightning::types::features::{InitFeatures, NodeFeatures};
use lightning::util::ser::{LengthLimitedRead, Writeable, Writer};
use lightning_liquidity::lsps0::ser::RawLSPSMessage;
use tokio::sync::Notify;

use super::{FactoryMessages, FactoryWireMessage, LspsManager};

/// A message of one of them.
#[derive(Clone, Debug)]
pub enum CustomMessage {
    /// Of factories.
    Factory(FactoryWireMessage),
    /// Of LSPS.
    Lsps(RawLSPSMessage),
}

impl Type for CustomMessage {
    fn type_id(&self) -> u16 {
        match self {
            Self::Factory(message) => message.type_id(),
            Self::Lsps(message) => message.type_id(),
        }
    }
}

impl Writeable for CustomMessage {
    fn write<W: Writer>(&self, writer: &mut W) -> Result<(), lightning::io::Error> {
        match self {
            Self::Factory(message) => message.write(writer),
            Self::Lsps(message) => message.write(writer),
        }
    }
}

/// See the module's description.
pub struct CustomMessages {
    factory: Arc<FactoryMessages>,
    lsps: Option<Arc<LspsManager>>,
    /// A message of LSPS has come.
    asked: Arc<Notify>,
}

impl CustomMessages {
    pub(crate) fn new(
        factory: Arc<FactoryMessages>,
        lsps: Option<Arc<LspsManager>>,
        asked: Arc<Notify>,
    ) -> Self {
        Self { factory, lsps, asked }
    }
}

impl CustomMessageReader for CustomMessages {
    type CustomMessage = CustomMessage;

    fn read<R: LengthLimitedRead>(
        &self,
        message_type: u16,
        buffer: &mut R,
    ) -> Result<Option<CustomMessage>, DecodeError> {
        if let Some(message) = self.factory.read(message_type, buffer)? {
            return Ok(Some(CustomMessage::Factory(message)));
        }
        match &self.lsps {
            Some(lsps) => Ok(lsps.read(message_type, buffer)?.map(CustomMessage::Lsps)),
            None => Ok(None),
        }
    }
}

impl CustomMessageHandler for CustomMessages {
    fn handle_custom_message(&self, message: CustomMessage, peer: PublicKey) -> Result<(), LightningError> {
        match (message, &self.lsps) {
            (CustomMessage::Factory(message), _) => self.factory.handle_custom_message(message, peer),
            (CustomMessage::Lsps(message), Some(lsps)) => {
                let handled = lsps.handle_custom_message(message, peer);
                self.asked.notify_one();
                handled
            }
            (CustomMessage::Lsps(_), None) => Ok(()),
        }
    }

    fn get_and_clear_pending_msg(&self) -> Vec<(PublicKey, CustomMessage)> {
        let own = self.factory.get_and_clear_pending_msg().into_iter();
        let mut all: Vec<_> = own.map(|(peer, m)| (peer, CustomMessage::Factory(m))).collect();
        if let Some(lsps) = &self.lsps {
            let theirs = lsps.get_and_clear_pending_msg().into_iter();
            all.extend(theirs.map(|(peer, m)| (peer, CustomMessage::Lsps(m))));
        }
        all
    }

    fn peer_disconnected(&self, peer: PublicKey) {
        self.factory.peer_disconnected(peer);
        if let Some(lsps) = &self.lsps {
            lsps.peer_disconnected(peer);
        }
    }

    fn peer_connected(&self, peer: PublicKey, init: &Init, inbound: bool) -> Result<(), ()> {
        self.factory.peer_connected(peer, init, inbound)?;
        let Some(lsps) = &self.lsps else { return Ok(()) };
        lsps.peer_connected(peer, init, inbound).inspect_err(|()| self.factory.peer_disconnected(peer))
    }

    fn provided_node_features(&self) -> NodeFeatures {
        let own = self.factory.provided_node_features();
        self.lsps.as_ref().map_or(own.clone(), |lsps| own | lsps.provided_node_features())
    }

    fn provided_init_features(&self, peer: PublicKey) -> InitFeatures {
        let own = self.factory.provided_init_features(peer);
        self.lsps.as_ref().map_or(own.clone(), |lsps| own | lsps.provided_init_features(peer))
    }
}
