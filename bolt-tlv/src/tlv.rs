//! BigSize integers and TLV streams (BOLT 1, "Type-Length-Value Format").
//!
//! Reading is strict: types strictly increase, integers are minimal, lengths are exact, an unknown even
//! type is an error and an unknown odd type is skipped. A [`Reader`] borrows its input, never reads past
//! the end of it and allocates nothing; helpers that build lists check a limit first and copy at most
//! what the input holds. Writing goes through [`TlvWriter`], which sorts, so its output is always a valid
//! stream.

use std::collections::BTreeMap;

use bitcoin::secp256k1::PublicKey;

use crate::Error;

/// Bytes of a compressed public key.
pub const POINT_LEN: usize = 33;

/// A cursor over the bytes of one field. Every error names that field.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    field: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the first of `bytes`. `field` is the name used in errors.
    pub fn new(field: &'static str, bytes: &'a [u8]) -> Self {
        Self { field, rest: bytes }
    }

    /// The name used in errors.
    pub fn field(&self) -> &'static str {
        self.field
    }

    /// Bytes not read yet.
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// Takes the next `len` bytes.
    ///
    /// # Errors
    /// [`Error::Truncated`] if fewer are left; nothing is consumed then.
    pub fn take(&mut self, len: u64) -> Result<&'a [u8], Error> {
        let short = || Error::Truncated { field: self.field, needed: len, left: self.rest.len() };
        let len = usize::try_from(len).map_err(|_| short())?;
        let (head, tail) = self.rest.split_at_checked(len).ok_or_else(short)?;
        self.rest = tail;
        Ok(head)
    }

    /// Takes the next `N` bytes.
    ///
    /// # Errors
    /// [`Error::Truncated`] if fewer are left; nothing is consumed then.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let short = Error::Truncated { field: self.field, needed: N as u64, left: self.rest.len() };
        let (head, tail) = self.rest.split_first_chunk::<N>().ok_or(short)?;
        self.rest = tail;
        Ok(*head)
    }

    /// Reads one byte. Fails as [`Reader::array`] does.
    pub fn u8(&mut self) -> Result<u8, Error> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    /// Reads a big-endian `u16`. Fails as [`Reader::array`] does.
    pub fn u16(&mut self) -> Result<u16, Error> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    /// Reads a big-endian `u32`. Fails as [`Reader::array`] does.
    pub fn u32(&mut self) -> Result<u32, Error> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    /// Reads a big-endian `u64`. Fails as [`Reader::array`] does.
    pub fn u64(&mut self) -> Result<u64, Error> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// Reads a big-endian two's complement `i64` (`s64` in BOLT 1). Fails as [`Reader::array`] does.
    pub fn i64(&mut self) -> Result<i64, Error> {
        Ok(i64::from_be_bytes(self.array()?))
    }

    /// Reads a BigSize integer (BOLT 1).
    ///
    /// # Errors
    /// [`Error::Truncated`], or [`Error::NotMinimal`] if a shorter encoding of the value exists.
    pub fn bigsize(&mut self) -> Result<u64, Error> {
        let (value, least) = match self.u8()? {
            0xff => (self.u64()?, 0x1_0000_0000),
            0xfe => (u64::from(self.u32()?), 0x1_0000),
            0xfd => (u64::from(self.u16()?), 0xfd),
            small => (u64::from(small), 0),
        };
        if value < least {
            return Err(Error::NotMinimal { field: self.field, value });
        }
        Ok(value)
    }

    /// Reads a BigSize count of list items.
    ///
    /// # Errors
    /// As [`Reader::bigsize`]; [`Error::TooMany`] above `limit`.
    pub fn count(&mut self, limit: usize) -> Result<usize, Error> {
        let found = self.bigsize()?;
        usize::try_from(found).ok().filter(|count| *count <= limit).ok_or(Error::TooMany {
            field: self.field,
            limit,
            found,
        })
    }

    /// Reads a BigSize length and that many bytes.
    ///
    /// # Errors
    /// As [`Reader::bigsize`] and [`Reader::take`]; [`Error::TooLong`] above `limit`.
    pub fn bytes(&mut self, limit: usize) -> Result<&'a [u8], Error> {
        let found = self.bigsize()?;
        if found > limit as u64 {
            return Err(Error::TooLong { field: self.field, limit, found });
        }
        self.take(found)
    }

    /// Reads a compressed public key.
    ///
    /// # Errors
    /// [`Error::Truncated`], or [`Error::InvalidPoint`] if the bytes are no point on the curve.
    pub fn point(&mut self) -> Result<PublicKey, Error> {
        let bytes = self.array::<POINT_LEN>()?;
        PublicKey::from_slice(&bytes).map_err(|_| Error::InvalidPoint(self.field))
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// [`Error::TrailingBytes`] if anything is left.
    pub fn finish(self) -> Result<(), Error> {
        match self.left() {
            0 => Ok(()),
            left => Err(Error::TrailingBytes { field: self.field, left }),
        }
    }

    /// Takes all that is left as an array of exactly `N` bytes.
    ///
    /// # Errors
    /// [`Error::WrongLength`] if more or fewer are left.
    pub fn exact<const N: usize>(self) -> Result<[u8; N], Error> {
        let wrong = Error::WrongLength { field: self.field, expected: N, found: self.left() };
        self.rest.try_into().map_err(|_| wrong)
    }

    /// Takes all that is left, at most `limit` bytes.
    ///
    /// # Errors
    /// [`Error::TooLong`].
    pub fn all(self, limit: usize) -> Result<&'a [u8], Error> {
        if self.left() > limit {
            return Err(Error::TooLong { field: self.field, limit, found: self.left() as u64 });
        }
        Ok(self.rest)
    }

    /// Takes all that is left as UTF-8 text of at most `limit` bytes.
    ///
    /// # Errors
    /// [`Error::TooLong`] or [`Error::NotUtf8`].
    pub fn text(self, limit: usize) -> Result<&'a str, Error> {
        let field = self.field;
        std::str::from_utf8(self.all(limit)?).map_err(|_| Error::NotUtf8(field))
    }

    /// Takes all that is left as a list of arrays of `N` bytes, at most `limit` of them.
    ///
    /// # Errors
    /// [`Error::NotMultiple`] or [`Error::TooMany`]. An `N` of 0 is refused as [`Error::NotMultiple`].
    pub fn arrays<const N: usize>(self, limit: usize) -> Result<Vec<[u8; N]>, Error> {
        let not_multiple = Error::NotMultiple { field: self.field, unit: N, found: self.left() };
        let Some(found) = self.left().checked_div(N).filter(|count| count * N == self.left()) else {
            return Err(not_multiple);
        };
        if found > limit {
            return Err(Error::TooMany { field: self.field, limit, found: found as u64 });
        }
        let items = self.rest.chunks_exact(N).map(<[u8; N]>::try_from);
        items.collect::<Result<_, _>>().map_err(|_| not_multiple)
    }

    /// Takes all that is left as a list of compressed public keys, at most `limit` of them.
    ///
    /// # Errors
    /// As [`Reader::arrays`]; [`Error::InvalidPoint`].
    pub fn points(self, limit: usize) -> Result<Vec<PublicKey>, Error> {
        let field = self.field;
        let items = self.arrays::<POINT_LEN>(limit)?;
        let points = items.iter().map(|bytes| PublicKey::from_slice(bytes));
        points.collect::<Result<_, _>>().map_err(|_| Error::InvalidPoint(field))
    }
}

/// Appends a BigSize integer (BOLT 1) in its minimal form.
pub fn write_bigsize(out: &mut Vec<u8>, value: u64) {
    // Each arm's pattern bounds the value, so no cast below can lose a bit.
    match value {
        0..=0xfc => out.push(value as u8),
        0xfd..=0xffff => {
            out.push(0xfd);
            out.extend_from_slice(&(value as u16).to_be_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            out.push(0xfe);
            out.extend_from_slice(&(value as u32).to_be_bytes());
        }
        _ => {
            out.push(0xff);
            out.extend_from_slice(&value.to_be_bytes());
        }
    }
}

/// Appends a BigSize length and the bytes themselves.
pub fn write_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    write_bigsize(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// The known records of one TLV stream.
#[derive(Clone, Debug)]
pub struct TlvRecords<'a> {
    records: Vec<(u64, &'a [u8])>,
}

impl<'a> TlvRecords<'a> {
    /// Reads a whole stream. `known` lists the types the message defines; of the others, odd ones are
    /// skipped and even ones are an error. At most `known.len()` records are kept.
    ///
    /// # Errors
    /// [`Error::Truncated`], [`Error::NotMinimal`], [`Error::NotIncreasing`] or
    /// [`Error::UnknownEvenType`].
    pub fn read(bytes: &'a [u8], known: &[u64]) -> Result<Self, Error> {
        let mut reader = Reader::new("tlv stream", bytes);
        let mut records = Vec::new();
        let mut previous = None;
        while reader.left() > 0 {
            let found = reader.bigsize()?;
            if let Some(previous) = previous.filter(|previous| *previous >= found) {
                return Err(Error::NotIncreasing { previous, found });
            }
            previous = Some(found);
            let is_known = known.contains(&found);
            if !is_known && found % 2 == 0 {
                return Err(Error::UnknownEvenType(found));
            }
            let len = reader.bigsize()?;
            let value = reader.take(len)?;
            if is_known {
                records.push((found, value));
            }
        }
        Ok(Self { records })
    }

    /// The value of a record that need not be there. `field` is the name used in errors.
    pub fn optional(&self, tlv_type: u64, field: &'static str) -> Option<Reader<'a>> {
        let (_, value) = self.records.iter().find(|(found, _)| *found == tlv_type)?;
        Some(Reader::new(field, value))
    }

    /// The value of a record that must be there. `field` is the name used in errors.
    ///
    /// # Errors
    /// [`Error::Missing`].
    pub fn required(&self, tlv_type: u64, field: &'static str) -> Result<Reader<'a>, Error> {
        self.optional(tlv_type, field).ok_or(Error::Missing { field, tlv_type })
    }
}

/// Collects records and writes them as one stream, sorted by type.
#[derive(Clone, Debug, Default)]
pub struct TlvWriter {
    records: BTreeMap<u64, Vec<u8>>,
}

impl TlvWriter {
    /// An empty stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the record of a type. A second value for the same type replaces the first.
    pub fn put(&mut self, tlv_type: u64, value: impl Into<Vec<u8>>) {
        self.records.insert(tlv_type, value.into());
    }

    /// Appends the stream to `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        for (tlv_type, value) in &self.records {
            write_bigsize(out, *tlv_type);
            write_bytes(out, value);
        }
    }
}
