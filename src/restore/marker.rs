//! `.pgvault-restore`: says, in each directory of a restore, that it has not ended. PostgreSQL ignores it.

use std::fs;
use std::io;
use std::path::Path;

use recovery::{BackupId, LineageId};

/// Its name.
pub(super) const MARKER: &str = ".pgvault-restore";
/// The name under which the next one is written, until it takes the place of the one that is there.
pub(super) const NEXT_MARKER: &str = ".pgvault-restore.next";

/// What a marker says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Marker {
    /// The lineage that the files come from.
    pub(super) lineage: LineageId,
    /// The backup that they come from.
    pub(super) backup: BackupId,
    /// Whether files that are of neither may lie beside them: the directory was not empty when the restore began.
    pub(super) delta: bool,
    /// Whether a sync has failed: what is read from these files may not be what is on the disk.
    pub(super) unsynced: bool,
}

/// What lies under the marker's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FoundMarker {
    /// Nothing.
    None,
    /// The beginning of one: a restore ended while it wrote its first file.
    Torn,
    /// A marker.
    Whole(Marker),
    /// Something else.
    Foreign,
}

impl Marker {
    /// The marker as text.
    pub(super) fn text(&self) -> String {
        let Self { lineage, backup, delta, unsynced } = self;
        let delta = if *delta { " delta" } else { "" };
        let unsynced = if *unsynced { " unsynced" } else { "" };
        format!(
            "{lineage} {backup}{delta}{unsynced}\nA restore by pgvault has not ended here. Run it again, or remove this directory.\n"
        )
    }

    /// Looks at the marker of a directory.
    pub(super) fn read(directory: &Path) -> io::Result<FoundMarker> {
        match fs::read_to_string(directory.join(MARKER)) {
            Ok(text) => Ok(Self::parse(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(FoundMarker::None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(FoundMarker::Foreign),
            Err(error) => Err(error),
        }
    }

    fn parse(text: &str) -> FoundMarker {
        let Some((line, _)) = text.split_once('\n') else { return FoundMarker::Torn };
        let words: Vec<&str> = line.split(' ').collect();
        let [lineage, backup, more @ ..] = words.as_slice() else { return FoundMarker::Foreign };
        let (Ok(lineage), Ok(backup)) = (lineage.parse(), backup.parse()) else { return FoundMarker::Foreign };
        let marker = Self { lineage, backup, delta: more.contains(&"delta"), unsynced: more.contains(&"unsynced") };
        // Nobody writes a word that this version does not know, unless it means something.
        if marker.text().split('\n').next() == Some(line) { FoundMarker::Whole(marker) } else { FoundMarker::Foreign }
    }
}

#[cfg(test)]
pub(super) fn test_marker(backup: &str) -> Marker {
    Marker {
        lineage: "7000000000000000001-1".parse().unwrap(),
        backup: backup.parse().unwrap(),
        delta: false,
        unsynced: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_says_what_was_written_into_it() {
        let plain = test_marker("20261120T030000-0001");
        for (delta, unsynced) in [(false, false), (true, false), (false, true), (true, true)] {
            let marker = Marker { delta, unsynced, ..plain.clone() };
            let text = marker.text();
            assert_eq!(Marker::parse(&text), FoundMarker::Whole(marker));
            assert_eq!(Marker::parse(text.lines().next().unwrap()), FoundMarker::Torn);
        }
        assert_eq!(Marker::parse(""), FoundMarker::Torn);
        for text in ["\n", "x y\n", "7-1 20261120T030000-0001 new\n", "7-1 20261120T030000-0001 \n"] {
            assert_eq!(Marker::parse(text), FoundMarker::Foreign, "{text:?}");
        }
    }
}
