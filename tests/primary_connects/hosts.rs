//! Several hosts, sockets, roles of servers.

use pgvault::error::ErrorCode;
use pgvault::primary::{PgError, ReplicationConnection, TargetSessionAttrs};

use super::{connect, options, sql, try_connect};
use crate::support::LIMIT;
use crate::support::pg::{PgNode, free_port, test_dir};

#[tokio::test]
async fn tcp_and_unix_sockets_both_lead_to_the_server() {
    let dir = test_dir();
    for major in [14, 15, 18] {
        let node = PgNode::start_new(dir.path(), &format!("n{major}"), major);
        let by_socket = format!("host={} port={} user=postgres", node.run.display(), node.port);
        for conninfo in [node.conninfo(), by_socket, format!("postgresql://postgres@localhost:{}", node.port)] {
            let mut connection = try_connect(&conninfo).await.unwrap();
            assert_eq!(connection.server_version().major(), major);
            assert_eq!(connection.version_warning(), None);
            assert!(!connection.in_recovery().await.unwrap());
            assert_eq!(connection.show("max_wal_senders").await.unwrap(), "10");
            assert_eq!(connection.show("application_name").await.unwrap(), "pgvault_test");
        }
        let named = format!("{} application_name=mine", node.conninfo());
        assert_eq!(try_connect(&named).await.unwrap().show("application_name").await.unwrap(), "mine");
    }
}

#[tokio::test]
async fn a_command_that_fails_leaves_the_connection_usable() {
    let dir = test_dir();
    let node = PgNode::start_new(dir.path(), "n", 15);
    let mut connection = connect(&node).await;
    let error = connection.show("no_such_setting").await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("42704"));
    assert!(connection.show("x; DROP TABLE t").await.is_err());
    assert_eq!(connection.show("wal_level").await.unwrap(), "replica");
}

#[tokio::test]
async fn the_first_host_that_suits_is_taken() {
    let dir = test_dir();
    let mut primary = PgNode::start_new(dir.path(), "p", 15);
    let mut standby = primary.make_standby(dir.path(), "s");
    standby.start();
    let (dead, p, s) = (free_port(), primary.port, standby.port);
    let to =
        |ports: &str, words: &str| format!("host=127.0.0.1,127.0.0.1,127.0.0.1 port={ports} user=postgres {words}");
    let cases = [
        (format!("{dead},{s},{p}"), "", s),
        (format!("{dead},{s},{p}"), "target_session_attrs=any", s),
        (format!("{dead},{s},{p}"), "target_session_attrs=primary", p),
        (format!("{dead},{s},{p}"), "target_session_attrs=read-write", p),
        (format!("{dead},{p},{s}"), "target_session_attrs=standby", s),
        (format!("{dead},{p},{s}"), "target_session_attrs=read-only", s),
        (format!("{dead},{p},{s}"), "target_session_attrs=prefer-standby", s),
        (format!("{p},{dead},{dead}"), "target_session_attrs=prefer-standby", p),
    ];
    for (ports, words, expected) in cases {
        let conninfo = to(&ports, words);
        let mut connection = try_connect(&conninfo).await.unwrap_or_else(|error| panic!("{conninfo}: {error}"));
        assert_eq!(connection.host().port, expected, "{conninfo}");
        assert_eq!(connection.in_recovery().await.unwrap(), expected == s);
        assert_eq!(sql(&conninfo).await.unwrap().host().port, expected, "{conninfo}");
    }
    // One host by its number, whatever its role.
    let mut one = options(&to(&format!("{dead},{s},{p}"), "target_session_attrs=primary"));
    one.host = Some(1);
    assert_eq!(ReplicationConnection::connect(&one).await.unwrap().host().port, s);
    let renamed = one.conninfo.clone().with_target_session_attrs(TargetSessionAttrs::Standby);
    assert_eq!(renamed.target_session_attrs(), TargetSessionAttrs::Standby);

    assert!(primary.stop("fast", LIMIT));
    let error = try_connect(&to(&format!("{dead},{s},{p}"), "target_session_attrs=primary")).await.unwrap_err();
    let PgError::NoSuitableHost { failures, .. } = &error else { panic!("{error}") };
    assert_eq!(failures.len(), 3);
    assert!(matches!(failures[1].error, PgError::WrongRole { in_recovery: true, .. }));
    let explained = error.explain("cannot stream WAL of main");
    assert_eq!(explained.code(), ErrorCode::NoPrimary);
    assert!(explained.to_string().contains(&format!("127.0.0.1:{s} is a standby")), "{explained}");
    assert!(error.is_transient());
}

#[tokio::test]
async fn a_host_that_is_not_there_is_told_by_name() {
    let port = free_port();
    let error = try_connect(&format!("host=127.0.0.1 port={port} user=u")).await.unwrap_err();
    assert!(matches!(error, PgError::Unreachable { .. }), "{error}");
    assert!(error.to_string().starts_with(&format!("cannot reach 127.0.0.1:{port}")), "{error}");
    let error = try_connect("host=/nowhere port=1 user=u").await.unwrap_err();
    assert!(error.to_string().contains("/nowhere/.s.PGSQL.1"), "{error}");
    let error = try_connect("host=no-such-host.invalid user=u").await.unwrap_err();
    assert!(error.to_string().contains("cannot resolve the name"), "{error}");
}
