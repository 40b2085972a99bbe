//! How long operations tell how far they are: a bar on a terminal, a line every 30 seconds elsewhere, JSON lines with
//! `--json`.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::sync::watch;

use super::output::{Output, bytes, seconds};
use crate::clock::Clock;

/// Off a terminal, a line so often.
const LINE_EVERY: Duration = Duration::from_secs(30);
/// JSON lines so often.
const JSON_EVERY: Duration = Duration::from_millis(500);

/// One operation's progress.
#[derive(Debug)]
pub(super) struct Progress {
    output: Output,
    clock: Arc<dyn Clock>,
    name: String,
    bar: Option<ProgressBar>,
    started: Instant,
    told: Option<Instant>,
    phase: String,
}

impl Progress {
    /// Nothing is shown before the first step.
    pub(super) fn new(output: &Output, clock: &Arc<dyn Clock>, name: &str) -> Self {
        let on_terminal = !output.json && !output.quiet && io::stderr().is_terminal();
        let bar = on_terminal.then(|| {
            let bar = ProgressBar::new(0);
            let style = ProgressStyle::with_template("{prefix}  {msg:<14} {bar:24} {percent:>3} %  {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  ETA {eta}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(name.to_owned());
            bar
        });
        let started = clock.instant();
        Self {
            output: *output,
            clock: Arc::clone(clock),
            name: name.to_owned(),
            bar,
            started,
            told: None,
            phase: String::new(),
        }
    }

    /// Where the operation is.
    pub(super) fn show(&mut self, phase: &str, done: u64, total: Option<u64>) {
        if let Some(bar) = &self.bar {
            bar.set_length(total.unwrap_or(done).max(done));
            bar.set_position(done);
            bar.set_message(phase.to_owned());
            return;
        }
        let now = self.clock.instant();
        let every = if self.output.json { JSON_EVERY } else { LINE_EVERY };
        let due = self.told.is_none_or(|told| now.saturating_duration_since(told) >= every);
        if !due && phase == self.phase {
            return;
        }
        self.told = Some(now);
        self.phase = phase.to_owned();
        let eta = self.eta(now, done, total);
        if self.output.json {
            self.output.document(&json!({
                "type": "progress", "phase": phase, "done_bytes": done, "total_bytes": total, "eta_s": eta,
            }));
            return;
        }
        let of_total = total.map_or_else(String::new, |total| format!(" of {}", bytes(total)));
        let eta =
            eta.map_or_else(String::new, |eta| format!(", {} left", seconds(i64::try_from(eta).unwrap_or(i64::MAX))));
        self.output.note(&format!("{}  {phase}  {}{of_total}{eta}", self.name, bytes(done)));
    }

    /// Shows what `work` tells, until it has ended.
    pub(super) async fn during<P: Clone, T>(
        mut self,
        mut told: watch::Receiver<P>,
        show: impl Fn(&mut Self, P),
        work: impl Future<Output = T>,
    ) -> T {
        tokio::pin!(work);
        loop {
            tokio::select! {
                ended = &mut work => return ended,
                Ok(()) = told.changed() => {
                    // A copy: whoever tells must not wait for a terminal.
                    let now = told.borrow_and_update().clone();
                    show(&mut self, now);
                }
            }
        }
    }

    fn eta(&self, now: Instant, done: u64, total: Option<u64>) -> Option<u64> {
        let left = total?.checked_sub(done)?;
        let passed = now.saturating_duration_since(self.started).as_secs_f64();
        (done > 0 && passed > 0.5).then(|| (left as f64 * passed / done as f64) as u64)
    }

    /// Takes the bar away.
    pub(super) fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}
