//! Stores what is ready, a few objects at once, while the stages before go on.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use recovery::BackupId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinSet, spawn_blocking};

use super::error::CopyError;
use crate::codec::digest::sha256;
use crate::codec::{Compression, compress_frame};
use crate::fault_point;
use crate::repository::chunk_index::{ChunkIndex, pack_key};
use crate::repository::file_table::PlainPart;
use crate::repository::layout::{LineageKeys, LineageObject, ShortHash};
use crate::repository::manifest::{PackRef, PartRef};
use crate::repository::pack::{PACK_SIZE, PackBuilder, PackedChunk};
use crate::repository::{Objects, Prepared, PutNew, RepositoryError};
use crate::storage::{Body, ObjectKey, Sha256};

/// What goes to the store is counted in so many bytes.
const UNIT: usize = 1 << 20;

/// A whole pack takes so many units, and in its place may go so many smaller objects.
const OF_A_PACK: usize = (PACK_SIZE + (PACK_SIZE >> 4)) / UNIT;
const SMALLER: usize = 4;

/// Where a backup's objects go.
#[derive(Clone, Debug)]
pub(super) struct Destination {
    pub(super) objects: Objects,
    pub(super) keys: LineageKeys,
    pub(super) id: BackupId,
    pub(super) compression: Compression,
}

/// An object that is stored.
#[derive(Debug)]
pub(super) enum Uploaded {
    Pack {
        ordinal: usize,
        pack: PackRef,
        chunks: Vec<PackedChunk>,
        is_new: bool,
    },
    Part {
        number: usize,
        part: PartRef,
    },
    /// The index knows a pack's chunks now.
    Indexed,
}

/// What is on its way. Dropped, everything that is not stored yet is given up.
#[derive(Debug)]
pub(super) struct Uploads {
    destination: Destination,
    tasks: JoinSet<Result<Uploaded, CopyError>>,
    room: Arc<Semaphore>,
    settled: VecDeque<Uploaded>,
}

impl Uploads {
    /// At most as much on its way at once as `packs` whole packs, all of it in memory.
    pub(super) fn new(destination: Destination, packs: usize) -> Self {
        let room = Arc::new(Semaphore::new(packs * OF_A_PACK));
        Self { destination, tasks: JoinSet::new(), room, settled: VecDeque::new() }
    }

    /// Starts to store a pack, when there is room.
    pub(super) async fn pack(&mut self, ordinal: usize, builder: PackBuilder) -> Result<(), CopyError> {
        let room = self.room_for(builder.len()).await?;
        let destination = self.destination.clone();
        self.tasks.spawn(async move {
            let stored = destination.store_pack(ordinal, builder).await;
            drop(room);
            stored
        });
        Ok(())
    }

    /// Starts to store a part of the file table, when there is room.
    pub(super) async fn part(&mut self, number: usize, part: PlainPart) -> Result<(), CopyError> {
        let room = self.room_for(part.plain.len()).await?;
        let destination = self.destination.clone();
        self.tasks.spawn(async move {
            let stored = destination.store_part(number, part).await;
            drop(room);
            stored
        });
        Ok(())
    }

    /// Starts to tell the index of a pack.
    pub(super) fn index(&mut self, index: Arc<ChunkIndex>, pack: PackRef, chunks: Vec<PackedChunk>) {
        self.tasks.spawn(async move {
            spawn_blocking(move || index.add_pack(pack, &chunks)).await?;
            Ok(Uploaded::Indexed)
        });
    }

    /// What was stored since the last call.
    pub(super) fn settled(&mut self) -> Result<Vec<Uploaded>, CopyError> {
        while let Some(done) = self.tasks.try_join_next() {
            self.settled.push_back(done??);
        }
        Ok(self.settled.drain(..).collect())
    }

    /// Waits for everything that is on its way.
    pub(super) async fn wait(&mut self) -> Result<Vec<Uploaded>, CopyError> {
        while let Some(done) = self.tasks.join_next().await {
            self.settled.push_back(done??);
        }
        self.settled()
    }

    /// Waits until an object of so many bytes may be on its way as well. What fails gives its room back, and is told by
    /// whoever looks for what has settled.
    async fn room_for(&self, bytes: usize) -> Result<OwnedSemaphorePermit, CopyError> {
        let units = bytes.div_ceil(UNIT).clamp(OF_A_PACK / SMALLER, OF_A_PACK);
        let units = u32::try_from(units).expect("a pack has a few dozen units");
        Arc::clone(&self.room).acquire_many_owned(units).await.map_err(|_| CopyError::Stopped)
    }
}

impl Destination {
    async fn store_pack(self, ordinal: usize, builder: PackBuilder) -> Result<Uploaded, CopyError> {
        let pack = spawn_blocking(|| builder.finish()).await?;
        let cluster = self.keys.cluster();
        let body = Body::Bytes(pack.bytes);
        let prepared = self.objects.prepare(&pack_key(cluster, &pack.sha256), body, pack.sha256).await?;
        let stored = PackRef { sha256: prepared.sha256(), size: prepared.body().len() };
        let is_new = self.put(&pack_key(cluster, &stored.sha256), &prepared).await?;
        fault_point!("backup.pack_put");
        Ok(Uploaded::Pack { ordinal, pack: stored, chunks: pack.chunks, is_new })
    }

    async fn store_part(self, number: usize, part: PlainPart) -> Result<Uploaded, CopyError> {
        let PlainPart { plain, entries } = part;
        let compression = self.compression;
        let stored = Bytes::from(spawn_blocking(move || compress_frame(&plain, compression)).await??);
        let plain_sha256 = sha256(&stored);
        let number_in_key = u32::try_from(number).unwrap_or(u32::MAX);
        let named = |sha256: &Sha256| LineageObject::FilePart(self.id.clone(), number_in_key, ShortHash::of(sha256));
        let key = self.keys.key(&named(&plain_sha256));
        let prepared = self.objects.prepare(&key, Body::Bytes(stored), plain_sha256).await?;
        let (sha256, size) = (prepared.sha256(), prepared.body().len());
        let object = named(&sha256);
        self.put(&self.keys.key(&object), &prepared).await?;
        let part = PartRef { name: self.name(&object), sha256, size, entries };
        Ok(Uploaded::Part { number, part })
    }

    /// Stores an object whose name tells its content; whether it is new. One that is there already was stored by an attempt
    /// whose answer got lost, or by another writer of the same bytes; it must at least have the same length.
    pub(super) async fn put(&self, key: &ObjectKey, prepared: &Prepared) -> Result<bool, CopyError> {
        let len = prepared.body().len();
        match self.objects.put_prepared(key, prepared).await? {
            PutNew::Created => Ok(true),
            PutNew::Taken => match self.objects.storage().head(key).await.map_err(RepositoryError::from)? {
                Some(there) if there == len => Ok(false),
                there => {
                    let what = format!("it has {there:?} bytes where {len} are due");
                    Err(RepositoryError::damaged(key, what).into())
                }
            },
        }
    }

    /// The name of an object below the backup's folder, as the manifest tells it.
    pub(super) fn name(&self, object: &LineageObject) -> String {
        let key = self.keys.key(object);
        let prefix = self.keys.backup_prefix(&self.id);
        key.as_str().strip_prefix(&prefix).unwrap_or(key.as_str()).to_owned()
    }
}
