//! Base backups: both wire forms as the same events.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::Command;

use pgvault::primary::{BackupEvent, BaseBackupOptions, CheckpointMode, PgError};
use wal::Lsn;

use super::connect;
use crate::support::LIMIT;
use crate::support::pg::{PgNode, give_to_server_user, test_dir};

fn fast() -> BaseBackupOptions {
    let mut options = BaseBackupOptions::new("pgvault's test");
    options.checkpoint = CheckpointMode::Fast;
    options
}

/// Names in a tar archive, as `tar` reads them.
fn tar_names(path: &std::path::Path) -> String {
    let output = Command::new("tar").arg("tf").arg(path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn a_backup_with_a_tablespace_arrives_whole_from_every_major() {
    for major in 14..=18 {
        let dir = test_dir();
        let node = PgNode::start_new(dir.path(), "n", major);
        let tablespace = dir.path().join("ts");
        std::fs::create_dir(&tablespace).unwrap();
        give_to_server_user(&tablespace);
        node.sql(&format!("CREATE TABLESPACE ts LOCATION '{}'", tablespace.display()));
        node.sql("CREATE TABLE t TABLESPACE ts AS SELECT generate_series(1, 10000) AS i");
        let oid: u32 = node.sql("SELECT oid FROM pg_tablespace WHERE spcname = 'ts'").parse().unwrap();

        let mut stream = connect(&node).await.base_backup(&fast()).await.unwrap();
        let (mut archives, mut manifest, mut start, mut total) = (Vec::new(), Vec::new(), Lsn::INVALID, 0);
        let mut file: Option<File> = None;
        let mut progress = 0;
        let (stop, timeline) = loop {
            match stream.next().await.unwrap() {
                BackupEvent::Started { start_lsn, tablespaces, base_size, .. } => {
                    start = start_lsn;
                    assert_eq!(tablespaces.len(), 1, "{major}");
                    assert_eq!(tablespaces[0].oid, oid);
                    assert_eq!(tablespaces[0].location, tablespace.to_str().unwrap().as_bytes());
                    assert!(tablespaces[0].size.unwrap() > 300_000);
                    assert!(base_size.unwrap() > 10_000_000);
                }
                BackupEvent::Archive { tablespace } => {
                    archives.push(tablespace);
                    file = Some(File::create(dir.path().join(format!("{}.tar", archives.len()))).unwrap());
                }
                BackupEvent::Data(bytes) => {
                    assert!(!bytes.is_empty() && manifest.is_empty());
                    total += bytes.len() as u64;
                    file.as_mut().unwrap().write_all(bytes).unwrap();
                }
                BackupEvent::Manifest(bytes) => manifest.extend_from_slice(bytes),
                BackupEvent::Progress(bytes) => progress = bytes,
                BackupEvent::Finished { stop_lsn, timeline } => break (stop_lsn, timeline),
            }
        };
        assert_eq!(archives, [Some(oid), None], "{major}");
        assert_eq!(timeline.get(), 1);
        assert!(start < stop);
        if major >= 15 {
            assert_eq!(progress, total, "{major}");
        }
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        assert!(manifest["Files"].as_array().unwrap().len() > 500);
        assert_eq!(manifest["Files"][0]["Checksum-Algorithm"], "CRC32C");
        assert!(tar_names(&dir.path().join("1.tar")).contains("PG_"));
        let names = tar_names(&dir.path().join("2.tar"));
        for name in ["backup_label", "tablespace_map", "PG_VERSION", "global/pg_control"] {
            assert!(names.lines().any(|line| line == name), "{name} of {major}");
        }
        // One whole archive more than what the end marker needs: both blocks must be there.
        let bytes = std::fs::read(dir.path().join("2.tar")).unwrap();
        assert!(bytes.ends_with(&[0; 1024]));
        assert!(matches!(stream.next().await, Err(PgError::Protocol(_))));
    }
}

#[tokio::test]
async fn a_damaged_page_fails_the_backup_after_all_of_it_was_sent_unless_verification_is_off() {
    for major in [14, 18] {
        let dir = test_dir();
        let mut node = PgNode::init(dir.path(), "n", major, &["--data-checksums"], &[]);
        node.start();
        node.sql("CREATE TABLE t AS SELECT generate_series(1, 10000) AS i");
        let path = node.sql("SELECT pg_relation_filepath('t')");
        assert!(node.stop("fast", LIMIT));
        let file = OpenOptions::new().write(true).open(node.data.join(&path)).unwrap();
        file.write_all_at(b"damaged", 8192 + 4000).unwrap();
        node.start();

        let mut stream = connect(&node).await.base_backup(&fast()).await.unwrap();
        let mut manifest = 0;
        let error = loop {
            match stream.next().await {
                Ok(BackupEvent::Finished { .. }) => panic!("a backup with damaged pages must not finish"),
                Ok(BackupEvent::Manifest(bytes)) => manifest += bytes.len(),
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(error.sqlstate(), Some("XX001"), "{error}");
        assert!(manifest > 0);
        assert!(stream.notices().iter().any(|notice| notice.message.contains(&path)), "{:?}", stream.notices());

        let mut unverified = fast();
        unverified.verify_checksums = false;
        let mut stream = connect(&node).await.base_backup(&unverified).await.unwrap();
        while !matches!(stream.next().await.unwrap(), BackupEvent::Finished { .. }) {}
    }
}
