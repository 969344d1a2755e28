//! The transactions of a small factory with fixed keys, for blip-draft.md: what two implementations have to agree on
//! before they can sign anything together.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../bolt-tlv/tests/common/printed.rs"]
mod printed;

use bitcoin::consensus::encode::serialize_hex;
use bitcoin::{Network, OutPoint, ScriptBuf};
use factory_core::lifetime::Lifetime;
use factory_core::musig::public_key;
use factory_core::node::Node;
use factory_core::params::{DwLayer, Params, Shape};
use factory_core::plan::{FactoryPlan, LeafMember, Member, PlanParts};
use factory_core::transaction::TreeTx;
use factory_core::tree::{Layout, Tree};
use printed::{brief, line, Printed};
use serde_json::{json, Value};

const CLIENTS: usize = 2;

/// A secret key of zeros but for its last byte.
fn secret(last: u8) -> [u8; 32] {
    let mut secret = [0; 32];
    secret[31] = last;
    secret
}

fn script(head: &str, byte: &str, len: usize) -> ScriptBuf {
    ScriptBuf::from_hex(&format!("{head}{}", byte.repeat(len))).unwrap()
}

fn params() -> Params {
    let layer = |base| DwLayer { states: 2, step: 48, base };
    let layers = vec![vec![], vec![layer(96), layer(0)]];
    let shape = Shape { clients_per_leaf: 1, arity: vec![2], layers };
    Params { shape, ..Params::default_with(CLIENTS, 1, Network::Bitcoin).unwrap() }
}

fn plan() -> FactoryPlan {
    let member = |(key, byte, capacity_sat): (u8, &str, u64)| Member {
        key: public_key(&secret(key)).unwrap(),
        share: LeafMember {
            capacity_sat,
            push_msat: 1_000_000,
            payout_script: script("0014", byte, 20),
            temporary_channel_id: [key; 32],
        },
    };
    let parts = PlanParts {
        instance_id: [0xbb; 32],
        params: params(),
        birth_height: 1000,
        expiry_height: Lifetime::new(1000, &params(), CLIENTS).unwrap().expiry(),
        lsp_key: public_key(&secret(1)).unwrap(),
        members: [(2, "11", 100_000), (3, "12", 200_000)].map(member).to_vec(),
        leaf_stock_sat: 50_000,
        stock_script: script("5120", "22", 32),
    };
    FactoryPlan::new(parts).unwrap()
}

fn tree(position: u64) -> Tree {
    let scripts = [script("0020", "33", 32), script("0020", "34", 32)];
    let funding = OutPoint { txid: "44".repeat(32).parse().unwrap(), vout: 1 };
    let states = params().states_after(position).unwrap();
    Layout::new(plan()).unwrap().build_at(&scripts, funding, &states).unwrap()
}

/// The transactions on the first client's path, root first, and its distributions.
fn of_path(tree: &Tree) -> Vec<TreeTx> {
    let nodes: Vec<&Node> = tree.path_nodes(0).unwrap().into_iter().map(|i| &tree.nodes()[i]).collect();
    nodes.iter().flat_map(|node| node.sessions()).cloned().collect()
}

fn shown(tx: &TreeTx) -> Value {
    json!({
        "kind": tx.kind.to_string(),
        "spends_sat": tx.spends.value.to_sat(),
        "spends_script": tx.spends.script_pubkey.to_hex_string(),
        "unsigned": serialize_hex(&tx.tx),
        "sighash": hex::encode(tx.sighash().unwrap()),
    })
}

/// What of a position is not in the first one, by kind: the outermost state, which is what an advance from the first
/// position signs last, and what hangs below it.
fn new_at(position: u64) -> Vec<TreeTx> {
    let old = of_path(&tree(0));
    let is_new = |tx: &TreeTx| old.iter().all(|o| o.txid() != tx.txid());
    of_path(&tree(position)).into_iter().filter(is_new).collect()
}

fn vectors() -> Printed {
    let plan = plan();
    let first = tree(0);
    let node = |node: &Node| {
        json!({
            "level": node.level,
            "first": node.first,
            "end": node.end,
            "signers": node.key.signers().iter().map(ToString::to_string).collect::<Vec<_>>(),
            "internal_key": node.key.internal().to_string(),
            "script": node.script_pubkey().to_hex_string(),
            "value_sat": node.value_sat,
        })
    };
    let nodes: Vec<Value> = first.nodes().iter().map(node).collect();
    let created: Vec<Value> = of_path(&first).iter().map(shown).collect();
    let newer = |position: u64| {
        let (outer, inner): (Vec<_>, Vec<_>) = {
            let new = new_at(position);
            (new[..1].iter().map(shown).collect(), new[1..].iter().map(shown).collect())
        };
        json!({"from": 0, "position": position, "outer": Value::Array(outer), "inner": Value::Array(inner)})
    };
    let advances: Vec<Value> = (1..4).map(newer).collect();
    let json = json!({
        "about": "A factory of two clients. Secret keys: the provider's 1, the clients' 2 and 3. The path is the first \
                  client's. An advance of its leaf from position 0: what is new, in the order of the messages.",
        "plan": &plan,
        "funding": {"txid": first.funding_outpoint().txid.to_string(), "vout": first.funding_outpoint().vout},
        "channel_scripts": first.channel_scripts().iter().map(|s| s.to_hex_string()).collect::<Vec<_>>(),
        "nodes": nodes,
        "path": created,
        "advances": advances,
    });

    let mut text = format!("T is {}.\n\n", plan.expiry_height);
    for node in json["nodes"].as_array().unwrap() {
        let name = format!("Script of the node of level {}, client {} on", node["level"], node["first"]);
        let said = format!("{} sat, internal key {}", node["value_sat"], brief(&node["internal_key"]));
        text.push_str(&line(&name, &said, node["script"].as_str().unwrap()));
    }
    let print = |tx: &Value, what: &str| {
        let name = format!("{what}{}", tx["kind"].as_str().unwrap());
        let said = format!("spends {} sat, sighash {}", tx["spends_sat"], brief(&tx["sighash"]));
        line(&name, &said, tx["unsigned"].as_str().unwrap())
    };
    json["path"].as_array().unwrap().iter().for_each(|tx| text.push_str(&print(tx, "Position 0, ")));
    for advance in json["advances"].as_array().unwrap() {
        for list in ["outer", "inner"] {
            let what = format!("Position {}, {list}: ", advance["position"]);
            advance[list].as_array().unwrap().iter().for_each(|tx| text.push_str(&print(tx, &what)));
        }
    }
    Printed { file: Some(("factory-core/tests/vectors/tree.json", json)), block: "trees", text }
}

/// The outermost new transaction spends what it spent before; everything else that is new hangs below it.
#[test]
fn what_is_new_hangs_below_the_outermost_state() {
    let old: Vec<_> = of_path(&tree(0)).iter().map(|tx| tx.tx.input[0].previous_output).collect();
    for position in 1..4 {
        let new = new_at(position);
        let ids: Vec<_> = new.iter().map(TreeTx::txid).collect();
        for (i, tx) in new.iter().enumerate() {
            let spent = tx.tx.input[0].previous_output;
            assert_eq!((old.contains(&spent), ids.contains(&spent.txid)), (i == 0, i > 0), "{}", tx.kind);
        }
    }
}

#[test]
fn file_and_draft_have_these_vectors() {
    vectors().check();
}

#[test]
#[ignore = "writes: make vectors"]
fn write_vectors() {
    std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors")).unwrap();
    vectors().write();
}
