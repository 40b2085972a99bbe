//! Is a backup whole? Reads every byte that a restore of it would need, and proves it; nothing is changed but a mark.
//!
//! What is proven: each object has the length and the checksum that the manifest says; each chunk of each file, page patches
//! applied, has its BLAKE3; each file as a whole has the CRC-32C of the file table, and of a backup that was read whole that
//! of PostgreSQL's own manifest too; the WAL from its start to its stop is there, whole, and one log.
//!
//! Packs are read once each, whole, several at a time. Which chunk lies in which pack and what was found of it goes through
//! scratch files, so memory depends on the number of jobs and not on the size of the backup.

mod contents;
mod file_check;
mod listing;
mod mark;
mod packs;
mod prove;
mod scratch;
mod server_manifest;
mod wal_check;

use recovery::BackupId;
use tokio::sync::watch;
use wal::PgTime;

use crate::error::{Error, ErrorCode, Result};
use crate::repository::layout::{LineageObject, MarkKind};
use crate::repository::manifest::Manifest;
use crate::repository::{LineageRepository, RepositoryError, RepositoryResult};
use crate::storage::{ObjectKey, StorageErrorKind};

use listing::Listing;

/// So many damaged files are named.
const NAMED_FILES: usize = 100;

/// How a backup is to be verified.
#[derive(Clone, Copy, Debug)]
pub struct BackupVerifyRequest {
    /// From listings alone: nothing but the manifest is read.
    pub quick: bool,
    /// How many packs are read at a time; each takes about 70 MB of memory.
    pub jobs: usize,
    /// Whether the result is to be noted on the backup.
    pub mark: bool,
    /// When.
    pub now: PgTime,
}

/// How far a verification is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackupVerifyProgress {
    /// Stored bytes that were read.
    pub done_bytes: u64,
    /// Stored bytes that will be read, WAL not among them.
    pub total_bytes: u64,
}

/// What is wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct BackupProblem {
    /// Its key.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
}

/// What a verification found.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct BackupReport {
    /// The backup.
    pub id: BackupId,
    /// Whether everything is as it should be.
    pub ok: bool,
    /// Whether only listings were looked at.
    pub quick: bool,
    /// Stored bytes that were read: table, manifests, packs; of WAL its plaintext.
    pub checked_bytes: u64,
    /// Files of which every byte was proven.
    pub files: u64,
    /// Packs that were looked at.
    pub packs: u64,
    /// WAL segments that were looked at.
    pub segments: u64,
    /// WAL up to its stop LSN has not arrived yet, and nothing else is wrong: not usable so far, and not damaged.
    pub waits_for_wal: bool,
    /// Files whose page checksums were wrong when the backup was taken. They are stored as they were.
    pub damaged_on_the_server: u64,
    /// How many files could not be restored.
    pub damaged_files: u64,
    /// The first of them.
    pub damaged_paths: Vec<String>,
    /// Everything that is wrong.
    pub problems: Vec<BackupProblem>,
    /// The mark that was put on the backup.
    pub mark: Option<MarkKind>,
    /// Why none could be put.
    pub not_marked: Option<String>,
}

impl BackupReport {
    fn new(id: &BackupId, quick: bool) -> Self {
        Self {
            id: id.clone(),
            ok: true,
            quick,
            checked_bytes: 0,
            files: 0,
            packs: 0,
            segments: 0,
            waits_for_wal: false,
            damaged_on_the_server: 0,
            damaged_files: 0,
            damaged_paths: Vec::new(),
            problems: Vec::new(),
            mark: None,
            not_marked: None,
        }
    }

    fn problem(&mut self, object: impl ToString, what: impl Into<String>) {
        self.problems.push(BackupProblem { object: object.to_string(), what: what.into() });
    }

    fn damaged_file(&mut self, path: &recovery::DataPath) {
        self.damaged_files += 1;
        if self.damaged_paths.len() < NAMED_FILES {
            self.damaged_paths.push(path.to_string());
        }
    }
}

/// Verifies a backup and marks it `verified` or `damaged`.
///
/// # Errors
/// `NotFound` when there is no such backup. When the repository cannot be reached nothing was proven either way, and no
/// mark is put.
pub async fn run(
    lineage: &LineageRepository,
    id: &BackupId,
    request: &BackupVerifyRequest,
    progress: &watch::Sender<BackupVerifyProgress>,
) -> Result<BackupReport> {
    let mut report =
        look(lineage, id, request, progress).await.map_err(|error| failed(format!("cannot verify {id}"), error))?;
    report.problems.sort();
    report.problems.dedup();
    report.ok = report.problems.is_empty();
    if request.mark {
        mark::put(lineage, request.now, &mut report).await;
    }
    Ok(report)
}

async fn look(
    lineage: &LineageRepository,
    id: &BackupId,
    request: &BackupVerifyRequest,
    progress: &watch::Sender<BackupVerifyProgress>,
) -> RepositoryResult<BackupReport> {
    let mut report = BackupReport::new(id, request.quick);
    let Some(manifest) = manifest(lineage, id, &mut report).await? else { return Ok(report) };
    report.damaged_on_the_server = manifest.damaged_files.len() as u64;
    let listing = Listing::of(lineage, id).await?;
    listing::compare(lineage, &manifest, &listing, &mut report).await?;
    if !request.quick {
        contents::read(lineage, &manifest, request.jobs, progress, &mut report).await?;
    }
    wal_check::look(lineage, &manifest, request, &mut report).await?;
    Ok(report)
}

/// The manifest; `None` when it is damaged, which is a problem.
async fn manifest(
    lineage: &LineageRepository,
    id: &BackupId,
    report: &mut BackupReport,
) -> RepositoryResult<Option<Manifest>> {
    let key = lineage.keys().key(&LineageObject::Manifest(id.clone()));
    match lineage.manifest(id).await {
        Ok(manifest) => Ok(Some(manifest)),
        Err(RepositoryError::NotFound(_)) if !lineage.marks(id).await?.is_empty() => {
            // Only what was committed is ever marked.
            report.problem(key, "it is missing, and the backup has marks: it was committed once");
            Ok(None)
        }
        Err(error) => damage_of(&key, error).map(|what| {
            report.problem(key, what);
            None
        }),
    }
}

/// What is wrong with an object, where the error says that something is; any other error ends the verification, because
/// nothing is known then.
fn damage_of(key: &ObjectKey, error: RepositoryError) -> RepositoryResult<String> {
    match error {
        RepositoryError::Damaged { key: named, what } if named == *key => Ok(what),
        RepositoryError::Damaged { .. } => Ok(error.to_string()),
        RepositoryError::Storage(error) if error.kind == StorageErrorKind::Corrupt => Ok(error.message),
        other => Err(other),
    }
}

/// As [`damage_of`], for an object that must be there.
fn damage_of_needed(key: &ObjectKey, error: RepositoryError) -> RepositoryResult<String> {
    if error.is_not_found() { Ok("it is missing".to_owned()) } else { damage_of(key, error) }
}

fn failed(doing: String, error: RepositoryError) -> Error {
    if error.is_not_found() {
        return Error::new(ErrorCode::NotFound, error.to_string())
            .because("the backup was never committed: it runs, or was interrupted")
            .help("pgvault backup list");
    }
    let error = Error::from(error);
    let outer = Error::new(error.code(), doing);
    let outer = error.causes().iter().fold(outer.because(error.message()), |outer, cause| outer.because(cause));
    error.help_lines().iter().fold(outer, |outer, help| outer.help(help.clone()))
}
