//! Networks that cut, stall and garble.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use pgvault::clock::{Clock, SystemClock};
use pgvault::primary::{
    BackupEvent, BaseBackupOptions, CheckpointMode, ConnectOptions, PgError, ReplicationConnection, StatusUpdate,
    StreamEvent,
};
use wal::{Lsn, TimelineId};

use super::{options, try_connect};
use crate::support::LIMIT;
use crate::support::pg::{PgNode, test_dir};
use crate::support::proxy::{Direction, Proxy};

fn through(proxy: &Proxy) -> String {
    format!("host=127.0.0.1 port={} user=postgres", proxy.port())
}

#[tokio::test]
async fn a_silent_stream_times_out_and_can_be_waited_for_again() {
    let dir = test_dir();
    let node = PgNode::start_new(dir.path(), "n", 15);
    let proxy = Proxy::start(node.port);
    let mut options = options(&through(&proxy));
    options.deadlines.silence = Duration::from_millis(300);
    let mut connection = ReplicationConnection::connect(&options).await.unwrap();
    let start = connection.identify_system().await.unwrap().flush_lsn;
    let start = Lsn::new(start.as_u64() & !((16 << 20) - 1));
    let mut stream = connection.start_replication(None, start, TimelineId::FIRST).await.unwrap();
    loop {
        match stream.next().await {
            Ok(_) => {}
            Err(PgError::Timeout { .. }) => break,
            Err(other) => panic!("{other}"),
        }
    }
    // Alive after all: a status update that asks for a reply brings a keepalive.
    let status = StatusUpdate { write: start, flush: start, apply: start, reply_requested: true };
    stream.send_status(status, SystemClock.now().into()).await.unwrap();
    let deadline = Instant::now() + LIMIT;
    loop {
        match stream.next().await {
            Ok(StreamEvent::Keepalive { .. } | StreamEvent::Wal { .. }) => break,
            Err(PgError::Timeout { .. }) => assert!(Instant::now() < deadline, "no reply"),
            other => panic!("{other:?}"),
        }
    }
    // Dead: the network swallows everything.
    proxy.stall_both(true);
    stream.send_status(status, SystemClock.now().into()).await.unwrap();
    loop {
        match stream.next().await {
            Ok(_) => {}
            Err(error) => {
                assert!(matches!(error, PgError::Timeout { .. }) && error.is_transient(), "{error}");
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_cut_in_the_middle_of_a_message_is_the_end_of_the_stream() {
    let dir = test_dir();
    let node = PgNode::start_new(dir.path(), "n", 15);
    let proxy = Proxy::start(node.port);
    let mut connection = try_connect(&through(&proxy)).await.unwrap();
    let start = connection.identify_system().await.unwrap().flush_lsn;
    let start = Lsn::new(start.as_u64() & !((16 << 20) - 1));
    node.sql("CREATE TABLE t AS SELECT generate_series(1, 100000)");
    proxy.cut_after(Direction::ToClient, 300_001);
    let mut stream = connection.start_replication(None, start, TimelineId::FIRST).await.unwrap();
    let error = loop {
        match stream.next().await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error, PgError::Io { .. }) && error.is_transient(), "{error}");
    assert!(matches!(stream.next().await, Err(PgError::Protocol(_))));
}

#[tokio::test]
async fn a_cut_backup_is_an_error_and_never_finished() {
    let dir = test_dir();
    let node = PgNode::start_new(dir.path(), "n", 15);
    let proxy = Proxy::start(node.port);
    let connection = try_connect(&through(&proxy)).await.unwrap();
    proxy.cut_after(Direction::ToClient, 5_000_003);
    let mut request = BaseBackupOptions::new("cut");
    request.checkpoint = CheckpointMode::Fast;
    let mut stream = connection.base_backup(&request).await.unwrap();
    loop {
        match stream.next().await {
            Ok(BackupEvent::Finished { .. }) => panic!("a cut backup must not finish"),
            Ok(_) => {}
            Err(error) => {
                assert!(matches!(error, PgError::Io { .. }), "{error}");
                break;
            }
        }
    }
}

/// A connection in spite of short deadlines: on a busy machine not every attempt makes them.
async fn connected(options: &ConnectOptions) -> ReplicationConnection {
    let deadline = Instant::now() + LIMIT;
    loop {
        match ReplicationConnection::connect(options).await {
            Ok(connection) => return connection,
            Err(error) => assert!(error.is_transient() && Instant::now() < deadline, "{error}"),
        }
    }
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up_in_time() {
    let dir = test_dir();
    let node = PgNode::start_new(dir.path(), "n", 15);
    let proxy = Proxy::start(node.port);
    proxy.stall(Direction::ToClient, true);
    let mut options = options(&format!("{} connect_timeout=1", through(&proxy)));
    let error = ReplicationConnection::connect(&options).await.unwrap_err();
    assert!(matches!(error, PgError::Unreachable { .. }) && error.is_transient(), "{error}");
    assert!(error.to_string().contains("no connection within 1 s"), "{error}");
    // A second host takes over.
    let both = format!("host=127.0.0.1,127.0.0.1 port={},{} user=postgres connect_timeout=1", proxy.port(), node.port);
    assert_eq!(connected(&self::options(&both)).await.host().port, node.port);
    // After the connection stands, each command has its deadline; and what was abandoned is not mistaken for an answer.
    proxy.heal();
    options.deadlines.reply = Duration::from_millis(300);
    let mut connection = connected(&options).await;
    proxy.stall(Direction::ToClient, true);
    assert!(matches!(connection.show("port").await, Err(PgError::Timeout { .. })));
    proxy.heal();
    assert!(matches!(connection.show("wal_level").await, Err(PgError::Protocol(_))));
}

#[tokio::test]
async fn the_positions_on_the_wire_are_the_ones_that_were_given() {
    let dir = test_dir();
    let node = PgNode::start_new(dir.path(), "n", 15);
    let sent = Arc::new(Mutex::new(Vec::new()));
    let recorder = Arc::clone(&sent);
    let proxy = Proxy::start_tapped(node.port, move |_, direction, bytes: &[u8]| {
        if direction == Direction::ToServer {
            recorder.lock().unwrap().extend_from_slice(bytes);
        }
    });
    let mut connection = try_connect(&format!("{} sslmode=disable", through(&proxy))).await.unwrap();
    let start = connection.identify_system().await.unwrap().flush_lsn;
    let (mut reader, writer) = connection.start_replication(None, start, TimelineId::FIRST).await.unwrap().split();
    let status = StatusUpdate { write: Lsn::new(3), flush: Lsn::new(2), apply: Lsn::INVALID, reply_requested: true };
    writer.send_status(|| (status, wal::PgTime::from_micros(77))).await.unwrap();
    // The reply proves that the server has read it.
    while !matches!(reader.next().await.unwrap(), StreamEvent::Keepalive { .. }) {}
    let expected = status.encode(wal::PgTime::from_micros(77));
    assert!(sent.lock().unwrap().ends_with(&expected));
    // Without waiting, from wherever one is.
    assert!(writer.try_send_status(|| (status, wal::PgTime::from_micros(79))).unwrap());
    while !matches!(reader.next().await.unwrap(), StreamEvent::Keepalive { .. }) {}
    assert!(sent.lock().unwrap().ends_with(&status.encode(wal::PgTime::from_micros(79))));
    writer.stop().await.unwrap();
    while reader.next().await.unwrap() != StreamEvent::Stopped {}
    // The stream is over: a late report goes nowhere.
    let before = sent.lock().unwrap().len();
    writer.send_status(|| (status, wal::PgTime::from_micros(78))).await.unwrap();
    assert!(writer.try_send_status(|| (status, wal::PgTime::from_micros(78))).unwrap());
    let mut connection = reader.into_connection().unwrap();
    connection.identify_system().await.unwrap();
    assert_eq!(sent.lock().unwrap().len(), before + "Q....IDENTIFY_SYSTEM\0".len());
}

/// A server that answers every connection with these bytes and then only listens.
fn hostile_server(answer: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            // Whether the client takes it all is its affair.
            drop(stream.write_all(answer));
            let mut sink = [0; 1024];
            while let Ok(1..) = stream.read(&mut sink) {}
        }
    });
    port
}

#[tokio::test]
async fn hostile_greetings_are_errors() {
    let greetings: [&[u8]; 9] = [
        b"R\x7f\xff\xff\xff",
        b"R\0\0\0\0",
        b"R\xff\xff\xff\xff",
        b"R\0\0\0\x05\0",
        b"R\0\0\0\x08\0\0\0\x63",
        b"R\0\0\0\x0c\0\0\0\x0aSCR\0",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"Z\0\0\0\x05I",
        b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I",
    ];
    for greeting in greetings {
        let port = hostile_server(greeting);
        let conninfo = format!("host=127.0.0.1 port={port} user=u password=x sslmode=disable connect_timeout=60");
        let error = try_connect(&conninfo).await.unwrap_err();
        assert!(matches!(error, PgError::Protocol(_) | PgError::Auth { .. }), "{greeting:?}: {error}");
    }
    let port = hostile_server(b"SNNN");
    let error = try_connect(&format!("host=127.0.0.1 port={port} user=u sslmode=require connect_timeout=60"))
        .await
        .unwrap_err();
    assert!(matches!(error, PgError::Tls { .. }), "{error}");
}

#[tokio::test]
async fn a_server_before_14_is_refused_and_one_after_18_is_warned_about() {
    let old = hostile_server(b"R\0\0\0\x08\0\0\0\0S\0\0\0\x19server_version\x0013.20\0Z\0\0\0\x05I");
    let words = "user=u sslmode=disable connect_timeout=60";
    let error = try_connect(&format!("host=127.0.0.1 port={old} {words}")).await.unwrap_err();
    assert_eq!(error.to_string(), "PostgreSQL 13.20 is not supported: pgvault needs 14 or later");
    let new = hostile_server(b"R\0\0\0\x08\0\0\0\0S\0\0\0\x19server_version\x0019rc1\0Z\0\0\0\x05I");
    let connection = try_connect(&format!("host=127.0.0.1 port={new} {words}")).await.unwrap();
    assert!(connection.version_warning().unwrap().contains("newer"));
}
