//! Marks: what happened to a backup after it was committed. Events, never edits. FORMAT.md 5.5.

use recovery::BackupId;
use wal::PgTime;

use crate::codec::digest::sha256;
use crate::repository::layout::{LineageObject, MarkKind, ObjectName, Parsed};
use crate::repository::{LineageRepository, PutNew, RepositoryError, RepositoryResult, seal_document, unseal_document};
use crate::storage::Body;

const KIND: &str = "mark";

/// One event in a backup's life, by the name under which it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Its backup.
    pub backup: BackupId,
    /// Counts a backup's marks, from 1.
    pub number: u32,
    /// What happened.
    pub what: MarkKind,
}

/// A mark's content.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MarkDocument {
    /// What happened.
    pub what: MarkKind,
    /// When.
    pub at: PgTime,
    /// Who or what noted it: `cli`, `drill`, a user's name.
    pub by: String,
    /// Why, in words; may be empty.
    pub note: String,
}

/// What a backup's marks come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Marked {
    pub(super) keep: bool,
    pub(super) damaged: bool,
}

/// The mark with the highest number of its group decides; of two with the same number, the one that is on the safe side.
pub(super) fn marked<'a>(marks: impl Iterator<Item = &'a Mark>) -> Marked {
    let mut kept = (0, false);
    let mut damaged = (0, false);
    for mark in marks {
        match mark.what {
            MarkKind::Keep => kept = kept.max((mark.number, true)),
            MarkKind::Release => kept = kept.max((mark.number, false)),
            MarkKind::Damaged => damaged = damaged.max((mark.number, true)),
            MarkKind::Verified => damaged = damaged.max((mark.number, false)),
        }
    }
    Marked { keep: kept.1, damaged: damaged.1 }
}

impl LineageRepository {
    /// Adds a mark to a backup, after all that are there.
    pub async fn put_mark(&self, backup: &BackupId, document: &MarkDocument) -> RepositoryResult<Mark> {
        let what = document.what;
        let mut number = self.marks(backup).await?.iter().map(|mark| mark.number).max().unwrap_or(0);
        loop {
            number = number
                .checked_add(1)
                .filter(|&number| number < 100_000)
                .ok_or_else(|| RepositoryError::mismatch(backup, "it has too many marks"))?;
            let key = self.keys().key(&LineageObject::Mark(backup.clone(), number, what));
            let bytes = seal_document(&key, KIND, document)?;
            let digest = sha256(&bytes);
            match self.objects().put_new(&key, Body::Bytes(bytes.clone()), digest).await? {
                PutNew::Created => {}
                // A response that was lost, repeated: it is ours.
                PutNew::Taken if self.objects().get(&key).await? == bytes => {}
                // Another writer's mark of this number: ours comes after it.
                PutNew::Taken => continue,
            }
            return Ok(Mark { backup: backup.clone(), number, what });
        }
    }

    /// The marks of a backup, in the order in which they were made.
    pub async fn marks(&self, backup: &BackupId) -> RepositoryResult<Vec<Mark>> {
        let prefix = format!("{}marks/", self.keys().backup_prefix(backup));
        let objects = self.objects().storage().list(&prefix, None, None).await?;
        let names = objects.iter().map(|object| ObjectName::parse(object.key.as_str()));
        Ok(names
            .filter_map(|name| match name {
                Parsed::Known(ObjectName::InLineage(_, LineageObject::Mark(backup, number, what))) => {
                    Some(Mark { backup, number, what })
                }
                _ => None,
            })
            .collect())
    }

    /// When a backup was last read whole and found right, if no damage was found since. What a mark says beyond its name only
    /// informs, so one that cannot be read counts as none.
    pub async fn verified_at(&self, marks: &[Mark]) -> RepositoryResult<Option<PgTime>> {
        let of_group = marks.iter().filter(|mark| matches!(mark.what, MarkKind::Verified | MarkKind::Damaged));
        match of_group.max_by_key(|mark| (mark.number, mark.what == MarkKind::Damaged)) {
            Some(mark) if mark.what == MarkKind::Verified => match self.mark_document(mark).await {
                Ok(document) => Ok(Some(document.at)),
                Err(RepositoryError::Damaged { .. } | RepositoryError::NotFound(_)) => Ok(None),
                Err(error) => Err(error),
            },
            _ => Ok(None),
        }
    }

    /// The backups of which a listing shows that they were committed, by a manifest or by marks, oldest first.
    pub async fn listed_backups(&self) -> RepositoryResult<Vec<BackupId>> {
        let objects = self.objects().storage().list(&self.keys().backups_prefix(), None, None).await?;
        let mut ids: Vec<BackupId> = objects
            .iter()
            .filter_map(|object| match ObjectName::parse(object.key.as_str()) {
                Parsed::Known(ObjectName::InLineage(_, LineageObject::Manifest(id) | LineageObject::Mark(id, ..))) => {
                    Some(id)
                }
                _ => None,
            })
            .collect();
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    /// What a mark says.
    pub async fn mark_document(&self, mark: &Mark) -> RepositoryResult<MarkDocument> {
        let key = self.keys().key(&LineageObject::Mark(mark.backup.clone(), mark.number, mark.what));
        unseal_document(&key, KIND, &self.objects().get(&key).await?)
    }
}
