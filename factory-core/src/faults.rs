//! Faults that tests put into a running program: fail points and fault switches.
//!
//! A **fail point** is a named line at which a process can be made to die or to wait, so that a crash can be
//! tested at exactly that line. A **fault switch** leaves out or spoils one protection, so that a scenario can be
//! shown to notice: a check that cannot fail is worth nothing.
//!
//! None of it is in a program that people run: it takes the feature `faults`, which only the workspace's tests
//! ask for, *and* debug assertions, which a release build does not have. Without them every function here is
//! a constant, and the environment is not looked at.
//!
//! What is to go wrong stands in the file [`LIST`] in the folder that the environment variable [`VARIABLE`] names,
//! separated by commas: `kill@POINT` (dies at that point as by SIGKILL), `kill@POINT#3` (the third time it comes
//! by), `hold@POINT` (waits there until told to go on, see `ldk_node_ext`), `on@SWITCH`. The file is read again each
//! time, so a test may change its mind while the program runs. A program that is told something it does not know
//! stops: a misspelt fault would make a test that cannot fail.

mod hostile;
mod protections;

pub use hostile::HOSTILE;
pub use protections::PROTECTIONS;

/// The environment variable that names the folder of a process's faults. Without it nothing goes wrong.
pub const VARIABLE: &str = "FACTORY_FAULTS";

/// The file with the list of what is to go wrong, in that folder. No file is an empty list.
pub const LIST: &str = "faults";

/// Every fail point there is, by name: `role.step`, in the order in which a factory's life passes them.
pub const POINTS: &[&str] = &[
    // A factory is made.
    "client.send.join",
    "client.sent.join",
    "lsp.send.invite",
    "lsp.sent.invite",
    "client.send.accept",
    "client.sent.accept",
    "lsp.send.plan",
    "lsp.sent.plan",
    "client.send.plan_ok",
    "client.sent.plan_ok",
    "lsp.channel.opened",
    "client.channel.accepted",
    "lsp.funding.built",
    "lsp.send.path",
    "lsp.sent.path",
    "lsp.channel.funded",
    "client.channel.pending",
    "lsp.commitment.held",
    "client.send.nonces",
    "client.sent.nonces",
    "lsp.send.agg_nonces",
    "lsp.sent.agg_nonces",
    "client.send.partials",
    "client.sent.partials",
    "lsp.tree.store",
    "lsp.tree.stored",
    "lsp.send.signed",
    "lsp.sent.signed",
    "client.path.store",
    "client.path.stored",
    "client.send.persisted",
    "client.sent.persisted",
    "lsp.funding.store",
    "lsp.funding.stored",
    "node.funding.submit",
    "node.funding.submitted",
    "lsp.send.funded",
    "lsp.sent.funded",
    "client.funding.stored",
    "node.live.store",
    "node.live.stored",
    "node.channels.released",
    "node.void.stored",
    // Payments, and what LDK writes.
    "node.pay.recorded",
    "node.pay.begun",
    "node.offer.requested",
    "node.offer.answered",
    "node.manager.store",
    "node.manager.stored",
    "node.monitor.store",
    "node.monitor.stored",
    "lsp.intercepted",
    "lsp.forward.decided",
    "node.claimable",
    "node.claimable.recorded",
    "node.claim.begun",
    "node.claimed",
    "node.claimed.recorded",
    "lsp.forwarded",
    "node.paid",
    "node.paid.recorded",
    "node.pay.failed",
    "node.hold.added",
    "node.hold.stored",
    "node.hold.claim_ordered",
    "node.hold.fail_ordered",
    "node.hold.failed_back",
    "lsp.relay.offered",
    "lsp.relay.held",
    "lsp.relay.paying",
    "lsp.relay.sent",
    "lsp.relay.paid",
    "lsp.relay.claimed",
    "lsp.relay.done",
    "lsp.relay.failed",
    "client.move.recorded",
    "client.move.sent",
    "client.move.closing",
    // A payment is held for a client without room, and a channel is opened for it.
    "lsp.jit.held",
    "lsp.jit.recorded",
    "lsp.jit.funding_stored",
    "lsp.jit.signed",
    "lsp.jit.child_stored",
    "lsp.jit.forward",
    "lsp.jit.forwarded",
    // A leaf rotates.
    "lsp.rotation.begun",
    "node.channel.move",
    "node.channel.moved",
    "node.change.bind",
    "node.change.bound",
    "node.change.signed",
    "lsp.burnt.store",
    "lsp.burnt.stored",
    "client.mark.store",
    "client.mark.stored",
    "client.pending.store",
    "client.pending.stored",
    "lsp.advance.store",
    "lsp.advance.stored",
    "client.advance.store",
    "client.advance.stored",
    // A factory is closed.
    "lsp.close.begun",
    "lsp.send.close_propose",
    "lsp.sent.close_propose",
    "client.consent.store",
    "client.consent.stored",
    "client.send.close_consent",
    "client.sent.close_consent",
    "lsp.close.store",
    "lsp.close.stored",
    "lsp.channel.shut",
    "node.closing.kept",
    "lsp.balance.store",
    "lsp.balance.stored",
    "client.balance.store",
    "client.balance.stored",
    "lsp.send.close_tx",
    "lsp.sent.close_tx",
    "client.send.close_nonce",
    "client.sent.close_nonce",
    "lsp.send.close_agg_nonce",
    "lsp.sent.close_agg_nonce",
    "client.frozen.store",
    "client.frozen.stored",
    "client.send.close_partial",
    "client.sent.close_partial",
    "lsp.close_tx.store",
    "lsp.close_tx.stored",
    "node.close.submit",
    "node.close.submitted",
    "lsp.send.close_done",
    "lsp.sent.close_done",
    "client.close_tx.stored",
    "node.closed.store",
    "node.closed.stored",
    // A leaf is brought to the chain.
    "node.exit.store",
    "node.exit.stored",
    "node.exit.channel_closed",
    "node.child.store",
    "node.child.stored",
    "node.child.submitted",
    "node.exit.progress",
    "node.commitment.submit",
    "node.commitment.submitted",
    "node.sweep.track",
    "node.sweep.tracked",
    "node.sweep.submit",
    "node.sweep.submitted",
    "node.exit.ended",
];

/// Fault switches by name, with what they break; beside those in [`PROTECTIONS`] and [`HOSTILE`].
pub const SWITCHES: &[(&str, &str)] = &[
    (
        "client.move.astray",
        "none: money is not moved from the channel that was named, but from the factory's",
    ),
    ("companions.late", "none: a node keeps its companions to itself for a while"),
    ("gossip.from_anybody", "none: gossip of peers without any channel counts"),
    ("gossip.from_any_channel", "none: gossip of peers without an announced channel counts"),
    ("gossip.unbounded", "none: the graph grows without end"),
    ("lsp.channel.not_opened", "none: the LSP's own node opens no channel of a factory"),
    ("lsp.close.stores_all", "none: for each balance of a close all of the close is stored"),
    (
        "lsp.lists_every_channel",
        "none: every message of a ceremony has LDK list the channels of all its clients",
    ),
    ("lsp.move.astray", "none: money that is moved is paid back over the channel that it came from"),
    ("lsp.part.damaged", "none: the first HTLC that the LSP's node offers from now on cannot be read"),
    (
        "lsp.part.withheld",
        "none: of the HTLCs that the LSP's node offers from now on those of one channel arrive",
    ),
    ("net.judges_everybody", "none: every connection has all peers looked up when there are many"),
    ("net.strangers.stay", "none: a node ends no connection of a stranger, so idle ones keep clients out"),
    ("store.full", "none: the disk has no room, for any write of the store"),
];

/// The names of all switches.
pub fn switches() -> impl Iterator<Item = &'static str> {
    SWITCHES.iter().chain(HOSTILE).map(|(name, _)| *name).chain(PROTECTIONS.iter().map(|(name, ..)| *name))
}

/// One entry of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Die the `nth` time this point comes by.
    Kill {
        /// Name of the point.
        point: String,
        /// Counted from 1.
        nth: u32,
    },
    /// Wait the `nth` time this point comes by.
    Hold {
        /// Name of the point.
        point: String,
        /// Counted from 1.
        nth: u32,
    },
    /// A switch is on.
    On(String),
}

/// Reads a list of faults.
///
/// # Errors
/// A text that names the entry that is not known.
pub fn parse(list: &str) -> Result<Vec<Fault>, String> {
    list.split(',').map(str::trim).filter(|entry| !entry.is_empty()).map(parse_one).collect()
}

fn parse_one(entry: &str) -> Result<Fault, String> {
    let unknown = || format!("{VARIABLE}: {entry:?} is not known");
    let (kind, rest) = entry.split_once('@').ok_or_else(unknown)?;
    if kind == "on" {
        let known = switches().any(|name| name == rest);
        return if known { Ok(Fault::On(rest.to_owned())) } else { Err(unknown()) };
    }
    let (point, nth) = match rest.split_once('#') {
        Some((point, nth)) => (point, nth.parse().map_err(|_| unknown())?),
        None => (rest, 1),
    };
    if nth == 0 || !POINTS.contains(&point) {
        return Err(unknown());
    }
    let point = point.to_owned();
    match kind {
        "kill" => Ok(Fault::Kill { point, nth }),
        "hold" => Ok(Fault::Hold { point, nth }),
        _ => Err(unknown()),
    }
}

#[cfg(all(feature = "faults", debug_assertions))]
mod armed {
    use std::fs::OpenOptions;
    use std::io::Write;
    use std::path::PathBuf;
    use std::sync::OnceLock;

    use super::{parse, Fault, LIST, VARIABLE};

    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();

    /// The folder of this process's faults.
    pub fn folder() -> Option<&'static PathBuf> {
        FOLDER.get_or_init(|| std::env::var_os(VARIABLE).map(PathBuf::from)).as_ref()
    }

    /// The list as it is now. Ends the process if something in it is not known.
    pub fn faults() -> (String, Vec<Fault>) {
        let Some(folder) = folder() else { return (String::new(), Vec::new()) };
        let text = std::fs::read_to_string(folder.join(LIST)).unwrap_or_default();
        match parse(&text) {
            Ok(list) => (text, list),
            Err(e) => {
                eprintln!("{e}");
                std::process::abort();
            }
        }
    }

    /// Adds a line to a file in that folder, for a test that has to know what only the process knows.
    ///
    /// Ends the process if that fails: a test that goes by what is not there proves nothing.
    pub fn note(file: &str, line: impl FnOnce() -> String) {
        let Some(folder) = folder() else { return };
        let text = format!("{}\n", line());
        let file = OpenOptions::new().create(true).append(true).open(folder.join(file));
        if let Err(e) = file.and_then(|mut file| file.write_all(text.as_bytes())) {
            eprintln!("{VARIABLE}: {e}");
            std::process::abort();
        }
    }

    /// Whether a switch is on.
    pub fn switch(name: &str) -> bool {
        debug_assert!(super::switches().any(|n| n == name), "{name} is not listed");
        faults().1.iter().any(|f| matches!(f, Fault::On(n) if n == name))
    }
}

#[cfg(all(feature = "faults", debug_assertions))]
pub use armed::{faults, folder, note, switch};

/// A line for a test. Nothing, in this build.
#[cfg(not(all(feature = "faults", debug_assertions)))]
#[inline(always)]
pub fn note(_file: &str, _line: impl FnOnce() -> String) {}

/// Whether a switch is on. Never, in this build.
#[cfg(not(all(feature = "faults", debug_assertions)))]
#[inline(always)]
pub const fn switch(_name: &str) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_fault_is_refused() {
        for entry in ["kill", "kill@no.such.point", "on@no.such.switch", "hold@x#0", "kill@x#y", "melt@x"] {
            let e = parse(entry).unwrap_err();
            assert!(e.contains(VARIABLE) && e.contains(entry), "{e}");
        }
        assert_eq!(parse(" , ").unwrap(), vec![]);
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<&str> = POINTS.iter().copied().chain(switches()).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
