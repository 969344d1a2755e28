//! The messages that advance a factory's state: of a leaf, a branch or the root.
//!
//! The receiving client's *path* is meant wherever a list of nonces or signatures is told to be in order: from the
//! node that advances to the leaf. *Outer* is what spends an output that stays as it is: the outermost transaction
//! that changes, and distributions of such outputs. *Inner* is what hangs below it.

use bitcoin::secp256k1::PublicKey;
use bitcoin::ScriptBuf;

use super::codec::message;

message! {
    /// LSP to client: let us advance this node to a newer state. In bLIP-56's terms the payload of
    /// `factory_change_init`.
    30 AdvancePropose of attempt {
        /// The level of the node, 0 is the root.
        4 => level: u16,
        /// The position of the odometer that the receiving client's leaf is at.
        6 => from: u64,
        /// The position it shall be at.
        8 => position: u64,
        /// The factory keys of the clients below the node, in tree order. At most
        /// [`MAX_KEYS`](super::MAX_KEYS).
        10 => keys: Vec<PublicKey>,
        /// The new capacities of the members of the receiving client's leaf, in sat, in order. At most
        /// [`MAX_OUTPUTS`](super::MAX_OUTPUTS).
        12 => capacities_sat: Vec<u64>,
        /// The new liquidity stock of that leaf, in sat.
        14 => stock_sat: u64,
        /// Why; for people and for the client's policy.
        16 => reason: u16,
    }
}

message! {
    /// Client to LSP: agreed; with the public nonces (BIP 327) for everything the client is going to sign. In
    /// bLIP-56's terms the payload of `factory_change_ack`.
    31 AdvanceAgree of attempt {
        /// For the inner transactions. At most [`MAX_SESSIONS`](super::MAX_SESSIONS), as all such lists.
        4 => inner: Vec<[u8; 66]>,
        /// For the outer ones.
        6 => outer: Vec<[u8; 66]>,
    }
}

message! {
    /// Client to LSP: I refuse. Possible at any step before the outer partial signatures.
    32 AdvanceRefuse of attempt {
        /// Names the check that failed.
        4 => code: u16,
        /// The same for people; at most [`MAX_TEXT_LEN`](super::MAX_TEXT_LEN) bytes.
        6 => text: String,
    }
}

message! {
    /// LSP to client: what the new transactions contain that you cannot know yourself.
    33 AdvanceTree of attempt {
        /// For each interior level from the node on: the amount in sat and the script of every child output, in
        /// order, of the node on the client's path. At most [`MAX_LEVELS`](super::MAX_LEVELS) levels of
        /// [`MAX_OUTPUTS`](super::MAX_OUTPUTS) outputs.
        4 => levels: Vec<Vec<(u64, ScriptBuf)>>,
        /// The funding script of each leaf member's channel, in order. At most
        /// [`MAX_OUTPUTS`](super::MAX_OUTPUTS).
        6 => channel_scripts: Vec<ScriptBuf>,
    }
}

message! {
    /// LSP to client: the aggregate nonces.
    34 AdvanceAggNonces of attempt {
        /// For the inner transactions.
        4 => inner: Vec<[u8; 66]>,
        /// For the outer ones.
        6 => outer: Vec<[u8; 66]>,
    }
}

message! {
    /// Client to LSP: the partial signatures of the inner transactions. Left out if there are none.
    35 AdvancePartials of attempt {
        /// BIP 327.
        4 => partials: Vec<[u8; 32]>,
    }
}

message! {
    /// LSP to client: the complete signatures of the inner transactions. Left out if there are none.
    36 AdvanceInner of attempt {
        /// BIP 340.
        4 => signatures: Vec<[u8; 64]>,
    }
}

message! {
    /// Client to LSP: the partial signatures of the outer transactions. From here on the new state may come to be.
    37 AdvanceOuter of attempt {
        /// BIP 327.
        4 => partials: Vec<[u8; 32]>,
    }
}

message! {
    /// LSP to client: the complete signatures of the outer transactions.
    38 AdvanceSigned of attempt {
        /// BIP 340.
        4 => signatures: Vec<[u8; 64]>,
    }
}

message! {
    /// Client to LSP: the new state is stored.
    39 AdvancePersisted of attempt {}
}

message! {
    /// Client to LSP: how I stand with this try, after I was away or when I hear that it is over.
    40 AdvanceResume of attempt {
        /// 0: I gave no outer partial signature and never will, so my channel is free of this try; nothing is to be
        /// answered. Else: I gave mine, or may have, and do not know how it ended; the answer is [`AdvanceSigned`] or
        /// [`AdvanceAbort`].
        4 => pending: u16,
    }
}

message! {
    /// LSP to client: this attempt is over.
    41 AdvanceAbort of attempt {
        /// Names the reason.
        4 => code: u16,
        /// The same for people; at most [`MAX_TEXT_LEN`](super::MAX_TEXT_LEN) bytes.
        6 => text: String,
    }
}

message! {
    /// Client to LSP: please give my channel another capacity. The answer is [`AdvancePropose`] or [`AdvanceDecline`].
    43 AdvanceAsk of instance {
        /// The capacity it shall have, sat.
        4 => capacity_sat: u64,
    }
}

message! {
    /// LSP to client: what you asked for by [`AdvanceAsk`] will not be.
    45 AdvanceDecline of instance {
        /// Names the reason.
        4 => code: u16,
        /// The same for people; at most [`MAX_TEXT_LEN`](super::MAX_TEXT_LEN) bytes.
        6 => text: String,
    }
}
