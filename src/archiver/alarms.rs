//! Why segments are not stored: told for as long as it is true, whatever succeeds beside them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wal::SegmentName;

use crate::error::Error;
use crate::wal_pipeline::StatusBoard;

/// What is being done with a segment when it goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Doing {
    /// Its records are read.
    Reading,
    /// It, or a piece of it, is stored.
    Storing,
}

/// The troubles that are not over. The board shows that of the first segment: those after it wait for it. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Alarms {
    board: StatusBoard,
    standing: Arc<Mutex<BTreeMap<(SegmentName, Doing), Error>>>,
}

impl Alarms {
    /// Nothing is wrong yet. They are shown on this board.
    pub(super) fn on(board: StatusBoard) -> Self {
        Self { board, standing: Arc::default() }
    }

    /// Something is wrong with a segment, until [`Alarms::over`] or [`Alarms::done`].
    pub(super) fn raise(&self, segment: SegmentName, doing: Doing, error: Error) {
        let mut standing = self.standing();
        standing.insert((segment, doing), error);
        self.show(&standing);
    }

    /// It went well.
    pub(super) fn over(&self, segment: SegmentName, doing: Doing) {
        let mut standing = self.standing();
        standing.remove(&(segment, doing));
        self.show(&standing);
    }

    /// It is stored whole: attempts at pieces of it that were given up say nothing any more.
    pub(super) fn done(&self, segment: SegmentName) {
        let mut standing = self.standing();
        standing.retain(|&(name, _), _| name != segment);
        self.show(&standing);
    }

    fn show(&self, standing: &BTreeMap<(SegmentName, Doing), Error>) {
        let first = standing.first_key_value().map(|(_, error)| error.clone());
        self.board.update(|status| status.archive_error = first);
    }

    fn standing(&self) -> MutexGuard<'_, BTreeMap<(SegmentName, Doing), Error>> {
        // Nothing panics while the lock is held, and every change is a single one.
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorCode;
    use crate::repository::test_wal::name;

    #[test]
    fn a_trouble_is_shown_until_that_very_segment_is_over_it() {
        let board = StatusBoard::new();
        let alarms = Alarms::on(board.clone());
        let shown = || board.read(|status| status.archive_error.as_ref().map(|error| error.message().to_owned()));
        let raise = |number, doing, text: &str| {
            alarms.raise(name(1, number), doing, Error::new(ErrorCode::Conflict, text));
        };
        raise(7, Doing::Storing, "seven");
        raise(5, Doing::Storing, "five");
        raise(8, Doing::Reading, "eight");
        assert_eq!(shown().as_deref(), Some("five"));
        alarms.over(name(1, 6), Doing::Storing);
        assert_eq!(shown().as_deref(), Some("five"), "another one was stored");
        alarms.over(name(1, 5), Doing::Storing);
        assert_eq!(shown().as_deref(), Some("seven"));
        alarms.over(name(1, 8), Doing::Storing);
        alarms.done(name(1, 7));
        assert_eq!(shown().as_deref(), Some("eight"), "a piece of it was stored, and it cannot be read on");
        alarms.over(name(1, 8), Doing::Reading);
        assert_eq!(shown(), None);
    }
}
