//! The task that looks at what is held: asks for the decision, and acts on it.
//!
//! It looks again whenever something has changed and a few times a second. Payments for one client are looked at
//! together: what fits is sent on, and for all the rest of them there is one rotation or one new channel at a time. Nothing
//! is held longer than the policy says, and what cannot be served any more is given back at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bitcoin::secp256k1::PublicKey;
use lightning::ln::channel_state::{ChannelDetails, ChannelShutdownState};
use lightning::types::payment::PaymentHash;
use serde_json::json;
use tokio::sync::{oneshot, watch};

use super::decide::{decide, Action, Against, Amount, Decision, JitPolicy, Leaf, Situation};
use super::hold::{Key, Payment};
use super::lsps2::UNPAID_FOR;
use super::open::For;
use super::{is_jit, Full};
use crate::api::LiquidityRequest;
use crate::error::Error;
use crate::factory::{Command, PaymentView};
use crate::faults;
use crate::htlc_rules::Refusal;
use crate::node::{Intercepted, Parts};
use crate::util::lock;

/// How often what is held is looked at.
const TICK: Duration = Duration::from_millis(100);
/// How often the task looks whether anything is held, if nobody says so.
const IDLE: Duration = Duration::from_secs(60);
/// A funding transaction of this node's: some inputs, the channel, the change; vB.
const FUNDING_VB: u64 = 400;

/// Serves what is held until told to stop.
pub(crate) async fn run(parts: Arc<Parts>, mut stop: watch::Receiver<bool>) {
    parts.look_at_fundings();
    let mut tip = parts.tip.clone();
    loop {
        let pause = if lock(&parts.liquidity.held).is_empty() { IDLE } else { TICK };
        tokio::select! {
            () = parts.liquidity.changed.notified() => {}
            () = tokio::time::sleep(pause) => {}
            changed = tip.changed() => {
                if changed.is_err() {
                    return;
                }
                parts.look_at_fundings();
            }
            _ = stop.changed() => return,
        }
        parts.serve_held().await;
    }
}

/// What is held for one client and cannot be sent on.
struct Waiting {
    hash: PaymentHash,
    payment: Payment,
    decision: Decision,
}

impl Parts {
    /// Holds an HTLC for a client without room, until it is decided what is done with it.
    ///
    /// # Errors
    /// [`Full`]: it is not held.
    pub(crate) fn hold_for(&self, client: PublicKey, htlc: &Intercepted, bought: bool) -> Result<(), Full> {
        let there = self.peers.peer_by_node_id(&client).is_some();
        lock(&self.liquidity.held).add(client, htlc.clone(), (bought, there), Instant::now())?;
        faults::point("lsp.jit.held");
        self.liquidity.changed.notify_one();
        Ok(())
    }

    async fn serve_held(&self) {
        let mut there = lock(&self.liquidity.held).clients();
        there.retain(|client| self.peers.peer_by_node_id(client).is_some());
        let all = {
            let mut held = lock(&self.liquidity.held);
            held.note_there(&there, Instant::now());
            held.by_client()
        };
        let mut reserve_sat = None;
        for (client, payments) in all {
            let Some(policy) = self.jit_policy(&client) else { return };
            let policy = &policy;
            let now = Instant::now();
            let mut due = Vec::new();
            for (hash, payment) in payments {
                let key = (client, hash);
                let own = payment.own_msat.is_some();
                match payment.over(now, policy.hold, self.height()) {
                    // How long it waits its relay knows.
                    Some(_) if own => drop(lock(&self.liquidity.held).take(&key)),
                    Some(why) => self.give_back_held(&key, why),
                    None if own && !self.relays.is_held(&hash) => drop(lock(&self.liquidity.held).take(&key)),
                    None if !payment.is_gathered(now) => {}
                    None if payment.bought && !payment.opening && !there.contains(&client) => {}
                    None if payment.bought => {
                        // The same for all: asked for once, for it costs to find out.
                        if reserve_sat.is_none() {
                            let Some(view) = self.payment_view(client).await else { return };
                            reserve_sat = Some(view.reserve_sat);
                        }
                        self.serve_bought(
                            client,
                            (hash, &payment),
                            (reserve_sat.unwrap_or(u64::MAX), policy),
                        );
                    }
                    // Many may wait for long: that costs next to nothing.
                    None if !payment.opening && !there.contains(&client) => {
                        let decision = Decision { action: Action::WaitForClient, against: Vec::new() };
                        self.tell(&key, &decision);
                    }
                    None => due.push((hash, payment)),
                }
            }
            if !due.is_empty() {
                self.serve_client(client, due, policy).await;
            }
        }
    }

    /// What the factory service says of a client; none while the node stops.
    async fn payment_view(&self, client: PublicKey) -> Option<PaymentView> {
        let (answer, view) = oneshot::channel();
        self.commands.send(Command::PaymentView(client, answer)).await.ok()?;
        view.await.ok()?.ok()
    }

    async fn serve_client(&self, client: PublicKey, due: Vec<(PaymentHash, Payment)>, policy: &JitPolicy) {
        let Some(view) = self.payment_view(client).await else { return };
        let mut waiting = Vec::new();
        for (hash, payment) in due {
            let open = self.manager.list_channels();
            let of_client = open.iter().filter(|c| c.counterparty.node_id == client);
            let lost = payment.opening && !of_client.clone().any(|c| is_jit(c.user_channel_id));
            if lost {
                self.give_back_held(&(client, hash), "its channel could not be opened");
                continue;
            }
            if payment.rotated && view.leaf.is_some_and(|leaf| leaf.changing) {
                continue;
            }
            let situation = self.situation(&client, payment.amount(), &view, &open, &payment);
            let decision = decide(&situation, &of_payment(policy, &payment));
            let opens = matches!(decision.action, Action::Jit { .. } | Action::JitAndMultipath { .. });
            match decision.action {
                Action::Forward | Action::Multipath => self.send_on(client, hash, &decision),
                // The one that was opened for it is gone, or does not do: a payment has one opened once.
                _ if opens && payment.opening => {
                    self.give_back_held(&(client, hash), "its channel could not be opened");
                }
                _ => waiting.push(Waiting { hash, payment, decision }),
            }
        }
        self.serve_waiting(client, waiting, &view, policy).await;
    }

    /// Acts for what does not fit: once for all of it together where that is possible, else one after the other.
    async fn serve_waiting(
        &self,
        client: PublicKey,
        waiting: Vec<Waiting>,
        view: &PaymentView,
        policy: &JitPolicy,
    ) {
        let acts = |action: &Action| {
            matches!(action, Action::Rotate { .. } | Action::Jit { .. } | Action::JitAndMultipath { .. })
        };
        let mut wanted: Vec<&Waiting> = waiting.iter().filter(|w| acts(&w.decision.action)).collect();
        // What goes into the factory alone waits until the others have what they need.
        if wanted.iter().any(|w| !w.payment.into_factory) {
            wanted.retain(|w| !w.payment.into_factory);
        } else {
            wanted.truncate(1);
        }
        let mut together = None;
        if let (Some(first), 2..) = (wanted.first(), wanted.len()) {
            let amounts = wanted.iter().flat_map(|w| w.payment.amounts()).collect();
            let open = self.manager.list_channels();
            let situation = self.situation(&client, Amount::Parts(amounts), view, &open, &first.payment);
            let rotate_first = policy.rotate_first && wanted.iter().all(|w| !w.payment.rotated);
            let decision = decide(&situation, &JitPolicy { rotate_first, ..policy.clone() });
            together = Some(decision).filter(|d| acts(&d.action));
        }
        if together.is_none() {
            wanted.truncate(1);
        }
        if let Some(first) = wanted.first() {
            let decision = together.unwrap_or_else(|| first.decision.clone());
            let keys: Vec<Key> = wanted.iter().map(|w| (client, w.hash)).collect();
            self.make_room(client, &keys, &decision, view).await;
        }
        for Waiting { hash, payment, decision } in &waiting {
            match decision.action {
                Action::Refuse if payment.opening => {
                    self.give_back_held(
                        &(client, *hash),
                        "there is no room even with the channel opened for it",
                    );
                }
                Action::Refuse => self.refuse_held(client, *hash, decision),
                Action::WaitForClient | Action::WaitForChange => self.tell(&(client, *hash), decision),
                _ => {}
            }
        }
    }

    /// Begins a rotation or a channel for these payments of a client.
    async fn make_room(&self, client: PublicKey, keys: &[Key], decision: &Decision, view: &PaymentView) {
        for key in keys {
            self.tell(key, decision);
        }
        let note = |change: fn(&mut Payment)| {
            let mut held = lock(&self.liquidity.held);
            for key in keys {
                held.get_mut(key).map(change);
            }
        };
        match decision.action {
            Action::Rotate { grow_sat } => {
                note(|payment| payment.rotated = true);
                if let Err(e) = self.grow(client, grow_sat, view).await {
                    tracing::info!(%client, grow_sat, error = %e, "no rotation for a payment");
                    self.liquidity.changed.notify_one();
                }
            }
            Action::Jit { capacity_sat } | Action::JitAndMultipath { capacity_sat } => {
                let Some((_, hash)) = keys.first() else { return };
                let cause = decision.against.last().map(|against| format!("{against:?}")).unwrap_or_default();
                note(|payment| payment.opening = true);
                match self.open_jit(client, capacity_sat, For::Payment(hash, &cause)) {
                    Ok(id) => {
                        let mut held = lock(&self.liquidity.held);
                        for key in keys {
                            if let Some(payment) = held.get_mut(key) {
                                payment.channel = Some(id);
                            }
                        }
                    }
                    Err(e) => {
                        self.jit_failed(&client, &e.to_string());
                        for key in keys {
                            self.give_back_held(key, "its channel could not be opened");
                        }
                    }
                }
            }
            _ => {}
        }
    }

    async fn grow(&self, client: PublicKey, grow_sat: u64, view: &PaymentView) -> Result<(), Error> {
        let id = view.instance.ok_or_else(|| Error::not_found("factory of the client".to_owned()))?;
        let change_sat = i64::try_from(grow_sat).map_err(|_| Error::invalid("change_sat", "out of range"))?;
        let request =
            LiquidityRequest { client: Some(client.to_string()), change_sat, ..LiquidityRequest::default() };
        let (answer, begun) = oneshot::channel();
        let gone = || Error::Unavailable("the node is stopping".into());
        self.commands.send(Command::Liquidity(id, request, answer)).await.map_err(|_| gone())?;
        begun.await.map_err(|_| gone())?.map(|_| ())
    }

    pub(super) fn situation(
        &self,
        client: &PublicKey,
        amount: Amount,
        view: &PaymentView,
        open: &[ChannelDetails],
        payment: &Payment,
    ) -> Situation {
        let rooms = self.rooms(client, open);
        let of_leaf = |id| view.channel == Some(id);
        let leaf = view.leaf.map(|leaf| {
            let room = rooms.iter().find(|r| of_leaf(r.channel)).map_or(0, |r| r.msat);
            // What may be under way at a time was agreed when the channel was opened, and does not grow with it.
            let channel = open.iter().find(|c| of_leaf(c.channel_id));
            let most_msat = channel.and_then(|c| c.counterparty.outbound_htlc_maximum_msat).unwrap_or(0);
            Leaf { limit_msat: room, most_msat, ..leaf }
        });
        let others = rooms.iter().filter(|r| !of_leaf(r.channel) && !payment.into_factory);
        let others_msat = others.map(|r| r.msat).collect();
        let online = self.peers.peer_by_node_id(client).is_some();
        let stays = |c: &&ChannelDetails| {
            c.counterparty.node_id == *client
                && c.channel_shutdown_state.is_none_or(|s| s == ChannelShutdownState::NotShuttingDown)
        };
        let channels: Vec<&ChannelDetails> = open.iter().filter(stays).collect();
        let jit: Vec<_> = channels.iter().filter(|c| is_jit(c.user_channel_id)).collect();
        // One that was just connected is about to agree with us on where its channels stand.
        let settling = payment.is_settling(Instant::now())
            && channels.iter().any(|c| c.is_channel_ready && !c.is_usable);
        let is_untaken = |c: &ChannelDetails| {
            let record = self.liquidity.records.get(c.user_channel_id);
            record.is_some_and(|r| r.cause.is_some() && !r.taken)
        };
        // The client may be about to take what a new channel was opened for: nobody is refused for that.
        let taking = |c: &ChannelDetails| is_untaken(c) && !c.pending_outbound_htlcs.is_empty();
        let opening = online && (settling || jit.iter().any(|c| !c.is_channel_ready || taking(c)));
        let untaken = jit.iter().filter(|c| is_untaken(c)).count();
        let records = self.liquidity.records.all();
        let lately = self.height().saturating_sub(UNPAID_FOR);
        let closed = records
            .iter()
            .map(|(_, r)| r)
            .filter(|r| r.peer == *client && r.closed && r.cause.is_some() && !r.taken && r.height >= lately);
        let untaken = untaken.saturating_add(closed.count());
        let opened = records.iter().map(|(_, r)| r);
        let opened = opened.filter(|r| r.peer == *client && r.cause.is_some() && r.height >= lately).count();
        // Begun, and not funded yet: the wallet does not know of them.
        let begun = records.iter().map(|(_, r)| r).filter(|r| !r.signed && r.funding.is_none());
        let promised_sat = begun.fold(0u64, |sum, r| sum.saturating_add(r.capacity_sat));
        let fee_sat = self.fees.normal().fee_vb(FUNDING_VB).map_or(0, |fee| fee.to_sat());
        let (_, coins_sat) = self.wallet.free_coins();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Situation {
            amount,
            online,
            others_msat,
            leaf,
            rotated: payment.rotated,
            opening,
            jit_channels: count(jit.len()),
            jit_untaken: count(untaken),
            jit_lately: count(opened),
            jit_total_sat: jit.iter().fold(0, |sum, c| sum.saturating_add(c.channel_value_satoshis)),
            // What publishing all leaves may cost is not given away.
            wallet_sat: coins_sat
                .saturating_sub(view.reserve_sat)
                .saturating_sub(promised_sat)
                .saturating_sub(fee_sat),
        }
    }

    /// Sends all parts of a payment on; there is room for each.
    fn send_on(&self, client: PublicKey, hash: PaymentHash, decision: &Decision) {
        let key = (client, hash);
        self.tell(&key, decision);
        faults::point("lsp.jit.forward");
        let Some(payment) = lock(&self.liquidity.held).take(&key) else { return };
        if payment.own_msat.is_some() {
            self.relays.wake();
            return;
        }
        let open = self.manager.list_channels();
        let refused = payment.parts.iter().find_map(|part| self.next_hop(&open, part).err());
        if let Some(refusal) = refused {
            self.fail_parts(&payment.parts, &refusal);
            return;
        }
        for part in &payment.parts {
            let rooms = self.rooms(&client, &open);
            let fits = rooms.iter().filter(|r| r.msat >= part.amount_msat).min_by_key(|r| r.msat);
            let fits = fits.filter(|_| !self.goes_unpaid(&client, &open, part.amount_msat));
            let sent = fits.is_some_and(|room| self.pass_on(part, &room.channel, client));
            if !sent {
                self.fail_parts(std::slice::from_ref(part), &Refusal::NotUsable);
            }
        }
        faults::point("lsp.jit.forwarded");
    }

    /// Gives a payment back for which nothing can be done. A single HTLC goes to LDK as ever: it finds no room either, and
    /// tells the sender so, who may try less.
    fn refuse_held(&self, client: PublicKey, hash: PaymentHash, decision: &Decision) {
        let key = (client, hash);
        self.tell(&key, decision);
        let Some(payment) = lock(&self.liquidity.held).take(&key) else { return };
        if payment.own_msat.is_some() {
            self.relay_without_room(&hash, &in_words(decision, payment.into_factory));
            return;
        }
        let open = self.manager.list_channels();
        let unpaid = |part: &Intercepted| self.goes_unpaid(&client, &open, part.amount_msat);
        if let Some([part]) = Some(payment.parts.as_slice()).filter(|parts| !parts.iter().any(unpaid)) {
            // Nothing of it will be on its way: LDK gives it back.
            let next = self.next_hop(&open, part);
            let given = next.ok().is_some_and(|next| {
                let given =
                    self.manager.forward_intercepted_htlc(part.id, &next.channel, client, part.amount_msat);
                given.is_ok()
            });
            if given {
                return;
            }
        }
        self.fail_parts(&payment.parts, &Refusal::NoRoom("no channel has room for it, and none can be made"));
    }

    /// Gives a payment back that waited in vain.
    pub(super) fn give_back_held(&self, key: &Key, why: &'static str) {
        let Some(payment) = lock(&self.liquidity.held).take(key) else { return };
        lock(&self.liquidity.counts).gave_back(why);
        if payment.own_msat.is_some() {
            self.relay_without_room(&key.1, why);
        }
        self.fail_parts(&payment.parts, &Refusal::NoRoom(why));
        let waits = lock(&self.liquidity.held).by_client().contains_key(&key.0);
        if let Some(id) = payment.channel.filter(|_| !waits) {
            self.abandon_jit(&key.0, id, "the payment that it was for is over");
        }
    }

    pub(super) fn fail_parts(&self, parts: &[Intercepted], refusal: &Refusal) {
        for part in parts {
            if self.manager.fail_intercepted_htlc(part.id).is_ok() {
                self.refused(&part.payment_hash, refusal);
            }
        }
    }

    /// Has room made for a payment of this node's own, if need be; may be asked again and again.
    /// `into_factory`: in the factory alone.
    pub(crate) fn want_room(&self, client: PublicKey, hash: PaymentHash, msat: u64, into_factory: bool) {
        if !self.is_served(&client) {
            return self.relay_without_room(&hash, "the client has no channel in a factory (any more)");
        }
        let own = Payment::own(msat, into_factory, Instant::now());
        let asked = lock(&self.liquidity.held).add_own((client, hash), own);
        match asked {
            Ok(true) => self.liquidity.changed.notify_one(),
            Ok(false) => {}
            Err(full) => {
                self.relay_without_room(&hash, &format!("too many payments wait for room: {full:?}"))
            }
        }
    }

    /// Whether room could be made for a payment of this node's own; `into_factory`: in the factory alone.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn could_have_room(
        &self,
        client: &PublicKey,
        msat: u64,
        view: &PaymentView,
        into_factory: bool,
    ) -> Result<(), String> {
        let Some(policy) = self.jit_policy(client) else { return Err("not an LSP".into()) };
        let payment = Payment::own(msat, into_factory, Instant::now());
        let open = self.manager.list_channels();
        let situation = self.situation(client, payment.amount(), view, &open, &payment);
        let decision = decide(&situation, &of_payment(&policy, &payment));
        if decision.action == Action::Refuse {
            return Err(in_words(&decision, into_factory));
        }
        Ok(())
    }

    /// Tells of a decision, once.
    pub(super) fn tell(&self, key: &Key, decision: &Decision) {
        let (action, total_msat) = {
            let mut held = lock(&self.liquidity.held);
            let Some(payment) = held.get_mut(key) else { return };
            let action = decision.action.name();
            if payment.told == Some(action) {
                return;
            }
            payment.told = Some(action);
            (action, payment.total_msat())
        };
        let last = decision.against.last().map(|against| format!("{against:?}")).unwrap_or_default();
        lock(&self.liquidity.counts).decided(action, &last);
        let against: Vec<String> = decision.against.iter().map(ToString::to_string).collect();
        let sat = match decision.action {
            Action::Rotate { grow_sat: sat }
            | Action::Jit { capacity_sat: sat }
            | Action::JitAndMultipath { capacity_sat: sat } => Some(sat),
            _ => None,
        };
        let (client, hash) = key;
        tracing::info!(%client, payment_hash = hex::encode(hash.0), total_msat, action, ?against, sat, "decided");
        if self.may_tell() {
            self.events.push(
                "liquidity_decided",
                json!({"client": client.to_string(), "payment_hash": hex::encode(hash.0),
                    "amount_msat": total_msat, "action": action, "against": against, "sat": sat}),
            );
        }
    }
}

/// What may be done for a payment: no channel is opened for what is to be in the factory.
fn of_payment(policy: &JitPolicy, payment: &Payment) -> JitPolicy {
    let max_channel_sat = if payment.into_factory { 0 } else { policy.max_channel_sat };
    JitPolicy { max_channel_sat, ..policy.clone() }
}

/// What spoke against it.
fn in_words(decision: &Decision, into_factory: bool) -> String {
    // A channel would be of no use there.
    let counts = |why: &&Against| !into_factory || **why != Against::JitOff;
    let against: Vec<String> = decision.against.iter().filter(counts).map(ToString::to_string).collect();
    against.join("; ")
}
