use super::*;

const BLOCK: usize = 8192;

fn facts() -> PageFacts {
    PageFacts::new(8192, 1 << 30).unwrap()
}

/// A file with these blocks, as the server sends it, but for the pages.
fn header(blocks: &[u32], truncation: u32) -> Vec<u8> {
    let count = u32::try_from(blocks.len()).unwrap();
    let words = [MAGIC, count, truncation].into_iter().chain(blocks.iter().copied());
    let mut bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
    if !blocks.is_empty() {
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    }
    bytes
}

fn read(bytes: &[u8], size: usize, piece: usize) -> Result<Option<IncrementalHeader>, IncrementalError> {
    let mut reader = HeaderReader::new(facts(), size as u64);
    for mut piece in bytes.chunks(piece) {
        if let Some(header) = reader.push(&mut piece)? {
            assert!(piece.is_empty());
            return Ok(Some(header));
        }
    }
    Ok(None)
}

#[test]
fn headers_are_read_in_pieces_of_any_size() {
    for blocks in [vec![], vec![0], vec![3, 7, 131_071], (0..3000).collect()] {
        let bytes = header(&blocks, 9);
        let size = bytes.len() + blocks.len() * BLOCK;
        for piece in [1, 5, 12, 100, 1 << 20] {
            let read = read(&bytes, size, piece).unwrap().unwrap();
            assert_eq!(read, IncrementalHeader { truncation: 9, blocks: blocks.clone() });
        }
    }
}

#[test]
fn a_file_reaches_to_its_truncation_length_or_its_last_block() {
    let count = |blocks: &[u32], truncation| IncrementalHeader { truncation, blocks: blocks.to_vec() }.block_count();
    assert_eq!(count(&[], 0), 0);
    assert_eq!(count(&[], 5), 5);
    assert_eq!(count(&[1, 2], 5), 5);
    assert_eq!(count(&[1, 7], 5), 8);
}

#[test]
fn what_contradicts_itself_is_refused() {
    let good = header(&[3, 7], 9);
    let size = good.len() + 2 * BLOCK;
    let changed = |at: usize, to: u32| {
        let mut bytes = good.clone();
        bytes[at..at + 4].copy_from_slice(&to.to_le_bytes());
        read(&bytes, size, 1 << 20).unwrap_err()
    };
    assert_eq!(changed(0, 1), IncrementalError::Magic(1));
    assert!(matches!(changed(4, 3), IncrementalError::Size { blocks: 3, .. }));
    assert!(matches!(changed(4, u32::MAX), IncrementalError::TooMany { .. }));
    assert!(matches!(changed(8, 131_073), IncrementalError::TooMany { .. }));
    assert_eq!(changed(12, 7), IncrementalError::Order(7));
    assert_eq!(changed(12, 8), IncrementalError::Order(7));
    assert_eq!(changed(16, 131_072), IncrementalError::Order(131_072));
    assert!(matches!(read(&good, size + 1, 1 << 20), Err(IncrementalError::Size { .. })));
    assert_eq!(read(&good[..good.len() - 1], size, 1 << 20), Ok(None));
}

#[test]
fn only_files_of_relations_come_incrementally() {
    let original = |path: &str| original_path(&DataPath::new(path.as_bytes()).unwrap()).map(|path| path.to_string());
    assert_eq!(original("base/5/INCREMENTAL.1259").as_deref(), Some("base/5/1259"));
    assert_eq!(original("base/5/INCREMENTAL.1259_vm.2").as_deref(), Some("base/5/1259_vm.2"));
    assert_eq!(original("global/INCREMENTAL.1262").as_deref(), Some("global/1262"));
    let in_space = original("pg_tblspc/16384/PG_17_202406281/5/INCREMENTAL.16390.1");
    assert_eq!(in_space.as_deref(), Some("pg_tblspc/16384/PG_17_202406281/5/16390.1"));
    for other in
        ["base/5/1259", "INCREMENTAL.1259", "base/5/INCREMENTAL.", "pg_wal/INCREMENTAL.1", "base/INCREMENTAL.1/5"]
    {
        assert_eq!(original(other), None, "{other}");
    }
}

#[test]
fn the_label_becomes_that_of_a_full_backup() {
    let label = b"START WAL LOCATION: 0/A000028 (file 00000001000000000000000A)\nLABEL: INCREMENTAL FROM LSN: x\n\
        INCREMENTAL FROM LSN: 0/8000028\nINCREMENTAL FROM TLI: 1\n";
    let full = b"START WAL LOCATION: 0/A000028 (file 00000001000000000000000A)\nLABEL: INCREMENTAL FROM LSN: x\n";
    assert!(full_label(label) == full);
    assert!(full_label(full) == full);
}

#[test]
fn hostile_bytes_do_not_panic() {
    fuzz_incremental(b"");
    fuzz_incremental(&header(&[1, 2, 3], 4));
    let mut odd = header(&[1], 4);
    odd.truncate(20);
    fuzz_incremental(&odd);
}
