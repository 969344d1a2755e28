//! The tree of a factory, drawn.

use std::collections::HashMap;

use super::format::{confirmations, sat, short};
use crate::api::{FactoryInfo, TreeTx};

/// Deeper than any tree: 1000 clients have 5 levels, and a leaf at most 8 layers.
const MAX_DEPTH: usize = 64;

/// Draws the tree below the funding output, a line per transaction.
pub fn tree(factory: &FactoryInfo) -> String {
    let Some(funding) = &factory.funding else { return "no funding output yet".to_owned() };
    let mut children: HashMap<&str, Vec<&TreeTx>> = HashMap::new();
    for tx in &factory.tree {
        children.entry(tx.parent_txid.as_str()).or_default().push(tx);
    }
    for list in children.values_mut() {
        list.sort_by_key(|tx| tx.vout);
    }
    let mut out = format!(
        "funding {}:{}  {}  {}\n",
        funding.txid,
        funding.vout,
        sat(factory.funding_sat),
        confirmations(factory.funding_confirmations),
    );
    draw(&children, &funding.txid, "", 0, &mut out);
    out
}

fn draw(children: &HashMap<&str, Vec<&TreeTx>>, txid: &str, indent: &str, depth: usize, out: &mut String) {
    let Some(list) = children.get(txid) else { return };
    if depth >= MAX_DEPTH {
        return;
    }
    for (i, tx) in list.iter().enumerate() {
        let last = i + 1 == list.len();
        let (branch, below) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        out.push_str(&format!("{indent}{branch}{}\n", line(tx)));
        draw(children, &tx.txid, &format!("{indent}{below}"), depth + 1, out);
    }
}

fn line(tx: &TreeTx) -> String {
    let [first, end] = tx.clients;
    let clients = match end.saturating_sub(first) {
        0 | 1 => format!("client {first}"),
        _ => format!("clients {first} to {}", end - 1),
    };
    let delay = match tx.delay_blocks {
        0 => String::new(),
        n => format!(", delay {n} blocks"),
    };
    let published = tx.confirmed_height.map(|h| format!("  ON CHAIN at {h}")).unwrap_or_default();
    format!("{:<7} {}  {}  {clients}{delay}{published}", tx.kind, short(&tx.txid), sat(tx.sat))
}

#[cfg(test)]
mod tests {
    use super::super::factory::tests::sample;
    use super::*;

    fn tx(kind: &str, txid: &str, parent: &str, vout: u32, clients: [usize; 2], delay_blocks: u16) -> TreeTx {
        TreeTx {
            level: 0,
            kind: kind.into(),
            txid: txid.into(),
            parent_txid: parent.into(),
            vout,
            delay_blocks,
            clients,
            sat: 1000,
            confirmed_height: (txid == "k0").then_some(130),
        }
    }

    #[test]
    fn the_tree_is_drawn_from_the_funding_down() {
        let mut f = sample();
        // Not in order: the drawing sorts by output.
        f.tree = vec![
            tx("kickoff", "k1", "root", 1, [1, 2], 0),
            tx("static", "root", "f0", 0, [0, 2], 0),
            tx("kickoff", "k0", "root", 0, [0, 1], 0),
            tx("state", "s0", "k0", 0, [0, 1], 144),
            tx("state", "lost", "elsewhere", 0, [0, 1], 0),
        ];
        let want = "funding f0:1  2,000,000 sat  1 confirmation\n\
                    └─ static  root  1,000 sat  clients 0 to 1\n   \
                    ├─ kickoff k0  1,000 sat  client 0  ON CHAIN at 130\n   \
                    │  └─ state   s0  1,000 sat  client 0, delay 144 blocks\n   \
                    └─ kickoff k1  1,000 sat  client 1\n";
        assert_eq!(tree(&f), want);
    }

    #[test]
    fn a_circle_ends() {
        let mut f = sample();
        f.tree = vec![tx("state", "f0", "f0", 0, [0, 1], 0)];
        assert_eq!(tree(&f).lines().count(), 1 + MAX_DEPTH);
    }
}
