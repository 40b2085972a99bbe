use std::io::{Read, Write};
use std::process::{Command, Stdio};

use proptest::collection::vec;
use proptest::prelude::any;
use proptest::{prop_assert, prop_assert_eq, proptest};

use super::{
    Compression, Compressor, DecompressError, Decompressor, FrameReader, compress_frame, decompress,
    decompress_bounded, sized_frames,
};
use crate::codec::envelope;

const BOTH: [Compression; 2] = [Compression::Zstd(1), Compression::None];

/// Bytes that compress a little.
fn sample(len: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 28) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// What the `zstd` program makes of bytes: its arguments, its output or its complaint.
fn zstd_program(args: &[&str], input: &[u8]) -> Result<Vec<u8>, String> {
    let mut child = Command::new("zstd")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program zstd is installed");
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    // It may stop reading at damage; that it did is in its exit code.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    if output.status.success() { Ok(output.stdout) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

#[test]
fn the_zstd_program_reads_every_frame_that_is_written_here() {
    for compression in [Compression::Zstd(1), Compression::Zstd(19), Compression::Zstd(-5), Compression::None] {
        for len in [0, 1, 1000, 128 * 1024 - 1, 128 * 1024, 128 * 1024 + 1, 1_000_000] {
            let plain = sample(len);
            let frame = compress_frame(&plain, compression).unwrap();
            assert!(zstd_program(&["-d", "-c"], &frame).unwrap() == plain, "{compression} of {len} bytes");
        }
    }
}

#[test]
fn the_zstd_program_reads_an_envelope_and_several_frames_as_one() {
    for compression in BOTH {
        let plain = sample(300_000);
        let mut object = envelope::write(b"{\"kind\":\"segment\"}").unwrap();
        let mut compressor = Compressor::new(compression).unwrap();
        for piece in plain.chunks(100_000) {
            compressor.append_frame(piece, &mut object).unwrap();
        }
        assert!(zstd_program(&["-d", "-c"], &object).unwrap() == plain);
        assert!(decompress(&object, 300_000, 300_000).unwrap() == plain);
        assert!(decompress_bounded(&object, 300_000).unwrap() == plain);
    }
}

#[test]
fn the_zstd_program_finds_size_and_checksum_in_every_frame() {
    for compression in BOTH {
        let mut frame = compress_frame(&sample(5000), compression).unwrap();
        // zstd -l reads files only, so the header says it: checksum flag, and the content size that libzstd reads.
        assert_eq!(frame[4] & 0b100, 0b100, "{compression} has no checksum");
        assert_eq!(zstd::zstd_safe::get_frame_content_size(&frame).unwrap(), Some(5000));
        let last = frame.len() - 1;
        frame[last] ^= 1;
        let complaint = zstd_program(&["-d", "-c"], &frame).unwrap_err();
        assert!(complaint.contains("checksum"), "{complaint}");
    }
}

#[test]
fn frames_of_the_zstd_program_are_read_here() {
    let plain = sample(2_000_000);
    let stored = zstd_program(&["-c", "-19"], &plain).unwrap();
    assert!(decompress_bounded(&stored, 2_000_000).unwrap() == plain);
}

#[test]
fn content_of_another_length_is_refused() {
    for compression in BOTH {
        let frame = compress_frame(&sample(1000), compression).unwrap();
        assert!(matches!(decompress(&frame, 999, 5000), Err(DecompressError::Damaged(_))));
        assert_eq!(decompress(&frame, 1001, 5000), Err(DecompressError::WrongLength { expected: 1001, found: 1000 }));
        assert_eq!(decompress(&frame, 1000, 999), Err(DecompressError::TooLarge { claimed: 1000, limit: 999 }));
        assert_eq!(decompress_bounded(&frame, 999), Err(DecompressError::TooLarge { claimed: 1000, limit: 999 }));
    }
}

#[test]
fn a_frame_that_claims_terabytes_takes_no_memory() {
    // A raw-block frame whose header claims 4 TiB and whose blocks hold 1000 bytes.
    let mut frame = compress_frame(&sample(1000), Compression::None).unwrap();
    frame[6..14].copy_from_slice(&(4u64 << 40).to_le_bytes());
    assert!(decompress(&frame, 1000, 1000).is_err());
    assert!(decompress_bounded(&frame, 1000).is_err());
    // A bomb: much content in few bytes, one honest frame.
    let bomb = compress_frame(&vec![0; 50_000_000], Compression::Zstd(1)).unwrap();
    assert!(bomb.len() < 10_000);
    assert_eq!(decompress_bounded(&bomb, 1000), Err(DecompressError::TooLarge { claimed: 1001, limit: 1000 }));
    // A window of 2 GiB, asked for by the header.
    let mut window = compress_frame(&sample(1000), Compression::None).unwrap();
    window[5] = 21 << 3;
    assert!(matches!(decompress_bounded(&window, 1000), Err(DecompressError::Damaged(_))));
}

#[test]
fn a_frame_cut_anywhere_is_refused() {
    for compression in BOTH {
        let frame = compress_frame(&sample(300), compression).unwrap();
        for cut in 1..frame.len() {
            assert!(decompress(&frame[..cut], 300, 300).is_err(), "{compression} cut at {cut}");
            assert!(decompress_bounded(&frame[..cut], 300).is_err(), "{compression} cut at {cut}");
        }
    }
}

#[test]
fn no_flipped_bit_changes_content_unnoticed() {
    let plain = sample(300);
    for compression in BOTH {
        let frame = compress_frame(&plain, compression).unwrap();
        for bit in 0..frame.len() * 8 {
            let mut bad = frame.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            // Some bits mean nothing (an unused flag, a window larger than needed): then the content is right.
            if let Ok(found) = decompress(&bad, 300, 300) {
                // Clearing the checksum flag leaves the checksum's bytes behind, which are no frame.
                assert!(found == plain, "{compression} bit {bit}");
            }
        }
    }
}

#[test]
fn a_context_is_used_again_after_an_error() {
    let mut decompressor = Decompressor::new().unwrap();
    let mut plain = vec![0; 1000];
    assert!(decompressor.decompress_to(b"no frame", &mut plain).is_err());
    let frame = compress_frame(&sample(1000), Compression::Zstd(3)).unwrap();
    decompressor.decompress_to(&frame, &mut plain).unwrap();
    assert_eq!(plain, sample(1000));
}

#[test]
fn a_stream_of_frames_is_read_in_pieces() {
    let plain = sample(400_000);
    let mut stored = Vec::new();
    let mut compressor = Compressor::new(Compression::Zstd(1)).unwrap();
    for piece in plain.chunks(150_000) {
        compressor.append_frame(piece, &mut stored).unwrap();
    }
    let mut reader = FrameReader::new(std::io::BufReader::with_capacity(777, stored.as_slice())).unwrap();
    let mut found = Vec::new();
    reader.read_to_end(&mut found).unwrap();
    assert!(found == plain);
}

#[test]
fn compressions_are_named_as_in_the_configuration() {
    for (text, compression) in
        [("zstd:3", Compression::Zstd(3)), ("zstd:-5", Compression::Zstd(-5)), ("none", Compression::None)]
    {
        assert_eq!(text.parse(), Ok(compression));
        assert_eq!(compression.to_string(), text);
    }
    assert_eq!("zstd".parse(), Ok(Compression::default()));
    for bad in ["", "gzip", "zstd:", "zstd:0", "zstd:20", "zstd:-8", "zstd:1.5", "NONE", "zstd 3"] {
        assert!(bad.parse::<Compression>().is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn any_content_comes_back(plain in vec(any::<u8>(), 0..5000), raw in any::<bool>()) {
        let compression = if raw { Compression::None } else { Compression::Zstd(1) };
        let frame = compress_frame(&plain, compression).unwrap();
        prop_assert_eq!(decompress(&frame, plain.len() as u64, 5000).unwrap(), plain);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in vec(any::<u8>(), 0..300)) {
        let mut near = vec![0x28, 0xB5, 0x2F, 0xFD];
        near.extend_from_slice(&bytes);
        for stored in [&bytes, &near] {
            let outcome = decompress(stored, 10_000, 10_000);
            prop_assert!(outcome.as_ref().is_ok_and(|plain| plain.len() == 10_000) || outcome.is_err());
            prop_assert!(decompress_bounded(stored, 1000).is_ok_and(|plain| plain.len() <= 1000) || decompress_bounded(stored, 1000).is_err());
        }
    }
}

#[test]
fn frames_that_tell_their_length_are_found_and_nothing_else() {
    let plain = [b"abcdefgh".repeat(5000), vec![7; 3000]].concat();
    for compression in [Compression::Zstd(1), Compression::None] {
        let mut compressor = Compressor::new(compression).unwrap();
        let mut stored = Vec::new();
        for piece in plain.chunks(20_000) {
            compressor.append_frame(piece, &mut stored).unwrap();
        }
        let frames = sized_frames(&stored, 20_000).unwrap();
        assert_eq!(frames.iter().map(|frame| frame.plain_len).collect::<Vec<_>>(), [20_000, 20_000, 3000]);
        assert!(frames.first().unwrap().stored.start == 0 && frames.last().unwrap().stored.end == stored.len());
        assert_eq!(sized_frames(&stored, 19_999), None, "too long");
        assert_eq!(sized_frames(&stored[..stored.len() - 1], 20_000), None, "cut");
        assert_eq!(sized_frames(&[&stored[..], b"x"].concat(), 20_000), None, "more behind them");
        let skippable = [&[0x50, 0x2A, 0x4D, 0x18, 1, 0, 0, 0, 7], &stored[..]].concat();
        assert_eq!(sized_frames(&skippable, 20_000), None, "a frame without content");
    }
    assert_eq!(sized_frames(b"", 10), Some(Vec::new()));
}
