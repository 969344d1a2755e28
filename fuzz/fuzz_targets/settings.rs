//! Config files, and the environment behind a NUL.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        channel_factories_fuzz::settings(text);
    }
});
