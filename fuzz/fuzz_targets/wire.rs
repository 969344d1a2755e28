//! Bytes of a peer: bLIP-56 messages, our payloads, TLV streams.
#![no_main]

use channel_factories_fuzz::{memory, wire};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let ((), peak) = memory::peak(|| wire::run(data));
    // Decoded twice and encoded once: in all a small multiple of what the peer paid for.
    assert!(peak <= 64 * data.len() + (16 << 10), "{peak} bytes of memory for {} bytes", data.len());
});
