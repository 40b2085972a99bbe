use std::collections::VecDeque;
use std::path::Path;

use recovery::{BackupId, LineageId};
use sha2::{Digest, Sha256};
use wal::{Lsn, SystemIdentifier, TimelineId};

use super::super::manifest_check::ManifestMismatch;
use super::super::members::MemberError;
use super::super::progress::{BackupPhase, BackupProgress};
use super::*;
use crate::codec::Compression;
use crate::primary::{BackupEvent, PgError, Tablespace};
use crate::repository::layout::LineageKeys;
use crate::repository::{ClusterName, Objects};
use crate::storage::faulty::{Fault, Faulty, Operation, Rule};
use crate::storage::memory::MemoryStorage;
use crate::storage::{Storage, StorageErrorKind};

/// What a server sends, in order.
#[derive(Clone)]
enum Say {
    Started(Vec<Tablespace>),
    Archive(Option<u32>),
    Data(Vec<u8>),
    Manifest(Vec<u8>),
    Finished(u64, u32),
    Fail,
}

struct Script {
    says: VecDeque<Say>,
    said: Option<Say>,
}

impl BackupStream for Script {
    async fn next(&mut self) -> Result<BackupEvent<'_>, PgError> {
        self.said = self.says.pop_front();
        let timeline = |number| TimelineId::new(number).unwrap();
        Ok(match self.said.as_ref() {
            Some(Say::Started(tablespaces)) => BackupEvent::Started {
                start_lsn: Lsn::new(0x200_0028),
                timeline: timeline(1),
                tablespaces: tablespaces.clone(),
                base_size: Some(5000),
            },
            Some(Say::Archive(tablespace)) => BackupEvent::Archive { tablespace: *tablespace },
            Some(Say::Data(bytes)) => BackupEvent::Data(bytes),
            Some(Say::Manifest(bytes)) => BackupEvent::Manifest(bytes),
            Some(Say::Finished(lsn, number)) => {
                BackupEvent::Finished { stop_lsn: Lsn::new(*lsn), timeline: timeline(*number) }
            }
            Some(Say::Fail) | None => return Err(PgError::Protocol("the server is gone".to_owned())),
        })
    }
}

const STOP: u64 = 0x200_0100;

fn member(name: &str, kind: u8, content: &[u8]) -> Vec<u8> {
    let mut block = vec![0; 512];
    let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
    put(0, name.as_bytes());
    put(100, b"0000600\0");
    put(124, format!("{:011o}\0", content.len()).as_bytes());
    put(136, b"14506741000\0");
    put(156, &[kind]);
    put(257, b"ustar\x0000");
    put(148, b"        ");
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block.extend_from_slice(content);
    block.resize(block.len().next_multiple_of(512), 0);
    block
}

fn manifest_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let lines: Vec<String> = files
        .iter()
        .map(|(path, content)| {
            let crc = hex::encode(crc32c::crc32c(content).to_le_bytes());
            format!(
                r#"{{ "Path": "{path}", "Size": {}, "Last-Modified": "x", "Checksum-Algorithm": "CRC32C", "Checksum": "{crc}" }}"#,
                content.len()
            )
        })
        .collect();
    let body = format!(
        "{{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n{}\n],\n\"WAL-Ranges\": [\n],\n",
        lines.join(",\n")
    );
    format!("{body}\"Manifest-Checksum\": \"{}\"}}\n", hex::encode(Sha256::digest(&body))).into_bytes()
}

const FILES: [(&str, &[u8]); 3] =
    [("backup_label", b"START"), ("base/5/1259", &[7; 9000]), ("global/pg_control", &[9; 8192])];

fn base_archive() -> Vec<u8> {
    let mut archive = Vec::new();
    for (path, content) in FILES {
        archive.extend(member(path, b'0', content));
    }
    archive
}

fn good() -> Vec<Say> {
    vec![
        Say::Started(vec![]),
        Say::Archive(None),
        Say::Data(base_archive()),
        Say::Manifest(manifest_of(&FILES)),
        Say::Finished(STOP, 1),
    ]
}

struct Stage {
    storage: Arc<dyn Storage>,
    scratch: tempfile::TempDir,
    progress: ProgressSender,
}

impl Stage {
    fn new(storage: Arc<dyn Storage>) -> Self {
        Self {
            storage,
            scratch: tempfile::tempdir().unwrap(),
            progress: ProgressSender::new(BackupProgress::default()),
        }
    }

    async fn copy(&self, says: Vec<Say>) -> Result<(ReadAll, Packed), CopyError> {
        let lineage = LineageId { system_identifier: SystemIdentifier::new(42), number: 1 };
        let destination = Destination {
            objects: Objects::new(Arc::clone(&self.storage)),
            keys: LineageKeys::new(ClusterName::new("main").unwrap(), lineage),
            id: "20261119T020512-3f2a".parse::<BackupId>().unwrap(),
            compression: Compression::default(),
        };
        let parts = CopyParts {
            destination,
            index: Arc::new(ChunkIndex::in_memory()),
            limits: CopyLimits { workers: 2, uploads: 2, reads: 2 },
            reference: None,
            max_rate: None,
            patches: true,
            pages: None,
            scratch_dir: self.scratch.path().to_path_buf(),
            progress: self.progress.clone(),
        };
        copy_stream(Script { says: says.into(), said: None }, None, parts).await
    }
}

async fn copy_of(says: Vec<Say>) -> Result<(ReadAll, Packed), CopyError> {
    Stage::new(Arc::new(MemoryStorage::new())).copy(says).await
}

fn with(index: usize, say: Say) -> Vec<Say> {
    let mut says = good();
    says[index] = say;
    says
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).unwrap().next().is_none()
}

#[tokio::test]
async fn a_whole_backup_is_copied_whatever_the_pieces() {
    for piece in [1, 100, 512, 100_000] {
        let stage = Stage::new(Arc::new(MemoryStorage::new()));
        let mut says = good();
        let pieces = |bytes: Vec<u8>, say: fn(Vec<u8>) -> Say| -> Vec<Say> {
            bytes.chunks(piece).map(|piece| say(piece.to_vec())).collect()
        };
        says.splice(3..4, pieces(manifest_of(&FILES), Say::Manifest));
        says.splice(2..3, pieces(base_archive(), Say::Data));
        let (read, packed) = stage.copy(says).await.unwrap();
        assert_eq!((read.totals.files, read.totals.bytes), (3, 5 + 9000 + 8192));
        assert_eq!((read.manifest.as_ref().unwrap().0.files, read.stop), (3, Lsn::new(STOP)));
        assert_eq!((packed.packs.len(), packed.parts.len()), (1, 1));
        assert_eq!(packed.parts[0].entries, 3);
        let progress = stage.progress.borrow().clone();
        assert_eq!((progress.phase, progress.total_bytes), (BackupPhase::Copy, Some(5000)));
        assert_eq!((progress.done_bytes, progress.new_bytes), (read.totals.bytes, packed.new_bytes));
        drop(read);
        assert!(is_empty(stage.scratch.path()));
    }
}

#[tokio::test]
async fn what_the_manifest_does_not_confirm_is_no_backup() {
    let mismatch = |files: &[(&str, &[u8])]| with(3, Say::Manifest(manifest_of(files)));
    let changed = mismatch(&[FILES[0], (FILES[1].0, &[8; 9000]), FILES[2]]);
    let error = copy_of(changed).await.unwrap_err();
    assert!(matches!(error, CopyError::Mismatch(ManifestMismatch::Checksum { .. })), "{error}");
    let error = copy_of(mismatch(&FILES[..2])).await.unwrap_err();
    assert!(matches!(error, CopyError::Mismatch(ManifestMismatch::NotNamed(_))), "{error}");
    let mut more = FILES.to_vec();
    more.push(("base/5/2600", b"never sent"));
    let error = copy_of(mismatch(&more)).await.unwrap_err();
    assert!(matches!(error, CopyError::Mismatch(ManifestMismatch::NotSent(_))), "{error}");
    let mut without = good();
    without.remove(3);
    assert!(matches!(copy_of(without).await.unwrap_err(), CopyError::Manifest(_)));
}

#[tokio::test]
async fn a_server_that_is_promoted_or_talks_nonsense_gives_no_backup() {
    let error = copy_of(with(4, Say::Finished(STOP, 2))).await.unwrap_err();
    assert!(matches!(error, CopyError::TimelineChanged { .. }), "{error}");
    let out_of_turn = [
        with(0, Say::Archive(None)),
        with(1, Say::Started(vec![])),
        with(4, Say::Finished(0x200_0028, 1)),
        with(4, Say::Data(vec![0; 512])),
        good().into_iter().enumerate().filter(|(at, _)| *at != 1).map(|(_, say)| say).collect(),
    ];
    for says in out_of_turn {
        let error = copy_of(says).await.unwrap_err();
        assert!(matches!(error, CopyError::OutOfTurn(_)), "{error}");
    }
    for at in 0..good().len() {
        let error = copy_of(with(at, Say::Fail)).await.unwrap_err();
        // Before anything was sent, another way of reading may do.
        let expected =
            if at == 0 { matches!(error, CopyError::NotStarted(_)) } else { matches!(error, CopyError::Server(_)) };
        assert!(expected, "{at}: {error}");
    }
}

#[tokio::test]
async fn archives_that_lead_astray_are_refused() {
    let archive = |bytes: Vec<u8>| with(2, Say::Data(bytes));
    let mut cut = base_archive();
    cut.truncate(2000);
    assert!(matches!(copy_of(archive(cut)).await.unwrap_err(), CopyError::Tar(_)));
    assert!(matches!(copy_of(archive(member("../x", b'0', b"")).clone()).await.unwrap_err(), CopyError::Tar(_)));
    let twice = [base_archive(), member("backup_label", b'0', b"other")].concat();
    assert!(matches!(copy_of(archive(twice)).await.unwrap_err(), CopyError::Member(MemberError::Duplicate(_))));
    let link = member("base/5", b'2', b"");
    assert!(matches!(copy_of(archive(link)).await.unwrap_err(), CopyError::Member(MemberError::Link(_))));
}

#[tokio::test]
async fn tablespaces_in_place_become_directories_and_others_are_named() {
    let tablespace = |oid, location: &str| Tablespace { oid, location: location.into(), size: Some(1) };
    let files: [(&str, &[u8]); 2] = [("pg_tblspc/16384/PG_16/5/1", b"in"), ("pg_tblspc/16385/PG_16/5/1", b"out")];
    let says = vec![
        Say::Started(vec![tablespace(16384, "pg_tblspc/16384"), tablespace(16385, "/srv/fast")]),
        Say::Archive(Some(16384)),
        Say::Data(member("PG_16/5/1", b'0', b"in")),
        Say::Archive(Some(16385)),
        Say::Data(member("PG_16/5/1", b'0', b"out")),
        Say::Archive(None),
        Say::Data(member("pg_tblspc/16385", b'2', b"")),
        Say::Manifest(manifest_of(&files)),
        Say::Finished(STOP, 1),
    ];
    let (read, _) = copy_of(says).await.unwrap();
    assert_eq!(read.began.tablespaces.len(), 1);
    assert_eq!((read.began.tablespaces[0].oid, &*read.began.tablespaces[0].path), (16385, &b"/srv/fast"[..]));
    assert_eq!((read.totals.files, read.totals.directories), (2, 1));
}

#[tokio::test]
async fn a_store_that_fails_is_the_reason_that_is_told() {
    for key in ["packs/", "files/"] {
        let faulty = Faulty::new(Arc::new(MemoryStorage::new()));
        faulty.add(Rule::new(Fault::Fail(StorageErrorKind::Full)).on(Operation::Put).key(key));
        let error = Stage::new(Arc::new(faulty)).copy(good()).await.unwrap_err();
        assert!(matches!(error, CopyError::Repository(_)), "{key}: {error}");
    }
    // Not at the end, but while much is still to come.
    let faulty = Faulty::new(Arc::new(MemoryStorage::new()));
    faulty.add(Rule::new(Fault::Fail(StorageErrorKind::Denied)).on(Operation::Put).key("packs/"));
    let mut state = 1_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
    .take(100 << 20)
    .collect();
    let mut says = with(2, Say::Data(member("ballast", b'0', &noise)));
    says.insert(3, Say::Data(base_archive()));
    let error = Stage::new(Arc::new(faulty)).copy(says).await.unwrap_err();
    assert!(matches!(error, CopyError::Repository(_)), "{error}");
}
