//! A second opinion on who leads and who belongs to the cluster: Patroni's, where it is asked.

use tokio::sync::watch;

use crate::patroni::Topology;
use crate::primary::Host;

/// What a second witness says. It may decide between members that could all be followed, name members that the conninfo does
/// not, and make us look at once; that a member's history contains ours is never its word to give.
#[derive(Clone, Debug)]
pub struct Witness {
    topology: watch::Receiver<Topology>,
}

impl Witness {
    /// One that never says anything.
    pub fn silent() -> Self {
        let (_, topology) = watch::channel(Topology::default());
        Self { topology }
    }

    /// What Patroni says.
    pub fn patroni(topology: watch::Receiver<Topology>) -> Self {
        Self { topology }
    }

    /// Whom it calls the leader now; nobody while it cannot be asked, since what it said before may be over.
    pub(super) fn leader(&self) -> Option<Host> {
        let topology = self.topology.borrow();
        topology.leader().filter(|_| topology.error.is_none()).map(|leader| leader.host.clone())
    }

    /// The members that it knows.
    pub(super) fn hosts(&self) -> Vec<Host> {
        self.topology.borrow().hosts().cloned().collect()
    }

    /// Returns when it says something new; never when there is no witness. Cancel-safe.
    pub(super) async fn changed(&mut self) {
        if self.topology.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
