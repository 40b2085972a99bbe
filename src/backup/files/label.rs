//! `backup_label` and `tablespace_map` as `pg_backup_stop` returns them (`build_backup_content` in xlogbackup.c).

use wal::{Lsn, TimelineId};

use crate::repository::manifest::TablespacePath;

/// What a label says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label {
    pub(super) start: Lsn,
    pub(super) timeline: TimelineId,
    pub(super) from_standby: bool,
}

impl Label {
    /// `None` when a line that a server needs is missing.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let value = |key: &str| {
            let line = text.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(key.as_bytes()))?;
            std::str::from_utf8(line).ok()
        };
        Some(Self {
            start: value("START WAL LOCATION: ")?.split(' ').next()?.parse().ok()?,
            timeline: TimelineId::new(value("START TIMELINE: ")?.trim().parse().ok()?)?,
            from_standby: match value("BACKUP FROM: ")?.trim() {
                "standby" => true,
                "primary" => false,
                _ => return None,
            },
        })
    }
}

/// The tablespaces of a map: `<oid> <path>` a line, line ends and backslashes in a path after a backslash.
pub(super) fn tablespaces(map: &[u8]) -> Vec<TablespacePath> {
    let mut found = Vec::new();
    let mut line = Vec::new();
    let mut escaped = false;
    for &byte in map.iter().chain(b"\n") {
        match byte {
            b'\\' if !escaped => escaped = true,
            b'\n' | b'\r' if !escaped => {
                found.extend(of_line(&line));
                line.clear();
            }
            byte => {
                line.push(byte);
                escaped = false;
            }
        }
    }
    found
}

fn of_line(line: &[u8]) -> Option<TablespacePath> {
    let at = line.iter().position(|&byte| byte == b' ')?;
    let oid = std::str::from_utf8(&line[..at]).ok()?.parse().ok()?;
    Some(TablespacePath { oid, path: line[at + 1..].to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: &str = "START WAL LOCATION: 0/5000028 (file 000000030000000000000005)\n\
        CHECKPOINT LOCATION: 0/5000060\nBACKUP METHOD: streamed\nBACKUP FROM: standby\n\
        START TIME: 2026-11-20 14:00:00 UTC\nLABEL: START TIMELINE: 9\nSTART TIMELINE: 3\n";

    #[test]
    fn a_label_is_read() {
        let label = Label::parse(LABEL.as_bytes()).unwrap();
        assert_eq!(label.start, Lsn::new(0x500_0028));
        assert_eq!((label.timeline.get(), label.from_standby), (3, true));
        assert!(!Label::parse(LABEL.replace("standby", "primary").as_bytes()).unwrap().from_standby);
    }

    #[test]
    fn a_label_without_what_a_server_needs_is_none() {
        for line in ["START WAL LOCATION", "BACKUP FROM", "START TIMELINE: 3"] {
            assert_eq!(Label::parse(LABEL.replace(line, "X").as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn a_map_is_read_whatever_its_paths_have_in_them() {
        let found = tablespaces(b"16384 /srv/a b\n16385 /srv/\\\n\\\\x\n");
        let expected = [(16384, &b"/srv/a b"[..]), (16385, b"/srv/\n\\x")];
        assert_eq!(found, expected.map(|(oid, path)| TablespacePath { oid, path: path.to_vec() }));
        assert_eq!(tablespaces(b""), []);
        assert_eq!(tablespaces(b"16384 /x"), [TablespacePath { oid: 16384, path: b"/x".to_vec() }]);
    }
}
