//! Complete segments: put, headers, fetch.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use bytes::Bytes;
use wal::{LongHeader, SegmentName, XactIndex};

use crate::repository::header::WalPlace;
use crate::repository::wal_object::{EncodeJob, Encoded};
use crate::repository::wal_read::{Decoded, read_header, read_wal, read_wal_to_file};
use crate::repository::{LineageRepository, PutNew, RepositoryError, RepositoryResult, WalHeader};
use crate::storage::{Body, ObjectKey, Sha256};

#[cfg(test)]
mod tests;

/// What is known of a segment besides its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentMeta {
    /// Its name.
    pub name: SegmentName,
    /// `server_version_num` of the server it came from.
    pub postgres_version: u32,
}

/// Where the plaintext is.
#[derive(Clone, Debug)]
pub enum PlainSource {
    /// In memory.
    Bytes(Bytes),
    /// In a local file that does not change until the put returns.
    File(PathBuf),
}

/// WAL that is durable in the repository, with exactly the bytes that were given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its key.
    pub key: ObjectKey,
    /// Length of the stored object.
    pub size: u64,
    /// SHA-256 of the stored object.
    pub sha256: Sha256,
    /// Whether the same WAL was stored before; it was then read and found whole.
    pub already_there: bool,
}

/// WAL that was read and found right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Its header.
    pub header: WalHeader,
    /// Length of the stored object.
    pub stored_size: u64,
}

impl LineageRepository {
    /// Stores a complete segment.
    ///
    /// Before: its first page must say that it is this segment of this cluster (`Mismatch` otherwise, nothing is stored).
    /// When the segment is there already with the same WAL, that is success; with other WAL, or damaged, ours is kept
    /// under `conflict/` and the error is `Conflict` or `Damaged`. After `Ok` the spool's copy may go.
    pub async fn put_segment(
        &self,
        meta: &SegmentMeta,
        index: &XactIndex,
        source: PlainSource,
    ) -> RepositoryResult<Stored> {
        let place = WalPlace::segment(self, meta.name)?;
        self.put_wal(place, meta.postgres_version, index, source).await
    }

    /// The header of a segment; none when the store says that it is not there.
    pub async fn segment_header(&self, name: SegmentName) -> RepositoryResult<Option<WalHeader>> {
        match read_header(self.objects(), &WalPlace::segment(self, name)?).await {
            Ok(header) => Ok(Some(header)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes a complete segment to `sink`. `NotFound` is authoritative: the store's answer for exactly this key.
    ///
    /// What `sink` got is the segment only when this returns `Ok`.
    pub async fn fetch_segment(&self, name: SegmentName, sink: &mut (dyn Write + Send)) -> RepositoryResult<Fetched> {
        let Decoded { header, size, .. } = read_wal(self.objects(), &WalPlace::segment(self, name)?, sink).await?;
        Ok(Fetched { header, stored_size: size })
    }

    /// The same into an empty file, and faster. The file is not synced.
    pub async fn fetch_segment_to_file(&self, name: SegmentName, file: &File) -> RepositoryResult<Fetched> {
        let place = WalPlace::segment(self, name)?;
        let (header, stored_size) = read_wal_to_file(self.objects(), &place, file).await?;
        Ok(Fetched { header, stored_size })
    }

    /// Reads a complete segment and throws it away: is it there, whole and right?
    pub async fn verify_segment(&self, name: SegmentName) -> RepositoryResult<Fetched> {
        self.fetch_segment(name, &mut io::sink()).await
    }

    /// The narrative of every put of WAL: encode, prove that it is what it is said to be, put, and where something was
    /// there before, compare.
    pub(super) async fn put_wal(
        &self,
        place: WalPlace,
        postgres_version: u32,
        index: &XactIndex,
        source: PlainSource,
    ) -> RepositoryResult<Stored> {
        let options = self.repository().options();
        // Held until it is stored: several wait, each with its object, for a store that is slow or away.
        let mut memory = self.repository().memory().share(place.length.min(options.max_in_memory)).await;
        let job = EncodeJob {
            place: place.clone(),
            source,
            postgres_version,
            index: index.clone(),
            workbenches: self.repository().workbenches().clone(),
            scratch_dir: options.scratch_dir.clone(),
            max_in_memory: options.max_in_memory,
        };
        let encoded = job.run().await?;
        let forms = if self.objects().encrypts() { 2 } else { 1 };
        memory.shrink_to(if matches!(encoded.body, Body::Bytes(_)) { forms * encoded.body.len() } else { 0 });
        if let Some(page) = &encoded.first_page {
            self.check_first_page(&place, page).await?;
        }
        let prepared = self.objects().prepare(&place.key, encoded.body.clone(), encoded.sha256).await?;
        let stored = match self.objects().put_prepared(&place.key, &prepared).await? {
            PutNew::Created => Stored {
                key: place.key.clone(),
                size: prepared.body().len(),
                sha256: prepared.sha256(),
                already_there: false,
            },
            PutNew::Taken => self.compare_with_stored(&place, &encoded).await?,
        };
        if !stored.already_there {
            self.inner.headers.remember(&place.key, &encoded.header);
        }
        Ok(stored)
    }

    /// Something lies under the key. Ours is safe only when that is the same WAL, whole: so all of it is read.
    async fn compare_with_stored(&self, place: &WalPlace, ours: &Encoded) -> RepositoryResult<Stored> {
        let problem = match read_wal(self.objects(), place, &mut io::sink()).await {
            Ok(Decoded { header, sha256, size }) if header.blake3 == ours.header.blake3 => {
                return Ok(Stored { key: place.key.clone(), size, sha256, already_there: true });
            }
            Ok(_) => None,
            Err(error @ RepositoryError::Damaged { .. }) => Some(error),
            Err(other) => return Err(other),
        };
        let kept_as = self.objects().keep_refused(self.keys(), &place.key, ours.body.clone(), ours.sha256).await?;
        Err(match problem {
            None => RepositoryError::Conflict { key: place.key.clone(), kept_as },
            Some(RepositoryError::Damaged { key, what }) => {
                RepositoryError::Damaged { key, what: format!("{what}; intact bytes are kept as {kept_as}") }
            }
            Some(other) => other,
        })
    }

    /// The first page must say that this is the segment that its name tells.
    ///
    /// The segment in which a timeline begins carries its parent's pages up to the switch point (`XLogFileCopy` in xlog.c),
    /// so its first page may be of an ancestor, when the history says that the switch lies behind that page.
    async fn check_first_page(&self, place: &WalPlace, page: &LongHeader) -> RepositoryResult<()> {
        let mismatch = |problem: String| Err(RepositoryError::mismatch(&place.key, problem));
        if page.system_identifier != self.system_identifier() {
            return mismatch(format!("its first page is of system {}", page.system_identifier));
        }
        if page.segment_size != self.segment_size() {
            return mismatch(format!("its first page is of segments of {} bytes", page.segment_size.bytes()));
        }
        if page.page_address != place.start {
            return mismatch(format!("its first page belongs at {}, not at {}", page.page_address, place.start));
        }
        let timeline = place.timeline();
        if page.timeline == timeline {
            return Ok(());
        }
        let history = self.history(timeline).await?;
        let of_ancestor = page.timeline < timeline && history.includes(page.timeline);
        if of_ancestor && history.timeline_at(place.start) != timeline {
            return Ok(());
        }
        mismatch(format!(
            "its first page is of timeline {}, which is no ancestor of timeline {timeline} there",
            page.timeline
        ))
    }
}
