use std::fs;
use std::io::Read;

use super::{SpoolView, Viewed};
use crate::repository::test_wal::{SIZE, SYSTEM, WalWriter, name, segment_size};
use crate::spool::SpoolError;

struct Fixture {
    dir: tempfile::TempDir,
    wal: WalWriter,
}

impl Fixture {
    /// Segment 5 whole, 6 begun.
    fn new() -> Self {
        let mut wal = WalWriter::new(1, 5);
        wal.commit(7, 1_000_000);
        wal.fill_segment();
        for xid in 8..40 {
            wal.noop(3001);
            wal.commit(xid, 2_000_000);
        }
        let fixture = Self { dir: tempfile::tempdir().unwrap(), wal };
        let whole = SIZE as usize;
        fixture.write("000000010000000000000005", &fixture.wal.bytes[..whole]);
        fixture.write_part(6, &fixture.wal.bytes[whole..]);
        fixture
    }

    fn write(&self, file: &str, bytes: &[u8]) {
        fs::write(self.dir.path().join(file), bytes).unwrap();
    }

    fn write_part(&self, number: u64, bytes: &[u8]) {
        let mut padded = bytes.to_vec();
        padded.resize(SIZE as usize, 0);
        self.write(&format!("{}.partial", name(1, number)), &padded);
    }

    fn remove(&self, file: &str) {
        fs::remove_file(self.dir.path().join(file)).unwrap();
    }

    fn view(&self) -> SpoolView {
        SpoolView::new(self.dir.path(), segment_size(), SYSTEM)
    }

    fn part(&self, number: u64) -> Option<Vec<u8>> {
        let Viewed { file, durable_bytes, whole } = self.view().segment(name(1, number)).unwrap()?;
        assert!(!whole);
        let mut bytes = Vec::new();
        file.take(durable_bytes).read_to_end(&mut bytes).unwrap();
        Some(bytes)
    }
}

#[test]
fn a_whole_segment_is_found_and_a_damaged_one_is_not() {
    let fixture = Fixture::new();
    let found = fixture.view().segment(name(1, 5)).unwrap().unwrap();
    assert!(found.whole && found.durable_bytes == SIZE);
    assert!(fixture.view().segment(name(1, 4)).unwrap().is_none());
    assert!(fixture.view().segment(name(2, 5)).unwrap().is_none());
    let right = fixture.wal.bytes[..SIZE as usize].to_vec();
    let mut flipped = right.clone();
    flipped[60_000] ^= 1;
    for wrong in [&flipped[..], &right[..100_000], &fixture.wal.bytes[SIZE as usize..]] {
        fixture.write("000000010000000000000005", wrong);
        let error = fixture.view().segment(name(1, 5)).unwrap_err();
        assert!(matches!(error, SpoolError::Damaged { .. }), "{error}");
    }
}

#[test]
fn of_a_segment_that_is_being_written_exactly_the_valid_records_are_served() {
    let fixture = Fixture::new();
    let written = &fixture.wal.bytes[SIZE as usize..];
    let served = fixture.part(6).unwrap();
    // Up to seven bytes that align the next record are zeros in any case.
    assert!(written.starts_with(&served) && written.len() - served.len() < 8, "{} {}", served.len(), written.len());
    // Torn in the last record, and garbage after it.
    let mut torn = written[..written.len() - 20].to_vec();
    torn.extend_from_slice(&[0xAB; 5000]);
    fixture.write_part(6, &torn);
    let served = fixture.part(6).unwrap();
    assert!(written.starts_with(&served) && served.len() < written.len() - 20);
    fixture.write_part(6, &[]);
    assert_eq!(fixture.part(6), None, "a spare");
    fixture.write("000000010000000000000006.partial", b"short");
    assert_eq!(fixture.part(6), None);
}

#[test]
fn what_comes_later_is_seen_and_a_spare_is_not_taken_for_it() {
    let fixture = Fixture::new();
    let has_later = |number| fixture.view().has_later(name(1, number)).unwrap();
    assert!(has_later(3) && has_later(4));
    assert!(!has_later(5), "it is whole: the part after it is no hole");
    assert!(!has_later(6));
    fixture.write_part(7, &[]);
    assert!(!has_later(6), "a spare");
    fixture.write_part(7, &fixture.wal.bytes[SIZE as usize..]);
    assert!(!has_later(6), "6 only waits for its last flush");
    fixture.remove("000000010000000000000006.partial");
    assert!(has_later(6), "nothing of 6 is there");
    fixture.remove("000000010000000000000005");
    assert!(has_later(5));
    assert!(!fixture.view().has_later(name(2, 5)).unwrap(), "of another timeline");
}
