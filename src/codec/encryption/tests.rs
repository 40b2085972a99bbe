//! Every range, every cut, every swap.

use proptest::prelude::any;
use proptest::{prop_assert, prop_assert_eq, proptest};
use zeroize::Zeroizing;

use super::{
    BlockRange, DataKey, EncryptionError, Generation, HEADER, PLAIN_BLOCK, STORED_BLOCK, TAG, claimed_generation,
    encrypt, encrypt_into, is_encrypted, open_blocks, plain_len,
};
use crate::codec::digest::sha256;

const NAME: &str = "main/7-1/wal/00000001/00000000/000000010000000000000001.zst";
const BLOCK: usize = PLAIN_BLOCK as usize;
const STORED: usize = STORED_BLOCK as usize;

fn key(byte: u8) -> DataKey {
    DataKey::new(Zeroizing::new([byte; 32]))
}

fn plain(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes()[0]).collect()
}

fn stored(plain: &[u8]) -> Vec<u8> {
    encrypt(&key(1), Generation::FIRST, NAME, plain, &sha256(plain)).unwrap()
}

fn open(bytes: &[u8]) -> Result<Vec<u8>, EncryptionError> {
    let opened = open_blocks(&key(1), NAME, 0, bytes)?;
    if opened.is_end { Ok(opened.plain) } else { Err(EncryptionError::CutShort) }
}

#[test]
fn objects_of_any_length_come_back_and_tell_their_length() {
    for len in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 77] {
        let content = plain(len);
        let bytes = stored(&content);
        assert!(is_encrypted(&bytes));
        assert_eq!(claimed_generation(&bytes), Some(Generation::FIRST));
        assert_eq!(plain_len(bytes.len() as u64), Some(len as u64), "{len}");
        assert_eq!(open(&bytes).unwrap(), content, "{len}");
        let mut written = Vec::new();
        let place = (&key(1), Generation::FIRST, NAME);
        encrypt_into(place, (&mut content.as_slice(), len as u64, &sha256(&content)), &mut written).unwrap();
        assert_eq!(written, bytes, "{len}");
    }
}

#[test]
fn lengths_that_no_object_has_are_known() {
    let overhead = (HEADER + TAG) as u64;
    for len in [0, 1, overhead - 1, STORED_BLOCK + 1, STORED_BLOCK + overhead] {
        assert_eq!(plain_len(len), None, "{len}");
    }
    assert_eq!(plain_len(overhead), Some(0));
}

/// Two encryptions of other content never share a salt, the same content under the same name is the same object.
#[test]
fn the_same_object_is_the_same_bytes_and_any_difference_has_another_key() {
    let salt = |name: &str, content: &[u8], byte: u8| {
        let bytes = encrypt(&key(byte), Generation::FIRST, name, content, &sha256(content)).unwrap();
        bytes[16..HEADER].to_vec()
    };
    let same = salt(NAME, b"content", 1);
    assert_eq!(salt(NAME, b"content", 1), same);
    let others = [salt("other", b"content", 1), salt(NAME, b"contenT", 1), salt(NAME, b"content", 2)];
    assert!(others.iter().all(|other| *other != same));
    assert!(others[0] != others[1] && others[1] != others[2]);
}

#[test]
fn a_flipped_bit_anywhere_is_noticed() {
    let bytes = stored(&plain(100));
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(open(&bad).is_err(), "bit {bit}");
    }
}

#[test]
fn cuts_additions_and_blocks_in_other_places_are_noticed() {
    let content = plain(3 * BLOCK + 5);
    let bytes = stored(&content);
    for cut in [0, 1, HEADER, HEADER + TAG, STORED - 1, STORED, STORED + HEADER + TAG, 3 * STORED, bytes.len() - 1] {
        assert!(open(&bytes[..cut]).is_err(), "cut to {cut}");
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(open(&longer).is_err());
    let twice = [bytes.as_slice(), &bytes[3 * STORED..]].concat();
    assert!(open(&twice).is_err());
    let behind = [stored(&plain(BLOCK)), stored(&plain(BLOCK))].concat();
    assert_eq!(open(&behind), Err(EncryptionError::Foreign(1)));
    let swapped = [&bytes[STORED..2 * STORED], &bytes[..STORED], &bytes[2 * STORED..]].concat();
    assert!(matches!(open(&swapped), Err(EncryptionError::Unopened { block: 0, .. })));
    let without = [&bytes[..STORED], &bytes[2 * STORED..]].concat();
    assert!(matches!(open(&without), Err(EncryptionError::Unopened { block: 1, .. })));
    // The same place in another version of the same object.
    let mut other = content.clone();
    other[0] ^= 1;
    let mixed = [&bytes[..STORED], &stored(&other)[STORED..]].concat();
    assert_eq!(open(&mixed), Err(EncryptionError::Foreign(1)));
}

#[test]
fn another_name_another_key_and_another_generation_do_not_open_it() {
    let bytes = stored(b"content");
    assert!(open_blocks(&key(1), "main/7-1/lineage.json", 0, &bytes).is_err());
    assert!(open_blocks(&key(2), NAME, 0, &bytes).is_err());
    assert!(open_blocks(&key(1), NAME, 1, &bytes).is_err());
    let mut renamed = bytes;
    renamed[8] = 2;
    assert!(open_blocks(&key(1), NAME, 0, &renamed).is_err());
}

#[test]
fn a_key_shows_in_no_output() {
    assert_eq!(format!("{:?}", key(0x41)), "DataKey(***)");
}

proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(200))]

    #[test]
    fn every_range_is_read_from_its_blocks_alone(len in 1usize..4 * BLOCK, a in any::<u64>(), b in any::<u64>()) {
        let content = plain(len);
        let bytes = stored(&content);
        let (a, b) = (a % len as u64, b % (len as u64 + 2 * PLAIN_BLOCK));
        let range = a.min(b)..a.max(b) + 1;
        let blocks = BlockRange::of(&range);
        let clamp = |at: u64| usize::try_from(at).unwrap().min(bytes.len());
        let part = &bytes[clamp(blocks.stored.start)..clamp(blocks.stored.end)];
        let opened = open_blocks(&key(1), NAME, blocks.first, part).unwrap();
        let cut_short = (part.len() as u64) < blocks.stored.end - blocks.stored.start;
        prop_assert!(opened.is_end || !cut_short);
        let skip = usize::try_from(blocks.skip).unwrap();
        let wanted = usize::try_from(range.end - range.start).unwrap();
        let start = usize::try_from(range.start).unwrap();
        let found: Vec<u8> = opened.plain.into_iter().skip(skip).take(wanted).collect();
        prop_assert_eq!(found, &content[start..(start + wanted).min(len)]);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), first in any::<u64>()) {
        let mut near = stored(b"x");
        near.truncate(20);
        near.extend_from_slice(&bytes);
        for bytes in [near, bytes] {
            prop_assert!(open_blocks(&key(1), NAME, first, &bytes).is_err());
        }
    }
}
