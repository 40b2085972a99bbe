//! The command line as clap sees it; commands with much to say in files of their own. What a command does stands in the
//! file of its name one folder above.

mod backup;
mod key;
mod recover;
mod repo;
mod standby;
mod wal;
mod writing;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

pub use backup::{Backup, BackupDelete, BackupNow, BackupPin, BackupVerify, Kind};
pub use key::Key;
pub use recover::{Action, Recover, Target};
pub use repo::{Repo, RepoCheck};
pub use standby::{Standby, StandbyArgs};
pub use wal::{Wal, WalFetch, WalPrefetch, WalVerify};
pub use writing::Writing;

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
    /// Encryption keys
    #[command(subcommand)]
    Key(Key),
    /// Standbys from the repository: the primary is not read
    #[command(subcommand)]
    Standby(Standby),
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
