//! After the files: settings, durability, and the publication.

use std::collections::BTreeMap;
use std::io;

use recovery::Backup;
use recovery::settings::{
    RecoverySettings, Setting, recovery_targets_in, rewrite_auto_conf, value_in, without_recovery,
};

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
    let before = roots.read("postgresql.auto.conf")?.unwrap_or_default();
    let given: Vec<String> = settings.settings.iter().map(|setting| setting.name.clone()).collect();
    let minimums = standby_minimums(&backup.server_settings, &[conf.as_deref().unwrap_or_default(), &before]);
    // The last line of a file wins: what was decided already stays.
    settings.settings.extend(minimums.into_iter().filter(|minimum| !given.contains(&minimum.name)));
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

/// What the restored configuration says less of than the primary had, or nothing: a hot standby, and with it a pause at the
/// target, needs as many connections and so on (`CheckRequiredParameterValues` in xlogrecovery.c). It may have lain outside
/// of the data directory, or been given on the command line, as Patroni does.
fn standby_minimums(of_server: &BTreeMap<String, i64>, confs: &[&[u8]; 2]) -> Vec<Setting> {
    let restored = |name: &str| confs.iter().rev().find_map(|conf| value_in(conf, name));
    let is_enough = |name: &str, minimum: i64| {
        restored(name).and_then(|value| value.parse::<i64>().ok()).is_some_and(|value| value >= minimum)
    };
    of_server
        .iter()
        .filter(|(name, minimum)| !is_enough(name, **minimum))
        .map(|(name, minimum)| Setting { name: name.clone(), value: minimum.to_string() })
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
    fn what_the_restored_configuration_has_less_of_is_set() {
        let of_server = BTreeMap::from([("max_connections".to_owned(), 200), ("max_wal_senders".to_owned(), 10)]);
        let set = |conf: &str, auto_conf: &str| {
            let minimums = standby_minimums(&of_server, &[conf.as_bytes(), auto_conf.as_bytes()]);
            minimums.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        };
        assert_eq!(set("", ""), "max_connections = '200'; max_wal_senders = '10'");
        assert_eq!(set("max_connections = 200\nmax_wal_senders = 10 # few\n", ""), "");
        assert_eq!(
            set("max_connections = 300\nmax_wal_senders = 10\nmax_connections = 20\n", ""),
            "max_connections = '200'"
        );
        // postgresql.auto.conf is read last.
        assert_eq!(set("max_connections = 1\nmax_wal_senders = 99", "max_connections = '200'\n"), "");
        assert_eq!(set("max_connections = 999\nmax_wal_senders=10", "max_connections = 1"), "max_connections = '200'");
        assert_eq!(
            set("#max_connections = 999\nMAX_WAL_SENDERS ten", ""),
            "max_connections = '200'; max_wal_senders = '10'"
        );
    }

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
