//! A node's side: it hands the newest path of each leaf to its watchers, and hears when they hold it.
//!
//! Files are read and written by a task for each folder, on a thread of its own: whatever a shared folder hangs on,
//! the node does not wait for it. What the factory service asks here is in memory.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

use super::folder::{digest, Alive, Folder, BEAT};
use super::{ExitFile, LeafId};
use crate::error::Error;
use crate::util::lock;

/// How often a folder is looked into while something is not acknowledged.
const SOON: Duration = Duration::from_millis(100);
/// How often otherwise, and after a failure.
const LATER: Duration = Duration::from_secs(1);
/// A path that is not acknowledged is written again after this.
const REWRITE: Duration = Duration::from_secs(30);
/// Most folders of a node.
const MAX_FOLDERS: usize = 8;

/// A node's watchers.
#[derive(Clone, Debug)]
pub struct HandoverConfig {
    /// The folder of each.
    pub folders: Vec<PathBuf>,
    /// Whether a leaf rotates only with every watcher there, and nothing that retires an older path is sent before
    /// every one holds the newer. Else it is sent after [`HandoverConfig::wait`].
    pub required: bool,
    /// How long a watcher may be silent before it counts as away, and how long its word is waited for before the user
    /// is told.
    pub wait: Duration,
}

impl Default for HandoverConfig {
    fn default() -> Self {
        Self { folders: Vec::new(), required: false, wait: Duration::from_secs(30) }
    }
}

impl HandoverConfig {
    /// Checks every limit.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field.
    pub fn validate(&self) -> Result<(), Error> {
        if self.folders.len() > MAX_FOLDERS {
            return Err(Error::invalid("watchers", format!("must be at most {MAX_FOLDERS} folders")));
        }
        if self.required && self.folders.is_empty() {
            return Err(Error::invalid("watchers_required", "there is no watcher: set watchers"));
        }
        if self.wait < 2 * BEAT || self.wait > Duration::from_secs(3600) {
            return Err(Error::invalid("watchers_wait_secs", "must be from 4 s to 3600 s"));
        }
        Ok(())
    }
}

/// Where a watcher stands with a leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Word {
    /// Nothing heard yet, or why it could not be asked.
    None(Option<String>),
    /// It holds the path.
    Holds,
    /// It does not take it, and why.
    Refuses(String),
}

/// A path that was handed over, or is to be.
#[derive(Clone)]
struct Offer {
    position: u64,
    text: Arc<str>,
    sha256: String,
    /// When it was written last.
    written: Option<Instant>,
    word: Word,
}

struct State {
    offers: BTreeMap<LeafId, Offer>,
    alive: Option<Alive>,
    /// When the sign of life was another one than before.
    seen: Option<Instant>,
    /// Whether one has been read: the first may be old.
    first: bool,
}

/// A watcher as a node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatcherInfo {
    /// The folder that both have.
    pub folder: String,
    /// Whether it has given a sign of life lately.
    pub present: bool,
    /// The height up to which it has looked, blocks; none if it was never heard.
    pub height: Option<u32>,
    /// What its fee wallet lacks for everything it guards, sat.
    pub missing_sat: Option<u64>,
    /// Leaves whose newest path was handed to it.
    pub leaves: usize,
    /// Leaves whose newest path it holds.
    pub held: usize,
    /// The first leaf whose newest path it does not hold, and why.
    pub trouble: Option<String>,
}

struct Place {
    folder: PathBuf,
    state: Mutex<State>,
}

/// See the module's description.
pub(crate) struct Handover {
    config: HandoverConfig,
    places: Vec<Arc<Place>>,
    wake: watch::Sender<u64>,
    changes: watch::Sender<u64>,
}

impl Handover {
    /// Begins; tasks end with `stop`.
    pub(crate) fn start(config: HandoverConfig, stop: &watch::Receiver<bool>) -> Self {
        let (wake, _) = watch::channel(0);
        let (changes, _) = watch::channel(0);
        let mut places = Vec::new();
        for folder in &config.folders {
            let state = State { offers: BTreeMap::new(), alive: None, seen: None, first: true };
            let place = Arc::new(Place { folder: folder.clone(), state: Mutex::new(state) });
            let task = run(Arc::clone(&place), wake.subscribe(), changes.clone(), stop.clone());
            tokio::spawn(task);
            places.push(place);
        }
        Self { config, places, wake, changes }
    }

    /// Whether there is any watcher.
    pub(crate) fn any(&self) -> bool {
        !self.places.is_empty()
    }

    /// How it is configured.
    pub(crate) fn config(&self) -> &HandoverConfig {
        &self.config
    }

    /// Changes when a watcher has said something.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Hands a path to every watcher, unless they have this one or a newer.
    ///
    /// # Errors
    /// [`Error::Conflict`] for a file that is no JSON.
    pub(crate) fn offer(&self, file: &ExitFile) -> Result<(), Error> {
        let text = serde_json::to_string(file).map_err(|e| Error::Conflict(format!("exit file: {e}")))?;
        let (text, sha256): (Arc<str>, _) = (text.as_str().into(), digest(text.as_bytes()));
        let (id, position) = (file.leaf_id(), file.position());
        for place in &self.places {
            let offers = &mut lock(&place.state).offers;
            if offers.get(&id).is_some_and(|offer| offer.position >= position) {
                continue;
            }
            let (text, sha256) = (Arc::clone(&text), sha256.clone());
            offers.insert(id, Offer { position, text, sha256, written: None, word: Word::None(None) });
        }
        self.wake.send_modify(|n| *n = n.wrapping_add(1));
        Ok(())
    }

    /// Forgets a leaf that has ended.
    pub(crate) fn forget(&self, leaf: &LeafId) {
        for place in &self.places {
            lock(&place.state).offers.remove(leaf);
        }
    }

    /// The watchers that do not hold this position of a leaf, and why.
    pub(crate) fn without(&self, leaf: &LeafId, position: u64) -> Vec<String> {
        let word = |place: &Arc<Place>| {
            let state = lock(&place.state);
            let offer = state.offers.get(leaf).filter(|offer| offer.position >= position);
            let why = match offer.map(|offer| &offer.word) {
                Some(Word::Holds) => return None,
                Some(Word::Refuses(reason)) => format!("refuses: {reason}"),
                Some(Word::None(Some(trouble))) => trouble.clone(),
                Some(Word::None(None)) | None => "does not answer".to_owned(),
            };
            Some(format!("watcher {} {why}", place.folder.display()))
        };
        self.places.iter().filter_map(word).collect()
    }

    /// The watchers that have been silent for too long.
    pub(crate) fn away(&self) -> Vec<String> {
        let away = self.places.iter().filter(|place| !self.is_present(&lock(&place.state)));
        away.map(|place| format!("watcher {}", place.folder.display())).collect()
    }

    fn is_present(&self, state: &State) -> bool {
        state.seen.is_some_and(|seen| seen.elapsed() < self.config.wait)
    }

    /// The watchers, for display.
    pub(crate) fn infos(&self) -> Vec<WatcherInfo> {
        let info = |place: &Arc<Place>| {
            let state = lock(&place.state);
            let held = state.offers.values().filter(|offer| offer.word == Word::Holds).count();
            let trouble = state.offers.iter().find_map(|(leaf, offer)| match &offer.word {
                Word::Holds => None,
                Word::None(None) => Some(format!("leaf {leaf}: no answer")),
                Word::None(Some(text)) | Word::Refuses(text) => Some(format!("leaf {leaf}: {text}")),
            });
            WatcherInfo {
                folder: place.folder.display().to_string(),
                present: self.is_present(&state),
                height: state.alive.as_ref().map(|alive| alive.height),
                missing_sat: state.alive.as_ref().map(|alive| alive.missing_sat),
                leaves: state.offers.len(),
                held,
                trouble,
            }
        };
        self.places.iter().map(info).collect()
    }
}

/// Works for one folder until told to stop.
async fn run(
    place: Arc<Place>,
    mut wake: watch::Receiver<u64>,
    changes: watch::Sender<u64>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let worked = Arc::clone(&place);
        let round = tokio::select! {
            biased;
            _ = stop.changed() => return,
            round = tokio::task::spawn_blocking(move || worked.round()) => round,
        };
        let (changed, open) = match round {
            Ok(Ok(result)) => result,
            Ok(Err(e)) => {
                tracing::warn!(error = %e, "a watcher's folder cannot be used");
                (place.failed(&e), false)
            }
            Err(e) => {
                tracing::error!(error = %e, "a watcher's folder");
                (false, false)
            }
        };
        if changed {
            changes.send_modify(|n| *n = n.wrapping_add(1));
        }
        tokio::select! {
            biased;
            _ = stop.changed() => return,
            _ = wake.changed() => {}
            () = tokio::time::sleep(if open { SOON } else { LATER }) => {}
        }
    }
}

impl Place {
    /// Writes what is to be handed over, and reads what has been answered: whether anything is new, and whether
    /// something has no answer. The lock is not held while the folder is used.
    fn round(&self) -> Result<(bool, bool), Error> {
        let folder = Folder::open(&self.folder)?;
        let mut changed = self.look_for_life(folder.read_alive()?);
        let open: Vec<(LeafId, Offer)> = {
            let state = lock(&self.state);
            let open = state.offers.iter().filter(|(_, offer)| offer.word != Word::Holds);
            open.map(|(leaf, offer)| (*leaf, offer.clone())).collect()
        };
        let mut waits = false;
        for (leaf, offer) in open {
            let ack = folder.read_ack(&leaf)?.filter(|ack| ack.answers(&offer.sha256));
            let word = match ack.map(|ack| ack.refused) {
                Some(None) => Word::Holds,
                Some(Some(reason)) => Word::Refuses(reason),
                None => Word::None(None),
            };
            // Once more after a while: the folder may have been emptied.
            let late = offer.written.is_none_or(|at| at.elapsed() >= REWRITE);
            let written = (word == Word::None(None) && late).then(Instant::now);
            if written.is_some() {
                folder.write_path(&leaf, &offer.text)?;
            }
            waits |= word == Word::None(None);
            let mut state = lock(&self.state);
            // A newer one may have taken its place meanwhile.
            if let Some(now) = state.offers.get_mut(&leaf).filter(|now| now.sha256 == offer.sha256) {
                now.written = written.or(now.written);
                changed |= now.word != word;
                if word == Word::Holds {
                    // It is not needed any more, and there may be thousands.
                    now.text = "".into();
                }
                now.word = word;
            }
        }
        Ok((changed, waits))
    }

    /// Notes a sign of life; whether it is a new one.
    fn look_for_life(&self, alive: Option<Alive>) -> bool {
        let mut state = lock(&self.state);
        let first = std::mem::replace(&mut state.first, false);
        if state.alive == alive {
            return false;
        }
        // The first may have been there for long.
        if !first {
            state.seen = Some(Instant::now());
        }
        state.alive = alive;
        true
    }

    /// Notes why the folder could not be used.
    fn failed(&self, error: &Error) -> bool {
        let mut changed = false;
        for offer in lock(&self.state).offers.values_mut().filter(|offer| offer.word != Word::Holds) {
            let word = Word::None(Some(error.to_string()));
            changed |= offer.word != word;
            offer.word = word;
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::super::folder::Ack;
    use super::*;

    fn place(dir: &std::path::Path) -> Place {
        let state = State { offers: BTreeMap::new(), alive: None, seen: None, first: true };
        Place { folder: dir.to_owned(), state: Mutex::new(state) }
    }

    fn offer(place: &Place, leaf: LeafId, position: u64, text: &str) {
        let offer = Offer {
            position,
            text: text.into(),
            sha256: digest(text.as_bytes()),
            written: None,
            word: Word::None(None),
        };
        lock(&place.state).offers.insert(leaf, offer);
    }

    #[tokio::test]
    async fn a_path_is_held_once_its_own_file_is_acknowledged() {
        let dir = tempfile::tempdir().unwrap();
        let (place, leaf) = (place(dir.path()), "0a".repeat(32).parse::<LeafId>().unwrap());
        let folder = Folder::open(dir.path()).unwrap();
        let word = || lock(&place.state).offers[&leaf].word.clone();
        offer(&place, leaf, 1, "old");
        assert_eq!(place.round().unwrap(), (false, true));
        folder.write_ack(&leaf, &Ack::new(digest(b"old"), Some(1), None)).unwrap();
        assert_eq!(place.round().unwrap(), (true, false));
        assert_eq!(word(), Word::Holds);
        // The older one's word says nothing of the newer.
        offer(&place, leaf, 2, "new");
        assert_eq!(place.round().unwrap(), (false, true));
        assert_eq!(word(), Word::None(None));
        let ack = Ack::new(digest(b"new"), Some(1), Some("bad".into()));
        folder.write_ack(&leaf, &ack).unwrap();
        assert_eq!(place.round().unwrap(), (true, false));
        assert_eq!(word(), Word::Refuses("bad".into()));
        folder.write_ack(&leaf, &Ack::new(digest(b"new"), Some(2), None)).unwrap();
        place.round().unwrap();
        assert_eq!(word(), Word::Holds);
    }

    #[tokio::test]
    async fn an_old_sign_of_life_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let (place, folder) = (place(dir.path()), Folder::open(dir.path()).unwrap());
        folder.write_alive(&Alive::new(7, 1, 0)).unwrap();
        place.round().unwrap();
        assert!(lock(&place.state).seen.is_none(), "it may be years old");
        folder.write_alive(&Alive::new(8, 1, 0)).unwrap();
        place.round().unwrap();
        assert!(lock(&place.state).seen.is_some());
    }

    #[test]
    fn a_folder_that_cannot_be_used_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let (place, leaf) = (place(&file), "0a".repeat(32).parse::<LeafId>().unwrap());
        offer(&place, leaf, 1, "old");
        let e = place.round().unwrap_err();
        assert!(e.to_string().contains("file/paths"), "{e}");
        assert!(place.failed(&e) && !place.failed(&e));
    }
}
