//! One relay: what is known of it, and what follows from what happens. Pure.
//!
//! ```text
//!  Offered --> Held --> Paying --> Preimage --> Done
//!                 \        \
//!                  '--------'--> Failed
//! ```
//!
//! A step is stored before anything is done because of it, so each may be repeated after a restart; LDK may know more
//! than the record does, or less, or say the same again. A stored preimage beats whatever comes later.

use bitcoin::secp256k1::PublicKey;
use factory_core::faults::switch;
use lightning::types::payment::PaymentPreimage;
use serde::{Deserialize, Serialize};

use super::budget;

/// 32 bytes, hex in the store.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bytes(#[serde(with = "hex::serde")] pub(crate) [u8; 32]);

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// What LSP and client have agreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Terms {
    /// Who is to be paid.
    pub(crate) client: PublicKey,
    /// By which the client knows its payment.
    pub(crate) secret: Bytes,
    /// What the client gets, msat.
    pub(crate) amount_msat: u64,
    /// What the LSP gets, msat.
    pub(crate) fee_msat: u64,
    /// FINAL of the outgoing payment, blocks.
    pub(crate) outgoing: u32,
    /// Unix seconds after which nobody can pay the invoice any more.
    pub(crate) lapses_at: u64,
    /// The client pays itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) moved: Option<Moved>,
}

/// From which of a client's channels into which its money is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Moved {
    /// The channel beside the factory.
    pub(crate) from: Bytes,
    /// The channel in the factory.
    pub(crate) into: Bytes,
}

impl Terms {
    /// Whether the outgoing payment has the blocks that its channels want of it (`claim`, with the margin). They may be
    /// others than when the relay was agreed on: a client that was in no factory then may be in one now.
    pub(crate) fn suffices(&self, claim: u32) -> bool {
        claim.saturating_add(budget::SLACK) <= self.outgoing
    }
}

/// The payment that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Incoming {
    /// LDK's id of its HTLCs.
    pub(crate) id: Bytes,
    /// msat.
    pub(crate) msat: u64,
    /// Height before which it has to be claimed.
    pub(crate) claim_by: u32,
    /// Unix seconds until which the client is waited for.
    pub(crate) until: u64,
}

/// Where a relay stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(crate) enum State {
    /// Not paid yet.
    Offered,
    /// Paid, and not paid on.
    Held,
    /// Being paid on: what becomes of it, LDK says.
    Paying,
    /// The client has been paid.
    Preimage {
        /// What it was paid for.
        preimage: Bytes,
    },
    /// And so has the LSP.
    Done {
        /// As above.
        preimage: Bytes,
    },
    /// Given back, for good.
    Failed {
        /// Why.
        reason: String,
    },
}

/// A relay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Relay {
    /// What was agreed.
    pub(crate) terms: Terms,
    /// The payment that came in last.
    pub(crate) incoming: Option<Incoming>,
    /// Where it stands.
    pub(crate) state: State,
    /// The last change, Unix seconds.
    pub(crate) updated_at: u64,
}

/// What happens.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Input<'a> {
    /// LDK has all of a payment. `against`: why the channels that it came over do not do.
    Arrived { incoming: Incoming, height: u32, against: Option<&'a str> },
    /// Time to look whether a held one can be paid on. `known`: LDK knows an outgoing payment. `there`: the incoming
    /// HTLCs are on their channels. `ready`: the client is there, with room for all of it.
    Look { height: u32, now: u64, known: bool, there: bool, ready: bool },
    /// There is no room for it with the client, and none can be made.
    NoRoom { reason: &'a str },
    /// LDK has refused to pay on, and nothing is out. `final_word`: it would do so again.
    Refused { final_word: bool, reason: &'a str },
    /// LDK has the preimage.
    Sent(PaymentPreimage),
    /// LDK says that nothing is out any more. `known`: but it knows an outgoing payment now, a later try.
    NotSent { known: bool, reason: &'a str },
    /// LDK has claimed the incoming payment.
    Claimed,
    /// The process has started.
    Started { known: bool },
}

/// What to do, once the step is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// Nothing.
    Nothing,
    /// Tell of a payment that is held.
    Hold,
    /// Pay the client.
    Pay,
    /// Claim the incoming payment.
    Claim(PaymentPreimage),
    /// Fail the incoming payment back.
    GiveBack(String),
}

impl Relay {
    /// A new one.
    pub(crate) fn new(terms: Terms, now: u64) -> Self {
        Self { terms, incoming: None, state: State::Offered, updated_at: now }
    }

    /// What the payer has to pay, msat.
    pub(crate) fn due_msat(&self) -> u64 {
        self.terms.amount_msat.saturating_add(self.terms.fee_msat)
    }

    /// Whether nothing can happen any more that matters.
    pub(crate) fn is_over(&self, now: u64) -> bool {
        match self.state {
            State::Offered => self.terms.lapses_at < now,
            State::Done { .. } | State::Failed { .. } => true,
            State::Held | State::Paying | State::Preimage { .. } => false,
        }
    }

    /// The preimage, once it is known.
    pub(crate) fn preimage(&self) -> Option<PaymentPreimage> {
        match self.state {
            State::Preimage { preimage } | State::Done { preimage } => Some(PaymentPreimage(preimage.0)),
            _ => None,
        }
    }

    /// The last height at which it may be paid on.
    fn last_send(&self) -> Option<u32> {
        budget::last_send(self.incoming?.claim_by, self.terms.outgoing)
    }

    /// Takes a step; the caller stores what has changed before it does what is returned.
    pub(crate) fn step(&mut self, input: Input<'_>) -> Act {
        match input {
            Input::Arrived { incoming, height, against } => self.arrived(incoming, height, against),
            Input::Look { height, now, known, there, ready } if self.state == State::Held => {
                let in_time = self.last_send().is_some_and(|last| height <= last);
                if known {
                    self.state = State::Paying;
                    Act::Nothing
                } else if !there {
                    self.fail("the incoming payment is gone")
                } else if !in_time {
                    self.fail("too few blocks are left to pay it on")
                } else if self.incoming.is_none_or(|i| now >= i.until) {
                    self.fail("the client was not there in time, or had no room for it")
                } else if ready {
                    self.state = State::Paying;
                    Act::Pay
                } else {
                    Act::Nothing
                }
            }
            Input::NoRoom { reason } if self.state == State::Held => self.fail(reason),
            Input::Look { .. } | Input::NoRoom { .. } => Act::Nothing,
            Input::Refused { final_word, reason } if self.state == State::Paying => {
                if final_word {
                    return self.fail(reason);
                }
                self.state = State::Held;
                Act::Nothing
            }
            Input::Refused { .. } => Act::Nothing,
            Input::Sent(preimage) => {
                if !matches!(self.state, State::Done { .. }) {
                    self.state = State::Preimage { preimage: Bytes(preimage.0) };
                }
                Act::Claim(preimage)
            }
            Input::NotSent { known, reason } => match (&self.state, self.preimage()) {
                (_, Some(preimage)) => Act::Claim(preimage),
                (State::Held | State::Paying, _) if !known || switch("relay.stale") => self.fail(reason),
                (State::Failed { reason }, _) => Act::GiveBack(reason.clone()),
                _ => Act::Nothing,
            },
            Input::Claimed => {
                if let State::Preimage { preimage } = self.state {
                    self.state = State::Done { preimage };
                }
                Act::Nothing
            }
            Input::Started { known } => match &self.state {
                State::Paying if !known => {
                    self.state = State::Held;
                    Act::Nothing
                }
                State::Preimage { preimage } => Act::Claim(PaymentPreimage(preimage.0)),
                State::Failed { reason } => Act::GiveBack(reason.clone()),
                _ => Act::Nothing,
            },
        }
    }

    fn fail(&mut self, reason: &str) -> Act {
        self.state = State::Failed { reason: reason.to_owned() };
        Act::GiveBack(reason.to_owned())
    }

    fn arrived(&mut self, incoming: Incoming, height: u32, against: Option<&str>) -> Act {
        let same = self.incoming.is_some_and(|known| known.id == incoming.id);
        match &self.state {
            State::Held if same => Act::Nothing,
            // Of one that was held and is another now, the first is gone.
            State::Offered | State::Held => {
                let last = budget::last_send(incoming.claim_by, self.terms.outgoing);
                let refusal = if incoming.msat < self.due_msat() {
                    "less than the invoice asks for"
                } else if last.is_none_or(|last| height > last) {
                    "too few blocks are left to pay it on"
                } else if let Some(against) = against {
                    against
                } else {
                    (self.state, self.incoming) = (State::Held, Some(incoming));
                    return Act::Hold;
                };
                (self.state, self.incoming) = (State::Offered, None);
                Act::GiveBack(refusal.to_owned())
            }
            // Whatever it is, it makes up for what is out: given back is what comes too much when that is known.
            State::Paying => {
                self.incoming = Some(incoming);
                Act::Nothing
            }
            State::Preimage { preimage } => Act::Claim(PaymentPreimage(preimage.0)),
            State::Done { preimage } if same => Act::Claim(PaymentPreimage(preimage.0)),
            State::Done { .. } => Act::GiveBack("the invoice was paid before".to_owned()),
            State::Failed { reason } => Act::GiveBack(reason.clone()),
        }
    }
}
