#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vmnetx_fuzz::migration_stream(data));
