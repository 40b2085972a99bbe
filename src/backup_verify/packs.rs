//! Reading packs: each once, whole, several at a time.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use futures_util::{FutureExt, StreamExt, stream};
use tokio::sync::watch;

use crate::codec::digest::to_hex;
use crate::repository::chunk_index::pack_key;
use crate::repository::chunk_reader::{PackRead, WantedChunk, plan};
use crate::repository::manifest::Manifest;
use crate::repository::pack::{MAX_TOC_LEN, Toc, read_toc};
use crate::repository::{LineageRepository, RepositoryError, RepositoryResult};

use super::contents::on_a_thread;
use super::prove::{BadChunk, Held, prove};
use super::scratch::Scratch;
use super::{BackupReport, BackupVerifyProgress, damage_of_needed};

/// A pack ends a little above 32 MiB. Nothing longer is read into memory.
const LONGEST_PACK: u64 = 256 << 20;

/// What reading a pack found.
#[derive(Debug, Default)]
struct PackFindings {
    bytes: u64,
    /// What is wrong with the pack as a whole.
    whole: Option<String>,
    bad: Vec<BadChunk>,
}

/// Reads every pack of the manifest and enters what was proven.
pub(super) async fn read(
    lineage: &LineageRepository,
    manifest: &Manifest,
    scratch: Scratch,
    jobs: usize,
    progress: &watch::Sender<BackupVerifyProgress>,
    report: &mut BackupReport,
) -> RepositoryResult<Scratch> {
    let mut wrong: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    let mut scratch = scratch;
    for (bucket, packs) in scratch.packs_by_bucket().into_iter().enumerate() {
        let places;
        (scratch, places) = on_a_thread(lineage, move || {
            let places = scratch.places(bucket)?;
            Ok((scratch, places))
        })
        .await?;
        let mut of_pack: BTreeMap<u32, Vec<WantedChunk>> = BTreeMap::new();
        for place in places {
            of_pack.entry(place.chunk.pack).or_default().push(place);
        }
        let shared = Arc::new(scratch);
        let mut reads = stream::iter(packs)
            .map(|pack| {
                let wanted = of_pack.remove(&pack).unwrap_or_default();
                let shared = Arc::clone(&shared);
                // Boxed, because the compiler cannot see otherwise that the whole is Send.
                async move { one(lineage, manifest, pack, wanted, &shared).await.map(|found| (pack, found)) }.boxed()
            })
            .buffer_unordered(jobs.max(1));
        while let Some(read) = reads.next().await {
            let (pack, found) = read?;
            report.checked_bytes += found.bytes;
            progress.send_modify(|progress| progress.done_bytes += found.bytes);
            wrong.entry(pack).or_default().extend(found.whole);
            for bad in found.bad {
                wrong.entry(bad.pack).or_default().push(bad.what);
            }
        }
        drop(reads);
        scratch = Arc::into_inner(shared).expect("every read has ended and dropped its share");
    }
    for (pack, mut what) in wrong {
        if let Some(pack) = manifest.packs.get(pack as usize)
            && !what.is_empty()
        {
            what.dedup();
            report.problem(pack_key(lineage.cluster(), &pack.sha256), told(&what));
        }
    }
    Ok(scratch)
}

/// The first of what is wrong, and how much more there is.
fn told(what: &[String]) -> String {
    const TOLD: usize = 3;
    let mut text = what.iter().take(TOLD).cloned().collect::<Vec<_>>().join("; ");
    if what.len() > TOLD {
        text.push_str(&format!("; and {} more", what.len() - TOLD));
    }
    text
}

/// One pack: its name, its table of contents, and every chunk that the backup has in it.
async fn one(
    lineage: &LineageRepository,
    manifest: &Manifest,
    index: u32,
    wanted: Vec<WantedChunk>,
    scratch: &Arc<Scratch>,
) -> RepositoryResult<PackFindings> {
    let Some(pack) = manifest.packs.get(index as usize).copied() else { return Ok(PackFindings::default()) };
    let key = pack_key(lineage.cluster(), &pack.sha256);
    let whole = |what: String| PackFindings { whole: Some(what), ..PackFindings::default() };
    if pack.size > LONGEST_PACK {
        return Ok(whole(format!("{} bytes are too many for a pack", pack.size)));
    }
    let mut found = PackFindings::default();
    let read = match lineage.objects().get_whole(&key, pack.size).await {
        Ok(read) => read,
        Err(error) => return damage_of_needed(&key, error).map(whole),
    };
    // What is right in it although its name is wrong is worth knowing all the same.
    found.whole = if read.sha256_of_stored == pack.sha256 {
        table_of_contents(&read.content)
    } else {
        Some(format!("its SHA-256 is {}, not the one of its name", to_hex(&read.sha256_of_stored)))
    };
    let bytes = read.content;
    found.bytes = read.stored_len;
    for read in plan(wanted) {
        let mut held = Held { ranges: vec![(index, 0, bytes.clone())] };
        if let Some(bad) = differences(lineage, manifest, &read, &mut held).await? {
            found.bad.push(bad);
        }
        let (scratch, chunk_size) = (Arc::clone(scratch), manifest.chunk_size);
        let bad = on_a_thread(lineage, move || prove(&read, &held, chunk_size, scratch.proofs())).await?;
        found.bad.extend(bad);
    }
    Ok(found)
}

/// What is wrong with the list at the end of a pack, which the next backup would believe.
fn table_of_contents(bytes: &[u8]) -> Option<String> {
    let end = bytes.get(bytes.len().saturating_sub(MAX_TOC_LEN)..).unwrap_or_default();
    match read_toc(end, bytes.len() as u64) {
        Ok(Toc::Chunks(_)) => None,
        Ok(Toc::NeedsLast(_)) => Some("its table of contents is longer than it can be".to_owned()),
        Err(error) => Some(error.to_string()),
    }
}

/// Fetches the differences of a read's page patches, which lie in other packs.
async fn differences(
    lineage: &LineageRepository,
    manifest: &Manifest,
    read: &PackRead,
    held: &mut Held,
) -> RepositoryResult<Option<BadChunk>> {
    for patch in &read.patches {
        let Some(pack) = manifest.packs.get(patch.pack as usize) else { continue };
        let key = pack_key(lineage.cluster(), &pack.sha256);
        match lineage.objects().get_range(&key, patch.range.start, patch.range.end).await {
            Ok(bytes) => held.ranges.push((patch.pack, patch.range.start, bytes)),
            // Told when that pack itself is read; what lies over it is not proven.
            Err(RepositoryError::NotFound(_)) => {}
            Err(error) => {
                let what = damage_of_needed(&key, error)?;
                return Ok(Some(BadChunk { pack: patch.pack, what }));
            }
        }
    }
    Ok(None)
}

/// What a scratch file that fails is told as.
pub(super) fn scratch_failed(lineage: &LineageRepository, source: io::Error) -> RepositoryError {
    RepositoryError::Io { path: lineage.repository().options().scratch_dir.clone(), source }
}
