//! Client: its money goes from a channel beside the factory into the factory's, and the channel is closed.
//!
//! It pays itself by way of its LSP (`relay::moves`): over the channel that is to go, and back over its channel in the
//! factory. What is there in no more than one payment at a time goes in several; of these one is under way at a time. All
//! that has to outlive a restart is in the records of the payments: what was begun, and from which channel.
//!
//! The channel is closed when it can send nothing more, with the LSP's consent; its reserve comes to the wallet. If that
//! cannot be now it is tried again, and never forced.

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::Duration;

use factory_core::faults::switch;
use lightning::ln::channel_state::{ChannelDetails, ChannelShutdownState};
use lightning::ln::channelmanager::PaymentId;
use lightning::ln::outbound_payment::RecipientOnionFields;
use lightning::ln::types::ChannelId;
use lightning::types::payment::PaymentHash;
use lightning_invoice::Bolt11Invoice;
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::{timeout_at, Instant};

use super::is_jit;
use crate::api::{
    Direction, FactoryInfo, FactoryState, JitMoveRequest, JitMoved, MovedPayment, Payment, PaymentStatus,
};
use crate::config::{ClientSettings, RoleConfig};
use crate::error::Error;
use crate::factory::Command;
use crate::faults;
use crate::node::{Node, Parts};
use crate::relay::{direct, Wanted};
use crate::util::lock;

/// Less is not moved, msat: it comes to the wallet with the reserve.
const LEAST_MSAT: u64 = 1_000;
/// Most payments for one channel at a time.
const MAX_PARTS: usize = 16;
/// Lifetime of the LSP's invoice, seconds: it is paid at once.
const EXPIRY_SECS: u32 = 120;
/// Longest final expiry delta that is agreed to: as long as payers' routes are by LDK's default, blocks.
const MAX_BLOCKS: u64 = 1008;
/// Longest wait of a request, seconds.
const MAX_WAIT_SECS: u64 = 600;

/// How often a channel is looked at that is not usable for the moment.
const PAUSE: Duration = Duration::from_millis(50);
/// How long it may take a channel to be usable again after a payment, which its monitor writes down first.
const SETTLING: Duration = Duration::from_secs(3);

/// Asks again for a while what is not to be had for the moment.
async fn soon<T>(ask: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
    let deadline = Instant::now() + SETTLING;
    loop {
        match ask() {
            Err(Error::Unavailable(_)) if Instant::now() < deadline => tokio::time::sleep(PAUSE).await,
            answer => return answer,
        }
    }
}

/// What is remembered of it; the rest is in the records of the payments.
#[derive(Default)]
pub(super) struct Moving {
    /// Held while one is begun and awaited.
    turn: tokio::sync::Mutex<()>,
    /// A channel has become ready, or has grown: there may be room.
    pub(super) room: Notify,
    /// Channels from which something was moved, hex; read from the records once.
    emptied: Mutex<Option<HashSet<String>>>,
    /// Why it did not go the last time, so that this is told once.
    told: Mutex<Option<(ChannelId, String)>>,
}

/// What a channel can send, msat; none if that is not worth a payment.
pub(super) fn movable_msat(c: &ChannelDetails) -> Option<u64> {
    let msat = c.next_outbound_htlc_limit_msat;
    (msat >= c.next_outbound_htlc_minimum_msat.max(LEAST_MSAT)).then_some(msat)
}

fn is_quiet(c: &ChannelDetails) -> bool {
    c.pending_inbound_htlcs.is_empty() && c.pending_outbound_htlcs.is_empty()
}

fn is_closing(c: &ChannelDetails) -> bool {
    c.channel_shutdown_state.is_some_and(|s| s != ChannelShutdownState::NotShuttingDown)
}

impl Parts {
    /// Notes that a channel has become ready or has another capacity.
    pub(crate) fn room_changed(&self) {
        self.liquidity.wake();
        self.liquidity.moving.room.notify_one();
    }

    /// Whether this is money of this node's own that is moved, and from and into which channel.
    fn moved(&self, hash: &PaymentHash) -> Result<Option<MovedPayment>, Error> {
        Ok(self.payments.get(hash, Direction::Out)?.and_then(|payment| payment.moved))
    }

    /// Whether what has arrived came over the channel that it was to be moved into, if it is moved money; if not, it is
    /// failed back.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(crate) fn moved_or_fail_back(
        &self,
        hash: &PaymentHash,
        channels: &[(ChannelId, Option<u128>)],
    ) -> Result<bool, Error> {
        let Some(moved) = self.moved(hash)? else { return Ok(true) };
        let arrived = channels.iter().all(|(id, _)| hex::encode(id.0) == moved.into);
        if !arrived {
            tracing::warn!("what was to be moved into the factory came another way: given back");
            self.manager.fail_htlc_backwards(hash);
        }
        Ok(arrived)
    }

    /// Tells of a payment that was received, `trusted_msat` of it over channels that are not deep yet. What was moved is
    /// told when it is paid.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(crate) fn tell_received(
        &self,
        hash: &PaymentHash,
        amount_msat: u64,
        trusted_msat: u64,
    ) -> Result<(), Error> {
        if self.moved(hash)?.is_none() {
            let data = json!({"payment_hash": hex::encode(hash.0), "amount_msat": amount_msat,
                "trusted_msat": trusted_msat});
            self.events.push("payment_received", data);
        }
        Ok(())
    }

    /// Tells of a payment that was made.
    pub(crate) fn tell_sent(&self, payment: &Payment) {
        let Payment { payment_hash, amount_msat, fee_msat, moved, .. } = payment;
        let mut data = json!({"payment_hash": payment_hash, "amount_msat": amount_msat});
        match moved {
            None => {
                data["fee_msat"] = json!(fee_msat);
                self.events.push("payment_sent", data);
            }
            Some(MovedPayment { from, into }) => {
                if let Some(known) = &mut *lock(&self.liquidity.moving.emptied) {
                    known.insert(from.clone());
                }
                data["channel_id"] = json!(from);
                data["into"] = json!(into);
                self.events.push("jit_moved", data);
            }
        }
    }

    fn client(&self) -> Result<&ClientSettings, Error> {
        match &self.config.role {
            RoleConfig::Client(settings) => Ok(settings),
            RoleConfig::Lsp(_) => Err(Error::Conflict("only a client moves money into its factory".into())),
        }
    }

    /// Channels beside the factory that money could be moved from: usable, and their funding is deep.
    pub(super) fn jit_to_move(&self) -> Vec<ChannelDetails> {
        let Ok(settings) = self.client() else { return Vec::new() };
        let mut list = self.manager.list_channels_with_counterparty(&settings.lsp_node_id);
        list.retain(|c| is_jit(c.user_channel_id) && c.is_usable && self.is_deep(c) && !is_closing(c));
        list
    }

    /// A channel beside the factory, if money can be moved from it now.
    fn jit_channel(&self, id: &ChannelId) -> Result<ChannelDetails, Error> {
        let settings = self.client()?;
        let all = self.manager.list_channels_with_counterparty(&settings.lsp_node_id);
        let found = all.into_iter().find(|c| c.channel_id == *id && is_jit(c.user_channel_id));
        let Some(c) = found else {
            return Err(Error::invalid("channel_id", "this is no open channel beside the factory"));
        };
        if is_closing(&c) {
            return Err(Error::Conflict("the channel is being closed".into()));
        }
        if !self.is_deep(&c) {
            return Err(Error::Conflict("the channel's funding is not deep enough in the chain".into()));
        }
        if !c.is_usable {
            return Err(Error::Unavailable("the channel is not usable now (is the LSP connected?)".into()));
        }
        Ok(c)
    }

    /// The channel that it would be moved into: that in the factory that lives longest.
    async fn jit_target(&self) -> Result<ChannelDetails, Error> {
        let (answer, list) = tokio::sync::oneshot::channel();
        let gone = || Error::Unavailable("the node is stopping".into());
        self.commands.send(Command::Factories(answer)).await.map_err(|_| gone())?;
        let mut list: Vec<FactoryInfo> = list.await.map_err(|_| gone())??;
        list.retain(|f| f.state == FactoryState::Active);
        list.sort_by_key(|f| std::cmp::Reverse(f.expiry_height));
        let newest = list.first().map(|f| f.instance_id.clone());
        let Some(newest) = newest else {
            return Err(Error::Conflict("there is no active factory to move it into".into()));
        };
        soon(|| {
            let open = self.manager.list_channels();
            let in_it = |c: &&ChannelDetails| {
                let factory = self.outpoints.get(&c.channel_id);
                factory.is_some_and(|f| hex::encode(f.instance) == newest)
            };
            let usable = |c: &&ChannelDetails| c.is_usable && self.depth.suffices(&c.channel_id);
            let found = open.iter().find(in_it).filter(usable);
            let missing = || Error::Unavailable("the factory's channel is not usable now".into());
            found.cloned().ok_or_else(missing)
        })
        .await
    }

    /// Whether one that was begun has not ended, by the records.
    fn move_pending(&self) -> Result<bool, Error> {
        let of_move = |p: &Payment| p.moved.is_some() && p.direction == Direction::Out;
        Ok(self.payments.all()?.iter().any(|p| of_move(p) && p.status == PaymentStatus::Pending))
    }

    /// Whether anything has been moved from a channel.
    pub(super) fn was_moved(&self, id: &ChannelId) -> Result<bool, Error> {
        let mut emptied = lock(&self.liquidity.moving.emptied);
        let known = match &mut *emptied {
            Some(known) => known,
            none => {
                let mut all = self.payments.all()?;
                all.retain(|p| p.status == PaymentStatus::Succeeded);
                none.insert(all.into_iter().filter_map(|p| p.moved).map(|moved| moved.from).collect())
            }
        };
        Ok(known.contains(&hex::encode(id.0)))
    }

    /// Moves all that a channel can send, and closes it; waits until `deadline` for the payments.
    ///
    /// # Errors
    /// [`Error::Conflict`] with the reason if nothing was moved, or another one is under way; [`Error::InvalidArgument`]
    /// naming the field; [`Error::Unavailable`] if the LSP or the channel is not there.
    pub(super) async fn move_in(&self, id: ChannelId, deadline: Instant) -> Result<JitMoved, Error> {
        let busy = || Error::Conflict("money is being moved already".into());
        let Ok(_turn) = self.liquidity.moving.turn.try_lock() else { return Err(busy()) };
        if self.move_pending()? {
            return Err(busy());
        }
        let c = soon(|| self.jit_channel(&id)).await?;
        if movable_msat(&c).is_none() && !self.was_moved(&id)? {
            return Err(Error::Conflict("there is nothing in this channel to move".into()));
        }
        let mut answer = JitMoved { channel_id: hex::encode(id.0), ..JitMoved::default() };
        for _ in 0..MAX_PARTS {
            let c = match soon(|| self.jit_channel(&id)).await {
                Err(e) if answer.moved_msat > 0 => return Ok(self.left_open(answer, e.to_string())),
                found => found?,
            };
            let Some(msat) = movable_msat(&c) else { break };
            let payment = match self.move_part(&c, msat, deadline).await {
                Err(e) if answer.moved_msat == 0 => return Err(e),
                Err(e) => return Ok(self.left_open(answer, e.to_string())),
                Ok(payment) => payment,
            };
            match payment.status {
                PaymentStatus::Succeeded => {
                    answer.moved_msat = answer.moved_msat.saturating_add(payment.amount_msat);
                }
                PaymentStatus::Failed => {
                    let why = payment.failure.unwrap_or_else(|| "failed".into());
                    let why = format!("the payment came back: {why}");
                    match answer.moved_msat {
                        0 => return Err(Error::Conflict(why)),
                        _ => return Ok(self.left_open(answer, why)),
                    }
                }
                PaymentStatus::Pending | PaymentStatus::Held => {
                    answer.pending = true;
                    return Ok(self.left_open(answer, "a payment is under way".into()));
                }
            }
        }
        self.close_emptied(answer, id, deadline).await
    }

    /// What is still in the channel, and why it is not closed.
    fn left_open(&self, answer: JitMoved, why: String) -> JitMoved {
        let of_it = |c: &ChannelDetails| hex::encode(c.channel_id.0) == answer.channel_id;
        let left = self.manager.list_channels().iter().find(|c| of_it(c)).and_then(movable_msat);
        JitMoved { left_msat: left.unwrap_or(0), not_closed: Some(why), ..answer }
    }

    /// Moves a part, at most what the factory's channel may carry at a time, and waits for its end.
    async fn move_part(&self, c: &ChannelDetails, msat: u64, deadline: Instant) -> Result<Payment, Error> {
        let settings = self.client()?;
        let into = self.jit_target().await?;
        let amount_msat = msat.min(into.inbound_htlc_maximum_msat.unwrap_or(msat));
        let invoice = self.ask_to_move(c, amount_msat).await?;
        let hash = invoice.payment_hash();
        let over = if switch("client.move.astray") { &into } else { c };
        let scid = over.get_outbound_payment_scid();
        let scid = scid.ok_or_else(|| Error::Unavailable("the channel is not usable now".into()))?;
        let moved = MovedPayment { from: hex::encode(c.channel_id.0), into: hex::encode(into.channel_id.0) };
        let mut changed = self.payments_changed.subscribe();
        self.payments.claim_move(&hash, amount_msat, moved)?;
        faults::point("client.move.recorded");
        let blocks = u32::try_from(invoice.min_final_cltv_expiry_delta()).unwrap_or(u32::MAX);
        let route = direct(settings.lsp_node_id, scid, amount_msat, blocks);
        let onion = RecipientOnionFields::secret_only(*invoice.payment_secret(), amount_msat);
        if let Err(e) = self.manager.send_payment_with_route(route, hash, onion, PaymentId(hash.0)) {
            return self.payments.record(&hash, Direction::Out, |payment| {
                payment.status = PaymentStatus::Failed;
                payment.failure = Some(format!("{e:?}"));
            });
        }
        faults::point("client.move.sent");
        loop {
            let now = self.payments.get(&hash, Direction::Out)?;
            let now = now.ok_or_else(|| Error::not_found("payment that was just made".to_owned()))?;
            if now.status != PaymentStatus::Pending || timeout_at(deadline, changed.changed()).await.is_err()
            {
                return Ok(now);
            }
        }
    }

    async fn ask_to_move(&self, c: &ChannelDetails, amount_msat: u64) -> Result<Bolt11Invoice, Error> {
        let wanted = Wanted {
            amount_msat,
            description: "into the factory".into(),
            expiry_secs: EXPIRY_SECS,
            max_fee_msat: Some(0),
            insists: true,
            moved_from: Some(c.channel_id),
        };
        let invoice = self.invoice_of_lsp(&wanted).await?;
        if invoice.min_final_cltv_expiry_delta() > MAX_BLOCKS {
            let blocks = invoice.min_final_cltv_expiry_delta();
            let text = format!("the LSP wants {blocks} blocks for it, {MAX_BLOCKS} are the most");
            return Err(Error::Conflict(text));
        }
        Ok(invoice)
    }

    /// Closes a channel that can send nothing more.
    async fn close_emptied(
        &self,
        answer: JitMoved,
        id: ChannelId,
        deadline: Instant,
    ) -> Result<JitMoved, Error> {
        // What has just been moved is still being taken off the commitments.
        let mut pause = tokio::time::interval(PAUSE);
        let deadline = deadline.max(Instant::now() + SETTLING);
        let lsp = self.client()?.lsp_node_id;
        loop {
            let why = match self.jit_channel(&id) {
                Err(e) => e.to_string(),
                Ok(c) if movable_msat(&c).is_some() => {
                    return Ok(self.left_open(answer, "more has come into it meanwhile".into()));
                }
                Ok(c) if !is_quiet(&c) => "payments are on their way over it".to_owned(),
                Ok(_) => match self.manager.close_channel(&id, &lsp) {
                    Ok(()) => break,
                    Err(e) => format!("{e:?}"),
                },
            };
            if timeout_at(deadline, pause.tick()).await.is_err() {
                return Ok(self.left_open(answer, why));
            }
        }
        faults::point("client.move.closing");
        self.peers.process_events();
        tracing::info!(channel = answer.channel_id, moved_msat = answer.moved_msat, "moved in, and closing");
        Ok(JitMoved { closing: true, ..answer })
    }

    /// Tells why nothing was moved, unless it is what was told last.
    pub(super) fn move_failed(&self, id: ChannelId, reason: String) {
        let now = Some((id, reason));
        let mut told = lock(&self.liquidity.moving.told);
        if *told == now {
            return;
        }
        if let Some((id, reason)) = &now {
            let channel_id = hex::encode(id.0);
            tracing::info!(channel_id, reason, "not moved into the factory");
            self.events.push("jit_not_moved", json!({ "channel_id": channel_id, "reason": reason }));
        }
        *told = now;
    }
}

impl Node {
    /// Client: moves the money of a channel beside the factory into the factory's, and closes it. Waits for the payments,
    /// at most `wait_secs`; those go on by themselves after that.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field; [`Error::Conflict`] with the reason if nothing was moved: there is no
    /// room, a factory is missing, another move is under way; [`Error::Unavailable`] if the LSP is not there.
    pub async fn move_in(&self, request: JitMoveRequest) -> Result<JitMoved, Error> {
        let p = self.parts();
        p.client()?;
        let wait = request.wait_secs.unwrap_or(60);
        if wait > MAX_WAIT_SECS {
            return Err(Error::invalid("wait_secs", format!("must be at most {MAX_WAIT_SECS}")));
        }
        let id = match &request.channel_id {
            Some(text) => {
                let mut id = [0; 32];
                hex::decode_to_slice(text, &mut id)
                    .map_err(|_| Error::invalid("channel_id", "must be 64 hex digits"))?;
                ChannelId(id)
            }
            None => {
                let all = p.manager.list_channels();
                let mut jit = all.iter().filter(|c| is_jit(c.user_channel_id) && !is_closing(c));
                match (jit.next(), jit.next()) {
                    (Some(one), None) => one.channel_id,
                    (None, _) => {
                        return Err(Error::Conflict("there is no channel beside the factory".into()))
                    }
                    _ => return Err(Error::invalid("channel_id", "there are several: say which")),
                }
            }
        };
        p.move_in(id, Instant::now() + Duration::from_secs(wait)).await
    }
}
