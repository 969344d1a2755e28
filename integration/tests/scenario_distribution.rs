//! The LSP vanishes and the expiry height T comes: every client that comes back is paid by its distribution, by
//! itself, whatever the LSP has published before. Then the LSP comes back and finds its books in order.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{anyhow, ensure, Result};
use bitcoin::Transaction;
use factory_core::record::SignedPath;
use integration::exit::mine_until;
use integration::ledger::{wait_at_rest, wait_for, Snapshot};
use integration::payments::{pay, Order, Party};
use integration::signed::{output_worth, spender, tree_of, wait_published, wait_spent, Stranger, Way};
use integration::types::Factory;
use integration::wait;
use integration::world::{CLIENT_COIN, PATIENCE};
use integration::World;
use serde_json::{json, Value};

const CLIENTS: usize = 4;
const CAPACITY: u64 = 300_000;
/// A leaf's liquidity stock; odd, so that one client of two gets a satoshi more.
const STOCK: u64 = 10_001;
/// Blocks from T until every client has its money and has seen it six deep.
const PAID_WITHIN: u32 = 40;
/// More than a client's sweep of one output costs, sat.
const MAX_SWEEP_FEE: u64 = 3_000;
/// Leaf transactions in the order of publication: the kickoff and the states of two layers.
const KICKOFF: usize = 0;
const FIRST_STATE: usize = 1;

/// A short life, and layers of a few blocks.
fn params(clients_per_leaf: u16, arity: &[u16]) -> Value {
    let mut layers = vec![json!([]); arity.len()];
    layers.push(json!([[2, 2, 4], [2, 2, 0]]));
    json!({
        "clients_per_leaf": clients_per_leaf, "arity": arity, "layers": layers,
        "active": 20, "dying": 10, "margin": 10,
    })
}

/// A factory whose clients have paid each other and vanished.
struct Abandoned {
    world: World,
    factory: Factory,
    /// What everybody held then.
    before: Snapshot,
    /// The signed path of each client of the world.
    paths: Vec<SignedPath>,
    stranger: Stranger,
}

/// Makes it; the LSP is dead, too.
fn abandoned(name: &str, params: Value) -> Result<Abandoned> {
    let mut world = World::start(name, CLIENTS)?;
    let request = world.factory_request(CAPACITY, CAPACITY / 2, STOCK, Some(params));
    let factory = world.create_factory(&request)?;
    let stranger = Stranger::new(&world.bitcoind, 10)?;
    world.sync()?;
    let start = Snapshot::take(&world)?;
    let order =
        |from, to, amount_msat| Order { from: Party::Client(from), to: Party::Client(to), amount_msat };
    let paid = [
        pay(&world, order(0, 1, 12_345_678))?,
        pay(&world, order(1, 2, 1_000_001))?,
        pay(&world, order(3, 0, 77_777_777))?,
    ];
    wait_for(&world, &start.after(&paid)?)?;
    let before = wait_at_rest(&world)?;
    for client in &mut world.clients {
        client.kill()?;
    }
    world.lsp.kill()?;
    let tree = tree_of(&world.lsp, &factory.instance_id)?;
    let mut paths = Vec::new();
    for client in &world.clients {
        let place = tree.client_ids.iter().position(|id| id.to_string() == client.node_id()).unwrap();
        paths.push(tree.leaf_path(place)?);
    }
    Ok(Abandoned { world, factory, before, paths, stranger })
}

impl Abandoned {
    fn publish(&mut self, client: usize, transaction: usize) -> Result<()> {
        let tx = &self.paths[client].path[transaction];
        self.stranger.publish(&self.world.bitcoind, tx)
    }

    /// The position in the path of a transaction of the leaf.
    fn leaf(&self, number: usize) -> usize {
        usize::try_from(self.paths[0].leaf_start).unwrap() + number
    }

    /// What a client's distribution pays it, sat: its channel and its share of the stock, whoever had paid whom.
    fn share(&self, client: usize) -> u64 {
        let path = &self.paths[client];
        let node_id = self.world.clients[client].node_id();
        let members: Vec<_> = self.factory.clients.iter().map(|m| m.node_id.as_str()).collect();
        let place = members.iter().position(|m| *m == node_id).unwrap() % path.leaf.len();
        let of_all = u64::try_from(path.leaf.len()).unwrap();
        CAPACITY + STOCK / of_all + if place == 0 { STOCK % of_all } else { 0 }
    }

    /// Mines until each of these clients, which run, says that it has left.
    fn drive(&self, clients: &[usize]) -> Result<()> {
        let (world, id) = (&self.world, &self.factory.instance_id);
        for _ in 0..PAID_WITHIN {
            let mut states = Vec::new();
            for index in clients {
                let (client, path) = (world.client(*index)?, &self.paths[*index]);
                wait_published(&world.bitcoind, client, id, std::slice::from_ref(path), Way::Distribution)?;
                states.push(client.factory(id)?.state);
            }
            if states.iter().all(|state| state == "exited") {
                return Ok(());
            }
            world.bitcoind.mine(1)?;
        }
        let exits: Vec<_> = clients.iter().map(|i| world.clients[*i].factory(id).map(|f| f.exits)).collect();
        Err(anyhow!("not all have left {PAID_WITHIN} blocks after T: {exits:?}"))
    }

    /// A client was paid by the distribution with this number, and its wallet has all of it but its own children's
    /// fees. Returns those, sat.
    fn check_paid(&self, index: usize, number: usize) -> Result<u64> {
        let client = self.world.client(index)?;
        client.wait_synced(&self.world.bitcoind)?;
        let txid = self.paths[index].distributions[number].txid();
        let tx: Transaction =
            self.world.bitcoind.confirmed(txid)?.ok_or_else(|| anyhow!("{txid} is not confirmed"))?.tx;
        let share = self.share(index);
        assert!(tx.output.iter().any(|output| output.value.to_sat() == share), "{share} sat: {tx:?}");
        let exit = client.factory(&self.factory.instance_id)?.exits.pop().unwrap();
        assert_eq!(exit.distribution_txid, Some(txid));
        assert_eq!(exit.phase, "done");
        let balance = client.balance()?;
        assert_eq!(balance.onchain.confirmed_sat, CLIENT_COIN + share - exit.fees_sat, "{}", client.name());
        assert_eq!(balance.total_sat, balance.onchain.confirmed_sat, "nothing is counted twice");
        assert!(client.channels()?.iter().all(|channel| !channel.usable));
        Ok(exit.fees_sat)
    }

    /// What the LSP held beside its balances and stock in the factory, sat.
    fn lsp_coins(&self) -> Result<u64> {
        let (mut in_factory, mut of_clients) = (0, 0);
        for (index, path) in self.paths.iter().enumerate() {
            of_clients += self.before.of(&format!("client-{index}"))? - CLIENT_COIN * 1000;
            // Clients of one leaf share its stock.
            in_factory += CAPACITY * 1000 + STOCK * 1000 / u64::try_from(path.leaf.len())?;
        }
        Ok((self.before.of("lsp")? - (in_factory - of_clients)) / 1000)
    }

    /// The LSP, which has come back, says that it has left, holds its coins and nothing else, and publishes nothing.
    /// So it stays after a restart.
    fn lsp_comes_back(&mut self, coins_sat: u64) -> Result<()> {
        let (world, id) = (&mut self.world, &self.factory.instance_id);
        for _ in 0..2 {
            world.mine(10)?;
            wait::until_value(
                &format!("the LSP to call the factory left, with {coins_sat} sat in coins and nothing else"),
                PATIENCE,
                || Ok((world.lsp.factory(id)?.state, world.lsp.balance()?)),
                |(state, balance)| {
                    let coins = balance.onchain.confirmed_sat;
                    state == "exited" && coins == coins_sat && balance.total_msat() == coins_sat * 1000
                },
            )?;
            assert!(world.bitcoind.mempool()?.is_empty());
            world.lsp.kill()?;
            world.lsp.start()?;
        }
        Ok(())
    }
}

/// Nothing was published. The clients come back, one of them long after the others.
fn nothing_was_published(name: &str, params: Value) -> Result<()> {
    let mut a = abandoned(name, params)?;
    let expiry = a.factory.expiry_height;
    a.world.bitcoind.mine_to(expiry - 1)?;
    for client in &mut a.world.clients[..CLIENTS - 1] {
        client.start()?;
    }
    a.world.sync()?;
    assert!(a.world.bitcoind.mempool()?.is_empty(), "nothing before T");
    let first = a.world.bitcoind.height()? + 1;
    a.world.bitcoind.mine(1)?;
    a.drive(&[0, 1, 2])?;
    a.world.client_mut(3)?.start()?;
    a.drive(&[3])?;
    let mut fees = 0;
    for client in 0..CLIENTS {
        fees += a.check_paid(client, 0)?;
    }
    assert_eq!(a.world.bitcoind.fees(first, a.world.bitcoind.height()?)?, fees);
    // The LSP loses all that it had in the factory: it was not there in time.
    a.world.lsp.start()?;
    let coins = a.lsp_coins()?;
    a.lsp_comes_back(coins)?;
    a.world.finish();
    Ok(())
}

#[test]
fn clients_are_paid_after_t_when_nothing_was_published() -> Result<()> {
    nothing_was_published("distribution", params(1, &[2, 2]))
}

#[test]
fn clients_of_one_leaf_are_paid_after_t() -> Result<()> {
    nothing_was_published("distribution-pairs", params(2, &[2]))
}

/// Before T the LSP publishes the root and the static nodes; one kickoff; one kickoff and first state; and one leaf to
/// its end, with its commitment. The clients come back before and after T, the last one within the commitment's delay.
#[test]
fn what_the_lsp_publishes_before_t_does_not_help_it() -> Result<()> {
    let mut a = abandoned("distribution-hostile", params(1, &[2, 2]))?;
    let (expiry, id) = (a.factory.expiry_height, a.factory.instance_id.clone());
    // By their place in the tree: two below each static node.
    let mut places: Vec<usize> = (0..CLIENTS).collect();
    let members: Vec<_> = a.factory.clients.iter().map(|m| m.node_id.clone()).collect();
    places.sort_by_key(|i| members.iter().position(|m| m == a.world.clients[*i].node_id()));
    let [untouched, kicked, stated, closed] = places[..] else { panic!("{places:?}") };

    a.world.bitcoind.mine_to(expiry - 40)?;
    for number in 0..a.paths[closed].path.len() {
        let delay = u32::from(a.paths[closed].path[number].relative_delay);
        a.world.bitcoind.mine(delay.saturating_sub(1))?;
        a.publish(closed, number)?;
        a.world.bitcoind.mine(1)?;
    }
    a.world.bitcoind.mine_to(expiry - 26)?;
    // The LSP goes on with the others, too, up to what can be in the next block.
    a.world.lsp.start()?;
    let body = json!({ "client": a.world.client(closed)?.node_id() });
    a.world.lsp.api()?.post::<Value>(&format!("/v1/factories/{id}/exit"), &body)?;
    let channel = a.paths[closed].leaf[0].outpoint;
    wait::until_value(
        "the LSP's commitment",
        PATIENCE,
        || a.world.bitcoind.mempool_spender(channel),
        |by| by.is_some(),
    )?;
    wait_published(&a.world.bitcoind, &a.world.lsp, &id, &a.paths, Way::Channels)?;
    a.world.lsp.kill()?;
    let kickoff = a.paths[stated].path[a.leaf(KICKOFF)].txid();
    let stranger_before = a.stranger.fees_sat;
    let first_of_lsp = a.world.bitcoind.height()? + 1;
    a.world.bitcoind.mine(1)?;
    assert!(a.world.bitcoind.confirmed(kickoff)?.is_some());
    a.publish(kicked, a.leaf(KICKOFF))?;
    a.world.bitcoind.mine(1)?;
    // Its client looks at that, begins to guard its leaf, and is gone again.
    a.world.client_mut(kicked)?.start()?;
    wait::until_value(
        "the client to guard its leaf",
        PATIENCE,
        || Ok(a.world.client(kicked)?.factory(&id)?.exits),
        |exits| !exits.is_empty(),
    )?;
    a.world.client_mut(kicked)?.kill()?;
    a.world.bitcoind.mine_to(expiry - 4)?;
    a.publish(stated, a.leaf(FIRST_STATE))?;
    a.world.bitcoind.mine(1)?;
    // This one looks before T, and sees that the path would not end in time.
    a.world.client_mut(stated)?.start()?;
    a.world.mine(2)?;
    assert_eq!(a.world.bitcoind.height()?, expiry - 1);
    for client in [untouched, kicked, closed] {
        a.world.client_mut(client)?.start()?;
    }
    a.world.sync()?;
    a.world.mine(1)?;
    let commitment = spender(&a.world.bitcoind, channel, first_of_lsp, expiry)?;
    let held = a.before.of(a.world.client(closed)?.name())? / 1000;
    wait_spent(&a.world.bitcoind, output_worth(&commitment, held - CLIENT_COIN)?)?;
    a.drive(&[untouched, kicked, stated, closed])?;
    let mut fees = 0;
    for (client, number) in [(untouched, 0), (kicked, 1), (stated, 2)] {
        fees += a.check_paid(client, number)?;
    }
    // The last one has its balance, less its sweep.
    let client = a.world.client(closed)?;
    let balance = client.balance()?;
    let sweep = held - balance.total_sat;
    assert_eq!(balance.total_sat, balance.onchain.confirmed_sat);
    assert!(sweep < MAX_SWEEP_FEE, "{sweep} sat");

    // What the LSP gets of the leaf that it has brought to the chain: its own balance and the stock, swept after the
    // commitment's delay.
    a.world.lsp.start()?;
    a.world.sync()?;
    let of_client = a.before.of(&format!("client-{closed}"))? - CLIENT_COIN * 1000;
    let own = CAPACITY - of_client / 1000 + STOCK;
    let others = a.stranger.fees_sat - stranger_before + fees + sweep;
    let coins = mine_until(&a.world, &a.world.lsp, "the LSP to have its share of one leaf", || {
        let all = a.world.bitcoind.fees(first_of_lsp, a.world.bitcoind.height()?)?;
        let (due, balance) = (a.lsp_coins()? + own - (all - others), a.world.lsp.balance()?);
        ensure!(balance.total_msat() == due * 1000, "due {due} sat: {balance:?}");
        Ok(due)
    })?;
    a.lsp_comes_back(coins)?;
    a.world.finish();
    Ok(())
}
