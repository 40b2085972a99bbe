//! Small documents that nothing else reads whole: claims of backups, marks, records of lost WAL.

use std::collections::BTreeMap;

use recovery::BackupId;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::repository::layout::{GapName, LineageObject, ObjectName, Parsed};
use crate::repository::{GapDocument, LineageRepository, Mark, RepositoryError, RepositoryResult, unseal_document};
use crate::storage::{ObjectInfo, ObjectKey, StorageErrorKind};

use super::RepoReport;

/// Reads every claim, mark and record of the lineage.
pub(super) async fn look(lineage: &LineageRepository, listed: &[ObjectInfo], report: &mut RepoReport) -> Result<()> {
    let mut numbers: BTreeMap<BackupId, Vec<u32>> = BTreeMap::new();
    for object in listed {
        let Parsed::Known(ObjectName::InLineage(keys, name)) = ObjectName::parse(object.key.as_str()) else { continue };
        if keys != *lineage.keys() {
            continue;
        }
        let wrong = match name {
            LineageObject::Begun(id) => begun(lineage, &object.key, id.as_str()).await,
            LineageObject::Mark(backup, number, what) => {
                numbers.entry(backup.clone()).or_default().push(number);
                mark(lineage, &Mark { backup, number, what }).await
            }
            LineageObject::Gap(name) => gap(lineage, &object.key, name).await,
            _ => continue,
        };
        match wrong {
            Ok(None) => {}
            Ok(Some(what)) => report.problem(&object.key, what),
            // Listed, and deleted since.
            Err(RepositoryError::NotFound(_)) => {}
            Err(error) => report.problem(&object.key, damage(error)?),
        }
    }
    for (id, mut numbers) in numbers {
        numbers.sort_unstable();
        let last = numbers.last().copied().unwrap_or(0);
        if let Some(missing) = (1..last).find(|number| numbers.binary_search(number).is_err()) {
            let folder = format!("{}marks/", lineage.keys().backup_prefix(&id));
            report.problem(folder, format!("mark {missing:05} is missing: numbers follow each other"));
        }
    }
    Ok(())
}

async fn mark(lineage: &LineageRepository, mark: &Mark) -> RepositoryResult<Option<String>> {
    let said = lineage.mark_document(mark).await?.what;
    Ok((said != mark.what).then(|| format!("it says \"{said}\"; its name counts")))
}

async fn begun(lineage: &LineageRepository, key: &ObjectKey, id: &str) -> RepositoryResult<Option<String>> {
    let document: Value = unseal_document(key, "begun", &lineage.objects().get(key).await?)?;
    let (said, place) = (&document["id"], &document["lineage"]);
    let fits = said == id && *place == lineage.id().to_string();
    Ok((!fits).then(|| format!("it claims backup {said} of {place}")))
}

async fn gap(lineage: &LineageRepository, key: &ObjectKey, name: GapName) -> RepositoryResult<Option<String>> {
    let document: GapDocument = unseal_document(key, "gap", &lineage.objects().get(key).await?)?;
    let said = GapName { timeline: document.timeline, from: document.from_lsn, to: document.to_lsn };
    let (timeline, from, to) = (said.timeline, said.from, said.to);
    Ok((said != name).then(|| format!("it tells of {from} to {to} on timeline {timeline}")))
}

/// What is wrong with an object; any other error ends the check.
pub(super) fn damage(error: RepositoryError) -> Result<String> {
    match error {
        RepositoryError::Damaged { what, .. } => Ok(what),
        RepositoryError::NotFound(_) => Ok("it is missing".to_owned()),
        RepositoryError::Storage(error) if error.kind == StorageErrorKind::Corrupt => Ok(error.message),
        other => Err(Error::from(other)),
    }
}
