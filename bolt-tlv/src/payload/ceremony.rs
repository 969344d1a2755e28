//! The messages that create a factory, in the order in which they are sent.

use bitcoin::secp256k1::PublicKey;
use bitcoin::{OutPoint, ScriptBuf, Transaction};

use super::codec::{list, message, payout_script, Value};
use super::limits::{MAX_OUTPUTS, MAX_SCRIPT_LEN};
use super::params::PlanParams;
use crate::tlv::{write_bigsize, write_bytes, Reader};
use crate::Error;

message! {
    /// Client to LSP: I wait for a factory. Names no instance, for there is none yet.
    1 Join of nothing {
        /// The version of this protocol the client speaks.
        0 => version: u16,
        /// The smallest channel it wants, in sat.
        2 => min_capacity_sat: u64,
        /// The largest channel it wants, in sat.
        4 => max_capacity_sat: u64,
    }
}

message! {
    /// LSP to client: a factory is being made up; will you take part?
    2 Invite of attempt {}
}

message! {
    /// Client to LSP: I take part.
    3 Accept of attempt {
        /// The client's fresh key for this factory.
        4 => factory_key: PublicKey,
        /// Where distributions and the like pay the client: a witness program.
        6 => payout_script: ScriptBuf,
    }
}

message! {
    /// Client to LSP: I refuse. Possible at any step.
    4 Decline of attempt {
        /// Names the check that failed.
        4 => code: u16,
        /// The same for people; at most [`MAX_TEXT_LEN`](super::MAX_TEXT_LEN) bytes.
        6 => text: String,
    }
}

/// One client of a leaf, as the other clients of the leaf have to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafMember {
    /// Capacity of its channel, in sat.
    pub capacity_sat: u64,
    /// Part of the capacity that is the client's from the start, in msat.
    pub push_msat: u64,
    /// Where distributions pay it: a witness program.
    pub payout_script: ScriptBuf,
    /// The `temporary_channel_id` under which its channel is opened.
    pub temporary_channel_id: [u8; 32],
}

message! {
    /// LSP to client: the plan. From it the client rebuilds the tree's shape, and checks it.
    5 Plan of attempt {
        /// The message start bytes of the Bitcoin network.
        4 => network_magic: [u8; 4],
        /// The block height the plan counts from.
        6 => birth_height: u32,
        /// The block height T at which the distributions become valid.
        8 => expiry_height: u32,
        /// Shape, layers and deadlines.
        10 => params: PlanParams,
        /// The factory keys: the LSP's first, then the clients' in tree order. At most
        /// [`MAX_KEYS`](super::MAX_KEYS).
        12 => keys: Vec<PublicKey>,
        /// The place of the receiving client in `keys`.
        14 => index: u32,
        /// The members of the receiving client's leaf in tree order. At most
        /// [`MAX_OUTPUTS`](super::MAX_OUTPUTS).
        16 => leaf: Vec<LeafMember>,
        /// The leaf's liquidity stock, in sat.
        18 => stock_sat: u64,
        /// Where the stock pays: a witness program.
        20 => stock_script: ScriptBuf,
    }
}

message! {
    /// Client to LSP: I have checked the plan and agree.
    6 PlanOk of attempt {}
}

message! {
    /// LSP to client: what the transactions of your path contain that you cannot know yourself.
    7 Path of attempt {
        /// The funding output.
        4 => funding_outpoint: OutPoint,
        /// Its amount, in sat.
        6 => funding_sat: u64,
        /// For each interior level, root first: the amount in sat and the script of every child output,
        /// in order, of the node on the client's path. At most [`MAX_LEVELS`](super::MAX_LEVELS) levels
        /// of [`MAX_OUTPUTS`](super::MAX_OUTPUTS) outputs.
        8 => levels: Vec<Vec<(u64, ScriptBuf)>>,
        /// The funding script of each leaf member's channel, in order. At most
        /// [`MAX_OUTPUTS`](super::MAX_OUTPUTS).
        10 => channel_scripts: Vec<ScriptBuf>,
    }
}

message! {
    /// Client to LSP: a public nonce for each transaction of the client's path.
    8 Nonces of attempt {
        /// 66 bytes each (BIP 327); at most [`MAX_SESSIONS`](super::MAX_SESSIONS).
        4 => nonces: Vec<[u8; 66]>,
    }
}

message! {
    /// LSP to client: the aggregate nonces, in the order of [`Nonces`].
    9 AggNonces of attempt {
        /// 66 bytes each (BIP 327); at most [`MAX_SESSIONS`](super::MAX_SESSIONS).
        4 => nonces: Vec<[u8; 66]>,
    }
}

message! {
    /// Client to LSP: the partial signatures, in the order of [`Nonces`].
    10 Partials of attempt {
        /// 32 bytes each (BIP 327); at most [`MAX_SESSIONS`](super::MAX_SESSIONS).
        4 => partials: Vec<[u8; 32]>,
    }
}

message! {
    /// LSP to client: the complete signatures, in the order of [`Nonces`].
    11 Signed of attempt {
        /// 64 bytes each (BIP 340); at most [`MAX_SESSIONS`](super::MAX_SESSIONS).
        4 => signatures: Vec<[u8; 64]>,
    }
}

message! {
    /// Client to LSP: my whole signed path and my channel's first commitment are on disk.
    12 Persisted of attempt {}
}

message! {
    /// LSP to client: the funding transaction, signed and broadcast.
    13 Funded of attempt {
        /// The complete transaction.
        4 => transaction: Transaction,
    }
}

message! {
    /// LSP to client: this attempt is over.
    14 Abort of attempt {
        /// Names the reason.
        4 => code: u16,
        /// The same for people; at most [`MAX_TEXT_LEN`](super::MAX_TEXT_LEN) bytes.
        6 => text: String,
        /// The factory key of the client whose fault it was, if it was one's.
        7 => culprit: Option<PublicKey>,
    }
}

/// A count, then for each member `capacity_sat`, `push_msat`, `temporary_channel_id` and the payout script
/// with a BigSize length in front.
impl Value for Vec<LeafMember> {
    fn put(&self, out: &mut Vec<u8>) {
        write_bigsize(out, self.len() as u64);
        for member in self {
            member.capacity_sat.put(out);
            member.push_msat.put(out);
            member.temporary_channel_id.put(out);
            write_bytes(out, member.payout_script.as_bytes());
        }
    }
    fn get(mut record: Reader<'_>) -> Result<Self, Error> {
        let members = list(&mut record, MAX_OUTPUTS, |record| {
            Ok(LeafMember {
                capacity_sat: record.u64()?,
                push_msat: record.u64()?,
                temporary_channel_id: record.array()?,
                payout_script: payout_script(record.field(), record.bytes(MAX_SCRIPT_LEN)?)?,
            })
        })?;
        record.finish()?;
        Ok(members)
    }
}
