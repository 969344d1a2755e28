//! Offers (BOLT 12).

use serde::{Deserialize, Serialize};

/// Request for an offer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfferRequest {
    /// Amount in msat; none: the payer chooses.
    #[serde(default)]
    pub amount_msat: Option<u64>,
    /// Shown to the payer, at most 639 bytes.
    #[serde(default)]
    pub description: Option<String>,
    /// Lifetime in seconds; none: no end.
    #[serde(default)]
    pub expiry_secs: Option<u32>,
}

/// A new offer. It can be paid any number of times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// BOLT 12 string.
    pub offer: String,
    /// Its id in hex, which payments by it show.
    pub offer_id: String,
}
