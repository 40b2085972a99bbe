//! Paths inside a data directory.

use std::fmt;

/// Longest path that is accepted; PostgreSQL's own limit (`MAXPGPATH`) is 1024.
const MAX_LEN: usize = 4096;

/// Path of a file or directory relative to the data directory: bytes, not text, with `/` between components.
///
/// It can only lie inside: it is not empty nor absolute and has no NUL and no component that is empty, `.` or `..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DataPath(Box<[u8]>);

/// The bytes are not a path inside a data directory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{}\" cannot lie in a data directory", .0.escape_ascii())]
pub struct InvalidDataPath(Vec<u8>);

impl DataPath {
    /// Checks the bytes.
    pub fn new(bytes: &[u8]) -> Result<Self, InvalidDataPath> {
        let component_ok = |component: &[u8]| !component.is_empty() && component != b"." && component != b"..";
        let fits = bytes.len() <= MAX_LEN && !bytes.contains(&0) && bytes.split(|&b| b == b'/').all(component_ok);
        if fits { Ok(Self(bytes.into())) } else { Err(InvalidDataPath(bytes[..bytes.len().min(200)].to_vec())) }
    }

    /// The bytes as the file system has them.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The path as text, if it is UTF-8.
    pub fn as_utf8(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// Its components, from the outermost on.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|&b| b == b'/')
    }

    /// The last component.
    pub fn file_name(&self) -> &[u8] {
        self.components().next_back().unwrap_or_default()
    }

    /// The path of the directory it lies in; `None` for what lies in the data directory itself.
    pub fn parent(&self) -> Option<Self> {
        self.0.iter().rposition(|&b| b == b'/').map(|slash| Self(self.0[..slash].into()))
    }
}

impl fmt::Display for DataPath {
    /// As it is when it is UTF-8; otherwise odd bytes are written `\xNN`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_utf8() {
            Some(text) => f.write_str(text),
            None => fmt::Display::fmt(&self.0.escape_ascii(), f),
        }
    }
}

impl fmt::Debug for DataPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_lead_outside_are_refused() {
        let bad: [&[u8]; 10] =
            [b"", b"/etc/passwd", b"..", b"a/../b", b"a//b", b"a/", b".", b"a/./b", b"a\0b", b"base/.."];
        for path in bad {
            assert!(DataPath::new(path).is_err(), "{}", path.escape_ascii());
        }
        assert!(DataPath::new(&vec![b'a'; MAX_LEN + 1]).is_err());
    }

    #[test]
    fn odd_names_are_kept_as_bytes() {
        let good: [&[u8]; 6] = [b"PG_VERSION", b"base/5/1234_vm.1", b"a b\\c[#=", b"\xff\xfe", b"...", b"base/..x"];
        for path in good {
            assert_eq!(DataPath::new(path).unwrap().as_bytes(), path);
        }
        assert_eq!(DataPath::new(b"caf\xe9").unwrap().to_string(), "caf\\xe9");
        assert_eq!(DataPath::new(b"base/5/77").unwrap().parent(), Some(DataPath::new(b"base/5").unwrap()));
        assert_eq!(DataPath::new(b"base/5/77").unwrap().file_name(), b"77");
        assert_eq!(DataPath::new(b"base").unwrap().parent(), None);
    }
}
