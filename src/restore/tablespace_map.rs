//! `tablespace_map`: where PostgreSQL will make the links of `pg_tblspc` when it starts.

use std::io;
use std::os::unix::ffi::OsStrExt;

use super::places::TablespacePlan;
use super::roots::Roots;

const FILE: &str = "tablespace_map";

/// Writes the new places into `tablespace_map`.
///
/// When PostgreSQL starts from a backup it removes each link in `pg_tblspc` that the map names and makes it anew as the
/// map says (`read_tablespace_map` in xlogrecovery.c, `StartupXLOG`). With the old places in it, a server restored next to
/// the original would write into the original's tablespaces.
pub(super) fn rewrite(roots: &Roots, tablespaces: &[TablespacePlan]) -> io::Result<()> {
    let Some(before) = roots.read(FILE)? else { return Ok(()) };
    let after = rewritten(&before, tablespaces)?;
    if after == before { Ok(()) } else { roots.write(FILE, &mut after.as_slice()) }
}

fn rewritten(map: &[u8], tablespaces: &[TablespacePlan]) -> io::Result<Vec<u8>> {
    let mut text = Vec::with_capacity(map.len());
    for line in lines(map) {
        let oid = line.split(|&b| b == b' ').next().unwrap_or_default();
        let oid = std::str::from_utf8(oid).ok().and_then(|digits| digits.parse::<u32>().ok());
        let Some(tablespace) = tablespaces.iter().find(|tablespace| Some(tablespace.oid) == oid) else {
            let what = format!("tablespace_map names \"{}\", of which the backup knows nothing", line.escape_ascii());
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        };
        // A place that did not move keeps its spelling, and the file its checksum.
        if tablespace.new == tablespace.old {
            text.extend_from_slice(line);
        } else {
            text.extend_from_slice(format!("{} ", tablespace.oid).as_bytes());
            for &byte in tablespace.new.as_os_str().as_bytes() {
                if [b'\n', b'\r', b'\\'].contains(&byte) {
                    text.push(b'\\');
                }
                text.push(byte);
            }
        }
        text.push(b'\n');
    }
    Ok(text)
}

/// The lines of the map; a line end after a backslash belongs to the path.
fn lines(map: &[u8]) -> Vec<&[u8]> {
    let mut lines = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (at, &byte) in map.iter().enumerate() {
        if !escaped && (byte == b'\n' || byte == b'\r') {
            lines.push(&map[start..at]);
            start = at + 1;
        }
        escaped = !escaped && byte == b'\\';
    }
    lines.push(&map[start..]);
    lines.retain(|line| !line.is_empty());
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::directory::{Candidate, Found};
    use std::path::PathBuf;

    fn tablespace(oid: u32, old: &str, new: &str) -> TablespacePlan {
        let path = PathBuf::from(new);
        let candidate = Candidate { path: path.clone(), found: Found::Nothing };
        TablespacePlan { oid, old: PathBuf::from(old), new: path, candidate }
    }

    #[test]
    fn moved_tablespaces_have_their_new_place_in_the_map() {
        let tablespaces = [tablespace(16400, "/srv/a", "/new/a"), tablespace(16401, "/srv/b", "/srv/b")];
        let map = b"16401 /srv/b\n16400 /srv/a\n";
        assert_eq!(rewritten(map, &tablespaces).unwrap(), b"16401 /srv/b\n16400 /new/a\n");
        let odd = [tablespace(16400, "/srv/\n\\a", "/new/\\ \n")];
        assert_eq!(rewritten(b"16400 /srv/\\\n\\\\a\n", &odd).unwrap(), b"16400 /new/\\\\ \\\n\n");
        assert_eq!(rewritten(b"", &tablespaces).unwrap(), b"");
    }

    #[test]
    fn a_map_with_places_that_nobody_decided_about_is_refused() {
        for map in [&b"16402 /etc\n"[..], b"/etc\n", b"16400x /etc\n"] {
            assert!(rewritten(map, &[tablespace(16400, "/a", "/b")]).is_err());
        }
    }
}
