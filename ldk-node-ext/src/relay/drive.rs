//! LSP: carries out what the records say, with LDK.
//!
//! LDK's events and a task that looks at what is held once a second feed the machine of a relay; what it says is done
//! when it is stored.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use lightning::events::PaymentFailureReason;
use lightning::ln::channel_state::{ChannelDetails, InboundHTLCStateDetails};
use lightning::ln::channelmanager::PaymentId;
use lightning::ln::outbound_payment::{RecipientOnionFields, Retry, RetryableSendFailure};
use lightning::ln::types::ChannelId;
use lightning::routing::router::{PaymentParameters, RouteParameters};
use lightning::types::features::Bolt11InvoiceFeatures;
use lightning::types::payment::{PaymentHash, PaymentPreimage, PaymentSecret};
use serde_json::json;
use tokio::sync::watch;

use super::offer::receivable_msat;
use super::record::{Act, Bytes, Incoming, Input, Relay, State};
use crate::api::{Direction, Payment, PaymentStatus, RelayedPayment};
use crate::config::RoleConfig;
use crate::error::Error;
use crate::faults;
use crate::htlc_rules::Limits;
use crate::node::{known_payments, Parts};
use crate::util::unix_now;

/// How often held relays are looked at, but for one that has just come.
const LOOK: Duration = Duration::from_secs(1);
/// How long LDK tries other channels. Within that time no more than [`super::budget::LATE`] blocks come.
const RETRY_FOR: Duration = Duration::from_secs(30);

/// A payment on an invoice of ours, as LDK tells of it.
pub(crate) struct Arrived {
    pub(crate) hash: PaymentHash,
    pub(crate) id: Option<PaymentId>,
    pub(crate) msat: u64,
    /// The height before which it has to be claimed.
    pub(crate) claim_by: u32,
    /// Whether the funding of all channels that it came over is deep.
    pub(crate) deep: bool,
    /// The channels that it came over.
    pub(crate) channels: Vec<ChannelId>,
}

impl Parts {
    /// A payment has arrived under a relay's hash.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(crate) fn relay_arrived(&self, arrived: &Arrived) -> Result<(), Error> {
        let hold = match &self.config.role {
            RoleConfig::Lsp(settings) => settings.relay_hold_secs,
            RoleConfig::Client(_) => 0,
        };
        let incoming = Incoming {
            id: Bytes(arrived.id.map_or([0; 32], |id| id.0)),
            msat: arrived.msat,
            claim_by: arrived.claim_by,
            until: unix_now().saturating_add(hold),
        };
        let against = self.against(arrived);
        let input = Input::Arrived { incoming, height: self.height(), against };
        let _turn = self.relays.turn();
        self.relay_step(&arrived.hash, input)
    }

    /// LDK has the preimage of a relay's outgoing payment.
    ///
    /// # Errors
    /// [`Error::Store`]: then LDK says it again.
    pub(crate) fn relay_paid(&self, hash: &PaymentHash, preimage: PaymentPreimage) -> Result<(), Error> {
        let _turn = self.relays.turn();
        self.relay_step(hash, Input::Sent(preimage))
    }

    /// Nothing is out any more of a relay's outgoing payment.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(crate) fn relay_not_paid(
        &self,
        hash: &PaymentHash,
        reason: Option<PaymentFailureReason>,
    ) -> Result<(), Error> {
        let reason = reason.map_or_else(|| "failed".to_owned(), |r| format!("{r:?}"));
        let _turn = self.relays.turn();
        let known = known_payments(&self.manager).contains(hash);
        self.relay_step(hash, Input::NotSent { known, reason: &reason })
    }

    /// LDK has claimed a relay's incoming payment.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(crate) fn relay_claimed(&self, hash: &PaymentHash) -> Result<(), Error> {
        let _turn = self.relays.turn();
        let before = self.relays.get(hash).map(|relay| relay.state);
        self.relay_step(hash, Input::Claimed)?;
        let Some(relay) = self.relays.get(hash).filter(|r| Some(&r.state) != before.as_ref()) else {
            return Ok(());
        };
        faults::point("lsp.relay.done");
        let mut data = json!({
            "payment_hash": hex::encode(hash.0),
            "client": relay.terms.client.to_string(),
            "amount_msat": relay.terms.amount_msat,
        });
        match relay.terms.moved {
            Some(moved) => {
                data["channel_id"] = json!(hex::encode(moved.from.0));
                self.events.push("jit_moved", data);
            }
            None => {
                data["fee_msat"] = json!(fee_msat(&relay));
                self.events.push("payment_relayed", data);
            }
        }
        self.payment_changed();
        Ok(())
    }

    /// Takes a step and does what follows. Whoever calls has the turn.
    fn relay_step(&self, hash: &PaymentHash, input: Input<'_>) -> Result<(), Error> {
        let Some((act, relay, changed)) = self.relays.step(hash, input)? else { return Ok(()) };
        match act {
            Act::Nothing => Ok(()),
            Act::Hold => {
                faults::point("lsp.relay.held");
                tracing::info!(payment_hash = hex::encode(hash.0), client = %relay.terms.client, "relay held");
                self.relays.held.notify_one();
                self.payment_changed();
                Ok(())
            }
            Act::Pay => {
                faults::point("lsp.relay.paying");
                self.pay_on(hash, &relay)
            }
            Act::Claim(preimage) => {
                faults::point("lsp.relay.paid");
                // Of what its onion asks for was looked at when it arrived.
                self.manager.claim_funds_with_known_custom_tlvs(preimage);
                faults::point("lsp.relay.claimed");
                self.payment_changed();
                Ok(())
            }
            Act::GiveBack(reason) => {
                faults::point("lsp.relay.failed");
                self.manager.fail_htlc_backwards(hash);
                if !changed {
                    return Ok(());
                }
                let payment_hash = hex::encode(hash.0);
                tracing::warn!(payment_hash, reason, "relay given back");
                self.events.push(
                    "relay_given_back",
                    json!({"payment_hash": payment_hash, "client": relay.terms.client.to_string(), "reason": reason}),
                );
                self.payment_changed();
                Ok(())
            }
        }
    }

    /// Pays the client; LDK splits over its channels. No blocks are added for privacy: they are counted.
    fn pay_on(&self, hash: &PaymentHash, relay: &Relay) -> Result<(), Error> {
        let terms = &relay.terms;
        if let Some(moved) = &terms.moved {
            let sent = self.pay_into(hash, terms, moved);
            return self.paid_on(hash, sent);
        }
        let mut features = Bolt11InvoiceFeatures::empty();
        features.set_variable_length_onion_required();
        features.set_payment_secret_required();
        features.set_basic_mpp_optional();
        let parameters =
            PaymentParameters::from_node_id(terms.client, terms.outgoing).with_bolt11_features(features);
        let Ok(parameters) = parameters else { return Ok(()) };
        let route_params = RouteParameters {
            payment_params: parameters.with_max_total_cltv_expiry_delta(terms.outgoing.saturating_add(1)),
            final_value_msat: terms.amount_msat,
            max_total_routing_fee_msat: Some(0),
        };
        let onion = RecipientOnionFields::secret_only(PaymentSecret(terms.secret.0), terms.amount_msat);
        let retry = Retry::Timeout(RETRY_FOR);
        let sent = self.manager.send_payment(*hash, onion, PaymentId(hash.0), route_params, retry);
        self.paid_on(hash, sent)
    }

    fn paid_on(&self, hash: &PaymentHash, sent: Result<(), RetryableSendFailure>) -> Result<(), Error> {
        faults::point("lsp.relay.sent");
        match sent {
            // LDK will say what becomes of it.
            Ok(()) | Err(RetryableSendFailure::DuplicatePayment) => Ok(()),
            Err(e) => {
                let final_word = !matches!(e, RetryableSendFailure::RouteNotFound);
                let reason = format!("not paid on: {e:?}");
                self.relay_step(hash, Input::Refused { final_word, reason: &reason })
            }
        }
    }

    /// Looks at all that are held. `old`: those that were held when the process started.
    fn look_at_relays(&self, old: &HashSet<PaymentHash>) -> Result<(), Error> {
        let held = self.relays.filtered(|relay| relay.state == State::Held);
        if held.is_empty() {
            return Ok(());
        }
        // Once for all of them: there may be many. What is paid on takes the room of the next, which then waits.
        let all = self.manager.list_channels();
        let known = known_payments(&self.manager);
        let mut without_room = Vec::new();
        for (hash, relay) in held {
            let _turn = self.relays.turn();
            // Also those that are not ready: one may be by the time of LDK's last try.
            let channels = all.iter().filter(|c| c.counterparty.node_id == relay.terms.client);
            let claim = self.strictest(channels.map(|c| &c.channel_id)).map_or(0, Limits::claim);
            if !relay.terms.suffices(claim) {
                let reason = "the client's channels need more blocks than were agreed on";
                self.relay_step(&hash, Input::NoRoom { reason })?;
                continue;
            }
            let (there, connected) = incoming(&all, &hash, &relay);
            let usable = all.iter().filter(|c| {
                c.counterparty.node_id == relay.terms.client
                    && c.is_usable
                    && self.depth.suffices(&c.channel_id)
                    && relay.terms.moved.is_none_or(|moved| moved.into.0 == c.channel_id.0)
            });
            // LDK would pay over a channel that the client has bought and not paid for as over any other.
            let unpaid = all
                .iter()
                .any(|c| c.counterparty.node_id == relay.terms.client && self.is_unpaid(c.user_channel_id));
            let has_room = !unpaid && receivable_msat(usable) >= relay.terms.amount_msat;
            let input = Input::Look {
                height: self.height(),
                now: unix_now(),
                known: known.contains(&hash) && known_payments(&self.manager).contains(&hash),
                there,
                // Of a payment from before the start LDK may think otherwise by now, as far as it remembers it: that
                // shows when the peers it came from are there.
                ready: has_room && (connected || !old.contains(&hash)),
            };
            self.relay_step(&hash, input)?;
            if !has_room && there && self.peers.peer_by_node_id(&relay.terms.client).is_some() {
                without_room.push((hash, relay.terms));
            }
        }
        for (hash, terms) in without_room {
            if self.relays.get(&hash).is_some_and(|relay| relay.state == State::Held) {
                self.want_room(terms.client, hash, terms.amount_msat, terms.moved.is_some());
            }
        }
        Ok(())
    }

    /// There is no room for a payment that is held, and none can be made: it is given back.
    pub(crate) fn relay_without_room(&self, hash: &PaymentHash, reason: &str) {
        let _turn = self.relays.turn();
        if let Err(e) = self.relay_step(hash, Input::NoRoom { reason }) {
            // It is held on, and room is asked for again.
            tracing::error!(error = %e, "relay not given back");
        }
    }

    /// What the last process may not have carried out.
    fn resume_relays(&self) -> Result<(), Error> {
        let _turn = self.relays.turn();
        let known = known_payments(&self.manager);
        for (hash, _) in self.relays.filtered(|relay| relay.state != State::Offered) {
            self.relay_step(&hash, Input::Started { known: known.contains(&hash) })?;
        }
        Ok(())
    }

    /// All relays that were paid, for display.
    pub(crate) fn relayed_payments(&self) -> Vec<Payment> {
        self.relays.paid().iter().map(|(hash, relay)| shown(hash, relay)).collect()
    }

    /// One of them.
    pub(crate) fn relayed_payment(&self, hash: &PaymentHash) -> Option<Payment> {
        let relay = self.relays.get(hash).filter(|relay| relay.state != State::Offered)?;
        Some(shown(hash, &relay))
    }
}

/// Whether the HTLCs of an incoming payment are on their channels, and whether these channels' peers are connected.
fn incoming(all: &[ChannelDetails], hash: &PaymentHash, relay: &Relay) -> (bool, bool) {
    let failed = Some(InboundHTLCStateDetails::AwaitingRemoteRevokeToRemoveFail);
    let of_it = |c: &ChannelDetails| {
        let standing =
            c.pending_inbound_htlcs.iter().filter(|h| h.payment_hash == *hash && h.state != failed);
        standing.map(|h| h.amount_msat).fold(0, u64::saturating_add)
    };
    let carrying: Vec<_> =
        all.iter().map(|c| (of_it(c), c.is_usable)).filter(|(msat, _)| *msat > 0).collect();
    let there = carrying.iter().map(|(msat, _)| *msat).fold(0, u64::saturating_add);
    (there >= relay.due_msat(), carrying.iter().all(|(_, usable)| *usable))
}

/// What the LSP gets, or got, msat.
fn fee_msat(relay: &Relay) -> u64 {
    let came_in = relay.incoming.map_or_else(|| relay.due_msat(), |incoming| incoming.msat);
    came_in.saturating_sub(relay.terms.amount_msat)
}

fn shown(hash: &PaymentHash, relay: &Relay) -> Payment {
    let (status, failure) = match &relay.state {
        State::Offered | State::Paying | State::Preimage { .. } => (PaymentStatus::Pending, None),
        State::Held => (PaymentStatus::Held, None),
        State::Done { .. } => (PaymentStatus::Succeeded, None),
        State::Failed { reason } => (PaymentStatus::Failed, Some(reason.clone())),
    };
    let came_in = relay.incoming;
    Payment {
        amount_msat: relay.terms.amount_msat,
        fee_msat: fee_msat(relay),
        status,
        failure,
        claim_by_height: came_in.map(|incoming| incoming.claim_by),
        relayed: Some(RelayedPayment {
            client: relay.terms.client.to_string(),
            received_msat: came_in.map_or(0, |incoming| incoming.msat),
            client_paid: relay.preimage().is_some(),
            moved_from: relay.terms.moved.map(|moved| hex::encode(moved.from.0)),
        }),
        updated_at: relay.updated_at,
        ..Payment::new(hex::encode(hash.0), Direction::Relayed)
    }
}

/// Repeats what the last process may not have done, then looks at what is held again and again.
pub(crate) async fn run(parts: Arc<Parts>, mut stop: watch::Receiver<bool>) {
    if matches!(parts.config.role, RoleConfig::Client(_)) {
        let _ = stop.wait_for(|stop| *stop).await;
        return;
    }
    let begun = parts.relays.filtered(|relay| matches!(relay.state, State::Held | State::Paying));
    let old: HashSet<PaymentHash> = begun.into_iter().map(|(hash, _)| hash).collect();
    let mut resumed = false;
    while !*stop.borrow() {
        let result = match resumed {
            true => parts.look_at_relays(&old),
            false => parts.resume_relays().inspect(|()| resumed = true),
        };
        if let Err(e) = result {
            tracing::error!(error = %e, "relays: will be tried again");
        }
        tokio::select! {
            () = parts.relays.held.notified() => {}
            () = tokio::time::sleep(LOOK) => {}
            _ = stop.changed() => {}
        }
    }
}
