//! How rotations end at the LSP once the new state is complete.
//!
//! Complete is complete: the LSP has it on disk, and whether a client says that it has it too changes nothing. So the LSP
//! waits for that word for a while only, and never for a client that is not connected. Whoever lacks the new
//! state gets it by asking for it, or when it refuses the next one.

use std::collections::HashSet;

use bitcoin::secp256k1::PublicKey;
use serde_json::json;
use tokio::time::Instant;

use super::stored::Signed;
use super::Service;
use crate::ldk::InstanceId;

impl Service {
    /// Waits no longer for clients that are silent.
    pub(super) fn stop_waiting(&mut self, now: Instant) {
        let Ok(patience) = self.lsp_settings().map(|s| s.phase_timeout) else { return };
        let late: Vec<_> = self
            .rotating
            .iter()
            .filter(|(_, r)| r.told.is_some_and(|told| told + patience <= now))
            .map(|(key, r)| (*key, r.machine.missing()))
            .collect();
        for (key, silent) in late {
            // It may have been lost in a full queue.
            silent.into_iter().for_each(|client| self.tell_newest(key.0, client));
            self.rotated(key);
        }
    }

    /// Waits no longer for clients that are not there: they ask when they are back.
    pub(super) fn stop_waiting_for_absent(&mut self) {
        let there: HashSet<PublicKey> = self.parts.factory_messages.ready_peers().into_iter().collect();
        let over = self.rotating.iter().filter(|(_, r)| r.is_complete());
        let over: Vec<_> = over
            .filter(|(_, r)| !r.machine.missing().iter().any(|client| there.contains(client)))
            .map(|(key, _)| *key)
            .collect();
        for key in over {
            self.rotated(key);
        }
    }

    /// A rotation is over, and the new state holds.
    pub(super) fn rotated(&mut self, key: (InstanceId, u16)) {
        let (id, attempt) = key;
        let Some(rotating) = self.rotating.remove(&key) else { return };
        for client in rotating.channels.keys() {
            self.wasteful.remove(&(id, *client));
        }
        let position = self.factories.get(&id).and_then(|f| f.position(rotating.span.start).ok());
        let unconfirmed: Vec<String> = rotating.machine.missing().iter().map(PublicKey::to_string).collect();
        let data = json!({"position": position, "unconfirmed": unconfirmed});
        self.push_rotation("factory_rotated", &id, attempt, &rotating.span, data);
    }

    /// Tells a client of the newest state that it is in, if that came of a rotation.
    pub(super) fn tell_newest(&mut self, id: InstanceId, client: PublicKey) {
        let Some(factory) = self.factories.get(&id) else { return };
        let Signed::Lsp(record) = &factory.signed else { return };
        let Some(index) = record.index_of(&client) else { return };
        let Some(newest) = factory.advances.lsp.iter().rfind(|a| a.covers(index)) else { return };
        let Some(channel) = factory.channel_with(&client) else { return };
        match newest.signed() {
            Ok(signed) => {
                self.send_last(&id, client, channel, signed.into());
            }
            Err(e) => tracing::error!(error = %e, "stored advance"),
        }
    }

    /// The factory has ended: nothing of it rotates any more.
    pub(super) fn forget_rotations(&mut self, id: &InstanceId) {
        self.rotating.retain(|(of, _), _| of != id);
        self.following.remove(id);
        self.tries.remove(id);
        self.wasteful.retain(|(of, _), _| of != id);
    }
}
