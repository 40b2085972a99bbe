//! Does a server use this directory?

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, test_kill_process};

/// A server that uses a directory, as a person is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server(String);

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The server whose data directory this is.
///
/// What PostgreSQL itself asks comes first (`CreateLockFile` in miscinit.c, `PGSharedMemoryIsInUse`): the process of
/// `postmaster.pid` lives, or somebody is attached to its shared memory. Both are blind for a server in a container: its
/// pid means another process here, or none. So every process whose working directory this is counts too, by device and
/// inode, which are the same in every container, and whoever answers on the socket that `postmaster.pid` names.
pub(super) fn of_data_directory(directory: &Path) -> Option<Server> {
    let lock_file = fs::read_to_string(directory.join("postmaster.pid")).unwrap_or_default();
    let lines: Vec<&str> = lock_file.lines().map(str::trim).collect();
    let by_pid = lines.first().and_then(|line| alive(line)).map(|pid| Server(format!("pid {pid}")));
    by_pid
        .or_else(|| lines.get(6).and_then(|line| attached(line, &fs::read_to_string("/proc/sysvipc/shm").ok()?)))
        .or_else(|| processes().find(|process| same(&process.cwd, directory)).map(|process| process.server()))
        .or_else(|| answers(lines.get(4)?, lines.get(3)?))
}

/// The server that uses this directory as a tablespace, or for its WAL: one of its links leads here.
pub(super) fn of_linked_directory(directory: &Path) -> Option<Server> {
    processes().find(|process| process.links().any(|target| same(&target, directory))).map(|process| process.server())
}

/// The pid, if that process lives. Whoever we may not signal lives, too.
fn alive(line: &str) -> Option<i32> {
    let number: i32 = line.parse().ok()?;
    // A standalone backend writes its pid negated (miscinit.c).
    let pid = Pid::from_raw(number.checked_abs()?)?;
    match test_kill_process(pid) {
        Ok(()) | Err(rustix::io::Errno::PERM) => Some(number),
        Err(_) => None,
    }
}

/// Whether the shared memory that `postmaster.pid` names (`key id`) is in `table`, `/proc/sysvipc/shm`, with somebody
/// attached.
fn attached(line: &str, table: &str) -> Option<Server> {
    let mut wanted = line.split_whitespace().map(str::parse::<i64>);
    let (key, id) = (wanted.next()?.ok()?, wanted.next()?.ok()?);
    // The kernel shows keys signed, PostgreSQL writes them unsigned; the id names the segment.
    let column = |row: &str, at: usize| row.split_whitespace().nth(at).and_then(|text| text.parse::<i64>().ok());
    let in_use = table.lines().skip(1).any(|row| {
        let same_key = column(row, 0).is_some_and(|found| found & 0xFFFF_FFFF == key & 0xFFFF_FFFF);
        same_key && column(row, 1) == Some(id) && column(row, 6).is_some_and(|attached| attached > 0)
    });
    in_use.then(|| Server(format!("its shared memory, id {id}, is in use")))
}

fn answers(directory: &str, port: &str) -> Option<Server> {
    let port: u16 = port.parse().ok()?;
    if directory.is_empty() {
        return None;
    }
    let socket = Path::new(directory).join(format!(".s.PGSQL.{port}"));
    UnixStream::connect(&socket).ok()?;
    Some(Server(format!("one answers on {}, which its postmaster.pid names", socket.display())))
}

/// A PostgreSQL process of this machine, in whatever container, that we may look at.
struct Process {
    pid: i32,
    /// Its working directory, which is its data directory.
    cwd: PathBuf,
}

impl Process {
    fn server(&self) -> Server {
        match fs::read_link(&self.cwd) {
            Ok(data) => Server(format!("pid {}, data directory {}", self.pid, data.display())),
            Err(_) => Server(format!("pid {}", self.pid)),
        }
    }

    /// Where its links lead, as we reach it.
    fn links(&self) -> impl Iterator<Item = PathBuf> {
        let spaces = fs::read_dir(self.cwd.join("pg_tblspc")).into_iter().flatten().flatten().map(|entry| entry.path());
        let root = PathBuf::from(format!("/proc/{}/root", self.pid));
        let links = spaces.chain([self.cwd.join("pg_wal")]).filter_map(|link| fs::read_link(link).ok());
        links.filter_map(move |target| Some(root.join(target.strip_prefix("/").ok()?)))
    }
}

fn processes() -> impl Iterator<Item = Process> {
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    numbers.filter_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        let is_server = name.contains("postgres") || name.contains("postmaster");
        is_server.then(|| Process { pid, cwd: entry.path().join("cwd") })
    })
}

fn same(one: &Path, other: &Path) -> bool {
    match (fs::metadata(one), fs::metadata(other)) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_memory_counts_while_somebody_is_attached() {
        let table = "       key      shmid perms                  size  cpid  lpid nattch   uid\n\
                     \x20   917508          5   600                    56  1001  1001      7   103\n\
                     \x20 -55667788         6   600                    56  1001  1001      0   103\n\
                     \x20 -55667789         8   600                    56  1001  1001      1   103\n";
        assert!(attached("917508 5", table).is_some());
        assert!(attached("   917508         5", table).is_some());
        assert_eq!(attached("917508 6", table), None, "another segment");
        assert_eq!(attached(&format!("{} 6", 4_294_967_296_i64 - 55_667_788), table), None, "nobody is attached");
        assert!(attached(&format!("{} 8", 4_294_967_296_i64 - 55_667_789), table).is_some());
        for line in ["", "917508", "x 5", "99999999999999999999 5"] {
            assert_eq!(attached(line, table), None);
        }
    }

    #[test]
    fn a_directory_that_nobody_uses_is_free() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(of_data_directory(dir.path()), None);
        assert_eq!(of_linked_directory(dir.path()), None);
        // Nobody has the largest pid, and nothing answers there.
        fs::write(dir.path().join("postmaster.pid"), "2147483647\n/x\n1\n5999\n/nowhere\n*\n1 2\nready\n").unwrap();
        assert_eq!(of_data_directory(dir.path()), None);
        fs::write(dir.path().join("postmaster.pid"), format!("{}\n", std::process::id())).unwrap();
        assert!(of_data_directory(dir.path()).is_some());
    }
}
