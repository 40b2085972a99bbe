//! The reference: PostgreSQL's own pg_receivewal with a slot of its own, beside whatever is tested.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use wal::{Lsn, SegmentName};

use super::LIMIT;
use super::pg::{PgNode, bin_dir, give_to_server_user};

/// A pg_receivewal that runs.
pub struct ReceiveWal {
    dir: PathBuf,
    slot: String,
    process: Option<Child>,
}

impl ReceiveWal {
    /// Starts to receive the server's WAL into `dir`, from the segment on that the server writes now. Started once more on
    /// another server (after a promotion), it goes on where the files in `dir` end.
    pub fn start(node: &PgNode, dir: &Path) -> Self {
        Self::start_with_slot(node, dir, "reference")
    }

    /// The same with a slot of this name.
    pub fn start_with_slot(node: &PgNode, dir: &Path, slot: &str) -> Self {
        fs::create_dir_all(dir).unwrap();
        give_to_server_user(dir);
        let created = tool(node).args(["--create-slot", "--if-not-exists", "--slot", slot]).output().unwrap();
        assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
        let process = tool(node)
            .args(["--slot", slot, "--synchronous", "--no-loop", "-D"])
            .arg(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { dir: dir.to_owned(), slot: slot.to_owned(), process: Some(process) }
    }

    /// Where the segments are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Waits until everything before `lsn` is on the reference's disk.
    pub fn wait_for(&self, node: &PgNode, lsn: Lsn) {
        let sql = format!("SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = '{}'", self.slot);
        let deadline = Instant::now() + LIMIT;
        while node.sql(&sql).parse::<Lsn>().is_ok_and(|flushed| flushed < lsn) {
            assert!(Instant::now() < deadline, "pg_receivewal does not reach {lsn}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it as an operator does; what it has received stays, the open segment as `.partial`.
    pub fn stop(mut self) {
        self.end("-INT");
    }

    fn end(&mut self, signal: &str) {
        if let Some(mut process) = self.process.take() {
            // It may have ended by itself when the server did: then there is nothing to signal.
            let signalled = Command::new("kill").args([signal, &process.id().to_string()]).output().unwrap();
            drop(signalled);
            process.wait().unwrap();
        }
    }
}

impl Drop for ReceiveWal {
    fn drop(&mut self) {
        self.end("-KILL");
    }
}

fn tool(node: &PgNode) -> Command {
    assert!(bin_dir(node.major).join("pg_receivewal").exists());
    node.tool("pg_receivewal")
}

/// Complete segments in a reference directory, by name.
pub fn complete_segments(dir: &Path) -> Vec<(SegmentName, PathBuf)> {
    let mut found: Vec<(SegmentName, PathBuf)> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter_map(|path| Some((path.file_name()?.to_str()?.parse().ok()?, path)))
        .collect();
    found.sort_unstable();
    found
}

/// A segment that differs from the reference's.
#[derive(Debug, PartialEq, Eq)]
pub enum Difference {
    /// The reference has it, we do not.
    Missing(SegmentName),
    /// Both have it: the first byte that is not the same, or the length of the shorter one.
    At(SegmentName, usize),
}

/// The byte oracle: compares every complete segment of the reference with what `ours` gives under that name. Segments that
/// `ours` does not know are told as missing: leave out those that are not expected yet by giving `expected`.
pub fn differences(
    reference: &Path,
    expected: impl Fn(SegmentName) -> bool,
    mut ours: impl FnMut(SegmentName) -> Option<Vec<u8>>,
) -> Vec<Difference> {
    let mut found = Vec::new();
    for (name, path) in complete_segments(reference).into_iter().filter(|&(name, _)| expected(name)) {
        let Some(ours) = ours(name) else {
            found.push(Difference::Missing(name));
            continue;
        };
        let theirs = fs::read(path).unwrap();
        if ours != theirs {
            let same = ours.iter().zip(&theirs).take_while(|(a, b)| a == b).count();
            found.push(Difference::At(name, same));
        }
    }
    found
}
