//! What the creation machines must never do, whatever happens around them.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::secp256k1::{PublicKey, Secp256k1};
use bitcoin::OutPoint;
use bolt_tlv::payload::{self, Payload};
use factory_core::ceremony::{ClientAction, ClientInput, LspAction};
use factory_core::record::ClientFactoryRecord;

use crate::common::{capacity, key, payout};

type Nonce = [u8; 66];

/// The rules of one client, over all its lives.
pub struct ClientRules {
    client: usize,
    /// Every public nonce that ever left.
    nonces: BTreeSet<Nonce>,
    life: Life,
    /// Attempts whose record is on disk.
    stored: BTreeSet<u16>,
}

/// From one start of the process to the next.
#[derive(Default)]
struct Life {
    nonces: BTreeSet<u16>,
    partials: BTreeSet<u16>,
    fundings: BTreeSet<OutPoint>,
    expected: BTreeMap<[u8; 32], (u64, u64)>,
    funded: BTreeMap<[u8; 32], ClientInput>,
    records: Vec<ClientFactoryRecord>,
    refused: bool,
}

impl ClientRules {
    pub fn new(client: usize) -> Self {
        Self { client, nonces: BTreeSet::new(), life: Life::default(), stored: BTreeSet::new() }
    }

    /// The process starts again.
    pub fn restarted(&mut self) {
        self.life = Life::default();
    }

    /// The node says that the channel is funded.
    pub fn funded(&mut self, report: &ClientInput) {
        if let ClientInput::ChannelFunded { temporary_channel_id, .. } = report {
            self.life.funded.insert(*temporary_channel_id, report.clone());
        }
    }

    /// The node says that the record is on disk.
    pub fn stored(&mut self, attempt: u16) {
        self.stored.insert(attempt);
    }

    pub fn is_stored(&self, attempt: u16) -> bool {
        self.stored.contains(&attempt)
    }

    pub fn check(&mut self, action: &ClientAction) {
        match action {
            ClientAction::Send(message) => self.sends(message),
            ClientAction::ExpectChannel { temporary_channel_id, capacity_sat, push_msat } => {
                let planned = (*capacity_sat, *push_msat);
                let old = self.life.expected.insert(*temporary_channel_id, planned);
                assert!(old.is_none(), "a temporary channel id is used twice");
            }
            ClientAction::PersistRecord(record) => self.record(record),
            ClientAction::Completed { record } => {
                assert!(self.stored.contains(&record.path.attempt), "complete before it is on disk");
                assert!(self.life.records.contains(record));
            }
            ClientAction::KeepSuperseded { record, .. } => assert!(self.life.records.contains(record)),
            ClientAction::FundingSeen { transaction } => {
                let paid = self.life.records.iter().any(|r| {
                    let funding = &r.path.funding;
                    transaction.compute_txid() == funding.outpoint.txid
                        && transaction.output.get(funding.outpoint.vout as usize) == Some(&funding.tx_out())
                });
                assert!(paid, "a funding transaction that funds nothing");
            }
            ClientAction::Refused { text, .. } => {
                assert!(text.len() <= payload::MAX_TEXT_LEN);
                self.life.refused = true;
            }
            ClientAction::Aborted { text, .. } => assert!(text.len() <= payload::MAX_TEXT_LEN),
            ClientAction::ForgetChannel { .. } | ClientAction::SetTimer { .. } => {}
        }
    }

    fn sends(&mut self, message: &Payload) {
        assert!(!self.life.refused, "client {}: {message:?} after its refusal", self.client);
        match message {
            Payload::Nonces(m) => {
                assert!(self.life.nonces.insert(m.attempt), "nonces twice in attempt {}", m.attempt);
                for nonce in &m.nonces {
                    assert!(self.nonces.insert(*nonce), "client {}: a nonce a second time", self.client);
                }
            }
            Payload::Partials(m) => {
                assert!(self.life.nonces.contains(&m.attempt), "partials without nonces");
                assert!(self.life.partials.insert(m.attempt), "secret nonces signed twice");
            }
            Payload::Persisted(m) => {
                assert!(self.stored.contains(&m.attempt), "said to be on disk before it is");
            }
            _ => {}
        }
    }

    /// A record is a complete way out with the whole channel.
    fn record(&mut self, record: &ClientFactoryRecord) {
        let path = &record.path;
        path.verify().unwrap();
        let plan = path.exit_plan().unwrap();
        assert_eq!(plan.steps.len(), path.path.len());
        let channel = record.channel().expect("an own channel");
        assert_eq!((channel.key, record.own_key), (key("factory", self.client), key("factory", self.client)));
        assert_eq!(channel.share.payout_script, payout(self.client));
        let id = channel.share.temporary_channel_id;
        let planned = (channel.share.capacity_sat, channel.share.push_msat);
        assert_eq!(self.life.expected.get(&id), Some(&planned), "not the channel that was planned");
        let funded = ClientInput::ChannelFunded {
            temporary_channel_id: id,
            outpoint: channel.outpoint,
            funding_script: channel.script.clone(),
            capacity_sat: capacity(self.client),
        };
        assert_eq!(self.life.funded.get(&id), Some(&funded), "the path leads to another channel");
        assert_eq!(channel.share.capacity_sat, capacity(self.client));
        for distribution in &path.distributions {
            let pays = distribution.tx.output.iter().any(|o| {
                o.script_pubkey == payout(self.client) && o.value.to_sat() >= channel.share.capacity_sat
            });
            assert!(pays, "a distribution without the client's share");
            assert!(distribution.tx.lock_time.to_consensus_u32() >= path.expiry_height);
        }
        assert!(self.life.fundings.insert(path.funding.outpoint), "two trees on one funding output");
        assert!(self.life.partials.contains(&path.attempt), "signed without the client");
        self.life.records.push(record.clone());
    }
}

/// The rules of the LSP.
#[derive(Default)]
pub struct LspRules {
    opened: BTreeMap<usize, [u8; 32]>,
    used: BTreeSet<[u8; 32]>,
    /// Each client's nonces that count, by attempt.
    heard: BTreeMap<(u16, usize), Vec<Nonce>>,
    told: BTreeSet<(u16, usize)>,
    /// The LSP's own nonces for the root's first session, and the attempt.
    own: BTreeMap<PublicKey, u16>,
}

impl LspRules {
    /// The channel that is open with a client.
    pub fn opened(&self, client: usize) -> Option<[u8; 32]> {
        self.opened.get(&client).copied()
    }

    /// A client's nonces come in while they are waited for: the first ones count.
    pub fn heard(&mut self, client: usize, m: &payload::Nonces) {
        self.heard.entry((m.attempt, client)).or_insert_with(|| m.nonces.clone());
    }

    /// `members` are the clients of the current attempt.
    pub fn check(&mut self, action: &LspAction, members: &[usize], index: impl Fn(&PublicKey) -> usize) {
        match action {
            LspAction::Send { client, payload: Payload::AggNonces(m) } => {
                assert!(self.told.insert((m.attempt, index(client))), "aggregate nonces twice");
                self.own_nonce(m, members);
            }
            LspAction::OpenChannel { client, temporary_channel_id, .. } => {
                assert!(self.used.insert(*temporary_channel_id), "a temporary channel id is used twice");
                self.opened.insert(index(client), *temporary_channel_id);
            }
            LspAction::CloseChannel { client, temporary_channel_id, .. } => {
                assert_eq!(self.opened.remove(&index(client)), Some(*temporary_channel_id));
            }
            _ => {}
        }
    }

    /// The aggregate without the clients' nonces is the LSP's: the same in one attempt, never in two.
    fn own_nonce(&mut self, m: &payload::AggNonces, members: &[usize]) {
        let point = |nonce: Option<&Nonce>| PublicKey::from_slice(&nonce?[..33]).ok();
        let secp = Secp256k1::new();
        let mut parts = Vec::new();
        for client in members {
            let heard = self.heard.get(&(m.attempt, *client)).expect("aggregated without a client's nonces");
            let Some(part) = point(heard.first()) else { return };
            parts.push(part.negate(&secp));
        }
        let Some(sum) = point(m.nonces.first()) else { return };
        parts.push(sum);
        let Ok(own) = PublicKey::combine_keys(&parts.iter().collect::<Vec<_>>()) else { return };
        let attempt = *self.own.entry(own).or_insert(m.attempt);
        assert_eq!(attempt, m.attempt, "the LSP uses a nonce in two attempts");
    }
}
