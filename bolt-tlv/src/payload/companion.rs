//! The messages that keep a channel's commitments valid on every real funding outpoint of it.
//!
//! To LDK a channel has one funding outpoint, V. A factory that changes state gives it further real ones, of the same
//! value and script. [`Marker`] announces one: from there on each `commitment_signed` of the sender for V comes with
//! [`Companions`], signatures of the same commitment on each real outpoint announced so far.
//!
//! These messages are about a channel, not about a factory's instance and attempt: record 0 is the channel's id here,
//! and 2 is V.

use bitcoin::OutPoint;

use super::codec::{message, Value};
use super::limits::{MAX_COMPANIONS, MAX_HTLC_SIGNATURES};
use crate::tlv::{write_bigsize, Reader};
use crate::Error;

message! {
    /// Either to either: each `commitment_signed` that I send after this one comes with a companion on this outpoint
    /// too. Companions of those of your commitments that I have signed and you have not revoked follow.
    50 Marker of nothing {
        /// The channel's id (BOLT 2).
        0 => channel_id: [u8; 32],
        /// V: the funding outpoint that the channel knows.
        2 => funding: OutPoint,
        /// The real outpoint.
        4 => real: OutPoint,
    }
}

message! {
    /// The answer to [`Marker`]: I have stored a companion on this outpoint for each of my unrevoked commitments.
    51 MarkerAck of nothing {
        /// The channel's id (BOLT 2).
        0 => channel_id: [u8; 32],
        /// V.
        2 => funding: OutPoint,
        /// The real outpoint.
        4 => real: OutPoint,
    }
}

message! {
    /// Signatures of one of the receiver's commitments on real outpoints. What does not fit comes in a further message
    /// of the same commitment.
    52 Companions of nothing {
        /// The channel's id (BOLT 2).
        0 => channel_id: [u8; 32],
        /// V.
        2 => funding: OutPoint,
        /// The commitment's number as BOLT 3 counts it, from 0 up.
        4 => number: u64,
        /// The signature in the `commitment_signed` that these belong to (BOLT 2).
        6 => commitment: [u8; 64],
        /// One for each real outpoint; at most [`MAX_COMPANIONS`].
        8 => companions: Vec<Companion>,
    }
}

/// Signatures of one commitment on one real outpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Companion {
    /// The real outpoint.
    pub real: OutPoint,
    /// As `signature` of `commitment_signed`.
    pub signature: [u8; 64],
    /// As `htlc_signature`, in the same order; at most [`MAX_HTLC_SIGNATURES`].
    pub htlc_signatures: Vec<[u8; 64]>,
}

impl Companion {
    /// Bytes that it takes in a message with others.
    pub fn encoded_len(&self) -> usize {
        let mut out = Vec::new();
        self.put(&mut out);
        out.len()
    }

    fn put(&self, out: &mut Vec<u8>) {
        self.real.put(out);
        out.extend_from_slice(&self.signature);
        write_bigsize(out, self.htlc_signatures.len() as u64);
        out.extend(self.htlc_signatures.iter().flatten());
    }

    fn get(record: &mut Reader<'_>) -> Result<Self, Error> {
        let real = OutPoint::get(Reader::new(record.field(), &record.array::<36>()?))?;
        let signature = record.array()?;
        let mut htlc_signatures = Vec::new();
        for _ in 0..record.count(MAX_HTLC_SIGNATURES)? {
            htlc_signatures.push(record.array()?);
        }
        Ok(Self { real, signature, htlc_signatures })
    }
}

/// One after the other to the end of the record, without a count: at most [`MAX_COMPANIONS`].
impl Value for Vec<Companion> {
    fn put(&self, out: &mut Vec<u8>) {
        self.iter().for_each(|companion| companion.put(out));
    }

    fn get(mut record: Reader<'_>) -> Result<Self, Error> {
        let field = record.field();
        let mut companions = Vec::new();
        while record.left() > 0 {
            if companions.len() == MAX_COMPANIONS {
                let found = MAX_COMPANIONS as u64 + 1;
                return Err(Error::TooMany { field, limit: MAX_COMPANIONS, found });
            }
            companions.push(Companion::get(&mut record)?);
        }
        Ok(companions)
    }
}
