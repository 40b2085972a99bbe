//! Whole-program tests, in one binary because linking is slow. Each module's name is the question it answers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a test says its seed and its figures")]
#![allow(clippy::disallowed_methods, reason = "tests wait for real servers, with deadlines by the real clock")]

mod support;

mod acknowledgement;
mod backup_engine;
mod backups_are_deleted;
mod backups_are_proven;
mod branches_are_kept;
mod cli_contract;
mod commit_modes;
mod commits_are_found;
mod crash;
mod daemon_memory;
mod daemon_serves;
mod damage_matrix;
mod demo_recovers;
mod disk_trouble;
mod documents;
mod encrypted_repository;
mod failover;
mod files_source;
mod format_is_readable;
mod fuzz_short;
mod gaps;
mod incremental_backups;
mod kill_nine;
mod layering;
mod local_store_survives;
mod main_job;
mod oracle_is_sharp;
mod patroni;
mod power_loss;
mod primary_connects;
mod receive;
mod recover_branches;
mod recovery_point;
mod refusals;
mod repmgr;
mod restore_delta;
mod restore_files;
mod restored_servers;
mod s3_misbehaves;
mod server_trouble;
mod slots_everywhere;
mod spool;
mod standbys;
mod storage_conformance;
mod storage_trouble;
mod suite_is_complete;
mod the_proxy_misbehaves;
mod two_daemons;
mod wal_fetch_contract;
mod wal_prefetch;
mod wal_reader;
