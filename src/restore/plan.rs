//! What a restore will do: everything is decided and checked here, nothing is changed.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use recovery::settings::{RecoverySettings, SettingsError, recovery_settings};
use recovery::{LineageId, NotRecoverable, RecoveryPlan, RecoveryTarget, StopAt};
use wal::SegmentName;

use crate::error::{Error, ErrorCode, Result};
use crate::repository::manifest::{Manifest, TablespacePath};
use crate::repository::{Inventory, LineageRepository, TailChain};

use super::directory::{self, Candidate, marker_text};
use super::{ConfigRequest, Owner, RestoreRequest, facts, refusal, space};

/// While a daemon stores segments in parallel, one may be there before the one in front of it: so often, and this long
/// apart, a gap is looked at again before it is believed.
const GAP_LOOKS: u32 = 4;
const GAP_PAUSE: Duration = Duration::from_secs(1);

/// WAL that PostgreSQL keeps while it replays: restartpoints remove older segments (`max_wal_size` is 1 GiB by default).
const KEPT_WAL: u64 = 1 << 30;

/// Space on one file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The first directory on it that is written to.
    pub path: PathBuf,
    /// At most so many bytes will be written.
    pub needs_bytes: u64,
    /// So many are free.
    pub free_bytes: u64,
}

/// Where a tablespace goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TablespacePlan {
    /// Its oid: the name of the link in `pg_tblspc`.
    pub oid: u32,
    /// Where it was on the server.
    pub old: PathBuf,
    /// Where it will be.
    pub new: PathBuf,
    pub(super) candidate: Candidate,
}

/// A restore that can be carried out.
#[derive(Clone, Debug)]
pub struct RestorePlan {
    /// How the target is recovered: backup, branch, WAL, what PostgreSQL is told.
    pub recovery: RecoveryPlan,
    /// The cluster.
    pub cluster: String,
    /// The lineage.
    pub lineage: LineageId,
    /// The data directory, absolute.
    pub directory: PathBuf,
    /// What is written into `postgresql.auto.conf`; `None` for `--no-config`.
    pub settings: Option<RecoverySettings>,
    /// Number of WAL segments that will be fetched.
    pub wal_segments: u64,
    /// What the last of them is put together from when it is not stored whole.
    pub tail: Option<TailChain>,
    /// Bytes that will be read from the repository, WAL included.
    pub download_bytes: u64,
    /// Bytes that will be written, WAL included.
    pub disk_bytes: u64,
    /// The same, by file system.
    pub places: Vec<Place>,
    /// Tablespaces outside of the data directory.
    pub tablespaces: Vec<TablespacePlan>,
    /// Where `pg_wal` will lie, if not in the data directory.
    pub wal_dir: Option<PathBuf>,
    /// Who will own the files, if not who runs us.
    pub owner: Option<Owner>,
    pub(super) manifest: Manifest,
    pub(super) data: Candidate,
    pub(super) wal: Option<Candidate>,
}

/// The plan as JSON (INTERFACE section 4).
#[derive(Debug, serde::Serialize)]
pub struct PlanDocument {
    r#type: &'static str,
    reachable: bool,
    backup: String,
    target: TargetDocument,
    timeline: u32,
    wal_segments: u64,
    wal_from: Option<String>,
    wal_to: Option<String>,
    tail: Option<TailDocument>,
    download_bytes: u64,
    disk_bytes: u64,
    directory: String,
    settings: Vec<String>,
    notes: Vec<String>,
}

/// The chain of tails that stands for the last segment.
#[derive(Debug, serde::Serialize)]
struct TailDocument {
    segment: String,
    to_lsn: String,
    objects: usize,
}

#[derive(Debug, serde::Serialize)]
struct TargetDocument {
    kind: &'static str,
    value: Option<String>,
    inclusive: bool,
}

impl RestorePlan {
    /// The plan as JSON.
    pub fn document(&self) -> PlanDocument {
        let settings = self.settings.iter().flat_map(|settings| &settings.settings);
        PlanDocument {
            r#type: "plan",
            reachable: true,
            backup: self.recovery.backup.id.to_string(),
            target: TargetDocument {
                kind: self.recovery.target.kind(),
                value: self.recovery.target.value(),
                inclusive: self.recovery.inclusive,
            },
            timeline: self.recovery.timeline.get(),
            wal_segments: self.wal_segments,
            wal_from: self.recovery.wal.first().map(|name| name.to_string()),
            wal_to: self.recovery.wal.last().map(|name| name.to_string()),
            tail: self.tail.as_ref().map(|tail| TailDocument {
                segment: tail.segment.to_string(),
                to_lsn: tail.end.to_string(),
                objects: tail.pieces.len(),
            }),
            download_bytes: self.download_bytes,
            disk_bytes: self.disk_bytes,
            directory: self.directory.display().to_string(),
            settings: settings.map(ToString::to_string).collect(),
            notes: self.recovery.notes.iter().map(ToString::to_string).collect(),
        }
    }
}

/// Plans the restore that `request` asks for; refuses, before anything is touched, what cannot end well.
pub async fn plan(lineage: &LineageRepository, request: &RestoreRequest) -> Result<RestorePlan> {
    if request.delta {
        return Err(Error::new(ErrorCode::NotAvailable, "--delta is not available in this version")
            .help("restore into an empty directory"));
    }
    let directory = std::path::absolute(&request.directory)
        .map_err(|error| Error::new(ErrorCode::TargetDirectory, format!("{}: {error}", request.directory.display())))?;
    let (inventory, recovery) = plan_recovery(lineage, request).await?;
    let manifest = lineage.manifest(&recovery.backup.id).await?;

    let marker = marker_text(lineage.id(), &recovery.backup.id);
    let data = directory::check(&directory, &marker, "data directory", "--to DIR")?;
    let wal = match &request.wal_dir {
        Some(path) => Some(directory::check(path, &marker, "WAL directory", "--wal-dir DIR")?),
        None => None,
    };
    let tablespaces = place_tablespaces(&manifest.tablespaces, &request.tablespaces, &marker)?;
    let paths = [&data].into_iter().chain(&wal).chain(tablespaces.iter().map(|t| &t.candidate)).map(|c| &c.path);
    refuse_nesting(&paths.map(PathBuf::as_path).collect::<Vec<_>>())?;
    let owner = Owner::decide(request.owner.as_deref(), &data.path)?;

    let segment_size = lineage.segment_size().bytes();
    let kept_wal = (recovery.wal.count() * segment_size).min(KEPT_WAL) + 2 * segment_size;
    let wal_path = wal.as_ref().map_or(&data.path, |wal| &wal.path).clone();
    let mut wanted = table_bytes(lineage, &manifest, &data.path, &tablespaces).await?;
    wanted.push((wal_path, kept_wal));
    let places = space::check(&wanted)?;
    let settings = request.config.as_ref().map(|config| settings_of(config, &recovery)).transpose()?;
    Ok(RestorePlan {
        cluster: lineage.cluster().to_string(),
        lineage: lineage.id(),
        directory: data.path.clone(),
        settings,
        wal_segments: recovery.wal.count(),
        tail: recovery.wal.last().and_then(|last| inventory.tail_chain(last, lineage.segment_size())),
        download_bytes: manifest.stored_bytes + stored_wal_bytes(&inventory, &recovery),
        disk_bytes: wanted.iter().map(|(_, bytes)| bytes).sum(),
        places,
        tablespaces,
        wal_dir: wal.as_ref().map(|wal| wal.path.clone()),
        owner,
        recovery,
        manifest,
        data,
        wal,
    })
}

async fn plan_recovery(lineage: &LineageRepository, request: &RestoreRequest) -> Result<(Inventory, RecoveryPlan)> {
    let mut looks = 0;
    loop {
        let inventory = lineage.survey().await?;
        let catalog = lineage.catalog_of(&inventory).await?;
        looks += 1;
        match facts::recovery_plan(lineage, &catalog, &request.recovery).await? {
            Ok(plan) => return Ok((inventory, plan)),
            Err(NotRecoverable::InGap { target: RecoveryTarget::Latest, .. }) if looks < GAP_LOOKS => {
                tokio::time::sleep(GAP_PAUSE).await;
            }
            Err(reason) => return Err(refusal::refused(lineage, &catalog, &reason)),
        }
    }
}

/// Finds a place for each tablespace: where `--tablespace OLD=NEW` says, else where it was.
fn place_tablespaces(
    tablespaces: &[TablespacePath],
    moves: &[(PathBuf, PathBuf)],
    marker: &str,
) -> Result<Vec<TablespacePlan>> {
    let mut targets: BTreeMap<PathBuf, &Path> = BTreeMap::new();
    for (old, new) in moves {
        if targets.insert(plain(old), new).is_some() {
            return Err(Error::new(ErrorCode::Usage, format!("--tablespace names {} twice", old.display())));
        }
    }
    let mut placed = Vec::new();
    for TablespacePath { oid, path } in tablespaces {
        let old = PathBuf::from(OsStr::from_bytes(path));
        let new = targets.remove(&plain(&old)).map_or_else(|| old.clone(), Path::to_path_buf);
        let what = format!("tablespace {oid} in");
        let instead = format!("--tablespace {}=NEW", old.display());
        let candidate = directory::check(&new, marker, &what, &instead)?;
        placed.push(TablespacePlan { oid: *oid, old, new: candidate.path.clone(), candidate });
    }
    match targets.into_keys().next() {
        None => Ok(placed),
        Some(unknown) => {
            let error = Error::new(ErrorCode::Usage, format!("the backup has no tablespace in {}", unknown.display()));
            let error =
                placed.iter().fold(error, |error, t| error.because(format!("it has one in {}", t.old.display())));
            Err(error.help("name the directory as it was on the server: pgvault backup show ID"))
        }
    }
}

/// The path without a trailing slash or `.` components.
fn plain(path: &Path) -> PathBuf {
    path.components().filter(|component| *component != Component::CurDir).collect()
}

/// Refuses directories of which one lies in another, or is the same: files would meet.
fn refuse_nesting(paths: &[&Path]) -> Result<()> {
    for (index, path) in paths.iter().enumerate() {
        if let Some(other) = paths[index + 1..].iter().find(|other| path.starts_with(other) || other.starts_with(path))
        {
            let message = format!("{} and {} lie in each other", path.display(), other.display());
            return Err(Error::new(ErrorCode::TargetDirectory, message)
                .help("data directory, WAL directory and tablespaces need a directory each: --tablespace OLD=NEW"));
        }
    }
    Ok(())
}

/// How many bytes go where. Which file lies in which tablespace only the file table knows, so it is read when there are any.
async fn table_bytes(
    lineage: &LineageRepository,
    manifest: &Manifest,
    data: &Path,
    tablespaces: &[TablespacePlan],
) -> Result<Vec<(PathBuf, u64)>> {
    if tablespaces.is_empty() {
        return Ok(vec![(data.to_owned(), manifest.size_bytes)]);
    }
    let mut by_oid: BTreeMap<u32, u64> = BTreeMap::new();
    for part in &manifest.parts {
        for entry in super::copy::read_part(lineage, manifest, part).await? {
            if let Some((oid, bytes)) = super::roots::size_in_tablespace(&entry) {
                *by_oid.entry(oid).or_default() += bytes;
            }
        }
    }
    let outside: Vec<(PathBuf, u64)> =
        tablespaces.iter().map(|t| (t.new.clone(), by_oid.get(&t.oid).copied().unwrap_or_default())).collect();
    let inside = manifest.size_bytes.saturating_sub(outside.iter().map(|(_, bytes)| bytes).sum());
    Ok([(data.to_owned(), inside)].into_iter().chain(outside).collect())
}

/// Compressed bytes of the WAL that will be fetched: whole segments, and tails where there is no whole one.
fn stored_wal_bytes(inventory: &Inventory, recovery: &RecoveryPlan) -> u64 {
    let tail_bytes = |name: SegmentName| -> u64 {
        inventory.tails.iter().filter(|(tail, _)| tail.segment == name).map(|(_, size)| size).sum()
    };
    recovery.wal.segments().map(|name| inventory.segments.get(&name).copied().unwrap_or_else(|| tail_bytes(name))).sum()
}

/// The recovery settings, with a restore_command that knows where this recovery goes.
fn settings_of(config: &ConfigRequest, recovery: &RecoveryPlan) -> Result<RecoverySettings> {
    let follows = config.standby.is_some() && recovery.stop == StopAt::EndOfWal;
    let mut command = config.restore_command.clone();
    command.timeline = (!follows).then_some(recovery.timeline);
    command.until = (recovery.stop != StopAt::EndOfWal).then_some(recovery.wal_end);
    recovery_settings(recovery, &command, config.standby.as_ref(), &config.options).map_err(|error| {
        let refused = Error::new(ErrorCode::Usage, error.to_string());
        match error {
            SettingsError::PasswordInConninfo => refused
                .because("it would be readable in the data directory, and in every backup of it")
                .help("leave the password in a password file: passfile=/var/lib/postgresql/.pgpass"),
            SettingsError::NotAParameter(_) => refused.help("write --recovery-option NAME=VALUE"),
            SettingsError::Decided(_) => refused.help("use --target-time, --target-lsn, --timeline, --exclusive, …"),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_must_not_lie_in_each_other() {
        let check = |paths: &[&str]| refuse_nesting(&paths.iter().map(Path::new).collect::<Vec<_>>()).is_ok();
        assert!(check(&["/a", "/b", "/ab"]));
        assert!(!check(&["/a", "/b", "/a"]));
        assert!(!check(&["/a", "/b", "/a/c"]));
        assert!(!check(&["/a/b", "/a"]));
    }

    #[test]
    fn moves_name_tablespaces_that_there_are_and_go_to_empty_directories() {
        let dir = tempfile::tempdir().unwrap();
        let (empty, full) = (dir.path().join("empty"), dir.path().join("full"));
        std::fs::create_dir_all(&empty).unwrap();
        std::fs::create_dir_all(full.join("x")).unwrap();
        let tablespaces = [TablespacePath { oid: 16400, path: b"/srv/ts/".to_vec() }];
        let place = |old: &str, new: &Path| {
            place_tablespaces(&tablespaces, &[(PathBuf::from(old), new.to_owned())], "marker").map_err(|e| e.code())
        };
        let placed = place("/srv/ts", &empty).unwrap();
        assert_eq!((placed[0].oid, &placed[0].new), (16400, &std::fs::canonicalize(&empty).unwrap()));
        assert_eq!(place("/srv/ts", &full).unwrap_err(), ErrorCode::TargetDirectory);
        assert_eq!(place("/srv/ts", Path::new("relative")).unwrap_err(), ErrorCode::TargetDirectory);
        let unknown = [(PathBuf::from("/srv/ts"), empty.clone()), (PathBuf::from("/srv/other"), full)];
        let error = place_tablespaces(&tablespaces, &unknown, "marker").unwrap_err();
        assert_eq!(error.code(), ErrorCode::Usage);
        assert!(error.to_string().contains("/srv/ts"), "{error}");
        let twice = [(PathBuf::from("/srv/ts"), empty.clone()), (PathBuf::from("/srv/./ts/"), empty)];
        assert_eq!(place_tablespaces(&tablespaces, &twice, "marker").unwrap_err().code(), ErrorCode::Usage);
    }
}
