//! The four machines under scripts of faults: the committed seeds of the fuzz targets `ceremony` and `close`, and what
//! the fuzzer has found.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod alter;
mod ceremony;
mod close;
#[path = "../common/mod.rs"]
mod common;
mod oracle;
#[path = "../../../fuzz/replay.rs"]
mod replay;
mod script;

/// No measure of memory: that takes an allocator of its own, which the fuzz targets have.
fn unmeasured() -> usize {
    0
}

#[test]
fn seeds_of_the_creation_hold() {
    replay::each("ceremony", |bytes| ceremony::run(bytes, unmeasured));
}

#[test]
fn seeds_of_the_close_hold() {
    replay::each("close", |bytes| close::run(bytes, unmeasured));
}

/// Scripts drawn at random, the same ones every time.
#[test]
fn drawn_scripts_hold() {
    use rand::{RngCore, SeedableRng};
    let mut rng = rand::rngs::StdRng::seed_from_u64(1);
    for len in 0..40 {
        let mut bytes = vec![0; 3 * len];
        rng.fill_bytes(&mut bytes);
        ceremony::run(&bytes, unmeasured);
        close::run(&bytes, unmeasured);
    }
}

/// Honest runs of every shape, and then each fault at each of several moments of an honest run.
#[test]
#[ignore = "writes: make fuzz-seeds"]
fn write_seeds() {
    let mut creation = Vec::new();
    for clients in 0..3u8 {
        for shape in 0..4u8 {
            creation.push((format!("honest-{clients}-{shape}"), vec![clients, shape, clients % 2, 0]));
        }
    }
    let mut closing: Vec<_> = (0..6u8).map(|b| (format!("honest-{b}"), vec![b, 5 - b, b / 2, 0])).collect();
    for fault in 7..24u8 {
        for moment in [0u8, 2, 4] {
            let name = format!("fault-{fault:02}-{moment}");
            // Deliveries, the fault at client 1 with some choices, more deliveries, the fault once more.
            let steps =
                [0, 0, 10 * moment + 3, 0, 0, fault, 1, moment % 2, 1, moment, fault, 0, 0, 7, 1, 0, 3];
            let again = [fault, 0, 1, 2, moment, 1];
            creation.push((name.clone(), [&[1, moment % 3, 0, 0][..], &steps, &again].concat()));
            closing.push((name, [&[4, 3, 5, 0][..], &steps, &again].concat()));
        }
    }
    replay::write("ceremony", &creation);
    replay::write("close", &closing);
}
