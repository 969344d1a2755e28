//! Admission: what a client has cost the LSP and the other clients lately, and how long it is left alone for it (LSP).
//!
//! A client that is invited and fails costs an attempt: the others sign anew, and the LSP opens their channels again. One
//! that has a factory closed and then does not sign costs the others their channels. Each such failure is a **strike**:
//! it was left out of a ceremony by its own fault, or was named by a close that waits for it. It may refuse an invitation
//! or a plan, that is its right and cheap; afterwards refusing counts as failing. With so many strikes within so many
//! blocks (`admission_strikes`, `admission_window_blocks`) it is **paused**: not invited, and not heard if it asks for a
//! close. A pause lasts `admission_pause_blocks`, each next one twice as long, up to [`LONGEST_PAUSE`]. As many closes as
//! strikes may a client ask for in vain within the window, whoever they failed by. Strikes go by age only: being in a
//! factory costs a client nothing, so it would be a cheap way to be rid of them. Without a failure for
//! [`FORGET_WINDOWS`] windows a client is forgotten, and its next pause is short again.
//!
//! This is kept over restarts, for [`MAX_RECORDS`] clients at most. It slows an identity down and no more: a new one costs
//! nothing. The operator sees who is paused, and can let a client in again.

use std::collections::HashMap;

use bitcoin::secp256k1::PublicKey;
use factory_core::ceremony::ExcludeReason;
use factory_core::close::CloseFailReason;
use lightning::util::persist::KVStoreSync;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::stored::Signed;
use super::Service;
use crate::api::{self, FactoryState};
use crate::config::{NodeConfig, RoleConfig};
use crate::error::Error;
use crate::ldk::InstanceId;
use crate::store::{records, Store};

const NAMESPACE: &str = "admission";
const VERSION: u32 = 1;
/// Clients remembered, at most.
const MAX_RECORDS: usize = 10_000;
/// Longest pause, unless the first one is set to more, blocks: a week.
const LONGEST_PAUSE: u32 = 1008;
/// A client that has not failed for so many windows is forgotten.
const FORGET_WINDOWS: u32 = 10;

/// What is remembered of one client. Heights are blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// Heights of its strikes since it was paused last.
    strikes: Vec<u32>,
    /// Heights of closes that it asked for and of which nothing came.
    asks: Vec<u32>,
    /// Pauses in a row.
    pauses: u32,
    /// It is paused below this height.
    until: u32,
    /// Height of the last failure.
    last: u32,
    /// The last failure in words.
    reason: String,
}

/// What all clients have cost.
#[derive(Debug, Default)]
pub(super) struct Admission {
    /// Strikes for a pause; 0: nobody is paused.
    strikes: usize,
    /// For how long a strike counts, blocks.
    window: u32,
    /// The first pause, blocks.
    pause: u32,
    clients: HashMap<PublicKey, Record>,
}

fn within(heights: &mut Vec<u32>, window: u32, height: u32) {
    heights.retain(|h| h.saturating_add(window) > height);
}

impl Admission {
    /// Reads what was remembered.
    pub(super) fn load(store: &Store, config: &NodeConfig) -> Result<Self, Error> {
        let RoleConfig::Lsp(settings) = &config.role else { return Ok(Self::default()) };
        let mut clients = HashMap::new();
        for (key, record) in records::all(store, NAMESPACE, VERSION)? {
            let client = key.parse().map_err(|_| Error::Corrupt {
                key: format!("{NAMESPACE}/{key}"),
                reason: "not a node id".into(),
            })?;
            clients.insert(client, record);
        }
        let strikes = usize::try_from(settings.admission_strikes).unwrap_or(usize::MAX);
        let (window, pause) = (settings.admission_window_blocks, settings.admission_pause_blocks);
        Ok(Self { strikes, window, pause, clients })
    }

    /// The height at which a client is admitted again, if it is paused.
    pub(super) fn paused(&self, client: &PublicKey, height: u32) -> Option<u32> {
        self.clients.get(client).map(|r| r.until).filter(|until| self.strikes > 0 && *until > height)
    }

    /// # Errors
    /// [`Error::NotAdmitted`] if the client is paused.
    pub(super) fn check(&self, client: &PublicKey, height: u32) -> Result<(), Error> {
        match (self.paused(client, height), self.clients.get(client)) {
            (Some(until_height), Some(record)) => Err(Error::NotAdmitted {
                client: client.to_string(),
                until_height,
                reason: record.reason.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// Whether a client may ask for a close.
    fn check_ask(&self, client: &PublicKey, height: u32) -> Result<(), Error> {
        self.check(client, height)?;
        let Some(record) = self.clients.get(client).filter(|_| self.strikes > 0) else { return Ok(()) };
        let mut asks = record.asks.clone();
        within(&mut asks, self.window, height);
        match asks.first() {
            Some(first) if asks.len() >= self.strikes => Err(Error::NotAdmitted {
                client: client.to_string(),
                until_height: first.saturating_add(self.window),
                reason: format!("asked for {} closes that came to nothing", asks.len()),
            }),
            _ => Ok(()),
        }
    }

    /// A failure by a client's own fault. Returns until when it is paused, if that is news.
    fn strike(&mut self, client: PublicKey, height: u32, reason: &str) -> Option<u32> {
        let (window, limit, first) = (self.window, self.strikes, self.pause);
        // What was under way when it was paused counts for nothing more.
        if limit == 0 || self.paused(&client, height).is_some() {
            return None;
        }
        let record = self.clients.entry(client).or_default();
        record.last = height;
        record.reason = reason.to_owned();
        record.strikes.push(height);
        within(&mut record.strikes, window, height);
        if record.strikes.len() < limit {
            return None;
        }
        let blocks = first.saturating_mul(1u32.checked_shl(record.pauses).unwrap_or(u32::MAX));
        record.pauses = record.pauses.saturating_add(1);
        record.strikes.clear();
        record.until = height.saturating_add(blocks.min(LONGEST_PAUSE.max(first)));
        Some(record.until)
    }

    /// A close that a client asked for came to nothing.
    fn asked_in_vain(&mut self, client: PublicKey, height: u32, reason: &str) {
        if self.strikes == 0 {
            return;
        }
        let window = self.window;
        let record = self.clients.entry(client).or_default();
        record.last = height;
        record.reason = reason.to_owned();
        record.asks.push(height);
        within(&mut record.asks, window, height);
    }

    /// Those that are of no use any more, and what is beyond the limit: first who is not paused, of those who failed
    /// longest ago.
    fn superfluous(&self, height: u32) -> Vec<PublicKey> {
        let age = self.window.saturating_mul(FORGET_WINDOWS);
        let old = |r: &Record| r.until <= height && r.last.saturating_add(age) <= height;
        let (gone, mut kept): (Vec<_>, Vec<_>) = self.clients.iter().partition(|(_, r)| old(r));
        kept.sort_by_key(|(_, r)| (r.until.max(height), r.last));
        let over = kept.len().saturating_sub(MAX_RECORDS);
        gone.into_iter().chain(kept.into_iter().take(over)).map(|(client, _)| *client).collect()
    }

    fn store(&self, store: &Store, client: &PublicKey) -> Result<(), Error> {
        let key = client.to_string();
        match self.clients.get(client) {
            Some(record) => records::put(store, NAMESPACE, &key, VERSION, record),
            None => store
                .remove(NAMESPACE, "", &key, false)
                .map_err(|e| Error::Store(format!("{NAMESPACE}/{key}: {e}"))),
        }
    }
}

/// Whether being left out of a ceremony in this state is a strike: not for who declines early, and not for what failed
/// on our own side.
fn counts(state: FactoryState, reason: &ExcludeReason) -> bool {
    let early = matches!(state, FactoryState::Inviting | FactoryState::Planning);
    reason.is_clients_fault() && !(early && matches!(reason, ExcludeReason::Declined { .. }))
}

impl Service {
    /// Stores what has changed of one client. What cannot be stored counts until the next start only.
    fn keep_admission(&mut self, client: &PublicKey) {
        let superfluous = self.admission.superfluous(self.parts.height());
        for other in &superfluous {
            self.admission.clients.remove(other);
        }
        for changed in superfluous.iter().chain([client]) {
            if let Err(e) = self.admission.store(&self.parts.store, changed) {
                tracing::error!(client = %changed, error = %e, "admission not stored");
            }
        }
    }

    fn strike(&mut self, client: PublicKey, reason: &str) {
        let height = self.parts.height();
        if let Some(until) = self.admission.strike(client, height, reason) {
            let data = json!({"node_id": client.to_string(), "until_height": until, "reason": reason});
            self.parts.events.push("client_paused", data);
        }
        self.keep_admission(&client);
    }

    /// A client was left out of a ceremony in this state.
    pub(super) fn note_excluded(&mut self, client: PublicKey, state: FactoryState, reason: &ExcludeReason) {
        if counts(state, reason) {
            self.strike(client, &reason.to_string());
        }
    }

    /// A close waits for a client.
    pub(super) fn note_stalled(&mut self, client: PublicKey, reason: &ExcludeReason) {
        self.strike(client, &format!("close: {reason}"));
    }

    /// A close has failed before anything changed; one of the clients may have asked for it.
    pub(super) fn note_close_failed(&mut self, asked_by: Option<PublicKey>, reason: &CloseFailReason) {
        let Some(asker) = asked_by else { return };
        let own = match reason {
            CloseFailReason::Refused { client, .. } | CloseFailReason::PayoutScript { client } => {
                *client == asker
            }
            // If others are missing as well, one of them may have ended it by going, before the asker had its time.
            CloseFailReason::NoAnswer { clients } => clients[..] == [asker],
            CloseFailReason::Internal(_) => false,
        };
        let text = format!("asked for a close: {reason}");
        self.admission.asked_in_vain(asker, self.parts.height(), &text);
        self.keep_admission(&asker);
        if own {
            self.strike(asker, &text);
        }
    }

    /// Whether a client may have a factory closed.
    pub(super) fn may_ask_for_close(&self, client: &PublicKey, id: &InstanceId) -> Result<(), Error> {
        if !self.lsp_settings()?.accept_close_asks {
            return Err(Error::Conflict("closes begin with the LSP here".into()));
        }
        let is_member = self.factories.get(id).is_some_and(|f| match &f.signed {
            Signed::Lsp(record) => record.index_of(client).is_some(),
            Signed::Client(_) => false,
        });
        if !is_member {
            return Err(Error::not_found("factory"));
        }
        self.admission.check_ask(client, self.parts.height())
    }

    /// The API's list: who has failed lately or is paused.
    pub(super) fn admission_list(&self) -> Result<Vec<api::ClientAdmission>, Error> {
        self.lsp_settings()?;
        let height = self.parts.height();
        let mut list: Vec<api::ClientAdmission> = self
            .admission
            .clients
            .iter()
            .map(|(client, record)| {
                let count = |heights: &[u32]| {
                    let mut heights = heights.to_vec();
                    within(&mut heights, self.admission.window, height);
                    u32::try_from(heights.len()).unwrap_or(u32::MAX)
                };
                api::ClientAdmission {
                    node_id: client.to_string(),
                    strikes: count(&record.strikes),
                    closes_in_vain: count(&record.asks),
                    paused_until_height: self.admission.paused(client, height),
                    last_failure_height: record.last,
                    reason: record.reason.clone(),
                }
            })
            .collect();
        list.sort_by(|a, b| a.node_id.cmp(&b.node_id));
        Ok(list)
    }

    /// The API's `readmit`: nothing is remembered of a client any more.
    pub(super) fn readmit(&mut self, client: PublicKey) -> Result<(), Error> {
        self.lsp_settings()?;
        if self.admission.clients.remove(&client).is_none() {
            return Err(Error::not_found(format!("client {client} among those who have failed")));
        }
        self.admission.store(&self.parts.store, &client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(n: u8) -> PublicKey {
        let secret = bitcoin::secp256k1::SecretKey::from_slice(&[n; 32]).unwrap();
        PublicKey::from_secret_key(&bitcoin::secp256k1::Secp256k1::new(), &secret)
    }

    fn admission() -> Admission {
        Admission { strikes: 3, window: 100, pause: 6, clients: HashMap::new() }
    }

    #[test]
    fn pauses_double_up_to_a_week() {
        let mut a = admission();
        let (mut height, mut lengths) = (1000, Vec::new());
        for _ in 0..10 {
            assert_eq!(a.strike(client(1), height, "late"), None);
            assert_eq!(a.strike(client(1), height, "late"), None);
            assert!(a.check(&client(1), height).is_ok());
            let until = a.strike(client(1), height, "late").unwrap();
            lengths.push(until - height);
            let e = a.check(&client(1), until - 1).unwrap_err();
            assert!(matches!(&e, Error::NotAdmitted { until_height, .. } if *until_height == until), "{e}");
            assert!(a.check_ask(&client(1), until - 1).is_err());
            // What was under way counts for nothing more.
            assert_eq!(a.strike(client(1), until - 1, "late"), None);
            assert!(a.check(&client(1), until).is_ok());
            height = until;
        }
        assert_eq!(lengths, [6, 12, 24, 48, 96, 192, 384, 768, 1008, 1008]);
        assert!(a.check(&client(2), height).is_ok());
    }

    #[test]
    fn strikes_and_asks_age() {
        let mut a = admission();
        for height in [1000, 1060, 1120, 1180] {
            assert_eq!(a.strike(client(1), height, "gone"), None, "{height}");
        }
        for height in [1000, 1001, 1002] {
            assert!(a.check_ask(&client(2), height).is_ok());
            a.asked_in_vain(client(2), height, "no");
        }
        let e = a.check_ask(&client(2), 1010).unwrap_err();
        assert!(matches!(e, Error::NotAdmitted { until_height: 1100, .. }), "{e}");
        assert!(a.check(&client(2), 1010).is_ok());
        assert!(a.check_ask(&client(2), 1100).is_ok());
    }

    #[test]
    fn only_a_clients_own_fault_counts() {
        let text = || "x".to_owned();
        let declined = ExcludeReason::Declined { code: 1, text: text() };
        assert!(!counts(FactoryState::Planning, &declined));
        assert!(counts(FactoryState::Partials, &declined));
        for state in [FactoryState::Inviting, FactoryState::Opening, FactoryState::Nonces] {
            assert!(counts(state, &ExcludeReason::Gone));
            assert!(counts(state, &ExcludeReason::ChannelFailed { text: text() }));
            assert!(!counts(state, &ExcludeReason::ChannelNotMade { text: text() }));
        }
    }

    #[test]
    fn off_is_off() {
        let mut a = Admission { strikes: 0, ..admission() };
        for _ in 0..10 {
            assert_eq!(a.strike(client(1), 1000, "late"), None);
            a.asked_in_vain(client(1), 1000, "no");
        }
        assert!(a.check_ask(&client(1), 1000).is_ok());
        assert!(a.clients.is_empty());
    }

    #[test]
    fn the_map_is_bounded_and_keeps_who_is_paused() {
        let mut a = admission();
        for _ in 0..3 {
            a.strike(client(1), 1000, "late");
        }
        let template = Record { last: 1001, ..Record::default() };
        let base = client(2).serialize();
        for n in 0..=MAX_RECORDS {
            // Any valid points will do: those whose x exists.
            let mut bytes = base;
            bytes[1..9].copy_from_slice(&(n as u64 * 64).to_be_bytes());
            let found = (0..=u8::MAX).find_map(|b| {
                bytes[32] = b;
                PublicKey::from_slice(&bytes).ok()
            });
            a.clients.insert(found.unwrap(), template.clone());
        }
        let gone = a.superfluous(1001);
        assert_eq!(gone.len(), a.clients.len() - MAX_RECORDS);
        assert!(!gone.contains(&client(1)));
        // Much later all of it is forgotten.
        assert_eq!(a.superfluous(2002).len(), a.clients.len());
    }

    #[test]
    fn it_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db")).unwrap();
        let config = NodeConfig::lsp(
            dir.path().to_owned(),
            bitcoin::Network::Regtest,
            ([127, 0, 0, 1], 1).into(),
            crate::RpcAuth::CookieFile(dir.path().to_owned()),
        );
        let mut a = Admission::load(&store, &config).unwrap();
        assert!(a.clients.is_empty());
        let limit = a.strikes;
        let paused = (0..limit).filter_map(|_| a.strike(client(1), 1000, "late")).last().unwrap();
        a.store(&store, &client(1)).unwrap();
        let mut again = Admission::load(&store, &config).unwrap();
        assert_eq!(again.clients, a.clients);
        assert_eq!(again.paused(&client(1), 1000), Some(paused));
        again.clients.clear();
        again.store(&store, &client(1)).unwrap();
        assert!(Admission::load(&store, &config).unwrap().clients.is_empty());
    }
}
