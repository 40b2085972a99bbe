//! Two backups of a real server in a local repository, and all their WAL; the server is stopped.

use std::fs;
use std::path::{Path, PathBuf};

use pgvault::backup::ReadKind;
use pgvault::repository::layout::LineageObject;
use pgvault::repository::manifest::Manifest;
use recovery::Backup;
use serde_json::Value;

use super::LIMIT;
use super::generations::{begin, step};
use super::pg::{PgNode, give_to_server_user, major, test_dir};
use super::restored::{Scene, lsn};

/// Two backups, the second with page patches over the first's chunks, and all their WAL.
pub struct TwoBackups {
    pub scene: Scene,
    pub first: Backup,
    pub second: Backup,
    pub node: PgNode,
    _dir: tempfile::TempDir,
}

impl TwoBackups {
    pub fn new() -> Self {
        let dir = test_dir();
        let scene = Scene::new(dir.path());
        let settings = [("autovacuum", "off")];
        let mut node =
            PgNode::init(dir.path(), "primary", major(15), &["--data-checksums", "--wal-segsize=1"], &settings);
        node.start();
        begin(&node);
        let pipeline = scene.vault.start(&node.conninfo());
        pipeline.wait_streaming();
        let first = scene.backup(&node);
        step(&node, 1);
        let second = scene.backup_as(&node, ReadKind::Auto).unwrap().0;
        pipeline.wait_shipped(lsn(&node, "SELECT pg_current_wal_flush_lsn()"));
        pipeline.stop();
        assert!(node.stop("fast", LIMIT));
        give_to_server_user(&scene.installed.repository);
        Self { scene, first, second, node, _dir: dir }
    }

    pub fn verify(&self, args: &[&str]) -> (i32, Value) {
        let args: Vec<&str> = ["backup", "verify"].iter().chain(args).copied().collect();
        self.scene.installed.json(&args)
    }

    pub fn manifest(&self, backup: &Backup) -> Manifest {
        self.scene.vault.runtime.block_on(self.scene.vault.lineage().manifest(&backup.id)).unwrap()
    }

    pub fn listed(&self, backup: &Backup) -> Value {
        let (code, list) = self.scene.installed.json(&["backup", "list", "main"]);
        assert_eq!(code, 0, "{list}");
        list.as_array().unwrap().iter().find(|listed| listed["id"] == backup.id.as_str()).unwrap().clone()
    }

    /// The key of a backup's manifest.
    pub fn manifest_key(&self, backup: &Backup) -> String {
        self.scene.vault.lineage().keys().key(&LineageObject::Manifest(backup.id.clone())).to_string()
    }

    /// A dry run of a recovery; its exit code, and the plan or the error.
    pub fn recover(&self, args: &[&str]) -> (i32, Value) {
        let to = self.scene.dir.join("planned");
        let args: Vec<&str> =
            ["recover", "main", "--to", to.to_str().unwrap(), "--dry-run"].iter().chain(args).copied().collect();
        self.scene.installed.json(&args)
    }

    pub fn path(&self, key: &str) -> PathBuf {
        self.scene.installed.repository.join(key)
    }
}

/// Flips a bit of a file; twice is as before.
pub fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    let at = at % bytes.len();
    bytes[at] ^= 0x10;
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
    give_to_server_user(path);
}
