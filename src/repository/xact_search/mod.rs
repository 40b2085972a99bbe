//! Looks things up in the stored WAL of one branch: which transaction ended when, where recovery to a moment stops.
//!
//! Headers narrow the search: their running maximum of commit times never falls along a branch, so the segment in which
//! recovery to a time stops is found by bisection; only that one is read. Answers are exact: they come from records whose
//! checksums were right, or from headers that were made of them.

mod questions;
mod segments;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use recovery::{Answer, Branch, Catalog, Question};
use tokio::sync::Mutex;
use wal::{SegmentName, SegmentNumber, TimelineId, XactIndex};

use crate::repository::{LineageRepository, RepositoryResult, TailChain};

/// The stored WAL on the way to one timeline, as a catalog tells it.
#[derive(Debug)]
pub struct WalSearch<'a> {
    lineage: &'a LineageRepository,
    catalog: &'a Catalog,
    branch: Branch<'a>,
    /// Indexes that no header has: of tails, and of segments of which only a part belongs to the branch.
    indexes: Mutex<HashMap<SegmentNumber, XactIndex>>,
    /// The tails of incomplete segments, listed once.
    chains: Mutex<HashMap<SegmentName, Option<TailChain>>>,
    /// A remembered header was not that of the stored object.
    cache_was_wrong: AtomicBool,
}

/// Finds the answer to any question about the WAL in `catalog`.
pub async fn answer(lineage: &LineageRepository, catalog: &Catalog, question: &Question) -> RepositoryResult<Answer> {
    WalSearch::new(lineage, catalog, question.branch()).answer(question).await
}

impl<'a> WalSearch<'a> {
    /// Searches along the way to `branch` in what `catalog` says is stored.
    pub fn new(lineage: &'a LineageRepository, catalog: &'a Catalog, branch: TimelineId) -> Self {
        Self {
            lineage,
            catalog,
            branch: Branch::new(catalog, branch),
            indexes: Mutex::default(),
            chains: Mutex::default(),
            cache_was_wrong: AtomicBool::new(false),
        }
    }

    /// Finds the answer. All WAL from the question's first position to its last must be stored, and the last one must be
    /// where a record ends; WAL that is missing is an error. A question about another branch than this search's is
    /// answered as if it were about this one.
    pub async fn answer(&self, question: &Question) -> RepositoryResult<Answer> {
        let answer = self.look_up(question).await;
        // Somebody changed the cache, or the repository was replaced: ask again, with nothing remembered.
        if self.cache_was_wrong.swap(false, Ordering::Relaxed) {
            self.lineage.inner.headers.forget();
            self.indexes.lock().await.clear();
            return self.look_up(question).await;
        }
        answer
    }

    async fn look_up(&self, question: &Question) -> RepositoryResult<Answer> {
        Ok(match question {
            Question::MaxTime { lsn, .. } => Answer::Time(self.max_time(*lsn).await?),
            Question::End { from, to, .. } => Answer::End(self.end(*from, *to).await?),
            Question::FirstLater { from, to, than, or_equal, .. } => {
                Answer::Xact(self.first_later(*from, *to, *than, *or_equal).await?)
            }
            Question::LastXact { from, to, .. } => Answer::Mark(self.last_xact(*from, *to).await?),
            Question::FirstRecord { from, to, .. } => Answer::Record(self.first_record(*from, *to).await?),
            Question::Xid { from, to, xid, .. } => Answer::Xacts(self.xid(*from, *to, *xid).await?),
            Question::RestorePoint { from, to, name, .. } => {
                Answer::RestorePoints(self.restore_points(*from, *to, name).await?)
            }
            Question::LastSettled { from, to, .. } => Answer::Settled(self.last_settled(*from, *to).await?),
            Question::CommitsAround { from, to, lsn, .. } => {
                Answer::Commits(self.commits_around(*from, *to, *lsn).await?)
            }
        })
    }
}
