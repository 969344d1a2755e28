//! The committed seeds, what the fuzzer has found, and where the seeds come from: a factory that was made in one
//! process, and one record or request of each kind.

#[path = "../../../fuzz/replay.rs"]
mod replay;
#[path = "../../../factory-core/tests/common/mod.rs"]
mod world;

use bitcoin::secp256k1::PublicKey;
use factory_core::advance::{
    AdvancePolicy, AdvanceReason, AdvanceRequest, ClientAdvance, ClientAdvanceAction, ClientAdvanceConfig,
    ClientAdvanceInput, ClientAdvanceState, LspAdvance, LspAdvanceAction, LspAdvanceConfig, LspAdvanceInput,
    LspAdvanceRecord, LspAdvanceState,
};
use factory_core::ceremony::ParamsChoice;
use factory_core::record::{ClientFactoryRecord, LspFactoryRecord};
use serde_json::{json, Value};

use super::*;

#[test]
fn records_hold() {
    replay::each("records", record);
}

#[test]
fn exit_files_hold() {
    replay::each("exit_file", exit_file);
    assert!(ExitFile::parse(&made_exit_file()).is_ok());
}

#[cfg(feature = "http")]
#[test]
fn requests_and_settings_hold() {
    replay::each("bodies", body);
    replay::each("settings", |bytes| settings(&String::from_utf8_lossy(bytes)));
    replay::each("query", |bytes| query(&String::from_utf8_lossy(bytes)));
}

pub(crate) fn factory() -> (LspFactoryRecord, Vec<ClientFactoryRecord>) {
    let params = world::shaped(3, 2, &[2], &[0, 1]);
    let mut world = world::World::new(world::config(ParamsChoice::Reshape(params), 3, 20_000));
    world.run();
    (world.lsp_record.unwrap(), world.records.into_values().collect())
}

/// The factory with one advance of the leaf of its last client, who has the leaf alone.
pub(crate) struct Advanced {
    pub(crate) lsp: LspFactoryRecord,
    pub(crate) client: ClientFactoryRecord,
    pub(crate) burnt: LspAdvanceState,
    pub(crate) advance: LspAdvanceRecord,
    /// As the client stores it before its last signatures leave.
    pub(crate) pending: ClientAdvanceState,
    pub(crate) newest: ClientFactoryRecord,
}

pub(crate) fn advanced() -> Advanced {
    enum To {
        Lsp(LspAdvanceInput),
        Client(ClientAdvanceInput),
    }
    const LAST: usize = 2;
    let (lsp, mut clients) = factory();
    let (client, id, attempt) = (clients.remove(LAST), world::node_id(LAST), 1);
    let script = client.channel().unwrap().script.clone();
    let request =
        AdvanceRequest { level: 1, client: LAST, changes: Vec::new(), reason: AdvanceReason::Rotate };
    let config = LspAdvanceConfig {
        record: lsp.clone(),
        advances: Vec::new(),
        burnt: Vec::new(),
        secret_key: world::secret("lsp", 0),
        request,
        least_sat: Default::default(),
        attempt,
        agree_secs: 60,
        prepare_secs: 60,
        signing_secs: 60,
    };
    let (mut provider, mut from_lsp) = LspAdvance::new(config, &mut rand::rng()).unwrap();
    let config = ClientAdvanceConfig {
        record: client.clone(),
        state: None,
        secret_key: world::secret("factory", LAST),
        policy: AdvancePolicy { allow: true, least_sat: 0, most_sat: u64::MAX },
    };
    let mut machine = ClientAdvance::new(config, &mut rand::rng()).unwrap();
    let (mut from_client, mut queue) = (Vec::new(), std::collections::VecDeque::new());
    let (mut burnt, mut advance, mut pending, mut newest) = (None, None, None, None);
    loop {
        for action in std::mem::take(&mut from_lsp) {
            match action {
                LspAdvanceAction::Send { payload, .. } => {
                    queue.push_back(To::Client(ClientAdvanceInput::Message(payload)));
                }
                LspAdvanceAction::PrepareChannels(_) => {
                    let script = script.clone();
                    queue.push_back(To::Lsp(LspAdvanceInput::ChannelPrepared {
                        client: id,
                        attempt,
                        script,
                    }));
                }
                LspAdvanceAction::Rebuilt { .. } => {
                    queue.push_back(To::Lsp(LspAdvanceInput::Covered { client: id, attempt }));
                }
                LspAdvanceAction::PersistState(state) => burnt = Some(state),
                LspAdvanceAction::PersistRecord(record) => {
                    advance = Some(*record);
                    queue.push_back(To::Lsp(LspAdvanceInput::RecordPersisted { attempt }));
                }
                _ => {}
            }
        }
        for action in std::mem::take(&mut from_client) {
            match action {
                ClientAdvanceAction::Send(payload) => {
                    queue.push_back(To::Lsp(LspAdvanceInput::Message { client: id, payload }));
                }
                ClientAdvanceAction::PrepareChannel { .. } => {
                    let script = script.clone();
                    queue.push_back(To::Client(ClientAdvanceInput::ChannelPrepared { attempt, script }));
                }
                ClientAdvanceAction::Rebuilt { .. } => {
                    queue.push_back(To::Client(ClientAdvanceInput::Covered { attempt }));
                }
                ClientAdvanceAction::PersistInner { state, .. } => {
                    pending = Some(*state);
                    queue.push_back(To::Client(ClientAdvanceInput::InnerPersisted { attempt }));
                }
                ClientAdvanceAction::PersistRecord { record, .. } => {
                    newest = Some(*record);
                    queue.push_back(To::Client(ClientAdvanceInput::RecordPersisted { attempt }));
                }
                _ => {}
            }
        }
        match queue.pop_front() {
            Some(To::Lsp(input)) => from_lsp = provider.handle(input).unwrap(),
            Some(To::Client(input)) => from_client = machine.handle(input).unwrap(),
            None => break,
        }
    }
    let (burnt, advance) = (burnt.unwrap(), advance.unwrap());
    Advanced { lsp, client, burnt, advance, pending: pending.unwrap(), newest: newest.unwrap() }
}

fn made_exit_file() -> Vec<u8> {
    let (_, clients) = factory();
    let path = clients[1].path.clone();
    serde_json::to_vec(&ExitFile::new(Network::Regtest, world::node_id(1), false, path).unwrap()).unwrap()
}

fn versioned(record: Value) -> Value {
    json!({ "version": 1, "record": record })
}

/// A tree and a state with all of its fields in use.
fn stored(tree: Value, lsp: &LspFactoryRecord) -> Value {
    let ids: Vec<PublicKey> = lsp.client_ids.clone();
    let tx = bitcoin::consensus::encode::serialize_hex(&lsp.nodes[0].txs[0].tx);
    let balances: Vec<_> = (0..3)
        .map(|i| json!({ "client": ids[i], "payout_script": world::payout(i), "client_msat": 5_000_000 + i }))
        .collect();
    let machine = json!({
        "version": 1, "instance_id": hex::encode(lsp.plan.instance_id), "attempt": 3, "clients": balances,
        "lsp_script": world::payout(500), "feerate_sat_per_kwu": 1000,
    });
    let paid = json!({ "node_id": ids[0], "sat": 5 });
    let exit = json!({
        "started_at": 900, "reason": "htlc", "why": "a payment", "leaving": [lsp.funding.outpoint],
        "max_fee_sat": 7, "waits_for": "start", "waits_until": 905, "needs_coin_sat": 1, "over_budget_sat": null,
        "distribution": lsp.funding.outpoint.txid, "done": false,
    });
    let state = json!({
        "salt": hex::encode([3; 32]), "stage": "live", "funding_tx": tx,
        "excluded": [], "failure": "words", "forgotten": false, "alias": vec![1u8; 32],
        "finals": { ids[0].to_string(): [1, 2] }, "exits": { "0": exit }, "warned_at": 3,
        "close": {
            "machine": machine, "own_msat": 1, "payout_script": world::payout(1), "signed": tx,
            "paid": [paid], "to_fees": [paid], "fee_sat": 2, "reason": "words",
        },
        "close_attempts": 3, "left": [ids[1]],
    });
    json!({ "tree": versioned(tree), "state": versioned(state) })
}

fn wallet() -> bdk_wallet::ChangeSet {
    let key = "tprv8ZgxMBicQKsPd7Uf69XL1XwhmjHopUGep8GuEiJDZmbQz6o58LninorQAfcKZWARbtRtfnLcJ5MQ2AtHcQJCCRUcMRvmDUjyEmNUWwx8UbK";
    let (outer, inner) = (format!("tr({key}/86'/1'/0'/0/*)"), format!("tr({key}/86'/1'/0'/1/*)"));
    let mut wallet = bdk_wallet::Wallet::create(outer, inner)
        .network(Network::Regtest)
        .create_wallet_no_persist()
        .unwrap();
    wallet.reveal_next_address(bdk_wallet::KeychainKind::External);
    wallet.take_staged().unwrap()
}

fn relay(state: Value) -> Value {
    let (bytes, client) = ("cd".repeat(32), world::node_id(0));
    json!({
        "terms": {
            "client": client, "secret": bytes, "amount_msat": 5, "fee_msat": 1, "outgoing": 60, "lapses_at": 9,
        },
        "incoming": { "id": bytes, "msat": 6, "claim_by": 500, "until": 8 }, "state": state, "updated_at": 7,
    })
}

fn records() -> Vec<(&'static str, Value)> {
    let (lsp, clients) = factory();
    let (hash, txid, node) = ("ab".repeat(32), lsp.funding.outpoint.txid, world::node_id(0));
    let tx = bitcoin::consensus::encode::serialize_hex(&lsp.nodes[0].txs[0].tx);
    let payment = json!({
        "payment_hash": hash, "direction": "in", "amount_msat": 5, "fee_msat": 1, "status": "pending",
        "failure": null, "claim_by_height": 4, "updated_at": 9,
    });
    let block = "0f9188f13cb7b2c71f2a335e3a4fc328bf5beb436012afca590b1a11466e2206";
    let index = json!({
        "height": 7, "hash": block, "confirmed": [[txid, { "height": 5, "block": block }]],
        "spent": [[lsp.funding.outpoint, { "txid": txid, "height": 6 }]], "false_fundings": [lsp.funding.outpoint],
    });
    let child = json!({
        "child": { "tx": tx, "fee_sat": 300, "sent_at": 9, "sat_per_kwu": 500 },
        "seen": { "at": 9, "sat_per_kwu": 500 },
    });
    let journal =
        json!([{ "primary": "factories", "secondary": "", "key": "ab", "value": hex::encode([1, 2]) }]);
    let leaf = json!({
        "instance_id": hash, "node_id": node, "leaf_txid": txid, "expiry_height": 9, "state": "waiting",
        "next": "words", "until_height": 9, "steps_left": 2, "blocks_left": 3, "spent_sat": 4, "to_come_sat": 5,
        "steps": [{ "kind": "words", "txid": txid, "confirmed_height": 7 }],
    });
    let wallet_status = json!({ "address": "a", "confirmed_sat": 1, "unconfirmed_sat": 2, "needed_sat": 3, "sat_per_kwu": 4 });
    let status = json!({
        "network": "regtest", "height": 8, "block_hash": block, "synced": true, "written_at": 5,
        "fee_wallet": wallet_status, "leaves": [leaf],
    });
    vec![
        ("factory", stored(json!({ "lsp": lsp }), &lsp)),
        ("factory", stored(json!({ "client": clients[1] }), &lsp)),
        ("hold", versioned(json!({ "state": "open", "lapses_at": 5 }))),
        ("hold", versioned(json!({ "state": "held", "claim_by_height": 5 }))),
        ("hold", versioned(json!({ "state": "claiming", "preimage": hash, "claim_by_height": 5 }))),
        ("hold", versioned(json!({ "state": "claimed", "preimage": hash }))),
        ("hold", versioned(json!({ "state": "failed" }))),
        ("payment", versioned(payment)),
        ("held_htlcs", versioned(json!([{ "expiry": 9, "payment_hash": hash, "claimed": true }]))),
        ("event", versioned(json!({ "index": 1, "time": 2, "kind": "x", "data": { "a": [1, null, "b"] } }))),
        ("published", versioned(child)),
        ("published", versioned(json!({ "child": null, "seen": null }))),
        ("chain_index", versioned(index)),
        ("wallet", versioned(serde_json::to_value(wallet()).unwrap())),
        ("lent", versioned(json!([[lsp.funding.outpoint, 5]]))),
        ("published_by_watcher", versioned(json!([txid]))),
        ("text", versioned(json!(format!("{node}@127.0.0.1:9735")))),
        ("network", versioned(json!("regtest"))),
        ("journal", journal),
        ("watch_status", status),
        ("relay", versioned(relay(json!({ "state": "held" })))),
        ("relay", versioned(relay(json!({ "state": "done", "preimage": hash })))),
    ]
}

#[cfg(feature = "http")]
fn bodies() -> Vec<(&'static str, Value)> {
    let (node, hash) = (world::node_id(0), "ab".repeat(32));
    let client = json!({ "node_id": node, "capacity_sat": 100_000, "push_sat": 1 });
    let params = json!({
        "clients_per_leaf": 1, "arity": [2], "layers": [[], [[3, 2, 5]]], "active": 100, "dying": 50,
        "margin": 20, "min_depth": 1,
    });
    let invoice = "lnbcrt1pjxx"; // Not a whole one: LDK's parser is not what is looked at.
    vec![
        ("create_factory", json!({ "clients": [client, client, client], "stock_sat": 5, "params": params })),
        (
            "create_factory",
            json!({ "all": true, "capacity_sat": 5, "push_sat": 1, "params": { "clients_per_leaf": 3 } }),
        ),
        (
            "open_channel",
            json!({ "node_id": node, "address": "a:1", "capacity_sat": 9, "push_sat": 1, "announce": true }),
        ),
        (
            "invoice",
            json!({ "amount_msat": 5, "description": "d", "expiry_secs": 9, "payment_hash": hash, "hold_blocks": 3 }),
        ),
        ("pay", json!({ "invoice": invoice, "amount_msat": 5, "wait_secs": 1 })),
        ("claim", json!({ "preimage": hash })),
        ("fail", json!({ "payment_hash": hash })),
        ("connect", json!({ "node_id": node, "address": "127.0.0.1:9735" })),
        ("exit", json!({})),
        ("empty", json!({})),
    ]
}

/// A write-ahead log of a few transactions, of the smallest pages there are.
fn sqlite_log() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let db = rusqlite::Connection::open(&path).unwrap();
    let all =
        "PRAGMA page_size = 512; PRAGMA journal_mode = WAL; CREATE TABLE t (n); INSERT INTO t VALUES (1); \
               INSERT INTO t VALUES (2);";
    db.execute_batch(all).unwrap();
    std::fs::read(dir.path().join("db-wal")).unwrap()
}

/// Numbers the inputs, with the kind as first byte.
fn numbered(kinds: &[&str], list: Vec<(&'static str, Value)>) -> Vec<(String, Vec<u8>)> {
    let with_kind = |(at, (kind, value)): (usize, (&str, Value))| {
        let first = u8::try_from(kinds.iter().position(|k| *k == kind).unwrap()).unwrap();
        let mut bytes = vec![first];
        bytes.extend(serde_json::to_vec(&value).unwrap());
        (format!("{at:02}-{kind}"), bytes)
    };
    list.into_iter().enumerate().map(with_kind).collect()
}

#[cfg(feature = "http")]
#[test]
#[ignore = "writes: make fuzz-seeds"]
fn write_seeds() {
    let mut stored = numbered(&RECORDS, records());
    stored.push(("22-sealed".to_owned(), [vec![14], seal(("factories", "", "ab"), vec![7; 9])].concat()));
    stored.push(("23-sqlite_log".to_owned(), [vec![15], sqlite_log()].concat()));
    replay::write("records", &stored);
    replay::write("exit_file", &[("client".to_owned(), made_exit_file())]);
    replay::write("bodies", &numbered(&BODIES, bodies()));
    let example = include_str!("../../../lsp-server/config.example.toml");
    let plain = "bitcoind_cookie = \"/c\"\npoll_ms = 60\nlisten = \"127.0.0.1:1\"\nalias = \"a\"\n";
    // Of the two programs; here they are refused for their names.
    let lsp = "default_stock_sat = 330\nphase_timeout_secs = 9\nmin_clients = 3\nmax_connections = 7";
    let own = format!(
        "lsp = \"{}@localhost:9735\"\njoin = false\nmin_capacity_sat = 5\nmax_exit_blocks = 300\nmax_clients = 9",
        world::node_id(0)
    );
    let texts = [
        ("plain", plain.to_owned()),
        ("lsp", format!("{plain}{lsp}\0APP_MIN_CLIENTS=4")),
        ("client", format!("{plain}{own}\0APP_MAX_CLIENTS=10\nAPP_JOIN=true")),
        ("environment", format!("{plain}\0APP_POLL_MS=70\nAPP_NETWORK=signet\nAPP_STORE=filesystem")),
        (
            "example",
            example.lines().filter(|l| !l.starts_with("# ")).fold(String::new(), |t, l| t + l + "\n"),
        ),
    ];
    let texts = texts.map(|(name, text)| (name.to_owned(), text.into_bytes()));
    replay::write("settings", &texts);
    let queries = ["after=5&limit=10&wait_secs=3", "after=%31&x=1", "limit=1001", ""];
    let queries = queries.iter().enumerate().map(|(i, q)| (format!("{i}"), q.as_bytes().to_vec()));
    replay::write("query", &queries.collect::<Vec<_>>());
}

/// Every record of the seeds is one, so that the fuzzer starts from what is read, not from what is refused.
#[test]
fn seeds_are_what_they_seem() {
    for (kind, value) in records() {
        let bytes = serde_json::to_vec(&value).unwrap();
        let is_one = match kind {
            "factory" => {
                let part = |name: &str| serde_json::to_vec(&value[name]).unwrap();
                let stored = StoredFactory::new(
                    read(&part("tree")).expect("a tree"),
                    read(&part("state")).expect("a state"),
                );
                stored.check().is_ok()
            }
            "hold" => read::<HoldState>(&bytes).is_some(),
            "relay" => read::<Relay>(&bytes).is_some(),
            "payment" => read::<Payment>(&bytes).is_some(),
            "held_htlcs" => read::<Vec<Inbound>>(&bytes).is_some(),
            "event" => read::<EventRecord>(&bytes).is_some(),
            "published" => read::<Carried>(&bytes).is_some(),
            "chain_index" => read::<StoredIndex>(&bytes).is_some(),
            "wallet" => read::<bdk_wallet::ChangeSet>(&bytes).is_some(),
            "lent" => read::<Vec<(OutPoint, u32)>>(&bytes).is_some(),
            "published_by_watcher" => read::<std::collections::BTreeSet<Txid>>(&bytes).is_some(),
            "text" => read::<String>(&bytes).is_some(),
            "network" => read::<Network>(&bytes).is_some(),
            "watch_status" => serde_json::from_slice::<WatchStatus>(&bytes).is_ok(),
            _ => true,
        };
        assert!(is_one, "{kind}: {value}");
    }
}

/// A tree whose node ends before it begins made the start panic, one of another version or with a wrong signature was
/// taken for a way out.
#[test]
fn a_damaged_tree_is_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let store = crate::store::Store::open(&dir.path().join("db")).unwrap();
    let (lsp, clients) = factory();
    let load = |tree: Value| {
        let whole = stored(tree, &lsp);
        let part = |name: &str| serde_json::to_vec(&whole[name]).unwrap();
        let (tree, state) = (part("tree"), part("state"));
        store.write_all(&[("factories", "", "ab", &tree), ("factory_states", "", "ab", &state)]).unwrap();
        StoredFactory::load_all(&store)
    };
    let (tree, path) = (json!({ "lsp": lsp }), json!({ "client": clients[1] }));
    assert_eq!(load(tree.clone()).unwrap().len(), 1);
    assert_eq!(load(path.clone()).unwrap().len(), 1);
    type Damage = (&'static str, fn(&mut Value));
    let damage: [Damage; 6] = [
        ("/lsp/version", |v| *v = json!(2)),
        ("/lsp/nodes/1/end", |v| *v = json!(0)),
        ("/lsp/nodes", |v| drop(v.as_array_mut().unwrap().pop())),
        ("/lsp/client_ids", |v| drop(v.as_array_mut().unwrap().pop())),
        ("/lsp/channel_scripts", |v| v.as_array_mut().unwrap().swap(0, 1)),
        ("/lsp/nodes/0/txs/0/spends/value", |v| *v = json!(v.as_u64().unwrap() + 1)),
    ];
    let of_a_client: [Damage; 3] = [
        ("/client/version", |v| *v = json!(2)),
        ("/client/position", |v| *v = json!(7)),
        ("/client/path/0/relative_delay", |v| *v = json!(9)),
    ];
    let all = damage.iter().map(|d| (&tree, d)).chain(of_a_client.iter().map(|d| (&path, d)));
    for (whole, (place, change)) in all {
        let mut damaged = whole.clone();
        change(damaged.pointer_mut(place).unwrap_or_else(|| panic!("no {place}: {whole}")));
        let error = load(damaged).err().unwrap_or_else(|| panic!("{place} is not looked at"));
        assert!(matches!(&error, Error::Corrupt { key, .. } if key == "factories/ab"), "{place}: {error}");
    }
}
