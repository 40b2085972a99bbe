//! A reader of tar archives that is pushed bytes in pieces of any size and holds no more than one header of them.
//!
//! It reads what PostgreSQL sends (ustar, base-256 numbers, streams that lack their end) and what GNU tar and PAX add
//! (long names). It is strict where a lenient reader can be led astray: every header's checksum must be right, names must
//! be [`DataPath`]s, and devices, fifos, hard links, sparse files and global headers are refused, never skipped.

mod extension;
mod header;

use recovery::{DataPath, InvalidDataPath};

use extension::Extensions;
use header::{Header, TypeFlag};

const BLOCK: usize = 512;

/// The longest extended header or long name that is read.
const MAX_EXTENSION: u64 = 64 << 10;

/// What a member is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link, with where it points.
    Symlink(Vec<u8>),
}

/// The head of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub path: DataPath,
    /// What it is.
    pub kind: MemberKind,
    /// How many bytes of data follow; zero unless it is a file.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Time of the last change, Unix seconds.
    pub mtime: i64,
}

/// What comes next in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TarEvent<'a> {
    /// A member begins; `size` bytes of data follow.
    Member(Member),
    /// Data of the member, never empty.
    Data(&'a [u8]),
    /// The archive says that it ends here. Nothing but zeros may follow.
    End,
}

/// The bytes are not an archive that we take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tar archive, header at {at}: {problem}")]
pub struct TarError {
    /// Where the header in question starts in the archive.
    pub at: u64,
    /// What is wrong.
    pub problem: TarProblem,
}

/// Why an archive is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TarProblem {
    /// Some bytes were changed, or this is no header.
    #[error("its checksum is wrong")]
    Checksum,
    /// Neither POSIX nor GNU.
    #[error("it is neither a POSIX nor a GNU header")]
    Magic,
    /// A number field that is no number, or out of range.
    #[error("its {0} is not a number in range")]
    Number(&'static str),
    /// A type that has no place in a data directory.
    #[error("it is {0}, which has no place in a backup")]
    Kind(&'static str),
    /// An unknown type.
    #[error("it is of the unknown type {:?}", char::from(*.0))]
    UnknownKind(u8),
    /// A name that leads outside.
    #[error(transparent)]
    Path(#[from] InvalidDataPath),
    /// Something other than a file has data.
    #[error("it is no file and has {0} bytes of data")]
    UnexpectedData(u64),
    /// A long name or extended header that is not well formed, too long, or given twice.
    #[error("the extended header before it {0}")]
    Extension(&'static str),
    /// The archive went on after its end.
    #[error("there is more after the end of the archive")]
    AfterEnd,
    /// The archive stops in the middle.
    #[error("the archive was cut short")]
    Truncated,
}

#[derive(Debug)]
enum State {
    /// Collecting a header.
    Header,
    /// Inside the data of a member.
    Data { left: u64, padding: u64 },
    /// Inside a long name or extended header.
    Extension { kind: TypeFlag, left: u64, padding: u64 },
    /// Behind data, up to the next block.
    Padding(u64),
    /// The first of two blocks of zeros was seen.
    HalfEnded,
    /// The end was seen.
    Ended,
}

impl State {
    /// Behind data that needs this much padding.
    fn behind(padding: u64) -> Self {
        if padding == 0 { Self::Header } else { Self::Padding(padding) }
    }
}

/// The reader. Push bytes with [`TarReader::next`] until it returns `None`, then push more; at the end of the stream, call
/// [`TarReader::finish`].
#[derive(Debug)]
pub struct TarReader {
    state: State,
    block: Vec<u8>,
    extension: Vec<u8>,
    extensions: Extensions,
    position: u64,
    header_at: u64,
}

impl Default for TarReader {
    fn default() -> Self {
        Self::new()
    }
}

impl TarReader {
    /// At the start of an archive.
    pub fn new() -> Self {
        Self {
            state: State::Header,
            block: Vec::with_capacity(BLOCK),
            extension: Vec::new(),
            extensions: Extensions::default(),
            position: 0,
            header_at: 0,
        }
    }

    /// Takes bytes off the front of `input` and returns what they are; `None` when `input` is used up. After an error
    /// the archive cannot be read further.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<TarEvent<'a>>, TarError> {
        self.step(input).map_err(|problem| TarError { at: self.header_at, problem })
    }

    /// The stream has ended. An archive may lack its two blocks of zeros (PostgreSQL 14 sends none).
    pub fn finish(self) -> Result<(), TarError> {
        let complete = match self.state {
            State::Header => self.block.is_empty() && self.extensions.is_empty(),
            State::HalfEnded => self.block.is_empty(),
            State::Ended => true,
            State::Data { .. } | State::Extension { .. } | State::Padding(_) => false,
        };
        if complete { Ok(()) } else { Err(TarError { at: self.header_at, problem: TarProblem::Truncated }) }
    }

    fn step<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<TarEvent<'a>>, TarProblem> {
        while !input.is_empty() {
            match &mut self.state {
                State::Header | State::HalfEnded => {
                    if let Some(event) = self.header(input)? {
                        return Ok(Some(event));
                    }
                }
                State::Data { left, padding } => {
                    let data = take(input, *left, &mut self.position);
                    *left -= data.len() as u64;
                    if *left == 0 {
                        self.state = State::behind(*padding);
                    }
                    if !data.is_empty() {
                        return Ok(Some(TarEvent::Data(data)));
                    }
                }
                State::Extension { kind, left, padding } => {
                    let data = take(input, *left, &mut self.position);
                    *left -= data.len() as u64;
                    self.extension.extend_from_slice(data);
                    if *left == 0 {
                        self.extensions.add(*kind, &self.extension)?;
                        self.extension.clear();
                        self.state = State::behind(*padding);
                    }
                }
                State::Padding(left) => {
                    let skipped = take(input, *left, &mut self.position);
                    *left -= skipped.len() as u64;
                    if *left == 0 {
                        self.state = State::Header;
                    }
                }
                State::Ended => {
                    let rest = take(input, u64::MAX, &mut self.position);
                    if rest.iter().any(|&byte| byte != 0) {
                        return Err(TarProblem::AfterEnd);
                    }
                }
            }
        }
        Ok(None)
    }

    /// Collects a header; an event when it is whole and tells of something.
    fn header<'a>(&mut self, input: &mut &[u8]) -> Result<Option<TarEvent<'a>>, TarProblem> {
        if self.block.is_empty() {
            self.header_at = self.position;
        }
        let wanted = (BLOCK - self.block.len()) as u64;
        self.block.extend_from_slice(take(input, wanted, &mut self.position));
        if self.block.len() < BLOCK {
            return Ok(None);
        }
        let block = std::mem::take(&mut self.block);
        let event = self.whole_header(&block);
        self.block = block;
        self.block.clear();
        event
    }

    fn whole_header<'a>(&mut self, block: &[u8]) -> Result<Option<TarEvent<'a>>, TarProblem> {
        let zeros = block.iter().all(|&byte| byte == 0);
        match (&self.state, zeros) {
            (State::HalfEnded, true) => {
                self.state = State::Ended;
                return Ok(Some(TarEvent::End));
            }
            (State::HalfEnded, false) => return Err(TarProblem::AfterEnd),
            (_, true) if !self.extensions.is_empty() => return Err(TarProblem::Extension("has no member behind it")),
            (_, true) => {
                self.state = State::HalfEnded;
                return Ok(None);
            }
            (_, false) => {}
        }
        let header = Header::read(block)?;
        if matches!(header.kind, TypeFlag::LongName | TypeFlag::LongLink | TypeFlag::Pax) {
            if header.size > MAX_EXTENSION {
                return Err(TarProblem::Extension("is too long"));
            }
            self.state = State::Extension { kind: header.kind, left: header.size, padding: padding(header.size) };
            return self.skip_empty();
        }
        let member = std::mem::take(&mut self.extensions).apply(header)?;
        self.state = State::Data { left: member.size, padding: padding(member.size) };
        if member.size == 0 {
            self.state = State::Header;
        }
        Ok(Some(TarEvent::Member(member)))
    }

    /// An extension without content is malformed: it would change nothing.
    fn skip_empty<'a>(&self) -> Result<Option<TarEvent<'a>>, TarProblem> {
        match self.state {
            State::Extension { left: 0, .. } => Err(TarProblem::Extension("is empty")),
            _ => Ok(None),
        }
    }
}

/// Takes up to `limit` bytes off the front of `input`.
fn take<'a>(input: &mut &'a [u8], limit: u64, position: &mut u64) -> &'a [u8] {
    let len = usize::try_from(limit).unwrap_or(usize::MAX).min(input.len());
    let (taken, rest) = input.split_at(len);
    *input = rest;
    *position += len as u64;
    taken
}

/// Bytes between the end of `size` bytes of data and the next block.
fn padding(size: u64) -> u64 {
    let block = BLOCK as u64;
    (block - size % block) % block
}

/// Reads hostile bytes as an archive, whole and in pieces; both must tell the same, and never panic. For fuzzing.
pub fn fuzz_tar(data: &[u8]) {
    let whole = read_in_pieces(data, data.len().max(1));
    let piece = usize::from(data.first().copied().unwrap_or(0)) + 1;
    assert_eq!(whole, read_in_pieces(data, piece));
}

/// Members with their data, and how the archive ended.
type Read = (Vec<(Member, Vec<u8>)>, Result<bool, TarError>);

fn read_in_pieces(data: &[u8], piece: usize) -> Read {
    let mut reader = TarReader::new();
    let mut members: Vec<(Member, Vec<u8>)> = Vec::new();
    let mut ended = false;
    for mut input in data.chunks(piece) {
        loop {
            match reader.next(&mut input) {
                Ok(None) => break,
                Ok(Some(TarEvent::Member(member))) => members.push((member, Vec::new())),
                Ok(Some(TarEvent::Data(data))) => {
                    if let Some((_, content)) = members.last_mut() {
                        content.extend_from_slice(data);
                    }
                }
                Ok(Some(TarEvent::End)) => ended = true,
                Err(error) => return (members, Err(error)),
            }
        }
    }
    (members, reader.finish().map(|()| ended))
}

#[cfg(test)]
mod tests;
