//! After the files: settings, durability, and the publication.

use std::io;

use recovery::Backup;
use recovery::settings::{RecoverySettings, Setting, recovery_targets_in, rewrite_auto_conf, without_recovery};

use super::roots::{Roots, data_path};

/// Directories that every server needs; backups may lack them because their content is left out.
pub(super) const REQUIRED_DIRECTORIES: [&str; 16] = [
    "global",
    "pg_wal",
    "pg_wal/archive_status",
    "pg_commit_ts",
    "pg_dynshmem",
    "pg_notify",
    "pg_serial",
    "pg_snapshots",
    "pg_subtrans",
    "pg_twophase",
    "pg_multixact/members",
    "pg_multixact/offsets",
    "pg_replslot",
    "pg_tblspc",
    "pg_stat",
    "pg_stat_tmp",
];

/// Files that must not act on the restored server: what they tell is about another one.
const STALE_FILES: [&str; 6] =
    ["postmaster.pid", "postmaster.opts", "recovery.signal", "standby.signal", "recovery.done", "promote"];

/// Makes the directories that a server needs and a backup leaves out, removes what must not act on it, and gives the data
/// directory its permissions.
pub(super) fn complete(roots: &Roots) -> io::Result<()> {
    let mode = roots.directory_mode()?;
    for path in REQUIRED_DIRECTORIES {
        if !roots.has_directory(path)? {
            roots.make_directory(&data_path(path)?, mode)?;
        }
    }
    for name in STALE_FILES {
        roots.remove(name)?;
    }
    roots.set_directory_mode(mode)
}

/// Writes `postgresql.auto.conf` and the signal file. Returns what a person should know about the configuration that
/// came with the backup.
pub(super) fn write_settings(roots: &Roots, settings: &RecoverySettings, backup: &Backup) -> io::Result<Vec<String>> {
    let mut settings = settings.clone();
    let conf = roots.read("postgresql.conf")?;
    settings.clear_targets(&recovery_targets_in(conf.as_deref().unwrap_or_default()));
    if conf.is_none() {
        let given: Vec<String> = settings.settings.iter().map(|setting| setting.name.clone()).collect();
        // The last line of a file wins: what was decided already stays.
        settings.settings.extend(standby_minimums(backup).into_iter().filter(|minimum| !given.contains(&minimum.name)));
    }
    let before = roots.read("postgresql.auto.conf")?.unwrap_or_default();
    let text = rewrite_auto_conf(&before, &settings);
    roots.write("postgresql.auto.conf", &mut text.as_slice())?;
    roots.write(settings.signal.file_name(), &mut io::empty())?;
    Ok(warnings(conf.as_deref(), &before, backup))
}

/// Takes the settings of an earlier recovery or standby out of `postgresql.auto.conf`: whoever starts the server writes its own
/// into another file, and these would win; and they may hold a password.
pub(super) fn clear_settings(roots: &Roots) -> io::Result<()> {
    let Some(before) = roots.read("postgresql.auto.conf")? else { return Ok(()) };
    let text = without_recovery(&before);
    if text == before { Ok(()) } else { roots.write("postgresql.auto.conf", &mut text.as_slice()) }
}

/// A configuration that lies outside of the data directory did not come along; a hot standby (and with it a pause at the
/// target) still needs as many connections and so on as the primary had.
fn standby_minimums(backup: &Backup) -> Vec<Setting> {
    backup
        .server_settings
        .iter()
        .map(|(name, value)| Setting { name: name.clone(), value: value.to_string() })
        .collect()
}

fn warnings(conf: Option<&[u8]>, auto_conf: &[u8], backup: &Backup) -> Vec<String> {
    let mut warnings = Vec::new();
    if conf.is_none() {
        warnings.push(
            "there is no postgresql.conf in this backup: the server's configuration lay outside of its data directory"
                .to_owned(),
        );
    }
    let archives = [conf.unwrap_or_default(), auto_conf].iter().any(|text| sets(text, "archive_command"));
    if archives {
        warnings.push(
            "the restored configuration has an archive_command: once promoted, this server archives to the same place as \
             the original; set archive_mode = off, or another place, before you start it"
                .to_owned(),
        );
    }
    if backup.damaged {
        warnings.push(format!("damage was found in backup {}: see pgvault backup show {}", backup.id, backup.id));
    }
    warnings
}

/// Whether a configuration file gives the parameter a value.
fn sets(text: &[u8], name: &str) -> bool {
    String::from_utf8_lossy(text).lines().any(|line| {
        let Some(rest) = line.trim_start().strip_prefix(name) else { return false };
        let value = rest.trim_start().trim_start_matches('=').trim_start();
        rest.starts_with([' ', '\t', '=']) && !value.is_empty() && !value.starts_with("''") && !value.starts_with('#')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_archive_command_with_a_value_is_worth_a_warning() {
        let table = [
            ("archive_command = 'cp %p /x'", true),
            ("  archive_command='x'", true),
            ("archive_command 'x'", true),
            ("#archive_command = 'x'", false),
            ("archive_command = ''", false),
            ("archive_command_x = 'y'", false),
            ("archive_mode = on", false),
        ];
        for (line, expected) in table {
            assert_eq!(sets(line.as_bytes(), "archive_command"), expected, "{line}");
        }
    }
}
