//! Transactions in records, as consensus hex.

use bitcoin::Transaction;
use serde::{Deserialize, Serialize};

/// A transaction in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredTx(#[serde(with = "hex_tx")] pub(crate) Transaction);

mod hex_tx {
    use bitcoin::consensus::encode;
    use bitcoin::Transaction;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(tx: &Transaction, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&encode::serialize_hex(tx))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Transaction, D::Error> {
        let text = String::deserialize(d)?;
        encode::deserialize_hex(&text).map_err(serde::de::Error::custom)
    }
}
