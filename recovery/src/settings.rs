//! The settings that make PostgreSQL carry out a plan, as text.

mod auto_conf;
mod restore_command;

use std::fmt;

use wal::PgTime;

use crate::plan::{RecoveryPlan, StopAt};

pub use auto_conf::{recovery_targets_in, rewrite_auto_conf, value_in, without_recovery};
pub use restore_command::RestoreCommand;

/// One line of a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The parameter.
    pub name: String,
    /// Its value, unquoted.
    pub value: String,
}

impl fmt::Display for Setting {
    /// `name = 'value'`, quoted as `guc-file.l` reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.value.replace('\\', "\\\\").replace('\'', "''").replace('\n', "\\n").replace('\r', "\\r");
        write!(f, "{} = '{value}'", self.name)
    }
}

/// The file whose presence puts a starting server into recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalFile {
    /// Recover to the target.
    Recovery,
    /// Follow a primary.
    Standby,
}

impl SignalFile {
    /// Its name in the data directory.
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::Recovery => "recovery.signal",
            Self::Standby => "standby.signal",
        }
    }
}

/// What a standby needs to follow its primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandbySettings {
    /// `primary_conninfo`, without a password.
    pub primary_conninfo: String,
    /// `primary_slot_name`
    pub slot: Option<String>,
}

/// The settings of one recovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoverySettings {
    /// What goes into `postgresql.auto.conf`, in this order.
    pub settings: Vec<Setting>,
    /// The file beside it.
    pub signal: SignalFile,
}

/// A setting cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// The connection string has a password, which would be readable in the data directory and its backups.
    #[error("the connection string for the primary contains a password")]
    PasswordInConninfo,
    /// Not the name of a parameter.
    #[error("\"{0}\" is not the name of a PostgreSQL parameter")]
    NotAParameter(String),
    /// The plan decides about this parameter.
    #[error("{0} follows from the target and cannot be set by hand")]
    Decided(String),
}

/// Every parameter that says where recovery stops.
const TARGETS: [&str; 5] =
    ["recovery_target", "recovery_target_lsn", "recovery_target_name", "recovery_target_time", "recovery_target_xid"];

/// The settings that carry out `plan`: exactly one target, the timeline as a number, times with a numeric offset.
///
/// A standby without a target follows its primary over promotions: its timeline is `latest`. `options` come last; one
/// that repeats a setting takes its place.
pub fn recovery_settings(
    plan: &RecoveryPlan,
    restore_command: &RestoreCommand,
    standby: Option<&StandbySettings>,
    options: &[(String, String)],
) -> Result<RecoverySettings, SettingsError> {
    let follows = standby.is_some() && plan.stop == StopAt::EndOfWal;
    let mut settings = vec![Setting { name: "restore_command".to_owned(), value: restore_command.to_string() }];
    let mut set = |name: &str, value: String| settings.push(Setting { name: name.to_owned(), value });
    if let Some(standby) = standby {
        way_to_primary(&mut set, standby)?;
    }
    set("recovery_target_timeline", if follows { "latest".to_owned() } else { plan.timeline.to_string() });
    let inclusive = if plan.stop_inclusive { "on" } else { "off" }.to_owned();
    let target = match &plan.stop {
        StopAt::EndOfWal => None,
        StopAt::Consistency => Some(("recovery_target", "immediate".to_owned(), None)),
        StopAt::Time(time) => Some(("recovery_target_time", time_setting(*time), Some(inclusive))),
        StopAt::Lsn(lsn) => Some(("recovery_target_lsn", lsn.to_string(), Some(inclusive))),
        StopAt::Xid(xid) => Some(("recovery_target_xid", xid.to_string(), Some(inclusive))),
        StopAt::Name(name) => Some(("recovery_target_name", name.clone(), None)),
    };
    if let Some((name, value, inclusive)) = target {
        if let Some(inclusive) = inclusive {
            set("recovery_target_inclusive", inclusive);
        }
        set("recovery_target_action", plan.action.to_string());
        set(name, value);
    }
    for (name, value) in options {
        add_option(&mut settings, name, value)?;
    }
    let signal = if standby.is_some() { SignalFile::Standby } else { SignalFile::Recovery };
    Ok(RecoverySettings { settings, signal })
}

/// The settings of a standby that goes on from where its files are: as those of a new one, see [`recovery_settings`].
pub fn standby_settings(
    restore_command: &RestoreCommand,
    standby: &StandbySettings,
    options: &[(String, String)],
) -> Result<RecoverySettings, SettingsError> {
    let mut settings = vec![Setting { name: "restore_command".to_owned(), value: restore_command.to_string() }];
    let mut set = |name: &str, value: String| settings.push(Setting { name: name.to_owned(), value });
    way_to_primary(&mut set, standby)?;
    set("recovery_target_timeline", "latest".to_owned());
    for (name, value) in options {
        add_option(&mut settings, name, value)?;
    }
    Ok(RecoverySettings { settings, signal: SignalFile::Standby })
}

fn way_to_primary(set: &mut impl FnMut(&str, String), standby: &StandbySettings) -> Result<(), SettingsError> {
    if has_password(&standby.primary_conninfo) {
        return Err(SettingsError::PasswordInConninfo);
    }
    set("primary_conninfo", standby.primary_conninfo.clone());
    if let Some(slot) = &standby.slot {
        set("primary_slot_name", slot.clone());
    }
    Ok(())
}

impl RecoverySettings {
    /// Empties targets that another configuration file sets: PostgreSQL does not start with two. They come first, because
    /// a target that is emptied after another was set counts as a second one, too.
    pub fn clear_targets(&mut self, names: &[String]) {
        for name in names {
            if !self.settings.iter().any(|setting| setting.name == *name) {
                self.settings.insert(0, Setting { name: name.clone(), value: String::new() });
            }
        }
    }
}

/// `2026-11-20 05:22:36.114000+00`: a trailing `Z` is rejected.
fn time_setting(time: PgTime) -> String {
    time.to_datetime().format("%Y-%m-%d %H:%M:%S%.6f+00").to_string()
}

fn add_option(settings: &mut Vec<Setting>, name: &str, value: &str) -> Result<(), SettingsError> {
    let name = name.to_ascii_lowercase();
    let starts_well = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    if !starts_well || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_.".contains(&b)) {
        return Err(SettingsError::NotAParameter(name));
    }
    if TARGETS.contains(&name.as_str()) || name == "recovery_target_inclusive" || name == "recovery_target_timeline" {
        return Err(SettingsError::Decided(name));
    }
    settings.retain(|setting| setting.name != name);
    settings.push(Setting { name, value: value.to_owned() });
    Ok(())
}

/// Whether a connection string, in words or as a URI, has a password in it.
pub fn has_password(conninfo: &str) -> bool {
    let lower = conninfo.to_ascii_lowercase();
    if lower.starts_with("postgresql://") || lower.starts_with("postgres://") {
        let (_, rest) = lower.split_once("://").unwrap_or_default();
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        let in_user = authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'));
        return in_user || lower.split(['?', '&']).skip(1).any(|parameter| parameter.starts_with("password="));
    }
    // `password` as a whole word before `=`; `passfile` and `sslpassword` (which is as bad) are told apart by the word.
    lower.split('=').rev().skip(1).any(|before| {
        let word = before.trim_end().rsplit(|c: char| c.is_ascii_whitespace() || c == '\'').next().unwrap_or_default();
        word == "password" || word == "sslpassword"
    })
}

#[cfg(test)]
mod tests;
