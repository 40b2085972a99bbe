//! What one listing of a lineage finds: every object, by what it is.

use std::collections::BTreeMap;

use recovery::BackupId;
use wal::{SegmentName, SegmentSize, TimelineId};

use crate::repository::header::WalPlace;
use crate::repository::layout::{LineageObject, ObjectName, Parsed, TailName};
use crate::repository::tails::encrypted;
use crate::repository::{LineageRepository, Mark, RepositoryResult, TailChain};
use crate::storage::ObjectKey;

/// The objects of one lineage, by what they are, with the lengths of the stored objects in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Complete segments.
    pub segments: BTreeMap<SegmentName, u64>,
    /// Tails, of complete segments too.
    pub tails: BTreeMap<TailName, u64>,
    /// Timelines whose history is stored.
    pub histories: Vec<TimelineId>,
    /// Backups, committed or not.
    pub backups: BTreeMap<BackupId, BackupObjects>,
    /// Refused bytes that were kept.
    pub conflicts: Vec<(ObjectKey, u64)>,
}

/// The objects of one backup besides its packs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackupObjects {
    /// Whether the manifest is there: the backup is committed.
    pub committed: bool,
    /// Its marks, in the order of their numbers.
    pub marks: Vec<Mark>,
    /// Everything in its folder, the manifest and the marks included.
    pub objects: Vec<(ObjectKey, u64)>,
}

impl Inventory {
    /// The chain that the tails of a segment make; none when it is stored whole, or nothing of it is.
    pub fn tail_chain(&self, segment: SegmentName, size: SegmentSize) -> Option<TailChain> {
        if self.segments.contains_key(&segment) {
            return None;
        }
        let start = segment.number(size)?.start(size);
        let pieces = self.tails.keys().filter(|tail| tail.segment == segment).copied().collect();
        TailChain::of(segment, start, pieces)
    }
}

impl LineageRepository {
    /// Lists the lineage. Keys that are nobody's are ignored; an encrypted object or a segment that cannot be is an error.
    pub async fn inventory(&self) -> RepositoryResult<Inventory> {
        let mut inventory = Inventory::default();
        for object in self.objects().storage().list(&self.keys().prefix(), None, None).await? {
            match ObjectName::parse(object.key.as_str()) {
                Parsed::Known(ObjectName::InLineage(_, found)) => {
                    self.add(&mut inventory, found, object.key, object.size)?;
                }
                Parsed::Encrypted(_) => return Err(encrypted(object.key)),
                Parsed::Known(_) | Parsed::Unknown => {}
            }
        }
        Ok(inventory)
    }

    fn add(&self, to: &mut Inventory, found: LineageObject, key: ObjectKey, size: u64) -> RepositoryResult<()> {
        match found {
            LineageObject::Document => {}
            LineageObject::History(timeline) => to.histories.push(timeline),
            LineageObject::Segment(name) => {
                WalPlace::segment(self, name)?;
                to.segments.insert(name, size);
            }
            LineageObject::Tail(name) => {
                WalPlace::tail(self, name)?;
                to.tails.insert(name, size);
            }
            LineageObject::Begun(backup)
            | LineageObject::FilePart(backup, ..)
            | LineageObject::PostgresManifest(backup, _) => {
                to.backups.entry(backup).or_default().objects.push((key, size));
            }
            LineageObject::Manifest(backup) => {
                let backup = to.backups.entry(backup).or_default();
                backup.committed = true;
                backup.objects.push((key, size));
            }
            LineageObject::Mark(backup, number, what) => {
                let objects = to.backups.entry(backup.clone()).or_default();
                objects.marks.push(Mark { backup, number, what });
                objects.objects.push((key, size));
            }
            LineageObject::Conflict(..) => to.conflicts.push((key, size)),
        }
        Ok(())
    }
}
