//! Writing the files of a backup, many at a time, each proven.
//!
//! The file table is read part by part, so memory depends on the size of a part and the number of jobs, not on the size
//! of the cluster. Of each part the directories and files are made first, then ranges of packs are read in parallel and
//! every chunk is written at its place once its hash is right; the job that writes a part's last chunk checks that each
//! of the part's files as a whole has the checksum that the file table says.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crc32c::{crc32c, crc32c_combine};
use recovery::DataPath;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::codec::digest::crc32c_of_zeros;
use crate::error::{Error, ErrorCode, Result};
use crate::repository::chunk_reader::{ChunkError, ChunkReader, Fetched, PackRead, Unpacker, plan, wanted_chunks};
use crate::repository::file_table::{ChunkRef, EntryKind, FileContent, PartReader, TableEntry};
use crate::repository::layout::ObjectName;
use crate::repository::manifest::{Manifest, PartRef};
use crate::repository::{LineageRepository, RepositoryError};
use crate::storage::{ObjectKey, StorageErrorKind};

use super::progress::RestoreProgressSender;
use super::roots::{PG_CONTROL, Roots};

/// One part of the file table on its way to the disk.
#[derive(Debug)]
struct Part {
    entries: Vec<TableEntry>,
    /// CRC-32C of every stored chunk, by entry and chunk.
    checksums: Mutex<Vec<Vec<u32>>>,
    /// Reads that have not ended.
    open_reads: AtomicUsize,
}

/// Writes every directory and file of the backup; returns the bytes of all files.
pub(super) async fn copy_files(
    lineage: &LineageRepository,
    manifest: &Manifest,
    roots: Arc<Roots>,
    jobs: usize,
    progress: &RestoreProgressSender,
) -> Result<u64> {
    let reader = chunk_reader(lineage, manifest);
    let limit = Arc::new(Semaphore::new(jobs.max(1)));
    let mut running: JoinSet<Result<()>> = JoinSet::new();
    let mut bytes = 0;
    let mut has_control = false;
    for part in &manifest.parts {
        let entries = read_part(lineage, manifest, part).await?;
        has_control |= entries.iter().any(|entry| entry.path.as_bytes() == PG_CONTROL);
        let (part, reads, size) = prepare(entries, &roots).await?;
        bytes += size;
        for read in reads {
            let permit = limit.clone().acquire_owned().await.map_err(stopped)?;
            // One failure ends the restore: what runs is ended with the set.
            while let Some(ended) = running.try_join_next() {
                ended.map_err(stopped)??;
            }
            let (reader, part, roots, progress) = (reader.clone(), part.clone(), roots.clone(), progress.clone());
            running.spawn(async move {
                let _permit = permit;
                copy_read(reader, read, part, roots, &progress).await
            });
        }
    }
    while let Some(ended) = running.join_next().await {
        ended.map_err(stopped)??;
    }
    if !has_control {
        return Err(damaged(format!("backup {} has no global/pg_control", manifest.id)));
    }
    Ok(bytes)
}

/// The entries of one part, checked against the manifest.
pub(super) async fn read_part(
    lineage: &LineageRepository,
    manifest: &Manifest,
    part: &PartRef,
) -> Result<Vec<TableEntry>> {
    let text = format!("{}{}", lineage.keys().backup_prefix(&manifest.id), part.name);
    let damaged = |what: String| damaged(format!("{text} is damaged: {what}"));
    let key = ObjectKey::new(text.clone()).map_err(|error| damaged(error.to_string()))?;
    let bytes = lineage.objects().get_checked(&key, &part.sha256).await?;
    let (entries, facts) = (part.entries, manifest.table_facts());
    let read = tokio::task::spawn_blocking(move || {
        PartReader::of_checked(bytes, entries, facts)?.collect::<std::result::Result<Vec<_>, _>>()
    });
    read.await.map_err(stopped)?.map_err(|error| damaged(error.to_string()))
}

/// A reader of the backup's packs.
pub(super) fn chunk_reader(lineage: &LineageRepository, manifest: &Manifest) -> ChunkReader {
    let pack =
        |pack: &crate::repository::manifest::PackRef| ObjectName::Pack(lineage.cluster().clone(), pack.sha256).key();
    let packs = manifest.packs.iter().map(pack).collect();
    ChunkReader::new(lineage.objects().storage().clone(), packs, manifest.chunk_size)
}

/// Makes the directories and files of a part, all zeros still, and plans what to read for them.
async fn prepare(entries: Vec<TableEntry>, roots: &Arc<Roots>) -> Result<(Arc<Part>, Vec<PackRead>, u64)> {
    let roots = roots.clone();
    let prepared = tokio::task::spawn_blocking(move || {
        let mut size = 0;
        for entry in &entries {
            match &entry.kind {
                EntryKind::Directory => roots.make_directory(&entry.path, entry.mode),
                EntryKind::File(file) => {
                    size += file.size;
                    roots.create(&entry.path, file.size, entry.mode)
                }
            }
            .map_err(|error| cannot_write(&entry.path, &error))?;
        }
        let reads = plan(wanted_chunks(&entries));
        let slots = entries.iter().map(|entry| vec![0; content(entry).map_or(0, |file| file.chunks.len())]).collect();
        let open_reads = AtomicUsize::new(reads.len());
        let part = Part { entries, checksums: Mutex::new(slots), open_reads };
        if reads.is_empty() {
            finish(&part, &roots)?;
        }
        Ok((Arc::new(part), reads, size))
    });
    prepared.await.map_err(stopped)?
}

/// Fetches one range, proves its chunks and writes them.
async fn copy_read(
    reader: ChunkReader,
    read: PackRead,
    part: Arc<Part>,
    roots: Arc<Roots>,
    progress: &RestoreProgressSender,
) -> Result<()> {
    let bytes = reader.fetch(&read, &part.entries).await.map_err(chunk_failed)?;
    let written = tokio::task::spawn_blocking(move || {
        let written = write_chunks(&reader, &read, &bytes, &part, &roots)?;
        // The last one to get here sees every checksum: they were entered under the lock before.
        if part.open_reads.fetch_sub(1, Ordering::AcqRel) == 1 {
            finish(&part, &roots)?;
        }
        Ok::<u64, Error>(written)
    });
    let written = written.await.map_err(stopped)??;
    progress.send_modify(|progress| progress.done_bytes += written);
    Ok(())
}

fn write_chunks(reader: &ChunkReader, read: &PackRead, bytes: &Fetched, part: &Part, roots: &Roots) -> Result<u64> {
    let chunk_size = u64::from(reader.chunk_size());
    let mut open: Option<(usize, File)> = None;
    let mut found: Vec<(usize, usize, u32)> = Vec::with_capacity(read.chunks.len());
    let mut written = 0;
    let mut write = |entry: usize, position: u64, plain: &[u8]| -> io::Result<()> {
        let file = match &open {
            Some((index, file)) if *index == entry => file,
            _ => &open.insert((entry, roots.open_file(&part.entries[entry].path)?)).1,
        };
        file.write_all_at(plain, position)?;
        let index = usize::try_from(position / chunk_size).map_err(io::Error::other)?;
        found.push((entry, index, crc32c(plain)));
        written += plain.len() as u64;
        Ok(())
    };
    Unpacker::new().unpack(reader, read, bytes, &part.entries, &mut write).map_err(chunk_failed)?;
    let mut checksums = part.checksums.lock().unwrap_or_else(PoisonError::into_inner);
    for (entry, index, checksum) in found {
        checksums[entry][index] = checksum;
    }
    Ok(written)
}

/// All chunks of the part are written: is each file, as a whole, what the file table says?
fn finish(part: &Part, roots: &Roots) -> Result<()> {
    let checksums = part.checksums.lock().unwrap_or_else(PoisonError::into_inner);
    for (entry, checksums) in part.entries.iter().zip(checksums.iter()) {
        let Some(file) = content(entry) else { continue };
        let found = checksum_of(file, checksums);
        if found != file.crc32c {
            let path = &entry.path;
            let said = file.crc32c;
            return Err(damaged(format!("\"{path}\" has CRC-32C {found:08x}, the file table says {said:08x}")));
        }
        if entry.mode & 0o600 != 0o600 {
            roots.set_mode(&entry.path, entry.mode).map_err(|error| cannot_write(&entry.path, &error))?;
        }
    }
    Ok(())
}

/// CRC-32C of a file from those of its chunks.
fn checksum_of(file: &FileContent, checksums: &[u32]) -> u32 {
    file.chunks.iter().zip(checksums).fold(0, |crc, (chunk, &checksum)| match *chunk {
        ChunkRef::Zeros { plain } => crc32c_combine(crc, crc32c_of_zeros(plain as usize), plain as usize),
        ChunkRef::Stored(_) | ChunkRef::Patched(_) => crc32c_combine(crc, checksum, chunk.plain() as usize),
    })
}

fn content(entry: &TableEntry) -> Option<&FileContent> {
    match &entry.kind {
        EntryKind::File(file) => Some(file),
        EntryKind::Directory => None,
    }
}

fn cannot_write(path: &DataPath, error: &io::Error) -> Error {
    let code = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorCode::NoSpace,
        _ => ErrorCode::Unclassified,
    };
    Error::new(code, format!("cannot write \"{path}\": {error}"))
}

fn chunk_failed(error: ChunkError) -> Error {
    match error {
        ChunkError::Sink { file, source } => cannot_write(&file, &source),
        ChunkError::Storage(error) if error.kind != StorageErrorKind::Corrupt => RepositoryError::Storage(error).into(),
        error => damaged(error.to_string()),
    }
}

/// What is stored of a backup is not what it was.
pub(super) fn damaged(message: String) -> Error {
    Error::new(ErrorCode::Damaged, message)
        .help("restore another backup: --backup ID")
        .help("read everything that is stored: pgvault check --deep")
}

fn stopped(error: impl std::fmt::Display) -> Error {
    Error::new(ErrorCode::Interrupted, format!("the restore was stopped: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::file_table::{ChunkHash, StoredChunk};

    #[test]
    fn checksums_of_chunks_make_that_of_the_file() {
        let bytes: Vec<u8> = [vec![7; 100_000], vec![0; 100_000], (0..=255).collect()].concat();
        let stored =
            |plain| ChunkRef::Stored(StoredChunk { pack: 0, offset: 0, stored: 1, plain, hash: ChunkHash([0; 32]) });
        let chunks = vec![stored(100_000), ChunkRef::Zeros { plain: 100_000 }, stored(256)];
        let file = FileContent { size: bytes.len() as u64, crc32c: 0, chunks };
        let parts = [crc32c(&bytes[..100_000]), 0, crc32c(&bytes[200_000..])];
        assert_eq!(checksum_of(&file, &parts), crc32c(&bytes));
        assert_eq!(checksum_of(&FileContent { size: 0, crc32c: 0, chunks: Vec::new() }, &[]), crc32c(b""));
    }
}
