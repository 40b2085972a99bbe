//! Directories: a name in one is durable only after the directory was fsynced.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use rustix::fs::fstatfs;
use rustix::io::Errno;

/// File systems on which fsync of a directory is known to answer EINVAL, by the magic number of statfs(2): SMB and CIFS
/// (pgBackRest #1828, barman #55), 9p and FUSE, which pass on what the other side says.
const WITHOUT_DIR_SYNC: [u32; 5] = [0xFF53_4D42, 0xFE53_4D42, 0x0000_517B, 0x0102_1997, 0x6573_5546];

/// fsync of a directory: the names in it as they are now survive a crash.
///
/// On file systems that cannot do it (SMB, 9p, some FUSE) it succeeds without a guarantee; [`dir_sync_is_supported`]
/// tells. Everywhere else EINVAL is an error like any other.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    try_sync_dir(dir).map(|_| ())
}

/// Whether names in this directory can be made durable at all. For a warning when a place is opened.
pub fn dir_sync_is_supported(dir: &Path) -> io::Result<bool> {
    try_sync_dir(dir)
}

/// fsync of the directory that holds `path`.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    sync_dir(parent(path))
}

/// Creates a directory and what is missing above it, each with these permission bits whatever the umask.
///
/// When it returns, every directory that this call created survives a crash. A crash on the way leaves some of them.
/// One that another process created a moment ago is taken as it is: its maker makes it durable.
pub fn create_dir_all(dir: &Path, mode: u32) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let above = parent(dir);
    create_dir_all(above, mode)?;
    match fs::DirBuilder::new().mode(mode).create(dir) {
        Ok(()) => fs::set_permissions(dir, Permissions::from_mode(mode))?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
        Err(error) => return Err(error),
    }
    sync_dir(above)
}

/// The directory that holds `path`; a name alone lies in the current one.
pub(super) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => path,
    }
}

fn try_sync_dir(dir: &Path) -> io::Result<bool> {
    let handle = File::open(dir)?;
    match handle.sync_all() {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
            // The magic number's type differs between architectures; its low 32 bits are the number.
            let magic = fstatfs(&handle)?.f_type as u32;
            if WITHOUT_DIR_SYNC.contains(&magic) { Ok(false) } else { Err(error) }
        }
        Err(error) => Err(error),
    }
}
