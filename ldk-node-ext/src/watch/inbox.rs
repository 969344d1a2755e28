//! Taking paths from the folders that nodes share with the watcher.
//!
//! A path is taken if it is complete, of this network, of the leaf whose name it has and no older than the one that is
//! held. It is stored first; then the chain is looked through for what is new in it; then it takes the place of the older
//! one; then it is acknowledged. What is refused is refused with the reason, and the older path stays.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bitcoin::Txid;
use factory_core::faults::switch;
use lightning::util::persist::KVStoreSync;
use lightning_block_sync::{BlockData, BlockSource};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::engine::Engine;
use super::folder::{digest, Ack, Alive, Folder, Stamp, BEAT};
use super::leaf::Leaf;
use super::{remember, ExitFile, LeafId, MAX_EXIT_FILE_BYTES, PATHS, PATHS_VERSION};
use crate::chain::{Bitcoind, ChainIndex, Found};
use crate::error::Error;
use crate::store::{records, Store};

/// Most new paths at once, so that a folder full of them does not keep the chain waiting.
const AT_ONCE: usize = 100;
/// Most bytes of new paths at once, beyond the last of them.
const BYTES_AT_ONCE: u64 = 4 * MAX_EXIT_FILE_BYTES;
/// A leaf of a folder is kept so long after its end, blocks: no reorganization goes deeper.
const KEEP_BLOCKS: u32 = 144;
/// How often a folder is looked into.
const INTERVAL: Duration = Duration::from_millis(250);
/// What went wrong is tried again after this.
const RETRY: Duration = Duration::from_secs(5);

/// A file of a folder.
pub(super) struct Incoming {
    id: LeafId,
    stamp: Stamp,
    bytes: Vec<u8>,
}

/// New files of a folder, perhaps none: then the engine is only asked whether it is there.
pub(super) struct Batch {
    files: Vec<Incoming>,
    answer: oneshot::Sender<Reply>,
}

/// The engine's word.
struct Reply {
    acks: Vec<(LeafId, Stamp, Ack)>,
    ended: BTreeSet<LeafId>,
    height: u32,
    missing_sat: u64,
}

/// A path that is to be taken.
struct New {
    id: LeafId,
    stamp: Stamp,
    sha256: String,
    leaf: Leaf,
}

/// Carries between a folder and the engine, until told to stop. If what the folder is on hangs, this hangs and nothing
/// else: the files are read and written on a thread of its own.
pub(super) async fn serve(folder: Folder, engine: mpsc::Sender<Batch>, mut stop: watch::Receiver<bool>) {
    let mut answered = BTreeMap::new();
    let (mut acks, mut ended) = (Vec::new(), BTreeSet::new());
    // A new run begins with another number than the one before.
    let mut alive = Alive::new(rand::random(), 0, 0);
    let (mut due, mut asked) = (false, None::<Instant>);
    loop {
        let (place, known) = (folder.clone(), std::mem::take(&mut answered));
        let say = Say {
            acks: std::mem::take(&mut acks),
            alive: due.then(|| alive.clone()),
            ended: std::mem::take(&mut ended),
        };
        let round = tokio::task::spawn_blocking(move || round(&place, known, say));
        let result = tokio::select! {
            biased;
            _ = stop.changed() => return,
            result = round => result,
        };
        let Ok((read, known)) = result else { return };
        answered = known;
        due = false;
        let mut pause = INTERVAL;
        let files = read.unwrap_or_else(|e| {
            tracing::error!(error = %e, "a watched folder cannot be used");
            pause = RETRY;
            Vec::new()
        });
        let count = files.len();
        if count > 0 || asked.is_none_or(|at| at.elapsed() >= BEAT) {
            let (answer, reply) = oneshot::channel();
            if engine.send(Batch { files, answer }).await.is_err() {
                return;
            }
            let reply = tokio::select! {
                biased;
                _ = stop.changed() => return,
                reply = reply => reply,
            };
            let Ok(reply) = reply else { return };
            alive = Alive::new(alive.beat.wrapping_add(1), reply.height, reply.missing_sat);
            (asked, acks, ended, due) = (Some(Instant::now()), reply.acks, reply.ended, true);
            // What has no answer could not be taken.
            pause = if acks.len() < count { RETRY } else { Duration::ZERO };
        }
        tokio::select! {
            biased;
            _ = stop.changed() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

type Answered = BTreeMap<LeafId, Stamp>;

/// What is written into a folder.
struct Say {
    acks: Vec<(LeafId, Stamp, Ack)>,
    alive: Option<Alive>,
    ended: BTreeSet<LeafId>,
}

/// Writes what has been answered, and reads what is new.
fn round(folder: &Folder, mut answered: Answered, say: Say) -> (Result<Vec<Incoming>, Error>, Answered) {
    let result = (|| {
        for (id, stamp, ack) in &say.acks {
            folder.write_ack(id, ack)?;
            answered.insert(*id, *stamp);
        }
        if let Some(alive) = say.alive {
            folder.write_alive(&alive)?;
        }
        let (mut files, mut bytes) = (Vec::new(), 0u64);
        for (id, stamp) in folder.paths()? {
            if say.ended.contains(&id) {
                folder.remove_path(&id)?;
                answered.remove(&id);
                continue;
            }
            if answered.get(&id) == Some(&stamp) {
                continue;
            }
            if files.len() >= AT_ONCE || bytes >= BYTES_AT_ONCE {
                break;
            }
            let read = match folder.read_path(&id) {
                Err(e @ Error::InvalidArgument { .. }) => {
                    tracing::warn!(leaf = %id, error = %e, "path refused");
                    folder.write_ack(&id, &Ack::new(String::new(), None, Some(e.to_string())))?;
                    answered.insert(id, stamp);
                    continue;
                }
                read => read?,
            };
            let Some(read) = read else { continue };
            bytes = bytes.saturating_add(u64::try_from(read.len()).unwrap_or(u64::MAX));
            files.push(Incoming { id, stamp, bytes: read });
        }
        Ok(files)
    })();
    (result, answered)
}

/// The paths that were taken from folders.
///
/// # Errors
/// [`Error::Store`], [`Error::Corrupt`].
pub(super) fn stored(store: &Store) -> Result<Vec<ExitFile>, Error> {
    let all = records::all::<ExitFile>(store, PATHS, PATHS_VERSION)?;
    Ok(all.into_iter().map(|(_, file)| file).collect())
}

impl Engine {
    /// Takes what is new in a folder and answers; whether there was anything.
    pub(super) async fn receive(&mut self, batch: Batch, height: u32, missing_sat: u64) -> bool {
        let (mut new, mut acks) = (Vec::new(), Vec::new());
        for Incoming { id, stamp, bytes } in batch.files {
            let sha256 = digest(&bytes);
            match self.check(&id, &bytes) {
                Ok(Some(leaf)) => new.push(New { id, stamp, sha256, leaf }),
                Ok(None) => acks.push((id, stamp, self.ack(&id, sha256, None))),
                Err(e @ (Error::InvalidArgument { .. } | Error::Factory(_))) => {
                    tracing::warn!(leaf = %id, error = %e, "path refused");
                    acks.push((id, stamp, self.ack(&id, sha256, Some(e.to_string()))));
                }
                Err(e) => tracing::error!(error = %e, "a path could not be compared"),
            }
        }
        let any = !new.is_empty();
        if any {
            match self.take(new).await {
                Ok(taken) => acks.extend(taken),
                // Not acknowledged, so it is tried again.
                Err(e) => tracing::error!(error = %e, "new paths could not be taken"),
            }
        }
        // A folder that is not served any more has no use for it.
        let ended = self.ended.clone();
        let _ = batch.answer.send(Reply { acks, ended, height, missing_sat });
        any
    }

    /// Forgets leaves of folders that have ended long ago, so that what is kept stays bounded.
    pub(super) fn forget_ended(&mut self) -> Result<(), Error> {
        let height = self.index.best_block().height;
        let ended = self.leaves.iter().filter(|leaf| {
            let at = leaf.ended_at(&leaf.plan.guard_action(&*self.index, height), &self.index);
            at.is_some_and(|at| at.saturating_add(KEEP_BLOCKS) <= height)
        });
        for id in ended.map(|leaf| leaf.id).collect::<Vec<_>>() {
            let key = id.to_string();
            if records::get::<ExitFile>(&*self.store, PATHS, &key, PATHS_VERSION)?.is_none() {
                // From the command line: it is guarded as long as it is named there.
                continue;
            }
            let removed = self.store.remove(PATHS, "", &key, false);
            removed.map_err(|e| Error::Store(format!("{PATHS}/{key}: {e}")))?;
            self.leaves.retain(|leaf| leaf.id != id);
            self.ended.insert(id);
            tracing::info!(leaf = %id, "the leaf ended long ago and is not guarded any more");
        }
        Ok(())
    }

    /// The path that is held of a leaf.
    fn held(&self, id: &LeafId) -> Option<&Leaf> {
        self.leaves.iter().find(|leaf| leaf.id == *id)
    }

    /// Checks a file; none if what it has is held already.
    fn check(&self, id: &LeafId, bytes: &[u8]) -> Result<Option<Leaf>, Error> {
        let refuse = |reason: String| Err(Error::invalid("exit_file", reason));
        let leaf = Leaf::new(ExitFile::parse(bytes)?, self.config.network)?;
        if leaf.id != *id {
            return refuse(format!("it is of leaf {}, its name says {id}", leaf.id));
        }
        let Some(held) = self.held(id) else { return Ok(Some(leaf)) };
        let (ours, theirs) = (held.file.position(), leaf.file.position());
        if theirs < ours && !switch("watch.any_position") {
            return refuse(format!("position {theirs} is older than position {ours}, which is held"));
        }
        if theirs != ours {
            return Ok(Some(leaf));
        }
        if held.file.leaf_txid() != leaf.file.leaf_txid() {
            return refuse(format!("position {ours} is held, with other transactions"));
        }
        // One that came by the command line is not on this disk.
        let stored = records::get::<ExitFile>(&*self.store, PATHS, &id.to_string(), PATHS_VERSION)?;
        Ok(stored.is_none().then_some(leaf))
    }

    fn ack(&self, id: &LeafId, sha256: String, refused: Option<String>) -> Ack {
        Ack::new(sha256, self.held(id).map(|leaf| leaf.file.position()), refused)
    }

    /// Takes new paths, and acknowledges them.
    async fn take(&mut self, new: Vec<New>) -> Result<Vec<(LeafId, Stamp, Ack)>, Error> {
        let mut from = None::<u32>;
        for New { id, leaf, .. } in &new {
            records::put(&*self.store, PATHS, &id.to_string(), PATHS_VERSION, &leaf.file)?;
            let known = self.held(id).map(|held| held.txids().collect()).unwrap_or_default();
            leaf.register(&self.index);
            if let Some(height) = first_height(leaf, &known, &self.index) {
                from = Some(from.map_or(height, |from| from.min(height)));
            }
        }
        if let Some(from) = from {
            catch_up(&self.bitcoind, &self.index, from).await?;
        }
        let mut taken = Vec::with_capacity(new.len());
        for New { id, stamp, sha256, leaf } in new {
            tracing::info!(leaf = %id, position = leaf.file.position(), "guarding a new path");
            match self.leaves.iter_mut().find(|held| held.id == id) {
                Some(held) => *held = leaf,
                None => self.leaves.push(leaf),
            }
            taken.push((id, stamp, sha256));
        }
        remember(&self.store, &self.leaves)?;
        Ok(taken.into_iter().map(|(id, stamp, sha256)| (id, stamp, self.ack(&id, sha256, None))).collect())
    }
}

/// The height from which the blocks that the index has seen may have transactions of a leaf that are not `known`, the
/// ones that were looked for; none if they cannot.
///
/// A path shares its first transactions with the one before. The first that is new spends an output that has been
/// watched: unless that is spent by it, none of the new ones is on the chain.
pub(super) fn first_height(leaf: &Leaf, known: &BTreeSet<Txid>, index: &ChainIndex) -> Option<u32> {
    if leaf.plan.steps.first().is_some_and(|root| !known.contains(&root.txid)) {
        return Some(leaf.file.path.birth_height);
    }
    let new = leaf.transactions().filter(|tx| !known.contains(&tx.txid));
    new.filter_map(|tx| index.spend(&tx.parent).filter(|spend| spend.txid == tx.txid)).map(|s| s.height).min()
}

/// Looks through the blocks that the index has seen, from this height on.
async fn catch_up(bitcoind: &Bitcoind, index: &ChainIndex, from: u32) -> Result<(), Error> {
    let reorganizations = index.reorganizations();
    let tip = index.best_block();
    let mut found = Found::default();
    if from <= tip.height {
        let first = bitcoind.first_block().await?;
        if first > u64::from(from) {
            return Err(Error::Bitcoind(format!(
                "it is pruned and has blocks from {first} on; those from {from} on are needed"
            )));
        }
    }
    for height in from..=tip.height {
        let hash = bitcoind.block_at(height).await?.block_hash;
        let failed = |e| Error::Bitcoind(format!("block {height}: {e:?}"));
        match bitcoind.get_block(&hash).await.map_err(failed)? {
            BlockData::FullBlock(block) => index.look_again(&block, height, &mut found),
            BlockData::HeaderOnly(_) => return Err(Error::Bitcoind(format!("block {height} has no body"))),
        }
    }
    let same = bitcoind.block_at(tip.height).await?.block_hash == tip.block_hash;
    match same && index.add(found, reorganizations)? {
        true => Ok(()),
        false => Err(Error::Bitcoind("the chain was reorganized in between".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing() -> Say {
        Say { acks: Vec::new(), alive: None, ended: BTreeSet::new() }
    }

    #[test]
    fn a_file_that_is_too_large_is_refused_and_holds_up_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let ids: Vec<LeafId> = ["0a", "0b"].map(|byte| byte.repeat(32).parse().unwrap()).into();
        let large = " ".repeat(usize::try_from(MAX_EXIT_FILE_BYTES).unwrap() + 1);
        folder.write_path(&ids[0], &large).unwrap();
        folder.write_path(&ids[1], "{}").unwrap();
        let (read, answered) = round(&folder, BTreeMap::new(), nothing());
        let read: Vec<LeafId> = read.unwrap().iter().map(|file| file.id).collect();
        assert_eq!(read, ids[1..]);
        assert!(folder.read_ack(&ids[0]).unwrap().unwrap().refused.unwrap().contains("larger than"));
        assert_eq!(answered.keys().collect::<Vec<_>>(), [&ids[0]], "it is not read again");
        // A leaf that has ended is cleared away.
        let say = Say { ended: ids.iter().copied().collect(), ..nothing() };
        assert!(round(&folder, answered, say).0.unwrap().is_empty());
        assert!(folder.paths().unwrap().is_empty());
    }
}
