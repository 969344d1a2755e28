//! A script of faults for the two machines of a creation.
#![no_main]

use channel_factories_fuzz::{ceremony, memory};

libfuzzer_sys::fuzz_target!(|data: &[u8]| ceremony::run(data, memory::live));
