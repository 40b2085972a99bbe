//! Do commits wait for us, and would they wait for ever without us? Pure.

use super::CheckStatus::{Failed, Ok as Fine, Skipped, Warn};
use super::Finding;
use crate::daemon::view::ClusterView;
use crate::primary::sql::ReplicationRow;

/// `synchronous_standby_names`, read (syncrep_gram.y).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Names {
    /// How many of them a commit waits for.
    count: usize,
    /// Application names; `*` is any.
    names: Vec<String>,
}

impl Names {
    /// `None` when the text is empty, or is none that the server would take.
    fn read(text: &str) -> Option<Self> {
        let text = text.trim();
        let (head, list) = match text.split_once('(') {
            Some((head, rest)) => (head.trim(), rest.trim_end().strip_suffix(')')?),
            None => ("1", text),
        };
        let number = head.rsplit(|c: char| c.is_whitespace()).next()?;
        let names: Vec<String> = split(list).into_iter().filter(|name| !name.is_empty()).collect();
        (!names.is_empty()).then_some(Self { count: number.parse().ok()?, names })
    }

    /// Whether a receiver of this name counts. Names are compared without regard to case, as the server does.
    fn lists(&self, name: &str) -> bool {
        self.names.iter().any(|listed| listed == "*" || listed.eq_ignore_ascii_case(name))
    }

    /// Whether it counts by its own name, not only as any.
    fn names(&self, name: &str) -> bool {
        self.names.iter().any(|listed| listed.eq_ignore_ascii_case(name))
    }
}

/// The names of a list; in double quotes they may hold commas, and `""` is one quote.
fn split(list: &str) -> Vec<String> {
    let mut names = vec![String::new()];
    let mut quoted = false;
    let mut chars = list.chars().peekable();
    while let Some(c) = chars.next() {
        let last = names.last_mut().expect("begins with one");
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                last.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => names.push(String::new()),
            c if c.is_whitespace() && !quoted => {}
            c => last.push(c),
        }
    }
    names
}

/// Whether commits would wait for ever if we stopped: fewer of the others stream than a commit waits for.
fn would_block(names: &Names, ours: &str, receivers: &[ReplicationRow]) -> bool {
    let counts = |row: &&ReplicationRow| {
        let name = row.application_name.as_deref().unwrap_or_default();
        row.state.as_deref() == Some("streaming") && !name.eq_ignore_ascii_case(ours) && names.lists(name)
    };
    receivers.iter().filter(counts).count() < names.count
}

pub(super) fn synchronous(view: &ClusterView) -> Finding {
    let name = "synchronous";
    let ours = view.application_name.as_str();
    let member = view.primary();
    let setting = member.and_then(|member| member.settings.as_ref()?.synchronous_standby_names.clone());
    let Some(setting) = setting else {
        let why = if view.synchronous { "not visible to this role" } else { "not asked for" };
        return Finding::new(name, Skipped, why);
    };
    let read = Names::read(&setting);
    let receivers = member.and_then(|member| member.replication.as_deref());
    let state = receivers
        .into_iter()
        .flatten()
        .find(|row| row.application_name.as_deref() == Some(ours))
        .and_then(|row| row.sync_state.as_deref())
        .map_or_else(String::new, |state| format!(", and it is {state}"));
    let without_us = |names: &Names| match receivers {
        None => String::new(),
        Some(rows) if would_block(names, ours, rows) => "; if pgvault stops, commits wait until it is back".to_owned(),
        Some(_) => "; if pgvault stops, commits go on".to_owned(),
    };
    match (view.synchronous, read.filter(|names| names.lists(ours))) {
        (false, Some(names)) => {
            let by = if names.names(ours) { "lists this receiver" } else { "is *, which means this receiver too" };
            let message =
                format!("synchronous_standby_names {by}{state}, and `synchronous` is off{}", without_us(&names));
            Finding::new(name, Warn, message).fix(
                "set `synchronous = true` in the cluster's section, or name the standbys in synchronous_standby_names",
            )
        }
        (false, None) => Finding::new(name, Skipped, "not asked for"),
        (true, Some(names)) => {
            Finding::new(name, Fine, format!("synchronous_standby_names lists {ours}{state}{}", without_us(&names)))
        }
        (true, None) => {
            Finding::new(name, Failed, format!("commits do not wait: {ours} is not in synchronous_standby_names"))
                .fix(format!("ALTER SYSTEM SET synchronous_standby_names = '{ours}'; SELECT pg_reload_conf();"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Option<(usize, Vec<String>)> {
        Names::read(text).map(|names| (names.count, names.names))
    }

    #[test]
    fn the_setting_is_read_as_the_server_does() {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let cases = [
            ("pgvault", Some((1, list(&["pgvault"])))),
            ("a, b", Some((1, list(&["a", "b"])))),
            ("FIRST 2 (a, b, c)", Some((2, list(&["a", "b", "c"])))),
            ("ANY 1 (\"a-1\", \"b,\"\"2\")", Some((1, list(&["a-1", "b,\"2"])))),
            ("2(a,b)", Some((2, list(&["a", "b"])))),
            ("*", Some((1, list(&["*"])))),
            ("", None),
            ("  ", None),
            ("ANY (a)", None),
            ("ANY 1 (a", None),
        ];
        for (text, expected) in cases {
            assert_eq!(names(text), expected, "{text}");
        }
    }

    #[test]
    fn it_is_known_whether_commits_would_wait_without_us() {
        let row = |name: &str, state: &str| ReplicationRow {
            application_name: Some(name.to_owned()),
            client_addr: None,
            state: Some(state.to_owned()),
            sync_state: None,
            sent_lsn: None,
            flush_lsn: None,
        };
        let receivers = [row("pgvault", "streaming"), row("Standby1", "streaming"), row("standby2", "backup")];
        let cases = [
            ("pgvault", true),
            ("ANY 1 (pgvault, standby1)", false),
            ("FIRST 1 (pgvault, standby2)", true),
            ("ANY 2 (pgvault, standby1, standby2)", true),
            ("*", false),
        ];
        for (text, expected) in cases {
            assert_eq!(would_block(&Names::read(text).unwrap(), "pgvault", &receivers), expected, "{text}");
        }
    }
}
