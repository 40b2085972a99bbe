//! Is WAL that was lost known, told, and followed by a backup, whatever became of the slot?

mod claims;
mod holes;
mod ways;
mod whole;

use std::time::Instant;

use wal::{Lsn, SegmentName, SegmentSize, TimelineId};

use crate::support::LIMIT;
use crate::support::pg::PgNode;

const SIZE: u64 = 1 << 20;

/// A server that removes WAL as soon as nothing holds it.
const FORGETFUL: [(&str, &str); 2] = [("min_wal_size", "2MB"), ("max_wal_size", "2MB")];

fn segment(lsn: Lsn) -> SegmentName {
    SegmentName::containing(TimelineId::FIRST, lsn, SegmentSize::new(SIZE).unwrap())
}

fn flush_lsn(node: &PgNode) -> Lsn {
    node.sql("SELECT pg_current_wal_flush_lsn()").parse().unwrap()
}

/// Makes the server write WAL until it has none of the segment at `held` any more.
fn make_forget(node: &PgNode, held: Lsn) {
    let file = node.data.join("pg_wal").join(segment(held).to_string());
    let deadline = Instant::now() + LIMIT;
    while file.exists() {
        assert!(Instant::now() < deadline, "{} is still there", file.display());
        node.sql("SELECT pg_logical_emit_message(false, 'filler', repeat('x', 100000)) FROM generate_series(1, 12)");
        node.sql("SELECT pg_switch_wal()");
        node.sql("CHECKPOINT");
    }
}
