//! Where everything goes: the data directory, WAL, tablespaces.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, ErrorCode, Result};
use crate::repository::manifest::TablespacePath;

use super::RestoreRequest;
use super::directory::{self, Called, Candidate, Found};
use super::existing::{Tree, TreeKind};
use super::marker::Marker;

/// Where a tablespace goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TablespacePlan {
    /// Its oid: the name of the link in `pg_tblspc`.
    pub oid: u32,
    /// Where it was on the server.
    pub old: PathBuf,
    /// Where it will be.
    pub new: PathBuf,
    pub(super) candidate: Candidate,
}

/// The directories of a restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Places {
    pub(super) data: Candidate,
    /// Where `pg_wal` lies when not in the data directory.
    pub(super) wal: Option<Candidate>,
    pub(super) tablespaces: Vec<TablespacePlan>,
}

impl Places {
    /// Decides, and refuses what may not be written to. Changes nothing.
    ///
    /// WAL and tablespaces of an old data directory stay where its links lead, unless the request says otherwise.
    pub(super) fn decide(
        directory: &Path,
        request: &RestoreRequest,
        tablespaces: &[TablespacePath],
        wanted: &Marker,
    ) -> Result<Self> {
        let data = directory::data(directory, wanted, request.delta)?;
        let links = Links::of(&data);
        let wal = place_wal(request, wanted, &links)?;
        let tablespaces = place_tablespaces(tablespaces, request, wanted, &links)?;
        let places = Self { data, wal, tablespaces };
        refuse_nesting(&places.candidates().map(|candidate| candidate.path.as_path()).collect::<Vec<_>>())?;
        Ok(places)
    }

    /// Every directory, the data directory first.
    pub(super) fn candidates(&self) -> impl Iterator<Item = &Candidate> {
        [&self.data].into_iter().chain(&self.wal).chain(self.tablespaces.iter().map(|t| &t.candidate))
    }

    /// Every directory and what it is, in the same order.
    pub(super) fn trees(&self) -> Vec<Tree> {
        let wal = self.wal.iter().map(|_| TreeKind::Wal);
        let kinds = [TreeKind::Data].into_iter().chain(wal);
        let kinds = kinds.chain(self.tablespaces.iter().map(|t| TreeKind::Tablespace(t.oid)));
        self.candidates().zip(kinds).map(|(candidate, kind)| Tree { path: candidate.path.clone(), kind }).collect()
    }

    /// The links that lie in the data directory, and where they lead.
    pub(super) fn links(&self) -> BTreeMap<Vec<u8>, PathBuf> {
        let spaces = self.tablespaces.iter().map(|t| (format!("pg_tblspc/{}", t.oid).into_bytes(), t.new.clone()));
        spaces.chain(self.wal.iter().map(|wal| (b"pg_wal".to_vec(), wal.path.clone()))).collect()
    }

    /// Whether anything lies in any of them.
    pub(super) fn are_empty(&self) -> bool {
        self.candidates().all(|candidate| candidate.found == Found::Nothing)
    }

    /// Whether what can be read of the files that are there may not be on the disk.
    pub(super) fn are_unsynced(&self) -> bool {
        self.candidates().any(|c| matches!(&c.found, Found::Unfinished(marker) if marker.unsynced))
    }

    /// Whether there may be files of another origin than this backup.
    pub(super) fn are_mixed(&self, wanted: &Marker) -> bool {
        self.candidates().any(|candidate| match &candidate.found {
            Found::Nothing => false,
            Found::Old => true,
            Found::Unfinished(marker) => marker.delta || marker.backup != wanted.backup,
        })
    }
}

/// The links of a data directory that is not empty.
struct Links<'a>(Option<&'a Path>);

impl<'a> Links<'a> {
    fn of(data: &'a Candidate) -> Self {
        Self((data.found != Found::Nothing).then_some(data.path.as_path()))
    }

    /// Where a link leads, if there is a directory.
    fn get(&self, name: &str) -> Option<PathBuf> {
        let link = self.0?.join(name);
        let is_link = fs::symlink_metadata(&link).is_ok_and(|meta| meta.is_symlink());
        let target = is_link.then(|| fs::canonicalize(link).ok()).flatten()?;
        target.is_dir().then_some(target)
    }
}

fn leads_to(link: Option<&PathBuf>, path: &Path) -> bool {
    link.is_some_and(|link| fs::canonicalize(path).is_ok_and(|path| path == *link))
}

fn place_wal(request: &RestoreRequest, wanted: &Marker, links: &Links<'_>) -> Result<Option<Candidate>> {
    let called = Called { what: "WAL directory", instead: "--wal-dir DIR" };
    let old = links.get("pg_wal");
    let Some(path) = request.wal_dir.as_ref().or(old.as_ref()) else { return Ok(None) };
    let wal = directory::beside(path, called, wanted, leads_to(old.as_ref(), path), request.delta)?;
    if wal.found != Found::Nothing {
        directory::holds_nothing_but_wal(&wal.path, called)?;
    }
    Ok(Some(wal))
}

/// Finds a place for each tablespace: where `--tablespace OLD=NEW` says, else where the data directory has it, else where
/// it was.
fn place_tablespaces(
    tablespaces: &[TablespacePath],
    request: &RestoreRequest,
    wanted: &Marker,
    links: &Links<'_>,
) -> Result<Vec<TablespacePlan>> {
    let mut targets: BTreeMap<PathBuf, &Path> = BTreeMap::new();
    for (old, new) in &request.tablespaces {
        if targets.insert(plain(old), new).is_some() {
            return Err(Error::new(ErrorCode::Usage, format!("--tablespace names {} twice", old.display())));
        }
    }
    let mut placed = Vec::new();
    for TablespacePath { oid, path } in tablespaces {
        let old = PathBuf::from(OsStr::from_bytes(path));
        let link = links.get(&format!("pg_tblspc/{oid}"));
        let named = targets.remove(&plain(&old)).map(Path::to_path_buf);
        let new = named.or_else(|| link.clone()).unwrap_or_else(|| old.clone());
        let what = format!("tablespace {oid} in");
        let instead = format!("--tablespace {}=NEW", old.display());
        let called = Called { what: &what, instead: &instead };
        let linked = leads_to(link.as_ref(), &new);
        let candidate = directory::beside(&new, called, wanted, linked, request.delta)?;
        placed.push(TablespacePlan { oid: *oid, old, new: candidate.path.clone(), candidate });
    }
    match targets.into_keys().next() {
        None => Ok(placed),
        Some(unknown) => {
            let error = Error::new(ErrorCode::Usage, format!("the backup has no tablespace in {}", unknown.display()));
            let error =
                placed.iter().fold(error, |error, t| error.because(format!("it has one in {}", t.old.display())));
            Err(error.help("name the directory as it was on the server: pgvault backup show ID"))
        }
    }
}

/// The path without a trailing slash or `.` components.
fn plain(path: &Path) -> PathBuf {
    path.components().filter(|component| *component != Component::CurDir).collect()
}

/// Refuses directories of which one lies in another, or is the same: files would meet.
fn refuse_nesting(paths: &[&Path]) -> Result<()> {
    for (index, path) in paths.iter().enumerate() {
        if let Some(other) = paths[index + 1..].iter().find(|other| path.starts_with(other) || other.starts_with(path))
        {
            let message = format!("{} and {} lie in each other", path.display(), other.display());
            return Err(Error::new(ErrorCode::TargetDirectory, message)
                .help("data directory, WAL directory and tablespaces need a directory each: --tablespace OLD=NEW"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use recovery::{RecoveryRequest, RecoveryTarget};

    use super::*;
    use crate::restore::marker::test_marker;

    fn request(directory: &Path, tablespaces: &[(PathBuf, PathBuf)], delta: bool) -> RestoreRequest {
        RestoreRequest {
            directory: directory.to_owned(),
            recovery: RecoveryRequest::new(RecoveryTarget::Latest),
            tablespaces: tablespaces.to_vec(),
            wal_dir: None,
            owner: None,
            config: None,
            delta,
        }
    }

    #[test]
    fn directories_must_not_lie_in_each_other() {
        let check = |paths: &[&str]| refuse_nesting(&paths.iter().map(Path::new).collect::<Vec<_>>()).is_ok();
        assert!(check(&["/a", "/b", "/ab"]));
        assert!(!check(&["/a", "/b", "/a"]));
        assert!(!check(&["/a", "/b", "/a/c"]));
        assert!(!check(&["/a/b", "/a"]));
    }

    #[test]
    fn moves_name_tablespaces_that_there_are_and_go_to_empty_directories() {
        let dir = tempfile::tempdir().unwrap();
        let (empty, full) = (dir.path().join("empty"), dir.path().join("full"));
        fs::create_dir_all(&empty).unwrap();
        fs::create_dir_all(full.join("x")).unwrap();
        let tablespaces = [TablespacePath { oid: 16400, path: b"/srv/ts/".to_vec() }];
        let wanted = test_marker("20261120T030000-0001");
        let data = dir.path().join("data");
        let place = |moves: &[(PathBuf, PathBuf)]| {
            Places::decide(&data, &request(&data, moves, false), &tablespaces, &wanted).map(|places| places.tablespaces)
        };
        let to = |new: &Path| [(PathBuf::from("/srv/ts"), new.to_owned())];
        let placed = place(&to(&empty)).unwrap();
        assert_eq!((placed[0].oid, &placed[0].new), (16400, &fs::canonicalize(&empty).unwrap()));
        assert_eq!(place(&to(&full)).unwrap_err().code(), ErrorCode::TargetDirectory);
        assert_eq!(place(&to(Path::new("relative"))).unwrap_err().code(), ErrorCode::TargetDirectory);
        let unknown = [(PathBuf::from("/srv/ts"), empty.clone()), (PathBuf::from("/srv/other"), full)];
        let error = place(&unknown).unwrap_err();
        assert_eq!(error.code(), ErrorCode::Usage);
        assert!(error.to_string().contains("/srv/ts"), "{error}");
        let twice = [(PathBuf::from("/srv/ts"), empty.clone()), (PathBuf::from("/srv/./ts/"), empty)];
        assert_eq!(place(&twice).unwrap_err().code(), ErrorCode::Usage);
    }

    #[test]
    fn an_old_directory_keeps_its_wal_and_its_tablespaces_where_its_links_lead() {
        let dir = tempfile::tempdir().unwrap();
        let base = fs::canonicalize(dir.path()).unwrap();
        let (data, wal, space, other) = (base.join("data"), base.join("wal"), base.join("space"), base.join("other"));
        for directory in [&data.join("global"), &data.join("pg_tblspc"), &wal, &space, &other] {
            fs::create_dir_all(directory).unwrap();
        }
        let wanted = test_marker("20261120T030000-0001");
        let system = wanted.lineage.system_identifier.get();
        fs::write(data.join("global/pg_control"), system.to_ne_bytes()).unwrap();
        fs::write(wal.join("000000010000000000000001"), "").unwrap();
        fs::write(space.join("file"), "").unwrap();
        std::os::unix::fs::symlink(&wal, data.join("pg_wal")).unwrap();
        std::os::unix::fs::symlink(&space, data.join("pg_tblspc/16400")).unwrap();
        let tablespaces = [TablespacePath { oid: 16400, path: b"/srv/ts".to_vec() }];
        let decide = |request: &RestoreRequest| Places::decide(&data, request, &tablespaces, &wanted);
        let places = decide(&request(&data, &[], true)).unwrap();
        assert!(places.candidates().all(|candidate| candidate.found == Found::Old), "{places:?}");
        assert_eq!(places.wal.as_ref().unwrap().path, wal);
        assert_eq!(places.tablespaces[0].new, space);
        assert!(places.are_mixed(&wanted) && !places.are_empty());
        // What is asked for comes first.
        let mut elsewhere = request(&data, &[(PathBuf::from("/srv/ts"), other.clone())], true);
        elsewhere.wal_dir = Some(base.join("new wal"));
        let places = decide(&elsewhere).unwrap();
        assert_eq!(places.wal.unwrap().path, base.join("new wal"));
        assert_eq!((&places.tablespaces[0].new, &places.tablespaces[0].candidate.found), (&other, &Found::Nothing));
        // A link to a directory that holds something else than WAL.
        fs::write(wal.join("notes"), "").unwrap();
        assert_eq!(decide(&request(&data, &[], true)).unwrap_err().code(), ErrorCode::TargetDirectory);
        assert_eq!(decide(&request(&data, &[], false)).unwrap_err().code(), ErrorCode::TargetDirectory);
    }
}
