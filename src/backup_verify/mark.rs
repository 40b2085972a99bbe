//! What a verification leaves behind: a mark on the backup.

use recovery::BackupId;
use wal::PgTime;

use crate::repository::layout::{LineageObject, MarkKind, ObjectName, Parsed};
use crate::repository::{LineageRepository, Mark, MarkDocument, RepositoryResult};

use super::listing::Listing;
use super::{BackupReport, damage_of_needed};

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

/// Reads the marks of a backup: each says what its name says, and none is missing between others.
pub(super) async fn read_all(
    lineage: &LineageRepository,
    id: &BackupId,
    listing: &Listing,
    report: &mut BackupReport,
) -> RepositoryResult<()> {
    let mut numbers = Vec::new();
    for key in listing.folder.keys() {
        let Parsed::Known(ObjectName::InLineage(_, LineageObject::Mark(_, number, what))) =
            ObjectName::parse(key.as_str())
        else {
            continue;
        };
        numbers.push(number);
        match lineage.mark_document(&Mark { backup: id.clone(), number, what }).await {
            Ok(document) if document.what == what => {}
            Ok(document) => report.problem(key, format!("it says \"{}\", its name \"{what}\"", document.what)),
            Err(error) => {
                let what = damage_of_needed(key, error)?;
                report.problem(key, format!("{what}; its name still counts"));
            }
        }
    }
    numbers.sort_unstable();
    let missing = (1..numbers.last().copied().unwrap_or(0)).find(|number| numbers.binary_search(number).is_err());
    if let Some(missing) = missing {
        let folder = format!("{}marks/", lineage.keys().backup_prefix(id));
        report.problem(folder, format!("mark {missing:05} is missing"));
    }
    Ok(())
}
