//! Timelines: promotion while we stream, history files, and starting points that cannot be.

use pgvault::error::ErrorCode;
use pgvault::primary::{PgError, StreamEvent, WalStream};
use wal::{Lsn, TimelineHistory, TimelineId};

use super::connect;
use crate::support::LIMIT;
use crate::support::pg::{PgNode, test_dir};

const SEGMENT: u64 = 16 << 20;

fn segment_start(lsn: Lsn) -> Lsn {
    Lsn::new(lsn.as_u64() & !(SEGMENT - 1))
}

fn tli(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

/// Reads to a terminal event; it and where the WAL ended.
async fn to_the_end(stream: &mut WalStream, start: Lsn) -> (StreamEvent<'static>, Lsn) {
    let mut position = start;
    loop {
        match stream.next().await.unwrap() {
            StreamEvent::Wal { start, data, .. } => position = start.saturating_add(data.len() as u64),
            StreamEvent::Keepalive { .. } => {}
            StreamEvent::EndOfTimeline { next, switch_point } => {
                return (StreamEvent::EndOfTimeline { next, switch_point }, position);
            }
            StreamEvent::Stopped => return (StreamEvent::Stopped, position),
            StreamEvent::ServerShutdown => return (StreamEvent::ServerShutdown, position),
        }
    }
}

#[tokio::test]
async fn a_promotion_ends_the_timeline_and_names_the_next() {
    for major in [14, 15, 18] {
        let dir = test_dir();
        let mut primary = PgNode::start_new(dir.path(), "p", major);
        let mut standby = primary.make_standby(dir.path(), "s");
        standby.start();
        let mut connection = connect(&standby).await;
        assert!(connection.in_recovery().await.unwrap());
        let start = segment_start(connection.identify_system().await.unwrap().flush_lsn);
        let mut stream = connection.start_replication(None, start, TimelineId::FIRST).await.unwrap();
        primary.sql("CREATE TABLE t AS SELECT generate_series(1, 1000)");
        assert!(primary.stop("fast", LIMIT));
        let promoting = std::thread::spawn(move || {
            standby.promote();
            standby
        });
        let (event, end) = to_the_end(&mut stream, start).await;
        let StreamEvent::EndOfTimeline { next, switch_point } = event else { panic!("{event:?}") };
        let standby = promoting.join().unwrap();
        assert_eq!((next, end), (tli(2), switch_point), "PostgreSQL {major}");

        // The same connection goes on with the history and the next timeline.
        let mut connection = stream.into_connection().unwrap();
        let (name, content) = connection.timeline_history(next).await.unwrap();
        assert_eq!(name, "00000002.history");
        let history = TimelineHistory::parse(next, &content).unwrap();
        assert_eq!(history.switch_point_of(TimelineId::FIRST), Some(switch_point));
        let error = connection.timeline_history(tli(9)).await.unwrap_err();
        assert!(error.is_wal_removed(), "{error}");
        standby.sql("CREATE TABLE u AS SELECT generate_series(1, 1000)");
        let from = segment_start(switch_point);
        let mut stream = connection.start_replication(None, from, next).await.unwrap();
        let mut position = from;
        while position <= switch_point {
            if let StreamEvent::Wal { start, data, .. } = stream.next().await.unwrap() {
                assert_eq!(start, position);
                position = start.saturating_add(data.len() as u64);
            }
        }

        // The end of the old timeline, asked for again: at its start, and right at its end.
        for from in [start, switch_point] {
            let mut again = connect(&standby).await.start_replication(None, from, TimelineId::FIRST).await.unwrap();
            let (event, _) = to_the_end(&mut again, from).await;
            assert_eq!(event, StreamEvent::EndOfTimeline { next, switch_point }, "from {from}");
            assert!(again.into_connection().is_some());
        }
        // Beyond the fork the old timeline is not this server's history.
        let beyond = switch_point.saturating_add(SEGMENT);
        let error = connect(&standby).await.start_replication(None, beyond, TimelineId::FIRST).await.unwrap_err();
        assert!(error.to_string().contains("not in this server's history"), "{error}");
        assert!(!error.is_transient());
    }
}

#[tokio::test]
async fn wal_that_is_gone_or_not_there_yet_is_an_error_of_the_stream() {
    for major in [14, 15, 18] {
        let dir = test_dir();
        let mut node = PgNode::init(
            dir.path(),
            "n",
            major,
            &["--wal-segsize=1"],
            &[("min_wal_size", "2MB"), ("max_wal_size", "4MB")],
        );
        node.start();
        let start = connect(&node).await.identify_system().await.unwrap().flush_lsn;
        let start = Lsn::new(start.as_u64() & !((1 << 20) - 1));
        for _ in 0..8 {
            node.sql("SELECT pg_logical_emit_message(false, 'x', 'y')");
            node.sql("SELECT pg_switch_wal()");
        }
        node.sql("CHECKPOINT");
        let mut stream = connect(&node).await.start_replication(None, start, TimelineId::FIRST).await.unwrap();
        let error = stream.next().await.unwrap_err();
        assert!(error.is_wal_removed(), "{error}");
        assert_eq!(error.explain("cannot stream WAL of main").code(), ErrorCode::WalLost);

        let ahead = Lsn::new(1 << 40);
        let error = match connect(&node).await.start_replication(None, ahead, TimelineId::FIRST).await {
            Ok(mut stream) => stream.next().await.unwrap_err(),
            Err(error) => error,
        };
        assert!(matches!(error, PgError::Server(_)) && error.to_string().contains("ahead"), "{error}");
        let error = connect(&node).await.start_replication(None, start, tli(7)).await.unwrap_err();
        assert!(matches!(error, PgError::Server(_)), "{error}");
    }
}
