//! Why something cannot be recovered, as a person is told.

use recovery::{Catalog, Moment, NotRecoverable, UnreadableBackup};
use wal::{Gap, SegmentName};

use crate::error::{Error, ErrorCode};
use crate::repository::LineageRepository;
use crate::repository::layout::LineageObject;

/// The refusal of a recovery from what is stored of a lineage: which WAL is missing, why, and under which key it should lie.
pub fn refused(lineage: &LineageRepository, catalog: &Catalog, reason: &NotRecoverable) -> Error {
    let unreadable = reason.may_be_reached_by(catalog);
    let error = match reason {
        // Not that there was none: what there is cannot be read.
        NotRecoverable::NoBackup { .. } if !unreadable.is_empty() => {
            Error::new(ErrorCode::Damaged, format!("cannot recover {}: {reason}", lineage.cluster()))
                .help(format!("take a backup: pgvault backup now {} --wait", lineage.cluster()))
        }
        _ => not_recoverable(lineage.cluster().as_str(), reason),
    };
    let error = unreadable.into_iter().fold(error, not_known);
    if let NotRecoverable::NoHistory { timeline } = reason {
        return error.because(format!("missing object: {}", lineage.keys().key(&LineageObject::History(*timeline))));
    }
    let Some(gap) = reason.missing() else { return error };
    let error = error.because(format!("why WAL is missing from {}: {}", gap.start, catalog.reason_of(&gap)));
    // What is known to be lost was never stored.
    let gone = catalog.unexplained(&gap);
    gone.iter().fold(error, |error, gap| error.because(missing_objects(lineage, gap)))
}

/// Says of a backup that cannot be read that it is not known whether it would have led there.
fn not_known(error: Error, backup: &UnreadableBackup) -> Error {
    let UnreadableBackup { id, reason, .. } = backup;
    error
        .because(format!("whether backup {id} leads there is not known, because its manifest cannot be read: {reason}"))
        .help(format!(
            "put that manifest back from a copy of the repository, then see: pgvault backup verify {id} --quick"
        ))
}

/// Names what should be stored of a hole.
fn missing_objects(lineage: &LineageRepository, gap: &Gap) -> String {
    let size = lineage.segment_size();
    let key = |lsn| lineage.keys().key(&LineageObject::Segment(SegmentName::containing(gap.timeline, lsn, size)));
    let (first, last) = (key(gap.start), key(gap.end.saturating_sub(1)));
    if first == last { format!("missing object: {first}") } else { format!("missing objects: {first} to {last}") }
}

/// The refusal of a recovery of `cluster`.
pub fn not_recoverable(cluster: &str, reason: &NotRecoverable) -> Error {
    let see_window = format!("see what is possible: pgvault window {cluster}");
    let refuse = |code: ErrorCode| Error::new(code, format!("cannot recover {cluster}: {reason}"));
    match reason {
        NotRecoverable::NothingStored => {
            refuse(ErrorCode::NoBackup).help("start the daemon, which streams WAL and takes backups: pgvault serve")
        }
        NotRecoverable::NoBackup { waiting, others, .. } => {
            let error = match waiting {
                Some((id, gap)) => refuse(ErrorCode::NoBackup).because(format!(
                    "backup {id} waits for WAL from {} to {} of timeline {}",
                    gap.start, gap.end, gap.timeline
                )),
                None => refuse(ErrorCode::NoBackup),
            };
            let error = others.iter().fold(error, |error, timeline| {
                error.help(format!("there are usable backups on timeline {timeline}: --timeline {timeline}"))
            });
            error.help(format!("take a backup: pgvault backup now {cluster} --wait"))
        }
        NotRecoverable::BeforeFirstBackup { earliest, first_backup, .. } => refuse(ErrorCode::TargetTooEarly)
            .because(format!("the first recoverable moment is {}, from backup {first_backup}", shown(earliest)))
            .because("a backup can only be recovered to moments after its end")
            .help(at("recover the first moment", cluster, earliest))
            .help(see_window),
        NotRecoverable::AfterLastCommit { latest, .. } => refuse(ErrorCode::TargetTooLate)
            .because(format!("the last recoverable moment is {}", shown(latest)))
            .because("PostgreSQL would stop with \"recovery ended before configured recovery target was reached\"")
            .help(format!("recover everything there is: pgvault recover {cluster} --latest --to DIR"))
            .help(see_window),
        NotRecoverable::InGap { gap, before, after, .. } => {
            let error = refuse(ErrorCode::TargetInGap).because(format!("last moment before it: {}", shown(before)));
            let error = match after {
                Some(after) => error
                    .because(format!("first moment after it: {}", shown(after)))
                    .help(at("recover the moment before", cluster, before))
                    .help(at("recover the moment after", cluster, after)),
                None => error
                    .because(format!("WAL is stored again from {} on, but there is no backup after it yet", gap.end))
                    .help(at("recover the moment before", cluster, before))
                    .help(format!("take a backup: pgvault backup now {cluster} --wait")),
            };
            error.help(see_window)
        }
        NotRecoverable::UnknownXid { .. } => refuse(ErrorCode::TargetUnknown)
            .because("a transaction counts when it has ended and its end lies after a backup")
            .help(see_window),
        NotRecoverable::UnknownName { .. } => refuse(ErrorCode::TargetUnknown)
            .because("PostgreSQL would replay all WAL and then stop with an error")
            .help(see_window),
        NotRecoverable::NoHistory { timeline } => refuse(ErrorCode::Damaged)
            .because("it was stored before any WAL of the timeline, and PostgreSQL does not recover to a timeline without it")
            .help(format!("a server of the cluster may still have it: pg_wal/{}", timeline.history_file_name()))
            .help("recover on another timeline: --timeline N")
            .help(see_window),
        NotRecoverable::UnknownTimeline { known, .. } => {
            let known: Vec<String> = known.iter().map(ToString::to_string).collect();
            refuse(ErrorCode::TargetUnknown).because(format!("stored timelines: {}", known.join(", "))).help(see_window)
        }
        NotRecoverable::AmbiguousTimeline { timelines, .. } => timelines
            .iter()
            .fold(refuse(ErrorCode::TargetUnknown), |error, timeline| {
                error.help(format!("recover it on timeline {timeline}: --timeline {timeline}"))
            })
            .help(see_window),
        NotRecoverable::UnknownBackup(_) => {
            refuse(ErrorCode::NotFound).help(format!("see which there are: pgvault backup list {cluster}"))
        }
        NotRecoverable::UnreadableBackup { id, .. } => refuse(ErrorCode::Damaged)
            .help("leave out --backup: the newest backup that leads to the target is taken")
            .help(format!("put the manifest back from a copy of the repository, then see: pgvault backup verify {id} --quick"))
            .help(format!("give the backup up: pgvault backup delete {id}")),
        NotRecoverable::BackupNotUsable { .. } => refuse(ErrorCode::NoBackup)
            .because("without this WAL the backup cannot become consistent")
            .help("leave out --backup: the newest backup that leads to the target is taken"),
        NotRecoverable::BackupOnOtherBranch { backup_timeline, .. } => refuse(ErrorCode::NoBackup)
            .help(format!("recover on its own timeline: --timeline {backup_timeline}"))
            .help("leave out --backup: the newest backup that leads to the target is taken"),
        NotRecoverable::BackupAfterTarget { instead, .. } => {
            refuse(ErrorCode::TargetTooEarly).help(format!("this backup leads to it: --backup {instead}"))
        }
        NotRecoverable::GapAfterBackup { instead, .. } => {
            refuse(ErrorCode::TargetInGap).help(format!("this backup leads to it: --backup {instead}"))
        }
    }
}

fn shown(moment: &Moment) -> String {
    format!("{} (timeline {}, {})", moment.time, moment.timeline, moment.lsn)
}

fn at(what: &str, cluster: &str, moment: &Moment) -> String {
    format!("{what}: pgvault recover {cluster} --target-time {} --to DIR", moment.time)
}
