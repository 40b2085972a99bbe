//! What the WAL itself says, as far as it has been asked.
//!
//! This crate reads nothing. Where a decision needs to look into the WAL, it ends with a [`Question`]; whoever can read
//! finds the [`Answer`], adds it to the [`Facts`] and asks again: a handful of rounds.

use std::collections::HashMap;

use wal::{Lsn, PgTime, RestorePoint, TimelineId, XactEnd, XactMark};

/// Something that can only be found in the WAL, read along the way to the timeline `branch`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Question {
    /// What is the latest time of all transaction ends before `lsn`, since the lineage began? [`Answer::Time`]
    MaxTime {
        /// The branch.
        branch: TimelineId,
        /// The position; only records that end at it or before it count.
        lsn: Lsn,
    },
    /// Where do the whole records of unbroken WAL end that reaches from `from` to `to`? [`Answer::End`]
    End {
        /// The branch.
        branch: TimelineId,
        /// A position where a record starts or ends: a backup's stop LSN.
        from: Lsn,
        /// First byte that is not stored.
        to: Lsn,
    },
    /// Which is the first transaction end that starts in `from..to` and is later than `than` (or equal, with `or_equal`)?
    /// Asked only where no transaction end before `from` is. [`Answer::Xact`]
    FirstLater {
        /// The branch.
        branch: TimelineId,
        /// First position.
        from: Lsn,
        /// First position after.
        to: Lsn,
        /// The time; `None`: any transaction end.
        than: Option<PgTime>,
        /// Whether one at exactly that time counts.
        or_equal: bool,
    },
    /// Which is the last transaction end that starts in `from..to`? [`Answer::Mark`]
    LastXact {
        /// The branch.
        branch: TimelineId,
        /// First position.
        from: Lsn,
        /// First position after.
        to: Lsn,
    },
    /// Which is the first whole record that starts in `from..to`? [`Answer::Record`]
    FirstRecord {
        /// The branch.
        branch: TimelineId,
        /// First position.
        from: Lsn,
        /// First position after.
        to: Lsn,
    },
    /// Which transaction ends of transaction `xid` start in `from..to`? More than one after 4 billion others. [`Answer::Xacts`]
    Xid {
        /// The branch.
        branch: TimelineId,
        /// First position.
        from: Lsn,
        /// First position after.
        to: Lsn,
        /// The transaction.
        xid: u32,
    },
    /// Which restore points of this name start in `from..to`? [`Answer::RestorePoints`]
    RestorePoint {
        /// The branch.
        branch: TimelineId,
        /// First position.
        from: Lsn,
        /// First position after.
        to: Lsn,
        /// Its name.
        name: String,
    },
    /// Which is the last record in `from..to` that settled something: ended or prepared a transaction? [`Answer::Settled`]
    LastSettled {
        /// The branch.
        branch: TimelineId,
        /// First position.
        from: Lsn,
        /// First position after; a record starts there.
        to: Lsn,
    },
    /// Which commits lie around `lsn`: the last that starts before it and the first from it on, in `from..to`? [`Answer::Commits`]
    CommitsAround {
        /// The branch.
        branch: TimelineId,
        /// First position.
        from: Lsn,
        /// First position after.
        to: Lsn,
        /// The position.
        lsn: Lsn,
    },
}

impl Question {
    /// The branch that is asked about.
    pub const fn branch(&self) -> TimelineId {
        match *self {
            Self::MaxTime { branch, .. }
            | Self::End { branch, .. }
            | Self::FirstLater { branch, .. }
            | Self::LastXact { branch, .. }
            | Self::FirstRecord { branch, .. }
            | Self::Xid { branch, .. }
            | Self::RestorePoint { branch, .. }
            | Self::LastSettled { branch, .. }
            | Self::CommitsAround { branch, .. } => branch,
        }
    }
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To [`Question::MaxTime`]; `None` when there was no transaction end yet.
    Time(Option<PgTime>),
    /// To [`Question::End`].
    End(WalEnd),
    /// To [`Question::FirstLater`].
    Xact(Option<XactEnd>),
    /// To [`Question::LastXact`].
    Mark(Option<XactMark>),
    /// To [`Question::FirstRecord`].
    Record(Option<RecordSpan>),
    /// To [`Question::Xid`], in the order of the WAL.
    Xacts(Vec<XactEnd>),
    /// To [`Question::RestorePoint`], in the order of the WAL.
    RestorePoints(Vec<RestorePoint>),
    /// To [`Question::LastSettled`].
    Settled(LastSettled),
    /// To [`Question::CommitsAround`].
    Commits(CommitsAround),
}

/// The last record of a piece of WAL that ended or prepared a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastSettled {
    /// It starts here.
    At(Lsn),
    /// There is none.
    Nothing,
    /// It lies so far back that it was not looked for.
    TooFar,
}

/// Where the whole records of a piece of WAL end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalEnd {
    /// The last whole record that starts in the piece; `None` when there is none.
    pub last_record: Option<Lsn>,
    /// First byte after it (the piece's start when there is none): moments up to here can be recovered.
    pub end: Lsn,
}

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordSpan {
    /// Its first byte.
    pub lsn: Lsn,
    /// First byte after it.
    pub end: Lsn,
}

/// The commits around a position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommitsAround {
    /// The last one before it.
    pub before: Option<XactMark>,
    /// The first one at it or after it.
    pub after: Option<XactMark>,
}

/// The answers so far.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    answers: HashMap<Question, Answer>,
}

/// Looks an answer up; the question itself is the error when it was not asked yet.
macro_rules! answer {
    ($facts:expr, $question:expr, $variant:path) => {{
        let question = $question;
        match $facts.answers.get(&question) {
            Some($variant(answer)) => Ok(answer.clone()),
            _ => Err(question),
        }
    }};
}

impl Facts {
    /// Nothing was asked yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an answer. It must be of the kind that the question names; another kind is as good as none.
    pub fn learn(&mut self, question: Question, answer: Answer) {
        self.answers.insert(question, answer);
    }

    pub(crate) fn max_time(&self, branch: TimelineId, lsn: Lsn) -> Result<Option<PgTime>, Question> {
        answer!(self, Question::MaxTime { branch, lsn }, Answer::Time)
    }

    pub(crate) fn last_xact(&self, branch: TimelineId, (from, to): (Lsn, Lsn)) -> Result<Option<XactMark>, Question> {
        answer!(self, Question::LastXact { branch, from, to }, Answer::Mark)
    }

    pub(crate) fn end(&self, branch: TimelineId, from: Lsn, to: Lsn) -> Result<WalEnd, Question> {
        answer!(self, Question::End { branch, from, to }, Answer::End)
    }

    pub(crate) fn first_later(
        &self,
        branch: TimelineId,
        (from, to): (Lsn, Lsn),
        than: Option<PgTime>,
        or_equal: bool,
    ) -> Result<Option<XactEnd>, Question> {
        answer!(self, Question::FirstLater { branch, from, to, than, or_equal }, Answer::Xact)
    }

    pub(crate) fn first_record(
        &self,
        branch: TimelineId,
        (from, to): (Lsn, Lsn),
    ) -> Result<Option<RecordSpan>, Question> {
        answer!(self, Question::FirstRecord { branch, from, to }, Answer::Record)
    }

    pub(crate) fn xid(&self, branch: TimelineId, (from, to): (Lsn, Lsn), xid: u32) -> Result<Vec<XactEnd>, Question> {
        answer!(self, Question::Xid { branch, from, to, xid }, Answer::Xacts)
    }

    pub(crate) fn restore_point(
        &self,
        branch: TimelineId,
        (from, to): (Lsn, Lsn),
        name: &str,
    ) -> Result<Vec<RestorePoint>, Question> {
        answer!(self, Question::RestorePoint { branch, from, to, name: name.to_owned() }, Answer::RestorePoints)
    }

    pub(crate) fn last_settled(&self, branch: TimelineId, (from, to): (Lsn, Lsn)) -> Result<LastSettled, Question> {
        answer!(self, Question::LastSettled { branch, from, to }, Answer::Settled)
    }

    pub(crate) fn commits_around(
        &self,
        branch: TimelineId,
        (from, to): (Lsn, Lsn),
        lsn: Lsn,
    ) -> Result<CommitsAround, Question> {
        answer!(self, Question::CommitsAround { branch, from, to, lsn }, Answer::Commits)
    }
}
