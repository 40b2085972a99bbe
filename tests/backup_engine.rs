//! Does a base backup hold every byte of the cluster, share what it can, and never exist before it is whole?

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pgvault::backup::{BackupDeps, BackupProgress, BackupRequest, ProgressSender, WalProgress, take};
use pgvault::clock::{Clock, SystemClock};
use pgvault::error::{Error, ErrorCode};
use pgvault::primary::{CheckpointMode, ConnectOptions, Conninfo, Environment, ReplicationConnection};
use pgvault::repository::chunk_index::pack_key;
use pgvault::repository::chunk_reader::ChunkReader;
use pgvault::repository::file_table::{EntryKind, PartReader, TableEntry};
use pgvault::repository::manifest::Manifest;
use pgvault::repository::{
    ClusterIdentity, ClusterName, LineageRepository, Repository, RepositoryId, RepositoryOptions,
};
use pgvault::storage::ObjectKey;
use pgvault::storage::Storage;
use pgvault::storage::local::LocalStorage;
use pgvault::storage::memory::MemoryStorage;
use tokio_util::sync::CancellationToken;
use wal::{PgTime, TimelineHistory, WalRange};

use crate::support::pg::PgNode;

mod commit;
mod damage;
mod interruption;
mod moving;
mod patches;
mod sharing;
mod weight;
mod whole;

/// A repository, and a server that is backed up to it.
struct Bench {
    lineage: LineageRepository,
    options: ConnectOptions,
    index_file: Option<PathBuf>,
    cancel: CancellationToken,
    progress: ProgressSender,
}

/// For backups whose WAL does not matter to the test.
struct NoWal;

#[async_trait::async_trait]
impl WalProgress for NoWal {
    async fn wait_until_stored(&self, range: WalRange) -> Result<(), Error> {
        panic!("nobody waits for {range:?} here")
    }
}

impl Bench {
    async fn new(node: &PgNode, storage: Arc<dyn Storage>) -> Self {
        let options = ConnectOptions::new(Conninfo::parse(&node.conninfo(), &Environment::default()).unwrap(), "test");
        let now = PgTime::from(SystemClock.now());
        let id = RepositoryId::new([7; 16]);
        let repository = Repository::create_or_open(storage, RepositoryOptions::default(), now, id).await.unwrap();
        let cluster = repository.cluster(&ClusterName::new("main").unwrap());
        let mut connection = ReplicationConnection::connect(&options).await.unwrap();
        let system = connection.identify_system().await.unwrap();
        let identity = ClusterIdentity {
            system_identifier: system.system_identifier,
            history: TimelineHistory::root(system.timeline),
            postgres_version: connection.server_version().number(),
            segment_size: connection.wal_segment_size().await.unwrap(),
        };
        let lineage = cluster.lineage_for(&identity, false, now).await.unwrap();
        let progress = ProgressSender::new(BackupProgress::default());
        Self { lineage, options, index_file: None, cancel: CancellationToken::new(), progress }
    }

    async fn in_memory(node: &PgNode) -> Self {
        Self::new(node, Arc::new(MemoryStorage::new())).await
    }

    async fn in_directory(node: &PgNode, dir: &Path) -> Self {
        Self::new(node, Arc::new(LocalStorage::open(dir, SystemClock.now()).await.unwrap())).await
    }

    async fn take(&self, request: &BackupRequest) -> Result<Manifest, Error> {
        let deps = BackupDeps {
            server: &self.options,
            files: None,
            repository: &self.lineage,
            index_file: self.index_file.clone(),
            wal: &NoWal,
            clock: &SystemClock,
            random: 0x1234,
            cancel: &self.cancel,
        };
        take(request, &deps, &self.progress).await
    }

    async fn backup(&self) -> Manifest {
        self.take(&fast()).await.unwrap_or_else(|error| panic!("{error}"))
    }

    fn storage(&self) -> &Arc<dyn Storage> {
        self.lineage.objects().storage()
    }

    async fn object(&self, manifest: &Manifest, name: &str) -> bytes::Bytes {
        let key = format!("{}{name}", self.lineage.keys().backup_prefix(&manifest.id));
        self.storage().get(&ObjectKey::new(key).unwrap()).await.unwrap()
    }

    /// The whole file table.
    async fn table(&self, manifest: &Manifest) -> Vec<TableEntry> {
        let mut entries = Vec::new();
        for part in &manifest.parts {
            let stored = self.object(manifest, &part.name).await;
            let reader = PartReader::new(stored, part.sha256, part.entries, manifest.table_facts()).unwrap();
            entries.extend(reader.map(Result::unwrap));
        }
        entries
    }

    fn reader(&self, manifest: &Manifest) -> ChunkReader {
        let keys = manifest.packs.iter().map(|pack| pack_key(self.lineage.cluster(), &pack.sha256)).collect();
        ChunkReader::new(Arc::clone(self.storage()), keys, manifest.chunk_size)
    }

    /// Writes the files of a backup and PostgreSQL's own manifest into a new directory.
    async fn write_out(&self, manifest: &Manifest, to: &Path) {
        fs::create_dir(to).unwrap();
        let reader = self.reader(manifest);
        for entry in self.table(manifest).await {
            let path = to.join(std::ffi::OsStr::from_bytes(entry.path.as_bytes()));
            // The tablespaces' own directories are links in a real restore.
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let EntryKind::File(file) = &entry.kind else {
                fs::create_dir_all(path).unwrap();
                continue;
            };
            let mut content = vec![0xee; usize::try_from(file.size).unwrap()];
            let write = |position: u64, plain: &[u8]| {
                let position = usize::try_from(position).unwrap();
                content[position..position + plain.len()].copy_from_slice(plain);
                Ok(())
            };
            reader.read_file(&entry, write).await.unwrap();
            assert_eq!(crc32c::crc32c(&content), file.crc32c, "{}", entry.path);
            assert!(fs::write(path, content).is_ok(), "{}", entry.path);
        }
        let kept = manifest.postgres_manifest.as_ref().unwrap();
        let stored = self.object(manifest, &kept.name).await;
        assert_eq!(pgvault::codec::digest::sha256(&stored), kept.sha256);
        fs::write(to.join("backup_manifest"), zstd::decode_all(&*stored).unwrap()).unwrap();
    }

    async fn packs(&self) -> Vec<ObjectKey> {
        self.storage().list("main/packs/", None, None).await.unwrap().into_iter().map(|object| object.key).collect()
    }

    /// What can be selected.
    async fn selectable(&self) -> usize {
        self.lineage.catalog().await.unwrap().backups.len()
    }
}

fn fast() -> BackupRequest {
    BackupRequest { checkpoint: CheckpointMode::Fast, ..BackupRequest::default() }
}

/// Bytes that do not compress, from a seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| next().to_le_bytes()).collect();
    bytes.truncate(len);
    bytes
}

/// Puts a file into a server's data directory, as its user.
fn put_file(node: &PgNode, name: &[u8], content: &[u8]) {
    let path = node.data.join(std::ffi::OsStr::from_bytes(name));
    fs::write(&path, content).unwrap();
    crate::support::pg::give_to_server_user(&path);
}

fn code(result: Result<Manifest, Error>) -> ErrorCode {
    match result {
        Ok(manifest) => panic!("backup {} was taken", manifest.id),
        Err(error) => error.code(),
    }
}
