//! Is damage of any stored object found and named, whatever was done to it, and never passed on?
//!
//! One repository is made; of each sort of object one is damaged in each way in a copy of its own.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pgvault::backup::{BackupDeps, BackupProgress, BackupRequest, PollRepository, ProgressSender, ReadKind, take};
use pgvault::backup_verify::{self, BackupProblem, BackupVerifyProgress, BackupVerifyRequest};
use pgvault::clock::{Clock, SystemClock};
use pgvault::error::{Error, ErrorCode};
use pgvault::primary::{CheckpointMode, ConnectOptions, Conninfo, Environment};
use pgvault::repo_check::{self, RepoCheckRequest};
use pgvault::repository::layout::{LineageObject, MarkKind, ObjectName, Parsed};
use pgvault::repository::{GapDocument, LineageRepository, MarkDocument, Repository, RepositoryOptions};
use pgvault::restore::{Effort, RestoreProgress, RestoreProgressSender, apply, plan};
use pgvault::storage::local::LocalStorage;
use recovery::{BackupId, RecoveryTarget};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use wal::{Lsn, SegmentName, TimelineHistory, TimelineId};

use crate::support::LIMIT;
use crate::support::attacked::Dice;
use crate::support::generations::{begin, step};
use crate::support::pg::{PgNode, give_to_server_user, test_dir};
use crate::support::restored::{Scene, lsn, now};
use crate::support::vault::Vault;

/// What can happen to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    BitFlip,
    Truncation,
    Deletion,
    /// It and another of its sort change places.
    Swap,
}

const EVERY: [Damage; 4] = [Damage::BitFlip, Damage::Truncation, Damage::Deletion, Damage::Swap];

/// The sort of an object.
fn sort(name: &ObjectName) -> &'static str {
    match name {
        ObjectName::Marker => "marker",
        ObjectName::EncryptedSince => "note of encryption",
        ObjectName::KeyRing(_) => "key ring",
        ObjectName::Pack(..) => "pack",
        ObjectName::InLineage(_, object) => match object {
            LineageObject::Document => "lineage.json",
            LineageObject::History(_) => "history",
            LineageObject::Segment(_) => "segment",
            LineageObject::Tail(_) => "tail",
            LineageObject::Begun(_) => "begun",
            LineageObject::FilePart(..) => "file table",
            LineageObject::PostgresManifest(..) => "backup_manifest",
            LineageObject::Manifest(_) => "manifest",
            LineageObject::Mark(..) => "mark",
            LineageObject::Gap(_) => "gap",
            LineageObject::Conflict(..) => "conflict",
        },
    }
}

/// What nothing that is left can tell of: the end of something that may as well never have been.
fn leaves_no_trace(sort: &str, damage: Damage) -> bool {
    // Two marks of one kind say the same of their backups.
    damage == Damage::Deletion && matches!(sort, "tail" | "gap" | "mark") || (sort, damage) == ("mark", Damage::Swap)
}

/// Whether a history says what it said, whatever became of the words behind it.
fn says_the_same(sort: &str, before: &[u8], after: &[u8]) -> bool {
    let told = |bytes: &[u8]| {
        let history = TimelineHistory::parse(TimelineId::new(9).unwrap(), bytes).ok()?;
        Some(history.entries().iter().map(|entry| (entry.parent, entry.switch_point)).collect::<Vec<_>>())
    };
    sort == "history" && told(before).is_some() && told(before) == told(after)
}

/// Every file below a directory, by its path in it.
fn tree(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut open) = (BTreeMap::new(), vec![dir.to_owned()]);
    while let Some(folder) = open.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                open.push(path);
            } else {
                found.insert(path.strip_prefix(dir).unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// Restored files that PostgreSQL wrote. What pgvault adds names the directory's own place.
fn data(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = tree(dir);
    files.retain(|path, _| !path.as_os_str().as_bytes().starts_with(b"postgresql.auto.conf"));
    files
}

struct Matrix {
    scene: Scene,
    /// Names of objects by their sort.
    objects: BTreeMap<&'static str, Vec<String>>,
    /// What each backup restores.
    references: BTreeMap<BackupId, BTreeMap<PathBuf, Vec<u8>>>,
    wal: BTreeMap<SegmentName, Vec<u8>>,
    node: PgNode,
    _dir: tempfile::TempDir,
}

impl Matrix {
    fn new() -> Self {
        let dir = test_dir();
        let scene = Scene::new(dir.path());
        let settings = [("autovacuum", "off")];
        let mut node = PgNode::init(dir.path(), "primary", 15, &["--data-checksums", "--wal-segsize=1"], &settings);
        node.start();
        begin(&node);
        let pipeline = scene.vault.start(&node.conninfo());
        pipeline.wait_streaming();
        let first = scene.backup(&node);
        step(&node, 1);
        let second = scene.backup_as(&node, ReadKind::Auto).unwrap().0;
        for _ in 0..3 {
            node.sql("INSERT INTO keys SELECT md5(g::text || clock_timestamp()) FROM generate_series(1, 3000) g");
            pipeline.wait_shipped(lsn(&node, "SELECT pg_current_wal_flush_lsn()"));
        }
        // Two more timelines, each with a history and whole segments of its own.
        for _ in 0..2 {
            pipeline.wait_shipped(lsn(&node, "SELECT pg_current_wal_flush_lsn()"));
            assert!(node.stop("fast", LIMIT));
            fs::write(node.data.join("standby.signal"), "").unwrap();
            give_to_server_user(&node.data.join("standby.signal"));
            node.start();
            node.promote();
            for _ in 0..2 {
                node.sql("INSERT INTO keys SELECT md5(g::text || clock_timestamp()) FROM generate_series(1, 12000) g");
            }
            pipeline.wait_shipped(lsn(&node, "SELECT pg_current_wal_flush_lsn()"));
        }
        pipeline.stop();

        let lineage = scene.vault.lineage();
        scene.vault.runtime.block_on(async {
            for backup in [&first, &second] {
                for what in [MarkKind::Keep, MarkKind::Verified] {
                    let document = MarkDocument { what, at: now(), by: "test".to_owned(), note: String::new() };
                    lineage.put_mark(&backup.id, &document).await.unwrap();
                }
            }
            // Before everything that is stored: they mean nothing, and are read all the same.
            for from in [0x1000_u64, 0x2000] {
                let gap = GapDocument {
                    timeline: TimelineId::FIRST,
                    from_lsn: Lsn::new(from),
                    to_lsn: Lsn::new(from + 0x100),
                    reason: "a test".to_owned(),
                    found_at: now(),
                };
                lineage.put_gap(&gap).await.unwrap();
            }
        });
        let mut objects: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
        let whole = scene.vault.segments();
        for key in scene.vault.keys() {
            let Parsed::Known(name) = ObjectName::parse(&key) else { panic!("{key}") };
            let means_something = match &name {
                // What came before the first backup, and pieces of what is stored whole.
                ObjectName::InLineage(_, LineageObject::Segment(name)) => {
                    name.number(lineage.segment_size()).unwrap().end(lineage.segment_size()) > first.start_lsn
                }
                ObjectName::InLineage(_, LineageObject::Tail(tail)) => !whole.contains(&tail.segment),
                _ => true,
            };
            if !means_something {
                continue;
            }
            objects.entry(sort(&name)).or_default().push(key);
        }
        let wal = whole.into_iter().map(|name| (name, scene.vault.segment(name))).collect();
        let mut references = BTreeMap::new();
        for backup in [first, second] {
            let to = scene.dir.join(backup.id.as_str());
            let restored = restore(&scene, &lineage, &to, Some(&backup.id)).unwrap_or_else(|error| panic!("{error}"));
            references.insert(restored, data(&to));
        }
        Self { scene, objects, references, wal, node, _dir: dir }
    }

    /// A second backup over a damaged repository does not exist, or every byte of it is proven, or the damage that it shares
    /// is named; which it was.
    fn next_backup_is_whole_or_named(&self, repository: &Path, names: &[&str], what: &str) -> &'static str {
        let conninfo = Conninfo::parse(&self.node.conninfo(), &Environment::default()).unwrap();
        let server = ConnectOptions::new(conninfo, "test");
        self.scene.vault.runtime.block_on(async {
            let Ok(opened) = open(repository).await else { return "not opened" };
            let Ok(Some(lineage)) = opened.cluster(&Vault::cluster()).newest_lineage().await else {
                return "no lineage";
            };
            let deps = BackupDeps {
                server: &server,
                files: None,
                repository: &lineage,
                index_file: None,
                wal: &PollRepository::new(lineage.clone()),
                clock: &SystemClock,
                random: 0x7777,
                cancel: &CancellationToken::new(),
            };
            let request = BackupRequest { checkpoint: CheckpointMode::Fast, ..BackupRequest::default() };
            let Ok(manifest) = take(&request, &deps, &ProgressSender::new(BackupProgress::default())).await else {
                return "not taken";
            };
            let verify = BackupVerifyRequest { quick: false, jobs: 2, mark: false, now: now() };
            let progress = watch::Sender::new(BackupVerifyProgress::default());
            let report = backup_verify::run(&lineage, &manifest.id, &verify, &progress).await.unwrap();
            // Its WAL is not stored.
            let objects: Vec<_> = report.problems.iter().filter(|problem| !problem.object.contains("/wal/")).collect();
            let is_named = |problem: &&&BackupProblem| names.contains(&problem.object.as_str());
            assert!(objects.is_empty() || objects.iter().any(|problem| is_named(&problem)), "{what}: {objects:?}");
            if objects.is_empty() { "proven" } else { "shares the damage, which is named" }
        })
    }

    /// A copy of the repository in which one object is damaged.
    fn copy(&self, to: &Path, object: &str, sibling: Option<&String>, damage: Damage, random: &mut Dice) {
        let from = &self.scene.installed.repository;
        for path in tree(from).into_keys() {
            fs::create_dir_all(to.join(&path).parent().unwrap()).unwrap();
            fs::hard_link(from.join(&path), to.join(&path)).unwrap();
        }
        let bytes = fs::read(from.join(object)).unwrap();
        // Other bytes under the name, never into the file that the copies share.
        let put = |key: &str, bytes: &[u8]| {
            fs::remove_file(to.join(key)).unwrap();
            fs::write(to.join(key), bytes).unwrap();
        };
        match damage {
            Damage::BitFlip => {
                let mut flipped = bytes.clone();
                let at = usize::try_from(random.below(flipped.len() as u64 * 8)).unwrap();
                flipped[at / 8] ^= 1 << (at % 8);
                put(object, &flipped);
            }
            Damage::Truncation => put(object, &bytes[..below(random, bytes.len())]),
            Damage::Deletion => fs::remove_file(to.join(object)).unwrap(),
            Damage::Swap => {
                let sibling = sibling.unwrap();
                put(object, &fs::read(from.join(sibling)).unwrap());
                put(sibling, &bytes);
            }
        }
    }

    /// Opens a copy and checks all of it; everything that is said.
    fn check(&self, repository: &Path) -> Result<Vec<String>, Error> {
        self.scene.vault.runtime.block_on(async {
            let opened = open(repository).await?;
            let request = RepoCheckRequest { deep: true, jobs: 2, mark: false, now: now() };
            let report = repo_check::run(&opened, &request).await?;
            let said = report.problems.iter().chain(&report.remarks);
            Ok(said.map(|problem| format!("{}: {}", problem.object, problem.what)).collect())
        })
    }

    /// A recovery either gives exactly what was stored or refuses; which of the two.
    fn recovers_exactly_or_refuses(&self, repository: &Path, what: &str) -> bool {
        let lineage = self.scene.vault.runtime.block_on(async {
            let opened = open(repository).await?;
            let newest = opened.cluster(&Vault::cluster()).newest_lineage().await?;
            newest.ok_or_else(|| Error::new(ErrorCode::NotFound, "nothing is stored"))
        });
        let lineage: LineageRepository = match lineage {
            Ok(lineage) => lineage,
            Err(_) => return false,
        };
        let to = repository.with_extension("restored");
        let restored = restore(&self.scene, &lineage, &to, None);
        if let Ok(backup) = &restored {
            let reference = &self.references[backup];
            let found = data(&to);
            let names = |files: &BTreeMap<PathBuf, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
            assert_eq!(names(&found), names(reference), "{what}");
            for (path, bytes) in reference {
                assert!(found[path] == *bytes, "{what}: silently another {}", path.display());
            }
        } else {
            assert!(!to.join("global/pg_control").exists(), "{what}: half a restore could be started");
        }
        // What a server would be given on the way.
        for (name, bytes) in &self.wal {
            let mut fetched = Vec::new();
            let fetch = self.scene.vault.runtime.block_on(lineage.fetch_segment(*name, &mut fetched));
            assert!(fetch.is_err() || fetched == *bytes, "{what}: silently another {name}");
        }
        if to.exists() {
            fs::remove_dir_all(to).unwrap();
        }
        restored.is_ok()
    }
}

async fn open(repository: &Path) -> Result<Repository, Error> {
    let storage = LocalStorage::open(repository, SystemClock.now()).await.unwrap();
    Ok(Repository::open(Arc::new(storage), RepositoryOptions::default()).await?)
}

/// Restores from the backup that is named, or is chosen; which one.
fn restore(
    scene: &Scene,
    lineage: &LineageRepository,
    to: &Path,
    backup: Option<&BackupId>,
) -> Result<BackupId, Error> {
    let mut request = scene.request(to, RecoveryTarget::Latest);
    request.config = None;
    request.recovery.backup = backup.cloned();
    let progress = RestoreProgressSender::new(RestoreProgress::default());
    scene.vault.runtime.block_on(async {
        let plan = plan(lineage, &request).await?;
        apply(&plan, lineage, Effort { jobs: 2, max_rate: None }, &progress, &SystemClock)
            .await
            .map(|outcome| outcome.backup)
    })
}

/// Which objects of a sort are damaged.
fn chosen<'a>(objects: &'a [String], all: bool, random: &mut Dice) -> Vec<&'a String> {
    if all { objects.iter().collect() } else { vec![&objects[below(random, objects.len())]] }
}

fn every_damage_is_found(all: bool) {
    let matrix = Matrix::new();
    let mut random = Dice::new();
    let seed = random.seed;
    println!("seed {seed}");
    let whole = matrix.scene.dir.join("whole");
    for path in tree(&matrix.scene.installed.repository).into_keys() {
        fs::create_dir_all(whole.join(&path).parent().unwrap()).unwrap();
        fs::hard_link(matrix.scene.installed.repository.join(&path), whole.join(&path)).unwrap();
    }
    assert_eq!(matrix.check(&whole).unwrap(), Vec::<String>::new(), "without damage there is none");
    assert!(matrix.recovers_exactly_or_refuses(&whole, "whole"));

    for sort in [
        "marker",
        "lineage.json",
        "segment",
        "tail",
        "history",
        "gap",
        "begun",
        "file table",
        "backup_manifest",
        "manifest",
        "mark",
        "pack",
    ] {
        let next_backup_after = EVERY[below(&mut random, EVERY.len())];
        let objects = matrix.objects.get(sort).unwrap_or_else(|| panic!("no {sort} is stored"));
        for object in chosen(objects, all, &mut random) {
            let sibling = objects.iter().find(|other| *other != object);
            for damage in EVERY {
                if damage == Damage::Swap && sibling.is_none() {
                    continue;
                }
                let what = format!("{sort}, {damage:?}, {object}, seed {seed}");
                let copy = matrix.scene.dir.join("copy");
                matrix.copy(&copy, object, sibling, damage, &mut random);
                let said = match matrix.check(&copy) {
                    Ok(problems) => problems.join("\n"),
                    Err(error) => error.to_string(),
                };
                // Of two that changed places, to name one is enough.
                let names = said.contains(object.as_str())
                    || damage == Damage::Swap && sibling.is_some_and(|sibling| said.contains(sibling.as_str()));
                let same = damage == Damage::Swap
                    && sibling.is_some_and(|sibling| {
                        let read = |key: &str| fs::read(matrix.scene.installed.repository.join(key)).unwrap();
                        read(object) == read(sibling)
                    });
                let harmless = damage != Damage::Deletion && {
                    let read = |repository: &Path| fs::read(repository.join(object)).unwrap();
                    says_the_same(sort, &read(&matrix.scene.installed.repository), &read(&copy))
                };
                assert!(names || same || harmless || leaves_no_trace(sort, damage), "{what}: not named in: {said}");
                let in_a_backup = ["file table", "backup_manifest", "manifest", "pack"].contains(&sort);
                if in_a_backup && (all || damage == next_backup_after) {
                    let named: Vec<&str> = [Some(object), sibling].into_iter().flatten().map(String::as_str).collect();
                    let ended = matrix.next_backup_is_whole_or_named(&copy, &named, &what);
                    println!("{sort:16} {damage:?}: the next backup is {ended}");
                }
                let recovered = matrix.recovers_exactly_or_refuses(&copy, &what);
                println!("{sort:16} {damage:?}: {}", if recovered { "recovered exactly" } else { "refused" });
                fs::remove_dir_all(copy).unwrap();
            }
        }
    }
}

fn below(random: &mut Dice, limit: usize) -> usize {
    usize::try_from(random.below(limit as u64)).unwrap()
}

#[test]
fn damage_of_one_object_of_each_sort_is_found_named_and_never_passed_on() {
    every_damage_is_found(false);
}

#[test]
#[ignore = "every object of the repository in every way: minutes; make chaos"]
fn damage_of_every_object_is_found_named_and_never_passed_on() {
    every_damage_is_found(true);
}
