//! Decisions of the pure crate `recovery`, with the questions that it has about the WAL answered from the repository.

use std::collections::HashMap;

use recovery::{
    Answer, Catalog, Facts, NoPlan, NotRecoverable, Note, Question, RecoveryPlan, RecoveryRequest, RecoveryTarget,
    Window, live_timeline,
};
use wal::TimelineId;

use crate::error::{Error, Result};
use crate::repository::layout::{LineageObject, ObjectName, Parsed};
use crate::repository::xact_search::WalSearch;
use crate::repository::{LineageRepository, RepositoryError, RepositoryResult};
use crate::storage::ObjectKey;

/// The moments that can be recovered from what `catalog` says is stored.
pub async fn window(lineage: &LineageRepository, catalog: &Catalog) -> Result<Window> {
    let mut searches = Searches::new(lineage, catalog);
    let mut facts = Facts::new();
    loop {
        match recovery::window(catalog, &facts) {
            Ok(window) => return Ok(window),
            Err(question) => searches.learn(&mut facts, question).await?,
        }
    }
}

/// The plan of a recovery, or why there can be none.
///
/// A damaged tail at the end of the WAL keeps nobody from what lies before it; see [`before_damage`].
pub async fn recovery_plan(
    lineage: &LineageRepository,
    catalog: &Catalog,
    request: &RecoveryRequest,
) -> Result<std::result::Result<RecoveryPlan, NotRecoverable>> {
    match planned(lineage, catalog, request).await {
        Err(RepositoryError::Damaged { key, what }) => match before_damage(lineage, catalog, request, &key).await? {
            Ok(plan) => Ok(Ok(plan)),
            Err(helps) => {
                let error = Error::from(RepositoryError::Damaged { key, what });
                Err(helps.into_iter().fold(error, Error::help))
            }
        },
        plan => Ok(plan?),
    }
}

async fn planned(
    lineage: &LineageRepository,
    catalog: &Catalog,
    request: &RecoveryRequest,
) -> RepositoryResult<std::result::Result<RecoveryPlan, NotRecoverable>> {
    let mut searches = Searches::new(lineage, catalog);
    let mut facts = Facts::new();
    loop {
        match recovery::plan(catalog, request, &facts) {
            Ok(plan) => return Ok(Ok(plan)),
            Err(NoPlan::NotRecoverable(reason)) => return Ok(Err(reason)),
            Err(NoPlan::Ask(question)) => searches.learn(&mut facts, question).await?,
        }
    }
}

/// The plan that needs nothing of a damaged tail, or how to recover the last moment before it.
///
/// Planned as if the tail had not come. That is the same recovery only when what stops it lies in the WAL before: the first
/// record of the log that fulfils the target is the first one whatever follows. So no target that depends on what follows
/// counts (the end, the last of several, a time after every stored commit), nor one found on another branch because the live
/// one seems to end early.
async fn before_damage(
    lineage: &LineageRepository,
    catalog: &Catalog,
    request: &RecoveryRequest,
    damaged: &ObjectKey,
) -> Result<std::result::Result<RecoveryPlan, Vec<String>>> {
    let Parsed::Known(ObjectName::InLineage(_, LineageObject::Tail(tail))) = ObjectName::parse(damaged.as_str()) else {
        return Ok(Err(Vec::new()));
    };
    let timeline = tail.segment.timeline();
    let Some(number) = tail.segment.number(lineage.segment_size()) else { return Ok(Err(Vec::new())) };
    let rest = catalog.without_tail(timeline, number.start(lineage.segment_size()));
    let stops_before = match request.target {
        RecoveryTarget::Time(_) | RecoveryTarget::Lsn(_) => true,
        RecoveryTarget::Immediate => request.backup.is_some(),
        RecoveryTarget::Xid(_) | RecoveryTarget::Name(_) | RecoveryTarget::Latest => false,
    };
    if stops_before && let Ok(plan) = planned(lineage, &rest, request).await? {
        let depends = |note: &Note| matches!(note, Note::TranslatedTime { .. } | Note::TranslatedLsn { .. });
        let in_its_place = request.timeline.is_some() || live_timeline(catalog) == Some(plan.timeline);
        if in_its_place && !plan.notes.iter().any(depends) {
            return Ok(Ok(plan));
        }
    }
    let latest = RecoveryRequest { target: RecoveryTarget::Latest, ..request.clone() };
    let Ok(plan) = planned(lineage, &rest, &latest).await? else { return Ok(Err(Vec::new())) };
    let cluster = lineage.cluster();
    Ok(Err(vec![match plan.commit_before {
        Some(commit) => format!(
            "recover up to the last commit before it, {}: pgvault recover {cluster} --target-lsn {} --to DIR",
            commit.time, commit.lsn
        ),
        None => format!(
            "recover the last backup before it: pgvault recover {cluster} --backup {} --immediate --to DIR",
            plan.backup.id
        ),
    }]))
}

/// One search per branch, so that what one answer read serves the next.
struct Searches<'a> {
    lineage: &'a LineageRepository,
    catalog: &'a Catalog,
    by_branch: HashMap<TimelineId, WalSearch<'a>>,
}

impl<'a> Searches<'a> {
    fn new(lineage: &'a LineageRepository, catalog: &'a Catalog) -> Self {
        Self { lineage, catalog, by_branch: HashMap::new() }
    }

    async fn learn(&mut self, facts: &mut Facts, question: Question) -> RepositoryResult<()> {
        let answer = self.answer(&question).await?;
        facts.learn(question, answer);
        Ok(())
    }

    async fn answer(&mut self, question: &Question) -> RepositoryResult<Answer> {
        let branch = question.branch();
        let (lineage, catalog) = (self.lineage, self.catalog);
        let search = self.by_branch.entry(branch).or_insert_with(|| WalSearch::new(lineage, catalog, branch));
        search.answer(question).await
    }
}
