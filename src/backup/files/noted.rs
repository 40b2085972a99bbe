//! What is noted of files, so that the next backup need not read those that did not change.
//!
//! A *trace* is a digest of a file's path, device, inode, size, mtime and ctime. A file whose trace was noted by backup A is
//! taken by backup B as A has it. That must mean that its content is what A read, or an older one that the WAL from B's
//! start leads to the present. Proof, for a relation's file (no other file is ever taken so):
//!
//! 1. **Between A's look and B's look nobody wrote.** Every `write`, `ftruncate` and `fallocate` sets ctime to the kernel's
//!    clock *before* the data change, and nothing can set it back. Both looks go through one running kernel: the traces
//!    count only while the same postmaster runs ([`Instance`]), so no crash, reboot, restore, rsync, pg_rewind or
//!    pg_checksums lies between, and only on file systems of this machine ([`is_local`]), whose attributes are not cached.
//!    A write after A's look therefore changes ctime, unless the clock shows the same tick again: see 2.
//! 2. **A write in progress at A's look, or in the same tick of a coarse clock,** has set a ctime that is not older than
//!    A's start, or the write began before it. Only files whose ctime and mtime lie more than `settle` before the moment
//!    *before* `pg_backup_start` are noted, so of those any such write began before that moment. The checkpoint of
//!    `pg_backup_start` began after it, found the page still dirty and waited for the write (`StartBufferIO` in
//!    `BufferSync`), so it was complete before A looked. What goes around shared buffers (`smgrextend`, bulk writes of an
//!    index build) would have to hang inside one `write` for longer than `settle`. A standby may have skipped its
//!    restartpoint, then all of its writes stand on `settle` alone, so it is longer there. Ticks are milliseconds; file
//!    systems with seconds are covered by `settle` as well. A clock that jumps back could show the same nanosecond to a
//!    later write: one chance in millions, for a file that is written once in that very tick.
//! 3. **Pages that are dirty in shared buffers at B's start** are written by B's checkpoint, which changes ctime before B
//!    looks. What changes after B's redo point is in WAL from B's start on, with full page images, as for every file that a
//!    backup does read.
//!
//! Clocks are compared for equality only, but for `settle`. In spite of all this every seventh backup, or one a week, reads
//! everything ([`MOST_IN_A_ROW`], [`MOST_DAYS`]), and `--kind full` always does.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use chrono::{DateTime, TimeDelta, Utc};
use recovery::BackupId;
use rustix::fs::{Stat, fstatfs};
use serde::{Deserialize, Serialize};
use wal::SystemIdentifier;

use crate::codec::digest::{Hasher, sha256, to_hex};
use crate::repository::manifest::Manifest;

/// After so many backups that left files unread, one reads everything.
const MOST_IN_A_ROW: u32 = 6;
/// So long after a backup that read everything, another does.
const MOST_DAYS: i64 = 7;

/// More files than this are not noted: 32 MiB.
const MOST_TRACES: usize = 2 << 20;

const TRACE: usize = 16;
const FORMAT: u32 = 1;

/// A file as it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::backup) struct Trace([u8; TRACE]);

impl Trace {
    pub(super) fn of(path: &[u8], stat: &Stat) -> Self {
        let mut hasher = Hasher::new();
        hasher.update(path);
        // No path has a zero byte: two files never give the same bytes.
        hasher.update(&[0]);
        let numbers = [
            i128::from(stat.st_dev),
            i128::from(stat.st_ino),
            i128::from(stat.st_size),
            nanos(stat.st_mtime, stat.st_mtime_nsec),
            nanos(stat.st_ctime, stat.st_ctime_nsec),
        ];
        numbers.iter().for_each(|number| hasher.update(&number.to_le_bytes()));
        let mut trace = [0; TRACE];
        trace.copy_from_slice(&hasher.finish()[..TRACE]);
        Self(trace)
    }
}

fn nanos(seconds: impl Into<i128>, nanos: impl TryInto<i64>) -> i128 {
    seconds.into() * 1_000_000_000 + i128::from(nanos.try_into().unwrap_or_default())
}

/// Whether both times of a file lie before `moment`.
pub(super) fn settled(stat: &Stat, moment: DateTime<Utc>) -> bool {
    let moment = nanos(moment.timestamp(), moment.timestamp_subsec_nanos());
    nanos(stat.st_mtime, stat.st_mtime_nsec) < moment && nanos(stat.st_ctime, stat.st_ctime_nsec) < moment
}

/// Whether a file system is one of this machine, with attributes that every process sees at once: ext, XFS, Btrfs, F2FS,
/// ZFS, tmpfs, overlayfs (numbers of statfs(2)).
pub(super) fn is_local(directory: impl AsFd) -> io::Result<bool> {
    const LOCAL: [u32; 7] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0x2fc1_2fc1, 0x0102_1994, 0x794c_7630];
    // Numbers of 32 bits, whatever width the field has.
    Ok(LOCAL.contains(&(fstatfs(directory)?.f_type as u32)))
}

/// A running server. Another one, or the same after a restart, is another instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::backup) struct Instance {
    pub(super) system_identifier: SystemIdentifier,
    /// Process id of its postmaster, and Unix seconds when that started.
    pub(super) pid: u32,
    pub(super) started_at: i64,
    /// Of the kernel under it.
    pub(super) boot: String,
}

/// The kernel that runs.
pub(super) fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// What a backup noted. A cache: without it, or with one that does not name the very backup and server, everything is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::backup) struct Noted {
    pub(super) about: About,
    traces: Vec<Trace>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct About {
    format: u32,
    pub(super) backup: BackupId,
    /// Of its lineage and file table: the very manifest.
    table: String,
    pub(super) instance: Instance,
    /// The last backup that read everything, and how many since did not.
    read_whole_at: DateTime<Utc>,
    since: u32,
}

impl Noted {
    /// What `manifest` noted. `before` is what it left files unread by; `None` when it read everything.
    pub(super) fn new(manifest: &Manifest, instance: Instance, before: Option<&Self>, mut traces: Vec<Trace>) -> Self {
        traces.sort_unstable();
        let (read_whole_at, since) = match before {
            Some(before) => (before.about.read_whole_at, before.about.since + 1),
            None => (manifest.started_at.to_datetime(), 0),
        };
        let table = table(manifest);
        Self {
            about: About { format: FORMAT, backup: manifest.id.clone(), table, instance, read_whole_at, since },
            traces,
        }
    }

    pub(super) fn contains(&self, trace: &Trace) -> bool {
        self.traces.binary_search(trace).is_ok()
    }

    /// Whether it is of this very manifest.
    pub(super) fn is_of(&self, manifest: &Manifest) -> bool {
        self.about.backup == manifest.id && self.about.table == table(manifest)
    }

    /// Why everything is to be read once more, if it is time.
    pub(super) fn is_due(&self, now: DateTime<Utc>) -> Option<String> {
        let About { read_whole_at, since, .. } = &self.about;
        if *since >= MOST_IN_A_ROW {
            return Some(format!("the last {since} backups left unchanged files unread, the next reads all of them"));
        }
        let age = now.signed_duration_since(read_whole_at);
        let week = TimeDelta::days(MOST_DAYS);
        (age >= week || age < TimeDelta::zero()).then(|| {
            format!("files were last all read at {}, once a week they are", read_whole_at.format("%Y-%m-%d %H:%M:%SZ"))
        })
    }

    /// Writes it in place of what was noted before.
    pub(in crate::backup) fn save(&self, file: &Path) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(&self.about).map_err(io::Error::other)?;
        bytes.push(b'\n');
        self.traces.iter().for_each(|trace| bytes.extend_from_slice(&trace.0));
        let digest = sha256(&bytes);
        bytes.extend_from_slice(&digest);
        crate::durable::replace(file, &bytes)
    }

    /// Reads it; `None` when there is none that is whole.
    pub(in crate::backup) fn load(file: &Path) -> Option<Self> {
        let bytes = fs::read(file).ok()?;
        let (content, digest) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
        if sha256(content) != digest {
            return None;
        }
        let end = content.iter().position(|&byte| byte == b'\n')?;
        let about: About = serde_json::from_slice(&content[..end]).ok()?;
        let (traces, rest) = content[end + 1..].as_chunks::<TRACE>();
        let whole = rest.is_empty() && about.format == FORMAT;
        whole.then(|| Self { about, traces: traces.iter().map(|trace| Trace(*trace)).collect() })
    }
}

/// Collects traces, as many as fit.
pub(super) fn note(traces: &mut Vec<Trace>, trace: Trace) {
    if traces.len() < MOST_TRACES {
        traces.push(trace);
    }
}

/// Names lineage and file table of a manifest.
fn table(manifest: &Manifest) -> String {
    let mut hasher = Hasher::new();
    hasher.update(manifest.lineage.to_string().as_bytes());
    manifest.parts.iter().for_each(|part| hasher.update(&part.sha256));
    to_hex(&hasher.finish())
}

#[cfg(test)]
mod tests;
