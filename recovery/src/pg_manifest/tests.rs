use proptest::collection::vec;
use proptest::prelude::{any, proptest};
use wal::{Lsn, TimelineId};

use super::*;
use crate::DataPath;

/// A manifest of PostgreSQL 17, shortened.
fn body(version: u64) -> String {
    let identifier = if version == 2 { "\"System-Identifier\": 18446744073709551614,\n" } else { "" };
    format!(
        r#"{{ "PostgreSQL-Backup-Manifest-Version": {version},
{identifier}"Files": [
{{ "Path": "backup_label", "Size": 225, "Last-Modified": "2026-11-20 08:00:00 GMT", "Checksum-Algorithm": "CRC32C", "Checksum": "04030201" }},
{{ "Encoded-Path": "62c3a4ff", "Size": 0, "Last-Modified": "2026-11-20 08:00:00 GMT" }},
{{ "Path": "with \"quotes\", \\ and {{braces]", "Size": 3, "Last-Modified": "2026-11-20 08:00:00 GMT", "Checksum-Algorithm": "SHA256", "Checksum": "{sha}" }}
],
"WAL-Ranges": [
{{ "Timeline": 1, "Start-LSN": "0/2000028", "End-LSN": "0/2000100" }}
],
"#,
        sha = "ab".repeat(32)
    )
}

fn sealed(body: &str) -> String {
    format!("{body}\"Manifest-Checksum\": \"{}\"}}\n", hex::encode(Sha256::digest(body)))
}

fn read(text: &[u8], piece: usize) -> Result<(Vec<ManifestFile>, ManifestFacts), PgManifestError> {
    let mut reader = PgManifestReader::new();
    let mut files = Vec::new();
    for piece in text.chunks(piece) {
        reader.push(piece, &mut |file| files.push(file))?;
    }
    Ok((files, reader.finish()?))
}

#[test]
fn both_versions_are_read_in_pieces_of_any_size() {
    for version in [1, 2] {
        let text = sealed(&body(version));
        let whole = read(text.as_bytes(), text.len()).unwrap();
        for piece in [1, 2, 7, 100] {
            assert_eq!(read(text.as_bytes(), piece).unwrap(), whole);
        }
        let (files, facts) = whole;
        assert_eq!(facts.system_identifier, (version == 2).then(|| SystemIdentifier::new(u64::MAX - 1)));
        assert_eq!((facts.version, facts.files), (version, 3));
        let (start, end) = (Lsn::new(0x200_0028), Lsn::new(0x200_0100));
        assert_eq!(facts.wal_ranges, [WalRange { timeline: TimelineId::FIRST, start, end }]);
        assert_eq!(files[0].checksum, Some(FileChecksum::Crc32c(0x0102_0304)));
        assert_eq!((files[0].path.as_bytes(), files[0].size), (&b"backup_label"[..], 225));
        assert_eq!(files[1].path, DataPath::new(b"b\xc3\xa4\xff").unwrap());
        assert_eq!(files[1].checksum, None);
        assert_eq!(files[2].path.as_bytes(), br#"with "quotes", \ and {braces]"#);
        assert_eq!(files[2].checksum, Some(FileChecksum::Sha256([0xab; 32])));
    }
}

#[test]
fn a_changed_byte_anywhere_is_noticed() {
    let text = sealed(&body(2)).into_bytes();
    for at in 0..text.len() {
        let mut bad = text.clone();
        bad[at] ^= 1;
        assert!(read(&bad, 1000).is_err(), "byte {at}");
    }
}

#[test]
fn a_manifest_cut_anywhere_is_refused() {
    let text = sealed(&body(1));
    for len in 0..text.len() {
        assert!(read(&text.as_bytes()[..len], 1000).is_err(), "cut at {len}");
    }
    let more = text.clone() + "{}";
    assert!(read(more.as_bytes(), 1000).is_err());
}

#[test]
fn unknown_versions_and_paths_that_lead_outside_are_refused() {
    assert_eq!(read(sealed(&body(3)).as_bytes(), 100), Err(PgManifestError::Version(3)));
    let outside = body(1).replace("backup_label", "../backup_label");
    assert!(matches!(read(sealed(&outside).as_bytes(), 100), Err(PgManifestError::Path(_))));
}

#[test]
fn entries_that_are_not_postgresqls_are_refused() {
    let good = body(1);
    let changes = [
        (r#""Size": 225, "#, ""),
        (r#""Size": 225"#, r#""Size": -1"#),
        (r#""Path": "backup_label""#, r#""Path": "a", "Encoded-Path": "61""#),
        ("CRC32C", "MD5"),
        ("04030201", "0403020"),
        ("62c3a4ff", "62c3a4f"),
        ("\"Files\"", "\"Folders\""),
        ("\"WAL-Ranges\"", "\"Files\""),
        ("0/2000028", "2000028"),
        ("\"Timeline\": 1", "\"Timeline\": 0"),
    ];
    for (from, to) in changes {
        let bad = good.replace(from, to);
        assert_ne!(bad, good);
        assert!(matches!(read(sealed(&bad).as_bytes(), 100), Err(PgManifestError::Malformed { .. })), "{from}");
    }
    let endless = format!("{{\"{}", "x".repeat(100_000));
    assert!(matches!(read(endless.as_bytes(), 100), Err(PgManifestError::Malformed { .. })));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in vec(any::<u8>(), 0..300), at in any::<usize>(), byte in any::<u8>()) {
        fuzz_pg_manifest(&bytes);
        let mut text = sealed(&body(2)).into_bytes();
        let at = at % text.len();
        text[at] = byte;
        fuzz_pg_manifest(&text);
    }
}
