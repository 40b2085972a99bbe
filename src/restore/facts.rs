//! Decisions of the pure crate `recovery`, with the questions that it has about the WAL answered from the repository.

use std::collections::HashMap;

use recovery::{Answer, Catalog, Facts, NoPlan, NotRecoverable, Question, RecoveryPlan, RecoveryRequest, Window};
use wal::TimelineId;

use crate::error::Result;
use crate::repository::xact_search::WalSearch;
use crate::repository::{LineageRepository, RepositoryResult};

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
pub async fn recovery_plan(
    lineage: &LineageRepository,
    catalog: &Catalog,
    request: &RecoveryRequest,
) -> Result<std::result::Result<RecoveryPlan, NotRecoverable>> {
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

    async fn learn(&mut self, facts: &mut Facts, question: Question) -> Result<()> {
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
