//! A damaged complete segment is replaced by what the server sends again; the damaged bytes are kept aside.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::PathBuf;

use wal::SegmentName;

use super::{Held, Spool, SpoolError, disk};

/// A complete segment that is being received again.
#[derive(Debug)]
pub struct Replacement {
    spool: Spool,
    name: SegmentName,
    path: PathBuf,
    file: File,
    left: u64,
}

impl Spool {
    /// Begins to replace a complete segment. Until [`Replacement::finish`] nothing has changed. Blocks on disk.
    pub fn replace(&self, name: SegmentName) -> Result<Replacement, SpoolError> {
        let path = self.dir().join(format!(".tmp-{name}"));
        if self.get(name) != Some(Held::Complete) {
            return Err(SpoolError::Damaged { path: self.path(name), what: "is not held complete".to_owned() });
        }
        let file = disk::create_file(&path).map_err(SpoolError::io(&path))?;
        Ok(Replacement { spool: self.clone(), name, path, file, left: self.segment_size().bytes() })
    }
}

impl Replacement {
    /// Takes in the next bytes, as many as belong to the segment; whether it is whole now. Blocks on disk.
    pub fn write(&mut self, bytes: &[u8]) -> Result<bool, SpoolError> {
        let take = usize::try_from(self.left).unwrap_or(bytes.len()).min(bytes.len());
        self.file.write_all(&bytes[..take]).map_err(SpoolError::io(&self.path))?;
        self.left -= take as u64;
        Ok(self.left == 0)
    }

    /// Puts the new bytes in place of the old ones, which are kept aside. Blocks on disk.
    ///
    /// Both are under a name at every moment: the old file gets its second name first, then the new one takes its first.
    pub fn finish(self) -> Result<(), SpoolError> {
        if self.left > 0 {
            return Err(SpoolError::Damaged {
                path: self.path.clone(),
                what: format!("{} bytes are missing", self.left),
            });
        }
        self.file.sync_all().map_err(SpoolError::io(&self.path))?;
        let place = self.spool.path(self.name);
        let aside = self.spool.dir().join("divergent");
        disk::create_dir_all(&aside)?;
        match fs::hard_link(&place, aside.join(format!("{}.damaged", self.name))) {
            // Of several damaged versions the first is kept.
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(SpoolError::io(&place)(error)),
            Ok(()) | Err(_) => {}
        }
        disk::sync_dir(&aside)?;
        fs::rename(&self.path, &place).map_err(SpoolError::io(&place))?;
        disk::sync_dir(self.spool.dir())
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        // Nothing is there any more once it was put in place; what cannot be removed now goes at the next start.
        drop(fs::remove_file(&self.path));
    }
}
