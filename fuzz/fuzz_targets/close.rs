//! A script of faults for the two machines of a close.
#![no_main]

use channel_factories_fuzz::{close, memory};

libfuzzer_sys::fuzz_target!(|data: &[u8]| close::run(data, memory::live));
