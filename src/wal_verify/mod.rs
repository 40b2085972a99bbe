//! Is all stored WAL there, whole, and one log? Reads it and proves it; nothing is changed.
//!
//! What is proven of every object: its length and checksums, that it lies under its own name, its page headers, every
//! record's checksum, and that each record follows the one before it, across segments and into the timelines that begin.
//! What is proven of the whole: no hole that nobody recorded, and histories that tell one story.

mod chain;
mod holes;
mod survey;
mod units;

#[cfg(test)]
mod tests;

use futures_util::{StreamExt, stream};
use tokio::sync::watch;
use wal::{Gap, Lsn, TimelineId};

use crate::error::{Error, Result};
use crate::repository::{LineageRepository, RepositoryError};

use self::chain::Chain;
use self::survey::Survey;
use self::units::{Range, Unit, units};

/// What is to be verified.
#[derive(Clone, Copy, Debug)]
pub struct VerifyRequest {
    /// WAL before this position is left out.
    pub from: Option<Lsn>,
    /// WAL from this position on is left out.
    pub to: Option<Lsn>,
    /// This timeline only.
    pub timeline: Option<TimelineId>,
    /// From listings alone: no WAL is read.
    pub quick: bool,
    /// How many pieces are read at a time; each takes a few megabytes of memory.
    pub jobs: usize,
    /// Up to where WAL must be there, though nothing that is stored behind it says so.
    pub known_end: Option<KnownEnd>,
}

/// WAL that somebody knows of.
#[derive(Clone, Copy, Debug)]
pub struct KnownEnd {
    /// The timeline.
    pub timeline: TimelineId,
    /// First byte behind it.
    pub lsn: Lsn,
    /// Who knows, in words: `the daemon has stored WAL`.
    pub because: &'static str,
}

/// How far a verification is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Bytes of WAL that were read.
    pub done_bytes: u64,
    /// Bytes of WAL that will be read.
    pub total_bytes: u64,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Problem {
    /// The timeline.
    pub timeline: Option<TimelineId>,
    /// First byte of the WAL that is concerned.
    pub from_lsn: Option<Lsn>,
    /// First byte after it.
    pub to_lsn: Option<Lsn>,
    /// The object.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
}

/// WAL that is missing, and why that is known.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct KnownGap {
    /// The timeline.
    pub timeline: TimelineId,
    /// First missing byte.
    pub from_lsn: Lsn,
    /// First byte that is there again.
    pub to_lsn: Lsn,
    /// Why, in words for a person.
    pub reason: String,
}

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Whole segments that were looked at.
    pub segments: u64,
    /// Incomplete segments that were looked at.
    pub tails: u64,
    /// Bytes of WAL that were read.
    pub checked_bytes: u64,
    /// Losses that were recorded: no fault of the repository.
    pub gaps: Vec<KnownGap>,
    /// Everything that is wrong, by timeline and position.
    pub problems: Vec<Problem>,
    /// Whether the WAL right before the known end is among what is wrong.
    pub lacks_known_end: bool,
}

impl VerifyReport {
    /// Whether everything is as it should be.
    pub fn is_ok(&self) -> bool {
        self.problems.is_empty()
    }
}

/// Verifies the stored WAL of a lineage.
///
/// # Errors
/// When the repository cannot be reached: then nothing was proven either way.
pub async fn run(
    lineage: &LineageRepository,
    request: &VerifyRequest,
    progress: &watch::Sender<VerifyProgress>,
) -> Result<VerifyReport> {
    look(lineage, request, progress).await.map_err(|error| failed(lineage, error))
}

/// As [`run`], for those who tell errors themselves.
pub async fn look(
    lineage: &LineageRepository,
    request: &VerifyRequest,
    progress: &watch::Sender<VerifyProgress>,
) -> std::result::Result<VerifyReport, RepositoryError> {
    let mut report = VerifyReport::default();
    let survey = Survey::of(lineage, &mut report.problems).await?;
    holes::look(lineage, &survey, request, &mut report);
    let range = Range { from: request.from, to: request.to, timeline: request.timeline };
    let units = units(&survey, range, lineage.segment_size());
    report.segments = units.iter().map(Unit::segments).sum();
    report.tails = units.iter().filter(|unit| unit.tail.is_some()).count() as u64;
    if !request.quick {
        read(lineage, &survey, units, request.jobs, progress, &mut report).await?;
    }
    report.problems.sort();
    report.problems.dedup();
    Ok(report)
}

/// Reads every unit, several at a time, and compares where each ends with where the next begins.
async fn read(
    lineage: &LineageRepository,
    survey: &Survey,
    units: Vec<Unit>,
    jobs: usize,
    progress: &watch::Sender<VerifyProgress>,
    report: &mut VerifyReport,
) -> std::result::Result<(), RepositoryError> {
    let total_bytes = units.iter().map(|unit| unit.bytes(lineage.segment_size())).sum();
    progress.send_modify(|progress| progress.total_bytes = total_bytes);
    let mut chain = Chain::default();
    let mut reads = stream::iter(units)
        .map(|unit| async move { units::read(lineage, survey, unit, progress).await })
        .buffered(jobs.max(1));
    while let Some(read) = reads.next().await {
        let read = read?;
        report.checked_bytes += read.bytes;
        report.problems.extend(chain.join(lineage, survey, &read));
        report.problems.extend(read.problems);
    }
    Ok(())
}

fn failed(lineage: &LineageRepository, error: RepositoryError) -> Error {
    let error = Error::from(error);
    let outer = Error::new(error.code(), format!("cannot verify the WAL of {}", lineage.cluster()));
    let outer = error.causes().iter().fold(outer.because(error.message()), |outer, cause| outer.because(cause));
    error.help_lines().iter().fold(outer, |outer, help| outer.help(help.clone()))
}

fn gap(timeline: TimelineId, start: Lsn, end: Lsn) -> Gap {
    Gap { timeline, start, end }
}
