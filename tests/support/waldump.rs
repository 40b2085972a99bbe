//! PostgreSQL's own reading of WAL: the output of pg_waldump, as data.

use std::path::Path;

use wal::{Lsn, TimelineId};

use super::pg::{as_server_user, bin_dir};

/// One record, in pg_waldump's words.
#[derive(Clone, Debug)]
pub struct Dumped {
    pub resource_manager: String,
    pub length: u32,
    pub xid: u32,
    pub lsn: Lsn,
    pub previous: Lsn,
    /// What stands behind `desc: `.
    pub description: String,
}

/// What pg_waldump says of a directory of segments.
#[derive(Debug)]
pub struct Dump {
    pub records: Vec<Dumped>,
    /// Where valid WAL ends.
    pub end: Lsn,
}

/// Dumps from `start` on to the end of what is valid.
pub fn dump(major: u32, dir: &Path, timeline: TimelineId, start: Lsn) -> Dump {
    let output = as_server_user(bin_dir(major).join("pg_waldump"))
        .env("TZ", "UTC")
        .arg("-p")
        .arg(dir)
        .args(["-t", &timeline.to_string(), "-s", &start.to_string()])
        .output()
        .unwrap();
    parse(&output.stdout, &output.stderr)
}

/// Reads the output of pg_waldump; the end is where its last message says that a record is not valid.
pub fn parse(stdout: &[u8], stderr: &[u8]) -> Dump {
    let text = String::from_utf8_lossy(stdout);
    let records = text.lines().filter(|line| line.starts_with("rmgr: ")).map(parse_line).collect();
    let message = String::from_utf8_lossy(stderr);
    let end = message
        .split(" at ")
        .skip(1)
        .filter_map(|rest| rest.split([':', ' ', ',']).next()?.parse().ok())
        .last()
        .unwrap_or_else(|| panic!("pg_waldump does not say where WAL ends: {message}"));
    Dump { records, end }
}

fn parse_line(line: &str) -> Dumped {
    let between = |from: &str, to: &str| {
        let start = line.find(from).unwrap_or_else(|| panic!("{line}")) + from.len();
        let rest = &line[start..];
        rest[..rest.find(to).unwrap_or_else(|| panic!("{line}"))].trim().to_owned()
    };
    let lengths = between("len (rec/tot): ", ", tx:");
    Dumped {
        resource_manager: between("rmgr: ", "len (rec/tot)"),
        length: lengths.split('/').nth(1).unwrap().trim().parse().unwrap(),
        xid: between("tx: ", ", lsn:").parse().unwrap(),
        lsn: between("lsn: ", ", prev ").parse().unwrap(),
        previous: between(", prev ", ", desc:").parse().unwrap(),
        description: line[line.find("desc: ").unwrap() + "desc: ".len()..].trim_end().to_owned(),
    }
}

/// The time in the description of a PREPARE record.
pub fn prepared_at(description: &str) -> String {
    description
        .split(": ")
        .chain(description.split("; "))
        .find(|part| part.len() > 19 && part.as_bytes()[4] == b'-' && part.as_bytes()[7] == b'-')
        .unwrap_or_else(|| panic!("no time in {description}"))
        .to_owned()
}
