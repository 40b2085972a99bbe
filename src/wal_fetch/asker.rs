//! The server that waits for a file.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

/// `postmaster.pid` is a few short lines; of more only this much is looked at.
const LOOK_AT: u64 = 4096;

/// The server that runs in a data directory, as its `postmaster.pid` names it (miscinit.c, `CreateLockFile`).
///
/// Recovery asks for one file at a time, always under the same `%p`. A command that outlives the server that started it
/// (the server was killed, the command waited for a store out of reach) would put its file there while the next server
/// waits for another one, and PostgreSQL takes a segment with wrong pages for the end of the log. So before a file gets
/// its name, the server must still be the one that asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asker {
    postmaster: Option<Postmaster>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Postmaster {
    lock_file: PathBuf,
    pid: Pid,
    started: String,
}

impl Asker {
    /// The server that runs in this directory now; nobody in particular when none does.
    pub fn in_directory(data_directory: &Path) -> Self {
        Self { postmaster: Postmaster::of(&data_directory.join("postmaster.pid")) }
    }

    /// Whether a server asked.
    pub fn is_server(&self) -> bool {
        self.postmaster.is_some()
    }

    /// Whether it is still there. Somebody who is no server is always there.
    pub fn still_waits(&self) -> bool {
        let Some(asked) = &self.postmaster else { return true };
        // A server that was killed leaves its file behind; one that cannot be signalled is there.
        let lives = !matches!(test_kill_process(asked.pid), Err(Errno::SRCH));
        lives && Postmaster::of(&asked.lock_file).as_ref() == Some(asked)
    }
}

impl Postmaster {
    /// The first line is its pid, the third its start; later ones change while it runs.
    fn of(lock_file: &Path) -> Option<Self> {
        let mut text = String::new();
        File::open(lock_file).ok()?.take(LOOK_AT).read_to_string(&mut text).ok()?;
        let mut lines = text.lines();
        let pid = Pid::from_raw(lines.next()?.trim().parse().ok().filter(|pid| *pid > 0)?)?;
        let started = lines.nth(1)?.trim().to_owned();
        Some(Self { lock_file: lock_file.to_owned(), pid, started })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::Asker;

    #[test]
    fn the_next_server_in_the_same_directory_is_another_one() {
        let dir = tempfile::tempdir().unwrap();
        let nobody = Asker::in_directory(dir.path());
        assert!(!nobody.is_server() && nobody.still_waits());
        let pid = std::process::id();
        let write = |pid: u32, start: u32, status: &str| {
            let text = format!("{pid}\n/data\n{start}\n5432\n/tmp\n\n 1 2\n{status}\n");
            fs::write(dir.path().join("postmaster.pid"), text).unwrap();
        };
        write(pid, 1000, "starting");
        let asker = Asker::in_directory(dir.path());
        assert!(asker.is_server() && asker.still_waits());
        write(pid, 1000, "standby");
        assert!(asker.still_waits(), "its status changes");
        write(pid, 1001, "starting");
        assert!(!asker.still_waits(), "started later");
        fs::remove_file(dir.path().join("postmaster.pid")).unwrap();
        assert!(!asker.still_waits(), "stopped");
        let mut gone = std::process::Command::new("true").spawn().unwrap();
        write(gone.id(), 1000, "starting");
        let killed = Asker::in_directory(dir.path());
        gone.wait().unwrap();
        assert!(!killed.still_waits(), "killed: its file is still there");
        fs::write(dir.path().join("postmaster.pid"), "no number\n").unwrap();
        assert!(!Asker::in_directory(dir.path()).is_server());
    }
}
