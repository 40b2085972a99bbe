//! WAL streams: every byte, every way to end.

use std::fs;

use pgvault::clock::{Clock, SystemClock};
use pgvault::primary::{PgError, SlotName, StatusUpdate, StreamEvent, WalStream};
use wal::{Lsn, PgTime, SegmentName, SegmentSize, TimelineId};

use super::connect;
use crate::support::LIMIT;
use crate::support::pg::{PgNode, test_dir};

fn now() -> PgTime {
    SystemClock.now().into()
}

fn caught_up(lsn: Lsn) -> StatusUpdate {
    StatusUpdate { write: lsn, flush: lsn, apply: lsn, reply_requested: false }
}

/// Reads until `end`, answering keepalives; the bytes from `start` on.
async fn read_until(stream: &mut WalStream, start: Lsn, end: Lsn) -> Vec<u8> {
    let mut bytes: Vec<u8> = Vec::new();
    loop {
        let position = start.saturating_add(bytes.len() as u64);
        if position >= end {
            return bytes;
        }
        let reply = match stream.next().await.unwrap() {
            StreamEvent::Wal { start: at, data, .. } => {
                assert_eq!(at, position, "WAL must be contiguous");
                bytes.extend(data);
                false
            }
            StreamEvent::Keepalive { reply_requested, .. } => reply_requested,
            other => panic!("the stream ended early: {other:?}"),
        };
        if reply {
            stream.send_status(caught_up(position), now()).await.unwrap();
        }
    }
}

#[tokio::test]
async fn streamed_segments_are_the_servers_own_bytes() {
    for major in [14, 15, 18] {
        let dir = test_dir();
        let mut node = PgNode::init(dir.path(), "n", major, &["--wal-segsize=1"], &[("wal_keep_size", "256MB")]);
        node.start();
        let mut connection = connect(&node).await;
        let slot = SlotName::new("pgvault").unwrap();
        connection.create_physical_slot(&slot).await.unwrap();
        let size = connection.wal_segment_size().await.unwrap();
        assert_eq!(size, SegmentSize::new(1 << 20).unwrap());
        let system = connection.identify_system().await.unwrap();
        assert_eq!(connection.server_version().major(), major);

        let start = Lsn::new(system.flush_lsn.as_u64() & !((1 << 20) - 1));
        let mut stream = connection.start_replication(Some(&slot), start, TimelineId::FIRST).await.unwrap();
        let output = node.tool("pgbench").args(["-i", "-s", "3", "-q"]).output().unwrap();
        assert!(output.status.success());
        node.sql("SELECT pg_switch_wal()");
        let end: Lsn = node.sql("SELECT pg_current_wal_flush_lsn()").parse().unwrap();
        let end = Lsn::new(end.as_u64() & !((1 << 20) - 1));
        let bytes = read_until(&mut stream, start, end).await;

        let mut compared = 0;
        for (index, segment) in bytes.chunks_exact(1 << 20).enumerate() {
            let at = start.saturating_add(index as u64 * (1 << 20));
            let name = SegmentName::containing(TimelineId::FIRST, at, size).to_string();
            let file = fs::read(node.data.join("pg_wal").join(&name)).unwrap();
            assert!(file == segment, "{name} of PostgreSQL {major} differs");
            compared += 1;
        }
        assert!(compared > 10, "only {compared} segments were compared");
        stream.stop().await.unwrap();
        loop {
            match stream.next().await.unwrap() {
                StreamEvent::Stopped => break,
                StreamEvent::Wal { .. } | StreamEvent::Keepalive { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        let mut connection = stream.into_connection().unwrap();
        assert_eq!(connection.identify_system().await.unwrap().system_identifier, system.system_identifier);
    }
}

#[tokio::test]
async fn a_server_that_stops_ends_the_stream_as_soon_as_everything_is_acknowledged() {
    let dir = test_dir();
    let mut node = PgNode::start_new(dir.path(), "n", 15);
    let mut connection = connect(&node).await;
    let start = connection.identify_system().await.unwrap().flush_lsn;
    let start = Lsn::new(start.as_u64() & !((16 << 20) - 1));
    let mut stream = connection.start_replication(None, start, TimelineId::FIRST).await.unwrap();
    let stopping = std::thread::spawn(move || {
        let ended = node.stop("fast", LIMIT);
        (node, ended)
    });
    let mut position = start;
    loop {
        match stream.next().await.unwrap() {
            StreamEvent::Wal { start, data, .. } => position = start.saturating_add(data.len() as u64),
            StreamEvent::Keepalive { reply_requested: true, .. } => {
                stream.send_status(caught_up(position), now()).await.unwrap();
            }
            StreamEvent::Keepalive { .. } => {}
            StreamEvent::ServerShutdown => break,
            other => panic!("{other:?}"),
        }
    }
    let (_node, ended) = stopping.join().unwrap();
    assert!(ended, "the server waits for us");
    assert!(matches!(stream.next().await, Err(PgError::Protocol(_))));
    assert!(stream.into_connection().is_none());
}
