//! What one listing of a lineage finds: every object, by what it is.

use std::collections::BTreeMap;

use futures_util::{StreamExt, TryStreamExt, stream};
use recovery::BackupId;
use wal::{SegmentName, SegmentSize, TimelineId};

use crate::repository::header::WalPlace;
use crate::repository::layout::{GapName, LineageObject, ObjectName, Parsed, TailName};
use crate::repository::tails::encrypted;
use crate::repository::{LineageRepository, Mark, RepositoryResult, TailChain};
use crate::storage::{Level, ObjectInfo, ObjectKey};

/// How many folders are listed at once.
const PARALLEL: usize = 8;

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
    /// What is known of lost WAL.
    pub gaps: Vec<GapName>,
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
        let objects = self.objects().storage().list(&self.keys().prefix(), None, None).await?;
        self.add_all(&mut inventory, objects)?;
        Ok(inventory)
    }

    /// Lists the lineage without the tails of segments that are stored whole, which mean nothing any more and can be many
    /// times as many objects as everything else together. Level by level, so that a store does not even name them.
    pub async fn survey(&self) -> RepositoryResult<Inventory> {
        let mut inventory = Inventory::default();
        let wal = self.keys().wal_prefix();
        let mut folders: Vec<String> = Vec::new();
        for timeline in self.level(&wal, &mut inventory).await? {
            let prefix = format!("{wal}{timeline}/");
            let logs = self.level(&prefix, &mut inventory).await?;
            folders.extend(logs.into_iter().map(|log| format!("{prefix}{log}/")));
        }
        let mut tails: Vec<String> = Vec::new();
        let mut logs = stream::iter(folders).map(|log| self.listed_level(log)).buffered(PARALLEL);
        while let Some((log, level)) = logs.try_next().await? {
            tails.extend(level.folders.into_iter().map(|folder| format!("{log}{folder}/")));
            self.add_all(&mut inventory, level.objects)?;
        }
        drop(logs);
        let open = |prefix: &String| {
            let name = prefix.rsplit('/').nth(1)?.strip_suffix(".tail")?.parse::<SegmentName>().ok()?;
            (!inventory.segments.contains_key(&name)).then_some(name)
        };
        let open: Vec<(String, SegmentName)> =
            tails.into_iter().filter_map(|prefix| open(&prefix).map(|name| (prefix, name))).collect();
        for (prefix, name) in open {
            let pieces = self.objects().storage().list(&prefix, None, None).await?;
            if pieces.is_empty() {
                // Its last piece may have been removed since its folder was listed: because it is whole by now.
                let key = self.keys().key(&LineageObject::Segment(name));
                if let Some(size) = self.objects().storage().head(&key).await? {
                    inventory.segments.insert(name, size);
                }
            }
            self.add_all(&mut inventory, pieces)?;
        }
        for prefix in [self.keys().backups_prefix(), self.keys().gaps_prefix(), self.keys().conflict_prefix()] {
            let objects = self.objects().storage().list(&prefix, None, None).await?;
            self.add_all(&mut inventory, objects)?;
        }
        Ok(inventory)
    }

    /// Adds the objects right below a prefix, and returns the folders.
    async fn level(&self, prefix: &str, inventory: &mut Inventory) -> RepositoryResult<Vec<String>> {
        let level = self.objects().storage().list_level(prefix).await?;
        self.add_all(inventory, level.objects)?;
        Ok(level.folders)
    }

    async fn listed_level(&self, prefix: String) -> RepositoryResult<(String, Level)> {
        let level = self.objects().storage().list_level(&prefix).await?;
        Ok((prefix, level))
    }

    fn add_all(&self, inventory: &mut Inventory, objects: Vec<ObjectInfo>) -> RepositoryResult<()> {
        for object in objects {
            match ObjectName::parse(object.key.as_str()) {
                Parsed::Known(ObjectName::InLineage(_, found)) => {
                    self.add(inventory, found, object.key, object.size)?
                }
                Parsed::Encrypted(_) => return Err(encrypted(object.key)),
                Parsed::Known(_) | Parsed::Unknown => {}
            }
        }
        Ok(())
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
            LineageObject::Gap(name) => to.gaps.push(name),
            LineageObject::Conflict(..) => to.conflicts.push((key, size)),
        }
        Ok(())
    }
}
