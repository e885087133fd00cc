//! `cargo fuzz run snapshot_file`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = oast_coordinator::decoders::snapshot_file(bytes);
});
