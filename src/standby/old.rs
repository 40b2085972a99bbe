//! What lies in an old data directory.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use recovery::OldDirectory;
use wal::{ControlFile, SegmentName, SegmentSize, read_segment_header};

use crate::error::{Error, ErrorCode, Result};

/// Bytes of the header of a segment's first page.
const HEADER: u64 = 40;

/// Reads what a decision needs; changes nothing.
pub(super) fn read(directory: &Path, size: SegmentSize) -> Result<OldDirectory> {
    let refuse = |file: &str, problem: &dyn std::fmt::Display| {
        Error::new(ErrorCode::TargetDirectory, format!("{}: {file}: {problem}", directory.display()))
            .because("it is not a data directory that can be brought back")
            .help("make a new standby in another directory: pgvault standby create")
    };
    let control = fs::read(directory.join("global/pg_control")).map_err(|error| refuse("global/pg_control", &error))?;
    let control = ControlFile::parse(&control).map_err(|error| refuse("global/pg_control", &error))?;
    let version = fs::read_to_string(directory.join("PG_VERSION")).map_err(|error| refuse("PG_VERSION", &error))?;
    let major = version.trim().parse().map_err(|_| refuse("PG_VERSION", &format!("\"{}\"", version.trim())))?;
    Ok(OldDirectory {
        control,
        major,
        standby_signal: directory.join("standby.signal").exists(),
        backup_label: directory.join("backup_label").exists(),
        wal: own_wal(&directory.join("pg_wal"), size).map_err(|error| refuse("pg_wal", &error))?,
    })
}

/// The segments that hold what their names say. Servers give old segments names to come and write into them later: these begin
/// with another address.
fn own_wal(folder: &Path, size: SegmentSize) -> io::Result<Vec<SegmentName>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let Some(name) = entry.file_name().to_str().and_then(|name| name.parse::<SegmentName>().ok()) else { continue };
        let mut header = Vec::new();
        File::open(entry.path())?.take(HEADER).read_to_end(&mut header)?;
        let start = name.number(size).map(|number| number.start(size));
        if read_segment_header(&header).is_ok_and(|header| Some(header.page_address) == start) {
            found.push(name);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_data_directory_is_refused_with_the_file_that_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let refused = || {
            let error = read(dir.path(), SegmentSize::DEFAULT).unwrap_err();
            assert_eq!(error.code(), ErrorCode::TargetDirectory);
            error.message().to_owned()
        };
        assert!(refused().contains("global/pg_control"));
        fs::create_dir(dir.path().join("global")).unwrap();
        fs::write(dir.path().join("global/pg_control"), [0; 8192]).unwrap();
        assert!(refused().contains("its version 0"));
    }

    #[test]
    fn segments_that_were_given_a_name_to_come_do_not_count() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("000000010000000000000005"), [0; 100]).unwrap();
        fs::write(dir.path().join("000000010000000000000006"), []).unwrap();
        fs::write(dir.path().join("00000002.history"), "x").unwrap();
        assert_eq!(own_wal(dir.path(), SegmentSize::DEFAULT).unwrap(), []);
    }
}
