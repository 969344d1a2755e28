//! How each kind of field is laid out inside its TLV record, and the macro that turns a list of fields
//! into a message.
//!
//! Integers are big-endian and of fixed width. A list of fixed-size items fills its record without a
//! count. Lists of anything else carry BigSize counts and lengths.

use bitcoin::hashes::Hash;
use bitcoin::secp256k1::PublicKey;
use bitcoin::{OutPoint, ScriptBuf, Txid};

use super::limits::*;
use crate::tlv::{write_bigsize, write_bytes, Reader, TlvRecords, TlvWriter};
use crate::Error;

/// A value that fills one TLV record.
pub(super) trait Value: Sized {
    /// Appends the value of the record.
    fn put(&self, out: &mut Vec<u8>);
    /// Reads the value from the whole record.
    fn get(record: Reader<'_>) -> Result<Self, Error>;
}

/// A field of a message: a value that must be there, or an `Option` of one that need not.
pub(super) trait Field: Sized {
    fn write(&self, tlv_type: u64, stream: &mut TlvWriter);
    fn read(tlv_type: u64, name: &'static str, stream: &TlvRecords<'_>) -> Result<Self, Error>;
}

impl<T: Value> Field for T {
    fn write(&self, tlv_type: u64, stream: &mut TlvWriter) {
        let mut value = Vec::new();
        self.put(&mut value);
        stream.put(tlv_type, value);
    }

    fn read(tlv_type: u64, name: &'static str, stream: &TlvRecords<'_>) -> Result<Self, Error> {
        T::get(stream.required(tlv_type, name)?)
    }
}

impl<T: Value> Field for Option<T> {
    fn write(&self, tlv_type: u64, stream: &mut TlvWriter) {
        if let Some(value) = self {
            value.write(tlv_type, stream);
        }
    }

    fn read(tlv_type: u64, name: &'static str, stream: &TlvRecords<'_>) -> Result<Self, Error> {
        stream.optional(tlv_type, name).map(T::get).transpose()
    }
}

/// A struct that is written as one TLV stream.
pub(super) trait Stream: Sized {
    fn write(&self, out: &mut Vec<u8>);
    fn read(bytes: &[u8]) -> Result<Self, Error>;
}

/// A struct that is a message of its own.
pub(super) trait Message: Stream {
    fn instance(&self) -> Option<[u8; 32]>;
    fn attempt_number(&self) -> Option<u16>;
}

/// Declares a struct whose fields are the records of one TLV stream: `type => name: kind`.
macro_rules! tlv_stream {
    (
        $(#[$doc:meta])*
        $name:ident { $( $(#[$field_doc:meta])* $tlv_type:literal => $field:ident: $kind:ty, )* }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name {
            $( $(#[$field_doc])* pub $field: $kind, )*
        }

        impl $crate::payload::codec::Stream for $name {
            fn write(&self, out: &mut Vec<u8>) {
                let mut stream = $crate::tlv::TlvWriter::new();
                $( $crate::payload::codec::Field::write(&self.$field, $tlv_type, &mut stream); )*
                stream.write(out);
            }

            fn read(bytes: &[u8]) -> Result<Self, $crate::Error> {
                let stream = $crate::tlv::TlvRecords::read(bytes, &[$($tlv_type),*])?;
                Ok(Self {
                    $( $field: $crate::payload::codec::Field::read(
                        $tlv_type, stringify!($field), &stream,
                    )?, )*
                })
            }
        }
    };
}

/// Declares messages. `of attempt` adds `instance_id` and `attempt`, `of instance` the former alone,
/// `of nothing` neither.
macro_rules! message {
    ( $(#[$doc:meta])* $number:literal $name:ident of attempt { $($fields:tt)* } ) => {
        $crate::payload::codec::message! { @declare $(#[$doc])* $number $name {
            /// The factory.
            0 => instance_id: [u8; 32],
            /// The try to sign one plan for it.
            2 => attempt: u16,
            $($fields)*
        } }
        impl $crate::payload::codec::Message for $name {
            fn instance(&self) -> Option<[u8; 32]> {
                Some(self.instance_id)
            }
            fn attempt_number(&self) -> Option<u16> {
                Some(self.attempt)
            }
        }
    };
    ( $(#[$doc:meta])* $number:literal $name:ident of instance { $($fields:tt)* } ) => {
        $crate::payload::codec::message! { @declare $(#[$doc])* $number $name {
            /// The factory.
            0 => instance_id: [u8; 32],
            $($fields)*
        } }
        impl $crate::payload::codec::Message for $name {
            fn instance(&self) -> Option<[u8; 32]> {
                Some(self.instance_id)
            }
            fn attempt_number(&self) -> Option<u16> {
                None
            }
        }
    };
    ( $(#[$doc:meta])* $number:literal $name:ident of nothing { $($fields:tt)* } ) => {
        $crate::payload::codec::message! { @declare $(#[$doc])* $number $name { $($fields)* } }
        impl $crate::payload::codec::Message for $name {
            fn instance(&self) -> Option<[u8; 32]> {
                None
            }
            fn attempt_number(&self) -> Option<u16> {
                None
            }
        }
    };
    ( @declare $(#[$doc:meta])* $number:literal $name:ident { $($fields:tt)* } ) => {
        $crate::payload::codec::tlv_stream! { $(#[$doc])* $name { $($fields)* } }
        impl $name {
            /// The message number.
            pub const NUMBER: u16 = $number;
        }
    };
}

pub(super) use {message, tlv_stream};

macro_rules! integer {
    ($($kind:ty)*) => {$(
        impl Value for $kind {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_be_bytes());
            }
            fn get(record: Reader<'_>) -> Result<Self, Error> {
                Ok(<$kind>::from_be_bytes(record.exact()?))
            }
        }
    )*};
}

integer!(u16 u32 u64);

impl<const N: usize> Value for [u8; N] {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }
    fn get(record: Reader<'_>) -> Result<Self, Error> {
        record.exact()
    }
}

/// Nonces, partial signatures or signatures: at most [`MAX_SESSIONS`].
impl<const N: usize> Value for Vec<[u8; N]> {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend(self.iter().flatten());
    }
    fn get(record: Reader<'_>) -> Result<Self, Error> {
        record.arrays(MAX_SESSIONS)
    }
}

/// Amounts in sat: at most [`MAX_OUTPUTS`].
impl Value for Vec<u64> {
    fn put(&self, out: &mut Vec<u8>) {
        self.iter().for_each(|sat| sat.put(out));
    }
    fn get(record: Reader<'_>) -> Result<Self, Error> {
        let items: Vec<[u8; 8]> = record.arrays(MAX_OUTPUTS)?;
        Ok(items.into_iter().map(u64::from_be_bytes).collect())
    }
}

impl Value for PublicKey {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.serialize());
    }
    fn get(mut record: Reader<'_>) -> Result<Self, Error> {
        let point = record.point()?;
        record.finish()?;
        Ok(point)
    }
}

/// At most [`MAX_KEYS`].
impl Value for Vec<PublicKey> {
    fn put(&self, out: &mut Vec<u8>) {
        self.iter().for_each(|key| key.put(out));
    }
    fn get(record: Reader<'_>) -> Result<Self, Error> {
        record.points(MAX_KEYS)
    }
}

/// Text of at most [`MAX_TEXT_LEN`] bytes.
impl Value for String {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.as_bytes());
    }
    fn get(record: Reader<'_>) -> Result<Self, Error> {
        Ok(record.text(MAX_TEXT_LEN)?.to_owned())
    }
}

/// Text of at most [`MAX_LONG_TEXT_LEN`] bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LongText(pub String);

impl Value for LongText {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.0.as_bytes());
    }
    fn get(record: Reader<'_>) -> Result<Self, Error> {
        Ok(Self(record.text(MAX_LONG_TEXT_LEN)?.to_owned()))
    }
}

/// Reads the bytes of a payout script: any witness program, so that dust and weight are bounded and no
/// output of a factory can be unspendable by its form.
pub(super) fn payout_script(field: &'static str, bytes: &[u8]) -> Result<ScriptBuf, Error> {
    let script = ScriptBuf::from_bytes(bytes.to_vec());
    if script.is_witness_program() {
        Ok(script)
    } else {
        Err(Error::NotWitnessProgram(field))
    }
}

/// A payout script, which has to be a witness program (BIP 141).
impl Value for ScriptBuf {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.as_bytes());
    }
    fn get(record: Reader<'_>) -> Result<Self, Error> {
        let field = record.field();
        payout_script(field, record.all(MAX_SCRIPT_LEN)?)
    }
}

/// Scripts of any kind, at most [`MAX_OUTPUTS`] of at most [`MAX_SCRIPT_LEN`] bytes.
impl Value for Vec<ScriptBuf> {
    fn put(&self, out: &mut Vec<u8>) {
        write_bigsize(out, self.len() as u64);
        self.iter().for_each(|script| write_bytes(out, script.as_bytes()));
    }
    fn get(mut record: Reader<'_>) -> Result<Self, Error> {
        let scripts = list(&mut record, MAX_OUTPUTS, script)?;
        record.finish()?;
        Ok(scripts)
    }
}

/// The outputs of one node per level: at most [`MAX_LEVELS`] lists of at most [`MAX_OUTPUTS`] pairs of an
/// amount in sat and a script of any kind.
impl Value for Vec<Vec<(u64, ScriptBuf)>> {
    fn put(&self, out: &mut Vec<u8>) {
        write_bigsize(out, self.len() as u64);
        for outputs in self {
            write_bigsize(out, outputs.len() as u64);
            for (sat, script) in outputs {
                sat.put(out);
                write_bytes(out, script.as_bytes());
            }
        }
    }
    fn get(mut record: Reader<'_>) -> Result<Self, Error> {
        let levels = list(&mut record, MAX_LEVELS, |record| {
            list(record, MAX_OUTPUTS, |record| Ok((record.u64()?, script(record)?)))
        })?;
        record.finish()?;
        Ok(levels)
    }
}

/// 32 bytes of txid in internal order, then the output index as `u32`.
impl Value for OutPoint {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.txid.as_byte_array());
        self.vout.put(out);
    }
    fn get(mut record: Reader<'_>) -> Result<Self, Error> {
        let txid = Txid::from_byte_array(record.array()?);
        let vout = record.u32()?;
        record.finish()?;
        Ok(OutPoint { txid, vout })
    }
}

fn script(record: &mut Reader<'_>) -> Result<ScriptBuf, Error> {
    Ok(ScriptBuf::from_bytes(record.bytes(MAX_SCRIPT_LEN)?.to_vec()))
}

/// Reads a count and that many items. Every item must take at least one byte, so that the list can grow
/// no larger than the input.
pub(super) fn list<'a, T>(
    record: &mut Reader<'a>,
    limit: usize,
    mut item: impl FnMut(&mut Reader<'a>) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    let count = record.count(limit)?;
    let mut items = Vec::new();
    for _ in 0..count {
        items.push(item(record)?);
    }
    Ok(items)
}
