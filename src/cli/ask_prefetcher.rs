//! The short way of `wal fetch`: to a prefetcher and back, before anything else of the program is set up.
//!
//! PostgreSQL starts it for every segment and waits for it, so it must cost next to nothing. Whatever it does not
//! understand, and whatever goes wrong, goes the long way.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::wal_fetch::DATA_DIRECTORY;
use crate::config::{self, Flags, Variables, values};
use crate::wal_fetch::prefetch::{self, Life, PrefetchPlace, Reply};
use crate::wal_fetch::{FetchName, is_standby};

/// A prefetcher that does not listen after so long is not waited for.
const START: Duration = Duration::from_secs(5);

/// A command line of `wal fetch` that is understood.
#[derive(Debug, PartialEq, Eq)]
struct Line<'a> {
    file: FetchName,
    destination: &'a Path,
    config: Option<&'a OsStr>,
    /// Everything else that a prefetcher must be given, in order.
    common: Vec<&'a OsStr>,
}

/// Serves a file by way of a prefetcher: 0 when it is at its destination, 1 when it is authoritatively absent, and nothing
/// when it is to be fetched in another way.
pub(super) fn try_to_serve(args: &[OsString]) -> Option<u8> {
    let line = understand(args)?;
    let data_directory = Path::new(DATA_DIRECTORY);
    let life = Life::in_directory(data_directory)?;
    let place = PrefetchPlace::beside(line.destination, key(&line, data_directory).ok()?)?;
    match prefetch::ask(&place, &line.file, line.destination, life.asker(), || start(&line, &place)) {
        Reply::Found => Some(0),
        Reply::Absent => Some(1),
        Reply::Unanswered => None,
    }
}

/// Understands what `recover` writes and what a person would write in its place. Nothing is decided here: the prefetcher
/// reads its command line as every command does.
fn understand(args: &[OsString]) -> Option<Line<'_>> {
    let (mut words, mut common, mut config) = (Vec::new(), Vec::new(), None);
    let mut rest = args.iter().skip(1).map(OsString::as_os_str);
    while let Some(word) = rest.next() {
        match word.to_str() {
            Some("--patience") => drop(rest.next()?),
            Some("-c" | "--config") => {
                config = Some(rest.next()?);
                common.extend([word, config?]);
            }
            Some("--prefetch") => {
                let size = rest.next()?;
                if values::size(size.to_str()?).ok()? == 0 {
                    return None;
                }
                common.extend([word, size]);
            }
            Some("--timeline" | "--until" | "--cluster" | "--set") => common.extend([word, rest.next()?]),
            Some("-q" | "--quiet" | "--no-color") => common.push(word),
            Some(other) if other.starts_with('-') => return None,
            _ => words.push(word),
        }
    }
    let (cluster, file, destination) = match *words.as_slice() {
        [wal, fetch, cluster, file, path] if wal == "wal" && fetch == "fetch" => (cluster, file, path),
        [alias, cluster, file, path] if alias == "wal-fetch" || alias == "get-wal" || alias == "archive-get" => {
            (cluster, file, path)
        }
        _ => return None,
    };
    common.push(cluster);
    let file: FetchName = file.to_str()?.parse().ok()?;
    // Names that no recovery needs have an answer already.
    (!matches!(file, FetchName::Other(_))).then(|| Line { file, destination: Path::new(destination), config, common })
}

/// What a prefetcher must agree in with whoever asks it: the command line, what the configuration and the program are, and
/// whether it is a standby. The environment is that of the server, with which a prefetcher ends.
fn key(line: &Line<'_>, data_directory: &Path) -> io::Result<u64> {
    let mut hasher = DefaultHasher::new();
    line.common.hash(&mut hasher);
    is_standby(data_directory).hash(&mut hasher);
    let flags = Flags { config: line.config.map(PathBuf::from), overrides: Vec::new() };
    let mut files = config::files(&flags, &Variables::of_process()).map_err(io::Error::other)?;
    files.push(PathBuf::from("/proc/self/exe"));
    for file in files {
        let found = fs::metadata(&file)?;
        (file, found.ino(), found.size(), found.mtime(), found.mtime_nsec()).hash(&mut hasher);
    }
    Ok(hasher.finish())
}

/// Starts a prefetcher and waits until it listens.
///
/// It outlives this process, so it must not keep anything of the server's: not its process group, which the server's
/// signals go to, not the pipe of its log, and none of the files that servers before 16 leave open to their children
/// (a dropped table's disk space would not come back).
fn start(line: &Line<'_>, place: &PrefetchPlace) -> io::Result<()> {
    let (ours, theirs) = UnixStream::pair()?;
    close_fds::set_fds_cloexec(3, &[]);
    Command::new(std::env::current_exe()?)
        .args(["wal", "prefetch"])
        .args(&line.common)
        .arg(place.dir())
        .stdin(Stdio::null())
        .stdout(OwnedFd::from(theirs))
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    ours.set_read_timeout(Some(START))?;
    let mut word = String::new();
    BufReader::new(ours.take(100)).read_line(&mut word)?;
    // Nothing was said: it has ended, because another one is at it or because it cannot be done.
    if word == "listening\n" { Ok(()) } else { Err(io::ErrorKind::ConnectionRefused.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn what_recover_writes_is_understood() {
        let line = "pgvault -c /etc/p.toml wal fetch --timeline 2 --until 0/5000148 main 000000020000000000000005 pg_wal/RECOVERYXLOG";
        let args = words(line);
        let line = understand(&args).unwrap();
        assert_eq!(line.file.to_string(), "000000020000000000000005");
        assert_eq!(line.destination, Path::new("pg_wal/RECOVERYXLOG"));
        assert_eq!(line.config, Some(OsStr::new("/etc/p.toml")));
        assert_eq!(line.common, ["-c", "/etc/p.toml", "--timeline", "2", "--until", "0/5000148", "main"]);
        let alias = words("pgvault get-wal --patience 3s main 00000002.history pg_wal/RECOVERYHISTORY");
        assert_eq!(understand(&alias).unwrap().common, ["main"]);
    }

    #[test]
    fn everything_else_goes_the_long_way() {
        for line in [
            "pgvault wal fetch main 000000020000000000000005",
            "pgvault wal fetch main nonsense pg_wal/RECOVERYXLOG",
            "pgvault wal fetch main 000000010000000000000001.partial pg_wal/RECOVERYXLOG",
            "pgvault wal fetch --json main 000000020000000000000005 pg_wal/RECOVERYXLOG",
            "pgvault wal fetch --prefetch 0 main 000000020000000000000005 pg_wal/RECOVERYXLOG",
            "pgvault wal fetch --prefetch x main 000000020000000000000005 pg_wal/RECOVERYXLOG",
            "pgvault wal fetch main 000000020000000000000005 pg_wal/RECOVERYXLOG --until",
            "pgvault wal list main",
            "pgvault",
        ] {
            assert_eq!(understand(&words(line)), None, "{line}");
        }
    }

    #[test]
    fn who_asks_in_another_way_asks_another_prefetcher() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pgvault.toml");
        fs::write(&file, "").unwrap();
        let key_of = |options: &str| {
            let file = file.display();
            let args = words(&format!("pgvault -c {file} wal fetch {options} 00000002.history pg_wal/RECOVERYHISTORY"));
            key(&understand(&args).unwrap(), dir.path()).unwrap()
        };
        let first = key_of("main");
        assert_eq!(key_of("--patience 1s main"), first);
        assert_ne!(key_of("--timeline 2 main"), first);
        assert_ne!(key_of("other"), first);
        fs::write(dir.path().join("standby.signal"), "").unwrap();
        assert_ne!(key_of("main"), first);
        fs::remove_file(dir.path().join("standby.signal")).unwrap();
        assert_eq!(key_of("main"), first);
        fs::write(&file, "[repository]\n").unwrap();
        assert_ne!(key_of("main"), first);
    }
}
