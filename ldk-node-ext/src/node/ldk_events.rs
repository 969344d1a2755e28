//! LDK's events: payments and money here, factory channels to the factory service.
//!
//! A handler that cannot store what it has to store asks LDK to hand the event out again.

use std::sync::Arc;
use std::time::Duration;

use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, ScriptBuf};
use factory_core::faults::switch;
use lightning::events::{Event, FundingInfo, InboundChannelFunds, PaymentPurpose, ReplayEvent};
use lightning::ln::channelmanager::FailureCode;
use lightning::ln::outbound_payment::RecipientOnionFields;
use lightning::ln::types::ChannelId;
use serde_json::json;

use super::htlcs::Intercepted;
use super::offers::paid_offer;
use super::Parts;
use crate::api::{Direction, PaymentStatus};
use crate::config::RoleConfig;
use crate::factory::{is_marked, ChannelOffer, Command, LdkEvent};
use crate::faults;
use crate::liquidity::{is_jit, OpenedToUs};
use crate::relay::Arrived;

impl Parts {
    pub(crate) fn payment_changed(&self) {
        self.payments_changed.send_modify(|n| *n = n.wrapping_add(1));
    }

    async fn tell_service(&self, event: LdkEvent) -> Result<(), ReplayEvent> {
        // LDK forgets an event once it is handled, so wait until the service has stored what follows
        // from it. The service always drains its queue while the node runs.
        let (handled, done) = tokio::sync::oneshot::channel();
        if self.commands.send(Command::Ldk(event, handled)).await.is_err() {
            return Err(ReplayEvent());
        }
        match done.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(replay(e)),
            // Stopping: LDK writes the event and hands it out again after the next start.
            Err(_) => Err(ReplayEvent()),
        }
    }

    /// Pays for an ordinary channel.
    fn fund_channel(
        &self,
        (temporary, peer): (ChannelId, PublicKey),
        (script, value): (ScriptBuf, Amount),
    ) -> Result<(), crate::Error> {
        let psbt = self.wallet.build_payment(script, value, self.fees.normal())?;
        let tx = self.wallet.sign(psbt)?;
        self.manager.funding_transaction_generated(temporary, peer, tx.clone()).map_err(|e| {
            self.wallet.release(&tx);
            e.into()
        })
    }

    /// Whether a channel is or was to be a factory's. LDK does not wait for the service because of others:
    /// strangers can open and close them at will.
    fn concerns_factory(&self, channel: &ChannelId, temporary: Option<&ChannelId>, user_id: u128) -> bool {
        let expected = |id| self.outpoints.expected(id).is_some();
        is_marked(user_id)
            || self.outpoints.is_factory(channel)
            || expected(channel)
            || temporary.is_some_and(expected)
    }
}

/// Least that somebody may pay without an invoice, msat. Each payment leaves a record for good, and should be worth it.
pub(super) const MIN_SPONTANEOUS_MSAT: u64 = 1_000;

/// Before an event that could not be stored is handled again.
const PAUSE: Duration = Duration::from_secs(1);

/// The user channel id of channels that others opened and no factory planned.
const STRANGERS_CHANNEL: u128 = 0;

/// Whether a payment asks for something that we do not know: even types must be understood (BOLT 1), and
/// we give a meaning to none.
fn asks_for_unknown(onion_fields: Option<&RecipientOnionFields>) -> bool {
    onion_fields.is_some_and(|fields| fields.custom_tlvs().iter().any(|(kind, _)| kind % 2 == 0))
}

fn replay(e: crate::Error) -> ReplayEvent {
    tracing::error!(error = %e, "event could not be stored; will be handled again");
    ReplayEvent()
}

/// Handles one event.
pub(super) async fn handle(p: Arc<Parts>, event: Event) -> Result<(), ReplayEvent> {
    let mut stop = p.stop.subscribe();
    let result = handle_now(p, event).await;
    if result.is_err() {
        // LDK hands it out again at once, and whatever was in the way a moment ago still is.
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }
    result
}

async fn handle_now(p: Arc<Parts>, event: Event) -> Result<(), ReplayEvent> {
    match event {
        Event::FundingGenerationReady {
            temporary_channel_id,
            counterparty_node_id,
            channel_value_satoshis,
            output_script,
            user_channel_id,
        } => {
            if p.outpoints.expected(&temporary_channel_id).is_some() {
                p.tell_service(LdkEvent::ChannelScript {
                    temporary: temporary_channel_id,
                    peer: counterparty_node_id,
                    script: output_script,
                })
                .await?;
                return Ok(());
            }
            if is_marked(user_channel_id) {
                // Of an attempt that is over; a factory's channel is never funded from the wallet.
                let reason = "factory attempt given up".to_owned();
                let _ = p.manager.force_close_broadcasting_latest_txn(
                    &temporary_channel_id,
                    &counterparty_node_id,
                    reason,
                );
                return Ok(());
            }
            let value = Amount::from_sat(channel_value_satoshis);
            let channel = (temporary_channel_id, counterparty_node_id);
            let result = if is_jit(user_channel_id) {
                let result = p.fund_jit(user_channel_id, channel, (output_script, value));
                if let Err(e) = &result {
                    p.jit_failed(&counterparty_node_id, &e.to_string());
                }
                result
            } else {
                p.fund_channel(channel, (output_script, value))
            };
            if let Err(e) = result {
                tracing::error!(error = %e, "channel not funded");
                p.events.push(
                    "channel_failed",
                    json!({"peer": counterparty_node_id.to_string(), "reason": e.to_string()}),
                );
                let _ = p.manager.force_close_broadcasting_latest_txn(
                    &temporary_channel_id,
                    &counterparty_node_id,
                    "funding failed".into(),
                );
            }
        }
        Event::OpenChannelRequest {
            temporary_channel_id,
            counterparty_node_id,
            funding_satoshis,
            channel_negotiation_type,
            channel_type,
            is_announced,
            params,
        } => {
            let planned = p.outpoints.expected(&temporary_channel_id).is_some();
            if let (true, InboundChannelFunds::PushMsat(push_msat)) = (planned, &channel_negotiation_type) {
                let offer = ChannelOffer {
                    capacity_sat: funding_satoshis,
                    push_msat: *push_msat,
                    to_self_delay: params.to_self_delay,
                    announced: is_announced,
                    zero_fee_commitments: channel_type.supports_anchor_zero_fee_commitments(),
                };
                let (temporary, peer) = (temporary_channel_id, counterparty_node_id);
                return p.tell_service(LdkEvent::OpenRequest { temporary, peer, offer }).await;
            }
            let opened = OpenedToUs {
                temporary: temporary_channel_id,
                peer: counterparty_node_id,
                capacity_sat: funding_satoshis,
                announced: is_announced,
                dual_funded: !matches!(channel_negotiation_type, InboundChannelFunds::PushMsat(_)),
            };
            if let Some(answer) = p.jit_offered(&opened).filter(|_| !planned) {
                p.answer_jit(&opened, answer);
                return Ok(());
            }
            let welcome =
                !planned && matches!(&p.config.role, RoleConfig::Lsp(s) if s.accept_inbound_channels);
            let result = if welcome || switch("client.channel.any") {
                p.manager.accept_inbound_channel(
                    &temporary_channel_id,
                    &counterparty_node_id,
                    STRANGERS_CHANNEL,
                    None,
                )
            } else {
                let reason = "only channels of an agreed factory plan are accepted".to_owned();
                p.manager.force_close_broadcasting_latest_txn(
                    &temporary_channel_id,
                    &counterparty_node_id,
                    reason,
                )
            };
            if let Err(e) = result {
                tracing::warn!(error = ?e, "inbound channel");
            }
        }
        Event::FundingTxBroadcastSafe {
            channel_id,
            funding_txo,
            counterparty_node_id,
            former_temporary_channel_id,
            user_channel_id,
        } => {
            if !p.concerns_factory(&channel_id, Some(&former_temporary_channel_id), user_channel_id) {
                return Ok(());
            }
            p.tell_service(LdkEvent::CommitmentHeld {
                channel: channel_id,
                temporary: former_temporary_channel_id,
                peer: counterparty_node_id,
                outpoint: funding_txo,
            })
            .await?;
        }
        Event::ChannelPending {
            channel_id,
            former_temporary_channel_id,
            funding_txo,
            funding_redeem_script,
            user_channel_id,
            ..
        } => {
            if is_jit(user_channel_id) {
                return p.jit_signed(user_channel_id).map_err(replay);
            }
            if !p.concerns_factory(&channel_id, former_temporary_channel_id.as_ref(), user_channel_id) {
                return Ok(());
            }
            p.tell_service(LdkEvent::ChannelPending {
                channel: channel_id,
                temporary: former_temporary_channel_id,
                outpoint: funding_txo,
                redeem_script: funding_redeem_script,
            })
            .await?;
        }
        Event::ChannelReady { channel_id, counterparty_node_id, .. } => {
            let data =
                json!({"channel_id": hex::encode(channel_id.0), "peer": counterparty_node_id.to_string()});
            p.events.push("channel_ready", data);
            p.room_changed();
        }
        Event::ChannelClosed {
            channel_id,
            reason,
            counterparty_node_id,
            channel_funding_txo,
            last_local_balance_msat,
            channel_capacity_sats,
            user_channel_id,
        } => {
            let closed = json!({
                "channel_id": hex::encode(channel_id.0),
                "peer": counterparty_node_id.map(|n| n.to_string()),
                "reason": reason.to_string(),
                "last_local_balance_msat": last_local_balance_msat,
            });
            if is_jit(user_channel_id) {
                p.jit_closed(user_channel_id, &channel_id).map_err(replay)?;
            }
            if p.concerns_factory(&channel_id, None, user_channel_id) {
                p.tell_service(LdkEvent::ChannelClosed {
                    channel: channel_id,
                    reason,
                    local_msat: last_local_balance_msat,
                    capacity_sat: channel_capacity_sats,
                })
                .await?;
            } else {
                p.note_closed(channel_id, &reason);
            }
            // Of what strangers only began to open nobody wants to hear, and the event log is bounded.
            if channel_funding_txo.is_some() || user_channel_id != STRANGERS_CHANNEL {
                p.events.push("channel_closed", closed);
            }
        }
        Event::PaymentClaimable {
            payment_hash,
            amount_msat,
            purpose,
            receiving_channel_ids,
            claim_deadline,
            onion_fields,
            payment_id,
            ..
        } => {
            faults::point("node.claimable");
            if asks_for_unknown(onion_fields.as_ref()) {
                // LDK would do it at the claim, when the payer's preimage has been promised to somebody.
                p.manager
                    .fail_htlc_backwards_with_reason(&payment_hash, FailureCode::InvalidOnionPayload(None));
                return Ok(());
            }
            let preimage = match &purpose {
                PaymentPurpose::SpontaneousPayment(_) | PaymentPurpose::Bolt12OfferPayment { .. }
                    if amount_msat < MIN_SPONTANEOUS_MSAT =>
                {
                    p.manager.fail_htlc_backwards(&payment_hash);
                    return Ok(());
                }
                PaymentPurpose::SpontaneousPayment(preimage) => Some(*preimage),
                other => other.preimage(),
            };
            let Some(preimage) = preimage else {
                // The same limit; one whose claim was ordered before is not given back any more.
                let claim_by = p.claim_by(&receiving_channel_ids, claim_deadline);
                let depth = p.check_depth(&receiving_channel_ids);
                if p.relays.has(&payment_hash) {
                    let (hash, deep) = (payment_hash, depth.is_ok());
                    let channels = receiving_channel_ids.iter().map(|(id, _)| *id).collect();
                    let arrived =
                        Arrived { hash, id: payment_id, msat: amount_msat, claim_by, deep, channels };
                    return p.relay_arrived(&arrived).map_err(replay);
                }
                return p.hold(&payment_hash, amount_msat, claim_by, depth).map_err(replay);
            };
            if !p.accept_or_fail_back(&payment_hash, &receiving_channel_ids, claim_deadline) {
                return Ok(());
            }
            if !p.moved_or_fail_back(&payment_hash, &receiving_channel_ids).map_err(replay)? {
                return Ok(());
            }
            let offer_id = paid_offer(&purpose);
            p.payments
                .record(&payment_hash, Direction::In, |payment| {
                    payment.amount_msat = amount_msat;
                    payment.offer_id = offer_id;
                })
                .map_err(replay)?;
            faults::point("node.claimable.recorded");
            p.manager.claim_funds(preimage);
            faults::point("node.claim.begun");
        }
        Event::PaymentClaimed { payment_hash, amount_msat, htlcs, .. } => {
            faults::point("node.claimed");
            // Not by the hash alone: a client may have asked for a relay under the hash of an invoice of our own.
            if p.relays.get(&payment_hash).is_some_and(|relay| relay.preimage().is_some()) {
                return p.relay_claimed(&payment_hash).map_err(replay);
            }
            p.holds.claimed(&payment_hash).map_err(replay)?;
            p.payments
                .record(&payment_hash, Direction::In, |payment| {
                    payment.amount_msat = amount_msat;
                    payment.status = PaymentStatus::Succeeded;
                    payment.failure = None;
                    payment.claim_by_height = None;
                })
                .map_err(replay)?;
            faults::point("node.claimed.recorded");
            p.tell_received(&payment_hash, amount_msat, p.trusted_msat(&htlcs)).map_err(replay)?;
            p.payment_changed();
        }
        Event::PaymentSent {
            payment_id, payment_hash, payment_preimage, amount_msat, fee_paid_msat, ..
        } => {
            faults::point("node.paid");
            if payment_id.is_none_or(|id| id.0 == payment_hash.0) && p.relays.has(&payment_hash) {
                return p.relay_paid(&payment_hash, payment_preimage).map_err(replay);
            }
            p.paid(payment_id, &payment_hash, amount_msat, fee_paid_msat).map_err(replay)?;
        }
        Event::PaymentFailed { payment_id, payment_hash, reason } => {
            let hash = payment_hash.unwrap_or(lightning::types::payment::PaymentHash(payment_id.0));
            faults::point("node.pay.failed");
            // The id of a relay's own payment is its hash; the payee of an offer chooses the hash of its invoice.
            if payment_id.0 == hash.0 && p.relays.has(&hash) {
                return p.relay_not_paid(&hash, reason).map_err(replay);
            }
            let why = reason.map_or_else(|| "failed".to_owned(), |r| format!("{r:?}"));
            if !p.request_failed(&payment_id, &why).map_err(replay)? {
                p.not_paid(&hash, &why).map_err(replay)?;
            }
        }
        Event::InvoiceReceived { payment_id, invoice, context, .. } => {
            p.invoice_received(payment_id, &invoice, context.as_ref()).map_err(replay)?;
        }
        Event::PaymentForwarded {
            total_fee_earned_msat,
            outbound_amount_forwarded_msat,
            prev_htlcs,
            next_htlcs,
            skimmed_fee_msat,
            ..
        } => {
            faults::point("lsp.forwarded");
            for htlc in &next_htlcs {
                p.forwarded(prev_htlcs.first(), htlc, skimmed_fee_msat.unwrap_or(0)).map_err(replay)?;
            }
            p.events.push(
                "payment_forwarded",
                json!({"amount_msat": outbound_amount_forwarded_msat, "fee_msat": total_fee_earned_msat}),
            );
        }
        Event::SpendableOutputs { mut outputs, channel_id, counterparty_node_id } => {
            p.outward.spendable(&mut outputs);
            faults::point("node.sweep.track");
            // Static outputs already pay to the wallet's own scripts.
            p.sweeper
                .track_spendable_outputs(outputs, channel_id, counterparty_node_id, true, None)
                .map_err(|()| replay(crate::Error::Store("spendable outputs".into())))?;
            faults::point("node.sweep.tracked");
            p.sweep();
        }
        Event::BumpTransaction(bump) => p.handle_bump(bump),
        Event::HTLCIntercepted {
            intercept_id,
            requested_next_hop_scid,
            payment_hash,
            expected_outbound_amount_msat,
            inbound_amount_msat,
            outgoing_htlc_expiry_block_height,
        } => p.intercepted(&Intercepted {
            id: intercept_id,
            next_scid: requested_next_hop_scid,
            payment_hash,
            amount_msat: expected_outbound_amount_msat,
            inbound_msat: inbound_amount_msat,
            outgoing_expiry: outgoing_htlc_expiry_block_height,
        }),
        Event::FundingTransactionReadyForSigning { channel_id, unsigned_transaction, .. } => {
            if p.outpoints.is_factory(&channel_id) {
                let (channel, unsigned) = (channel_id, unsigned_transaction);
                p.tell_service(LdkEvent::ReadyToSign { channel, unsigned }).await?;
            }
        }
        Event::SpliceNegotiationFailed { channel_id, reason, .. } => {
            if p.outpoints.is_factory(&channel_id) {
                let reason = format!("{reason:?}");
                p.tell_service(LdkEvent::ChangeFailed { channel: channel_id, reason }).await?;
            }
        }
        Event::DiscardFunding { funding_info: FundingInfo::Tx { transaction }, .. } => {
            p.wallet.release(&transaction)
        }
        // Of a relay, over a channel that was opened for it.
        Event::PaymentPathSuccessful { path, .. } => {
            let first = path.hops.first().map(|hop| Some(hop.short_channel_id));
            let all = p.manager.list_channels();
            let used = all.iter().find(|c| {
                first.is_some_and(|scid| c.outbound_scid_alias == scid || c.short_channel_id == scid)
            });
            if let Some(id) = used.map(|c| c.user_channel_id).filter(|id| is_jit(*id)) {
                p.jit_taken(id).map_err(replay)?;
            }
        }
        Event::DiscardFunding { .. }
        | Event::ConnectionNeeded { .. }
        | Event::PaymentPathFailed { .. }
        | Event::ProbeSuccessful { .. }
        | Event::ProbeFailed { .. }
        | Event::SpliceNegotiated { .. }
        | Event::HTLCHandlingFailed { .. }
        | Event::OnionMessageIntercepted { .. }
        | Event::OnionMessagePeerConnected { .. }
        | Event::PersistStaticInvoice { .. }
        | Event::StaticInvoiceRequested { .. } => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use lightning::ln::outbound_payment::RecipientCustomTlvs;

    #[test]
    fn a_payment_that_asks_for_an_even_type_is_not_ours() {
        let with = |kind| {
            let tlvs = RecipientCustomTlvs::new(vec![(65_537, vec![1]), (kind, vec![2])]).unwrap();
            RecipientOnionFields::spontaneous_empty(1000).with_custom_tlvs(tlvs)
        };
        assert!(asks_for_unknown(Some(&with(100_000))));
        assert!(!asks_for_unknown(Some(&with(100_001))));
        assert!(!asks_for_unknown(None));
    }
}
