//! Exit files.
#![no_main]

use channel_factories_fuzz::{json, node};

libfuzzer_sys::fuzz_target!(|data: &[u8]| node::exit_file(data));

libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    json::mutate(data, size, max_size, seed, 0)
});
