//! BigSize and TLV streams against the test vectors of BOLT 1 and against arbitrary bytes.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use bolt_tlv::tlv::{write_bigsize, Reader, TlvRecords, TlvWriter};
use bolt_tlv::Error;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

/// BOLT 1, appendix A: encoding tests, each used in both directions.
const BIGSIZE: &[(u64, &str)] = &[
    (0, "00"),
    (252, "fc"),
    (253, "fd00fd"),
    (65_535, "fdffff"),
    (65_536, "fe00010000"),
    (4_294_967_295, "feffffffff"),
    (4_294_967_296, "ff0000000100000000"),
    (18_446_744_073_709_551_615, "ffffffffffffffffff"),
];

#[test]
fn bigsize_encodes_as_in_bolt_1() {
    for (value, hex) in BIGSIZE {
        let mut out = Vec::new();
        write_bigsize(&mut out, *value);
        assert_eq!(hex::encode(&out), *hex);
        let mut reader = Reader::new("test", &out);
        assert_eq!(reader.bigsize(), Ok(*value));
        assert_eq!(reader.left(), 0);
    }
}

#[test]
fn bigsize_refuses_what_bolt_1_refuses() {
    for hex in ["fd00fc", "fe0000ffff", "ff00000000ffffffff"] {
        let error = Reader::new("test", &hex::decode(hex).unwrap()).bigsize().unwrap_err();
        assert!(matches!(error, Error::NotMinimal { .. }), "{hex}: {error}");
    }
    for hex in ["", "fd", "fe", "ff", "fd00", "feffff", "ffffffffff"] {
        let error = Reader::new("test", &hex::decode(hex).unwrap()).bigsize().unwrap_err();
        assert!(matches!(error, Error::Truncated { .. }), "{hex}: {error}");
    }
}

/// BOLT 1, appendix B: streams that fail in any namespace, and streams that fail in one where 1, 2, 3 and
/// 254 are known.
#[test]
fn streams_refuse_what_bolt_1_refuses() {
    let truncated = ["fd", "fd01", "fd000100", "fd0101", "0ffd", "0ffd26", "0ffd2602", "0ffd000100"];
    let not_minimal = ["fd000100", "0ffd000100"];
    for hex in truncated {
        let error = TlvRecords::read(&hex::decode(hex).unwrap(), &[1, 2, 3, 254]).unwrap_err();
        match error {
            Error::NotMinimal { .. } => assert!(not_minimal.contains(&hex), "{hex}"),
            Error::Truncated { .. } => assert!(!not_minimal.contains(&hex), "{hex}"),
            other => panic!("{hex}: {other}"),
        }
    }
    for hex in ["1200", "fd010200", "fe0100000200", "ff010000000000000200"] {
        let error = TlvRecords::read(&hex::decode(hex).unwrap(), &[1, 2, 3, 254]).unwrap_err();
        assert!(matches!(error, Error::UnknownEvenType(_)), "{hex}: {error}");
    }
    for hex in [
        "0208000000000000022601012a",
        "0208000000000000023102080000000000000451",
        "1f000f012a",
        "1f001f012a",
        "ffffffffffffffffff000000",
    ] {
        let error = TlvRecords::read(&hex::decode(hex).unwrap(), &[0, 1, 2, 3, 254]).unwrap_err();
        assert!(matches!(error, Error::NotIncreasing { .. }), "{hex}: {error}");
    }
}

#[test]
fn streams_skip_unknown_odd_types() {
    for hex in ["", "2100", "fd020100", "fd00fd00", "fd00ff00", "fe0200000100", "ff020000000000000100"] {
        let bytes = hex::decode(hex).unwrap();
        let records = TlvRecords::read(&bytes, &[1, 2, 3, 254]).unwrap();
        assert!([1, 2, 3, 254].iter().all(|known| records.optional(*known, "test").is_none()), "{hex}");
    }
}

#[test]
fn a_length_beyond_the_input_is_an_error_and_allocates_nothing() {
    let bytes = hex::decode("01ffffffffffffffffff").unwrap();
    let error = TlvRecords::read(&bytes, &[1]).unwrap_err();
    assert_eq!(error.to_string(), "tlv stream: needs 18446744073709551615 bytes, 0 are left");
}

#[test]
fn typed_values_are_exact() {
    let reader = |bytes| Reader::new("number", bytes);
    assert_eq!(reader(&[0xff, 0xfe]).u16(), Ok(0xfffe));
    assert_eq!(reader(&[0xff; 8]).i64(), Ok(-1));
    assert!(matches!(reader(&[0; 3]).exact::<2>(), Err(Error::WrongLength { expected: 2, found: 3, .. })));
    assert!(matches!(reader(&[0; 1]).exact::<2>(), Err(Error::WrongLength { expected: 2, found: 1, .. })));
    assert!(matches!(reader(&[0; 3]).arrays::<2>(9), Err(Error::NotMultiple { unit: 2, found: 3, .. })));
    assert!(matches!(reader(&[0; 6]).arrays::<2>(2), Err(Error::TooMany { limit: 2, found: 3, .. })));
    assert!(matches!(reader(&[]).arrays::<0>(2), Err(Error::NotMultiple { unit: 0, .. })));
    assert_eq!(reader(&[1, 2, 3, 4]).arrays::<2>(2), Ok(vec![[1, 2], [3, 4]]));
    assert_eq!(reader(b"abc").text(3), Ok("abc"));
    assert!(matches!(reader(b"abc").text(2), Err(Error::TooLong { limit: 2, found: 3, .. })));
    assert_eq!(reader(&[0xc3, 0x28]).text(2), Err(Error::NotUtf8("number")));
    assert!(matches!(reader(&[3, 1, 2, 3]).bytes(2), Err(Error::TooLong { limit: 2, found: 3, .. })));
    assert!(matches!(reader(&[3, 1, 2]).bytes(3), Err(Error::Truncated { needed: 3, left: 2, .. })));
    assert!(matches!(reader(&[5]).count(4), Err(Error::TooMany { limit: 4, found: 5, .. })));
    assert!(matches!(reader(&[0]).finish(), Err(Error::TrailingBytes { left: 1, .. })));
    assert_eq!(reader(&[2; 33]).point().map(|_| ()), Ok(()));
    assert_eq!(reader(&[4; 33]).point(), Err(Error::InvalidPoint("number")));
}

#[test]
fn the_writer_sorts_and_keeps_the_last_value() {
    let mut stream = TlvWriter::new();
    stream.put(300, [1]);
    stream.put(2, [2]);
    stream.put(300, [3]);
    let mut out = Vec::new();
    stream.write(&mut out);
    assert_eq!(hex::encode(out), "020102fd012c0103");
}

proptest! {
    #[test]
    fn any_stream_comes_back(records in btree_map(any::<u64>(), vec(any::<u8>(), 0..300), 0..8)) {
        let mut stream = TlvWriter::new();
        records.iter().rev().for_each(|(tlv_type, value)| stream.put(*tlv_type, value.as_slice()));
        let mut bytes = Vec::new();
        stream.write(&mut bytes);
        let known: Vec<u64> = records.keys().copied().collect();
        let read = TlvRecords::read(&bytes, &known).unwrap();
        for (tlv_type, value) in &records {
            let found = read.required(*tlv_type, "test").unwrap().all(usize::MAX).unwrap();
            prop_assert_eq!(found, value.as_slice());
        }
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in vec(any::<u8>(), 0..200)) {
        if let Ok(records) = TlvRecords::read(&bytes, &[1, 2, 3, 254]) {
            let values = [1, 2, 3, 254].iter().filter_map(|known| records.optional(*known, "test"));
            prop_assert!(values.map(|value| value.left()).sum::<usize>() <= bytes.len());
        }
        let mut reader = Reader::new("test", &bytes);
        while reader.bigsize().and_then(|len| reader.take(len)).is_ok() {}
        prop_assert!(reader.left() <= bytes.len());
    }
}
