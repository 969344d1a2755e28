//! Messages about offers on their way to LDK.
//!
//! With `manually_handle_bolt12_invoices` LDK 0.3 puts the event that an invoice has come into its queue and wakes nobody:
//! it is handled when the next thing happens, and the channel manager with it is not written before. So whoever waits for
//! events is woken here. (`abandon_payment` of an unknown payment changes nothing and wakes; there is no plainer call.)

use std::sync::Arc;

use lightning::blinded_path::message::OffersContext;
use lightning::ln::channelmanager::PaymentId;
use lightning::onion_message::messenger::{MessageSendInstructions, Responder, ResponseInstruction};
use lightning::onion_message::offers::{OffersMessage, OffersMessageHandler};

use super::ChannelManager;

/// No payment has this id.
const NOBODYS: PaymentId = PaymentId([0; 32]);

/// The channel manager as the handler of messages about offers.
pub struct OfferMessages(Arc<ChannelManager>);

impl OfferMessages {
    pub(crate) fn new(manager: Arc<ChannelManager>) -> Self {
        Self(manager)
    }
}

impl OffersMessageHandler for OfferMessages {
    fn handle_message(
        &self,
        message: OffersMessage,
        context: Option<OffersContext>,
        responder: Option<Responder>,
    ) -> Option<(OffersMessage, ResponseInstruction)> {
        // LDK pays those by itself, under a hash that nobody here has heard of, and a payee may take its time: the user would
        // be told that it has not answered, and pay again.
        if matches!(message, OffersMessage::StaticInvoice(_)) {
            return None;
        }
        // Only who was asked has such a context.
        let invoice = matches!(message, OffersMessage::Invoice(_))
            && matches!(context, Some(OffersContext::OutboundPaymentForOffer { .. }));
        let answer = self.0.handle_message(message, context, responder);
        if invoice {
            self.0.abandon_payment(NOBODYS);
        }
        answer
    }

    fn release_pending_messages(&self) -> Vec<(OffersMessage, MessageSendInstructions)> {
        OffersMessageHandler::release_pending_messages(&*self.0)
    }
}
