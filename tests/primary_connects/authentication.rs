//! Passwords: what is proven, what is refused, and that no error shows them.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use pgvault::error::ErrorCode;
use pgvault::primary::{Environment, PgError, ReplicationConnection};

use super::certificates::{Authority, install};
use super::{options_in, reload, sql, try_connect};
use crate::support::pg::{PgNode, test_dir};

const PASSWORD: &str = "hunter2 ä's";
const QUOTED: &str = r"'hunter2 ä\'s'";

/// A server with TLS, whose role `pgvault` has a password that is stored by this method.
fn server(dir: &std::path::Path, major: u32, stored: &str, asked: &str) -> PgNode {
    let authority = Authority::new(dir, "ca");
    let mut node = PgNode::init(dir, "n", major, &[], &[("ssl", "on"), ("password_encryption", stored)]);
    install(&node.data, &authority.sign("server", "localhost", "subjectAltName = DNS:localhost\n"));
    node.start();
    node.sql("CREATE ROLE pgvault LOGIN REPLICATION PASSWORD 'hunter2 ä''s'");
    node.sql("CREATE ROLE nobody LOGIN PASSWORD 'hunter2 ä''s'");
    let hba = format!(
        "local all all trust\nhost all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 {asked}\n\
         host replication pgvault,nobody 127.0.0.1/32 {asked}\n"
    );
    fs::write(node.data.join("pg_hba.conf"), hba).unwrap();
    reload(&node);
    node
}

fn conninfo(node: &PgNode, rest: &str) -> String {
    format!("host=127.0.0.1 port={} user=pgvault {rest}", node.port)
}

async fn refused(conninfo: &str) -> PgError {
    let error = try_connect(conninfo).await.err().unwrap_or_else(|| panic!("{conninfo}: must not connect"));
    let shown = format!("{error} {error:?} {:?}", error.explain("cannot stream WAL of main"));
    assert!(!shown.contains("hunter2"), "{shown}");
    error
}

#[tokio::test]
async fn scram_works_with_and_without_channel_binding() {
    let dir = test_dir();
    let node = server(dir.path(), 15, "scram-sha-256", "scram-sha-256");
    let words = [
        "sslmode=disable",
        "sslmode=require",
        "sslmode=require channel_binding=require",
        "sslmode=require channel_binding=disable",
        "sslmode=require channel_binding=require ssl_max_protocol_version=TLSv1.2",
        "sslmode=require require_auth=scram-sha-256",
    ];
    for words in words {
        let conninfo = conninfo(&node, &format!("password={QUOTED} {words}"));
        try_connect(&conninfo).await.unwrap_or_else(|error| panic!("{words}: {error}"));
        let session =
            sql(&format!("{conninfo} dbname=postgres")).await.unwrap_or_else(|error| panic!("{words}: {error}"));
        assert!(session.rights().await.unwrap().replication);
    }
    let error = refused(&conninfo(
        &node,
        &format!("password={QUOTED} sslmode=prefer channel_binding=require require_auth=none"),
    ))
    .await;
    assert!(matches!(error, PgError::Auth { .. }), "{error}");
    // Without TLS there is nothing to bind to.
    let plain = format!("postgresql://pgvault:x@127.0.0.1:{}/?channel_binding=require&sslmode=allow", node.port);
    assert!(refused(&plain).await.to_string().contains("needs TLS"));
}

#[tokio::test]
async fn a_wrong_or_missing_password_is_an_error_that_does_not_show_it() {
    let dir = test_dir();
    let node = server(dir.path(), 15, "scram-sha-256", "scram-sha-256");
    let error = refused(&conninfo(&node, "password='hunter2 wrong'")).await;
    assert_eq!((error.code(), error.sqlstate()), (ErrorCode::ConnectionRefused, Some("28P01")), "{error}");
    assert!(!error.is_transient());
    let help = error.explain("cannot stream WAL of main").help_lines().join("\n");
    assert!(help.contains(".pgpass"), "{help}");
    // Among several hosts, the one that turns us away is what a person must hear of.
    let among = format!(
        "host=127.0.0.1,127.0.0.1 port={},{} user=pgvault password=wrong",
        crate::support::pg::free_port(),
        node.port
    );
    let error_among = refused(&among).await;
    assert_eq!(error_among.code(), ErrorCode::ConnectionRefused, "{error_among}");
    assert_eq!(error_among.explain("x").help_lines(), error.explain("x").help_lines());
    let error = refused(&conninfo(&node, "")).await;
    assert_eq!(error.code(), ErrorCode::ConnectionRefused);
    assert!(error.to_string().contains("none is given"), "{error}");
}

#[tokio::test]
async fn weak_authentication_is_taken_part_in_only_when_asked_for() {
    for (stored, asked) in [("md5", "md5"), ("scram-sha-256", "password")] {
        let dir = test_dir();
        let node = server(dir.path(), 15, stored, asked);
        let password = format!("password={QUOTED}");
        let error = refused(&conninfo(&node, &password)).await;
        assert!(error.to_string().contains(&format!("require_auth={asked}")), "{error}");
        try_connect(&conninfo(&node, &format!("{password} require_auth={asked}"))).await.unwrap();
        refused(&conninfo(&node, &format!("{password} require_auth=scram-sha-256"))).await;
        refused(&conninfo(&node, &format!("{password} require_auth={asked} channel_binding=require sslmode=require")))
            .await;
    }
}

#[tokio::test]
async fn a_server_that_asks_for_nothing_is_refused_when_something_is_required() {
    let dir = test_dir();
    let node = PgNode::start_new(dir.path(), "n", 15);
    try_connect(&node.conninfo()).await.unwrap();
    for words in ["require_auth=scram-sha-256", "require_auth=!none"] {
        let error = refused(&format!("{} {words}", node.conninfo())).await;
        assert!(error.to_string().contains("asks for no authentication"), "{error}");
    }
    refused(&format!("{} channel_binding=require", node.conninfo())).await;
}

#[tokio::test]
async fn a_missing_line_in_pg_hba_and_a_missing_right_are_told_with_their_remedy() {
    let dir = test_dir();
    for major in [14, 18] {
        let base = dir.path().join(major.to_string());
        fs::create_dir(&base).unwrap();
        let node = server(&base, major, "scram-sha-256", "scram-sha-256");
        let password = format!("password={QUOTED} sslmode=disable");
        let error = refused(&format!("host=127.0.0.1 port={} user=stranger {password}", node.port)).await;
        let PgError::Refused(refusal) = &error else { panic!("{error}") };
        assert_eq!(refusal.error.sqlstate.as_str(), "28000");
        let explained = error.explain("cannot stream WAL of main");
        assert_eq!(explained.code(), ErrorCode::ConnectionRefused);
        let help = explained.help_lines().join("\n");
        assert!(help.contains("host replication stranger 127.0.0.1/32 scram-sha-256"), "{help}");
        assert!(help.contains("SELECT pg_reload_conf()"), "{help}");

        let error = refused(&format!("host=127.0.0.1 port={} user=nobody {password}", node.port)).await;
        let explained = error.explain("cannot stream WAL of main");
        assert_eq!(explained.code(), ErrorCode::NoReplicationRight, "{explained}");
        assert!(explained.help_lines().join("\n").contains("ALTER ROLE nobody REPLICATION;"), "{explained}");
    }
}

#[tokio::test]
async fn passwords_come_from_the_password_file_and_the_service_file_and_are_read_again() {
    let dir = test_dir();
    let node = server(dir.path(), 15, "scram-sha-256", "scram-sha-256");
    let passfile = dir.path().join("pass");
    let write = |password: &str| {
        fs::write(&passfile, format!("127.0.0.1:{}:replication:pgvault:{password}\n", node.port)).unwrap();
        fs::set_permissions(&passfile, fs::Permissions::from_mode(0o600)).unwrap();
    };
    write(PASSWORD);
    let service = dir.path().join("service.conf");
    let text = format!("[main]\nhost=127.0.0.1\nport={}\nuser=pgvault\npassfile={}\n", node.port, passfile.display());
    fs::write(&service, text).unwrap();
    let environment =
        Environment::from_variables([("PGSERVICE", "main"), ("PGSERVICEFILE", service.to_str().unwrap())]);
    let options = options_in("", &environment);
    ReplicationConnection::connect(&options).await.unwrap();
    node.sql("ALTER ROLE pgvault PASSWORD 'rotated'");
    let error = ReplicationConnection::connect(&options).await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("28P01"));
    write("rotated");
    ReplicationConnection::connect(&options).await.unwrap();
    fs::set_permissions(&passfile, fs::Permissions::from_mode(0o644)).unwrap();
    let error = ReplicationConnection::connect(&options).await.unwrap_err();
    assert!(error.to_string().contains("chmod 0600"), "{error}");
}
