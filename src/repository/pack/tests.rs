use super::*;

fn sample() -> FinishedPack {
    let mut builder = PackBuilder::new();
    for plain in [b"one".repeat(100), b"two".repeat(5000), b"three".to_vec()] {
        let frame = zstd::bulk::compress(&plain, 1).unwrap();
        builder.push(&frame, u32::try_from(plain.len()).unwrap(), ChunkHash::of(&plain));
    }
    builder.finish()
}

#[test]
fn the_end_of_a_pack_tells_what_lies_in_it() {
    let pack = sample();
    let size = pack.bytes.len() as u64;
    assert_eq!(read_toc(&pack.bytes, size), Ok(Toc::Chunks(pack.chunks.clone())));
    for chunk in &pack.chunks {
        let frame = &pack.bytes[chunk.offset as usize..(chunk.offset + chunk.stored) as usize];
        let plain = zstd::bulk::decompress(frame, chunk.plain as usize).unwrap();
        assert_eq!(ChunkHash::of(&plain), chunk.hash);
    }
}

#[test]
fn a_pack_is_a_file_that_zstd_reads_and_its_name_is_its_sha256() {
    let pack = sample();
    let expected = [b"one".repeat(100), b"two".repeat(5000), b"three".to_vec()].concat();
    assert_eq!(zstd::decode_all(&*pack.bytes).unwrap(), expected);
    assert_eq!(pack.sha256, digest::sha256(&pack.bytes));
}

#[test]
fn too_few_of_the_last_bytes_ask_for_more() {
    let pack = sample();
    let size = pack.bytes.len() as u64;
    let toc_len = TOC_FIXED_LEN + 3 * ENTRY_LEN;
    for len in 8..toc_len {
        assert_eq!(read_toc(&pack.bytes[pack.bytes.len() - len..], size), Ok(Toc::NeedsLast(toc_len)));
    }
    assert!(matches!(read_toc(&pack.bytes[pack.bytes.len() - toc_len..], size), Ok(Toc::Chunks(_))));
}

#[test]
fn a_damaged_end_is_refused_or_stays_possible() {
    let pack = sample();
    let size = pack.bytes.len() as u64;
    let toc_start = pack.bytes.len() - TOC_FIXED_LEN - 3 * ENTRY_LEN;
    for at in toc_start..pack.bytes.len() {
        let mut bytes = pack.bytes.to_vec();
        bytes[at] ^= 0x80;
        match read_toc(&bytes, size) {
            Err(_) => {}
            Ok(Toc::Chunks(chunks)) => {
                assert_ne!(chunks, pack.chunks);
                assert!(chunks.iter().all(|c| u64::from(c.offset) + u64::from(c.stored) <= toc_start as u64));
            }
            Ok(Toc::NeedsLast(len)) => assert!(len <= MAX_TOC_LEN),
        }
    }
    for len in 0..pack.bytes.len() {
        assert!(!matches!(read_toc(&pack.bytes[..len], len as u64), Ok(Toc::Chunks(_))), "cut at {len}");
    }
}

#[test]
fn a_pack_is_full_by_bytes_or_by_chunks() {
    let mut builder = PackBuilder::new();
    let frame = vec![0; 1 << 20];
    while !builder.is_full() {
        builder.push(&frame, 1 << 20, ChunkHash([0; 32]));
    }
    assert_eq!(builder.chunks.len(), 32);
    let mut builder = PackBuilder::new();
    while !builder.is_full() {
        builder.push(b"tiny", 1, ChunkHash([0; 32]));
    }
    assert_eq!(builder.chunks.len(), MAX_CHUNKS);
    assert!(matches!(read_toc(&builder.finish().bytes, u64::MAX), Ok(Toc::Chunks(_))));
}
