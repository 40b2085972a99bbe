//! `postgresql.auto.conf` of a restored data directory.

use super::{RecoverySettings, TARGETS};

const BEGIN: &str = "# pgvault: settings of this recovery, written by \"pgvault recover\"";
const END: &str = "# pgvault: end of the settings of this recovery";

/// Parameters of a recovery that came with the backup and must not act on this one.
const STALE: [&str; 14] = [
    "archive_cleanup_command",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "recovery_end_command",
    "recovery_min_apply_delay",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_timeline",
    "restore_command",
    "recovery_target",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
];

/// The file with the settings of a recovery in a marked block at its end, in place of those of an earlier one. Other
/// settings stay; the text is bytes, in whatever encoding the server's was.
pub fn rewrite_auto_conf(before: &[u8], settings: &RecoverySettings) -> Vec<u8> {
    let mut text = without_recovery(before);
    text.extend_from_slice(format!("{BEGIN}\n").as_bytes());
    for setting in &settings.settings {
        text.extend_from_slice(format!("{setting}\n").as_bytes());
    }
    text.extend_from_slice(format!("{END}\n").as_bytes());
    text
}

/// The file without the settings of any earlier recovery or standby: what came with a backup is about another server.
pub fn without_recovery(before: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(before.len() + 1024);
    let mut in_block = false;
    for line in lines(before) {
        match line.trim_ascii() {
            trimmed if trimmed == BEGIN.as_bytes() => in_block = true,
            trimmed if in_block => in_block = trimmed != END.as_bytes(),
            _ if parameter(line).is_some_and(|(name, _)| is_stale(&name)) => {}
            _ => {
                text.extend_from_slice(line);
                text.push(b'\n');
            }
        }
    }
    text
}

/// The recovery targets that a configuration file sets to something.
pub fn recovery_targets_in(conf: &[u8]) -> Vec<String> {
    let mut names: Vec<String> = lines(conf)
        .filter_map(parameter)
        .filter(|(name, value)| TARGETS.contains(&name.as_str()) && !value.is_empty())
        .map(|(name, _)| name)
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// What a configuration file sets a parameter to: its last line about it, unquoted. What it includes is not looked at.
pub fn value_in(conf: &[u8], name: &str) -> Option<String> {
    lines(conf).filter_map(parameter).filter(|(found, _)| found == name).map(|(_, value)| value).last()
}

fn is_stale(name: &str) -> bool {
    STALE.contains(&name) || TARGETS.contains(&name)
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.strip_suffix(b"\n").unwrap_or(text).split(|&b| b == b'\n').filter(move |_| !text.is_empty())
}

/// Name and value of a line `name = value` or `name value`; `None` for comments and empty lines.
fn parameter(line: &[u8]) -> Option<(String, String)> {
    let line = String::from_utf8_lossy(line);
    let line = line.trim_start();
    let len = line.bytes().take_while(|b| b.is_ascii_alphanumeric() || b"_.".contains(b)).count();
    let (name, rest) = line.split_at_checked(len).filter(|(name, _)| !name.is_empty())?;
    let value = rest.trim_start().trim_start_matches('=').trim_start();
    let value = value.split('#').next().unwrap_or_default().trim().trim_matches('\'');
    Some((name.to_ascii_lowercase(), value.to_owned()))
}
