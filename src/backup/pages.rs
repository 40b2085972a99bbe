//! Page checksums (`checksum_impl.h`, `bufpage.h`), verified while a backup passes by. Advisory: nothing fails for them.

use recovery::DataPath;
use wal::Lsn;

/// How many sums are computed side by side (`N_SUMS`).
const SUMS: usize = 32;
const ROW: usize = SUMS * 4;
const FNV_PRIME: u32 = 16_777_619;

/// `checksumBaseOffsets`.
const BASE_OFFSETS: [u32; SUMS] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// What the verification needs to know of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PageFacts {
    /// Bytes of a page.
    block_size: u32,
    /// Pages in one file of a relation (`RELSEG_SIZE`).
    segment_blocks: u32,
}

impl PageFacts {
    /// Checks what the server said: `block_size` in bytes, `segment_size` in bytes.
    pub(super) fn new(block_size: u64, segment_size: u64) -> Option<Self> {
        let block_size = u32::try_from(block_size).ok()?;
        let possible = block_size.is_power_of_two() && (1 << 10..=1 << 15).contains(&block_size);
        let segment_blocks = u32::try_from(segment_size.checked_div(u64::from(block_size))?).ok()?;
        (possible && segment_blocks > 0).then_some(Self { block_size, segment_blocks })
    }

    /// Bytes of a page.
    pub(super) const fn block_size(self) -> u32 {
        self.block_size
    }

    /// Pages in one file of a relation.
    pub(super) const fn segment_blocks(self) -> u32 {
        self.segment_blocks
    }

    /// The number of the page at `position` in a file that is number `segment` of its relation.
    fn block(self, segment: u32, position: u64) -> u32 {
        let block = u32::try_from(position / u64::from(self.block_size)).unwrap_or(u32::MAX);
        segment.wrapping_mul(self.segment_blocks).wrapping_add(block)
    }

    /// How many pages in `bytes`, which lie at `position` of a file that is number `segment` of its relation, do not have
    /// the checksum that they say.
    ///
    /// Not judged, as in the server's own verification: new pages; and pages written after the backup began (`start`),
    /// which may have been caught half written and will be replaced from WAL.
    pub(super) fn damaged_pages(self, bytes: &[u8], segment: u32, position: u64, start: Lsn) -> u64 {
        let first = self.block(segment, position);
        let pages = bytes.chunks_exact(self.block_size as usize);
        let damaged = (0_u32..).zip(pages).filter(|(at, page)| is_damaged(page, first.wrapping_add(*at), start));
        damaged.count() as u64
    }
}

fn is_damaged(page: &[u8], block: u32, start: Lsn) -> bool {
    let Some(&[x0, x1, x2, x3, l0, l1, l2, l3, c0, c1, _, _, _, _, u0, u1]) = page.first_chunk::<16>() else {
        return false;
    };
    let is_new = u16::from_le_bytes([u0, u1]) == 0;
    let high = u32::from_le_bytes([x0, x1, x2, x3]);
    let low = u32::from_le_bytes([l0, l1, l2, l3]);
    let written_at = Lsn::new(u64::from(high) << 32 | u64::from(low));
    !is_new && written_at < start && page_checksum(page, block) != u16::from_le_bytes([c0, c1])
}

/// `pg_checksum_page`: over the page with its checksum field taken for zero, and the page's number.
fn page_checksum(page: &[u8], block: u32) -> u16 {
    let mut sums = BASE_OFFSETS;
    let mut mix = |row: &[u8], first: bool| {
        for (at, (sum, word)) in sums.iter_mut().zip(row.chunks_exact(4)).enumerate() {
            let mut value = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            if first && at == 2 {
                // Bytes 8 and 9 are the checksum itself.
                value &= 0xFFFF_0000;
            }
            let mixed = *sum ^ value;
            *sum = mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17);
        }
    };
    for (at, row) in page.chunks_exact(ROW).enumerate() {
        mix(row, at == 0);
    }
    for _ in 0..2 {
        mix(&[0; ROW], false);
    }
    let folded = sums.iter().fold(0, |folded, sum| folded ^ sum) ^ block;
    // One to 65535: zero means that there is none.
    u16::try_from(folded % 65_535 + 1).expect("at most 65535")
}

/// Which file of its relation this is, when it is one of a relation and its pages have checksums
/// (`is_checksummed_file` in basebackup.c; `parse_filename_for_nontemp_relation` in reinit.c).
pub(super) fn relation_segment(path: &DataPath) -> Option<u32> {
    let is_number = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let components: Vec<&[u8]> = path.components().take(6).collect();
    let name = match components.as_slice() {
        [b"global", name] => name,
        [b"base", database, name] if is_number(database) => name,
        [b"pg_tblspc", oid, _, database, name] if is_number(oid) && is_number(database) => name,
        _ => return None,
    };
    let (name, segment) = match name.iter().position(|&byte| byte == b'.') {
        Some(dot) if is_number(&name[dot + 1..]) => {
            (&name[..dot], std::str::from_utf8(&name[dot + 1..]).ok()?.parse().ok()?)
        }
        Some(_) => return None,
        None => (*name, 0),
    };
    let number = [&b"_fsm"[..], b"_vm", b"_init"].iter().find_map(|fork| name.strip_suffix(*fork)).unwrap_or(name);
    is_number(number).then_some(segment)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const FACTS: PageFacts = PageFacts { block_size: 8192, segment_blocks: 131_072 };
    const START: Lsn = Lsn::new(0x200_0000);

    pub(in crate::backup) fn page(block: u32, lsn: u32) -> Vec<u8> {
        let mut page: Vec<u8> = (0..8192_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        page[..4].fill(0);
        page[4..8].copy_from_slice(&lsn.to_le_bytes());
        page[14..16].copy_from_slice(&8000_u16.to_le_bytes());
        let checksum = page_checksum(&page, block);
        page[8..10].copy_from_slice(&checksum.to_le_bytes());
        page
    }

    #[test]
    fn a_changed_bit_or_another_place_is_damage() {
        let good = page(131_072 + 3, 0x100_0000);
        let damaged = |bytes: &[u8], position| FACTS.damaged_pages(bytes, 1, position, START);
        assert_eq!(damaged(&good, 3 * 8192), 0);
        assert_eq!(damaged(&good, 4 * 8192), 1);
        for at in [0, 5, 8, 9, 10, 100, 8191] {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            let newer = at == 0;
            assert_eq!(damaged(&bad, 3 * 8192), u64::from(!newer), "byte {at}");
        }
    }

    #[test]
    fn new_pages_newer_pages_and_incomplete_pages_are_not_judged() {
        let damaged = |bytes: &[u8]| FACTS.damaged_pages(bytes, 0, 0, START);
        assert_eq!(damaged(&[0; 8192]), 0);
        let mut torn = page(0, 0x200_0000);
        torn[5000] ^= 1;
        assert_eq!(damaged(&torn), 0);
        let mut short = page(0, 0x100_0000);
        short[5000] ^= 1;
        assert_eq!(damaged(&short[..8000]), 0);
        assert_eq!(damaged(&short), 1);
        assert_eq!(damaged(&[page(0, 1), short, page(2, 1)].concat()), 1);
    }

    #[test]
    fn only_files_of_relations_have_page_checksums() {
        let cases: [(&str, Option<u32>); 16] = [
            ("base/5/1259", Some(0)),
            ("base/5/1259_fsm", Some(0)),
            ("base/5/1259_vm.2", Some(2)),
            ("base/5/1259.17", Some(17)),
            ("base/5/16385_init", Some(0)),
            ("global/1262", Some(0)),
            ("pg_tblspc/16384/PG_15_202209061/5/16390.1", Some(1)),
            ("global/pg_control", None),
            ("global/pg_filenode.map", None),
            ("base/5/PG_VERSION", None),
            ("base/5/pg_internal.init", None),
            ("base/5/1259.x", None),
            ("base/5/1259.", None),
            ("base/5/t3_1259", None),
            ("pg_xact/0000", None),
            ("base/pgsql_tmp/1259", None),
        ];
        for (path, segment) in cases {
            assert_eq!(relation_segment(&DataPath::new(path.as_bytes()).unwrap()), segment, "{path}");
        }
    }
}
