//! A process that dies at every step, and starts again from its disk.

use factory_core::advance::*;

use crate::aborts::{again, cases, made};
use crate::rules;
use crate::world::{policy, Rig};

fn at_each_step(crash: impl Fn(&mut Rig)) {
    for case in cases() {
        let request = case.3.clone();
        let base = made(&case);
        for steps in 0.. {
            let mut rig = base.fork();
            rig.start(request.clone()).unwrap();
            let mut taken = 0;
            while taken < steps && rig.step(0) {
                taken += 1;
            }
            crash(&mut rig);
            rules::signatures(&rig.disk, &rig.disks);
            rig.run();
            rules::signatures(&rig.disk, &rig.disks);
            // Whoever has a try pending has heard of its end.
            for (i, client) in rig.clients.iter().enumerate() {
                let newest = rig.position(i);
                let pending = client.pending().iter().any(|p| p.record.path.updates == newest);
                assert!(!pending, "client {i} was not told of the complete state");
            }
            again(&mut rig, &request);
            if taken < steps {
                break;
            }
        }
    }
}

#[test]
fn the_provider_dies() {
    at_each_step(Rig::restart_lsp);
}

#[test]
fn a_client_dies() {
    at_each_step(|rig| rig.restart_client(1));
}

#[test]
fn both_die() {
    at_each_step(|rig| {
        rig.restart_client(1);
        rig.restart_lsp();
    });
}

/// The disk is slow: the write is there or not when the process dies, and its acknowledgement never came.
#[test]
fn an_unacknowledged_write_is_good_enough() {
    for case in cases() {
        let request = case.3.clone();
        for crash_lsp in [false, true] {
            let mut rig = made(&case);
            rig.rules.gone.clear();
            let before = rig.disk.advances.len();
            rig.acknowledge = false;
            rig.start(request.clone()).unwrap();
            rig.run();
            // Nobody went on without the disk.
            assert!(rig.rules.gone.is_empty() && rig.disk.advances.len() == before);
            rig.acknowledge = true;
            if crash_lsp {
                rig.restart_lsp();
            }
            rig.restart_client(1);
            rig.run();
            again(&mut rig, &request);
        }
    }
}

#[test]
fn a_state_of_another_factory_or_version_is_refused() {
    let rig = made(&cases().remove(1));
    let state = rig.disks[1].state.clone().unwrap();
    let with = |state: ClientAdvanceState, secret: [u8; 32]| {
        let record = rig.disks[1].newest().clone();
        let policy = policy();
        let config = ClientAdvanceConfig { record, state: Some(state), secret_key: secret, policy };
        let mut rng: rand::rngs::StdRng = rand::SeedableRng::seed_from_u64(3);
        ClientAdvance::new(config, &mut rng).map(|_| ())
    };
    let own = crate::common::secret("factory", 1);
    assert!(with(state.clone(), own).is_ok());
    assert!(with(state.clone(), crate::common::secret("factory", 0)).is_err());
    assert!(with(ClientAdvanceState { version: 2, ..state.clone() }, own).is_err());
    assert!(with(ClientAdvanceState { instance_id: [9; 32], ..state }, own).is_err());
    let advance = rig.disk.advances[0].clone();
    for damaged in [
        LspAdvanceRecord { version: 2, ..advance.clone() },
        LspAdvanceRecord { instance_id: [9; 32], ..advance.clone() },
        LspAdvanceRecord { position: 0, ..advance.clone() },
        LspAdvanceRecord { leaves: vec![], ..advance.clone() },
        LspAdvanceRecord { channel_scripts: vec![], ..advance.clone() },
    ] {
        assert!(NewestTree::new(&rig.disk.record, &[damaged]).is_err());
    }
    // The same advance twice.
    assert!(NewestTree::new(&rig.disk.record, &[advance.clone(), advance]).is_err());
}
