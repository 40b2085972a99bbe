//! A second opinion on who leads: the seam for HA managers such as Patroni.

use tokio::sync::watch;

/// What a second witness says. It may decide between members that could all be followed, and makes us look at once; that a
/// member's history contains ours is never its word to give.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Testimony {
    /// The leader, by its number in [`crate::primary::Conninfo::hosts`]; `None` while there is none, or nobody knows.
    pub leader: Option<usize>,
}

/// Where a second witness speaks; each change makes the follower look at once.
#[derive(Clone, Debug)]
pub struct Witness {
    testimony: watch::Receiver<Testimony>,
}

impl Witness {
    /// One that never says anything.
    pub fn silent() -> Self {
        let (_, testimony) = watch::channel(Testimony::default());
        Self { testimony }
    }

    /// One that says what is sent here.
    pub fn new(testimony: watch::Receiver<Testimony>) -> Self {
        Self { testimony }
    }

    /// Whom it calls the leader now.
    pub(crate) fn leader(&self) -> Option<usize> {
        self.testimony.borrow().leader
    }

    /// Returns when it says something new; never when there is no witness. Cancel-safe.
    pub(crate) async fn changed(&mut self) {
        if self.testimony.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
