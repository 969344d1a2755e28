//! Why a client refuses: one code per check, so that an operator sees which rule a plan broke.

/// The check that failed. The number goes over the wire in `Decline`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u16)]
pub enum RefuseCode {
    /// The client does not want a factory now.
    NotWanted = 1,
    /// The plan is for another chain.
    Network = 2,
    /// The parameters break a rule of the protocol.
    Params = 3,
    /// The expiry height does not cover the life and the worst exit.
    Lifetime = 4,
    /// The factory lives shorter than the client wants.
    TooShort = 5,
    /// The worst exit is longer than the client accepts.
    WorstExit = 6,
    /// The birth height is too far from the client's height.
    BirthHeight = 7,
    /// The channel is smaller or larger than the client wants, or no valid amount.
    Capacity = 8,
    /// The client is to start with more than the channel holds, or less than it was promised.
    Push = 9,
    /// More clients than the client accepts.
    TooManyClients = 10,
    /// The client's key is not at its index, or is there more than once.
    OwnKey = 11,
    /// Two participants have the same key.
    DuplicateKey = 12,
    /// The provider's key changed between attempts.
    LspKey = 13,
    /// The client's payout script is not the one it gave, or a neighbour's is not standard.
    PayoutScript = 14,
    /// A temporary channel id is used twice.
    ChannelId = 15,
    /// The leaf does not have the members that the shape says.
    LeafMembers = 16,
    /// The leaf's stock is no valid output.
    Stock = 17,
    /// The path has a wrong number of levels or outputs.
    PathShape = 18,
    /// The amounts of a node do not add up to what it spends.
    Conservation = 19,
    /// A node does not pay the aggregate key of the signers of the client's next node.
    ChildKey = 20,
    /// A sibling's output is not P2TR or below dust.
    SiblingOutput = 21,
    /// The funding output's amount is not the root's.
    FundingValue = 22,
    /// The channel script in the leaf is not that of the client's own channel.
    ChannelScript = 23,
    /// The client's channel was opened over another outpoint.
    ChannelOutpoint = 24,
    /// The client's channel was opened with another capacity.
    ChannelCapacity = 25,
    /// A list has a wrong number of entries.
    ListLength = 26,
    /// An aggregate nonce does not parse.
    AggregateNonce = 27,
    /// Aggregate nonces were sent twice for one attempt.
    NonceReuse = 28,
    /// A final signature does not verify.
    Signature = 29,
    /// A message that is not due.
    Unexpected = 30,
    /// The provider took too long.
    Timeout = 31,
    /// The channel has pending payments (close).
    PendingPayments = 32,
    /// The closing transaction is not of the agreed form.
    CloseForm = 33,
    /// The closing transaction pays the client less than its balance.
    CloseAmount = 34,
    /// The signers of the closing transaction are not those of the funding output.
    CloseKeys = 35,
    /// A failure on the client's own side.
    Internal = 36,
    /// The funding output was that of an earlier attempt.
    FundingReused = 37,
    /// The expiry height is too far away.
    TooLong = 38,
    /// An advance starts from another position than the client's newest.
    AdvanceBase = 39,
    /// An advance of that level does not lead to that position.
    AdvancePosition = 40,
    /// The position is not newer than one that may be signed already.
    AdvanceBurnt = 41,
    /// The keys are not those of the node that advances.
    AdvanceKeys = 42,
    /// The new amounts of the leaf are no valid outputs or do not add up.
    AdvanceAmounts = 43,
    /// The amounts of this leaf change with the level above only.
    AdvanceShared = 44,
    /// A channel's capacity would change at the last position, where a failed try could not be followed by another.
    AdvanceLast = 45,
    /// So many tries are not complete that no more is begun.
    AdvanceMany = 46,
}

impl RefuseCode {
    /// The number on the wire.
    pub fn number(self) -> u16 {
        // A field-less `repr(u16)` enum.
        self as u16
    }
}

/// A failed check.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// Which check.
    pub code: RefuseCode,
    /// What was wrong, in words; at most 256 bytes.
    pub text: String,
}

impl Refusal {
    pub(crate) fn new(code: RefuseCode, text: impl std::fmt::Display) -> Self {
        Self { code, text: clip(text) }
    }
}

/// A text cut to what a message may carry.
pub fn clip(text: impl std::fmt::Display) -> String {
    let mut text = text.to_string();
    let mut end = bolt_tlv::payload::MAX_TEXT_LEN.min(text.len());
    while !text.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    text.truncate(end);
    text
}

/// Turns an error into a refusal with a code.
pub(crate) fn refuse<E: std::fmt::Display>(code: RefuseCode) -> impl Fn(E) -> Refusal {
    move |error| Refusal::new(code, error)
}
