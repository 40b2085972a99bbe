//! How long after a server has become the primary pgvault streams from it, as the server itself sees it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio_postgres::{NoTls, SimpleQueryMessage};
use wal::Lsn;

use super::LIMIT;
use super::pg::PgNode;

/// Watches servers of which one will become the primary.
pub struct FollowTimer {
    threads: Vec<JoinHandle<Option<Duration>>>,
    stop: Arc<AtomicBool>,
}

impl FollowTimer {
    /// Watches these standbys.
    pub fn start<'a>(nodes: impl IntoIterator<Item = &'a PgNode>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let watch = |node: &PgNode| {
            let (conninfo, stop) = (node.conninfo(), Arc::clone(&stop));
            std::thread::spawn(move || watch(&conninfo, &stop))
        };
        Self { threads: nodes.into_iter().map(watch).collect(), stop }
    }

    /// Ends the watch; the time that the one which became the primary waited for pgvault.
    pub fn stop(self) -> Duration {
        let deadline = Instant::now() + LIMIT;
        while !self.threads.iter().any(JoinHandle::is_finished) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.stop.store(true, Ordering::SeqCst);
        let waited = self.threads.into_iter().find_map(|thread| thread.join().unwrap());
        waited.expect("pgvault streams from the new primary within two minutes")
    }
}

fn watch(conninfo: &str, stop: &AtomicBool) -> Option<Duration> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut accepted = None;
    while !stop.load(Ordering::SeqCst) {
        // A server that changes its role may end connections.
        if let Ok(Some(waited)) = runtime.block_on(look(conninfo, stop, &mut accepted)) {
            return Some(waited);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    None
}

fn lsn(text: Option<&str>) -> Option<Lsn> {
    text.and_then(|text| text.parse().ok())
}

async fn look(
    conninfo: &str,
    stop: &AtomicBool,
    accepted: &mut Option<(Instant, Lsn)>,
) -> Result<Option<Duration>, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(conninfo, NoTls).await?;
    tokio::spawn(connection);
    let query = "SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_flush_lsn() END, \
                 (SELECT max(sent_lsn) FROM pg_stat_replication WHERE application_name = 'pgvault')";
    while !stop.load(Ordering::SeqCst) {
        let rows = client.simple_query(query).await?;
        let row = rows.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some((lsn(row.get(0)), lsn(row.get(1)))),
            _ => None,
        });
        if let Some((Some(end), sent)) = row {
            // Where its WAL ended when it first accepted: the end of its recovery, written on the new timeline, is before.
            let (since, end) = *accepted.get_or_insert_with(|| (Instant::now(), end));
            if sent >= Some(end) {
                return Ok(Some(since.elapsed()));
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(None)
}
