//! The 512 bytes in front of each member.

use super::TarProblem;

/// What a header stands for, as far as we take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TypeFlag {
    File,
    Directory,
    Symlink,
    /// GNU: the data is the name of the next member.
    LongName,
    /// GNU: the data is where the next member points.
    LongLink,
    /// PAX: the data are records about the next member.
    Pax,
}

/// A header, as it stands.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) kind: TypeFlag,
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) size: u64,
    pub(super) mode: u32,
    pub(super) mtime: i64,
}

impl Header {
    /// Reads a block of 512 bytes that are not all zero.
    pub(super) fn read(block: &[u8]) -> Result<Self, TarProblem> {
        let field = |from: usize, len: usize| block.get(from..from + len).ok_or(TarProblem::Truncated);
        let stated = number(field(148, 8)?).ok_or(TarProblem::Checksum)?;
        if stated != checksum(block) {
            return Err(TarProblem::Checksum);
        }
        // GNU keeps other things where POSIX has the prefix.
        let prefix = match field(257, 8)? {
            b"ustar\x0000" => text(field(345, 155)?),
            b"ustar  \0" => &[],
            _ => return Err(TarProblem::Magic),
        };
        let name = text(field(0, 100)?);
        let name = if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() };
        let kind = match field(156, 1)?.first().copied().unwrap_or(0) {
            b'0' | 0 => TypeFlag::File,
            b'5' => TypeFlag::Directory,
            b'2' => TypeFlag::Symlink,
            b'L' => TypeFlag::LongName,
            b'K' => TypeFlag::LongLink,
            b'x' => TypeFlag::Pax,
            b'1' => return Err(TarProblem::Kind("a hard link")),
            b'3' | b'4' => return Err(TarProblem::Kind("a device")),
            b'6' => return Err(TarProblem::Kind("a fifo")),
            b'S' => return Err(TarProblem::Kind("a sparse file")),
            b'g' => return Err(TarProblem::Kind("a global header")),
            other => return Err(TarProblem::UnknownKind(other)),
        };
        let mtime = number(field(136, 12)?).and_then(|seconds| i64::try_from(seconds).ok());
        Ok(Self {
            kind,
            name,
            link: text(field(157, 100)?).to_vec(),
            size: number(field(124, 12)?).ok_or(TarProblem::Number("size"))?,
            mode: number(field(100, 8)?)
                .and_then(|mode| u32::try_from(mode & 0o7777).ok())
                .ok_or(TarProblem::Number("mode"))?,
            mtime: mtime.ok_or(TarProblem::Number("time"))?,
        })
    }
}

/// The sum of all bytes, with spaces in place of the checksum itself.
fn checksum(block: &[u8]) -> u64 {
    block.iter().enumerate().map(|(at, &byte)| u64::from(if (148..156).contains(&at) { b' ' } else { byte })).sum()
}

/// Up to the first NUL, or all of it.
fn text(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// Octal digits between spaces and up to a NUL or space, or base-256 (GNU) when the first bit is set. An empty field
/// is zero. Negative numbers have no place here.
fn number(field: &[u8]) -> Option<u64> {
    let (&first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        let start = u64::from(first & 0x7f);
        return rest.iter().try_fold(start, |n, &byte| n.checked_mul(256)?.checked_add(u64::from(byte)));
    }
    let digits = field.trim_ascii_start();
    let end = digits.iter().position(|&byte| byte == 0 || byte == b' ').unwrap_or(digits.len());
    let (digits, rest) = digits.split_at(end);
    if rest.iter().any(|&byte| byte != 0 && byte != b' ') {
        return None;
    }
    digits.iter().try_fold(0_u64, |n, &byte| {
        let digit = byte.checked_sub(b'0').filter(|&digit| digit < 8)?;
        n.checked_mul(8)?.checked_add(u64::from(digit))
    })
}
