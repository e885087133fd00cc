//! `cargo fuzz run backup`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = oast_coordinator::decoders::backup(bytes);
});
