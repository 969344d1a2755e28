//! Liquidity for clients: what is done with a payment for which a client has no room, and the channels beside the factory
//! (JIT channels) that follow from it: ordinary channels that an LSP opens to its client when the factory cannot give the
//! client what it needs now.
//!
//! - [`decide`]: the decision, a pure function.
//! - `hold`: HTLCs that wait for it; bounded, in memory: LDK hands them out again after a restart.
//! - `serve`: the task that asks for the decision and acts.
//! - `open`: opening such a channel, its funding transaction, and what is recorded of it; `carry`: a child for that
//!   transaction if it lingers.
//! - `policy`: what the operator wants otherwise for single clients.
//! - `lsps2`, `offer`: the same for any wallet that buys a channel by LSPS2.
//! - `moving`, `moving_run`: a client's money goes from such a channel into the factory's, which is then closed.
//! - `accept`: which of them a client takes. A JIT channel is used before its funding transaction is confirmed; until then
//!   what the client has in it is trust in the LSP, and the client's policy says how much of that it takes.

mod accept;
mod carry;
pub mod decide;
mod hold;
mod lsps2;
mod moving;
mod moving_run;
mod offer;
mod open;
mod policy;
mod record;
mod room;
mod serve;
mod status;

use std::sync::{Arc, Mutex};

use bitcoin::hashes::{sha256, Hash};
use bitcoin::secp256k1::PublicKey;
use lightning::ln::types::ChannelId;
use lightning::types::payment::PaymentHash;
use tokio::sync::Notify;

pub(crate) use accept::OpenedToUs;
pub(crate) use carry::run as run_carry;
pub(crate) use hold::Full;
pub(crate) use lsps2::{lsps, run as run_lsps2};
pub(crate) use moving_run::run as run_moving;
pub(crate) use open::For;
pub(crate) use serve::run;

use crate::error::Error;
use crate::store::Store;
use crate::util::lock;

/// Begin of the user channel id of every JIT channel, on both sides. LDK stores the id with the channel.
const USER_ID_MARK: u32 = 0x6a69_7401;

/// Begin of the temporary channel id that the LSP gives such a channel. By it the client knows what is meant: a factory's
/// channel that it has given up must not pass for one beside it.
const TEMPORARY_MARK: [u8; 8] = *b"jit-chan";

/// A temporary channel id for such a channel.
pub(crate) fn new_temporary() -> ChannelId {
    let mut id: [u8; 32] = rand::random();
    let (mark, _) = id.split_at_mut(TEMPORARY_MARK.len());
    mark.copy_from_slice(&TEMPORARY_MARK);
    ChannelId(id)
}

fn marked(rest: u128) -> u128 {
    (u128::from(USER_ID_MARK) << 96) | (rest >> 32)
}

/// A user channel id of a JIT channel.
pub(crate) fn new_id() -> u128 {
    marked(u128::from_be_bytes(rand::random()))
}

/// The user channel id of the JIT channel that is opened for a client's payment: by it the channel is found after a restart.
/// Who pays can give two clients' payments the same hash.
fn id_for(peer: &PublicKey, hash: &PaymentHash) -> u128 {
    let both: Vec<u8> = peer.serialize().into_iter().chain(hash.0).collect();
    let digest = sha256::Hash::hash(&both).to_byte_array();
    marked(digest.iter().take(16).fold(0, |all, byte| (all << 8) | u128::from(*byte)))
}

/// Whether a channel was opened beside a factory.
pub(crate) fn is_jit(user_channel_id: u128) -> bool {
    user_channel_id >> 96 == u128::from(USER_ID_MARK)
}

/// What the node keeps of all this.
pub(crate) struct Liquidity {
    held: Mutex<hold::Held>,
    handed: Mutex<room::Handed>,
    records: record::Records,
    policies: policy::Policies,
    pub(crate) offers: offer::Offers,
    counts: Mutex<status::Counts>,
    moving: moving::Moving,
    /// Something has happened that held payments may have waited for.
    changed: Notify,
}

impl Liquidity {
    /// Reads what is stored.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::Corrupt`].
    pub(crate) fn open(store: Arc<Store>) -> Result<Self, Error> {
        Ok(Self {
            held: Mutex::default(),
            handed: Mutex::default(),
            records: record::Records::open(Arc::clone(&store))?,
            policies: policy::Policies::open(Arc::clone(&store))?,
            offers: offer::Offers::open(store)?,
            counts: Mutex::default(),
            moving: moving::Moving::default(),
            changed: Notify::new(),
        })
    }

    /// Has what is held looked at again.
    pub(crate) fn wake(&self) {
        if !lock(&self.held).is_empty() {
            self.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use bitcoin::secp256k1::{Secp256k1, SecretKey};

    use super::*;

    #[test]
    fn its_number_marks_a_channel_and_the_payment_that_it_is_for() {
        assert!(is_jit(new_id()) && !is_jit(0) && !crate::factory::is_marked(new_id()));
        assert_ne!(new_id(), new_id());
        let (one, other) = (PaymentHash([1; 32]), PaymentHash([2; 32]));
        let peer = |byte| SecretKey::from_slice(&[byte; 32]).unwrap().public_key(&Secp256k1::new());
        assert!(is_jit(id_for(&peer(1), &one)));
        assert_eq!(id_for(&peer(1), &one), id_for(&peer(1), &PaymentHash([1; 32])));
        assert_ne!(id_for(&peer(1), &one), id_for(&peer(1), &other));
        assert_ne!(id_for(&peer(1), &one), id_for(&peer(2), &one));
        assert!(new_temporary().0.starts_with(&TEMPORARY_MARK));
    }
}
