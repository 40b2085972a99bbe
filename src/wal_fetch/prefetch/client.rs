//! `wal fetch` in front of a prefetcher: no runtime, no configuration, no connection but this one.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::place::PrefetchPlace;
use super::protocol::{self, Answer, MAX_LINE};
use crate::clock::{Clock, SystemClock};
use crate::fault_point;
use crate::wal_fetch::{Asker, FetchName};

/// A prefetcher that says nothing for so long does not count any more: while it works it says so every second.
const SILENCE: Duration = Duration::from_secs(10);

/// Nor does one that is at it for so long: whatever it waits for, a recovery must not stand still with it. The way without
/// it ends by itself.
const PATIENCE: Duration = Duration::from_secs(120);

/// What came of asking a prefetcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The file is complete and correct at its destination.
    Found,
    /// It is not in the repository, and nothing behind it is: the repository said so just now.
    Absent,
    /// Nothing came of it; nothing is at the destination. The file is to be fetched without a prefetcher.
    Unanswered,
}

/// Asks the prefetcher of this place; `start` starts one where none answers, and returns when it listens.
pub fn ask(
    place: &PrefetchPlace,
    file: &FetchName,
    destination: &Path,
    asker: &Asker,
    start: impl FnOnce() -> io::Result<()>,
) -> Reply {
    // Every kind of trouble ends in the same: the file is fetched in another way.
    let answer = connect(place, start).and_then(|stream| converse(stream, file, PATIENCE));
    fault_point!("fetch.answered");
    match answer {
        Ok(Answer::Absent) => Reply::Absent,
        Ok(Answer::Found(name)) if asker.still_waits() && fs::rename(place.file(&name), destination).is_ok() => {
            fault_point!("fetch.published");
            Reply::Found
        }
        Ok(Answer::Found(_) | Answer::Trouble | Answer::Wait) | Err(_) => Reply::Unanswered,
    }
}

fn connect(place: &PrefetchPlace, start: impl FnOnce() -> io::Result<()>) -> io::Result<UnixStream> {
    let socket = place.socket();
    match UnixStream::connect(&socket) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            start()?;
            UnixStream::connect(&socket)
        }
        connected => connected,
    }
}

fn converse(mut stream: UnixStream, file: &FetchName, patience: Duration) -> io::Result<Answer> {
    let begun = SystemClock.instant();
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    stream.write_all(protocol::ask(file).as_bytes())?;
    let mut lines = BufReader::new(stream);
    loop {
        let mut line = String::new();
        lines.by_ref().take(MAX_LINE).read_line(&mut line)?;
        match line.parse().map_err(io::Error::other)? {
            Answer::Wait if SystemClock.instant().duration_since(begun) > patience => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Answer::Wait => {}
            answer => return Ok(answer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefetcher_that_only_ever_says_that_it_is_at_it_is_not_waited_for_without_end() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let says = std::thread::spawn(move || while theirs.write_all(b"wait\n").is_ok() {});
        let file = "000000010000000000000007".parse().unwrap();
        let error = converse(ours, &file, Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        says.join().unwrap();
    }
}
