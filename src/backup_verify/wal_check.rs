//! The WAL without which a backup does not become consistent: from its start to its stop.

use tokio::sync::watch;

use crate::repository::layout::{LineageObject, ObjectName, Parsed};
use crate::repository::manifest::Manifest;
use crate::repository::{LineageRepository, RepositoryResult};
use crate::wal_verify::{self, KnownEnd, VerifyProgress, VerifyRequest};

use super::{BackupReport, BackupVerifyRequest};

/// Looks at the WAL of a backup; reads it unless the verification is quick.
pub(super) async fn look(
    lineage: &LineageRepository,
    manifest: &Manifest,
    request: &BackupVerifyRequest,
    report: &mut BackupReport,
) -> RepositoryResult<()> {
    let wal = VerifyRequest {
        from: Some(manifest.start_lsn),
        to: Some(manifest.stop_lsn),
        timeline: Some(manifest.timeline),
        quick: request.quick,
        jobs: request.jobs,
        known_end: Some(KnownEnd {
            timeline: manifest.timeline,
            lsn: manifest.stop_lsn,
            because: "the backup needs WAL",
        }),
    };
    let found = wal_verify::look(lineage, &wal, &watch::Sender::new(VerifyProgress::default())).await?;
    report.segments = found.segments + found.tails;
    report.checked_bytes += found.checked_bytes;
    let concerning: Vec<_> = found.problems.iter().filter(|problem| concerns(manifest, &problem.object)).collect();
    report.waits_for_wal =
        found.lacks_known_end && concerning.len() == 1 && found.gaps.is_empty() && report.problems.is_empty();
    for problem in concerning {
        let span = match (problem.from_lsn, problem.to_lsn) {
            (Some(from), Some(to)) => format!("WAL {from} to {to}: "),
            _ => String::new(),
        };
        report.problem(&problem.object, format!("{span}{}", problem.what));
    }
    for gap in found.gaps {
        report.problem(
            lineage.keys().wal_prefix(),
            format!("WAL {} to {} was lost: {}", gap.from_lsn, gap.to_lsn, gap.reason),
        );
    }
    Ok(())
}

/// Other backups' manifests and other timelines' histories are read on the way; they are not this backup's.
fn concerns(manifest: &Manifest, object: &str) -> bool {
    match ObjectName::parse(object) {
        Parsed::Known(ObjectName::InLineage(_, LineageObject::Manifest(_))) => false,
        Parsed::Known(ObjectName::InLineage(_, LineageObject::History(timeline))) => timeline == manifest.timeline,
        _ => true,
    }
}
