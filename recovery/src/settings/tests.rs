use std::collections::BTreeMap;

use wal::{Lsn, PgTime, SegmentSize, SystemIdentifier, TimelineHistory, TimelineId, TimelinePath};

use super::{
    RecoverySettings, RestoreCommand, Setting, SettingsError, SignalFile, StandbySettings, has_password,
    recovery_settings, recovery_targets_in, rewrite_auto_conf, without_recovery,
};
use crate::{
    Backup, BackupKind, BackupStatus, FileSource, RecoveryPlan, RecoveryTarget, StopAt, TargetAction, required_wal,
};

fn plan(stop: StopAt, inclusive: bool, action: TargetAction) -> RecoveryPlan {
    let timeline = TimelineId::new(11).unwrap();
    let path = TimelinePath::new(&TimelineHistory::root(timeline), SegmentSize::DEFAULT);
    RecoveryPlan {
        target: RecoveryTarget::Latest,
        inclusive,
        backup: Backup {
            id: "20261119T020512-3f2a".parse().unwrap(),
            status: BackupStatus::Ok,
            kind: BackupKind::Full,
            source: FileSource::Stream,
            system_identifier: SystemIdentifier::new(1),
            postgres_version: 150_018,
            timeline,
            start_lsn: Lsn::new(1),
            stop_lsn: Lsn::new(2),
            started_at: PgTime::from_micros(0),
            stopped_at: PgTime::from_micros(0),
            size_bytes: 0,
            stored_bytes: 0,
            new_bytes: 0,
            files: 0,
            tablespaces: Vec::new(),
            keep: false,
            damaged: false,
            annotations: BTreeMap::new(),
            server_settings: BTreeMap::new(),
        },
        timeline,
        stop,
        stop_inclusive: inclusive,
        action,
        boundary: Lsn::new(3),
        commit_before: None,
        commit_after: None,
        wal: required_wal(Lsn::new(1), Lsn::new(2), &path, SegmentSize::DEFAULT),
        wal_end: Lsn::new(3),
        notes: Vec::new(),
    }
}

fn command() -> RestoreCommand {
    RestoreCommand {
        program: "/usr/bin/pgvault".to_owned(),
        config: None,
        arguments: Vec::new(),
        cluster: "main".to_owned(),
        timeline: None,
        until: None,
    }
}

fn lines(stop: StopAt, inclusive: bool, action: TargetAction) -> Vec<String> {
    let settings = recovery_settings(&plan(stop, inclusive, action), &command(), None, &[]).unwrap();
    assert_eq!(settings.signal, SignalFile::Recovery);
    settings.settings.iter().skip(1).map(ToString::to_string).collect()
}

#[test]
fn each_target_is_written_in_postgresqls_words() {
    let time: PgTime = "2026-11-20T05:22:36.114Z".parse().unwrap();
    let timeline = "recovery_target_timeline = '11'";
    let table: [(StopAt, &[&str]); 6] = [
        (StopAt::EndOfWal, &[]),
        (StopAt::Consistency, &["recovery_target_action = 'pause'", "recovery_target = 'immediate'"]),
        (
            StopAt::Time(time),
            &[
                "recovery_target_inclusive = 'off'",
                "recovery_target_action = 'pause'",
                "recovery_target_time = '2026-11-20 05:22:36.114000+00'",
            ],
        ),
        (
            StopAt::Lsn(Lsn::new(0x16_0000_00FF)),
            &["recovery_target_inclusive = 'off'", "recovery_target_action = 'pause'", "recovery_target_lsn = '16/FF'"],
        ),
        (
            StopAt::Xid(77),
            &["recovery_target_inclusive = 'off'", "recovery_target_action = 'pause'", "recovery_target_xid = '77'"],
        ),
        (
            StopAt::Name("it's a \\ name".to_owned()),
            &["recovery_target_action = 'pause'", "recovery_target_name = 'it''s a \\\\ name'"],
        ),
    ];
    for (stop, expected) in table {
        let expected: Vec<&str> = [timeline].into_iter().chain(expected.iter().copied()).collect();
        assert_eq!(lines(stop, false, TargetAction::Pause), expected);
    }
}

#[test]
fn the_restore_command_is_quoted_for_the_shell_and_for_postgresql() {
    let command = RestoreCommand {
        program: "/opt/my tools/pgvault".to_owned(),
        config: Some("/etc/it's 100%/pgvault.toml".to_owned()),
        timeline: TimelineId::new(2),
        until: Some(Lsn::new(0x10)),
        ..command()
    };
    assert_eq!(
        command.to_string(),
        "'/opt/my tools/pgvault' -c '/etc/it'\\''s 100%%/pgvault.toml' wal fetch --timeline 2 --until 0/10 main %f \"%p\""
    );
    let setting = Setting { name: "restore_command".to_owned(), value: command.to_string() };
    assert!(setting.to_string().contains("'''/opt/my tools/pgvault'' -c ''/etc/it''\\\\''''s"), "{setting}");
}

#[test]
fn a_standby_follows_the_latest_timeline_and_keeps_no_password() {
    let plan = plan(StopAt::EndOfWal, true, TargetAction::Promote);
    let standby = StandbySettings {
        primary_conninfo: "host=pg2 user=rep passfile=/var/lib/pg/.pgpass".to_owned(),
        slot: Some("standby_1".to_owned()),
    };
    let settings = recovery_settings(&plan, &command(), Some(&standby), &[]).unwrap();
    assert_eq!(settings.signal.file_name(), "standby.signal");
    let lines: Vec<String> = settings.settings.iter().skip(1).map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "primary_conninfo = 'host=pg2 user=rep passfile=/var/lib/pg/.pgpass'",
            "primary_slot_name = 'standby_1'",
            "recovery_target_timeline = 'latest'",
        ]
    );
    let leaky = StandbySettings { primary_conninfo: "host=pg2 password = x".to_owned(), slot: None };
    assert_eq!(recovery_settings(&plan, &command(), Some(&leaky), &[]), Err(SettingsError::PasswordInConninfo));
}

#[test]
fn passwords_are_found_in_every_form_of_connection_string() {
    let table = [
        ("host=a password=x", true),
        ("password='a b' host=a", true),
        ("PASSWORD =x", true),
        ("user='a' sslpassword=x", true),
        ("postgresql://u:p@h/db", true),
        ("postgres://h/db?user=u&password=x", true),
        ("host=a passfile=/x", false),
        ("postgresql://u@h:5432/db?sslmode=require", false),
        ("host=password user=x", false),
        ("", false),
    ];
    for (conninfo, expected) in table {
        assert_eq!(has_password(conninfo), expected, "{conninfo}");
    }
}

#[test]
fn options_replace_settings_but_never_the_target() {
    let plan = plan(StopAt::EndOfWal, true, TargetAction::Promote);
    let option = |name: &str, value: &str| [(name.to_owned(), value.to_owned())];
    let settings =
        recovery_settings(&plan, &command(), None, &option("Restore_Command", "cp /wal/%f %p")).unwrap().settings;
    assert_eq!(settings.iter().filter(|setting| setting.name == "restore_command").count(), 1);
    assert_eq!(settings.last().unwrap().value, "cp /wal/%f %p");
    let refused = |name| recovery_settings(&plan, &command(), None, &option(name, "x")).unwrap_err();
    assert_eq!(refused("recovery_target_time"), SettingsError::Decided("recovery_target_time".to_owned()));
    assert!(matches!(refused("a b"), SettingsError::NotAParameter(_)));
    assert!(matches!(refused("x\n"), SettingsError::NotAParameter(_)));
}

#[test]
fn stale_recovery_settings_go_and_all_others_stay() {
    let settings = RecoverySettings {
        settings: vec![Setting { name: "restore_command".to_owned(), value: "new".to_owned() }],
        signal: SignalFile::Recovery,
    };
    let before = b"# Do not edit this file manually!\nwork_mem = '64MB'\n\
        restore_command = 'old'\nPRIMARY_CONNINFO='host=x password=y'\nrecovery_target_xid 5\nx.y = '\xe9'\n";
    let after = rewrite_auto_conf(before, &settings);
    let text = String::from_utf8_lossy(&after);
    assert!(text.starts_with("# Do not edit this file manually!\nwork_mem = '64MB'\n"), "{text}");
    for gone in ["old", "PRIMARY_CONNINFO", "recovery_target_xid"] {
        assert!(!text.contains(gone), "{text}");
    }
    assert!(after.windows(7).any(|w| w == b"y = '\xe9'"), "bytes are kept");
    assert!(text.contains("restore_command = 'new'\n"), "{text}");
    assert_eq!(rewrite_auto_conf(&after, &settings), after, "a second recovery replaces the block of the first");
    let cleared = without_recovery(&after);
    assert!(
        text.as_bytes().starts_with(&cleared[..40]) && !String::from_utf8_lossy(&cleared).contains("restore_command")
    );
    assert_eq!(rewrite_auto_conf(b"", &settings).iter().filter(|&&b| b == b'\n').count(), 3);
}

#[test]
fn targets_of_other_files_are_emptied_before_ours_is_set() {
    let conf = b"#recovery_target_xid = '1'\nrecovery_target_name = 'x' # old\nrecovery_target_time = ''\nRecovery_Target='immediate'\n";
    assert_eq!(recovery_targets_in(conf), ["recovery_target", "recovery_target_name"]);
    let mut settings =
        recovery_settings(&plan(StopAt::Name("n".to_owned()), true, TargetAction::Pause), &command(), None, &[])
            .unwrap();
    settings.clear_targets(&recovery_targets_in(conf));
    let text: Vec<String> = settings.settings.iter().map(ToString::to_string).collect();
    assert_eq!(text[0], "recovery_target = ''");
    assert_eq!(text.last().unwrap(), "recovery_target_name = 'n'");
    assert_eq!(text.iter().filter(|line| line.starts_with("recovery_target_name ")).count(), 1);
}
