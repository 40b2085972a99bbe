//! After failovers of an HA manager: is a restore to the end what the surviving primary is?

use std::path::Path;

use super::ledger::Ledger;
use super::oracle::{acknowledged_and_missing, compare};
use super::pg::{PgNode, give_to_server_user};
use super::pgvault::Pgvault;
use super::restored::wait_promoted;
use super::scene::wait_stored;

/// Restores to the end and compares with the primary, whose writers have ended. Contiguity must be proven: no gap on any
/// timeline. Whether every acknowledged commit must be there is up to PostgreSQL: with synchronous replication, or after clean
/// switchovers, it is.
#[track_caller]
pub fn nothing_is_lost(pgvault: &Pgvault, ledger: &Ledger, primary: &PgNode, dir: &Path, all_survive: bool) {
    wait_stored(pgvault, primary);
    let (code, window) = pgvault.json(&["window", "main"]);
    assert_eq!(code, 0, "{window}");
    assert_eq!(window["gaps"].as_array().map(Vec::len), Some(0), "contiguity is proven: {window}");
    let mut restored = PgNode::at(dir, "restored", primary.major);
    pgvault.ok(["recover", "main", "--latest", "--to", restored.data.to_str().unwrap()]);
    let file = |name: &str| restored.data.join(name).to_str().unwrap().to_owned();
    let (hba, ident) = (file("pg_hba.conf"), file("pg_ident.conf"));
    restored.configure(&[
        // An HA manager may have written paths of the member that was backed up.
        ("hba_file", &hba),
        ("ident_file", &ident),
        ("shared_preload_libraries", ""),
        // Nobody stands by for what was restored: its first commit would wait for ever.
        ("synchronous_standby_names", ""),
        // Not less than the primary's, or recovery refuses to begin.
        ("max_wal_senders", "20"),
        ("max_replication_slots", "20"),
    ]);
    give_to_server_user(&restored.data.join("postgresql.conf"));
    restored.start();
    wait_promoted(&restored);
    let verdict = compare(&restored, primary);
    assert!(verdict.is_exact(), "{verdict}\n{}", restored.log());
    let lost = acknowledged_and_missing(ledger, &restored);
    assert!(!all_survive || lost.is_empty(), "acknowledged and not there: {lost:?}");
    println!(
        "{} commits acknowledged, {} rows restored, {} lost by asynchronous failover",
        ledger.attempts().iter().filter(|attempt| attempt.acknowledged.is_some()).count(),
        verdict.found,
        lost.len(),
    );
}
