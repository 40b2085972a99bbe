//! One try at copying a backup, from either source.

use std::sync::Arc;

use super::choose::{Reading, upload};
use super::copy::{CopyParts, copy, copy_stream};
use super::error::CopyError;
use super::files::{ChosenFiles, read_files};
use super::packer::Packed;
use super::pages::PageFacts;
use super::progress::ProgressSender;
use super::read::ReadAll;
use super::reference::Reference;
use super::request::{BackupDeps, BackupRequest, ReadKind};
use super::upload::Destination;
use crate::primary::{BaseBackupOptions, CheckpointMode, ManifestChecksums, ReplicationConnection};
use crate::repository::chunk_index::ChunkIndex;

/// One try.
pub(super) struct Attempt<'a> {
    pub(super) request: &'a BackupRequest,
    pub(super) deps: &'a BackupDeps<'a>,
    pub(super) label: &'a str,
    pub(super) destination: &'a Destination,
    pub(super) index: &'a Arc<ChunkIndex>,
    /// How to verify page checksums.
    pub(super) pages: Option<PageFacts>,
}

impl Attempt<'_> {
    /// Has the server send the files.
    pub(super) async fn copy(
        &self,
        mut connection: ReplicationConnection,
        reading: &Reading,
        progress: &ProgressSender,
    ) -> Result<(ReadAll, Packed), CopyError> {
        if let Some((manifest, _)) = &reading.incremental {
            upload(&mut connection, manifest).await?;
        }
        let options =
            BaseBackupOptions { incremental: reading.incremental.is_some(), ..options(self.request, self.label) };
        let stream = connection.base_backup(&options).await.map_err(CopyError::NotStarted)?;
        let incremental = reading.incremental.as_ref().map(|(_, facts)| *facts);
        copy_stream(stream, incremental, self.parts(reading.reference.clone(), progress)).await
    }

    /// Reads the files from the data directory.
    pub(super) async fn copy_files(
        &self,
        files: &ChosenFiles,
        progress: &ProgressSender,
    ) -> Result<(ReadAll, Packed), CopyError> {
        let fast = self.request.checkpoint == CheckpointMode::Fast;
        // The moment before `pg_backup_start`: what lies before it and the checkpoint has settled.
        let plan = files.plan(self.label.to_owned(), fast, self.deps.clock.now());
        let (source, told) = (Arc::clone(&files.source), progress.clone());
        let parts = self.parts(files.reading().reference, progress);
        copy(move |cutter, began| read_files(source, plan, cutter, began, told), None, parts).await
    }

    fn parts(&self, reference: Option<Arc<Reference>>, progress: &ProgressSender) -> CopyParts {
        CopyParts {
            destination: self.destination.clone(),
            index: Arc::clone(self.index),
            limits: self.request.limits,
            pages: self.pages,
            reference,
            max_rate: self.request.max_rate,
            patches: self.request.kind != ReadKind::Full,
            scratch_dir: self.deps.repository.repository().options().scratch_dir.clone(),
            progress: progress.clone(),
        }
    }
}

fn options(request: &BackupRequest, label: &str) -> BaseBackupOptions {
    BaseBackupOptions {
        checkpoint: request.checkpoint,
        max_rate: request.max_rate,
        manifest_checksums: ManifestChecksums::Crc32c,
        // We verify ourselves: the server's own verification costs the primary CPU and ends the backup with an error, so
        // that a cluster with one bad page could not be backed up at all.
        verify_checksums: false,
        ..BaseBackupOptions::new(label)
    }
}
