//! bLIP-56's submessages 6 to 14, by which a channel moves with its factory, as the factory service sees them.
//!
//! The proposal and the agreement of an advance travel inside: nowhere else are they heard.

use bolt_tlv::blip56::{
    FactoryChange, FactoryChangeAck, FactoryChangeContinue, FactoryChangeFunding, FactoryChangeInit,
    FactoryChangeLocked, FactoryMessage, FactoryOutpoint,
};
use bolt_tlv::payload::Payload;

/// A message of a channel's change.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// The LSP proposes it, with the advance that it is for.
    Init(FactoryChange, Payload),
    /// The client agrees, with its nonces.
    Ack(FactoryChange, Payload),
    /// Where the channel is going to be.
    Funding(FactoryOutpoint),
    /// The new state is complete and on disk.
    Continue(FactoryOutpoint),
    /// The state before has lost.
    Locked(FactoryChangeLocked),
}

impl Change {
    /// The channel that moves.
    pub(crate) fn channel_id(&self) -> [u8; 32] {
        match self {
            Self::Init(change, _) | Self::Ack(change, _) => change.channel_id,
            Self::Funding(outpoint) | Self::Continue(outpoint) => outpoint.channel_id,
            Self::Locked(locked) => locked.channel_id,
        }
    }

    /// As it travels.
    pub(crate) fn message(&self) -> FactoryMessage {
        match self {
            Self::Init(change, payload) => {
                FactoryChangeInit { payload: Some(payload.encode()), change: *change }.into()
            }
            Self::Ack(change, payload) => {
                FactoryChangeAck { payload: Some(payload.encode()), change: *change }.into()
            }
            Self::Funding(outpoint) => FactoryChangeFunding { outpoint: *outpoint }.into(),
            Self::Continue(outpoint) => FactoryChangeContinue { outpoint: *outpoint }.into(),
            Self::Locked(locked) => (*locked).into(),
        }
    }

    /// What a peer sent; none for another message.
    ///
    /// # Errors
    /// What is wrong with it, by field.
    pub(super) fn read(message: FactoryMessage) -> Result<Option<Self>, String> {
        let decode = |payload: Option<Vec<u8>>| {
            let bytes = payload.ok_or("factory_piggyback_payload: missing")?;
            Payload::decode(&bytes).map_err(|e| e.to_string())
        };
        Ok(Some(match message {
            FactoryMessage::ChangeInit(m) => match decode(m.payload)? {
                payload @ Payload::AdvancePropose(_) => Self::Init(m.change, payload),
                other => return Err(wrong("factory_change_init", &other)),
            },
            FactoryMessage::ChangeAck(m) => match decode(m.payload)? {
                payload @ Payload::AdvanceAgree(_) => Self::Ack(m.change, payload),
                other => return Err(wrong("factory_change_ack", &other)),
            },
            FactoryMessage::ChangeFunding(m) => Self::Funding(m.outpoint),
            FactoryMessage::ChangeContinue(m) => Self::Continue(m.outpoint),
            FactoryMessage::ChangeLocked(m) => Self::Locked(m),
            _ => return Ok(None),
        }))
    }
}

fn wrong(message: &str, payload: &Payload) -> String {
    format!("{message}: factory_piggyback_payload: message {} does not belong there", payload.number())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bolt_tlv::payload::{AdvanceAgree, Join};

    fn change() -> FactoryChange {
        FactoryChange {
            channel_id: [4; 32],
            funding_contribution_sat: 0,
            funding_pubkey: "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"
                .parse()
                .unwrap(),
        }
    }

    #[test]
    fn only_what_belongs_into_a_change_is_heard_there() {
        let agree = AdvanceAgree { instance_id: [1; 32], attempt: 2, inner: vec![], outer: vec![[2; 66]] };
        let ack = Change::Ack(change(), agree.into());
        let read = Change::read(ack.message()).unwrap().unwrap();
        assert!(
            matches!(&read, Change::Ack(c, Payload::AdvanceAgree(m)) if *c == change() && m.attempt == 2)
        );
        assert_eq!(read.channel_id(), [4; 32]);

        let wrong = Join { version: 1, min_capacity_sat: 1, max_capacity_sat: 2 };
        let error = Change::read(Change::Init(change(), wrong.into()).message()).unwrap_err();
        assert!(error.contains("factory_change_init") && error.contains("message 1 "), "{error}");
        let empty = FactoryChangeAck { payload: None, change: change() };
        assert!(Change::read(empty.into()).unwrap_err().contains("missing"));
    }
}
