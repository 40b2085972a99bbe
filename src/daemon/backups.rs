//! Base backups of one cluster: one at a time, by schedule or because someone asked.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use recovery::{Backup, BackupStatus};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::backup_run;
use super::cluster::Cluster;
use super::gaps::{self, OpenGap};
use super::schedule::{self, Past, Why};
use super::view::{BackupActivity, RunningBackup};
use crate::error::{Error, ErrorCode, Result};

/// What someone wishes of a backup.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BackupWish {
    /// How it is read from the server.
    pub kind: WishedKind,
    /// What people write on it.
    pub annotations: BTreeMap<String, String>,
    /// Checkpoint at once in place of a spread one.
    pub fast_checkpoint: bool,
    /// Bytes per second; `None`: the configuration's.
    pub max_rate: Option<u64>,
}

impl BackupWish {
    /// The first backup, with a fast checkpoint: until it is committed, nothing can be recovered.
    fn first() -> Self {
        Self { fast_checkpoint: true, ..Self::default() }
    }

    /// The backup that follows a gap. With a fast checkpoint: until it is committed, nothing beyond the gap can be recovered.
    fn after(gap: &OpenGap) -> Self {
        let what = format!("timeline {} {}..{}: {}", gap.timeline, gap.from, gap.to, gap.reason);
        let annotations = [("started_by".to_owned(), "gap".to_owned()), ("gap".to_owned(), what)].into();
        Self { annotations, fast_checkpoint: true, ..Self::default() }
    }
}

/// How a backup is to be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WishedKind {
    /// As is best.
    #[default]
    Auto,
    /// Every file.
    Full,
    /// What changed.
    Incremental,
}

/// How one run stands.
#[derive(Clone, Debug)]
pub struct Run {
    /// Its number in this daemon.
    pub number: u64,
    /// Where it is.
    pub running: RunningBackup,
    /// How it ended.
    pub outcome: Option<Result<Backup>>,
}

/// The backups of one cluster as everyone sees them.
#[derive(Debug)]
pub struct Backups {
    ask: mpsc::Sender<Asked>,
    asked: Mutex<Option<mpsc::Receiver<Asked>>>,
    state: Mutex<State>,
    /// Told when a run has ended.
    ends: watch::Sender<()>,
}

type Asked = (BackupWish, oneshot::Sender<Result<u64>>);

#[derive(Debug, Default)]
struct State {
    runs: VecDeque<Run>,
    counted: (u64, u64),
    failures: Option<(DateTime<Utc>, u32)>,
    last_duration: Option<Duration>,
    last_error: Option<Error>,
    // The newest run that was committed: known before the repository is listed again.
    last_committed: Option<Backup>,
    next_due: Option<DateTime<Utc>>,
}

/// How many runs are remembered for those who wait for them.
const RUNS_KEPT: usize = 32;
/// The schedule is looked at at least so often: clocks are set, and suspended machines wake up.
const LOOK_EVERY: Duration = Duration::from_secs(20);

impl Backups {
    /// None ran yet.
    pub fn new() -> Self {
        let (ask, asked) = mpsc::channel(1);
        Self { ask, asked: Mutex::new(Some(asked)), state: Mutex::new(State::default()), ends: watch::Sender::new(()) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is made whole before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a backup; the number of its run.
    ///
    /// # Errors
    ///
    /// `Refused` while another one runs.
    pub async fn start(&self, wish: BackupWish) -> Result<u64> {
        if let Some(running) = self.activity().running {
            return Err(busy(&running));
        }
        let ended = || Error::new(ErrorCode::Interrupted, "the daemon is ending");
        let (reply, answer) = oneshot::channel();
        self.ask.send((wish, reply)).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }

    /// How a run stands; `None` when it is unknown or too long ago.
    pub fn run(&self, number: u64) -> Option<Run> {
        self.state().runs.iter().find(|run| run.number == number).cloned()
    }

    /// The same as soon as it has ended, at the latest after `patience`.
    pub async fn run_when_ended(&self, number: u64, patience: Duration) -> Option<Run> {
        // Before the first look: an end in between is not missed.
        let mut ends = self.ends.subscribe();
        let ended = async {
            while self.run(number).is_some_and(|run| run.outcome.is_none()) && ends.changed().await.is_ok() {}
        };
        // That it has not ended is an answer, too.
        drop(timeout(patience, ended).await);
        self.run(number)
    }

    /// For status and metrics.
    pub fn activity(&self) -> BackupActivity {
        let state = self.state();
        let running = state.runs.back().filter(|run| run.outcome.is_none()).map(|run| run.running.clone());
        BackupActivity {
            running,
            runs: state.counted,
            last_duration: state.last_duration,
            last_error: state.last_error.clone(),
            next_due: state.next_due,
        }
    }

    fn begin(&self, now: DateTime<Utc>) -> u64 {
        let mut state = self.state();
        let number = state.runs.back().map_or(1, |run| run.number + 1);
        let running = RunningBackup { started_at: now, phase: "starting".to_owned(), ..RunningBackup::default() };
        state.runs.push_back(Run { number, running, outcome: None });
        if state.runs.len() > RUNS_KEPT {
            state.runs.pop_front();
        }
        number
    }

    /// Where the running one is.
    pub(super) fn progress(&self, number: u64, change: impl FnOnce(&mut RunningBackup)) {
        if let Some(run) = self.state().runs.iter_mut().find(|run| run.number == number) {
            change(&mut run.running);
        }
    }

    fn end(&self, number: u64, outcome: Result<Backup>, now: DateTime<Utc>, took: Duration) {
        let mut state = self.state();
        match &outcome {
            Ok(backup) => {
                state.counted.0 += 1;
                state.failures = None;
                state.last_error = None;
                state.last_duration = Some(took);
                state.last_committed = Some(backup.clone());
            }
            Err(error) => {
                state.counted.1 += 1;
                state.failures = Some((now, state.failures.map_or(1, |(_, count)| count.saturating_add(1))));
                state.last_error = Some(error.clone());
            }
        }
        if let Some(run) = state.runs.iter_mut().find(|run| run.number == number) {
            run.outcome = Some(outcome);
        }
        drop(state);
        self.ends.send_replace(());
    }

    /// What the schedule needs to know of runs that the repository does not show yet.
    fn past(&self) -> Past {
        let state = self.state();
        let last_backup = state.last_committed.as_ref().map(|backup| backup.started_at.to_datetime());
        Past { last_backup, failures: state.failures, open_gap: None }
    }

    /// The newest run that was committed.
    pub(super) fn last_committed(&self) -> Option<Backup> {
        self.state().last_committed.clone()
    }
}

impl Default for Backups {
    fn default() -> Self {
        Self::new()
    }
}

fn busy(running: &RunningBackup) -> Error {
    let id = running.id.as_ref().map_or_else(|| "a backup".to_owned(), |id| format!("backup {id}"));
    Error::new(ErrorCode::Refused, format!("{id} is running since {}", running.started_at.format("%Y-%m-%d %H:%M:%SZ")))
        .help("wait for it: pgvault backup list")
}

/// Takes backups until `stop`: those that are asked for, and those that are due.
pub(super) async fn keep_taking(cluster: Arc<Cluster>, stop: CancellationToken) {
    let backups = &cluster.backups;
    // The receiver is put back by `Lent` when this task ends, so that the next one finds it.
    let Some(mut asked) = Lent::take(backups) else { return };
    loop {
        let next = next(&cluster);
        let due = next.map(|next| next.at);
        backups.state().next_due = due;
        let wait =
            due.map_or(LOOK_EVERY, |due| (due - cluster.clock().now()).to_std().unwrap_or_default().min(LOOK_EVERY));
        let mut refreshed = cluster.refreshed();
        tokio::select! {
            Some((wish, reply)) = asked.receiver().recv() => {
                let number = backups.begin(cluster.clock().now());
                // Who asked may have gone; the backup is taken all the same.
                drop(reply.send(Ok(number)));
                take(&cluster, &mut asked, number, wish, &stop).await;
            }
            () = tokio::time::sleep(wait) => {
                if let Some(Due { at, why, wish }) = self::next(&cluster) && at <= cluster.clock().now() {
                    tracing::info!(cluster = %cluster.config.name, ?why, annotations = ?wish.annotations, "a base backup is due");
                    let number = backups.begin(cluster.clock().now());
                    take(&cluster, &mut asked, number, wish, &stop).await;
                }
            }
            _ = refreshed.changed() => {}
            () = stop.cancelled() => return,
        }
    }
}

/// What is due next. Nothing by itself before the repository was read: an unread repository is not an empty one.
fn next(cluster: &Cluster) -> Option<Due> {
    let view = cluster.view();
    // Before the first WAL there is no lineage to read; WAL that flows has made one.
    if view.stored.is_none() || !view.streaming() {
        return None;
    }
    let last_backup = view
        .backups()
        .iter()
        .rfind(|backup| backup.status != BackupStatus::Failed)
        .map(|backup| backup.started_at.to_datetime());
    let runs = cluster.backups.past();
    let open_gap = gaps::open(&view);
    let past = Past {
        last_backup: last_backup.max(runs.last_backup),
        open_gap: open_gap.as_ref().map(|gap| gap.found_at),
        ..runs
    };
    let (due, why) = schedule::next(cluster.config.schedule.as_ref(), &past, cluster.clock().now())?;
    let wish = match (why, open_gap) {
        (Why::First, _) => BackupWish::first(),
        (Why::Gap, Some(gap)) => BackupWish::after(&gap),
        (Why::Gap | Why::Scheduled, _) => BackupWish::default(),
    };
    Some(Due { at: due, why, wish })
}

/// A backup that starts by itself.
struct Due {
    at: DateTime<Utc>,
    why: Why,
    wish: BackupWish,
}

/// One run. Whoever asks for another meanwhile is told that this one runs.
async fn take(cluster: &Arc<Cluster>, asked: &mut Lent<'_>, number: u64, wish: BackupWish, stop: &CancellationToken) {
    let name = cluster.config.name.as_str();
    let start = cluster.clock().instant();
    let outcome = {
        // Its own token, so that an end of the cluster reaches the engine, which decides where it can still stop.
        let run = backup_run::take(cluster, number, wish, stop);
        tokio::pin!(run);
        loop {
            tokio::select! {
                outcome = &mut run => break outcome,
                Some((_, reply)) = asked.receiver().recv() => {
                    let running = cluster.backups.activity().running.unwrap_or_default();
                    // Who asked may have gone.
                    drop(reply.send(Err(busy(&running))));
                }
            }
        }
    };
    match &outcome {
        Ok(backup) => {
            tracing::info!(cluster = name, backup = %backup.id, size_bytes = backup.size_bytes, new_bytes = backup.new_bytes, "base backup committed")
        }
        Err(error) => {
            tracing::error!(cluster = name, code = error.code().as_str(), causes = ?error.causes(), "base backup failed: {}", error.message())
        }
    }
    let took = cluster.clock().instant().saturating_duration_since(start);
    cluster.backups.end(number, outcome, cluster.clock().now(), took);
    cluster.something_changed();
}

/// The receiving end of the wishes, given back when dropped.
struct Lent<'a> {
    backups: &'a Backups,
    receiver: Option<mpsc::Receiver<Asked>>,
}

impl<'a> Lent<'a> {
    fn take(backups: &'a Backups) -> Option<Self> {
        let receiver = backups.asked.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(Self { backups, receiver: Some(receiver) })
    }

    fn receiver(&mut self) -> &mut mpsc::Receiver<Asked> {
        self.receiver.as_mut().expect("it is only taken out when this is dropped")
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        *self.backups.asked.lock().unwrap_or_else(PoisonError::into_inner) = self.receiver.take();
    }
}
