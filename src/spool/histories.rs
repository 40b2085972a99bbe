//! Timeline history files, kept beside the WAL so that a lineage can be judged while the repository is away.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use wal::{TimelineHistory, TimelineId};

use super::{Spool, SpoolError, disk};
use crate::durable::Written;
use crate::fault_point;

/// History files are short: a line per promotion.
const MAX_HISTORY: u64 = 1 << 20;

/// What keeping a history file found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeptHistory {
    /// It is durable now.
    New,
    /// The same bytes were there.
    Same,
    /// Other bytes are there; nothing was changed.
    Other(Vec<u8>),
}

impl Spool {
    /// Keeps a timeline's history file, durable, before any WAL of the timeline is taken in. Blocks on disk.
    pub fn keep_history(&self, timeline: TimelineId, bytes: &[u8]) -> Result<KeptHistory, SpoolError> {
        if let Some(kept) = self.history_bytes(timeline)? {
            if kept != bytes {
                return Ok(KeptHistory::Other(kept));
            }
            // Of an attempt whose last step failed, perhaps: its name need not be durable.
            disk::sync_dir(self.dir())?;
            return Ok(KeptHistory::Same);
        }
        let path = self.dir().join(timeline.history_file_name());
        match disk::write_new(&path, bytes)? {
            Written::Created => {}
            // Nobody else writes here, the folder is locked: a file that is there now was there before.
            Written::AlreadyExists => return Ok(KeptHistory::Other(self.history_bytes(timeline)?.unwrap_or_default())),
        }
        fault_point!("receiver.history_kept");
        self.inner.changed.send_replace(());
        Ok(KeptHistory::New)
    }

    /// A kept history file, byte for byte.
    pub fn history_bytes(&self, timeline: TimelineId) -> Result<Option<Vec<u8>>, SpoolError> {
        let path = self.dir().join(timeline.history_file_name());
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(SpoolError::io(&path)(error)),
            Ok(meta) if meta.len() > MAX_HISTORY => {
                return Err(SpoolError::Damaged {
                    path,
                    what: format!("{} bytes are too many for a history", meta.len()),
                });
            }
            Ok(_) => {}
        }
        fs::read(&path).map(Some).map_err(SpoolError::io(&path))
    }

    /// The ancestry of every timeline of which a history file is kept.
    pub fn histories(&self) -> Result<BTreeMap<TimelineId, TimelineHistory>, SpoolError> {
        let mut histories = BTreeMap::new();
        for entry in fs::read_dir(self.dir()).map_err(SpoolError::io(self.dir()))? {
            let entry = entry.map_err(SpoolError::io(self.dir()))?;
            let name = entry.file_name();
            let timeline = name.to_str().and_then(|name| name.strip_suffix(".history")).map(TimelineId::from_hex);
            let Some(Ok(timeline)) = timeline else { continue };
            let Some(bytes) = self.history_bytes(timeline)? else { continue };
            let damaged =
                |error: wal::ParseHistoryError| SpoolError::Damaged { path: entry.path(), what: error.to_string() };
            histories.insert(timeline, TimelineHistory::parse(timeline, &bytes).map_err(damaged)?);
        }
        Ok(histories)
    }

    /// The history of `timeline`: the kept one, or a root.
    pub fn history(&self, timeline: TimelineId) -> Result<TimelineHistory, SpoolError> {
        Ok(self.histories()?.remove(&timeline).unwrap_or_else(|| TimelineHistory::root(timeline)))
    }
}
