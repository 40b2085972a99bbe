#![no_main]
#[path = "../../tests/support/fuzz_targets.rs"]
#[allow(dead_code, reason = "one target of many")]
mod fuzz_targets;
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz_targets::run("patroni", bytes));
