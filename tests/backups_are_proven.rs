//! Does `backup verify` read every byte of a backup, name what is damaged, and leave the right mark?

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgvault::backup::ReadKind;
use pgvault::repository::manifest::Manifest;
use recovery::Backup;
use serde_json::Value;

use crate::support::generations::{begin, step};
use crate::support::pg::{PgNode, give_to_server_user, major, test_dir};
use crate::support::restored::{Scene, lsn};

/// Two backups, the second with page patches over the first's chunks, and all their WAL.
struct Proven {
    scene: Scene,
    first: Backup,
    second: Backup,
    _dir: tempfile::TempDir,
}

impl Proven {
    fn new() -> Self {
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
        assert!(node.stop("fast", Duration::from_secs(30)));
        give_to_server_user(&scene.installed.repository);
        Self { scene, first, second, _dir: dir }
    }

    fn verify(&self, args: &[&str]) -> (i32, Value) {
        let args: Vec<&str> = ["backup", "verify"].iter().chain(args).copied().collect();
        self.scene.installed.json(&args)
    }

    fn manifest(&self, backup: &Backup) -> Manifest {
        self.scene.vault.runtime.block_on(self.scene.vault.lineage().manifest(&backup.id)).unwrap()
    }

    fn listed(&self, backup: &Backup) -> Value {
        let (code, list) = self.scene.installed.json(&["backup", "list", "main"]);
        assert_eq!(code, 0, "{list}");
        list.as_array().unwrap().iter().find(|listed| listed["id"] == backup.id.as_str()).unwrap().clone()
    }

    fn path(&self, key: &str) -> PathBuf {
        self.scene.installed.repository.join(key)
    }
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    let at = at % bytes.len();
    bytes[at] ^= 0x10;
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
    give_to_server_user(path);
}

#[test]
fn a_whole_backup_is_proven_and_damage_is_named_and_marked() {
    let proven = Proven::new();
    let second = proven.manifest(&proven.second);
    assert!(second.patched_chunks > 0, "nothing to prove of page patches");

    // Listings first: right, and no reason for a mark.
    let (code, quick) = proven.verify(&["--all", "--quick"]);
    assert_eq!((code, &quick["ok"]), (0, &Value::from(true)), "{quick}");
    assert_eq!(proven.listed(&proven.second)["verified_at"], Value::Null);

    let (code, report) = proven.verify(&["latest"]);
    assert_eq!((code, &report["ok"], &report["mark"]), (0, &Value::from(true), &Value::from("verified")), "{report}");
    assert_eq!(report["id"], proven.second.id.as_str());
    assert_eq!(report["files"], second.files, "every file");
    let stored: u64 = second.packs.iter().map(|pack| pack.size).sum();
    assert!(report["checked_bytes"].as_u64().unwrap() > stored, "every byte: {report}");
    let listed = proven.listed(&proven.second);
    assert!(listed["verified_at"].is_string() && listed["damaged"] == false, "{listed}");

    // A pack that only the second backup has: the first is not concerned.
    let of_first = proven.manifest(&proven.first).packs;
    let own = second.packs.iter().find(|pack| !of_first.contains(pack)).unwrap();
    let pack = format!("main/packs/{}", hex::encode(own.sha256));
    flip(&proven.path(&pack), 1000);
    let (code, report) = proven.verify(&[proven.second.id.as_str()]);
    assert_eq!((code, &report["ok"], &report["mark"]), (9, &Value::from(false), &Value::from("damaged")), "{report}");
    assert_eq!(report["problems"][0]["object"], pack.as_str(), "{report}");
    assert!(report["damaged_files"].as_u64().unwrap() > 0, "{report}");
    let listed = proven.listed(&proven.second);
    assert!(listed["verified_at"].is_null() && listed["damaged"] == true, "{listed}");
    let text = String::from_utf8(proven.scene.installed.run(["backup", "list", "main"]).stdout).unwrap();
    assert!(text.lines().any(|line| line.contains(proven.second.id.as_str()) && line.contains("damaged")), "{text}");
    let (code, report) = proven.verify(&["--all"]);
    assert_eq!(code, 9, "{report}");
    let all = report["backups"].as_array().unwrap();
    assert_eq!([&all[0]["ok"], &all[1]["ok"]], [&Value::from(true), &Value::from(false)], "{report}");

    // A recovery takes the clean one by itself, and says what it did of a damaged one that it was told to take.
    let to = proven.scene.dir.join("planned");
    let (code, plan) =
        proven.scene.installed.json(&["recover", "main", "--latest", "--to", to.to_str().unwrap(), "--dry-run"]);
    assert_eq!((code, &plan["backup"]), (0, &Value::from(proven.first.id.as_str())), "{plan}");

    // Mended, it is proven again.
    flip(&proven.path(&pack), 1000);
    let (code, report) = proven.verify(&[proven.second.id.as_str()]);
    assert_eq!((code, &report["mark"]), (0, &Value::from("verified")), "{report}");
    assert_eq!(proven.listed(&proven.second)["damaged"], false);
}

#[test]
fn a_store_out_of_reach_is_no_damage_and_leaves_no_mark() {
    let proven = Proven::new();
    let before = proven.scene.vault.keys();
    let pack = proven.manifest(&proven.first).packs[0];
    let pack = proven.path(&format!("main/packs/{}", hex::encode(pack.sha256)));
    // Not absent and not other bytes: the store cannot be asked.
    fs::set_permissions(&pack, fs::Permissions::from_mode(0o0)).unwrap();
    let (code, error) = proven.verify(&[proven.first.id.as_str()]);
    assert_eq!((code, &error["type"]), (5, &Value::from("error")), "{error}");
    fs::set_permissions(&pack, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(proven.scene.vault.keys(), before);

    // WAL that has not arrived yet is no damage either.
    let segments = proven.scene.installed.repository.clone();
    let mut wal = Vec::new();
    let mut open = vec![segments];
    while let Some(dir) = open.pop() {
        for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                open.push(path);
            } else if path.components().any(|part| part.as_os_str() == "wal") {
                wal.push(path);
            }
        }
    }
    wal.iter().for_each(|path| fs::remove_file(path).unwrap());
    let (code, report) = proven.verify(&[proven.second.id.as_str()]);
    assert_eq!((code, &report["waits_for_wal"], &report["mark"]), (9, &Value::from(true), &Value::Null), "{report}");

    let (code, error) = proven.verify(&["20260101T000000-0000"]);
    assert_eq!(code, 6, "{error}");
}
