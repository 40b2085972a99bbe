//! What the store holds behind a position.

use wal::{PathLeg, SegmentName, SegmentNumber};

use crate::repository::layout::{LineageObject, ObjectName, Parsed};
use crate::repository::{LineageRepository, RepositoryError, RepositoryResult};

/// How many keys are listed at once.
const PAGE: usize = 100;

/// The first segment of which anything is stored in `leg`, which starts on a segment boundary.
pub(super) async fn first_stored(lineage: &LineageRepository, leg: PathLeg) -> RepositoryResult<Option<SegmentName>> {
    let size = lineage.segment_size();
    let prefix = format!("{}{}/", lineage.keys().wal_prefix(), leg.timeline.hex());
    let first = SegmentNumber::containing(leg.start, size);
    // Keys sort as segments do; everything of the segment before sorts up to its own key.
    let mut after = first.previous().map(|previous| {
        let name = SegmentName::new(leg.timeline, previous, size);
        lineage.keys().key(&LineageObject::Segment(name)).to_string()
    });
    loop {
        let page = lineage.objects().storage().list(&prefix, after.as_deref(), Some(PAGE)).await?;
        for object in &page {
            let name = match ObjectName::parse(object.key.as_str()) {
                Parsed::Known(ObjectName::InLineage(_, LineageObject::Segment(name))) => name,
                Parsed::Known(ObjectName::InLineage(_, LineageObject::Tail(tail))) => tail.segment,
                Parsed::Encrypted(_) => {
                    let what = "it is encrypted".to_owned();
                    return Err(RepositoryError::TooNew { key: object.key.clone(), what });
                }
                Parsed::Known(_) | Parsed::Unknown => continue,
            };
            let Some(start) = name.number(size).map(|number| number.start(size)) else { continue };
            if start >= leg.end {
                return Ok(None);
            }
            if start >= leg.start {
                return Ok(Some(name));
            }
        }
        match page.last() {
            Some(last) if page.len() >= PAGE => after = Some(last.key.to_string()),
            _ => return Ok(None),
        }
    }
}
