//! The spool of a daemon on this machine as a source of WAL.

use std::io::{self, Seek};
use std::path::Path;

use recovery::LineageId;
use wal::SegmentName;

use super::local::{LocalSegment, LocalSource};
use super::system_identifier;
use crate::spool::{SpoolError, SpoolView};
use crate::wal_pipeline::Home;

/// The spool of the lineage that a data directory belongs to.
#[derive(Clone, Debug)]
pub struct SpoolSource {
    lineage: LineageId,
    view: SpoolView,
}

impl SpoolSource {
    /// Of the lineages that the cluster's spool folder holds, the newest with the data directory's system identifier; none
    /// where there is no such thing, or this user may not look.
    pub fn find(cluster_dir: &Path, data_directory: &Path) -> Option<Self> {
        let system = system_identifier(data_directory)?;
        let home = match Home::newest_in_spool(cluster_dir, |home| home.system_identifier.get() == system) {
            Ok(home) => home?,
            Err(error) => {
                tracing::debug!(%error, "the spool of this machine is not looked at");
                return None;
            }
        };
        let view = SpoolView::new(&home.dir(cluster_dir), home.segment_size, home.system_identifier);
        Some(Self { lineage: home.lineage, view })
    }
}

impl LocalSource for SpoolSource {
    fn lineage(&self) -> Option<LineageId> {
        Some(self.lineage)
    }

    fn segment(&self, name: SegmentName) -> io::Result<Option<LocalSegment>> {
        let viewed = match self.view.segment(name) {
            // What is damaged here may be whole in the repository.
            Err(SpoolError::Damaged { path, what }) => {
                tracing::warn!(path = %path.display(), what, "a segment of this machine's spool is not used");
                return Ok(None);
            }
            viewed => viewed.map_err(io::Error::other)?,
        };
        let Some(mut viewed) = viewed else { return Ok(None) };
        viewed.file.rewind()?;
        Ok(Some(LocalSegment { file: viewed.file, durable_bytes: viewed.durable_bytes, whole: viewed.whole }))
    }

    fn has_later(&self, name: SegmentName) -> io::Result<bool> {
        self.view.has_later(name).map_err(io::Error::other)
    }
}
