//! Deleting one backup: [`plan`] reads and decides, [`apply`] deletes.
//!
//! What goes is the manifest and the rest of the backup's own folder, which no other backup refers to. Packs stay: other
//! backups share them, and one that runs, here or elsewhere, may have found its chunks in them and be about to name them in a
//! manifest that nobody can see yet. Whoever takes packs away has to wait for that (FORMAT 5.0); until then the next backup
//! uses them. WAL stays too.

mod facts;

use recovery::{BackupId, Catalog, LineageId};
use retention::{DeleteRefused, LostMoments, lost_without, may_delete};
use wal::PgTime;

use crate::backup::LONGEST;
use crate::error::{Error, ErrorCode, Result};
use crate::fault_point;
use crate::repository::layout::LineageObject;
use crate::repository::{BackupObjects, LineageRepository, RepositoryResult};
use crate::storage::ObjectKey;
use facts::packs;

/// What will be deleted, and what that means.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct DeletePlan {
    /// The backup.
    pub id: BackupId,
    /// Its cluster.
    pub cluster: String,
    /// Its lineage.
    pub lineage: LineageId,
    /// Why nothing but its name is known, where its manifest cannot be read or is not there.
    pub problem: Option<String>,
    /// How many objects go.
    pub objects: usize,
    /// What they take.
    pub bytes: u64,
    /// Packs that no other backup needs: they stay until nothing that runs can need them either. `None` where that is not
    /// known, because a manifest cannot be read.
    pub free_packs: Option<FreePacks>,
    /// What can no longer be recovered then.
    pub lost: Vec<LostMoments>,
    /// In the order in which they go.
    #[serde(skip)]
    steps: Vec<Vec<ObjectKey>>,
}

/// Packs that only one backup needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct FreePacks {
    /// How many.
    pub count: u64,
    /// What they take.
    pub bytes: u64,
}

/// Plans the deletion of a backup; refuses what must stay.
///
/// # Errors
///
/// `NotFound` when there is nothing of it, `Refused` when it is kept by hand, when no backup would stay that can be restored
/// cleanly, or when it may still be running.
pub async fn plan(lineage: &LineageRepository, id: &BackupId, now: PgTime) -> Result<DeletePlan> {
    let inventory = lineage.survey().await?;
    let objects = inventory.backups.get(id).ok_or_else(|| not_found(id))?;
    let catalog = lineage.catalog_of(&inventory).await?;
    let exists = catalog.backups.iter().any(|backup| backup.id == *id);
    let problem = problem(lineage, id, &catalog, objects);
    let packs = packs(lineage, &catalog).await?;
    if objects.committed {
        may_delete(&catalog, id, |other| packs.are_stored(other)).map_err(|reason| refused(id, reason))?;
    } else {
        not_running(lineage, id, objects, now)?;
    }
    Ok(DeletePlan {
        id: id.clone(),
        cluster: lineage.cluster().to_string(),
        lineage: lineage.id(),
        problem,
        objects: objects.objects.len(),
        bytes: objects.objects.iter().map(|(_, size)| size).sum(),
        free_packs: packs.only_of(id),
        lost: if exists { lost_without(&catalog, id) } else { Vec::new() },
        steps: steps(lineage, id, objects),
    })
}

/// Deletes what was planned. Whatever ends it, the same command finishes it.
///
/// `begun` goes first, by itself: a backup that is committed needs it no more, and without it what is left can never be taken
/// for one that runs. Then the manifest, by itself: from here on the backup does not exist, and nobody restores from a folder
/// of which half is gone. Marks and tables last, in any order.
pub async fn apply(plan: &DeletePlan, lineage: &LineageRepository) -> RepositoryResult<()> {
    fault_point!("delete.begin");
    for (number, keys) in plan.steps.iter().enumerate() {
        lineage.objects().storage().delete(keys).await?;
        match number {
            0 => {
                fault_point!("delete.unclaimed");
            }
            1 => {
                fault_point!("delete.uncommitted");
            }
            _ => {
                fault_point!("delete.done");
            }
        }
    }
    Ok(())
}

/// Three steps, any of which may have nothing to do.
fn steps(lineage: &LineageRepository, id: &BackupId, objects: &BackupObjects) -> Vec<Vec<ObjectKey>> {
    let manifest = lineage.keys().key(&LineageObject::Manifest(id.clone()));
    let begun = lineage.keys().key(&LineageObject::Begun(id.clone()));
    let step = |wanted: fn(&ObjectKey, &[&ObjectKey; 2]) -> bool| -> Vec<ObjectKey> {
        let keys = objects.objects.iter().map(|(key, _)| key);
        keys.filter(|key| wanted(key, &[&manifest, &begun])).cloned().collect()
    };
    vec![
        step(|key, [_, begun]| key == *begun),
        step(|key, [manifest, _]| key == *manifest),
        step(|key, named| !named.contains(&key)),
    ]
}

/// Why nothing but the name of the backup is known.
fn problem(lineage: &LineageRepository, id: &BackupId, catalog: &Catalog, objects: &BackupObjects) -> Option<String> {
    if objects.committed {
        return catalog.unreadable(id).map(|backup| backup.reason.clone());
    }
    let manifest = lineage.keys().key(&LineageObject::Manifest(id.clone()));
    Some(format!("{manifest} is not there: it was interrupted, or its deletion was"))
}

/// Refuses what may be the folder of a backup that runs. One that has marks was committed once, and one without `begun` never
/// runs.
fn not_running(lineage: &LineageRepository, id: &BackupId, objects: &BackupObjects, now: PgTime) -> Result<()> {
    let begun = lineage.keys().key(&LineageObject::Begun(id.clone()));
    if !objects.marks.is_empty() || !objects.objects.iter().any(|(key, _)| *key == begun) {
        return Ok(());
    }
    let micros = id.started_at().map_or(0, |started_at| now.as_micros().saturating_sub(started_at.as_micros()));
    if u128::try_from(micros).is_ok_and(|micros| micros > LONGEST.as_micros()) {
        return Ok(());
    }
    Err(Error::new(ErrorCode::Refused, format!("backup {id} has begun and has no manifest: it may be running"))
        .because("a backup that runs may take seven days, on this machine or another")
        .help("it is never chosen, and the next backup uses its packs; delete what is left of it after that time"))
}

fn not_found(id: &BackupId) -> Error {
    Error::new(ErrorCode::NotFound, format!("there is no backup {id}")).help("pgvault backup list")
}

fn refused(id: &BackupId, reason: DeleteRefused) -> Error {
    let error = Error::new(ErrorCode::Refused, format!("backup {id} is not deleted: {reason}"));
    match reason {
        DeleteRefused::Pinned => error.help(format!("leave it to retention first: pgvault backup release {id}")),
        DeleteRefused::LastClean => error
            .because("what is damaged, waits for WAL or lacks packs does not count")
            .help("take another first: pgvault backup now --wait"),
    }
}
