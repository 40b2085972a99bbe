//! SQL sessions: what pgvault asks beyond the replication protocol, with all rights and with few.

use std::time::Duration;

use pgvault::primary::SlotName;

use super::sql;
use crate::support::LIMIT;
use crate::support::pg::{PgNode, test_dir};

#[tokio::test]
async fn a_superuser_sees_and_may_do_everything() {
    let dir = test_dir();
    for major in [14, 15, 18] {
        let settings =
            [("max_slot_wal_keep_size", "1GB"), ("wal_sender_timeout", "5s"), ("synchronous_standby_names", "x")];
        let mut node = PgNode::init(dir.path(), &format!("n{major}"), major, &["--data-checksums"], &settings);
        node.start();
        let session = sql(&node.conninfo()).await.unwrap();
        assert_eq!(session.server_version().major(), major);
        assert!(session.is_open() && !session.is_in_recovery().await.unwrap());
        assert!(!session.is_encrypted().await.unwrap());
        let rights = session.rights().await.unwrap();
        assert!(rights.superuser && rights.replication && rights.monitor);

        let settings = session.settings().await.unwrap();
        assert_eq!(settings.max_slot_wal_keep_size, Some(Some(1 << 30)));
        assert_eq!(settings.wal_sender_timeout, Some(Duration::from_secs(5)));
        assert_eq!(settings.synchronous_standby_names.as_deref(), Some("x"));
        assert_eq!((settings.data_checksums, settings.wal_level.as_deref()), (Some(true), Some("replica")));
        assert_eq!((settings.max_wal_senders, settings.max_replication_slots), (Some(10), Some(10)));
        assert_eq!(settings.summarize_wal, (major >= 17).then_some(false));
        assert_eq!(settings.data_directory.as_deref(), node.data.to_str());

        let name = SlotName::new("pgvault").unwrap();
        let created = session.create_physical_slot(&name).await.unwrap().unwrap();
        let slot = session.slot(&name).await.unwrap().unwrap();
        assert_eq!((slot.restart_lsn, slot.active, slot.physical), (Some(created), false, true));
        assert_eq!(slot.wal_status.as_deref(), Some("reserved"));
        assert!(slot.safe_wal_size.unwrap() > 500_000_000);

        let point = session.create_restore_point("before").await.unwrap().unwrap();
        let switched = session.switch_wal().await.unwrap().unwrap();
        let end = session.current_lsn().await.unwrap().unwrap();
        assert!(created <= point && point <= switched && switched <= end);
        assert_eq!(session.advance_slot(&name, switched).await.unwrap(), Some(switched));
        assert_eq!(session.replication().await.unwrap(), Some(Vec::new()));
        assert!(session.create_physical_slot(&name).await.unwrap_err().is_duplicate_slot());
    }
}

#[tokio::test]
async fn a_role_with_replication_alone_gets_less_and_no_error() {
    let dir = test_dir();
    let mut node = PgNode::start_new(dir.path(), "n", 15);
    node.sql("CREATE ROLE pgvault LOGIN REPLICATION");
    let conninfo = format!("host=127.0.0.1 port={} user=pgvault", node.port);
    let session = sql(&conninfo).await.unwrap();
    let rights = session.rights().await.unwrap();
    assert!(rights.replication && !rights.superuser && !rights.monitor);
    assert_eq!(session.switch_wal().await.unwrap(), None);
    assert_eq!(session.create_restore_point("x").await.unwrap(), None);
    let settings = session.settings().await.unwrap();
    assert_eq!((settings.data_directory, settings.max_connections), (None, Some(100)));
    assert!(session.slots().await.unwrap().is_some());
    assert!(session.current_lsn().await.unwrap().is_some());

    // A tenant's function must not stand in for the system's.
    node.sql("GRANT ALL ON SCHEMA public TO PUBLIC");
    node.sql("CREATE FUNCTION public.pg_is_in_recovery() RETURNS bool LANGUAGE sql AS 'SELECT true'");
    assert!(!session.is_in_recovery().await.unwrap());

    assert!(node.stop("fast", LIMIT));
    let error = session.is_in_recovery().await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert!(!session.is_open());
}
