//! Messages between two nodes of a test, one by one as on a connection.

use std::collections::VecDeque;
use std::sync::Mutex;

use bitcoin::secp256k1::PublicKey;
use lightning::ln::msgs::{ChannelMessageHandler, ErrorAction, MessageSendEvent};

use super::Node;
use crate::ldk::FactoryWireMessage;
use crate::util::lock;

type Deliver = Box<dyn FnOnce(&Node, PublicKey) + Send>;

/// One message on its way.
pub(crate) enum Wire {
    /// Of a channel.
    Channel {
        /// Its name in BOLT 2.
        what: &'static str,
        /// Hands it to the receiver's handler.
        deliver: Deliver,
    },
    /// Of this project's own protocol.
    Custom(FactoryWireMessage),
}

impl Wire {
    /// The message's name; `factory` for one of our own.
    pub(crate) fn what(&self) -> &'static str {
        match self {
            Self::Channel { what, .. } => what,
            Self::Custom(_) => "factory",
        }
    }
}

/// What LDK wants to send, message by message as its peer manager writes them. Errors and warnings are delivered, too,
/// and noted as complaints.
pub(super) fn split(event: MessageSendEvent, out: &mut VecDeque<Wire>, complaints: &Mutex<Vec<String>>) {
    use MessageSendEvent::*;
    let mut push = |what, deliver: Deliver| out.push_back(Wire::Channel { what, deliver });
    macro_rules! messages {
        ($($event: ident => $handle: ident,)*) => {
            match event {
                $($event { msg, .. } => push(
                    stringify!($handle),
                    Box::new(move |to, from| to.channel_messages.$handle(from, &msg)),
                ),)*
                UpdateHTLCs { channel_id, updates, .. } => {
                    for msg in updates.update_add_htlcs {
                        let deliver = move |to: &Node, from| to.channel_messages.handle_update_add_htlc(from, &msg);
                        push("update_add_htlc", Box::new(deliver));
                    }
                    for msg in updates.update_fulfill_htlcs {
                        let deliver = move |to: &Node, from| to.channel_messages.handle_update_fulfill_htlc(from, msg);
                        push("update_fulfill_htlc", Box::new(deliver));
                    }
                    for msg in updates.update_fail_htlcs {
                        let deliver = move |to: &Node, from| to.channel_messages.handle_update_fail_htlc(from, &msg);
                        push("update_fail_htlc", Box::new(deliver));
                    }
                    for msg in updates.update_fail_malformed_htlcs {
                        let deliver =
                            move |to: &Node, from| to.channel_messages.handle_update_fail_malformed_htlc(from, &msg);
                        push("update_fail_malformed_htlc", Box::new(deliver));
                    }
                    let batch = updates.commitment_signed;
                    push("commitment_signed", Box::new(move |to, from| match batch.as_slice() {
                        [one] => to.channel_messages.handle_commitment_signed(from, one),
                        _ => to.channel_messages.handle_commitment_signed_batch(from, channel_id, batch),
                    }));
                }
                HandleError { action, .. } => {
                    lock(complaints).push(format!("{action:?}"));
                    if let ErrorAction::SendErrorMessage { msg } | ErrorAction::DisconnectPeer { msg: Some(msg) } = action {
                        push("error", Box::new(move |to, from| to.channel_messages.handle_error(from, &msg)));
                    }
                }
                _ => {}
            }
        };
    }
    messages! {
        SendOpenChannel => handle_open_channel,
        SendAcceptChannel => handle_accept_channel,
        SendFundingCreated => handle_funding_created,
        SendFundingSigned => handle_funding_signed,
        SendChannelReady => handle_channel_ready,
        SendStfu => handle_stfu,
        SendSpliceInit => handle_splice_init,
        SendSpliceAck => handle_splice_ack,
        SendSpliceLocked => handle_splice_locked,
        SendTxAddInput => handle_tx_add_input,
        SendTxAddOutput => handle_tx_add_output,
        SendTxRemoveInput => handle_tx_remove_input,
        SendTxRemoveOutput => handle_tx_remove_output,
        SendTxComplete => handle_tx_complete,
        SendTxSignatures => handle_tx_signatures,
        SendTxAbort => handle_tx_abort,
        SendRevokeAndACK => handle_revoke_and_ack,
        SendShutdown => handle_shutdown,
        SendClosingSigned => handle_closing_signed,
        SendChannelReestablish => handle_channel_reestablish,
        SendChannelUpdate => handle_channel_update,
    }
}
