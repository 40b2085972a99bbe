//! Is everything in a repository what it must be? Looks at every key, and at what the keys together come to.
//!
//! Nothing is changed but marks on damaged backups. What is wrong is a problem; what a person should know of and what costs
//! space only is a remark.

mod documents;
mod histories;

use std::collections::{BTreeMap, BTreeSet};

use futures_util::FutureExt;
use recovery::BackupId;
use tokio::sync::watch;
use wal::PgTime;

use crate::backup_verify::{self, BackupVerifyProgress, BackupVerifyRequest};
use crate::error::{Error, Result};
use crate::repository::layout::{LineageObject, ObjectName, Parsed, cluster_prefix};
use crate::repository::{ClusterName, LineageRepository, Repository, RepositoryError};
use crate::storage::{ObjectInfo, Sha256};
use crate::wal_verify::{self, VerifyProgress, VerifyRequest};

/// Prefix of what the probe of a store leaves where nothing may be deleted.
const PROBES: &str = "pgvault.probe/";

/// So many objects of one sort are named.
const NAMED: usize = 20;

/// What is to be looked at.
#[derive(Clone, Copy, Debug)]
pub struct RepoCheckRequest {
    /// Read everything; else listings and small documents alone.
    pub deep: bool,
    /// How much is read at a time.
    pub jobs: usize,
    /// Whether damaged backups are marked.
    pub mark: bool,
    /// When.
    pub now: PgTime,
}

/// An object, and what is to be said of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Remark {
    /// Its key, or the prefix of several.
    pub object: String,
    /// What is said.
    pub what: String,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct RepoReport {
    /// Objects that were listed.
    pub objects: u64,
    /// Bytes that they take.
    pub listed_bytes: u64,
    /// Committed backups.
    pub backups: u64,
    /// Bytes that were read of backups and WAL.
    pub checked_bytes: u64,
    /// Packs that no backup names.
    pub orphan_packs: u64,
    /// What they take.
    pub orphan_bytes: u64,
    /// Damage.
    pub problems: Vec<Remark>,
    /// What is no damage and should be known.
    pub remarks: Vec<Remark>,
}

impl RepoReport {
    /// Whether there is no damage.
    pub fn is_ok(&self) -> bool {
        self.problems.is_empty()
    }

    fn problem(&mut self, object: impl ToString, what: impl Into<String>) {
        self.problems.push(Remark { object: object.to_string(), what: what.into() });
    }

    fn remark(&mut self, object: impl ToString, what: impl Into<String>) {
        self.remarks.push(Remark { object: object.to_string(), what: what.into() });
    }
}

/// Checks the whole repository. Its marker and its keys were proven when it was opened.
///
/// # Errors
/// When the repository cannot be reached: then nothing was proven either way.
pub async fn run(repository: &Repository, request: &RepoCheckRequest) -> Result<RepoReport> {
    let mut report = RepoReport::default();
    let top = repository.objects().storage().list_level("").await.map_err(RepositoryError::Storage)?;
    foreign(&top.objects, &mut report);
    for folder in &top.folders {
        let Ok(name) = ClusterName::new(folder.as_str()) else {
            if format!("{folder}/") != PROBES && folder != "keys" {
                report.remark(format!("{folder}/"), "nothing of pgvault's");
            }
            continue;
        };
        // Boxed, because the compiler cannot see otherwise that the whole is Send.
        cluster(repository, &name, request, &mut report).boxed().await?;
    }
    report.problems.sort();
    report.problems.dedup();
    Ok(report)
}

async fn cluster(
    repository: &Repository,
    name: &ClusterName,
    request: &RepoCheckRequest,
    report: &mut RepoReport,
) -> Result<()> {
    let prefix = cluster_prefix(name);
    let listed = repository.objects().storage().list(&prefix, None, None).await.map_err(RepositoryError::Storage)?;
    foreign(&listed, report);
    let mut packs: BTreeMap<Sha256, u64> = BTreeMap::new();
    let mut lineages = BTreeSet::new();
    for object in &listed {
        match ObjectName::parse(object.key.as_str()) {
            Parsed::Known(ObjectName::Pack(_, sha256)) => drop(packs.insert(sha256, object.size)),
            Parsed::Known(ObjectName::InLineage(keys, _)) => drop(lineages.insert(keys.lineage())),
            _ => {}
        }
    }
    let mut all_manifests = true;
    for id in lineages {
        let lineage = match repository.cluster(name).lineage(id).await {
            Ok(lineage) => lineage,
            Err(error) => {
                let key = format!("{prefix}{id}/lineage.json");
                report.problem(key, documents::damage(error)?);
                all_manifests = false;
                continue;
            }
        };
        all_manifests &= one_lineage(&lineage, &listed, request, &mut packs, report).await?;
    }
    if all_manifests {
        report.orphan_packs += packs.len() as u64;
        report.orphan_bytes += packs.values().sum::<u64>();
        if !packs.is_empty() {
            let what = format!("{} packs of {} bytes belong to no backup", packs.len(), packs.values().sum::<u64>());
            report.remark(format!("{prefix}packs/"), what);
        }
    }
    Ok(())
}

/// Checks a lineage and takes the packs that its backups name out of `packs`; whether every manifest could be read.
async fn one_lineage(
    lineage: &LineageRepository,
    listed: &[ObjectInfo],
    request: &RepoCheckRequest,
    packs: &mut BTreeMap<Sha256, u64>,
    report: &mut RepoReport,
) -> Result<bool> {
    documents::look(lineage, listed, report).await?;
    histories::look(lineage, listed, report).await?;
    wal(lineage, request, report).await?;
    let committed = lineage.listed_backups().await?;
    unfinished(lineage, listed, &committed, report);
    let mut all_manifests = true;
    for id in &committed {
        report.backups += 1;
        let verify =
            BackupVerifyRequest { quick: !request.deep, jobs: request.jobs, mark: request.mark, now: request.now };
        let found =
            backup_verify::run(lineage, id, &verify, &watch::Sender::new(BackupVerifyProgress::default())).await?;
        report.checked_bytes += found.checked_bytes;
        for problem in found.problems {
            if found.waits_for_wal {
                report.remark(problem.object, problem.what);
            } else {
                report.problem(problem.object, problem.what);
            }
        }
        match lineage.manifest(id).await {
            Ok(manifest) => {
                for pack in &manifest.packs {
                    packs.remove(&pack.sha256);
                }
            }
            // Told above.
            Err(error) => {
                documents::damage(error)?;
                all_manifests = false;
            }
        }
    }
    Ok(all_manifests)
}

async fn wal(lineage: &LineageRepository, request: &RepoCheckRequest, report: &mut RepoReport) -> Result<()> {
    let verify = VerifyRequest {
        from: None,
        to: None,
        timeline: None,
        quick: !request.deep,
        jobs: request.jobs,
        known_end: None,
    };
    let found = wal_verify::look(lineage, &verify, &watch::Sender::new(VerifyProgress::default())).await;
    let found = found.map_err(Error::from)?;
    report.checked_bytes += found.checked_bytes;
    for problem in found.problems {
        report.problem(problem.object, problem.what);
    }
    for gap in found.gaps {
        let what =
            format!("WAL {} to {} of timeline {} was lost: {}", gap.from_lsn, gap.to_lsn, gap.timeline, gap.reason);
        report.remark(lineage.keys().gaps_prefix(), what);
    }
    Ok(())
}

/// Backups that were begun and never committed, and bytes that were refused.
fn unfinished(lineage: &LineageRepository, listed: &[ObjectInfo], committed: &[BackupId], report: &mut RepoReport) {
    let mut begun: BTreeMap<BackupId, (u64, bool)> = BTreeMap::new();
    let mut unclaimed: BTreeSet<BackupId> = committed.iter().cloned().collect();
    for object in listed {
        let Parsed::Known(ObjectName::InLineage(keys, found)) = ObjectName::parse(object.key.as_str()) else {
            continue;
        };
        if keys.lineage() != lineage.id() {
            continue;
        }
        match found {
            LineageObject::Begun(id) if committed.contains(&id) => drop(unclaimed.remove(&id)),
            LineageObject::Begun(id) | LineageObject::FilePart(id, ..) if !committed.contains(&id) => {
                begun.entry(id).or_default().0 += object.size;
            }
            LineageObject::PostgresManifest(id, _) if !committed.contains(&id) => {
                begun.entry(id).or_default().1 = true;
            }
            LineageObject::Conflict(..) => {
                report.remark(&object.key, "refused: its key held other bytes, or damaged ones; compare them");
            }
            _ => {}
        }
    }
    for id in unclaimed {
        report.remark(lineage.keys().key(&LineageObject::Begun(id)), "it is missing; no restore needs it");
    }
    for (id, (bytes, complete)) in begun {
        let what = if complete {
            "it has everything but its manifest: it is being committed, was interrupted just before, or its manifest was removed"
                .to_owned()
        } else {
            format!("it runs, or was interrupted: {bytes} bytes besides packs")
        };
        report.remark(lineage.keys().backup_prefix(&id), what);
    }
}

/// Keys that are nobody's.
fn foreign(listed: &[ObjectInfo], report: &mut RepoReport) {
    let mut unknown = 0;
    for object in listed {
        report.objects += 1;
        report.listed_bytes += object.size;
        if ObjectName::parse(object.key.as_str()) == Parsed::Unknown && !object.key.as_str().starts_with(PROBES) {
            unknown += 1;
            if unknown <= NAMED {
                report.remark(&object.key, "nothing of pgvault's: its name is none of the format");
            }
        }
    }
    if unknown > NAMED {
        report.remark("", format!("{} more objects are nothing of pgvault's", unknown - NAMED));
    }
}
