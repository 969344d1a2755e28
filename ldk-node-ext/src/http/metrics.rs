//! `/metrics`: what an operator wants to be woken for, in the OpenMetrics text format.
//!
//! The figures are read anew with every scrape; nothing is counted in between.

use std::sync::atomic::AtomicU64;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::Router;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::ApiError;
use crate::api::{Balance, FactoryInfo, FactoryState, FactoryTraffic, JitStatus, NodeInfo};
use crate::{Error, Node};

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, String)>;

/// The route.
pub(super) fn routes(node: Node) -> Router {
    Router::new().route("/metrics", get(metrics)).with_state(node)
}

async fn metrics(State(node): State<Node>) -> Result<Response, ApiError> {
    let (traffic, full) = (node.factory_traffic(), node.disk_full_since().is_some());
    let jit = node.jit_status();
    let text = text(&node.info(), &node.balance()?, &node.factories().await?, (traffic, &jit), full)?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
}

fn number(n: impl TryInto<i64>) -> i64 {
    n.try_into().unwrap_or(i64::MAX)
}

fn text(
    info: &NodeInfo,
    balance: &Balance,
    factories: &[FactoryInfo],
    (traffic, jit): (FactoryTraffic, &JitStatus),
    disk_full: bool,
) -> Result<String, Error> {
    let mut registry = Registry::default();
    let mut single = |name: &str, help: &str, value: i64| {
        let gauge: Gauge = Gauge::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    };
    single("node_height", "Height of the chain's tip", number(info.height));
    single("node_synced", "1 if the node has all blocks of bitcoind", i64::from(info.synced));
    single("disk_full", "1 if there is no room for what has to be written", i64::from(disk_full));
    single("peers_connected", "Peers connected", number(info.peers.iter().filter(|p| p.connected).count()));
    single("wallet_confirmed_sat", "Confirmed coins", number(balance.onchain.confirmed_sat));

    single("jit_channels", "Channels beside factories", number(jit.channels));
    single("jit_capacity_sat", "Their capacity", number(jit.capacity_sat));
    single("jit_untaken", "Those over which nothing has been taken yet", number(jit.untaken));
    single("jit_fees_sat", "Fees of all their funding transactions so far", number(jit.fees_sat));
    single("clients", "Clients with a channel in a factory", number(jit.clients));
    single("jit_clients", "Those with a channel beside it as well", number(jit.clients_with_jit));
    single("held_htlcs", "Payments held for clients without room, by HTLC", number(jit.held_htlcs));
    let fraction: Gauge<f64, AtomicU64> = Gauge::default();
    let of = |n: usize| f64::from(u32::try_from(n).unwrap_or(u32::MAX));
    fraction.set(if jit.clients == 0 { 0.0 } else { of(jit.clients_with_jit) / of(jit.clients) });
    registry.register("jit_fraction", "Share of the clients with a channel beside the factory", fraction);
    let decisions = Family::<Labels, Counter>::default();
    registry.register("payment_decisions", "What was done with payments to clients", decisions.clone());
    for d in &jit.decisions {
        let labels: Labels = vec![("action", d.action.clone()), ("reason", d.reason.clone())];
        decisions.get_or_create(&labels).inc_by(d.count);
    }
    let causes = Family::<Labels, Counter>::default();
    registry.register("jit_opened", "Channels beside factories so far, by their cause", causes.clone());
    for (cause, count) in &jit.causes {
        causes.get_or_create(&vec![("cause", cause.clone())]).inc_by(*count);
    }

    let messages = Family::<Labels, Counter>::default();
    registry.register("factory_messages", "Factory messages since the start", messages.clone());
    let bytes = Family::<Labels, Counter>::default();
    registry.register("factory_message_bytes", "Their bytes, type and body", bytes.clone());
    for (direction, count) in [("in", traffic.received), ("out", traffic.sent)] {
        let labels: Labels = vec![("direction", direction.to_owned())];
        messages.get_or_create(&labels).inc_by(count.messages);
        bytes.get_or_create(&labels).inc_by(count.bytes);
    }

    let mut family = |name: &str, help: &str| {
        let family = Family::<Labels, Gauge>::default();
        registry.register(name, help, family.clone());
        family
    };
    let settlement = family("settlement_blocks", "Blocks until the LSP settles the factory by itself");
    let expiry = family("expiry_blocks", "Blocks until distributions become valid");
    let needed = family("exit_needed_sat", "Fees of this node's way out at the present feerate");
    let available = family("exit_available_sat", "Confirmed coins to pay them with");
    let exits = family("exits", "Leaves on their way to the chain");
    let stuck = family("exits_stuck", "Exits that wait for a coin or a larger budget");
    let alive = |f: &&FactoryInfo| {
        !matches!(f.state, FactoryState::Closed | FactoryState::Exited | FactoryState::Failed)
    };
    for f in factories.iter().filter(alive) {
        let labels: Labels = vec![("instance_id", f.instance_id.clone())];
        // Where nothing has been agreed, or all have left, nothing is due.
        let past = f.expiry_height > 0 && info.height > f.expiry_height;
        let due = !f.deadlines.is_empty() || past;
        for (family, what) in
            [(&settlement, "settlement begins"), (&expiry, "(T)")].into_iter().filter(|_| due)
        {
            // A deadline that has passed is not listed any more.
            let blocks = f.deadlines.iter().find(|d| d.what.contains(what)).map_or(0, |d| d.blocks);
            family.get_or_create(&labels).set(blocks);
        }
        if let Some(reserve) = f.exit_reserve {
            needed.get_or_create(&labels).set(number(reserve.needed_sat));
            available.get_or_create(&labels).set(number(reserve.available_sat));
        }
        let under_way = f.exits.iter().filter(|e| e.phase != "done");
        exits.get_or_create(&labels).set(number(under_way.clone().count()));
        let waiting = under_way.filter(|e| e.needs_coin_sat.is_some() || e.over_budget_sat.is_some());
        stuck.get_or_create(&labels).set(number(waiting.count()));
    }
    let mut out = String::new();
    encode(&mut out, &registry).map_err(|e| Error::Conflict(format!("metrics: {e}")))?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::super::show::tests::sample;
    use super::*;
    use crate::api::{ExitReserve, LightningBalance, MessageCount, OnchainBalance, Role};

    #[test]
    fn the_deadline_and_the_reserve_of_a_factory_are_told() {
        let info = NodeInfo {
            node_id: "02aa".into(),
            role: Role::Lsp,
            network: "regtest".into(),
            version: "0".into(),
            height: 500,
            block_hash: String::new(),
            synced: true,
            listen: vec![],
            peers: vec![],
            deadline: None,
        };
        let balance = Balance {
            onchain: OnchainBalance { confirmed_sat: 7_000, unconfirmed_sat: 0, reserved_sat: 0 },
            lightning: LightningBalance { local_msat: 0, trusted_msat: 0, pending_sweep_sat: 0 },
            total_sat: 7_000,
        };
        let mut f = sample();
        f.exit_reserve = Some(ExitReserve { needed_sat: 9_000, available_sat: 7_000 });
        let mut over = sample();
        over.state = FactoryState::Closed;
        over.instance_id = "ab".repeat(32);
        let received = MessageCount { messages: 3, bytes: 1_000 };
        let traffic = FactoryTraffic { received, sent: MessageCount::default() };
        let jit = JitStatus { clients: 4, clients_with_jit: 1, fees_sat: 700, ..JitStatus::default() };
        let text = text(&info, &balance, &[f.clone(), over.clone()], (traffic, &jit), true).unwrap();
        for line in [
            "node_height 500".to_owned(),
            "disk_full 1".to_owned(),
            "wallet_confirmed_sat 7000".to_owned(),
            "jit_fraction 0.25".to_owned(),
            "jit_fees_sat 700".to_owned(),
            "factory_messages_total{direction=\"in\"} 3".to_owned(),
            "factory_message_bytes_total{direction=\"in\"} 1000".to_owned(),
            format!("exit_needed_sat{{instance_id=\"{}\"}} 9000", f.instance_id),
            format!("exit_available_sat{{instance_id=\"{}\"}} 7000", f.instance_id),
        ] {
            assert!(text.lines().any(|l| l == line), "{line} not in\n{text}");
        }
        assert!(!text.contains(&over.instance_id), "{text}");
        assert!(text.contains("expiry_blocks{"), "{text}");
        f.deadlines.clear();
        let nothing_due = super::text(&info, &balance, &[f.clone()], (traffic, &jit), false).unwrap();
        assert!(!nothing_due.contains("_blocks{"), "{nothing_due}");
        f.expiry_height = 499;
        let past = super::text(&info, &balance, &[f], (traffic, &jit), false).unwrap();
        assert!(past.contains("expiry_blocks{") && past.contains("settlement_blocks{"), "{past}");
    }
}
