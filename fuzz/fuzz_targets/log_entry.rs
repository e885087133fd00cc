//! `cargo fuzz run log_entry`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = oast_coordinator::decoders::log_entry(bytes);
});
