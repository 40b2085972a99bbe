//! The table of keys.

use super::Form::{Bool, Integer, List, Text};
use super::Key;
use super::Place::{Cluster, Daemon, Http, Log, Repository, Retention, Spool};
use super::{Form, Place};

const fn key(place: Place, name: &'static str, form: Form, default: &'static str, about: &'static str) -> Key {
    Key { place, name, form, default, variable: None, about, unbuilt: None }
}

impl Key {
    const fn var(mut self, variable: &'static str) -> Self {
        self.variable = Some(variable);
        self
    }

    const fn unbuilt(mut self, why: &'static str) -> Self {
        self.unbuilt = Some(why);
        self
    }
}

const NOTHING_EXPIRES: &str = "this version deletes nothing";

/// All keys, in the order in which they are shown.
pub const KEYS: &[Key] = &[
    key(Daemon, "state_dir", Text, "/var/lib/pgvault", "spool, local indexes and the control socket live here")
        .var("STATE_DIR"),
    key(Repository, "url", Text, "", "s3://bucket/prefix or file:///srv/pgvault").var("REPOSITORY"),
    key(Repository, "endpoint", Text, "", "of an S3 server other than Amazon's").var("S3_ENDPOINT"),
    key(Repository, "region", Text, "", "of the bucket").var("S3_REGION"),
    key(Repository, "path_style", Bool, "", "bucket in the path in place of the host name").var("S3_PATH_STYLE"),
    key(Repository, "allow_http", Bool, "false", "allow http:// endpoints beyond this machine"),
    key(Repository, "ca_file", Text, "", "certificates to trust, PEM"),
    key(Repository, "storage_class", Text, "", "of stored objects"),
    key(Repository, "connections", Integer, "4", "parallel requests"),
    key(Repository, "access_key_file", Text, "", "holds the access key; else the usual AWS chain"),
    key(Repository, "secret_key_file", Text, "", "holds the secret key; else the usual AWS chain"),
    key(Repository, "compression", Text, "zstd:1", "zstd:1, zstd:3, … or none"),
    key(Repository, "encryption", List, "", "age recipients; absent = off"),
    key(Repository, "identity_file", Text, "", "holds the age identity that opens an encrypted repository")
        .var("IDENTITY_FILE"),
    key(Cluster, "conninfo", Text, "", "libpq words; several hosts are several members").var("CONNINFO"),
    key(Cluster, "slot", Text, "pgvault", "replication slot; \"\" = slotless").var("SLOT"),
    key(Cluster, "application_name", Text, "pgvault", "the name for synchronous_standby_names"),
    key(Cluster, "create_slot", Bool, "true", "false: the HA manager owns the slot"),
    key(Cluster, "max_rpo", Text, "5s", "ship the tail of the open segment so often; 0 = whole segments only")
        .var("MAX_RPO"),
    key(Cluster, "synchronous", Bool, "false", "true: flush at once, to be named in synchronous_standby_names"),
    key(Cluster, "report_apply", Bool, "false", "true: what is flushed is reported as applied too, for remote_apply"),
    key(Cluster, "schedule", Text, "0 3 * * *", "base backups, as in crontab; \"\" = none").var("SCHEDULE"),
    key(Cluster, "time_zone", Text, "UTC", "in which the schedule is read"),
    key(Cluster, "backup_from", Text, "primary", "primary, standby or prefer-standby")
        .unbuilt("this version takes base backups from the server that it streams from"),
    key(Cluster, "data_directory", Text, "", "readable PGDATA of the same host: backups read it"),
    key(Cluster, "max_rate", Text, "", "of base backups, per second; WAL is never throttled"),
    key(Cluster, "patroni_urls", List, "", "Patroni's REST API on the members, as http://pg1:8008"),
    key(Retention, "recovery_window", Text, "7d", "so far back one can go")
        .var("RECOVERY_WINDOW")
        .unbuilt(NOTHING_EXPIRES),
    key(Retention, "redundancy", Integer, "2", "keep at least so many usable backups")
        .var("REDUNDANCY")
        .unbuilt(NOTHING_EXPIRES),
    key(Retention, "keep_daily", Integer, "0", "").unbuilt(NOTHING_EXPIRES),
    key(Retention, "keep_weekly", Integer, "0", "").unbuilt(NOTHING_EXPIRES),
    key(Retention, "keep_monthly", Integer, "0", "").unbuilt(NOTHING_EXPIRES),
    key(Retention, "keep_yearly", Integer, "0", "").unbuilt(NOTHING_EXPIRES),
    key(Retention, "wal_window", Text, "", "WAL kept shorter than the backups").unbuilt(NOTHING_EXPIRES),
    key(Spool, "dir", Text, "", "WAL that is not yet in the repository; default: spool under state_dir")
        .var("SPOOL_DIR"),
    key(Spool, "max_size", Text, "", "of the spool; \"\" = what the disk holds"),
    key(Spool, "on_full", Text, "stall", "stall: disconnect and wait; the slot holds WAL on the primary"),
    key(Http, "listen", Text, "127.0.0.1:8080", "address of the HTTP server; \"\" = none").var("LISTEN"),
    key(Http, "token_file", Text, "", "holds the token for requests that act").var("HTTP_TOKEN_FILE"),
    key(Http, "actions", Bool, "false", "true: requests with the token may act"),
    key(Log, "format", Text, "auto", "auto, text or json").var("LOG_FORMAT"),
    key(Log, "level", Text, "info", "error, warn, info, debug or trace").var("LOG_LEVEL"),
    key(Log, "file", Text, "", "in place of standard error"),
    key(Log, "rotate_size", Text, "10MB", "a log file is rotated at this size"),
    key(Log, "rotate_keep", Integer, "15", "so many old log files are kept"),
];
