//! Writes WAL as PostgreSQL does (xloginsert.c, xlog.c), for tests.

use crate::reader::page::{LONG_HEADER, SHORT_HEADER};
use crate::{Lsn, PgMajor, PgTime, SegmentNumber, SegmentSize, SystemIdentifier, TimelineId};

/// Something to write.
#[derive(Clone, Debug)]
pub(crate) enum Piece {
    /// A commit record.
    Commit(u32, PgTime),
    /// A record that does not matter, with so many bytes of data.
    Filler(usize),
    /// A switch to the next segment.
    Switch,
}

#[derive(Clone)]
pub(crate) struct Builder {
    major: PgMajor,
    system_identifier: SystemIdentifier,
    segment_size: SegmentSize,
    block_size: usize,
    timeline: TimelineId,
    start: Lsn,
    previous: Lsn,
    bytes: Vec<u8>,
    /// Which bytes a checksum or a page check covers.
    covered: Vec<bool>,
    overwriting: bool,
}

impl Builder {
    pub(crate) fn new(major: PgMajor, system: SystemIdentifier, segment_size: SegmentSize, start: Lsn) -> Self {
        Self {
            major,
            system_identifier: system,
            segment_size,
            block_size: 8192,
            timeline: TimelineId::FIRST,
            start,
            previous: Lsn::new(start.as_u64() - 8192 + 24),
            bytes: Vec::new(),
            covered: Vec::new(),
            overwriting: false,
        }
    }

    pub(crate) fn with_block_size(mut self, block_size: u32) -> Self {
        self.block_size = block_size as usize;
        self
    }

    pub(crate) fn turn_to(&mut self, timeline: TimelineId) {
        self.timeline = timeline;
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.bytes.clone()
    }

    /// First byte after the last record's padding.
    pub(crate) fn position(&self) -> Lsn {
        self.start.saturating_add(self.bytes.len() as u64)
    }

    /// Whether damage to this byte must be found: not so for padding and the empty rest of a segment.
    pub(crate) fn is_covered(&self, at: usize) -> bool {
        self.covered[at]
    }

    pub(crate) fn piece(&mut self, piece: &Piece) -> Lsn {
        match *piece {
            Piece::Commit(xid, time) => self.commit(xid, time),
            Piece::Filler(length) => self.filler(length),
            Piece::Switch => self.switch(),
        }
    }

    pub(crate) fn commit(&mut self, xid: u32, time: PgTime) -> Lsn {
        self.xact(0, xid, &time.as_micros().to_le_bytes())
    }

    pub(crate) fn xact(&mut self, info: u8, xid: u32, data: &[u8]) -> Lsn {
        self.record(1, info, xid, data)
    }

    /// A record of the heap.
    pub(crate) fn filler(&mut self, length: usize) -> Lsn {
        let data: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
        self.record(10, 0, 1, &data)
    }

    pub(crate) fn switch(&mut self) -> Lsn {
        let lsn = self.raw(0, 0x40, 0, &[]);
        let end = SegmentNumber::containing_end(self.position(), self.segment_size).end(self.segment_size);
        self.put_uncovered(end.bytes_since(self.position()) as usize);
        lsn
    }

    /// A record with a data header of the short or the long form.
    pub(crate) fn record(&mut self, resource_manager: u8, info: u8, xid: u32, data: &[u8]) -> Lsn {
        let mut body = match u8::try_from(data.len()) {
            Ok(length) => vec![255, length],
            Err(_) => [&[254][..], &(data.len() as u32).to_le_bytes()].concat(),
        };
        // Every other long record comes with an origin and a top-level transaction before the data's header.
        if data.len() % 2 == 1 {
            body.splice(0..0, [253, 1, 0, 252, 1, 2, 3, 4]);
        }
        body.extend(data);
        self.raw(resource_manager, info, xid, &body)
    }

    /// The record that replaces one that was cut.
    pub(crate) fn overwrite(&mut self, data: &[u8]) -> Lsn {
        self.overwriting = true;
        self.record(0, 0xD0, 0, data)
    }

    /// Forgets everything but the first pages, as if the rest had never arrived.
    pub(crate) fn cut_to_pages(&mut self, pages: usize) {
        self.bytes.truncate(pages * self.block_size);
        self.covered.truncate(pages * self.block_size);
        self.previous = self.start.saturating_add(40);
    }

    /// Only a header, with this length and without a right checksum.
    pub(crate) fn raw_header(&mut self, length: u32, resource_manager: u8, previous: Option<Lsn>) {
        self.begin_page_if_due(0);
        let header = header(length, 0, previous.unwrap_or(self.previous), 0, resource_manager);
        self.put(&header);
    }

    fn raw(&mut self, resource_manager: u8, info: u8, xid: u32, body: &[u8]) -> Lsn {
        self.begin_page_if_due(0);
        let lsn = self.position();
        let length = (24 + body.len()) as u32;
        let mut record = header(length, xid, self.previous, info, resource_manager).to_vec();
        let crc = crc32c::crc32c_append(crc32c::crc32c(body), &record[..20]);
        record[20..24].copy_from_slice(&crc.to_le_bytes());
        record.extend(body);
        let mut rest = &record[..];
        while !rest.is_empty() {
            self.begin_page_if_due(rest.len());
            let room = self.block_size - self.bytes.len() % self.block_size;
            let (now, later) = rest.split_at(room.min(rest.len()));
            self.put(now);
            rest = later;
        }
        self.put_uncovered(self.bytes.len().wrapping_neg() % 8);
        self.previous = lsn;
        lsn
    }

    /// Writes a page header where a page begins; `remaining` bytes of a record are still to come.
    fn begin_page_if_due(&mut self, remaining: usize) {
        if !self.bytes.len().is_multiple_of(self.block_size) {
            return;
        }
        let address = self.position();
        let long = address.as_u64().is_multiple_of(self.segment_size.bytes());
        let flags = u16::from(remaining > 0) | (u16::from(long) << 1) | (u16::from(self.overwriting) << 3);
        self.overwriting = false;
        let mut header = Vec::with_capacity(LONG_HEADER);
        header.extend(self.major.page_magic().to_le_bytes());
        header.extend(flags.to_le_bytes());
        header.extend(self.timeline.get().to_le_bytes());
        header.extend(address.as_u64().to_le_bytes());
        header.extend((remaining as u32).to_le_bytes());
        header.resize(SHORT_HEADER, 0);
        if long {
            header.extend(self.system_identifier.get().to_le_bytes());
            header.extend((self.segment_size.bytes() as u32).to_le_bytes());
            header.extend((self.block_size as u32).to_le_bytes());
        }
        self.put_header(&header, remaining > 0);
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        self.covered.resize(self.bytes.len(), true);
    }

    /// A page header is checked, but for what a higher timeline, a removable block or the padding may say.
    fn put_header(&mut self, header: &[u8], continues: bool) {
        for (at, &byte) in header.iter().enumerate() {
            self.bytes.push(byte);
            let checked = matches!(at, 0..2 | 8..16) || continues && (16..20).contains(&at);
            self.covered.push(checked || at >= 24 && self.bytes.len() > LONG_HEADER);
        }
    }

    fn put_uncovered(&mut self, length: usize) {
        self.bytes.resize(self.bytes.len() + length, 0);
        self.covered.resize(self.bytes.len(), false);
    }
}

fn header(length: u32, xid: u32, previous: Lsn, info: u8, resource_manager: u8) -> [u8; 24] {
    let mut header = [0; 24];
    header[..4].copy_from_slice(&length.to_le_bytes());
    header[4..8].copy_from_slice(&xid.to_le_bytes());
    header[8..16].copy_from_slice(&previous.as_u64().to_le_bytes());
    header[16] = info;
    header[17] = resource_manager;
    header
}
