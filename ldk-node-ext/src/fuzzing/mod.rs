//! What holds for any bytes on the disk, in a file or at the local API: they are read or refused with a reason, and what
//! was read is written so that it is read again. For the fuzz targets; this crate's tests run it over the committed
//! seeds. Nothing here is part of the library.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[cfg(feature = "http")]
mod bodies;
#[cfg(test)]
pub(crate) mod tests;

use bitcoin::{Network, OutPoint, Txid};
use factory_core::close::{ClientCloseState, LspClose, LspCloseConfig, LspCloseState};
use rand::rngs::StdRng;
use rand::SeedableRng;
use serde::de::DeserializeOwned;
use serde::Serialize;
use serde_json::Value;

use crate::api::{EventRecord, Payment};
use crate::chain::StoredIndex;
use crate::error::Error;
use crate::factory::StoredFactory;
use crate::ldk::Inbound;
use crate::publish::Carried;
use crate::relay::Relay;
use crate::store::holds::HoldState;
use crate::store::{decode_journal, encode_journal, log_damage, open_seal, records, seal};
use crate::watch::{ExitFile, WatchStatus};

#[cfg(feature = "http")]
pub use bodies::{body, query, settings, BODIES};

/// Version of every record today.
const VERSION: u32 = 1;

/// What the first byte of an input of [`record`] chooses.
pub const RECORDS: [&str; 17] = [
    "factory",
    "hold",
    "payment",
    "held_htlcs",
    "event",
    "published",
    "chain_index",
    "wallet",
    "lent",
    "published_by_watcher",
    "text",
    "network",
    "journal",
    "watch_status",
    "sealed",
    "sqlite_log",
    "relay",
];

/// The first byte says as what record the others are read.
pub fn record(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else { return };
    match RECORDS[usize::from(*kind) % RECORDS.len()] {
        "factory" => factory(bytes),
        "hold" => drop(read::<HoldState>(bytes).map(|state| state.preimage())),
        "payment" => drop(read::<Payment>(bytes)),
        "held_htlcs" => drop(read::<Vec<Inbound>>(bytes)),
        "event" => drop(read::<EventRecord>(bytes)),
        "published" => drop(read::<Carried>(bytes)),
        "chain_index" => drop(read::<StoredIndex>(bytes)),
        "wallet" => drop(read::<bdk_wallet::ChangeSet>(bytes)),
        "lent" => drop(read::<Vec<(OutPoint, u32)>>(bytes)),
        "published_by_watcher" => drop(read::<std::collections::BTreeSet<Txid>>(bytes)),
        "text" => drop(read::<String>(bytes)),
        "network" => drop(read::<Network>(bytes)),
        "journal" => journal(bytes),
        "watch_status" => json::<WatchStatus>(bytes),
        "sealed" => sealed(bytes),
        "relay" => {
            let _ = read::<Relay>(bytes).map(|relay| (relay.is_over(7), relay.preimage(), relay.due_msat()));
        }
        _ => assert!(log_damage(bytes).is_none_or(|offset| offset < bytes.len())),
    }
}

/// A record, if that is what the bytes are.
fn read<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let read: T = match records::decode("namespace", "key", VERSION, bytes) {
        Ok(read) => read,
        Err(error) => {
            assert!(matches!(&error, Error::Corrupt { key, .. } if key == "namespace/key"), "{error}");
            return None;
        }
    };
    let written = records::encode(VERSION, &read).unwrap();
    let again: T = records::decode("namespace", "key", VERSION, &written).expect("what was written is read");
    assert_eq!(records::encode(VERSION, &again).unwrap(), written, "it is read as it was written");
    Some(again)
}

fn json<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    let Ok(read) = serde_json::from_slice::<T>(bytes) else { return };
    let written = serde_json::to_vec(&read).unwrap();
    let again: T = serde_json::from_slice(&written).expect("what was written is read");
    assert_eq!(serde_json::to_vec(&again).unwrap(), written, "it is read as it was written");
}

/// A tree and its state, as fields `tree` and `state` of one object. Everything that the node asks a factory for at its
/// start has an answer, or a reason.
fn factory(bytes: &[u8]) {
    let Ok(Value::Object(both)) = serde_json::from_slice(bytes) else { return };
    let part = |name| both.get(name).map(|v| serde_json::to_vec(v).unwrap());
    let (Some(tree), Some(state)) = (part("tree"), part("state")) else { return };
    let (Some(signed), Some(state)) = (read(&tree), read(&state)) else { return };
    let stored = StoredFactory::new(signed, state);
    if stored.check().is_err() {
        return;
    }
    let _ = (stored.id(), stored.attempt(), stored.lifetime(), stored.root_txid());
    let _ = (stored.all_left(), stored.is_exiting(), stored.watched_txids(), stored.channel_ids());
    stored.watched_outpoints().unwrap();
    for leaf in stored.leaves() {
        let _ = stored.exit_plan(leaf.first);
        let _ = stored.exit_under_way(leaf.first);
        for (outpoint, _) in &leaf.channels {
            assert!(stored.leaf_of(outpoint).is_some());
        }
    }
    close(&stored);
}

/// The stored state of a close goes on or is refused.
fn close(stored: &StoredFactory) {
    let Some(machine) = stored.state.close.as_ref().and_then(|c| c.machine.clone()) else { return };
    let _ = serde_json::from_value::<ClientCloseState>(machine.clone());
    let Ok(state) = serde_json::from_value::<LspCloseState>(machine) else { return };
    let crate::factory::Signed::Lsp(record) = &stored.signed else { return };
    let config = LspCloseConfig {
        record: record.as_ref().clone(),
        advances: Vec::new(),
        secret_key: SECRET,
        lsp_script: state.lsp_script.clone(),
        feerate_sat_per_kwu: 1000,
        attempt: 0,
        consent_secs: 1,
        signing_secs: 1,
    };
    let _ = LspClose::resume(config, &state, &mut StdRng::seed_from_u64(1));
}

/// The LSP's factory key in the seeds: SHA-256 of "lsp 0" with 1 as its first byte.
const SECRET: [u8; 32] = [
    0x01, 0x9c, 0x3a, 0x4e, 0x97, 0x51, 0x81, 0xdf, 0xf4, 0x09, 0x1d, 0xc3, 0x5b, 0xec, 0x1f, 0xfd, 0x8d,
    0x1a, 0x41, 0xb9, 0xc7, 0x59, 0xe1, 0x78, 0x2b, 0x9b, 0x99, 0x04, 0x64, 0x69, 0x95, 0x43,
];

/// A journal is read as written; behind a right checksum as well as behind a wrong one.
fn journal(bytes: &[u8]) {
    use bitcoin::hashes::{sha256, Hash};
    let mut whole = format!("journal-1 {}\n", sha256::Hash::hash(bytes)).into_bytes();
    whole.extend_from_slice(bytes);
    for journal in [bytes, &whole] {
        let Ok(entries) = decode_journal(journal) else { continue };
        let list: Vec<_> =
            entries.iter().map(|e| (e.primary, e.secondary, e.key, e.value.as_slice())).collect();
        // Names in the store are plain; what JSON has to escape is none.
        let plain = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
        if list.iter().all(|(p, s, k, _)| [p, s, k].into_iter().all(|t| plain(t))) {
            let again = encode_journal(&list).unwrap();
            let same = decode_journal(&again).expect("what was written is read");
            assert!(same
                .iter()
                .map(|e| (e.primary, e.secondary, e.key, e.value.as_slice()))
                .eq(list.iter().copied()));
        }
    }
}

/// A checksum is right or the value is refused.
fn sealed(bytes: &[u8]) {
    let name = ("factories", "", "ab");
    if let Some(value) = open_seal(name, bytes.to_vec()) {
        assert_eq!(seal(name, value), bytes);
    }
    assert_eq!(open_seal(name, seal(name, bytes.to_vec())).as_deref(), Some(bytes));
}

/// A file that passes every check can be used and written.
pub fn exit_file(data: &[u8]) {
    let file = match ExitFile::parse(data) {
        Ok(file) => file,
        Err(error) => {
            let known = matches!(error, Error::InvalidArgument { .. } | Error::Factory(_));
            assert!(known && error.to_string().len() < 2_000, "{error}");
            return;
        }
    };
    let again = ExitFile::parse(&serde_json::to_vec(&file).unwrap()).expect("what was written is read");
    assert_eq!(again, file);
    assert!(again.leaf_id() == file.leaf_id() && again.position() == file.position());
    let plan = file.plan().unwrap();
    assert_eq!(plan.distributions.len(), plan.steps.len() - plan.leaf_start);
    assert_eq!(Some(plan.steps.last().unwrap().txid), file.leaf_txid());
    let mut parent = file.path.funding.outpoint.txid;
    for step in &plan.steps {
        assert_eq!(step.parent.txid, parent, "one chain from the funding output");
        parent = step.txid;
    }
    for distribution in &plan.distributions {
        assert!(distribution.lock_height >= file.path.expiry_height);
    }
}
