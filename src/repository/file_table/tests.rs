use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::*;

const FACTS: TableFacts = TableFacts { chunk_size: CHUNK_SIZE, packs: 2 };

fn stored(pack: u32, plain: u32) -> ChunkRef {
    ChunkRef::Stored(StoredChunk { pack, offset: 17, stored: 99, plain, hash: ChunkHash([7; 32]) })
}

fn entries() -> Vec<TableEntry> {
    let file = |path: &[u8], size, chunks| TableEntry {
        path: DataPath::new(path).unwrap(),
        mode: 0o600,
        mtime: 1_763_600_000,
        kind: EntryKind::File(FileContent { size, crc32c: 0x00ab_cdef, chunks }),
    };
    vec![
        TableEntry {
            path: DataPath::new(b"base").unwrap(),
            mode: 0o700,
            mtime: 1_763_600_000,
            kind: EntryKind::Directory,
        },
        file(b"base/5/1259", u64::from(CHUNK_SIZE) + 5, vec![stored(0, CHUNK_SIZE), stored(1, 5)]),
        file(b"empty", 0, vec![]),
        file(b"zeros", 8192, vec![ChunkRef::Zeros { plain: 8192 }]),
        file(
            b"patched",
            9,
            vec![ChunkRef::Patched(PatchedChunk {
                patch: StoredChunk { pack: 1, offset: 3, stored: 4, plain: 9, hash: ChunkHash([8; 32]) },
                base: StoredChunk { pack: 0, offset: 17, stored: 99, plain: 12, hash: ChunkHash([7; 32]) },
            })],
        ),
        file(b"odd \"\\[#\xff", 3, vec![stored(1, 3)]),
    ]
}

fn compressed(entries: &[TableEntry]) -> Bytes {
    let mut writer = PartWriter::default();
    assert!(entries.iter().all(|entry| writer.push(entry).is_none()));
    let part = writer.finish().unwrap();
    assert_eq!(part.entries, entries.len() as u64);
    zstd::encode_all(part.plain.as_slice(), 1).unwrap().into()
}

#[test]
fn what_was_written_is_read_again() {
    let part = compressed(&entries());
    let sha256 = Sha256::digest(&part).into();
    let read: Vec<_> = PartReader::new(part, sha256, 6, FACTS).unwrap().map(Result::unwrap).collect();
    assert_eq!(read, entries());
}

#[test]
fn the_lines_have_the_documented_form() {
    let mut writer = PartWriter::default();
    for entry in entries() {
        writer.push(&entry);
    }
    let text = String::from_utf8(writer.finish().unwrap().plain).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], r#"{"path":"base","type":"dir","mode":448,"mtime":1763600000}"#);
    let hash = "07".repeat(32);
    assert_eq!(
        lines[1],
        format!(
            r#"{{"path":"base/5/1259","type":"file","mode":384,"mtime":1763600000,"size":1048581,"crc32c":"00abcdef","chunks":[[0,17,99,1048576,"{hash}"],[1,17,99,5,"{hash}"]]}}"#
        )
    );
    assert!(lines[3].ends_with(r#""chunks":[[-1,0,0,8192,""]]}"#), "{}", lines[3]);
    let result = "08".repeat(32);
    let patched = format!(r#""chunks":[[1,3,4,9,"{result}",{{"xor":[0,17,99,12,"{hash}"]}}]]}}"#);
    assert!(lines[4].ends_with(&patched), "{}", lines[4]);
    assert!(lines[5].starts_with(r#"{"path_hex":"6f6464"#), "{}", lines[5]);
}

#[test]
fn a_part_is_full_after_so_many_bytes() {
    let mut writer = PartWriter::default();
    let entry = &entries()[0];
    let mut pushed = 0_u64;
    let part = loop {
        pushed += 1;
        if let Some(part) = writer.push(entry) {
            break part;
        }
    };
    assert_eq!(part.entries, pushed);
    assert!((PART_PLAIN_BYTES..PART_PLAIN_BYTES + 100).contains(&part.plain.len()));
    assert!(writer.finish().is_none());
}

#[test]
fn another_checksum_is_refused() {
    let error = PartReader::new(compressed(&entries()), [0; 32], 5, FACTS).unwrap_err();
    assert!(matches!(error, TableError::Checksum { .. }));
}

#[test]
fn a_part_with_missing_entries_is_refused() {
    let part = compressed(&entries());
    let sha256 = Sha256::digest(&part).into();
    let last = PartReader::new(part, sha256, 7, FACTS).unwrap().last().unwrap();
    assert!(matches!(last, Err(TableError::Entries { expected: 7, found: 6 })));
}

#[test]
fn a_truncated_part_is_an_error_not_an_end() {
    let part = compressed(&entries());
    for len in 0..part.len() {
        let cut = part.slice(..len);
        let sha256 = Sha256::digest(&cut).into();
        let result: Result<Vec<_>, _> = PartReader::new(cut, sha256, 6, FACTS).unwrap().collect();
        assert!(result.is_err(), "cut at {len}");
    }
}

#[test]
fn lines_that_contradict_themselves_are_refused() {
    let hash = "07".repeat(32);
    let file = |size: &str, chunks: &str| {
        format!(
            r#"{{"path":"a","type":"file","mode":384,"mtime":1,"size":{size},"crc32c":"00000000","chunks":{chunks}}}"#
        )
    };
    let good = file("5", &format!(r#"[[1,0,9,5,"{hash}"]]"#));
    assert!(line::read(good.as_bytes(), CHUNK_SIZE, 2).is_ok());
    let bad = [
        file("5", "[]"),
        file("6", &format!(r#"[[1,0,9,5,"{hash}"]]"#)),
        file("5", &format!(r#"[[2,0,9,5,"{hash}"]]"#)),
        file("5", &format!(r#"[[-1,0,9,5,"{hash}"]]"#)),
        file("5", &format!(r#"[[1,0,0,5,"{hash}"]]"#)),
        file("5", &format!(r#"[[1,4294967295,9,5,"{hash}"]]"#)),
        file("5", r#"[[1,0,9,5,"07"]]"#),
        file("5", &format!(r#"[[1,0,9,5,"{hash}",{{}}]]"#)),
        file("5", &format!(r#"[[1,0,9,5,"{hash}",{{"xor":[2,0,9,5,"{hash}"]}}]]"#)),
        file("5", &format!(r#"[[1,0,9,5,"{hash}",{{"xor":[1,0,0,5,"{hash}"]}}]]"#)),
        file("5", &format!(r#"[[1,0,9,5,"{hash}",{{"xor":[1,0,9,0,"{hash}"]}}]]"#)),
        file("5", &format!(r#"[[1,0,9,5,"{hash}",{{"xor":[1,0,9,1048577,"{hash}"]}}]]"#)),
        file("5", &format!(r#"[[1,0,9,5,"{hash}",{{"xor":[1,0,9,5,"{hash}"]}},1]]"#)),
        file("5", &format!(r#"[[1,0,9,5,"{hash}",{{"xor":[1,0,9,5,"{hash}"],"later":1}}]]"#)),
        file("18446744073709551615", "[]"),
        r#"{"path":"../a","type":"dir","mode":448,"mtime":1}"#.to_owned(),
        r#"{"path":"a","path_hex":"61","type":"dir","mode":448,"mtime":1}"#.to_owned(),
        r#"{"type":"dir","mode":448,"mtime":1}"#.to_owned(),
        r#"{"path":"a","type":"link","mode":448,"mtime":1}"#.to_owned(),
        r#"{"path":"a","type":"dir","mode":448,"mtime":1,"size":0}"#.to_owned(),
        r#"{"path":"a","type":"dir","mode":32768,"mtime":1}"#.to_owned(),
    ];
    for line in bad {
        assert!(line::read(line.as_bytes(), CHUNK_SIZE, 2).is_err(), "{line}");
    }
}

#[test]
fn hostile_bytes_do_not_panic() {
    fuzz_part(b"");
    fuzz_part(b"{}\n[[[[\n\xff");
    fuzz_part(&compressed(&entries()));
}
