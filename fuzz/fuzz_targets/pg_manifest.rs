#![no_main]
#[path = "../../tests/support/fuzz_targets.rs"]
mod fuzz_targets;
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz_targets::run("pg_manifest", bytes));
