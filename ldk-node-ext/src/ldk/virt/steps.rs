//! What a retired monitor has to learn of the updates of the live one: secrets and preimages, nothing else.
//!
//! The steps of a [`ChannelMonitorUpdate`] are private in LDK, its encoding is versioned and public. So this works on
//! the encoding: two bytes of version, the id (u64), the number of steps (u64), each step as type (u8), length
//! (BigSize) and a TLV stream, then a TLV stream with the channel's id. The test pins it for the LDK of this lockfile.

use lightning::chain::channelmonitor::ChannelMonitorUpdate;
use lightning::ln::chan_utils::{
    ChannelTransactionParameters, CommitmentTransaction, HolderCommitmentTransaction,
};
use lightning::ln::msgs::DecodeError;
use lightning::ln::types::ChannelId;
use lightning::util::ser::{BigSize, Readable, Writeable};

/// The preimage of an HTLC.
const PAYMENT_PREIMAGE: u8 = 2;
/// The secret of a commitment that the peer has revoked.
const COMMITMENT_SECRET: u8 = 3;
/// A splice is locked: the funding outpoint before it is forgotten.
const FUNDING_LOCKED: u8 = 12;

/// A splice is signed: there is another funding outpoint, with commitments.
const FUNDING_RENEGOTIATED: u8 = 10;

/// Writes a step.
fn put(kind: u8, records: &[(u8, Vec<u8>)], out: &mut Vec<u8>) {
    let mut contents = Vec::new();
    for (number, value) in records {
        contents.push(*number);
        contents.extend(BigSize(u64::try_from(value.len()).unwrap_or(u64::MAX)).encode());
        contents.extend(value);
    }
    out.push(kind);
    out.extend(BigSize(u64::try_from(contents.len()).unwrap_or(u64::MAX)).encode());
    out.extend(contents);
}

/// The update by which a monitor moves on to a V' with these commitments, as if the splice were locked.
///
/// # Errors
/// If LDK's encoding is not what this file knows.
pub(super) fn moved(
    id: u64,
    channel: &ChannelId,
    parameters: &ChannelTransactionParameters,
    own: &HolderCommitmentTransaction,
    theirs: &CommitmentTransaction,
) -> Result<ChannelMonitorUpdate, DecodeError> {
    let v = parameters.funding_outpoint.ok_or(DecodeError::InvalidValue)?;
    let mut bytes = vec![1, 1];
    bytes.extend(id.to_be_bytes());
    bytes.extend(2u64.to_be_bytes());
    let renegotiated = [(1, parameters.encode()), (3, own.encode()), (5, theirs.encode())];
    put(FUNDING_RENEGOTIATED, &renegotiated, &mut bytes);
    put(FUNDING_LOCKED, &[(1, v.txid.encode())], &mut bytes);
    bytes.extend([34, 3, 32]);
    bytes.extend(channel.0);
    ChannelMonitorUpdate::read(&mut &bytes[..])
}

/// The part of an update that matters to retired monitors.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Steps {
    /// The id of the update.
    pub(super) id: u64,
    /// Whether the update makes the monitor forget the funding outpoint that it had.
    pub(super) locks: bool,
    version: [u8; 2],
    kept: Vec<Vec<u8>>,
}

/// Takes bytes off the front.
fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Result<&'a [u8], DecodeError> {
    let (front, rest) = bytes.split_at_checked(length).ok_or(DecodeError::ShortRead)?;
    *bytes = rest;
    Ok(front)
}

impl Steps {
    /// Reads an update.
    ///
    /// # Errors
    /// If LDK's encoding is not what this file knows.
    pub(super) fn of(update: &ChannelMonitorUpdate) -> Result<Self, DecodeError> {
        let encoded = update.encode();
        let mut rest = &encoded[..];
        let version = [u8::read(&mut rest)?, u8::read(&mut rest)?];
        let id = u64::read(&mut rest)?;
        let count = u64::read(&mut rest)?;
        let (mut locks, mut kept) = (false, Vec::new());
        for _ in 0..count {
            let step = rest;
            let kind = u8::read(&mut rest)?;
            let length =
                usize::try_from(BigSize::read(&mut rest)?.0).map_err(|_| DecodeError::InvalidValue)?;
            take(&mut rest, length)?;
            locks |= kind == FUNDING_LOCKED;
            if matches!(kind, PAYMENT_PREIMAGE | COMMITMENT_SECRET) {
                kept.push(step[..step.len() - rest.len()].to_vec());
            }
        }
        Ok(Self { id, locks, version, kept })
    }

    /// Whether nothing of it matters.
    pub(super) fn is_empty(&self) -> bool {
        !self.locks && self.kept.is_empty()
    }

    /// The update for a retired monitor, with the id that comes next there; none if there is nothing in it.
    ///
    /// # Errors
    /// If LDK's encoding is not what this file knows.
    pub(super) fn update(
        &self,
        id: u64,
        channel: &ChannelId,
    ) -> Result<Option<ChannelMonitorUpdate>, DecodeError> {
        let Ok(count @ 1..) = u64::try_from(self.kept.len()) else { return Ok(None) };
        let mut bytes = self.version.to_vec();
        bytes.extend(id.to_be_bytes());
        bytes.extend(count.to_be_bytes());
        bytes.extend(self.kept.iter().flatten());
        // A stream of 34 bytes with one record: type 3, the channel's id.
        bytes.extend([34, 3, 32]);
        bytes.extend(channel.0);
        ChannelMonitorUpdate::read(&mut &bytes[..]).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An update with these steps, type and contents.
    fn update(steps: &[(u8, Vec<u8>)]) -> ChannelMonitorUpdate {
        let mut bytes = vec![1, 1];
        bytes.extend(7u64.to_be_bytes());
        bytes.extend(u64::try_from(steps.len()).unwrap().to_be_bytes());
        for (kind, contents) in steps {
            bytes.push(*kind);
            BigSize(contents.len() as u64).write(&mut bytes).unwrap();
            bytes.extend(contents);
        }
        bytes.extend([34, 3, 32]);
        bytes.extend([9; 32]);
        let update = ChannelMonitorUpdate::read(&mut &bytes[..]).unwrap();
        assert_eq!(update.encode(), bytes, "LDK writes what it reads");
        update
    }

    fn record(kind: u8, value: &[u8]) -> Vec<u8> {
        [&[kind, u8::try_from(value.len()).unwrap()], value].concat()
    }

    #[test]
    fn secrets_and_preimages_are_taken_out_of_an_update() {
        let channel = ChannelId([9; 32]);
        let secret = (3, [record(0, &5u64.to_be_bytes()), record(2, &[6; 32])].concat());
        let preimage = (2, record(0, &[8; 32]));
        let closed = (4, record(0, &[1]));
        // Longer than one byte can say.
        let script = (5, [&[0, 0xfd, 1, 0x2e, 1, 0x2c][..], &[0x51; 300]].concat());
        let locked = (12, record(1, &[4; 32]));

        let all = update(&[script.clone(), secret.clone(), closed.clone(), preimage.clone(), locked]);
        let steps = Steps::of(&all).unwrap();
        assert_eq!((steps.id, steps.locks, steps.is_empty()), (7, true, false));
        let forwarded = steps.update(40, &channel).unwrap().unwrap();
        assert_eq!((forwarded.update_id, forwarded.channel_id), (40, Some(channel)));
        let mut expected = update(&[secret, preimage]);
        expected.update_id = 40;
        assert_eq!(forwarded, expected);

        let nothing = Steps::of(&update(&[script, closed])).unwrap();
        assert!(nothing.is_empty() && nothing.update(1, &channel).unwrap().is_none());
    }
}
