//! A checksum at the end of every stored value.
//!
//! Neither file systems nor SQLite notice a bit that turned. A balance in a record that turned would be believed, so
//! every value ends with a checksum over its name and its bytes, and all are checked when a store is opened.

use bitcoin::hashes::{sha256, Hash, HashEngine};

/// Between the value and its checksum.
const MARK: &[u8; 2] = b"\n~";
/// Bytes of SHA-256 that are kept.
const KEPT: usize = 16;
/// Length of what stands behind the value, bytes.
const LENGTH: usize = MARK.len() + 2 * KEPT;

/// The name of a value: primary and secondary namespace, key.
pub(crate) type Name<'a> = (&'a str, &'a str, &'a str);

fn sum((primary, secondary, key): Name<'_>, value: &[u8]) -> String {
    let mut engine = sha256::Hash::engine();
    for part in [primary, secondary, key] {
        // Names are at most 120 bytes.
        engine.input(&[u8::try_from(part.len()).unwrap_or(u8::MAX)]);
        engine.input(part.as_bytes());
    }
    engine.input(value);
    hex::encode(&sha256::Hash::from_engine(engine)[..KEPT])
}

/// Adds the checksum.
pub(crate) fn seal(name: Name<'_>, mut value: Vec<u8>) -> Vec<u8> {
    let sum = sum(name, &value);
    value.reserve_exact(LENGTH);
    value.extend_from_slice(MARK);
    value.extend_from_slice(sum.as_bytes());
    value
}

/// Takes the checksum off; `None` if it is not there or not right.
pub(crate) fn open(name: Name<'_>, mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    let tail = bytes.split_off(bytes.len().checked_sub(LENGTH)?);
    let sealed = tail.strip_prefix(MARK)? == sum(name, &bytes).as_bytes();
    sealed.then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_bound_to_its_name_and_its_bytes() {
        for value in [vec![], b"\n~".to_vec(), vec![7; 1000]] {
            let sealed = seal(("a", "b", "c"), value.clone());
            assert_eq!(open(("a", "b", "c"), sealed.clone()), Some(value));
            for other in [("ab", "", "c"), ("a", "bc", ""), ("a", "b", "d")] {
                assert_eq!(open(other, sealed.clone()), None);
            }
            for at in 0..sealed.len() {
                let mut damaged = sealed.clone();
                damaged[at] ^= 1;
                assert_eq!(open(("a", "b", "c"), damaged), None, "byte {at}");
                assert_eq!(open(("a", "b", "c"), sealed[..at].to_vec()), None, "cut at {at}");
            }
        }
    }
}
