//! Transactions inside messages: consensus encoding (BIP 144), with witnesses if there are any.
//!
//! The decoder of the crate `bitcoin` takes memory for what a transaction announces before it looks whether it is
//! there: 100 bytes could cost 16 MB and the time to fill them. So we look first.

use bitcoin::{consensus, Transaction};

use super::codec::Value;
use super::limits::MAX_PAYLOAD_LEN;
use crate::tlv::Reader;
use crate::Error;

/// The payload's size is the limit.
impl Value for Transaction {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&consensus::serialize(self));
    }
    fn get(record: Reader<'_>) -> Result<Self, Error> {
        let field = record.field();
        let bytes = record.all(MAX_PAYLOAD_LEN)?;
        let wrong = Error::InvalidTransaction(field);
        is_all_there(bytes).map_err(|_| wrong.clone())?;
        consensus::deserialize(bytes).map_err(|_| wrong)
    }
}

/// Walks over a transaction without taking memory: everything that it announces follows. Each round of a loop consumes
/// at least a byte, so it ends with the input.
fn is_all_there(bytes: &[u8]) -> Result<(), Error> {
    let mut tx = Reader::new("transaction", bytes);
    tx.take(4)?;
    let mut inputs = compact_size(&mut tx)?;
    let with_witnesses = inputs == 0;
    if with_witnesses {
        tx.take(1)?;
        inputs = compact_size(&mut tx)?;
    }
    for _ in 0..inputs {
        tx.take(36)?;
        bytes_with_length(&mut tx)?;
        tx.take(4)?;
    }
    for _ in 0..compact_size(&mut tx)? {
        tx.take(8)?;
        bytes_with_length(&mut tx)?;
    }
    if with_witnesses {
        for _ in 0..inputs {
            for _ in 0..compact_size(&mut tx)? {
                bytes_with_length(&mut tx)?;
            }
        }
    }
    tx.take(4)?;
    tx.finish()
}

fn bytes_with_length(tx: &mut Reader<'_>) -> Result<(), Error> {
    let length = compact_size(tx)?;
    tx.take(length).map(drop)
}

/// Bitcoin's variable-length integer: as BigSize, but little-endian. Whether it is minimal is the decoder's matter.
fn compact_size(tx: &mut Reader<'_>) -> Result<u64, Error> {
    Ok(match tx.u8()? {
        0xff => u64::from_le_bytes(tx.array()?),
        0xfe => u32::from_le_bytes(tx.array()?).into(),
        0xfd => u16::from_le_bytes(tx.array()?).into(),
        small => small.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSION: [u8; 4] = [2, 0, 0, 0];
    const MILLIONS: [u8; 5] = [0xfe, 0, 0x09, 0x3d, 0];

    fn input() -> Vec<u8> {
        [vec![1], vec![7; 36], vec![0], vec![0xff; 4]].concat()
    }

    #[test]
    fn what_is_announced_and_not_there_is_refused_before_it_is_decoded() {
        let marker = [0, 1];
        let output = [vec![1], vec![0; 8], vec![0]].concat();
        let cases = [
            [&VERSION[..], &MILLIONS].concat(),
            [&VERSION[..], &[0xff; 9]].concat(),
            [&VERSION[..], &input(), &MILLIONS].concat(),
            [&VERSION[..], &[1], &[7; 36], &MILLIONS].concat(),
            // Of these the decoder took 16 MB.
            [&VERSION[..], &marker, &input(), &output, &MILLIONS, &[0; 4]].concat(),
            [&VERSION[..], &marker, &input(), &output, &[1], &MILLIONS].concat(),
        ];
        for case in cases {
            let refused = is_all_there(&case);
            assert!(matches!(refused, Err(Error::Truncated { field: "transaction", .. })), "{refused:?}");
            assert!(Transaction::get(Reader::new("transaction", &case)).is_err());
        }
    }

    #[test]
    fn a_whole_one_is_walked_to_its_end() {
        for marker in [&[][..], &[0, 1]] {
            let output = [vec![1], vec![0; 8], vec![1, 0x51]].concat();
            let witness = if marker.is_empty() { vec![] } else { vec![2, 1, 9, 0] };
            let tx = [&VERSION[..], marker, &input(), &output, &witness, &[0; 4]].concat();
            let read = Transaction::get(Reader::new("transaction", &tx)).unwrap();
            assert_eq!(consensus::serialize(&read), tx);
            let longer = [&tx[..], &[0]].concat();
            assert!(matches!(is_all_there(&longer), Err(Error::TrailingBytes { .. })));
        }
    }
}
