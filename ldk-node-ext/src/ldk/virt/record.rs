//! What is stored of one channel's commitments, in LDK's own encodings as hex.

use bitcoin::secp256k1::ecdsa::Signature;
use bitcoin::OutPoint;
use lightning::ln::chan_utils::{
    ChannelTransactionParameters, CommitmentTransaction, HolderCommitmentTransaction,
};
use lightning::ln::msgs::DecodeError;
use lightning::util::ser::{Readable, ReadableArgs, Writeable};
use serde::{Deserialize, Serialize};

use super::channel::{Announced, Channel, Own, Theirs};
use super::companion::Signed;

/// Hex of something of LDK's.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Hex(String);

impl Hex {
    fn of(value: &impl Writeable) -> Self {
        Self(hex::encode(value.encode()))
    }

    fn bytes(&self) -> Result<Vec<u8>, String> {
        hex::decode(&self.0).map_err(|e| e.to_string())
    }

    fn read<T: Readable>(&self) -> Result<T, String> {
        T::read(&mut &self.bytes()?[..]).map_err(text)
    }
}

fn text(e: DecodeError) -> String {
    format!("{e:?}")
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct StoredSigned {
    real: OutPoint,
    signature: Hex,
    htlcs: Vec<Hex>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct StoredOwn {
    commitment: Hex,
    companions: Vec<StoredSigned>,
    #[serde(default, skip_serializing_if = "is_false")]
    predicted: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct StoredAnnounced {
    funding: OutPoint,
    real: OutPoint,
    covered: bool,
}

/// A channel's record.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StoredCommitments {
    #[serde(with = "hex::serde")]
    keys_id: [u8; 32],
    parameters: Vec<Hex>,
    theirs: Vec<Hex>,
    /// V of commitments among those of the peer's that are predicted only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    predicted: Vec<OutPoint>,
    own: Vec<StoredOwn>,
    announced: Vec<StoredAnnounced>,
}

impl From<&Channel> for StoredCommitments {
    fn from(channel: &Channel) -> Self {
        let signed = |(real, signed): &(OutPoint, Signed)| StoredSigned {
            real: *real,
            signature: Hex::of(&signed.signature),
            htlcs: signed.htlcs.iter().map(Hex::of).collect(),
        };
        let own = |own: &Own| StoredOwn {
            commitment: Hex::of(&own.commitment),
            companions: own.companions.iter().map(signed).collect(),
            predicted: own.predicted,
        };
        let announced = |a: &Announced| StoredAnnounced { funding: a.v, real: a.real, covered: a.covered };
        Self {
            keys_id: channel.keys_id,
            parameters: channel.parameters.iter().map(Hex::of).collect(),
            theirs: channel.theirs.iter().map(|t| Hex::of(&t.commitment)).collect(),
            predicted: channel.theirs.iter().filter(|t| t.predicted).map(|t| t.v).collect(),
            own: channel.own.iter().map(own).collect(),
            announced: channel.announced.iter().map(announced).collect(),
        }
    }
}

impl StoredCommitments {
    /// The channel as it was stored.
    ///
    /// # Errors
    /// What cannot be read.
    pub(super) fn channel(&self) -> Result<Channel, String> {
        let parameters = |stored: &Hex| {
            let read = <ChannelTransactionParameters as ReadableArgs<Option<u64>>>::read;
            read(&mut &stored.bytes()?[..], None).map_err(text)
        };
        let signed = |stored: &StoredSigned| {
            let htlcs = stored.htlcs.iter().map(Hex::read::<Signature>).collect::<Result<_, String>>()?;
            Ok((stored.real, Signed { signature: stored.signature.read()?, htlcs }))
        };
        let own = |stored: &StoredOwn| {
            let commitment = stored.commitment.read::<HolderCommitmentTransaction>()?;
            let companions = stored.companions.iter().map(signed).collect::<Result<_, String>>()?;
            let own = Own::read(commitment, companions).ok_or("a commitment without an input")?;
            Ok(Own { predicted: stored.predicted, ..own })
        };
        let theirs = |stored: &Hex| {
            let theirs = Theirs::new(stored.read::<CommitmentTransaction>()?, None)
                .ok_or_else(|| "a commitment without an input".to_owned())?;
            Ok(Theirs { predicted: self.predicted.contains(&theirs.v), ..theirs })
        };
        let announced = |a: &StoredAnnounced| Announced { v: a.funding, real: a.real, covered: a.covered };
        let mut channel = Channel::new(self.keys_id);
        channel.parameters = self.parameters.iter().map(parameters).collect::<Result<_, _>>()?;
        channel.theirs = self.theirs.iter().map(theirs).collect::<Result<_, String>>()?;
        channel.own = self.own.iter().map(own).collect::<Result<_, String>>()?;
        channel.announced = self.announced.iter().map(announced).collect();
        Ok(channel)
    }
}
