//! The messages by which a client has its LSP receive for it a payment that no single channel has room for. Their
//! numbers are odd: an LSP that does not know them ignores them.

use super::codec::message;
use super::LongText;

message! {
    /// Client to LSP: make an invoice of your own over my payment hash, and pay me what comes in on it. The answer is
    /// [`RelayInvoice`] or [`RelayDecline`].
    53 RelayAsk of nothing {
        /// The client's payment hash; it alone has the preimage.
        0 => payment_hash: [u8; 32],
        /// The secret with which the client will know its payment.
        2 => payment_secret: [u8; 32],
        /// What the client is to get, msat.
        4 => amount_msat: u64,
        /// Blocks that the payment must have left when it reaches the client.
        6 => min_final: u16,
        /// Most that the payer may have to pay on top for this, msat.
        8 => max_fee_msat: u64,
        /// Lifetime of the invoice, seconds.
        10 => expiry_secs: u32,
        /// Shown to the payer; at most [`MAX_LONG_TEXT_LEN`](super::MAX_LONG_TEXT_LEN) bytes.
        12 => description: LongText,
        /// The payer is the client itself, over this channel beside its factory: the LSP takes nothing for it, and pays
        /// the client over its channel in the factory and no other.
        13 => moved_from: Option<[u8; 32]>,
    }
}

message! {
    /// LSP to client: the invoice.
    55 RelayInvoice of nothing {
        /// As in [`RelayAsk`].
        0 => payment_hash: [u8; 32],
        /// BOLT 11; at most [`MAX_LONG_TEXT_LEN`](super::MAX_LONG_TEXT_LEN) bytes.
        2 => invoice: LongText,
    }
}

message! {
    /// LSP to client: there will be no such invoice.
    57 RelayDecline of nothing {
        /// As in [`RelayAsk`].
        0 => payment_hash: [u8; 32],
        /// Names the reason.
        2 => code: u16,
        /// The same for people; at most [`MAX_TEXT_LEN`](super::MAX_TEXT_LEN) bytes.
        4 => text: String,
    }
}
