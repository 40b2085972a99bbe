//! Prometheus metrics: names and labels are a contract (INTERFACE section 7). Every series is there from the start, and
//! all are set from memory: a scrape asks neither PostgreSQL nor the store.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use chrono::{DateTime, Utc};
use prometheus::process_collector::ProcessCollector;
use prometheus::{Encoder, Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry, TextEncoder};

use super::check::Finding;
use super::schedule;
use super::status::{lag, live_range};
use super::view::ClusterView;
use crate::error::{Error, ErrorCode, Result};
use crate::storage::{RequestResult, StorageMeter};

/// Reasons that `pgvault_wal_archive_errors_total` counts.
const ARCHIVE_ERRORS: [&str; 9] =
    ["denied", "transient", "full", "corrupt", "conflict", "damaged", "no_key", "spool", "other"];
/// Reasons that `pgvault_wal_reconnects_total` counts.
const RECONNECTS: [&str; 8] = ["network", "timeline", "elsewhere", "slot", "server_shutdown", "auth", "spool", "other"];
/// Operations of a store.
const OPERATIONS: [&str; 7] = ["put", "get", "get_range", "head", "list", "list_folders", "delete"];

/// All metrics of one daemon.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    gauges: BTreeMap<&'static str, GaugeVec>,
    counters: BTreeMap<&'static str, IntCounterVec>,
    storage_requests: IntCounterVec,
    storage_durations: HistogramVec,
    config_reload: Gauge,
    repository_up: Gauge,
    spool_free: Gauge,
    // A scrape sets and gathers: two at once would mix.
    scraping: Mutex<()>,
}

/// Whether the store took and gave what was last asked of it.
fn repository_is_up(view: &ClusterView) -> bool {
    let archive_error = view.wal.as_ref().and_then(|wal| wal.archive_error.as_ref());
    view.repository_error.is_none() && archive_error.is_none_or(|error| error.code() != ErrorCode::RepositoryDenied)
}

/// Gauges per cluster: name, labels besides `cluster`, help.
const GAUGES: &[(&str, &[&str], &str)] = &[
    ("pgvault_up", &[], "1 while the connection to PostgreSQL works"),
    ("pgvault_wal_streaming", &[], "1 while WAL is received"),
    ("pgvault_wal_lag_bytes", &["stage"], "how far each stage is behind the server's WAL"),
    ("pgvault_rpo_seconds", &[], "age of the oldest commit that is not in the repository"),
    ("pgvault_rpo_target_seconds", &[], "max_rpo of the configuration; 0 = whole segments only"),
    ("pgvault_wal_gaps", &[], "stretches of WAL that are missing"),
    ("pgvault_wal_spool_segments", &[], "files that wait to be stored"),
    ("pgvault_wal_spool_bytes", &[], "bytes that the spool takes"),
    ("pgvault_wal_spool_full_seconds", &[], "when the spool is full at its present rate; NaN = it does not fill"),
    ("pgvault_wal_last_commit_timestamp_seconds", &[], "last commit in stored WAL"),
    ("pgvault_timeline", &[], "timeline that is received"),
    ("pgvault_timeline_conflict", &[], "1 = another history claims to be this cluster"),
    ("pgvault_slot_active", &["slot", "host"], "1 while the slot is used"),
    ("pgvault_slot_retained_bytes", &["slot", "host"], "WAL that the host keeps for the slot"),
    (
        "pgvault_slot_safe_wal_bytes",
        &["slot", "host"],
        "WAL that can be written before the slot is in danger; NaN = no limit",
    ),
    ("pgvault_slot_wal_limit_bytes", &["slot", "host"], "max_slot_wal_keep_size; -1 = no limit"),
    ("pgvault_slot_lost", &["slot", "host"], "1 = lost or missing"),
    ("pgvault_backups", &["status"], "base backups"),
    ("pgvault_backups_damaged", &[], "base backups in which damage was found"),
    ("pgvault_backup_running", &[], "1 while a base backup runs"),
    ("pgvault_backup_done_bytes", &[], "of the running base backup"),
    ("pgvault_backup_expected_bytes", &[], "of the running base backup"),
    ("pgvault_backup_last_success_timestamp_seconds", &[], "end of the newest base backup"),
    ("pgvault_backup_oldest_timestamp_seconds", &[], "end of the oldest base backup"),
    ("pgvault_backup_next_timestamp_seconds", &[], "when the next base backup is due"),
    ("pgvault_backup_last_duration_seconds", &[], "of the newest base backup"),
    ("pgvault_backup_last_size_bytes", &["form"], "of the newest base backup"),
    ("pgvault_backup_schedule_interval_seconds", &[], "longest time between two scheduled backups; 0 = no schedule"),
    ("pgvault_recovery_window_start_timestamp_seconds", &[], "first recoverable moment"),
    ("pgvault_recovery_window_end_timestamp_seconds", &[], "last recoverable moment"),
    ("pgvault_recovery_window_seconds", &[], "length of the recoverable range"),
    ("pgvault_repository_bytes", &["kind"], "stored bytes, as last listed"),
    ("pgvault_verify_last_success_timestamp_seconds", &["kind"], "last successful verification; 0 = never"),
    ("pgvault_check_ok", &["check"], "1 ok or warn, 0 failed, NaN not looked at"),
];

/// Counters per cluster.
const COUNTERS: &[(&str, &[&str], &str)] = &[
    ("pgvault_wal_received_bytes_total", &[], "WAL received, re-sent bytes included"),
    ("pgvault_wal_archived_bytes_total", &["form"], "WAL stored: raw, stored"),
    ("pgvault_wal_segments_archived_total", &[], "whole segments confirmed in the repository"),
    ("pgvault_wal_archive_errors_total", &["reason"], "failed attempts to store"),
    ("pgvault_wal_reconnects_total", &["reason"], "connections that ended"),
    ("pgvault_failovers_total", &[], "timeline switches that were followed"),
    ("pgvault_backup_runs_total", &["result"], "base backups that ended"),
];

impl Metrics {
    /// All metrics, without clusters yet.
    pub fn new() -> Result<Self> {
        let cannot = |error: prometheus::Error| {
            Error::new(ErrorCode::Unclassified, "internal error: a metric cannot be made").because(error)
        };
        Self::build().map_err(cannot)
    }

    fn build() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let mut gauges = BTreeMap::new();
        for (name, labels, help) in GAUGES {
            let gauge = GaugeVec::new(Opts::new(*name, *help), &with_cluster(labels))?;
            registry.register(Box::new(gauge.clone()))?;
            gauges.insert(*name, gauge);
        }
        let mut counters = BTreeMap::new();
        for (name, labels, help) in COUNTERS {
            let counter = IntCounterVec::new(Opts::new(*name, *help), &with_cluster(labels))?;
            registry.register(Box::new(counter.clone()))?;
            counters.insert(*name, counter);
        }
        let storage_requests = IntCounterVec::new(
            Opts::new("pgvault_storage_requests_total", "requests to the store"),
            &["operation", "result"],
        )?;
        let buckets = prometheus::exponential_buckets(0.001, 2.5, 12)?;
        let storage_durations = HistogramVec::new(
            HistogramOpts::new("pgvault_storage_request_duration_seconds", "time that requests to the store took")
                .buckets(buckets),
            &["operation"],
        )?;
        let config_reload = Gauge::new("pgvault_config_last_reload_successful", "1 if the last (re)load succeeded")?;
        let repository_up = Gauge::new("pgvault_repository_up", "1 while the repository is open")?;
        let spool_free = Gauge::new("pgvault_spool_free_bytes", "free bytes of the spool's file system")?;
        let build = GaugeVec::new(Opts::new("pgvault_build_info", "always 1"), &["version", "revision", "rustc"])?;
        registry.register(Box::new(storage_requests.clone()))?;
        registry.register(Box::new(storage_durations.clone()))?;
        for gauge in [&config_reload, &repository_up, &spool_free] {
            registry.register(Box::new(gauge.clone()))?;
        }
        registry.register(Box::new(build.clone()))?;
        registry.register(Box::new(ProcessCollector::for_self()))?;
        let version = env!("CARGO_PKG_VERSION");
        let revision = option_env!("PGVAULT_REVISION").unwrap_or("unknown");
        build.with_label_values(&[version, revision, env!("PGVAULT_RUSTC")]).set(1.0);
        for operation in OPERATIONS {
            storage_requests.with_label_values(&[operation, RequestResult::Ok.label()]);
            storage_durations.with_label_values(&[operation]);
        }
        config_reload.set(1.0);
        spool_free.set(f64::NAN);
        Ok(Self {
            registry,
            gauges,
            counters,
            storage_requests,
            storage_durations,
            config_reload,
            repository_up,
            spool_free,
            scraping: Mutex::new(()),
        })
    }

    /// Notes how a (re)load of the configuration went.
    pub fn config_loaded(&self, successful: bool) {
        self.config_reload.set(f64::from(u8::from(successful)));
    }

    /// Everything as Prometheus text.
    pub fn scrape(
        &self,
        views: &[ClusterView],
        findings: &BTreeMap<String, Vec<Finding>>,
        now: DateTime<Utc>,
    ) -> Result<String> {
        let cannot =
            |why: String| Error::new(ErrorCode::Unclassified, "internal error: metrics cannot be written").because(why);
        // A panic while the lock was held left only numbers behind, which are set anew.
        let _alone = self.scraping.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Clusters, slots and checks come and go: what is not set below must not stay.
        for gauge in self.gauges.values() {
            gauge.reset();
        }
        for counter in self.counters.values() {
            counter.reset();
        }
        for view in views {
            self.set(view, findings.get(&view.name).map_or(&[], Vec::as_slice), now);
        }
        let up = !views.is_empty() && views.iter().all(repository_is_up);
        self.repository_up.set(f64::from(u8::from(up)));
        let free = views.iter().filter_map(|view| view.wal.as_ref()?.spool_free_bytes).min();
        self.spool_free.set(free.map_or(f64::NAN, |bytes| bytes as f64));
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text).map_err(|error| cannot(error.to_string()))?;
        String::from_utf8(text).map_err(|error| cannot(error.to_string()))
    }

    fn gauge(&self, name: &'static str, labels: &[&str], value: f64) {
        if let Some(gauge) = self.gauges.get(name) {
            gauge.with_label_values(labels).set(value);
        }
    }

    fn counter(&self, name: &'static str, labels: &[&str], value: u64) {
        if let Some(counter) = self.counters.get(name) {
            counter.with_label_values(labels).inc_by(value);
        }
    }

    fn set(&self, view: &ClusterView, findings: &[Finding], now: DateTime<Utc>) {
        self.set_wal(view);
        self.set_slots(view);
        self.set_backups(view, now);
        self.set_stored(view);
        let cluster = view.name.as_str();
        for finding in findings {
            self.gauge("pgvault_check_ok", &[cluster, finding.name], finding.status.as_number());
        }
        let wal_verified = view.wal_verified.map_or(0.0, |at| at.timestamp_millis() as f64 / 1e3);
        self.gauge("pgvault_verify_last_success_timestamp_seconds", &[cluster, "wal"], wal_verified);
        let verified = view.stored.as_deref().and_then(|stored| stored.verified.values().max());
        let verified = verified.map_or(0.0, |&at| seconds(at));
        self.gauge("pgvault_verify_last_success_timestamp_seconds", &[cluster, "backup"], verified);
        self.gauge("pgvault_verify_last_success_timestamp_seconds", &[cluster, "restore"], 0.0);
    }

    fn set_wal(&self, view: &ClusterView) {
        let cluster = view.name.as_str();
        let wal = view.wal.clone().unwrap_or_default();
        let flag = |condition: bool| f64::from(u8::from(condition));
        let reached = view.primary().is_some_and(|member| member.error.is_none() && member.version.is_some());
        self.gauge("pgvault_up", &[cluster], flag(wal.streaming() || reached));
        self.gauge("pgvault_wal_streaming", &[cluster], flag(wal.streaming()));
        let stages = [
            ("received", wal.received),
            ("flushed", wal.flushed),
            ("archived", wal.archived),
            ("shipped", wal.shipped.max(wal.archived)),
        ];
        for (stage, position) in stages {
            self.gauge("pgvault_wal_lag_bytes", &[cluster, stage], or_nan(lag(&wal, position)));
        }
        self.gauge("pgvault_rpo_seconds", &[cluster], wal.rpo_seconds);
        self.gauge("pgvault_rpo_target_seconds", &[cluster], view.max_rpo.as_secs_f64());
        self.gauge("pgvault_wal_gaps", &[cluster], super::gaps::all(view).len() as f64);
        self.gauge("pgvault_wal_spool_segments", &[cluster], wal.spool_segments as f64);
        self.gauge("pgvault_wal_spool_bytes", &[cluster], wal.spool_bytes as f64);
        let until_full = wal.spool_time_left.map_or(f64::NAN, |left| left.as_secs_f64());
        self.gauge("pgvault_wal_spool_full_seconds", &[cluster], until_full);
        let commit = wal.last_archived_commit.map(|commit| seconds(commit.time));
        self.gauge("pgvault_wal_last_commit_timestamp_seconds", &[cluster], commit.unwrap_or(0.0));
        self.gauge("pgvault_timeline", &[cluster], wal.timeline.map_or(0.0, |timeline| f64::from(timeline.get())));
        let conflict = [&wal.error, &wal.conflict]
            .into_iter()
            .flatten()
            .any(|error| matches!(error.code(), ErrorCode::TimelineConflict | ErrorCode::ForeignCluster));
        self.gauge("pgvault_timeline_conflict", &[cluster], flag(conflict));
        let counters = &wal.counters;
        self.counter("pgvault_wal_received_bytes_total", &[cluster], counters.received_bytes);
        self.counter("pgvault_wal_archived_bytes_total", &[cluster, "raw"], counters.archived_raw_bytes);
        self.counter("pgvault_wal_archived_bytes_total", &[cluster, "stored"], counters.archived_stored_bytes);
        self.counter("pgvault_wal_segments_archived_total", &[cluster], counters.segments_archived);
        for reason in ARCHIVE_ERRORS {
            let count = counters.archive_errors.get(reason).copied().unwrap_or_default();
            self.counter("pgvault_wal_archive_errors_total", &[cluster, reason], count);
        }
        for reason in RECONNECTS {
            let count = counters.reconnects.get(reason).copied().unwrap_or_default();
            self.counter("pgvault_wal_reconnects_total", &[cluster, reason], count);
        }
        self.counter("pgvault_failovers_total", &[cluster], counters.timeline_switches);
    }

    fn set_slots(&self, view: &ClusterView) {
        let cluster = view.name.as_str();
        let Some(slot) = view.slot.as_deref() else { return };
        let connected = view.wal.as_ref().and_then(|wal| wal.primary.as_ref());
        let here = |member: &super::view::Member| {
            connected.map_or(view.members.len() == 1, |(host, port)| member.host == *host && member.port == *port)
        };
        for member in &view.members {
            let host = view.label_of(member);
            let labels = [cluster, slot, host.as_str()];
            let row = member.slots.iter().flatten().find(|row| row.name == slot);
            let looked = member.slots.is_some();
            let retained = row.and_then(|row| Some(member.current_lsn?.bytes_since(row.restart_lsn?)));
            // A slot that was made anew looks well: what it let go stays an alarm until a backup follows.
            let open_gap = here(member) && super::gaps::open(view).is_some();
            let lost = open_gap || row.map_or(looked, |row| row.wal_status.as_deref() == Some("lost"));
            let limit = member.settings.as_ref().and_then(|settings| settings.max_slot_wal_keep_size);
            self.gauge("pgvault_slot_active", &labels, f64::from(u8::from(row.is_some_and(|row| row.active))));
            self.gauge("pgvault_slot_retained_bytes", &labels, or_nan(retained));
            let safe = row.and_then(|row| row.safe_wal_size);
            self.gauge("pgvault_slot_safe_wal_bytes", &labels, safe.map_or(f64::NAN, |bytes| bytes as f64));
            self.gauge(
                "pgvault_slot_wal_limit_bytes",
                &labels,
                limit.map_or(f64::NAN, |limit| limit.map_or(-1.0, |bytes| bytes as f64)),
            );
            self.gauge("pgvault_slot_lost", &labels, f64::from(u8::from(lost)));
        }
    }

    fn set_backups(&self, view: &ClusterView, now: DateTime<Utc>) {
        let cluster = view.name.as_str();
        let list = super::status::backup_list(view);
        for (label, status) in [
            ("ok", recovery::BackupStatus::Ok),
            ("waiting_for_wal", recovery::BackupStatus::WaitingForWal),
            ("running", recovery::BackupStatus::Running),
            ("failed", recovery::BackupStatus::Failed),
        ] {
            let count = list.iter().filter(|backup| backup.status == status).count();
            self.gauge("pgvault_backups", &[cluster, label], count as f64);
        }
        let damaged = list.iter().filter(|backup| backup.damaged).count();
        self.gauge("pgvault_backups_damaged", &[cluster], damaged as f64);
        let activity = &view.backup;
        self.counter("pgvault_backup_runs_total", &[cluster, "ok"], activity.runs.0);
        self.counter("pgvault_backup_runs_total", &[cluster, "error"], activity.runs.1);
        let running = activity.running.as_ref();
        self.gauge("pgvault_backup_running", &[cluster], f64::from(u8::from(running.is_some())));
        self.gauge("pgvault_backup_done_bytes", &[cluster], running.map_or(0.0, |running| running.done_bytes as f64));
        self.gauge(
            "pgvault_backup_expected_bytes",
            &[cluster],
            running.and_then(|running| running.total_bytes).map_or(0.0, |bytes| bytes as f64),
        );
        let newest = view.backups().last();
        let oldest = view.backups().first();
        self.gauge(
            "pgvault_backup_last_success_timestamp_seconds",
            &[cluster],
            newest.map_or(0.0, |backup| seconds(backup.stopped_at)),
        );
        self.gauge(
            "pgvault_backup_oldest_timestamp_seconds",
            &[cluster],
            oldest.map_or(0.0, |backup| seconds(backup.stopped_at)),
        );
        self.gauge(
            "pgvault_backup_next_timestamp_seconds",
            &[cluster],
            activity.next_due.map_or(0.0, |due| due.timestamp() as f64),
        );
        let stored_duration = newest.map(|backup| seconds(backup.stopped_at) - seconds(backup.started_at));
        let duration = activity.last_duration.map(|duration| duration.as_secs_f64()).or(stored_duration);
        self.gauge("pgvault_backup_last_duration_seconds", &[cluster], duration.unwrap_or(0.0));
        let sizes = [
            ("data", newest.map(|backup| backup.size_bytes)),
            ("stored", newest.map(|backup| backup.stored_bytes)),
            ("new", newest.map(|backup| backup.new_bytes)),
        ];
        for (form, bytes) in sizes {
            self.gauge("pgvault_backup_last_size_bytes", &[cluster, form], bytes.map_or(0.0, |bytes| bytes as f64));
        }
        let interval = view.schedule.as_ref().and_then(|schedule| schedule::longest_interval(schedule, now));
        self.gauge(
            "pgvault_backup_schedule_interval_seconds",
            &[cluster],
            interval.map_or(0.0, |interval| interval.num_seconds() as f64),
        );
    }

    fn set_stored(&self, view: &ClusterView) {
        let cluster = view.name.as_str();
        let live_end = view.wal.as_ref().and_then(|wal| wal.last_archived_commit).map(|commit| commit.time);
        let range = live_range(view)
            .map(|range| (seconds(range.from.time), seconds(range.to.time.max(live_end.unwrap_or(range.to.time)))));
        self.gauge("pgvault_recovery_window_start_timestamp_seconds", &[cluster], range.map_or(0.0, |(from, _)| from));
        self.gauge("pgvault_recovery_window_end_timestamp_seconds", &[cluster], range.map_or(0.0, |(_, to)| to));
        self.gauge("pgvault_recovery_window_seconds", &[cluster], range.map_or(0.0, |(from, to)| to - from));
        let bytes = view.stored.as_deref().map(|stored| stored.bytes).unwrap_or_default();
        for (kind, count) in [("base", bytes.base), ("wal", bytes.wal), ("meta", bytes.meta)] {
            self.gauge("pgvault_repository_bytes", &[cluster, kind], count as f64);
        }
    }
}

impl StorageMeter for Metrics {
    fn request(&self, operation: &'static str, result: RequestResult, duration: Duration) {
        self.storage_requests.with_label_values(&[operation, result.label()]).inc();
        self.storage_durations.with_label_values(&[operation]).observe(duration.as_secs_f64());
    }
}

fn with_cluster<'a>(labels: &[&'a str]) -> Vec<&'a str> {
    std::iter::once("cluster").chain(labels.iter().copied()).collect()
}

fn or_nan(bytes: Option<u64>) -> f64 {
    bytes.map_or(f64::NAN, |bytes| bytes as f64)
}

fn seconds(time: wal::PgTime) -> f64 {
    time.unix_micros() as f64 / 1e6
}
