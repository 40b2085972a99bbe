//! What a process asked of the file system and told a server, in order, from `strace -f -xx`.
//!
//! The tracer stops a thread when it enters a call and when it leaves it, and writes a line before the thread goes on. So
//! when one thread waits for another's fsync before it sends something, the fsync's end stands in front of the sending.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use wal::Lsn;

/// The calls that are recorded: all that change a file or a name, or send something. Those at the end would escape the
/// model, so a trace that has one of them is refused.
pub const CALLS: &str = "openat,open,creat,close,dup,dup2,dup3,fcntl,lseek,write,pwrite64,writev,pwritev,pwritev2,sendto,\
sendmsg,sendmmsg,ftruncate,truncate,fallocate,rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat,rmdir,\
fsync,fdatasync,sync_file_range,syncfs,sync,copy_file_range,sendfile,splice,io_uring_enter";

/// One call, as far as it matters for what a power loss leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// The file descriptor is the call's result.
    Open {
        path: PathBuf,
        create: bool,
        exclusive: bool,
        truncate: bool,
        append: bool,
    },
    Close {
        fd: i64,
    },
    /// The new file descriptor is the call's result.
    Dup {
        fd: i64,
    },
    /// The new position is the call's result.
    Seek {
        fd: i64,
    },
    /// At an offset, else at the descriptor's position.
    Write {
        fd: i64,
        at: Option<u64>,
        bytes: Vec<u8>,
    },
    Truncate {
        fd: i64,
        size: u64,
    },
    Allocate {
        fd: i64,
        end: u64,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Link {
        from: PathBuf,
        to: PathBuf,
    },
    Unlink {
        path: PathBuf,
    },
    Mkdir {
        path: PathBuf,
    },
    Sync {
        fd: i64,
        data_only: bool,
    },
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A thread entered a call; calls are numbered.
    Begin(usize, Call),
    /// It came back with a result; without one its process was killed meanwhile.
    End(usize, Option<i64>),
    /// A status update was about to be sent.
    Told { write: Lsn, flush: Lsn, apply: Lsn },
    /// A stream was asked for.
    Asked { start: Lsn },
    /// Another process follows: descriptors mean nothing any more.
    NewProcess,
}

/// Reads a trace.
pub fn parse(text: &str) -> Vec<Event> {
    let mut events = Vec::new();
    let mut open: HashMap<&str, usize> = HashMap::new();
    let mut count = 0;
    for line in text.lines() {
        let Some((pid, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        if rest.starts_with("+++") || rest.starts_with("---") {
            continue;
        }
        if let Some(resumed) = rest.strip_prefix("<... ") {
            if let Some(number) = open.remove(pid) {
                events.push(Event::End(number, result(resumed)));
            }
            continue;
        }
        let Some((name, rest)) = rest.split_once('(') else { continue };
        let (arguments, ended) = match rest.strip_suffix(" <unfinished ...>") {
            Some(arguments) => (arguments, None),
            None => {
                let (arguments, _) = rest.rsplit_once(" = ").unwrap_or_else(|| panic!("{line:.200}"));
                (arguments.trim_end().strip_suffix(')').unwrap(), Some(result(rest)))
            }
        };
        let Some(call) = understood(name, arguments) else {
            continue;
        };
        let call = match call {
            Understood::Sent(bytes) => {
                events.extend(said(&bytes));
                continue;
            }
            Understood::Call(call) => call,
        };
        if let Call::Write { at: None, bytes, .. } = &call {
            // A socket, perhaps: a descriptor of a file takes no such message.
            events.extend(said(bytes));
        }
        count += 1;
        events.push(Event::Begin(count, call));
        match ended {
            Some(result) => events.push(Event::End(count, result)),
            None => drop(open.insert(pid, count)),
        }
    }
    events
}

enum Understood {
    Call(Call),
    Sent(Vec<u8>),
}

/// The number after the last ` = `.
fn result(text: &str) -> Option<i64> {
    let (_, result) = text.rsplit_once(" = ")?;
    result.split(' ').next()?.parse().ok()
}

fn understood(name: &str, text: &str) -> Option<Understood> {
    let arguments = split(text);
    let number = |index: usize| -> i64 { arguments[index].parse().unwrap_or_else(|_| panic!("{name}({text:.200})")) };
    let unsigned = |index: usize| u64::try_from(number(index)).unwrap();
    let call = match name {
        "openat" => {
            let path = path_at(name, &arguments[0], &arguments[1])?;
            let flags: Vec<&str> = arguments[2].split('|').collect();
            let has = |flag| flags.contains(&flag);
            let (create, exclusive) = (has("O_CREAT"), has("O_EXCL"));
            Call::Open { path, create, exclusive, truncate: has("O_TRUNC"), append: has("O_APPEND") }
        }
        "close" => Call::Close { fd: number(0) },
        "dup" => Call::Dup { fd: number(0) },
        "fcntl" if arguments[1].starts_with("F_DUPFD") => Call::Dup { fd: number(0) },
        "fcntl" => return None,
        "lseek" => Call::Seek { fd: number(0) },
        "write" => Call::Write { fd: number(0), at: None, bytes: bytes(&arguments[1]) },
        "pwrite64" => Call::Write { fd: number(0), at: Some(unsigned(3)), bytes: bytes(&arguments[1]) },
        "writev" => Call::Write { fd: number(0), at: None, bytes: bytes(&arguments[1]) },
        "pwritev" | "pwritev2" => Call::Write { fd: number(0), at: Some(unsigned(3)), bytes: bytes(&arguments[1]) },
        "sendto" => return Some(Understood::Sent(bytes(&arguments[1]))),
        "sendmsg" => {
            let (_, vector) = text.split_once("msg_iov=")?;
            return Some(Understood::Sent(bytes(vector)));
        }
        "ftruncate" => Call::Truncate { fd: number(0), size: unsigned(1) },
        "fallocate" => Call::Allocate { fd: number(0), end: unsigned(2) + unsigned(3) },
        "rename" => Call::Rename { from: path(&arguments[0]), to: path(&arguments[1]) },
        "renameat" | "renameat2" => Call::Rename {
            from: path_at(name, &arguments[0], &arguments[1])?,
            to: path_at(name, &arguments[2], &arguments[3])?,
        },
        "link" => Call::Link { from: path(&arguments[0]), to: path(&arguments[1]) },
        "linkat" => Call::Link {
            from: path_at(name, &arguments[0], &arguments[1])?,
            to: path_at(name, &arguments[2], &arguments[3])?,
        },
        "unlink" | "rmdir" => Call::Unlink { path: path(&arguments[0]) },
        "unlinkat" => Call::Unlink { path: path_at(name, &arguments[0], &arguments[1])? },
        "mkdir" => Call::Mkdir { path: path(&arguments[0]) },
        "mkdirat" => Call::Mkdir { path: path_at(name, &arguments[0], &arguments[1])? },
        "fsync" => Call::Sync { fd: number(0), data_only: false },
        "fdatasync" => Call::Sync { fd: number(0), data_only: true },
        // Promises nothing, so nothing may rely on it.
        "sync_file_range" => return None,
        other => panic!("the model knows nothing of {other}({text:.200})"),
    };
    Some(Understood::Call(call))
}

/// Arguments; strings have no commas in them, because they are in hexadecimal, but structures have.
fn split(text: &str) -> Vec<String> {
    let (mut depth, mut current, mut all) = (0, String::new(), Vec::new());
    for character in text.chars() {
        match character {
            '[' | '{' => depth += 1,
            ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                all.push(std::mem::take(&mut current));
                continue;
            }
            _ => {}
        }
        current.push(character);
    }
    all.push(current);
    all.into_iter().map(|argument| argument.trim().to_owned()).collect()
}

/// All strings in a text, joined: one string, or the pieces of a vector.
fn bytes(text: &str) -> Vec<u8> {
    let mut found = Vec::new();
    for (index, piece) in text.split('"').enumerate() {
        if index % 2 == 1 {
            found.extend(piece.split("\\x").skip(1).map(|hex| u8::from_str_radix(hex, 16).unwrap()));
        } else {
            assert!(!piece.starts_with("..."), "the trace has cut a string short");
        }
    }
    found
}

fn path(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt as _;
    PathBuf::from(std::ffi::OsString::from_vec(bytes(text)))
}

fn path_at(name: &str, directory: &str, text: &str) -> Option<PathBuf> {
    let path = path(text);
    if path.is_absolute() || directory == "AT_FDCWD" {
        return Some(path);
    }
    // Reading below a directory is nothing to the model.
    assert!(name == "openat", "{name} below descriptor {directory}: {}", path.display());
    None
}

/// The messages in what was sent that matter: status updates, and what is asked for.
fn said(bytes: &[u8]) -> Vec<Event> {
    let mut events = Vec::new();
    let mut rest = bytes;
    while let [kind @ (b'd' | b'Q'), a, b, c, d, ..] = *rest {
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        let Some(body) = rest.get(5..=length) else { break };
        if kind == b'Q' && body.starts_with(b"START_REPLICATION") {
            let text = String::from_utf8_lossy(body).into_owned();
            let start = text.split(' ').find_map(|word| word.parse().ok()).unwrap();
            events.push(Event::Asked { start });
        } else if kind == b'd' && body.len() == 34 && body[0] == b'r' {
            let lsn = |at: usize| Lsn::new(u64::from_be_bytes(body[at..at + 8].try_into().unwrap()));
            events.push(Event::Told { write: lsn(1), flush: lsn(9), apply: lsn(17) });
        }
        rest = &rest[length + 1..];
    }
    events
}

/// A trace that was written to a file.
pub fn read(path: &Path) -> Vec<Event> {
    // Not all of it is text: program names of children, for one.
    parse(&String::from_utf8_lossy(&std::fs::read(path).unwrap()))
}

#[test]
fn calls_that_overlap_are_put_together_and_messages_are_found() {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect::<String>();
    let mut update = vec![b'd', 0, 0, 0, 38, b'r'];
    update.extend([3u64, 2, 1, 9].iter().flat_map(|value| value.to_be_bytes()));
    update.push(0);
    let text = format!(
        "7 openat(AT_FDCWD, \"{0}\", O_RDWR|O_CREAT|O_CLOEXEC, 0600) = 5\n\
         7 pwrite64(5, \"{1}\", 2, 8 <unfinished ...>\n\
         8 fdatasync(5)        = -1 EIO (Input/output error)\n\
         7 <... pwrite64 resumed>)  = 2\n\
         8 writev(9, [{{iov_base=\"{2}\", iov_len=6}}, {{iov_base=\"{3}\", iov_len=33}}], 2) = 39\n\
         7 fsync(5 <unfinished ...>) = ?\n\
         7 +++ killed by SIGKILL +++\n",
        hex(b"/a"),
        hex(b"ab"),
        hex(&update[..6]),
        hex(&update[6..]),
    );
    let text = text.replace("fsync(5 <unfinished ...>) = ?", "fsync(5 <unfinished ...>\n7 <... fsync resumed>) = ?");
    let events = parse(&text);
    let path = PathBuf::from("/a");
    let lsn = Lsn::new;
    assert_eq!(
        events,
        [
            Event::Begin(1, Call::Open { path, create: true, exclusive: false, truncate: false, append: false }),
            Event::End(1, Some(5)),
            Event::Begin(2, Call::Write { fd: 5, at: Some(8), bytes: b"ab".to_vec() }),
            Event::Begin(3, Call::Sync { fd: 5, data_only: true }),
            Event::End(3, Some(-1)),
            Event::End(2, Some(2)),
            Event::Told { write: lsn(3), flush: lsn(2), apply: lsn(1) },
            Event::Begin(4, Call::Write { fd: 9, at: None, bytes: update }),
            Event::End(4, Some(39)),
            Event::Begin(5, Call::Sync { fd: 5, data_only: false }),
            Event::End(5, None),
        ]
    );
}
