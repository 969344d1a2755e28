//! Messages with their fields as JSON.

use bitcoin::secp256k1::PublicKey;
use bitcoin::{consensus, OutPoint, ScriptBuf, Transaction};
use bolt_tlv::payload::{Companion, DwLayer, LeafMember, LongText, Payload, PlanParams};
use serde_json::{json, Map, Value};

/// A field as JSON: numbers as they are, everything else as hex; a txid in internal order, as on the wire.
pub trait Shown {
    fn shown(&self) -> Value;
}

macro_rules! numbers {
    ($($kind:ty)*) => {$(
        impl Shown for $kind {
            fn shown(&self) -> Value {
                json!(self)
            }
        }
    )*};
}

numbers!(u16 u32 u64);

impl Shown for String {
    fn shown(&self) -> Value {
        json!(self)
    }
}

impl Shown for LongText {
    fn shown(&self) -> Value {
        json!(self.0)
    }
}

impl<const N: usize> Shown for [u8; N] {
    fn shown(&self) -> Value {
        json!(hex::encode(self))
    }
}

impl Shown for PublicKey {
    fn shown(&self) -> Value {
        json!(self.to_string())
    }
}

impl Shown for ScriptBuf {
    fn shown(&self) -> Value {
        json!(self.to_hex_string())
    }
}

impl Shown for Transaction {
    fn shown(&self) -> Value {
        json!(consensus::encode::serialize_hex(self))
    }
}

impl Shown for OutPoint {
    fn shown(&self) -> Value {
        let txid: &[u8] = self.txid.as_ref();
        json!({"txid": hex::encode(txid), "vout": self.vout})
    }
}

impl<T: Shown> Shown for Vec<T> {
    fn shown(&self) -> Value {
        self.iter().map(Shown::shown).collect()
    }
}

impl<T: Shown> Shown for Option<T> {
    fn shown(&self) -> Value {
        self.as_ref().map_or(Value::Null, Shown::shown)
    }
}

impl Shown for (u64, ScriptBuf) {
    fn shown(&self) -> Value {
        json!({"sat": self.0, "script": self.1.shown()})
    }
}

/// A struct with its fields as JSON beside it.
macro_rules! fields {
    ($name:ident { $($field:ident),* }) => {
        impl Shown for $name {
            fn shown(&self) -> Value {
                let mut fields = Map::new();
                $(fields.insert(stringify!($field).into(), self.$field.shown());)*
                Value::Object(fields)
            }
        }
    };
}

fields!(DwLayer { states, step, base });
fields!(PlanParams {
    clients_per_leaf,
    arity,
    layers,
    active,
    dying,
    margin,
    confirm_blocks,
    reorg_margin,
    to_self_delay,
    min_depth
});
fields!(LeafMember { capacity_sat, push_msat, payout_script, temporary_channel_id });
fields!(Companion { real, signature, htlc_signatures });

/// A message, its name and its fields.
pub struct Vector {
    pub name: String,
    pub message: &'static str,
    pub fields: Value,
    pub payload: Payload,
}

/// `vector!("name", Message { field: value })`: one of a message with its fields.
macro_rules! vector {
    ($name:expr, $message:ident { $($field:ident: $value:expr),* $(,)? }) => {{
        let message = $message { $($field: $value),* };
        let mut fields = serde_json::Map::new();
        $(fields.insert(stringify!($field).into(), crate::shown::Shown::shown(&message.$field));)*
        crate::shown::Vector {
            name: $name.into(),
            message: stringify!($message),
            fields: fields.into(),
            payload: message.into(),
        }
    }};
}

pub(crate) use vector;
