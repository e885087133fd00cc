//! `cargo fuzz run peer_batch`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = oast_coordinator::decoders::peer_batch(bytes);
});
