//! Random orders of everything, with crashes, lost connections and late companions: thousands of steps, and the rules
//! hold at each.

use factory_core::advance::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::common::{capacity, node_id, regtest, shaped};
use crate::rules;
use crate::world::{request, Rig, Way};

fn any_request(rig: &Rig, rng: &mut StdRng) -> AdvanceRequest {
    let tree = rig.disk.newest();
    let params = &rig.disk.record.plan.params;
    let client = rng.random_range(0..rig.disks.len());
    let level = rng.random_range(0..params.shape.levels());
    let leaf = tree.leaf(client).unwrap();
    let mut caps: Vec<u64> = leaf.members.iter().map(|m| m.capacity_sat).collect();
    let mut stock = leaf.stock_sat;
    // Some liquidity from the stock or back, if the leaf has enough of it.
    let place = client - leaf.first;
    let moved = rng.random_range(0..3_000);
    match rng.random_range(0..3) {
        0 if stock > moved + 400 => {
            stock -= moved;
            caps[place] += moved;
        }
        1 if caps[place] > moved + 6_000 => {
            stock += moved;
            caps[place] -= moved;
        }
        _ => {}
    }
    request(level, client, &[(u32::try_from(leaf.first).unwrap(), &caps, stock)])
}

fn disturb(rig: &mut Rig, rng: &mut StdRng) {
    let i = rng.random_range(0..rig.clients.len());
    match rng.random_range(0..8) {
        0 | 1 => rig.restart_client(i),
        2 => rig.restart_lsp(),
        3 => rig.lsp_in(LspAdvanceInput::Cancel),
        4 => rig.client_in(i, ClientAdvanceInput::Cancel { text: "no".into() }),
        5 | 6 => {
            // What is on its way is lost with the connection.
            rig.lsp_in(LspAdvanceInput::ClientGone { client: node_id(i) });
            rig.client_in(i, ClientAdvanceInput::Disconnected);
            rig.queue.retain(|(way, _)| *way != Way::ToLsp(i) && *way != Way::ToClient(i));
            if rng.random_bool(0.5) {
                rig.client_in(i, ClientAdvanceInput::Connected);
            }
        }
        _ => drop(rig.uncovered.insert(i)),
    }
}

fn life(seed: u64) -> (u64, u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let (params, n) = match seed % 5 {
        0 => (regtest(3, 1), 3),
        1 => (shaped(4, 1, &[2, 2], &[0, 1, 2]), 4),
        2 => (shaped(4, 2, &[2], &[0, 3]), 4),
        3 => (shaped(4, 2, &[2], &[1, 2]), 4),
        _ => (shaped(3, 1, &[3], &[2, 1]), 3),
    };
    let mut rig = Rig::new(params, n, 20_000);
    let total: u64 =
        (0..n).map(capacity).sum::<u64>() + 20_000 * u64::try_from(rig.disk.newest().leaves().len()).unwrap();
    let (mut steps, mut completed) = (0, 0);
    for _ in 0..40 {
        let wanted = any_request(&rig, &mut rng);
        if rig.start(wanted).is_err() {
            continue;
        }
        let calm = rng.random_bool(0.3);
        while rig.random(&mut rng) {
            steps += 1;
            rules::disks(&rig.disk, &rig.disks);
            if !calm && rng.random_bool(0.03) {
                disturb(&mut rig, &mut rng);
            }
        }
        // Whatever is left: time runs out, and everybody comes back.
        let id = rig.timer;
        rig.lsp_in(LspAdvanceInput::Timeout { id });
        rig.uncovered.clear();
        rig.run();
        for i in 0..n {
            rig.client_in(i, ClientAdvanceInput::Connected);
        }
        rig.run();
        rules::signatures(&rig.disk, &rig.disks);
        let tree = rig.disk.newest();
        for (i, client) in rig.clients.iter().enumerate() {
            let own = rig.disks[i].newest().path.updates;
            assert_eq!(own, tree.leaf(i).unwrap().updates, "client {i} was not told of the complete state");
            assert!(client.record() == rig.disks[i].newest());
            assert_eq!(client.phase(), ClientAdvancePhase::Idle);
        }
        let sum = |leaf: &LeafNow| leaf.members.iter().map(|m| m.capacity_sat).sum::<u64>() + leaf.stock_sat;
        assert_eq!(tree.leaves().iter().map(sum).sum::<u64>(), total);
        completed = u64::try_from(rig.disk.advances.len()).unwrap();
    }
    (steps, completed)
}

#[test]
fn lives_with_everything() {
    let (mut steps, mut completed) = (0, 0);
    for seed in 0..20 {
        let (s, c) = std::panic::catch_unwind(|| life(seed)).unwrap_or_else(|_| panic!("seed {seed}"));
        (steps, completed) = (steps + s, completed + c);
    }
    println!("{steps} steps, {completed} advances");
    assert!(steps > 5_000 && completed > 100);
}
