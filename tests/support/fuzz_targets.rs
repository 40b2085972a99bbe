//! Readers of bytes from outside, as functions that must not panic whatever the bytes are.
//!
//! This file is shared: the suite runs every target for a moment (tests/fuzz_short.rs), `cargo fuzz` for as long as one
//! likes (fuzz/). To add a target, write its function here or beside the reader, list it in [`TARGETS`] with real bytes to
//! start from, and add a file of three lines in fuzz/fuzz_targets/ with a `[[bin]]` in fuzz/Cargo.toml.

use chrono::FixedOffset;
use pgvault::codec::envelope;
use pgvault::primary::Conninfo;
use pgvault::repository::layout;
use recovery::time_text::{self, LocalZone};
use recovery::{BackupId, LineageId};
use wal::{
    Lsn, PgMajor, PgTime, SegmentName, SegmentNumber, SegmentSize, SystemIdentifier, TimelineHistory, TimelineId,
    TimelinePath, WalEvent, WalReader, XactIndex, read_segment_header,
};

/// A reader under attack.
pub struct Target {
    /// Its name, also of the file in fuzz/fuzz_targets.
    pub name: &'static str,
    /// Reads the bytes; panics only on a defect.
    pub run: fn(&[u8]),
    /// Bytes to start from.
    pub corpus: fn() -> Vec<Vec<u8>>,
}

/// Every reader of bytes from outside.
pub const TARGETS: &[Target] = &[
    Target { name: "wal_pages", run: wal_pages, corpus: made_wal },
    Target { name: "wal_records", run: wal_records, corpus: record_bodies },
    Target { name: "timeline_history", run: timeline_history, corpus: histories },
    Target { name: "names", run: names, corpus: texts },
    Target { name: "object_header", run: object_header, corpus: object_headers },
    Target { name: "stream_message", run: pgvault::primary::fuzz::stream_message, corpus: stream_messages },
    Target { name: "frames", run: pgvault::primary::fuzz::frames, corpus: frames },
    Target { name: "conninfo", run: conninfo, corpus: conninfos },
    Target { name: "tar", run: pgvault::backup::tar::fuzz_tar, corpus: tars },
    Target { name: "pg_manifest", run: recovery::pg_manifest::fuzz_pg_manifest, corpus: pg_manifests },
    Target { name: "file_table", run: pgvault::repository::file_table::fuzz_part, corpus: file_tables },
    Target { name: "manifest", run: pgvault::repository::manifest::fuzz_manifest, corpus: manifests },
    Target { name: "patroni", run: patroni, corpus: patroni_answers },
    Target { name: "pack_toc", run: pgvault::repository::pack::fuzz_toc, corpus: pack_tocs },
    Target { name: "incremental_file", run: pgvault::backup::fuzz_incremental, corpus: incremental_files },
];

/// Runs the target of this name: what the files of fuzz/fuzz_targets do.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of this name");
    (target.run)(bytes);
}

/// What Patroni's REST API answers.
pub fn patroni(bytes: &[u8]) {
    if let Ok(topology) = pgvault::patroni::read(bytes) {
        let named = topology.members.iter().map(|member| member.slot_name());
        assert!(named.into_iter().all(|slot| slot.len() <= 63));
    }
    if let Ok(rules) = pgvault::patroni::read_slot_rules(bytes) {
        rules.owner_of("pgvault");
    }
}

fn patroni_answers() -> Vec<Vec<u8>> {
    let cluster = r#"{"members":[{"name":"pg-1","role":"leader","state":"running","host":"127.0.0.1","port":5432,"timeline":2},
        {"name":"pg2","role":"replica","state":"streaming","host":"::1","port":5433,"lag":0}],"pause":true,"scope":"main"}"#;
    let config =
        r#"{"ttl":20,"slots":{"pgvault":{"type":"physical"}},"ignore_slots":[{"name":"pgvault","type":"physical"}]}"#;
    vec![cluster.into(), config.into()]
}

/// Segments that are as small as PostgreSQL allows.
fn segment_size() -> SegmentSize {
    SegmentSize::new(1 << 20).expect("1 MiB is a segment size")
}

/// WAL, from wherever it says that it starts: told the same whole and in pieces.
pub fn wal_pages(bytes: &[u8]) {
    let header = read_segment_header(bytes);
    let (size, start) = match &header {
        Ok(header) => (header.segment_size, header.page_address),
        Err(_) => (segment_size(), SegmentNumber::new(1).start(segment_size())),
    };
    let mut whole = Vec::new();
    let mut reader = WalReader::new(size, start).with_all_records();
    let result = reader.push(bytes, &mut |event| whole.push(event));
    assert!(reader.valid_end() <= reader.position());
    assert!(whole.windows(2).all(|pair| pair[0].lsn() <= pair[1].lsn()));
    assert!(whole.iter().all(|event| event.lsn() < event.end()));

    let piece = 1 + bytes.first().copied().map_or(0, usize::from) * 37;
    let mut pieces = Vec::new();
    let mut piecewise = WalReader::new(size, start).with_all_records();
    let split = bytes.chunks(piece).try_for_each(|now| piecewise.push(now, &mut |event| pieces.push(event)));
    assert_eq!(split, result);
    assert_eq!(pieces, whole);
    assert_eq!((piecewise.valid_end(), piecewise.end()), (reader.valid_end(), reader.end()));
    index(&whole);
}

/// Bodies of records behind headers that are right: the first byte chooses the version, then one byte `xl_info`, one byte
/// resource manager, two bytes of length and the body, again and again.
pub fn wal_records(bytes: &[u8]) {
    let Some((&version, mut rest)) = bytes.split_first() else { return };
    let major = PgMajor::ALL[usize::from(version) % PgMajor::ALL.len()];
    let start = SegmentNumber::new(1).start(segment_size());
    let mut wal = MadeWal::new(major, start);
    while let [info, resource_manager, low, high, body @ ..] = rest {
        let length = usize::from(u16::from_le_bytes([*low, *high]) % 4096).min(body.len());
        let (body, later) = body.split_at(length);
        wal.record(*info, resource_manager % 4, body);
        rest = later;
    }
    wal_pages(&wal.bytes);
}

/// What an index says of events must survive being stored.
fn index(events: &[WalEvent]) {
    let mut index = XactIndex::start(None);
    for event in events {
        index.record(event);
    }
    let text = serde_json::to_string(&index).expect("an index is always JSON");
    let read: XactIndex = serde_json::from_str(&text).expect("what was written is read");
    assert_eq!(serde_json::to_string(&read).expect("an index is always JSON"), text);
}

/// A timeline history file.
pub fn timeline_history(bytes: &[u8]) {
    let timeline = TimelineId::new(40).expect("not zero");
    let Ok(history) = TimelineHistory::parse(timeline, bytes) else { return };
    let again = TimelineHistory::parse(timeline, history.to_text().as_bytes()).expect("what was written is read");
    assert!(again.is_continuation_of(&history, Lsn::new(u64::MAX)));
    let path = TimelinePath::new(&history, segment_size());
    for (ancestor, left) in history.reigns() {
        assert_eq!(history.switch_point_of(ancestor), Some(left));
        let on = history.timeline_at(left);
        assert!(on > ancestor && path.timeline_at(left) >= on);
    }
    assert_eq!(path.legs(Lsn::INVALID, Lsn::new(u64::MAX)).last().map(|leg| leg.timeline), Some(timeline));
}

/// Everything that is read from a short text.
pub fn names(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(name) = text.parse::<SegmentName>() {
        assert_eq!(name.to_string(), text);
    }
    if let Ok(lsn) = text.parse::<Lsn>() {
        assert_eq!(lsn.to_string().parse(), Ok(lsn));
    }
    if let Ok(timeline) = TimelineId::from_hex(text) {
        assert_eq!(timeline.hex(), text);
    }
    if let Ok(time) = text.parse::<PgTime>() {
        assert_eq!(time.to_string().parse(), Ok(time));
    }
    if let Ok(backup) = text.parse::<BackupId>() {
        assert_eq!(backup.to_string(), text);
    }
    if let Ok(lineage) = text.parse::<LineageId>() {
        assert_eq!(lineage.to_string(), text);
    }
    let utc = LocalZone { name: "UTC".to_owned(), offset: FixedOffset::east_opt(0).expect("zero is an offset") };
    drop(time_text::parse(text, PgTime::from_micros(0), &utc));
    drop(SegmentSize::from_setting(text));
    drop(text.parse::<TimelineId>());
    drop(text.parse::<SystemIdentifier>());
    drop(layout::ObjectName::parse(text));
    drop(serde_json::from_str::<XactIndex>(text));
}

/// The header before a stored piece of WAL.
pub fn object_header(bytes: &[u8]) {
    drop(envelope::parse(bytes));
    // Behind the checksum lies the JSON: reach it as well.
    if let Ok(header) = envelope::write(bytes) {
        assert!(matches!(envelope::parse(&header), Ok(envelope::Parsed::Whole { json, .. }) if json == bytes));
    }
}

/// A connection string.
pub fn conninfo(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    drop(Conninfo::parse(text, &pgvault::primary::Environment::default()));
}

/// WAL on pages with right headers and checksums.
struct MadeWal {
    major: PgMajor,
    start: Lsn,
    previous: u64,
    bytes: Vec<u8>,
}

impl MadeWal {
    fn new(major: PgMajor, start: Lsn) -> Self {
        Self { major, start, previous: start.as_u64() - 8192, bytes: Vec::new() }
    }

    fn record(&mut self, info: u8, resource_manager: u8, body: &[u8]) {
        self.page_header_if_due(0);
        let lsn = self.start.as_u64() + self.bytes.len() as u64;
        let mut record = Vec::with_capacity(24 + body.len());
        record.extend(u32::try_from(24 + body.len()).expect("short").to_le_bytes());
        record.extend(700_u32.to_le_bytes());
        record.extend(self.previous.to_le_bytes());
        record.extend([info, resource_manager, 0, 0]);
        let crc = crc32c::crc32c_append(crc32c::crc32c(body), &record);
        record.extend(crc.to_le_bytes());
        record.extend(body);
        let mut rest = &record[..];
        while !rest.is_empty() {
            self.page_header_if_due(u32::try_from(rest.len()).expect("short"));
            let (now, later) = rest.split_at(rest.len().min(8192 - self.bytes.len() % 8192));
            self.bytes.extend(now);
            rest = later;
        }
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        self.previous = lsn;
        if resource_manager == 0 && info & 0xF0 == 0x40 {
            self.bytes.resize(self.bytes.len().next_multiple_of(1 << 20), 0);
        }
    }

    fn page_header_if_due(&mut self, remaining: u32) {
        if !self.bytes.len().is_multiple_of(8192) {
            return;
        }
        let address = self.start.as_u64() + self.bytes.len() as u64;
        let long = address.is_multiple_of(1 << 20);
        self.bytes.extend(self.major.page_magic().to_le_bytes());
        self.bytes.extend((u16::from(remaining > 0) | (u16::from(long) << 1)).to_le_bytes());
        self.bytes.extend(1_u32.to_le_bytes());
        self.bytes.extend(address.to_le_bytes());
        self.bytes.extend(remaining.to_le_bytes());
        self.bytes.extend([0; 4]);
        if long {
            self.bytes.extend(42_u64.to_le_bytes());
            self.bytes.extend((1_u32 << 20).to_le_bytes());
            self.bytes.extend(8192_u32.to_le_bytes());
        }
    }
}

fn made_wal() -> Vec<Vec<u8>> {
    let start = SegmentNumber::new(1).start(segment_size());
    let make = |major, records: usize| {
        let mut wal = MadeWal::new(major, start);
        for number in 0..records {
            wal.record(0x10, 10, &vec![7; 13 * number]);
            wal.record(0x00, 1, &[&[255, 8][..], &(number as i64).to_le_bytes()].concat());
        }
        wal.bytes
    };
    vec![make(PgMajor::V14, 3), make(PgMajor::V17, 40), make(PgMajor::V18, 90)]
}

fn record_bodies() -> Vec<Vec<u8>> {
    let time = 1_000_000_i64.to_le_bytes();
    let with_header = |info: u8, resource_manager: u8, data: &[u8]| {
        let length = u16::try_from(data.len() + 2).expect("short").to_le_bytes();
        let header = [info, resource_manager, length[0], length[1], 255, u8::try_from(data.len()).unwrap_or(255)];
        [&header[..], data].concat()
    };
    let flags = 0b1001_1111_u32.to_le_bytes();
    let one = 1_u32.to_le_bytes();
    let lists = [&[7; 8][..], &one, &[1; 4], &one, &[2; 12], &one, &[3; 16], &one, &[4; 4], b"gid\0"].concat();
    let prepared = with_header(0xB0, 1, &[&time[..], &flags, &lists].concat());
    let records = [
        with_header(0x00, 1, &time),
        with_header(0x20, 1, &time),
        prepared,
        with_header(0x10, 1, &[5; 80]),
        with_header(0x70, 0, &[&time[..], b"a restore point", &[0; 49]].concat()),
        with_header(0x10, 0, &[1; 88]),
        with_header(0x60, 0, &[9; 26]),
        with_header(0x90, 0, &[&time[..], &one, &one].concat()),
        with_header(0xD0, 0, &[6; 16]),
        with_header(0x40, 0, &[]),
    ];
    (0..5).map(|version| [&[version][..], &records.concat()].concat()).collect()
}

fn histories() -> Vec<Vec<u8>> {
    [
        "1\t0/4000120\tat restore point \"x\"\n\n2\t0/3000150\tat restore point \"y\"\n",
        "1\t0/1000000\tno recovery target specified\n9\t0/2000000\tb\n16\tA/FFFFFFF8\tc\n",
        "# comment\r\n  3   0/5000000 \t before 2000-01-01 00:00:00+00\r\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}

fn texts() -> Vec<Vec<u8>> {
    [
        "0000000A00000001000000FF",
        "16/B374D848",
        "0000001F",
        "2026-11-20T05:22:36.114000Z",
        "2026-10-25 02:30 Europe/Paris",
        "1h 30min ago",
        "20261119T020512-3f2a",
        "7435692342342342342-1",
        "16MB",
        "main/7435692342342342342-1/wal/00000001/00000000/000000010000000000000001.zst",
        "main/7435692342342342342-1/backups/20261119T020512-3f2a/marks/00001-keep",
        r#"{"first":null,"last":{"time":"2000-01-01T00:00:00.000000Z","lsn":"0/5000148","xid":731},"max_time":null,"commits":0,"xid_min":null,"xid_max":null,"last_commit":null,"restore_points":[]}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}

fn object_headers() -> Vec<Vec<u8>> {
    let header = envelope::write(br#"{"kind":"segment","format":1,"features":[]}"#).expect("short enough");
    vec![header.clone(), [&header[..], &[0x28, 0xB5, 0x2F, 0xFD, 0]].concat()]
}

fn stream_messages() -> Vec<Vec<u8>> {
    let wal = [&b"w"[..], &[0; 24], b"some WAL"].concat();
    let keepalive = [&b"k"[..], &[0; 16], &[1]].concat();
    vec![
        wal,
        keepalive,
        b"nbase.tar\0/tmp\0".to_vec(),
        b"p\0\0\0\0\0\0\0\x09".to_vec(),
        b"dbytes".to_vec(),
        b"m".to_vec(),
    ]
}

fn frames() -> Vec<Vec<u8>> {
    let frame = |kind: u8, body: &[u8]| {
        let length = u32::try_from(body.len() + 4).expect("short").to_be_bytes();
        [&[kind][..], &length, body].concat()
    };
    let row = frame(b'D', &[&[0, 2, 0, 0, 0, 3][..], b"abc", &[0xFF; 4]].concat());
    let error = frame(b'E', b"SERROR\0VERROR\0C58P01\0Mgone\0\0");
    let parameter = frame(b'S', b"server_version\x0017.5\0");
    vec![[&row[..], &error, &parameter, &frame(b'Z', b"I")].concat(), row, error, parameter]
}

fn conninfos() -> Vec<Vec<u8>> {
    [
        "host=127.0.0.1,db2 port=5432,5433 user=postgres password='it\\'s' sslmode=verify-full",
        "postgresql://me:p%40ss@[::1]:5433,other/db?application_name=x&target_session_attrs=read-write",
        "service=main hostaddr=10.0.0.1 connect_timeout=5",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}

fn tars() -> Vec<Vec<u8>> {
    let mut header = [0_u8; 512];
    header[..12].copy_from_slice(b"base/1/12345");
    header[100..108].copy_from_slice(b"0000600\0");
    header[124..136].copy_from_slice(b"00000000005\0");
    header[136..148].copy_from_slice(b"14000000000\0");
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut tar = header.to_vec();
    tar.extend(b"hello");
    tar.resize(1024, 0);
    tar.extend([0; 1024]);
    vec![tar]
}

fn pg_manifests() -> Vec<Vec<u8>> {
    let text = concat!(
        "{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": 7435692342342342342,\n\"Files\": [\n",
        r#"{ "Path": "backup_label", "Size": 225, "Last-Modified": "2026-11-20 08:00:00 GMT", "#,
        r#""Checksum-Algorithm": "CRC32C", "Checksum": "04030201" },"#,
        "\n",
        r#"{ "Encoded-Path": "62c3a4ff", "Size": 0, "Last-Modified": "2026-11-20 08:00:00 GMT" }"#,
        "\n],\n\"WAL-Ranges\": [\n",
        r#"{ "Timeline": 1, "Start-LSN": "0/2000028", "End-LSN": "0/2000100" }"#,
        "\n],\n\"Manifest-Checksum\": \"4be2\"}\n"
    );
    vec![text.as_bytes().to_vec()]
}

fn file_tables() -> Vec<Vec<u8>> {
    let lines = concat!(
        r#"{"path":"base/1","type":"dir","mode":448,"mtime":1}"#,
        "\n",
        r#"{"path":"base/1/2","type":"file","mode":384,"mtime":1,"size":5,"chunks":[[-1,0,0,5,""]],"crc32c":"00000000"}"#,
        "\n",
        r#"{"path":"base/1/3","type":"file","mode":384,"mtime":1,"size":5,"chunks":[[0,1,2,5,"0000000000000000000000000000000000000000000000000000000000000000",{"xor":[0,3,4,5,"0000000000000000000000000000000000000000000000000000000000000000"]}]],"crc32c":"00000000"}"#,
        "\n"
    );
    vec![lines.as_bytes().to_vec()]
}

fn manifests() -> Vec<Vec<u8>> {
    vec![br#"{"kind":"backup","format":1,"features":[],"id":"20261119T020512-3f2a","cluster":"main"}"#.to_vec()]
}

fn incremental_files() -> Vec<Vec<u8>> {
    let file = |blocks: &[u32]| {
        let count = u32::try_from(blocks.len()).expect("few");
        let words = [0xd3ae_1f0d, count, 9].into_iter().chain(blocks.iter().copied());
        let mut bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
        bytes.resize(if blocks.is_empty() { 12 } else { 8192 * (1 + blocks.len()) }, 0);
        bytes
    };
    vec![file(&[]), file(&[7]), b"LABEL: x\nINCREMENTAL FROM LSN: 0/28\n".to_vec()]
}

fn pack_tocs() -> Vec<Vec<u8>> {
    let toc = [
        &b"PGVPACK1"[..],
        &1_u32.to_le_bytes(),
        &0_u32.to_le_bytes(),
        &9_u32.to_le_bytes(),
        &5_u32.to_le_bytes(),
        &[8; 32],
    ]
    .concat();
    let frame_length = u32::try_from(toc.len() + 8).expect("short");
    let frame = [&[0x50, 0x2A, 0x4D, 0x18][..], &frame_length.to_le_bytes(), &toc].concat();
    let whole = u32::try_from(frame.len() + 8).expect("short").to_le_bytes();
    vec![[&[0x28; 9][..], &frame, &whole, b"PGVP"].concat()]
}
