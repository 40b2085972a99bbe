//! Does every reader of bytes from outside survive bytes that were damaged on purpose?
//!
//! A short, repeatable run; `cargo fuzz` in fuzz/ runs the same targets for longer. `PGVAULT_FUZZ_SEED` and
//! `PGVAULT_FUZZ_ROUNDS` choose another run.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::support::fuzz_targets::{TARGETS, wal_pages};
use crate::support::mutate::Mutator;
use crate::support::pg::{PgNode, test_dir};
use crate::support::wal_truth;

const SEED: u64 = 20_261_120;
const ROUNDS: u64 = 1000;

#[test]
fn every_reader_survives_damaged_bytes() {
    for target in TARGETS {
        attack(target.name, target.run, &(target.corpus)());
    }
}

#[test]
fn the_wal_reader_survives_damaged_wal_of_a_real_server() {
    let dir = test_dir();
    let node = PgNode::init(dir.path(), "node", 18, &["--wal-segsize=1"], &[]);
    let pg_wal = node.data.join("pg_wal");
    let corpus: Vec<Vec<u8>> = wal_truth::segment_names(&pg_wal)
        .iter()
        .map(|name| fs::read(pg_wal.join(name.to_string())).unwrap())
        .flat_map(|bytes| [bytes[..40_000].to_vec(), bytes[..8192].to_vec()])
        .collect();
    attack("wal_of_a_server", wal_pages, &corpus);
}

#[test]
fn a_reader_that_panics_is_caught_with_its_seed() {
    let fragile: fn(&[u8]) = |bytes| assert!(bytes.len() < 100 || bytes[50] != 0xFF, "found it");
    let outcome = catch_unwind(|| attack("fragile", fragile, &[vec![1; 200]]));
    let message = *outcome.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("fragile") && message.contains(&format!("seed {}", seed())), "{message}");
}

#[test]
fn every_target_has_its_file_for_cargo_fuzz() {
    let fuzz = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    for target in TARGETS {
        assert!(fuzz.join(format!("fuzz_targets/{}.rs", target.name)).exists(), "{}", target.name);
        assert!(manifest.contains(&format!("name = \"{}\"", target.name)), "{}", target.name);
    }
}

fn seed() -> u64 {
    from_environment("PGVAULT_FUZZ_SEED", SEED)
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// Runs one reader on its corpus and on damaged copies of it.
fn attack(name: &str, run: fn(&[u8]), corpus: &[Vec<u8>]) {
    let seed = seed();
    for bytes in corpus {
        run(bytes);
    }
    run(&[]);
    for round in 0..from_environment("PGVAULT_FUZZ_ROUNDS", ROUNDS) {
        let bytes = Mutator::new(seed, round).mutate(corpus);
        if catch_unwind(AssertUnwindSafe(|| run(&bytes))).is_err() {
            let file = std::env::temp_dir().join(format!("pgvault-fuzz-{name}-{seed}-{round}"));
            fs::write(&file, &bytes).unwrap();
            panic!("{name} panics on {} bytes (seed {seed}, round {round}), kept in {}", bytes.len(), file.display());
        }
    }
}
