//! The command line as clap sees it. What a command does stands in the file of its name.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use wal::{Lsn, TimelineId};

/// A backup server for PostgreSQL: streamed WAL, base backups, recovery to a moment.
#[derive(Debug, Parser)]
#[command(name = "pgvault", version, disable_help_subcommand = true, max_term_width = 110, after_help = EXIT_CODES)]
pub struct Cli {
    /// Flags that every command takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 ok, 1 unclassified, 2 usage, 3 configuration, 4 PostgreSQL, 5 repository, 6 not found, \
7 refused and nothing changed, 8 target not recoverable, 9 verification failed, 10 check found FAILED, 11 check --strict found WARN, \
130/143 interrupted. wal fetch: 0 found, 1 authoritatively absent, 255 anything else. Treat unknown codes as failure.";

/// Heading of the flags that every command takes.
const GLOBAL: &str = "Options of every command";

/// Flags that every command takes.
#[derive(Args, Clone, Debug, Default)]
pub struct Global {
    /// Configuration file, in place of /etc/pgvault/pgvault.toml and conf.d
    #[arg(help_heading = GLOBAL, short, long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Cluster; optional when one is configured
    #[arg(help_heading = GLOBAL, id = "global-cluster", long = "cluster", global = true, value_name = "NAME")]
    pub cluster: Option<String>,
    /// Set a key of the configuration, as in repository.url=file:///srv/pgvault
    #[arg(help_heading = GLOBAL, long, global = true, value_name = "KEY=VALUE", value_parser = key_value)]
    pub set: Vec<(String, String)>,
    /// Print JSON
    #[arg(help_heading = GLOBAL, long, global = true)]
    pub json: bool,
    /// Print errors and data only
    #[arg(help_heading = GLOBAL, short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say more; twice: everything
    #[arg(help_heading = GLOBAL, short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// No colours
    #[arg(help_heading = GLOBAL, long, global = true)]
    pub no_color: bool,
    /// Answer yes to every question
    #[arg(help_heading = GLOBAL, long, global = true)]
    pub yes: bool,
}

/// Flags of `serve`.
#[derive(Args, Clone, Debug, Default)]
pub struct Serve {
    /// Begin a new lineage of this cluster where the server's history is another one than what is stored
    #[arg(long, value_name = "CLUSTER")]
    pub new_lineage: Option<String>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// The daemon: stream, ship, schedule, HTTP
    Serve(Serve),
    /// All of it on a throw-away local PostgreSQL: write, back up, drop a table, recover to before the drop
    Demo(Demo),
    /// One screen: is all well?
    Status(OfCluster),
    /// Named checks, with what to do about each that is not ok
    Check(Check),
    /// Recoverable ranges, gaps, timelines
    Window(Window),
    /// Take, list and show base backups
    #[command(subcommand)]
    Backup(Backup),
    /// Write a data directory that recovers to a moment
    #[command(alias = "restore")]
    Recover(Box<Recover>),
    /// Stored WAL; `wal fetch` is the restore_command
    #[command(subcommand)]
    Wal(Wal),
    /// wal fetch, under the names that others use
    #[command(name = "wal-fetch", aliases = ["get-wal", "archive-get"], hide = true)]
    WalFetch(WalFetch),
    /// The replication slot
    #[command(subcommand)]
    Slot(Slot),
    /// The repository
    #[command(subcommand)]
    Repo(Repo),
    /// What may be forgotten (not available in this version)
    #[command(visible_alias = "expire")]
    Retention(Rest),
    /// Encryption keys (not available in this version)
    Key(Rest),
    /// Standbys from the archive (not available in this version)
    Standby(Rest),
    /// A throw-away read-only PostgreSQL at a moment (not available in this version)
    Peek(Rest),
    /// Restore, replay, check, measure, delete (not available in this version)
    Drill(Rest),
    /// What is running (not available in this version)
    Jobs(Rest),
    /// The configuration
    #[command(subcommand)]
    Config(Config),
    /// For container probes: 0 when the daemon lives
    Health(Health),
    /// Completions for a shell
    Completions {
        /// bash, zsh, fish, elvish or powershell
        shell: clap_complete::Shell,
    },
    /// Write man pages into a directory
    Man {
        /// Where to
        dir: PathBuf,
    },
    /// The version of this program
    Version,
}

/// A cluster as the first argument.
#[derive(Args, Debug, Default)]
pub struct OfCluster {
    /// Cluster; optional when one is configured
    #[arg(id = "cluster-argument", value_name = "CLUSTER")]
    pub name: Option<String>,
}

/// Arguments of a command that does not exist yet.
#[derive(Args, Debug)]
pub struct Rest {
    /// Anything
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    pub rest: Vec<String>,
}

/// `demo`
#[derive(Args, Debug)]
pub struct Demo {
    /// Where to work; default: a temporary directory
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Leave everything there at the end
    #[arg(long)]
    pub keep: bool,
}

/// `check`
#[derive(Args, Debug)]
pub struct Check {
    /// Which cluster
    #[command(flatten)]
    pub of: OfCluster,
    /// Switch WAL, wait until the segment is stored, fetch it back, compare
    #[arg(long)]
    pub deep: bool,
    /// One line and an exit code of 0, 1, 2 or 3, for Nagios and Icinga
    #[arg(long)]
    pub nagios: bool,
    /// Exit with 11 when something is WARN
    #[arg(long)]
    pub strict: bool,
}

/// `window`
#[derive(Args, Debug)]
pub struct Window {
    /// Which cluster
    #[command(flatten)]
    pub of: OfCluster,
    /// Can this moment be recovered? With a zone: 2026-11-20 05:22:36+00, "5 minutes ago"
    #[arg(long, value_name = "TIME")]
    pub at: Option<String>,
}

/// `backup …`
#[derive(Debug, Subcommand)]
pub enum Backup {
    /// Start a base backup
    Now(BackupNow),
    /// All backups, newest last
    List(OfCluster),
    /// One backup
    Show {
        /// Its id, the start of it, or `latest`
        id: String,
    },
    /// Read a backup and compare (not available in this version)
    Verify(Rest),
    /// Pin a backup (not available in this version)
    Keep(Rest),
    /// Unpin a backup (not available in this version)
    Release(Rest),
    /// Delete a backup (not available in this version)
    Delete(Rest),
}

/// `backup now`
#[derive(Args, Debug)]
pub struct BackupNow {
    /// Which cluster
    #[command(flatten)]
    pub of: OfCluster,
    /// Return when the backup is committed and usable
    #[arg(long)]
    pub wait: bool,
    /// How much to read from the server: what changed where it can tell (17 and later), everything, or what changed
    /// whenever possible. Every backup restores alone, whichever it was
    #[arg(long, value_enum, default_value_t = Kind::Auto)]
    pub kind: Kind,
    /// A name for people, kept as the annotation `name`
    #[arg(long)]
    pub name: Option<String>,
    /// Something to remember with it
    #[arg(long = "annotation", value_name = "K=V", value_parser = key_value)]
    pub annotations: Vec<(String, String)>,
    /// Checkpoint at once in place of a spread one
    #[arg(long)]
    pub fast_checkpoint: bool,
    /// At most so many bytes per second, as in 50MB/s
    #[arg(long, value_name = "RATE", value_parser = crate::config::values::rate)]
    pub max_rate: Option<u64>,
}

/// How a backup is read from the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// As is best
    Auto,
    /// Every file
    Full,
    /// What changed since another one
    Incremental,
}

/// `recover`
#[derive(Args, Debug)]
pub struct Recover {
    /// Which cluster
    #[command(flatten)]
    pub of: OfCluster,
    /// Directory to write; must be empty or absent
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// The moment
    #[command(flatten)]
    pub target: Target,
    /// Stop just before the target
    #[arg(long)]
    pub exclusive: bool,
    /// A branch of the history: a number, or latest
    #[arg(long, value_name = "N")]
    pub timeline: Option<String>,
    /// At the target: wait readable, become writable, or stop
    #[arg(long, value_enum)]
    pub action: Option<Action>,
    /// The backup to start from; default: the nearest one
    #[arg(long, value_name = "ID")]
    pub backup: Option<String>,
    /// Keep what is already right in the directory (not available in this version)
    #[arg(long)]
    pub delta: bool,
    /// Write a standby
    #[arg(long)]
    pub standby: bool,
    /// libpq words of the primary, for the standby
    #[arg(long, value_name = "S", requires = "standby")]
    pub primary_conninfo: Option<String>,
    /// Replication slot of the standby
    #[arg(long, value_name = "NAME", requires = "standby")]
    pub slot: Option<String>,
    /// Write no recovery settings and no signal file: an HA manager does
    #[arg(long, conflicts_with_all = ["standby", "recovery_options", "action"])]
    pub no_config: bool,
    /// Put a tablespace elsewhere; paths
    #[arg(long = "tablespace", value_name = "OLD=NEW", value_parser = key_value)]
    pub tablespaces: Vec<(String, String)>,
    /// Put pg_wal there
    #[arg(long, value_name = "DIR")]
    pub wal_dir: Option<PathBuf>,
    /// Parallel requests and writers
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub jobs: Option<u16>,
    /// Give the files to this user
    #[arg(long, value_name = "USER")]
    pub owner: Option<String>,
    /// More recovery settings
    #[arg(long = "recovery-option", value_name = "K=V", value_parser = key_value)]
    pub recovery_options: Vec<(String, String)>,
    /// Print the plan and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// The moment to recover to; one of them.
#[derive(Args, Debug, Default)]
#[group(id = "target", multiple = false)]
pub struct Target {
    /// Before the first commit later than this, with a zone: 2026-11-20 05:22:36+00, "5 minutes ago"
    #[arg(help_heading = "Target", long, value_name = "T")]
    pub target_time: Option<String>,
    /// At this position
    #[arg(help_heading = "Target", long, value_name = "L")]
    pub target_lsn: Option<String>,
    /// At the end of this transaction
    #[arg(help_heading = "Target", long, value_name = "X")]
    pub target_xid: Option<u32>,
    /// At this restore point
    #[arg(help_heading = "Target", long, value_name = "N")]
    pub target_name: Option<String>,
    /// At the end of the stored WAL (the default)
    #[arg(help_heading = "Target", long)]
    pub latest: bool,
    /// As soon as the backup is consistent
    #[arg(help_heading = "Target", long)]
    pub immediate: bool,
}

/// What PostgreSQL does at the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Action {
    /// Wait, readable
    Pause,
    /// Become writable on a new timeline
    Promote,
    /// Stop
    Shutdown,
}

/// `wal …`
#[derive(Debug, Subcommand)]
pub enum Wal {
    /// Fetch one file: the restore_command
    Fetch(WalFetch),
    /// Fetch ahead of a recovery; `wal fetch` starts it
    #[command(hide = true)]
    Prefetch(WalPrefetch),
    /// Stored ranges, by timeline
    List(OfCluster),
    /// Missing ranges
    Gaps(OfCluster),
    /// Make the primary finish its segment
    Switch(OfCluster),
    /// Read all stored WAL and prove that it is whole and one log
    Verify(WalVerify),
}

/// `wal verify`
#[derive(Args, Debug)]
pub struct WalVerify {
    /// Cluster
    #[command(flatten)]
    pub of: OfCluster,
    /// From this position on
    #[arg(long, value_name = "LSN")]
    pub from: Option<Lsn>,
    /// Up to this position
    #[arg(long, value_name = "LSN")]
    pub to: Option<Lsn>,
    /// This timeline only
    #[arg(long, value_name = "N")]
    pub timeline: Option<TimelineId>,
    /// From listings alone: look for what is missing, read no WAL
    #[arg(long)]
    pub quick: bool,
    /// Pieces read at the same time
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub jobs: u16,
}

/// `wal fetch`
#[derive(Args, Debug)]
pub struct WalFetch {
    /// The branch that is recovered: what it has left behind is not served
    #[arg(long, value_name = "N")]
    pub timeline: Option<TimelineId>,
    /// Where recovery will stop: WAL missing behind it is no hole
    #[arg(long, value_name = "LSN")]
    pub until: Option<Lsn>,
    /// How long trouble is put up with before exit 255 [default: 2min; segments on a standby: 10s]
    #[arg(long, value_name = "TIME", value_parser = crate::config::values::duration)]
    pub patience: Option<std::time::Duration>,
    /// How much is fetched ahead of what is asked for, on the file system of %p; 0: nothing
    #[arg(long, value_name = "SIZE", value_parser = crate::config::values::size, default_value = "256MB")]
    pub prefetch: u64,
    /// Cluster
    #[arg(value_name = "CLUSTER")]
    pub name: String,
    /// Name of the file: %f
    #[arg(value_name = "FILE")]
    pub file: String,
    /// Where to write it: %p
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
}

/// `wal prefetch`: what `wal fetch` was given, without the file
#[derive(Args, Debug)]
pub struct WalPrefetch {
    /// As for `wal fetch`
    #[arg(long, value_name = "N")]
    pub timeline: Option<TimelineId>,
    /// As for `wal fetch`
    #[arg(long, value_name = "LSN")]
    pub until: Option<Lsn>,
    /// As for `wal fetch`
    #[arg(long, value_name = "SIZE", value_parser = crate::config::values::size, default_value = "256MB")]
    pub prefetch: u64,
    /// Cluster
    #[arg(value_name = "CLUSTER")]
    pub name: String,
    /// The folder to work in
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
}

/// `slot …`
#[derive(Debug, Subcommand)]
pub enum Slot {
    /// The slot on every host
    Show(OfCluster),
    /// Create it
    Create(OfCluster),
    /// Drop it: the primary forgets how far pgvault is
    Drop(OfCluster),
}

/// `repo …`
#[derive(Debug, Subcommand)]
pub enum Repo {
    /// Make the repository
    Init,
    /// Write, read and compare, and say what the store can do
    Check,
    /// What each backup really takes, alone and shared, and the WAL
    Stats(OfCluster),
    /// Copy to another place (not available in this version)
    Copy(Rest),
}

/// `config …`
#[derive(Debug, Subcommand)]
pub enum Config {
    /// Is the configuration right?
    Check,
    /// Every value with its source, secrets hidden
    Show,
    /// Print a file to start from
    Init,
    /// A JSON schema (not available in this version)
    Schema(Rest),
}

/// `health`
#[derive(Args, Debug)]
pub struct Health {
    /// 0 when configured and the spool can be written
    #[arg(long, conflicts_with = "strict")]
    pub ready: bool,
    /// 0 when no check is FAILED
    #[arg(long)]
    pub strict: bool,
}

/// `K=V`
fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn aliases_take_the_same_arguments() {
        for name in ["get-wal", "archive-get", "wal-fetch"] {
            let cli = Cli::try_parse_from(["pgvault", name, "main", "000000010000000000000001", "pg_wal/RECOVERYXLOG"])
                .unwrap();
            assert!(matches!(cli.command, Command::WalFetch(_)), "{name}");
        }
        assert!(matches!(Cli::try_parse_from(["pgvault", "expire", "plan"]).unwrap().command, Command::Retention(_)));
    }

    #[test]
    fn one_target_at_a_time() {
        let two = ["pgvault", "recover", "--to", "/x", "--target-lsn", "0/1", "--latest"];
        assert!(Cli::try_parse_from(two).is_err());
        assert!(Cli::try_parse_from(["pgvault", "recover", "main", "--to", "/x"]).is_ok());
    }

    #[test]
    fn global_flags_stand_anywhere() {
        let cli = Cli::try_parse_from(["pgvault", "backup", "list", "--json", "--cluster", "main", "-c", "f"]).unwrap();
        assert!(cli.global.json);
        assert_eq!(cli.global.cluster.as_deref(), Some("main"));
    }
}
