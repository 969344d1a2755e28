//! The one error type of this crate.
//!
//! Texts are lower case and name the field and the limit, so that an operator can act on a log line.

/// What can go wrong while building, checking or signing a factory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// An aggregate key needs at least two different signers (BIP 327).
    #[error("an aggregate key needs at least 2 signers, got {got}")]
    TooFewSigners {
        /// Keys given.
        got: usize,
    },
    /// The same public key was listed twice.
    #[error("public key {key} is listed twice")]
    DuplicateKey {
        /// The key, compressed hex.
        key: String,
    },
    /// A public key is not among the signers of an aggregate key.
    #[error("public key {key} is not a signer of this aggregate key")]
    NotASigner {
        /// The key, compressed hex.
        key: String,
    },
    /// 32 bytes that are no valid secret key.
    #[error("secret key is zero or not below the group order")]
    BadSecretKey,
    /// A public nonce, or an aggregate of nonces, that does not parse (BIP 327).
    #[error("public nonce {index} does not parse")]
    BadNonce {
        /// Position in the list.
        index: usize,
    },
    /// A partial signature that does not parse (BIP 327).
    #[error("partial signature {index} is not below the group order")]
    BadPartial {
        /// Position in the list.
        index: usize,
    },
    /// A partial signature that parses and is wrong for its signer.
    #[error("partial signature {index} does not verify for its signer")]
    WrongPartial {
        /// Position in the list.
        index: usize,
    },
    /// A final signature that does not verify (BIP 340).
    #[error("signature of {what} does not verify under its output key")]
    BadSignature {
        /// The transaction.
        what: String,
    },
    /// An empty list where at least one entry is needed.
    #[error("{what} is empty")]
    Empty {
        /// The list.
        what: &'static str,
    },
    /// A list with a wrong number of entries.
    #[error("{what} has {got} entries, expected {expected}")]
    Count {
        /// The list.
        what: &'static str,
        /// Entries given.
        got: usize,
        /// Entries needed.
        expected: usize,
    },
    /// A number outside its limits.
    #[error("{field} is {value}, allowed are {min} to {max}")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// Smallest allowed value.
        min: u64,
        /// Largest allowed value.
        max: u64,
    },
    /// An interior level that the number of leaves does not need.
    #[error("interior level {level} is not needed for {leaves} leaves")]
    WastefulLevel {
        /// The level, 0 is the root.
        level: usize,
        /// Leaves of the tree.
        leaves: u64,
    },
    /// A shape with fewer places than clients.
    #[error("the shape holds {capacity} clients, {clients} are given")]
    ShapeTooSmall {
        /// Places.
        capacity: u64,
        /// Clients.
        clients: u64,
    },
    /// Not exactly one list of layers per level.
    #[error("shape.layers has {found} lists, the shape has {needed} levels")]
    LayerLists {
        /// Lists given.
        found: usize,
        /// Levels of the shape.
        needed: usize,
    },
    /// A base delay on a layer that is not the first of its level.
    #[error("layer {layer} of level {level} has a base delay of {base} blocks, only the first may have one")]
    BaseOnInnerLayer {
        /// The level, 0 is the root.
        level: usize,
        /// The layer, 0 is the outermost.
        layer: usize,
        /// Its base delay, blocks.
        base: u16,
    },
    /// A worst exit longer than allowed.
    #[error("the worst exit takes {blocks} blocks, the limit is {limit}")]
    ExitTooLong {
        /// Its length, blocks.
        blocks: u32,
        /// The limit, blocks.
        limit: u32,
    },
    /// A transaction above the limit for version 3 transactions.
    #[error("{field} has {vbytes} vbytes, the limit for version 3 is {limit}")]
    TransactionTooLarge {
        /// The transaction.
        field: &'static str,
        /// Its size, vbytes.
        vbytes: u64,
        /// The limit, vbytes.
        limit: u64,
    },
    /// The claim budget leaves no room for a route in what a sender allows by default.
    #[error("final expiry delta of {final_delta} blocks leaves less than {needed} of the sender's {limit}")]
    NoRouteLeft {
        /// Blocks that the final hop asks for.
        final_delta: u64,
        /// Blocks needed for the service provider's own hop.
        needed: u64,
        /// The sender's limit, blocks.
        limit: u64,
    },
    /// The factory's expiry comes before its life and the worst exit are over.
    #[error("expiry {expiry} is too early: this life and its worst exit need {needed} at least")]
    ExpiryTooEarly {
        /// The height proposed.
        expiry: u32,
        /// The least height that covers.
        needed: u32,
    },
    /// The factory's expiry is so late that money would be locked without need.
    #[error("expiry {expiry} is too late: the latest accepted is {latest}")]
    ExpiryTooLate {
        /// The height proposed.
        expiry: u32,
        /// The latest height accepted.
        latest: u32,
    },
    /// No newer state is left. Until the next factory, what a leaf cannot do is done beside it.
    #[error(
        "no update of level {level} is left; left are {leaf} of the leaf and {upper} of the levels above"
    )]
    Exhausted {
        /// The level that was to advance, 0 is the root.
        level: usize,
        /// Updates left of the leaf's own layers.
        leaf: u64,
        /// Updates left of the layers above.
        upper: u64,
    },
    /// A position that an advance of this level does not lead to.
    #[error("an advance of level {level} does not lead from position {from} to {to}")]
    Advance {
        /// The level, 0 is the root.
        level: usize,
        /// The position before.
        from: u64,
        /// The position proposed.
        to: u64,
    },
    /// Capacities of a shared leaf may not change at its own level if a level above has DW layers.
    #[error("the leaf is shared and below a level with layers: its amounts change with that level only")]
    SharedLeaf,
    /// Capacities do not change at a position after which nothing newer is left: if the try failed, nobody could
    /// tell what the channels have, and nothing could settle it.
    #[error("nothing newer than position {position} is left: capacities do not change there")]
    LastPosition {
        /// The position proposed.
        position: u64,
    },
    /// A sum of amounts that does not fit or does not match.
    #[error("{what}: {got} sat, expected {expected} sat")]
    Value {
        /// The sum.
        what: &'static str,
        /// Value given, sat.
        got: u64,
        /// Value computed, sat.
        expected: u64,
    },
    /// A sum that exceeds the range of its type or the money supply.
    #[error("{field} overflows")]
    Overflow {
        /// The sum.
        field: &'static str,
    },
    /// An output below the dust limit of its script.
    #[error("{what} of {got} sat is below its dust limit of {limit} sat")]
    Dust {
        /// The output.
        what: &'static str,
        /// Its value, sat.
        got: u64,
        /// The limit, sat.
        limit: u64,
    },
    /// A script of a type that is not allowed at its place.
    #[error("{what} is not {expected}")]
    Script {
        /// Which script.
        what: &'static str,
        /// The type needed.
        expected: &'static str,
    },
    /// The transaction that was handed in is not the one that was agreed.
    #[error("{what} does not match what was agreed")]
    Mismatch {
        /// The field.
        what: &'static str,
    },
    /// A stored record of a version this build does not know.
    #[error("record version {got} is unknown, this build reads version {known}")]
    RecordVersion {
        /// Version found.
        got: u16,
        /// Version known.
        known: u16,
    },
    /// A signature hash could not be computed.
    #[error("signature hash: {0}")]
    Sighash(String),
    /// A share cannot pay the fee that was asked of it.
    #[error("{what} of {got} sat cannot pay the fee of {fee} sat")]
    Fee {
        /// The share.
        what: &'static str,
        /// Its value, sat.
        got: u64,
        /// The fee, sat.
        fee: u64,
    },
}
