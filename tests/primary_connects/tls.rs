//! TLS: every sslmode against the right and the wrong certificates.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use pgvault::error::ErrorCode;
use pgvault::primary::PgError;

use super::certificates::{Authority, install};
use super::{sql, try_connect};
use crate::support::pg::{PgNode, give_to_server_user, test_dir};

/// Whether the session of this conninfo is encrypted, as the server sees it.
async fn encrypted(conninfo: &str) -> bool {
    let session = sql(conninfo).await.unwrap_or_else(|error| panic!("{conninfo}: {error}"));
    session.is_encrypted().await.unwrap()
}

async fn refused(conninfo: &str) -> PgError {
    try_connect(conninfo).await.err().unwrap_or_else(|| panic!("{conninfo}: must not connect"))
}

struct Setup {
    _dir: tempfile::TempDir,
    node: PgNode,
    authority: Authority,
    other: Authority,
}

const FOR_LOCALHOST: &str = "subjectAltName = DNS:localhost, IP:127.0.0.1\n";

fn setup(major: u32) -> Setup {
    let dir = test_dir();
    let authority = Authority::new(dir.path(), "good");
    let other = Authority::new(dir.path(), "other");
    let mut node = PgNode::init(dir.path(), "n", major, &[], &[("ssl", "on")]);
    install(&node.data, &authority.sign("server", "localhost", FOR_LOCALHOST));
    node.start();
    Setup { _dir: dir, node, authority, other }
}

impl Setup {
    fn hba(&self, text: &str) {
        fs::write(
            self.node.data.join("pg_hba.conf"),
            format!("local all all trust\nlocal replication all trust\n{text}"),
        )
        .unwrap();
        self.reload();
    }

    fn reload(&self) {
        super::reload(&self.node);
    }

    fn conninfo(&self, rest: &str) -> String {
        format!("host=localhost hostaddr=127.0.0.1 port={} user=postgres {rest}", self.node.port)
    }
}

#[tokio::test]
async fn each_sslmode_takes_and_refuses_what_libpq_takes_and_refuses() {
    let setup = setup(15);
    let (good, bad) = (setup.authority.certificate(), setup.other.certificate());
    let (good, bad) = (good.display(), bad.display());
    // Plain text is allowed as well: the client decides.
    setup.hba("host all all 127.0.0.1/32 trust\nhost replication all 127.0.0.1/32 trust\n");
    assert!(!encrypted(&setup.conninfo("sslmode=disable")).await);
    assert!(!encrypted(&setup.conninfo("sslmode=allow")).await);
    assert!(encrypted(&setup.conninfo("sslmode=prefer")).await);
    assert!(encrypted(&setup.conninfo("")).await, "prefer is the default");
    assert!(encrypted(&setup.conninfo("sslmode=require")).await);
    assert!(encrypted(&setup.conninfo(&format!("sslmode=require sslrootcert={good}"))).await);
    assert!(encrypted(&setup.conninfo(&format!("sslmode=verify-ca sslrootcert={good}"))).await);
    assert!(encrypted(&setup.conninfo(&format!("sslmode=verify-full sslrootcert={good}"))).await);
    for version in ["1.2", "1.3"] {
        let words = format!(
            "sslmode=verify-full sslrootcert={good} ssl_min_protocol_version=TLSv{version} ssl_max_protocol_version=TLSv{version}"
        );
        assert!(encrypted(&setup.conninfo(&words)).await, "{version}");
    }
    let by_address =
        format!("host=127.0.0.1 port={} user=postgres sslmode=verify-full sslrootcert={good}", setup.node.port);
    assert!(encrypted(&by_address).await, "the certificate names the address too");

    // The wrong authority, a wrong name, no authority.
    for mode in ["require", "verify-ca", "verify-full"] {
        let error = refused(&setup.conninfo(&format!("sslmode={mode} sslrootcert={bad}"))).await;
        assert!(matches!(error, PgError::Tls { .. }), "{mode}: {error}");
        assert_eq!(error.code(), ErrorCode::ConnectionRefused);
    }
    let other_name = format!("host=pg1.example hostaddr=127.0.0.1 port={} user=postgres", setup.node.port);
    assert!(encrypted(&format!("{other_name} sslmode=verify-ca sslrootcert={good}")).await);
    let error = refused(&format!("{other_name} sslmode=verify-full sslrootcert={good}")).await;
    assert!(matches!(error, PgError::Tls { .. }), "{error}");
    for mode in ["verify-ca", "verify-full"] {
        let error = refused(&setup.conninfo(&format!("sslmode={mode}"))).await;
        assert!(error.to_string().contains("needs a root certificate"), "{error}");
    }
    let error = refused(&setup.conninfo("sslmode=require sslrootcert=/nowhere/root.crt")).await;
    assert!(error.to_string().contains("/nowhere/root.crt"), "{error}");

    // A server that insists on TLS, and one that insists on plain text.
    setup.hba("hostssl all all 127.0.0.1/32 trust\nhostssl replication all 127.0.0.1/32 trust\n");
    assert!(encrypted(&setup.conninfo("sslmode=allow")).await);
    let error = refused(&setup.conninfo("sslmode=disable")).await;
    assert!(matches!(&error, PgError::Refused(refusal) if !refusal.encrypted), "{error}");
    setup.hba("hostnossl all all 127.0.0.1/32 trust\nhostnossl replication all 127.0.0.1/32 trust\n");
    assert!(!encrypted(&setup.conninfo("sslmode=prefer")).await);
    assert!(matches!(refused(&setup.conninfo("sslmode=require")).await, PgError::Refused(_)));

    // On the unix socket sslmode means nothing.
    let socket =
        format!("host={} port={} user=postgres sslmode=verify-full", setup.node.run.display(), setup.node.port);
    assert!(!encrypted(&socket).await);
}

#[tokio::test]
async fn a_server_without_tls_is_refused_when_tls_is_required() {
    let dir = test_dir();
    let node = PgNode::start_new(dir.path(), "n", 15);
    let error = refused(&format!("{} sslmode=require", node.conninfo())).await;
    assert!(error.to_string().contains("does not do TLS"), "{error}");
    assert!(try_connect(&format!("{} sslmode=prefer", node.conninfo())).await.is_ok());
}

#[tokio::test]
async fn certificates_as_the_manual_makes_them_are_usable() {
    let setup = setup(18);
    setup.hba("hostssl all all 127.0.0.1/32 trust\nhostssl replication all 127.0.0.1/32 trust\n");
    let good = setup.authority.certificate();
    // No alternative name: the common name counts, as in libpq.
    install(&setup.node.data, &setup.authority.sign("cn", "localhost", "basicConstraints = CA:FALSE\n"));
    setup.reload();
    let words = format!("sslmode=verify-full sslrootcert={}", good.display());
    assert!(encrypted(&setup.conninfo(&words)).await);
    let wrong = format!("host=pg1.example hostaddr=127.0.0.1 port={} user=postgres {words}", setup.node.port);
    assert!(matches!(refused(&wrong).await, PgError::Tls { .. }));
    // Self-signed, and itself the root certificate.
    let own = Authority::new(good.parent().unwrap(), "localhost");
    let (certificate, key) = (own.certificate(), own.certificate().with_extension("key"));
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    install(&setup.node.data, &(certificate.clone(), key));
    setup.reload();
    assert!(encrypted(&setup.conninfo(&format!("sslmode=verify-full sslrootcert={}", certificate.display()))).await);
    assert!(matches!(refused(&setup.conninfo(&words)).await, PgError::Tls { .. }));
    // X.509 version 1: usable where it is not checked, refused with a reason where it is.
    install(&setup.node.data, &setup.authority.sign("v1", "localhost", ""));
    setup.reload();
    assert!(encrypted(&setup.conninfo("sslmode=require")).await);
    let error = refused(&setup.conninfo(&words)).await;
    assert!(error.to_string().contains("version 3"), "{error}");
    // TLS from the first byte, from 17 on.
    install(&setup.node.data, &setup.authority.sign("server2", "localhost", FOR_LOCALHOST));
    setup.reload();
    assert!(encrypted(&setup.conninfo(&format!("{words} sslnegotiation=direct"))).await);
}

#[tokio::test]
async fn a_client_certificate_is_shown_and_its_key_must_be_private() {
    let setup = setup(15);
    let root: PathBuf = setup.node.data.join("root.crt");
    fs::copy(setup.authority.certificate(), &root).unwrap();
    give_to_server_user(&root);
    setup.node.configure(&[("ssl_ca_file", "root.crt")]);
    setup.hba("hostssl all all 127.0.0.1/32 cert\nhostssl replication all 127.0.0.1/32 cert\n");
    let (certificate, key) = setup.authority.sign("client", "postgres", "basicConstraints = CA:FALSE\n");
    let words = format!("sslmode=require sslcert={} sslkey={}", certificate.display(), key.display());
    assert!(try_connect(&setup.conninfo(&words)).await.is_ok());
    let error = refused(&setup.conninfo("sslmode=require")).await;
    assert_eq!(error.code(), ErrorCode::ConnectionRefused, "{error}");
    let (strange, strange_key) = setup.other.sign("client", "postgres", "basicConstraints = CA:FALSE\n");
    let strange = format!("sslmode=require sslcert={} sslkey={}", strange.display(), strange_key.display());
    refused(&setup.conninfo(&strange)).await;
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let error = refused(&setup.conninfo(&words)).await;
    assert!(error.to_string().contains("mode 0600"), "{error}");
    let missing = format!("sslmode=require sslcert={} sslkey=/nowhere/key", certificate.display());
    assert!(refused(&setup.conninfo(&missing)).await.to_string().contains("/nowhere/key"));
}
