//! What a restore will do: everything is decided and checked here, nothing is changed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use recovery::settings::{RecoverySettings, SettingsError, recovery_settings};
use recovery::{LineageId, NotRecoverable, RecoveryPlan, RecoveryTarget, StopAt};
use wal::SegmentName;

use crate::error::{Error, ErrorCode, Result};
use crate::repository::manifest::Manifest;
use crate::repository::{Inventory, LineageRepository, TailChain};

use super::existing::{Existing, Known, Survey, Tally, TreeKind};
use super::marker::Marker;
use super::places::{Places, TablespacePlan};
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
    /// What becomes of what lies in the directories already; `None` when they are empty.
    pub existing: Option<Existing>,
    pub(super) manifest: Manifest,
    /// What is removed and kept; as `existing`.
    pub(super) survey: Option<Arc<Survey>>,
    /// What was asked for: the directories are looked at once more before they are written to.
    pub(super) request: RestoreRequest,
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
    existing: Option<ExistingDocument>,
}

/// What becomes of what is there already.
#[derive(Debug, serde::Serialize)]
struct ExistingDocument {
    compared: Tally,
    missing: Tally,
    removed: Tally,
    removed_directories: u64,
    left: Vec<String>,
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
            existing: self.existing.as_ref().map(|existing| ExistingDocument {
                compared: existing.compared,
                missing: existing.missing,
                removed: existing.removed,
                removed_directories: existing.removed_directories,
                left: existing.left.iter().map(|path| path.display().to_string()).collect(),
            }),
        }
    }
}

/// Plans the restore that `request` asks for; refuses, before anything is touched, what cannot end well.
pub async fn plan(lineage: &LineageRepository, request: &RestoreRequest) -> Result<RestorePlan> {
    let directory = std::path::absolute(&request.directory)
        .map_err(|error| Error::new(ErrorCode::TargetDirectory, format!("{}: {error}", request.directory.display())))?;
    let (inventory, recovery) = plan_recovery(lineage, request).await?;
    let manifest = lineage.manifest(&recovery.backup.id).await?;

    let wanted = Marker { lineage: lineage.id(), backup: recovery.backup.id.clone(), delta: false, unsynced: false };
    let places = Places::decide(&directory, request, &manifest.tablespaces, &wanted)?;
    let owner = Owner::decide(request.owner.as_deref(), &places.data.path)?;

    let segment_size = lineage.segment_size().bytes();
    let kept_wal = (recovery.wal.count() * segment_size).min(KEPT_WAL) + 2 * segment_size;
    let wal_path = places.wal.as_ref().map_or(&places.data.path, |wal| &wal.path).clone();
    let table = read_table(lineage, &manifest, &places).await?;
    let mut written = bytes_by_place(&manifest, &places, &table);
    let disk_bytes = written.iter().map(|(_, bytes)| bytes).sum::<u64>() + kept_wal;
    let (survey, existing) = if places.are_empty() {
        (None, None)
    } else {
        let (survey, existing, taken) = look(&places, table.known).await?;
        for ((_, bytes), taken) in written.iter_mut().zip(taken) {
            *bytes = bytes.saturating_sub(taken);
        }
        (Some(survey), Some(existing))
    };
    written.push((wal_path, kept_wal));
    let room = space::check(&written)?;
    let settings = request.config.as_ref().map(|config| settings_of(config, &recovery)).transpose()?;
    Ok(RestorePlan {
        cluster: lineage.cluster().to_string(),
        lineage: lineage.id(),
        directory: places.data.path.clone(),
        settings,
        wal_segments: recovery.wal.count(),
        tail: recovery.wal.last().and_then(|last| inventory.tail_chain(last, lineage.segment_size())),
        download_bytes: manifest.stored_bytes + stored_wal_bytes(&inventory, &recovery),
        disk_bytes,
        places: room,
        tablespaces: places.tablespaces.clone(),
        wal_dir: places.wal.as_ref().map(|wal| wal.path.clone()),
        owner,
        existing,
        recovery,
        manifest,
        survey,
        request: request.clone(),
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

/// What the file table says, read once.
#[derive(Debug, Default)]
struct Table {
    by_tablespace: BTreeMap<u32, u64>,
    known: Known,
}

/// Reads the file table, where something depends on it: which file lies in which tablespace, or what there is to keep.
async fn read_table(lineage: &LineageRepository, manifest: &Manifest, places: &Places) -> Result<Table> {
    let mut table = Table::default();
    if places.tablespaces.is_empty() && places.are_empty() {
        return Ok(table);
    }
    for part in &manifest.parts {
        for entry in super::copy::read_part(lineage, manifest, part).await? {
            if let Some((oid, bytes)) = super::roots::size_in_tablespace(&entry) {
                *table.by_tablespace.entry(oid).or_default() += bytes;
            }
            if !places.are_empty() {
                table.known.add(&entry);
            }
        }
    }
    Ok(table)
}

/// How many bytes go where, by directory in the order of [`Places::trees`].
fn bytes_by_place(manifest: &Manifest, places: &Places, table: &Table) -> Vec<(PathBuf, u64)> {
    let in_space = |oid| table.by_tablespace.get(&oid).copied().unwrap_or_default();
    let outside: u64 = places.tablespaces.iter().map(|t| in_space(t.oid)).sum();
    let bytes = |kind| match kind {
        TreeKind::Data => manifest.size_bytes.saturating_sub(outside),
        TreeKind::Wal => 0,
        TreeKind::Tablespace(oid) => in_space(oid),
    };
    places.trees().into_iter().map(|tree| (tree.path, bytes(tree.kind))).collect()
}

/// Looks at what is there; how much of it and what becomes of it, and the bytes that it takes by directory.
async fn look(places: &Places, mut known: Known) -> Result<(Arc<Survey>, Existing, Vec<u64>)> {
    super::finish::REQUIRED_DIRECTORIES.iter().for_each(|path| known.add_directory(path.as_bytes()));
    let survey = Arc::new(Survey { trees: places.trees(), known, links: places.links() });
    let looking = survey.clone();
    let looked = tokio::task::spawn_blocking(move || looking.look()).await;
    let looked = looked.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    let (existing, taken) = looked.map_err(|error| {
        let directory = places.data.path.display();
        Error::new(ErrorCode::TargetDirectory, format!("cannot look through {directory}: {error}"))
            .help("restore into an empty directory: --to DIR")
    })?;
    Ok((survey, existing, taken))
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
