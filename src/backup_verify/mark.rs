//! What a verification leaves behind: a mark on the backup.

use wal::PgTime;

use crate::repository::layout::MarkKind;
use crate::repository::{LineageRepository, MarkDocument, RepositoryResult};

use super::BackupReport;

/// Who puts these marks.
const BY: &str = "backup verify";

/// Notes the result. Only a full reading says that all is well; damage is noted whoever finds it. WAL that has not arrived
/// yet is neither.
pub(super) async fn put(lineage: &LineageRepository, now: PgTime, report: &mut BackupReport) {
    let what = match (report.ok, report.quick) {
        (true, false) => MarkKind::Verified,
        (true, true) => return,
        (false, _) if report.waits_for_wal => return,
        (false, _) => MarkKind::Damaged,
    };
    let note = match report.problems.first() {
        Some(first) if report.problems.len() > 1 => {
            format!("{}: {} (and {} more)", first.object, first.what, report.problems.len() - 1)
        }
        Some(first) => format!("{}: {}", first.object, first.what),
        None => String::new(),
    };
    let document = MarkDocument { what, at: now, by: BY.to_owned(), note };
    match mark(lineage, &document, report).await {
        Ok(()) => report.mark = Some(what),
        // What was found holds, whether it could be noted or not.
        Err(error) => report.not_marked = Some(error.to_string()),
    }
}

async fn mark(lineage: &LineageRepository, document: &MarkDocument, report: &BackupReport) -> RepositoryResult<()> {
    // Damage that is known already needs no second mark.
    let known = lineage.marks(&report.id).await?;
    let last = known.iter().rfind(|mark| matches!(mark.what, MarkKind::Verified | MarkKind::Damaged));
    if document.what == MarkKind::Damaged && last.is_some_and(|mark| mark.what == MarkKind::Damaged) {
        return Ok(());
    }
    lineage.put_mark(&report.id, document).await.map(drop)
}
