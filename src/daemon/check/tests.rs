use std::time::Duration;

use super::*;
use crate::daemon::probe::RepositoryProbe;
use crate::daemon::slots::SlotTrouble;
use crate::daemon::view::Member;
use crate::daemon::view::samples::{NOW, at, backup, primary, stored, unknown, well};
use crate::error::ErrorCode;
use crate::patroni::{KnownMember, Role, SlotRules, Topology};
use crate::primary::{Host, HostName};
use crate::wal_pipeline::{SpoolLevel, WalState};

fn check(view: &ClusterView) -> Vec<Finding> {
    findings(view, &Probes::default(), at(NOW))
}

/// What Patroni tells of one member with this host and name, and of our slot: 0 ignored, 1 unknown, 2 permanent.
fn patroni(host: &str, name: &str, slot: usize) -> Topology {
    let host = Host { name: HostName::Tcp(host.to_owned()), address: None, port: 5432 };
    let (name, state) = (name.to_owned(), "running".to_owned());
    let rules = [
        SlotRules { ignored: vec![(Some("pgvault".to_owned()), None)], ..SlotRules::default() },
        SlotRules::default(),
        SlotRules { permanent: vec!["pgvault".to_owned()], ..SlotRules::default() },
    ];
    Topology {
        members: vec![KnownMember { name, host, role: Role::Leader, state, timeline: None }],
        slots: Some(rules[slot].clone()),
        ..Topology::default()
    }
}

#[test]
fn patroni_and_pgvault_agree_with_either_owner_of_the_slot() {
    let agreed = ClusterView { patroni: Some(patroni("pg1", "pg1", 0)), ..well() };
    assert_eq!(of(&check(&agreed), "patroni").status, Fine, "{:?}", of(&check(&agreed), "patroni"));
    let theirs = ClusterView { patroni: Some(patroni("pg1", "pg1", 2)), create_slot: false, ..well() };
    assert_eq!(of(&check(&theirs), "patroni").status, Fine);
}

fn of<'a>(found: &'a [Finding], name: &str) -> &'a Finding {
    found.iter().find(|finding| finding.name == name).unwrap()
}

#[test]
fn every_check_has_its_name_whatever_is_known() {
    for view in [unknown(), well()] {
        let names: Vec<&str> = check(&view).iter().map(|finding| finding.name).collect();
        assert_eq!(names, NAMES);
    }
}

#[test]
fn a_cluster_with_which_all_is_well_has_no_finding() {
    let found = check(&well());
    assert!(found.iter().all(|finding| matches!(finding.status, Fine | Skipped)), "{found:#?}");
}

#[test]
fn what_is_not_known_is_skipped_and_no_daemon_is_a_failure() {
    let found = check(&unknown());
    assert_eq!(of(&found, "streaming").status, Failed);
    assert_eq!(of(&found, "backups").status, Skipped);
    assert_eq!(of(&found, "slot").status, Skipped);
}

#[test]
fn whatever_is_wrong_says_what_to_do() {
    type Change = fn(&mut ClusterView);
    let cases: &[(&str, CheckStatus, Change)] = &[
        ("role", Failed, |view| view.members[0].rights.as_mut().unwrap().replication = false),
        ("role", Warn, |view| view.members[0].rights.as_mut().unwrap().monitor = false),
        ("wal_level", Failed, |view| view.members[0].settings.as_mut().unwrap().wal_level = Some("minimal".to_owned())),
        ("slots_and_senders", Warn, |view| {
            view.wal = None;
            view.members[0].settings.as_mut().unwrap().max_wal_senders = Some(1);
        }),
        ("slot", Warn, |view| {
            let kept = "0/3000000".parse().unwrap();
            let slot_trouble = Some(SlotTrouble::OtherBranch { slot: "pgvault".to_owned(), kept });
            view.members.push(Member { host: "pg2".to_owned(), slot_trouble, ..primary() });
        }),
        ("max_slot_wal_keep_size", Warn, |view| {
            view.members[0].settings.as_mut().unwrap().max_slot_wal_keep_size = Some(None);
        }),
        ("clock", Warn, |view| view.members[0].clock_ahead_ms = Some(-61_000)),
        ("slot", Failed, |view| view.members[0].slots = Some(Vec::new())),
        ("slot", Failed, |view| view.members[0].slots.as_mut().unwrap()[0].wal_status = Some("lost".to_owned())),
        ("slot", Warn, |view| view.members[0].slots.as_mut().unwrap()[0].wal_status = Some("unreserved".to_owned())),
        ("slot", Warn, |view| {
            view.members.push(Member {
                host: "pg2".to_owned(),
                in_recovery: Some(true),
                slots: Some(Vec::new()),
                ..primary()
            });
        }),
        ("slot", Warn, |view| view.slot = None),
        ("slot", Failed, |view| view.members[0].slots.as_mut().unwrap()[0].restart_lsn = None),
        ("slot", Failed, |view| view.members[0].slots.as_mut().unwrap()[0].physical = false),
        ("slot", Warn, |view| view.wal.as_mut().unwrap().source = Some(("pg9".to_owned(), 5432))),
        ("slot", Warn, |view| {
            let trouble = Some(SlotTrouble::Failed("all replication slots are in use".to_owned()));
            view.members.push(Member {
                host: "pg2".to_owned(),
                in_recovery: Some(true),
                slots: Some(Vec::new()),
                slot_trouble: trouble,
                ..primary()
            });
        }),
        ("max_slot_wal_keep_size", Warn, |view| {
            let mut standby = Member { host: "pg2".to_owned(), in_recovery: Some(true), ..primary() };
            standby.settings.as_mut().unwrap().max_slot_wal_keep_size = Some(None);
            view.members.push(standby);
        }),
        ("idle_replication_slot_timeout", Warn, |view| {
            let timeout = Some(Duration::from_secs(3600));
            view.members[0].settings.as_mut().unwrap().idle_replication_slot_timeout = timeout;
        }),
        ("patroni", Warn, |view| {
            view.patroni = Some(Topology { error: Some("refused".to_owned()), ..Topology::default() })
        }),
        ("patroni", Warn, |view| view.patroni = Some(patroni("pg2", "pg1", 0))),
        ("patroni", Failed, |view| view.patroni = Some(patroni("pg1", "PGVault", 0))),
        ("patroni", Failed, |view| view.patroni = Some(patroni("pg1", "pg1", 1))),
        ("patroni", Warn, |view| view.patroni = Some(patroni("pg1", "pg1", 2))),
        ("patroni", Warn, |view| {
            view.create_slot = false;
            view.patroni = Some(patroni("pg1", "pg1", 0));
        }),
        ("synchronous", Warn, |view| {
            view.members[0].settings.as_mut().unwrap().synchronous_standby_names = Some("*".to_owned());
        }),
        ("connection", Failed, |view| {
            view.members.push(primary());
            view.members.iter_mut().for_each(|member| member.in_recovery = Some(true));
        }),
        ("streaming", Failed, |view| view.wal.as_mut().unwrap().state = WalState::Connecting),
        ("streaming", Warn, |view| view.wal.as_mut().unwrap().rpo_seconds = 100.0),
        ("synchronous", Failed, |view| {
            view.synchronous = true;
            view.members[0].settings.as_mut().unwrap().synchronous_standby_names = Some(String::new());
        }),
        ("spool", Failed, |view| view.wal.as_mut().unwrap().spool_level = SpoolLevel::Full),
        ("backups", Failed, |view| view.stored = Some(stored(Vec::new()))),
        ("backups", Warn, |view| view.stored = Some(stored(vec![backup("2026-11-18T23:00:00Z")]))),
        ("backups", Failed, |view| view.stored = Some(stored(vec![backup("2026-11-10T03:00:00Z")]))),
        ("window", Failed, |view| view.stored = Some(stored(Vec::new()))),
        ("configuration", Warn, |view| view.without_effect = vec!["`backup_from` has no effect".to_owned()]),
    ];
    for (name, status, change) in cases {
        let mut view = well();
        change(&mut view);
        let found = check(&view);
        let finding = of(&found, name);
        assert_eq!(finding.status, *status, "{finding:?}");
        assert!(finding.fix.is_some(), "{finding:?}");
    }
}

#[test]
fn a_data_directory_that_is_not_read_is_a_warning_with_its_reason() {
    let check = |tried| {
        of(&findings(&well(), &Probes { data_directory: tried, ..Probes::default() }, at(NOW)), "data_directory")
            .clone()
    };
    assert_eq!(check(None).status, Skipped);
    assert_eq!(check(Some(Ok(()))).status, Fine);
    let warned = check(Some(Err("Permission denied".to_owned())));
    assert_eq!((warned.status, warned.fix.is_some()), (Warn, true));
    assert!(warned.message.contains("Permission denied"));
}

#[test]
fn a_broken_repository_fails_with_its_reason() {
    let error = Error::new(ErrorCode::RepositoryDenied, "403").help("pgvault repo check");
    let broken = ClusterView { repository_error: Some(error.clone()), ..well() };
    assert_eq!(of(&check(&broken), "repository").status, Failed);
    let probes = Probes { repository: Some(Err(error)), ..Probes::default() };
    assert_eq!(of(&findings(&well(), &probes, at(NOW)), "repository").status, Failed);
    let probe =
        RepositoryProbe { took: Duration::from_millis(41), put_if_absent: PutIfAbsent::Atomic, may_delete: false };
    let probes = Probes { repository: Some(Ok(probe)), ..Probes::default() };
    let found = findings(&well(), &probes, at(NOW));
    assert_eq!(of(&found, "repository").status, Fine);
    assert!(of(&found, "repository").message.contains("41 ms"));
}
