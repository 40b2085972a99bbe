//! Does `backup verify` read every byte of a backup, name what is damaged, and leave the right mark? Does damage of one backup
//! leave the others alone?

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use pgvault::repository::layout::{LineageObject, ObjectName, Parsed};
use serde_json::Value;
use wal::Lsn;

use crate::support::generations::contents;
use crate::support::pg::{PgNode, give_to_server_user, major};
use crate::support::restored::{lsn, wait_promoted};
use crate::support::two_backups::{TwoBackups, flip};

#[test]
fn a_whole_backup_is_proven_and_damage_is_named_and_marked() {
    let proven = TwoBackups::new();
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
fn a_damaged_manifest_keeps_nobody_from_the_other_backups() {
    let mut proven = TwoBackups::new();
    let (first, second) = (proven.first.id.to_string(), proven.second.id.to_string());
    let key = proven.manifest_key(&proven.second);
    flip(&proven.path(&key), 200);

    // Named wherever backups are shown, and never one that counts.
    let listed = proven.listed(&proven.second);
    assert_eq!([&listed["status"], &listed["kind"]], [&Value::from("failed"), &Value::Null], "{listed}");
    assert!(listed["damaged"] == true && listed["problem"].as_str().unwrap().contains(&key), "{listed}");
    assert_eq!(proven.listed(&proven.first)["status"], "ok");
    let (_, status) = proven.scene.installed.json(&["status", "main"]);
    assert_eq!(status["clusters"][0]["backups"]["damaged"], 1, "{status}");
    let (_, check) = proven.scene.installed.json(&["check", "main"]);
    let checks = check["clusters"][0]["checks"].as_array().unwrap();
    let backups = checks.iter().find(|check| check["name"] == "backups").unwrap();
    assert_eq!(backups["status"], "warn", "{backups}");
    assert!(backups["message"].as_str().unwrap().contains(&second), "{backups}");
    let (code, report) = proven.scene.installed.json(&["repo", "check"]);
    let named = report["problems"].as_array().unwrap().iter().any(|problem| problem["object"] == key.as_str());
    assert!(code == 9 && named && report["orphan_packs"] == 0, "{report}");
    let (code, stats) = proven.scene.installed.json(&["repo", "stats"]);
    assert!(code == 9 && stats["message"].as_str().unwrap().contains(&key), "what nobody needs is not known: {stats}");

    // Windows and recoveries go on from the other, and say what was passed over.
    let (code, window) = proven.scene.installed.json(&["window", "main"]);
    assert_eq!((code, &window["ranges"][0]["first_backup"]), (0, &Value::from(first.as_str())), "{window}");
    assert_eq!(window["unreadable_backups"][0]["id"], second.as_str(), "{window}");
    let (code, plan) = proven.recover(&["--latest"]);
    assert_eq!((code, &plan["backup"]), (0, &Value::from(first.as_str())), "{plan}");
    assert!(plan["notes"].as_array().unwrap().iter().any(|note| note.as_str().unwrap().contains(&second)), "{plan}");
    let (code, plan) = proven.recover(&["--latest", "--backup", "latest"]);
    assert_eq!((code, &plan["backup"]), (0, &Value::from(first.as_str())), "{plan}");
    let (code, error) = proven.recover(&["--latest", "--backup", &second]);
    assert_eq!(code, 9, "{error}");
    assert!(error["message"].as_str().unwrap().contains(&key), "{error}");
    let restored = proven.scene.recover("recovered", major(15), |_| ());
    wait_promoted(&restored);
    proven.node.start();
    assert_eq!(contents(&restored), contents(&proven.node));
    drop(restored);

    // WAL is received and backups are taken.
    let pipeline = proven.scene.vault.start(&proven.node.conninfo());
    pipeline.wait_streaming();
    let third = proven.scene.backup(&proven.node);
    pipeline.wait_shipped(lsn(&proven.node, "SELECT pg_current_wal_flush_lsn()"));
    pipeline.stop();
    give_to_server_user(&proven.scene.installed.repository);
    let (code, plan) = proven.recover(&["--latest"]);
    assert_eq!((code, &plan["backup"]), (0, &Value::from(third.id.as_str())), "{plan}");
    assert_eq!(plan["notes"].as_array().unwrap().len(), 0, "nothing newer is passed over: {plan}");

    // What only a damaged one may reach is refused, with its name.
    flip(&proven.path(&key), 200);
    let key = proven.manifest_key(&proven.first);
    flip(&proven.path(&key), 200);
    let between = proven.second.start_lsn.to_string();
    let (code, error) = proven.recover(&["--target-lsn", &between]);
    assert_eq!(code, 8, "{error}");
    let causes = error["causes"].to_string();
    assert!(causes.contains(&first) && causes.contains(&key), "{error}");
    let (code, plan) = proven.recover(&["--latest"]);
    assert_eq!((code, &plan["backup"]), (0, &Value::from(third.id.as_str())), "{plan}");
    // Pinned and unpinned all the same.
    for (what, keep) in [("keep", true), ("release", false)] {
        proven.scene.installed.ok(["backup", what, &first]);
        assert_eq!(proven.listed(&proven.first)["keep"], keep);
    }
}

#[test]
fn a_damaged_tail_keeps_nobody_from_the_moments_before_it() {
    let mut two = TwoBackups::new();
    // Whole segments behind the second backup, then one that is not complete.
    two.node.start();
    let pipeline = two.scene.vault.start(&two.node.conninfo());
    pipeline.wait_streaming();
    for _ in 0..3 {
        two.node.sql("INSERT INTO keys SELECT md5(g::text || clock_timestamp()) FROM generate_series(1, 12000) g");
    }
    two.node.sql("SELECT pg_switch_wal()");
    let before = lsn(&two.node, "SELECT pg_current_wal_insert_lsn()");
    let rows = two.node.sql("SELECT count(*) FROM keys");
    two.node.sql("INSERT INTO keys VALUES ('in the tail')");
    let behind = lsn(&two.node, "SELECT pg_current_wal_flush_lsn()");
    let utc = "to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
    let time_behind = two.node.sql(&format!("SELECT {utc}"));
    pipeline.wait_shipped(behind);
    pipeline.stop();
    assert!(two.node.stop("fast", Duration::from_secs(30)));
    give_to_server_user(&two.scene.installed.repository);
    let whole = two.scene.vault.segments();
    let of_open = |key: &String| match ObjectName::parse(key) {
        Parsed::Known(ObjectName::InLineage(_, LineageObject::Tail(tail))) => !whole.contains(&tail.segment),
        _ => false,
    };
    let tails: Vec<String> = two.scene.vault.keys().into_iter().filter(of_open).collect();
    assert!(!tails.is_empty());
    assert_eq!(two.recover(&["--latest"]).0, 0);
    tails.iter().for_each(|key| flip(&two.path(key), 70));

    // What lies in it is refused, with the object and the last moment before it.
    let (code, error) = two.recover(&["--latest"]);
    assert!(code == 9 && tails.iter().any(|key| error["message"].as_str().unwrap().contains(key)), "{error}");
    let helps: Vec<&str> = error["help"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let told = helps.iter().find_map(|help| help.split_once("--target-lsn ")?.1.split_once(' '));
    let (nearest, _) = told.unwrap_or_else(|| panic!("{error}"));
    assert!(nearest.parse::<Lsn>().unwrap() < before, "{error}");
    let (code, error) = two.recover(&["--target-lsn", &behind.to_string()]);
    assert!(code == 9 && error["help"].to_string().contains(nearest), "{error}");
    let (code, error) = two.recover(&["--target-time", &time_behind]);
    assert!(code == 9 && error["help"].to_string().contains(nearest), "what follows decides: {error}");
    // What lies before it is recovered.
    let id = two.second.id.to_string();
    let (code, plan) = two.recover(&["--immediate", "--backup", &id]);
    assert_eq!((code, &plan["backup"]), (0, &Value::from(id.as_str())), "{plan}");
    let mut restored = PgNode::at(&two.scene.dir, "restored", two.node.major);
    let to = restored.data.to_str().unwrap();
    two.scene.installed.ok(["recover", "main", "--target-lsn", nearest, "--action", "promote", "--to", to]);
    restored.configure(&[]);
    restored.start();
    wait_promoted(&restored);
    assert_eq!(restored.sql("SELECT count(*) FROM keys"), rows);
}

#[test]
fn a_store_out_of_reach_is_no_damage_and_leaves_no_mark() {
    let proven = TwoBackups::new();
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
