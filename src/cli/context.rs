//! What every command starts from: flags, variables, the clock, the configuration and the cluster that is meant.

use std::io::IsTerminal;
use std::sync::Arc;

use super::args::{Global, OfCluster};
use super::output::Output;
use crate::clock::{Clock, SystemClock};
use crate::config::{ClusterConfig, Config, Flags, Variables, load};
use crate::error::{Error, ErrorCode, Result};

/// What a command works with.
#[derive(Debug)]
pub(super) struct Context {
    /// Flags that every command takes.
    pub(super) global: Global,
    /// Where to print.
    pub(super) output: Output,
    /// The environment.
    pub(super) variables: Variables,
    /// The time.
    pub(super) clock: Arc<dyn Clock>,
}

impl Context {
    pub(super) fn new(global: Global, output: Output, variables: Variables) -> Self {
        Self { global, output, variables, clock: Arc::new(SystemClock) }
    }

    /// What the command line says about the configuration; also what a SIGHUP starts from.
    pub(super) fn flags(&self) -> Flags {
        let level = match self.global.verbose {
            0 => None,
            1 => Some("debug"),
            _ => Some("trace"),
        };
        let verbose = level.map(|level| ("log.level".to_owned(), level.to_owned(), "--verbose"));
        let set = self.global.set.iter().map(|(key, value)| (key.clone(), value.clone(), "--set"));
        Flags { config: self.global.config.clone(), overrides: verbose.into_iter().chain(set).collect() }
    }

    /// The configuration, read and checked.
    pub(super) fn config(&self) -> Result<Config> {
        load(&self.flags(), &self.variables)
    }

    /// The name that was given, as an argument or by `--cluster`.
    pub(super) fn named<'a>(&'a self, of: &'a OfCluster) -> Result<Option<&'a str>> {
        match (of.name.as_deref(), self.global.cluster.as_deref()) {
            (Some(argument), Some(flag)) if argument != flag => {
                Err(Error::new(ErrorCode::Usage, format!("two clusters are named: {argument}, and --cluster {flag}")))
            }
            (argument, flag) => Ok(argument.or(flag)),
        }
    }

    /// The cluster that is meant: the named one, or the only one.
    ///
    /// Where no cluster is configured, a name alone is enough for what works on the repository: that is the night in which
    /// nothing but the bucket is left.
    pub(super) fn cluster(&self, config: &Config, of: &OfCluster) -> Result<ClusterConfig> {
        match (self.named(of)?, config.clusters.as_slice()) {
            (Some(name), []) => config.implied_cluster(name),
            (Some(name), _) => config.cluster(name).cloned().ok_or_else(|| unknown_cluster(config, name)),
            (None, [only]) => Ok(only.clone()),
            (None, []) => Err(no_cluster()),
            (None, several) => {
                let names: Vec<&str> = several.iter().map(|cluster| cluster.name.as_str()).collect();
                Err(Error::new(ErrorCode::Usage, "several clusters are configured: say which one")
                    .because(format!("configured: {}", names.join(", ")))
                    .help(format!("add --cluster {}", names[0])))
            }
        }
    }

    /// Asks before something is taken away; without a terminal `--yes` must have said so.
    pub(super) fn confirm(&self, question: &str) -> Result<()> {
        if self.global.yes {
            return Ok(());
        }
        let refused = |why: &str| Error::new(ErrorCode::Usage, why.to_owned()).because(question).help("add --yes");
        if !std::io::stdin().is_terminal() {
            return Err(refused("this needs --yes, because there is no terminal to ask on"));
        }
        self.output.note(&format!("{question} [y/N]"));
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).map_err(|error| refused("no answer").because(error))?;
        if matches!(answer.trim(), "y" | "Y" | "yes") {
            Ok(())
        } else {
            Err(refused("not confirmed, nothing was changed"))
        }
    }

    /// The clusters that are meant by a command that covers all when none is named.
    pub(super) fn clusters(&self, config: &Config, of: &OfCluster) -> Result<Vec<ClusterConfig>> {
        match self.named(of)? {
            None if config.clusters.len() > 1 => Ok(config.clusters.clone()),
            _ => self.cluster(config, of).map(|cluster| vec![cluster]),
        }
    }
}

/// There is nothing to work on.
pub(super) fn no_cluster() -> Error {
    Error::new(ErrorCode::InvalidConfig, "no cluster is configured")
        .help("in /etc/pgvault/pgvault.toml:  [cluster.main]  conninfo = \"host=db user=pgvault\"")
        .help("or in the environment:  PGHOST=db PGUSER=pgvault pgvault serve")
        .help("with nothing but the repository, name the cluster as it is stored:  --cluster main")
}

fn unknown_cluster(config: &Config, name: &str) -> Error {
    let names: Vec<&str> = config.clusters.iter().map(|cluster| cluster.name.as_str()).collect();
    let error = Error::new(ErrorCode::NotFound, format!("no cluster \"{name}\" is configured"));
    match crate::config::keys::nearest(name, names.iter().copied()) {
        Some(near) => error.help(format!("did you mean {near}?")),
        None => error.help(format!("configured: {}", names.join(", "))),
    }
}
