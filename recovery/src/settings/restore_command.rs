//! The `restore_command` that fetches WAL from the repository.

use std::fmt;

use wal::{Lsn, TimelineId};

/// `pgvault wal fetch` as a `restore_command`: quoted for the shell, with PostgreSQL's `%f` and `%p`. Carries no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreCommand {
    /// Path of the program.
    pub program: String,
    /// Path of the configuration file, when one is used.
    pub config: Option<String>,
    /// More arguments that every command needs here; no secrets.
    pub arguments: Vec<String>,
    /// The cluster.
    pub cluster: String,
    /// The branch that is recovered: WAL that it has left behind is not served, and a hole on it is an error.
    pub timeline: Option<TimelineId>,
    /// Where recovery is known to stop: WAL missing from here on is not a hole.
    pub until: Option<Lsn>,
}

impl fmt::Display for RestoreCommand {
    /// As the value of the parameter, not yet quoted for the configuration file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = vec![self.program.clone()];
        words.extend(self.config.iter().flat_map(|path| ["-c".to_owned(), path.clone()]));
        words.extend(self.arguments.iter().cloned());
        words.extend(["wal", "fetch"].map(str::to_owned));
        words.extend(self.timeline.iter().flat_map(|timeline| ["--timeline".to_owned(), timeline.to_string()]));
        words.extend(self.until.iter().flat_map(|lsn| ["--until".to_owned(), lsn.to_string()]));
        words.push(self.cluster.clone());
        for word in &words {
            write!(f, "{} ", for_shell(word).replace('%', "%%"))?;
        }
        f.write_str("%f \"%p\"")
    }
}

/// The word as the shell reads it back.
fn for_shell(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_@:,./=+-".contains(&b);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}
