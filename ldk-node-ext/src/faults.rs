//! Fail points in the node: where a test makes a process die or wait. See [`factory_core::faults`], which also
//! says why nothing of it is in a release build.
//!
//! `hold@POINT` makes a file named like the point in the folder of the process's faults, and waits until that file
//! is gone: a test sees that the point was reached, does what it wants to (kill another process, mine a block), and
//! removes the file.
//!
//! Switches of hostile peers spoil our protocol's messages on their way out: see [`outgoing`].

#[cfg(all(feature = "faults", debug_assertions))]
mod client;
#[cfg(all(feature = "faults", debug_assertions))]
mod lsp;

use bitcoin::secp256k1::PublicKey;
use bolt_tlv::payload::Payload;
use lightning::ln::msgs::MessageSendEvent;

/// What is sent for a message: its bytes, in this build.
#[cfg(not(all(feature = "faults", debug_assertions)))]
#[inline(always)]
pub(crate) fn outgoing(_peer: &PublicKey, payload: &Payload) -> [Vec<u8>; 1] {
    [payload.encode()]
}

/// What is sent for a message: its bytes, or what the switches of hostile clients and LSPs make of it.
#[cfg(all(feature = "faults", debug_assertions))]
pub(crate) fn outgoing(peer: &PublicKey, payload: &Payload) -> Vec<Vec<u8>> {
    use factory_core::faults::{faults, Fault, HOSTILE};

    let on: Vec<String> = faults()
        .1
        .into_iter()
        .filter_map(|fault| match fault {
            Fault::On(name) if HOSTILE.iter().any(|(hostile, _)| *hostile == name) => Some(name),
            _ => None,
        })
        .collect();
    match on.first() {
        None => vec![payload.encode()],
        Some(name) if name.starts_with("client.") => client::outgoing(&on, payload),
        Some(_) => lsp::outgoing(&on, peer, payload),
    }
}

/// What leaves of a message to a channel's peer: all of it, in this build.
#[cfg(not(all(feature = "faults", debug_assertions)))]
#[inline(always)]
pub(crate) fn part(event: MessageSendEvent) -> Option<MessageSendEvent> {
    Some(event)
}

/// What leaves of a message to a channel's peer: the switches `lsp.part.*` spoil HTLCs that are offered.
#[cfg(all(feature = "faults", debug_assertions))]
pub(crate) fn part(mut event: MessageSendEvent) -> Option<MessageSendEvent> {
    use factory_core::faults::switch;
    use lightning::ln::types::ChannelId;

    static FIRST: std::sync::Mutex<Option<ChannelId>> = std::sync::Mutex::new(None);
    let MessageSendEvent::UpdateHTLCs { channel_id, updates, .. } = &mut event else { return Some(event) };
    let Some(htlc) = updates.update_add_htlcs.first_mut() else { return Some(event) };
    let (damaged, withheld) = (switch("lsp.part.damaged"), switch("lsp.part.withheld"));
    if !damaged && !withheld {
        return Some(event);
    }
    let mut first = crate::util::lock(&FIRST);
    let is_first = first.is_none();
    let same_channel = *first.get_or_insert(*channel_id) == *channel_id;
    if damaged && is_first {
        htlc.onion_routing_packet.hop_data[0] ^= 1;
    }
    (!withheld || same_channel).then_some(event)
}

/// A point at which a process can be made to die or to wait. Nothing, in this build.
#[cfg(not(all(feature = "faults", debug_assertions)))]
#[inline(always)]
pub(crate) const fn point(_name: &str) {}

#[cfg(not(all(feature = "faults", debug_assertions)))]
mod absent {
    use bolt_tlv::payload::Payload;
    use factory_core::advance::LspAdvanceRecord;

    use crate::ldk::PeerManager;

    #[inline(always)]
    pub(crate) const fn hides(_record: &LspAdvanceRecord) -> bool {
        false
    }

    #[inline(always)]
    pub(crate) const fn ldk_object(_primary: &str, _key: &str, _step: &str) {}

    #[inline(always)]
    pub(crate) const fn message(_is_lsp: bool, _payload: &Payload) {}

    #[inline(always)]
    pub(crate) const fn message_sent(_is_lsp: bool, _payload: &Payload, _peers: &PeerManager) {}

    #[inline(always)]
    pub(crate) const fn submit(_what: &str, _step: &str) {}
}

#[cfg(not(all(feature = "faults", debug_assertions)))]
pub(crate) use absent::{hides, ldk_object, message, message_sent, submit};

#[cfg(all(feature = "faults", debug_assertions))]
pub(crate) use armed::point;
#[cfg(all(feature = "faults", debug_assertions))]
pub(crate) use kinds::{ldk_object, message, message_sent, submit};
#[cfg(all(feature = "faults", debug_assertions))]
pub(crate) use lsp::hides;

/// Points in places that many kinds of a thing come by: one for each kind.
#[cfg(all(feature = "faults", debug_assertions))]
mod kinds {
    use bolt_tlv::payload::Payload;
    use factory_core::faults::{faults, Fault};
    use lightning::util::persist::{
        CHANNEL_MANAGER_PERSISTENCE_KEY, CHANNEL_MONITOR_PERSISTENCE_PRIMARY_NAMESPACE,
    };

    use super::point;
    use crate::ldk::PeerManager;

    /// LDK's channel manager, or a channel monitor, is written: `step` is `store` or `stored`.
    pub(crate) fn ldk_object(primary: &str, key: &str, step: &str) {
        match (primary, key) {
            ("", CHANNEL_MANAGER_PERSISTENCE_KEY) => point(&format!("node.manager.{step}")),
            (CHANNEL_MONITOR_PERSISTENCE_PRIMARY_NAMESPACE, _) => point(&format!("node.monitor.{step}")),
            _ => {}
        }
    }

    /// A transaction of the queue goes to bitcoind: `step` is `submit` or `submitted`. `what` as in the queue.
    pub(crate) fn submit(what: &str, step: &str) {
        let kind = match what {
            "factory funding" => "funding",
            "factory close" => "close",
            "UnilateralClose" => "commitment",
            "Sweep" => "sweep",
            _ => return,
        };
        point(&format!("node.{kind}.{step}"));
    }

    /// The messages that have points, named as the messages are.
    fn name(is_lsp: bool, step: &str, payload: &Payload) -> Option<String> {
        let kind = match payload {
            Payload::Join(_) => "join",
            Payload::Invite(_) => "invite",
            Payload::Accept(_) => "accept",
            Payload::Plan(_) => "plan",
            Payload::PlanOk(_) => "plan_ok",
            Payload::Path(_) => "path",
            Payload::Nonces(_) => "nonces",
            Payload::AggNonces(_) => "agg_nonces",
            Payload::Partials(_) => "partials",
            Payload::Signed(_) => "signed",
            Payload::Persisted(_) => "persisted",
            Payload::Funded(_) => "funded",
            Payload::ClosePropose(_) => "close_propose",
            Payload::CloseConsent(_) => "close_consent",
            Payload::CloseTx(_) => "close_tx",
            Payload::CloseNonce(_) => "close_nonce",
            Payload::CloseAggNonce(_) => "close_agg_nonce",
            Payload::ClosePartial(_) => "close_partial",
            Payload::CloseDone(_) => "close_done",
            _ => return None,
        };
        Some(format!("{}.{step}.{kind}", if is_lsp { "lsp" } else { "client" }))
    }

    /// A message to a peer is about to be queued.
    pub(crate) fn message(is_lsp: bool, payload: &Payload) {
        if let Some(name) = name(is_lsp, "send", payload) {
            point(&name);
        }
    }

    /// A message to a peer is queued. Where something is to happen here it has left the process before: a queue
    /// that dies with the process is no different from [`message`].
    pub(crate) fn message_sent(is_lsp: bool, payload: &Payload, peers: &PeerManager) {
        let Some(name) = name(is_lsp, "sent", payload) else { return };
        let concerned = |f: &Fault| match f {
            Fault::Kill { point, .. } | Fault::Hold { point, .. } => *point == name,
            Fault::On(_) => false,
        };
        if faults().1.iter().any(concerned) {
            peers.process_events();
        }
        point(&name);
    }
}

#[cfg(all(feature = "faults", debug_assertions))]
mod armed {
    use std::collections::HashMap;
    use std::sync::Mutex;
    use std::time::Duration;

    use factory_core::faults::{faults, folder, Fault, LIST, POINTS};
    use tokio::runtime::{Handle, RuntimeFlavor};

    use crate::util::lock;

    /// How often each point came by since the list was last written, and which list that is.
    static PASSED: Mutex<Option<(String, HashMap<String, u32>)>> = Mutex::new(None);

    /// A point at which this process dies or waits if it was told to.
    ///
    /// Blocks the thread while it waits: what comes after the point in program order does not happen.
    pub(crate) fn point(name: &str) {
        debug_assert!(POINTS.contains(&name), "{name} is not listed");
        let (text, list) = faults();
        if list.is_empty() {
            return;
        }
        // The same list may have been written anew: it counts from the beginning.
        let written = folder().and_then(|folder| folder.join(LIST).metadata().ok()?.modified().ok());
        let text = format!("{written:?} {text}");
        let passed = {
            let mut guard = lock(&PASSED);
            let state = guard.get_or_insert_default();
            if state.0 != text {
                *state = (text, HashMap::new());
            }
            let counter = state.1.entry(name.to_owned()).or_default();
            *counter += 1;
            *counter
        };
        for fault in list {
            match fault {
                Fault::Kill { point, nth } if point == name && nth == passed => die(),
                Fault::Hold { point, nth } if point == name && nth == passed => wait(name),
                _ => {}
            }
        }
    }

    /// As by `kill -9`: nothing is unwound, flushed or said.
    fn die() {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        std::process::abort();
    }

    fn wait(name: &str) {
        let Some(file) = folder().map(|folder| folder.join(name)) else { return };
        if std::fs::write(&file, b"").is_err() {
            die();
        }
        let held = || {
            while file.exists() {
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        // Another thread takes over what else this one has to do: a message that was queued before leaves.
        match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
            Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(held),
            _ => held(),
        }
    }
}
