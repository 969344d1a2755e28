//! Serde helpers: transactions as consensus hex, so that a stored record can be read by any Bitcoin tool.

/// A transaction as the hex of its consensus encoding, witness included.
pub(crate) mod transaction {
    use bitcoin::consensus::encode::{deserialize_hex, serialize_hex};
    use bitcoin::Transaction;
    use serde::{de::Error, Deserialize, Deserializer, Serializer};

    /// Writes hex.
    pub fn serialize<S: Serializer>(tx: &Transaction, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&serialize_hex(tx))
    }

    /// Reads hex.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Transaction, D::Error> {
        let text = String::deserialize(deserializer)?;
        deserialize_hex(&text).map_err(D::Error::custom)
    }
}
