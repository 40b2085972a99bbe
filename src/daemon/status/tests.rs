use super::*;
use crate::daemon::view::samples::{NOW, at, backup, stored, unknown, well};
use crate::error::{Error, ErrorCode};
use crate::wal_pipeline::{Fact, WalState};

fn of(view: &ClusterView) -> ClusterStatus {
    status(view, at(NOW))
}

#[test]
fn a_cluster_with_which_all_is_well_is_ok() {
    let status = of(&well());
    assert_eq!((status.state, status.reasons.len()), (State::Ok, 0), "{:?}", status.reasons);
    assert_eq!(status.postgres_version.as_deref(), Some("17.5"));
    assert_eq!(status.wal.lag_bytes, Some(0x48));
    assert_eq!(status.slots[0].retained_bytes, Some(0x148));
    assert_eq!(status.backups.count, 1);
    assert_eq!(status.window.to, Some(PgTime::from(at(NOW))));
}

#[test]
fn what_is_wrong_decides_the_state() {
    type Change = fn(&mut ClusterView);
    let cases: &[(State, Change)] = &[
        (State::Warning, |view| view.wal = None),
        (State::Warning, |view| view.wal.as_mut().unwrap().state = WalState::Connecting),
        (State::Critical, |view| {
            view.wal.as_mut().unwrap().state = WalState::Connecting;
            view.down_since = Some(at("2026-11-20T11:55:00Z"));
        }),
        (State::Critical, |view| view.wal.as_mut().unwrap().state = WalState::Diverged),
        (State::Critical, |view| view.wal.as_mut().unwrap().slot_lost = Some("gone".to_owned())),
        (State::Critical, |view| view.wal.as_mut().unwrap().spool_level = SpoolLevel::Full),
        (State::Warning, |view| view.wal.as_mut().unwrap().rpo_seconds = 100.0),
        (State::Critical, |view| view.stored = Some(stored(Vec::new()))),
        (State::Warning, |view| view.stored = Some(stored(vec![backup("2026-11-10T03:00:00Z")]))),
        (State::Critical, |view| view.repository_error = Some(Error::new(ErrorCode::RepositoryDenied, "403"))),
        (State::Warning, |view| view.backup.last_error = Some(Error::new(ErrorCode::PostgresFailed, "lost"))),
    ];
    for (number, (state, change)) in cases.iter().enumerate() {
        let mut view = well();
        change(&mut view);
        let status = of(&view);
        assert_eq!(status.state, *state, "case {number}: {:?}", status.reasons);
        assert!(!status.reasons.is_empty());
    }
}

#[test]
fn the_document_has_every_member_of_the_interface() {
    for view in [unknown(), well()] {
        let document = serde_json::to_value(of(&view)).unwrap();
        for key in [
            "name",
            "state",
            "system_identifier",
            "lineage",
            "postgres_version",
            "timeline",
            "primary",
            "wal",
            "slots",
            "window",
            "backups",
            "failovers",
            "fork_tails",
        ] {
            assert!(document.get(key).is_some(), "{key}");
        }
        for key in [
            "streaming",
            "received_lsn",
            "flushed_lsn",
            "archived_lsn",
            "shipped_lsn",
            "lag_bytes",
            "rpo_seconds",
            "spool_segments",
            "spool_bytes",
        ] {
            assert!(document["wal"].get(key).is_some(), "{key}");
        }
        assert!(document["window"].get("gaps").is_some() && document["backups"].get("last").is_some());
    }
    assert_eq!(serde_json::to_value(of(&well())).unwrap()["wal"]["received_lsn"], "0/5000148");
}

#[test]
fn wal_that_came_after_the_listing_makes_a_backup_usable_and_moves_the_end() {
    let mut view = well();
    let mut waiting = backup("2026-11-20T11:59:00Z");
    waiting.status = BackupStatus::WaitingForWal;
    view.stored = Some(stored(vec![waiting]));
    assert_eq!(backup_list(&view)[0].status, BackupStatus::Ok);
    view.wal.as_mut().unwrap().shipped = Some(Lsn::new(0x200_0000));
    view.wal.as_mut().unwrap().archived = Some(Lsn::new(0x200_0000));
    assert_eq!(backup_list(&view)[0].status, BackupStatus::WaitingForWal);

    let later = PgTime::from(at("2026-11-20T12:00:05Z"));
    view.wal.as_mut().unwrap().last_archived_commit = Some(Fact { lsn: Lsn::new(0x500_0100), time: later });
    assert_eq!(of(&view).window.to, Some(later));
    assert_eq!(backup_list(&view)[0].recoverable_to, Some(later));
}

#[test]
fn a_running_backup_is_listed_last() {
    let mut view = well();
    view.backup.running =
        Some(RunningBackup { started_at: at(NOW), phase: "copy".to_owned(), ..RunningBackup::default() });
    let list = backup_list(&view);
    assert_eq!((list.len(), list[1].status), (2, BackupStatus::Running));
    assert_eq!(of(&view).backups.running.unwrap().phase, "copy");
}
