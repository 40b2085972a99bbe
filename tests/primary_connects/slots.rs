//! Slots over the replication protocol.

use pgvault::primary::SlotName;
use wal::TimelineId;

use super::{connect, sql};
use crate::support::pg::{PgNode, test_dir};

#[tokio::test]
async fn a_slot_is_created_with_wal_reserved_read_and_dropped() {
    let dir = test_dir();
    for major in [14, 15, 18] {
        let node = PgNode::start_new(dir.path(), &format!("n{major}"), major);
        let mut connection = connect(&node).await;
        let name = SlotName::new("1pg_vault").unwrap();
        connection.create_physical_slot(&name).await.unwrap();
        let restart = node.sql("SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = '1pg_vault'");
        let restart = restart.parse().expect("a slot that reserves WAL has a restart_lsn");
        let error = connection.create_physical_slot(&name).await.unwrap_err();
        assert!(error.is_duplicate_slot(), "{error}");

        if major >= 15 {
            let position = connection.read_slot(&name).await.unwrap().unwrap();
            assert_eq!(position.restart_lsn, Some(restart));
            assert_eq!(position.restart_timeline, Some(TimelineId::FIRST));
        } else {
            assert!(matches!(connection.read_slot(&name).await.unwrap_err().sqlstate(), Some("0A000" | "42601")));
        }
        let session = sql(&node.conninfo()).await.unwrap();
        assert_eq!(session.slot(&name).await.unwrap().unwrap().restart_lsn, Some(restart));

        connection.drop_slot(&name).await.unwrap();
        assert!(connection.drop_slot(&name).await.unwrap_err().is_missing_slot());
        if major >= 15 {
            assert_eq!(connection.read_slot(&name).await.unwrap(), None);
        }
    }
}

#[tokio::test]
async fn a_slot_that_another_receiver_uses_is_refused() {
    let dir = test_dir();
    let node = PgNode::start_new(dir.path(), "n", 15);
    let name = SlotName::new("pgvault").unwrap();
    let mut first = connect(&node).await;
    first.create_physical_slot(&name).await.unwrap();
    let start = first.identify_system().await.unwrap().flush_lsn;
    let _stream = first.start_replication(Some(&name), start, TimelineId::FIRST).await.unwrap();
    let error = connect(&node).await.start_replication(Some(&name), start, TimelineId::FIRST).await.unwrap_err();
    assert!(error.is_slot_in_use() && error.is_transient(), "{error}");
    assert!(connect(&node).await.drop_slot(&name).await.unwrap_err().is_slot_in_use());
    let absent = SlotName::new("absent").unwrap();
    let error = connect(&node).await.start_replication(Some(&absent), start, TimelineId::FIRST).await.unwrap_err();
    assert!(error.is_missing_slot(), "{error}");
}
