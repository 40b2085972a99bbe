//! What the archives of a base backup may contain, and where it lies in the data directory.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use recovery::{DataPath, InvalidDataPath};

use super::tar::{Member, MemberKind};

/// Where the members of one archive lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Archive {
    /// The data directory.
    Base,
    /// The tablespace with this oid.
    Tablespace(u32),
}

/// A member that has no place in a backup.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum MemberError {
    /// The same path came before.
    #[error("the server sent \"{0}\" twice")]
    Duplicate(DataPath),
    /// A link that is neither a tablespace's nor that of pg_wal.
    #[error("the server sent the symbolic link \"{0}\"")]
    Link(DataPath),
    /// In its tablespace the path becomes too long.
    #[error(transparent)]
    Path(#[from] InvalidDataPath),
}

/// Places members, and refuses those that came before.
#[derive(Debug)]
pub(super) struct Members {
    tablespaces: Vec<u32>,
    /// Hashes of the paths seen: about 16 bytes of memory a file. Two paths with one hash among ten million: one chance in
    /// three hundred thousand, and it costs a backup, not its truth.
    seen: HashSet<u64>,
}

impl Members {
    pub(super) fn new(tablespaces: impl IntoIterator<Item = u32>) -> Self {
        Self { tablespaces: tablespaces.into_iter().collect(), seen: HashSet::new() }
    }

    /// The member with its path in the data directory; `None` when the tablespaces already tell of it.
    pub(super) fn place(&mut self, archive: Archive, member: Member) -> Result<Option<Member>, MemberError> {
        let path = match archive {
            Archive::Base => member.path,
            Archive::Tablespace(oid) => {
                let prefix = format!("pg_tblspc/{oid}/");
                DataPath::new(&[prefix.as_bytes(), member.path.as_bytes()].concat())?
            }
        };
        let kind = match (archive, member.kind) {
            (Archive::Base, MemberKind::Symlink(_)) if self.is_tablespace_link(&path) => None,
            // pg_wal may lie elsewhere on the server; restored it is a directory.
            (Archive::Base, MemberKind::Symlink(_)) if path.as_bytes() == b"pg_wal" => Some(MemberKind::Directory),
            (_, MemberKind::Symlink(_)) => return Err(MemberError::Link(path)),
            (_, kind) => Some(kind),
        };
        self.once(&path)?;
        Ok(kind.map(|kind| Member { path, kind, ..member }))
    }

    /// Refuses a path that came before.
    pub(super) fn once(&mut self, path: &DataPath) -> Result<(), MemberError> {
        let mut hasher = DefaultHasher::new();
        path.hash(&mut hasher);
        if self.seen.insert(hasher.finish()) { Ok(()) } else { Err(MemberError::Duplicate(path.clone())) }
    }

    fn is_tablespace_link(&self, path: &DataPath) -> bool {
        let oid = path.as_utf8().and_then(|text| text.strip_prefix("pg_tblspc/"));
        oid.and_then(|oid| oid.parse().ok()).is_some_and(|oid: u32| self.tablespaces.contains(&oid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(path: &str, kind: MemberKind) -> Member {
        Member { path: DataPath::new(path.as_bytes()).unwrap(), kind, size: 0, mode: 0o600, mtime: 0 }
    }

    fn link(path: &str) -> Member {
        member(path, MemberKind::Symlink(b"/somewhere".to_vec()))
    }

    #[test]
    fn files_of_tablespaces_lie_below_their_link() {
        let mut members = Members::new([16384]);
        let placed = members.place(Archive::Tablespace(16384), member("PG_15/5/1", MemberKind::File)).unwrap().unwrap();
        assert_eq!(placed.path.as_bytes(), b"pg_tblspc/16384/PG_15/5/1");
    }

    #[test]
    fn a_path_may_come_once_whatever_archive_it_is_in() {
        let mut members = Members::new([16384]);
        members.place(Archive::Tablespace(16384), member("x", MemberKind::File)).unwrap();
        for kind in [MemberKind::File, MemberKind::Directory] {
            let again = members.place(Archive::Base, member("pg_tblspc/16384/x", kind));
            assert!(matches!(again, Err(MemberError::Duplicate(_))));
        }
    }

    #[test]
    fn links_are_refused_but_those_that_postgresql_makes() {
        let mut members = Members::new([16384]);
        assert_eq!(members.place(Archive::Base, link("pg_tblspc/16384")), Ok(None));
        let wal = members.place(Archive::Base, link("pg_wal")).unwrap().unwrap();
        assert_eq!(wal.kind, MemberKind::Directory);
        for path in ["pg_tblspc/16385", "pg_tblspc/x", "base/5", "pg_tblspc/16384/PG_15", "pg_xact"] {
            assert!(matches!(members.place(Archive::Base, link(path)), Err(MemberError::Link(_))), "{path}");
        }
        assert!(matches!(members.place(Archive::Tablespace(16384), link("pg_wal")), Err(MemberError::Link(_))));
    }
}
