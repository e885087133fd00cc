//! `cargo fuzz run log_meta`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = oast_coordinator::decoders::log_meta(bytes);
});
