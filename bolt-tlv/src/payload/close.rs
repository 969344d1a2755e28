//! The messages that close a factory cooperatively: one transaction spends the funding output and pays
//! everyone the balance of their channel.

use bitcoin::secp256k1::PublicKey;
use bitcoin::{ScriptBuf, Transaction};

use super::codec::message;

message! {
    /// Client to LSP: please close this factory. The LSP answers with [`ClosePropose`] when it can.
    20 CloseAsk of instance {}
}

message! {
    /// LSP to client: let us close this factory.
    21 ClosePropose of attempt {}
}

message! {
    /// Client to LSP: agreed, my channel is at rest.
    22 CloseConsent of attempt {
        /// Where the closing transaction pays the client: a witness program.
        4 => payout_script: ScriptBuf,
    }
}

message! {
    /// Client to LSP: I refuse. Possible at any step before the partial signature.
    23 CloseRefuse of attempt {
        /// Names the check that failed.
        4 => code: u16,
        /// The same for people; at most [`MAX_TEXT_LEN`](super::MAX_TEXT_LEN) bytes.
        6 => text: String,
    }
}

message! {
    /// LSP to client: the closing transaction to be signed.
    24 CloseTx of attempt {
        /// The transaction, unsigned.
        4 => transaction: Transaction,
        /// All signers of the funding output. At most [`MAX_KEYS`](super::MAX_KEYS).
        6 => keys: Vec<PublicKey>,
    }
}

message! {
    /// Client to LSP: the public nonce for the closing transaction.
    25 CloseNonce of attempt {
        /// BIP 327.
        4 => nonce: [u8; 66],
    }
}

message! {
    /// LSP to client: the aggregate nonce.
    26 CloseAggNonce of attempt {
        /// BIP 327.
        4 => nonce: [u8; 66],
    }
}

message! {
    /// Client to LSP: the partial signature.
    27 ClosePartial of attempt {
        /// BIP 327.
        4 => partial: [u8; 32],
    }
}

message! {
    /// LSP to client: the complete signature of the closing transaction.
    28 CloseDone of attempt {
        /// BIP 340.
        4 => signature: [u8; 64],
    }
}

message! {
    /// LSP to client: this attempt to close is over.
    29 CloseAbort of attempt {
        /// Names the reason.
        4 => code: u16,
        /// The same for people; at most [`MAX_TEXT_LEN`](super::MAX_TEXT_LEN) bytes.
        6 => text: String,
    }
}
