//! An old data directory whose files can stay: what must be written and removed before it is started.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use recovery::settings::{RecoverySettings, rewrite_auto_conf, standby_settings};
use wal::{Lsn, SegmentName, TimelineId};

use super::plan::{Ground, StandbyRequest};
use crate::durable::{remove_if_there, rename, sync_dir};
use crate::error::{Error, ErrorCode, Result};
use crate::restore;

const AUTO_CONF: &str = "postgresql.auto.conf";

/// What is done instead of a restore.
#[derive(Clone, Debug)]
pub struct Replay {
    /// The data directory.
    pub directory: PathBuf,
    /// Where replay starts.
    pub from: Lsn,
    /// Where the WAL ends that needs no primary.
    pub to: Lsn,
    /// Files of `pg_wal` that its branch has left behind: PostgreSQL could replay them, so they go.
    pub removed: Vec<String>,
    /// What is written into `postgresql.auto.conf`; `None` for `--no-config`.
    pub settings: Option<RecoverySettings>,
}

impl Replay {
    pub(super) fn new(
        directory: &Path,
        (from, to): (Lsn, Lsn),
        stray: Vec<SegmentName>,
        request: &StandbyRequest,
        ground: &Ground,
    ) -> Result<Self> {
        let settings = match (&request.restore.config, &ground.standby) {
            (Some(config), Some(standby)) => {
                Some(standby_settings(&config.restore_command, standby, &config.options).map_err(|error| {
                    Error::new(ErrorCode::Usage, error.to_string()).help("--recovery-option NAME=VALUE")
                })?)
            }
            _ => None,
        };
        let mut removed: Vec<String> = stray.iter().map(ToString::to_string).collect();
        removed.extend(other_histories(directory, ground.timeline).map_err(|error| cannot(directory, "read", &error))?);
        Ok(Self { directory: directory.to_owned(), from, to, removed, settings })
    }

    /// Does it. Each step leaves a directory that the same command finishes, and that starts as nothing but what it was or a
    /// standby on the right branch: WAL that was left goes before the signal file that would make a server look for it.
    pub(super) fn carry_out(&self) -> Result<PathBuf> {
        restore::refuse_running_server(&self.directory)?;
        let folder = self.directory.join("pg_wal");
        let removed = self.removed.iter().try_for_each(|name| remove_if_there(&folder.join(name)));
        removed.and_then(|()| sync_dir(&folder)).map_err(|error| cannot(&self.directory, "remove WAL from", &error))?;
        if let Some(settings) = &self.settings {
            self.write(settings).map_err(|error| cannot(&self.directory, "write settings to", &error))?;
        }
        Ok(self.directory.clone())
    }

    fn write(&self, settings: &RecoverySettings) -> io::Result<()> {
        let path = self.directory.join(AUTO_CONF);
        let before = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            read => read?,
        };
        self.put(AUTO_CONF, &rewrite_auto_conf(&before, settings))?;
        self.put(settings.signal.file_name(), b"")?;
        remove_if_there(&self.directory.join("recovery.signal"))?;
        sync_dir(&self.directory)
    }

    /// Writes a file durably in place of what is there, and gives it to whom the directory belongs.
    fn put(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let new = self.directory.join(format!("{name}.pgvault-new"));
        remove_if_there(&new)?;
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
        let owner = fs::metadata(&self.directory)?;
        if rustix::process::geteuid().is_root() {
            fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
        }
        file.write_all(bytes)?;
        drop(file);
        rename(&new, &self.directory.join(name))
    }
}

/// History files of timelines above the standby's own: `latest` would lead there.
fn other_histories(directory: &Path, timeline: TimelineId) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory.join("pg_wal"))? {
        let name = entry?.file_name();
        let number =
            Path::new(&name).file_stem().and_then(OsStr::to_str).and_then(|hex| TimelineId::from_hex(hex).ok());
        let is_history = Path::new(&name).extension() == Some(OsStr::new("history"));
        if is_history && number.is_some_and(|number| number > timeline) {
            found.extend(name.to_str().map(str::to_owned));
        }
    }
    Ok(found)
}

fn cannot(directory: &Path, what: &str, error: &io::Error) -> Error {
    let code = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorCode::NoSpace,
        io::ErrorKind::PermissionDenied => ErrorCode::TargetDirectory,
        _ => ErrorCode::Unclassified,
    };
    Error::new(code, format!("cannot {what} {}: {error}", directory.display()))
        .help("run it as the user that owns the directory, or as root")
}
