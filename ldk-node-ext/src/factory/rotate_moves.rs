//! The channels of a rotation at the LSP: prepared for it, and moved to their new outputs.

use bitcoin::secp256k1::PublicKey;
use bitcoin::{OutPoint, TxOut};
use factory_core::advance::{ChannelChange, LspAdvanceInput, LspAdvancePhase};

use super::capacity::{difference, Resize};
use super::rotate_lsp::LspRotating;
use super::Service;
use crate::error::Error;
use crate::ldk::{Change, InstanceId};

impl Service {
    /// A channel cannot change as it should.
    pub(super) fn moving_failed(&mut self, id: &InstanceId, channel: &OutPoint, reason: &str) {
        let of = |(key, r): (&(InstanceId, u16), &LspRotating)| {
            let mut moving = r.channels.iter().filter(|(_, m)| m.channel == *channel && m.resize.is_some());
            (key.0 == *id).then(|| moving.next()).flatten().map(|(client, _)| (*key, *client))
        };
        let found = self.rotating.iter().find_map(of);
        if let Some((key, client)) = found {
            let input = LspAdvanceInput::ChannelFailed { client, attempt: key.1, reason: reason.to_owned() };
            self.rotation_input(key, input);
        }
    }

    /// The channel as it is before the new transactions are built: it keeps its script, unless its capacity changes;
    /// then it takes a while.
    pub(super) fn prepare_move(
        &mut self,
        (id, attempt): (InstanceId, u16),
        change: &ChannelChange,
    ) -> Result<Option<LspAdvanceInput>, Error> {
        let client = change.client;
        let factory = self.found(&id)?;
        let channel = factory.channel_with(&client);
        let channel = channel.ok_or_else(|| Error::not_found(format!("channel with {client}")))?;
        let open = self.parts.manager.list_channels();
        let failed = |e: Error| LspAdvanceInput::ChannelFailed { client, attempt, reason: e.to_string() };
        if let Err(e) = self.may_move(&client, &channel, &open) {
            return Ok(Some(failed(e)));
        }
        if change.from_sat == change.to_sat {
            let script = Self::script_of(factory, &channel)?;
            return Ok(Some(LspAdvanceInput::ChannelPrepared { client, attempt, script }));
        }
        let resize = Resize::new(difference(change.from_sat, change.to_sat)?, 0);
        if let Err(e) = self.begin_resize(&id, &client, &channel, &resize) {
            return Ok(Some(failed(e)));
        }
        let moving = self.rotating.get_mut(&(id, attempt)).and_then(|r| r.channels.get_mut(&client));
        if let Some(moving) = moving {
            moving.resize = Some(resize);
        }
        Ok(None)
    }

    /// Tells machines of channels that have been prepared for a change of capacity.
    pub(super) fn lsp_prepared(&mut self) {
        let mut ready = Vec::new();
        for (key, rotating) in &self.rotating {
            if rotating.machine.phase() != LspAdvancePhase::Preparing {
                continue;
            }
            for (client, moving) in &rotating.channels {
                let waits = moving.resize.is_some_and(|resize| !resize.prepared);
                let script = waits.then(|| self.resized_script(&moving.channel)).flatten();
                ready.extend(script.map(|script| (*key, *client, script)));
            }
        }
        for (key, client, script) in ready {
            let moving = self.rotating.get_mut(&key).and_then(|r| r.channels.get_mut(&client));
            if let Some(resize) = moving.and_then(|moving| moving.resize.as_mut()) {
                resize.prepared = true;
            }
            self.rotation_input(key, LspAdvanceInput::ChannelPrepared { client, attempt: key.1, script });
        }
    }

    fn set_resized(&mut self, key: (InstanceId, u16), client: PublicKey, v: Option<OutPoint>) {
        let moving = self.rotating.get_mut(&key).and_then(|r| r.channels.get_mut(&client));
        if let Some(resize) = moving.and_then(|moving| moving.resize.as_mut()) {
            resize.v = v;
        }
    }

    /// The new transactions are known: the channel's commitments are signed for its new output too.
    pub(super) fn rebuilt(
        &mut self,
        key: (InstanceId, u16),
        client: PublicKey,
        (outpoint, output): (OutPoint, TxOut),
    ) -> Vec<LspAdvanceInput> {
        let (id, attempt) = key;
        let moving = self.rotating.get_mut(&key).and_then(|r| r.channels.get_mut(&client));
        let Some(moving) = moving else { return Vec::new() };
        moving.place = Some(outpoint);
        let (channel, disagrees) = (moving.channel, moving.disagrees());
        let failed = |reason: String| vec![LspAdvanceInput::ChannelFailed { client, attempt, reason }];
        if disagrees {
            return failed("factory_change_funding: not the channel's new output".into());
        }
        let moving = *moving;
        match self.move_channel(&id, client, &moving, (outpoint, output)) {
            Ok(v) => self.set_resized(key, client, v),
            Err(e) => return failed(e.to_string()),
        }
        self.send_change(client, &Change::Funding(Self::outpoint_message(&channel, outpoint)));
        Vec::new()
    }
}
