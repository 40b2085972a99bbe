//! One entry as a line of JSON.

use std::borrow::Cow;
use std::fmt;

use recovery::DataPath;
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{ChunkHash, ChunkRef, EntryKind, FileContent, PatchedChunk, StoredChunk, TableEntry, TableFacts};

#[derive(Serialize, Deserialize)]
struct Line<'a> {
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    path: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    path_hex: Option<Cow<'a, str>>,
    r#type: LineType,
    mode: u32,
    mtime: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    crc32c: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chunks: Option<Cow<'a, [ChunkRef]>>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum LineType {
    File,
    Dir,
}

/// An entry as a line of a file table has it, without a newline.
pub fn encode_entry(entry: &TableEntry, out: &mut Vec<u8>) {
    write(entry, out);
}

/// Reads what [`encode_entry`] wrote; the error says what is wrong.
pub fn decode_entry(line: &[u8], facts: TableFacts) -> Result<TableEntry, String> {
    read(line, facts.chunk_size, facts.packs)
}

/// The entry as JSON, without a newline.
pub(super) fn write(entry: &TableEntry, out: &mut Vec<u8>) {
    let utf8 = entry.path.as_utf8();
    let file = match &entry.kind {
        EntryKind::File(file) => Some(file),
        EntryKind::Directory => None,
    };
    let line = Line {
        path: utf8.map(Cow::Borrowed),
        path_hex: utf8.is_none().then(|| Cow::Owned(hex::encode(entry.path.as_bytes()))),
        r#type: if file.is_some() { LineType::File } else { LineType::Dir },
        mode: entry.mode,
        mtime: entry.mtime,
        size: file.map(|file| file.size),
        crc32c: file.map(|file| Cow::Owned(format!("{:08x}", file.crc32c))),
        chunks: file.map(|file| Cow::Borrowed(file.chunks.as_slice())),
    };
    serde_json::to_writer(out, &line).expect("an entry is plain data, and memory takes every write");
}

/// Reads what [`write`] wrote. `chunk_size` and the number of `packs` are what the manifest says.
pub(super) fn read(bytes: &[u8], chunk_size: u32, packs: usize) -> Result<TableEntry, String> {
    let line: Line<'_> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let path = match (&line.path, &line.path_hex) {
        (Some(text), None) => DataPath::new(text.as_bytes()),
        (None, Some(digits)) => DataPath::new(&hex::decode(digits.as_bytes()).map_err(|error| error.to_string())?),
        _ => return Err("it needs either path or path_hex".to_owned()),
    }
    .map_err(|error| error.to_string())?;
    if line.mode > 0o7777 {
        return Err(format!("mode {:o} is not permission bits", line.mode));
    }
    let kind = match (line.r#type, line.size, line.crc32c, line.chunks) {
        (LineType::Dir, None, None, None) => EntryKind::Directory,
        (LineType::File, Some(size), Some(crc32c), Some(chunks)) => {
            let crc32c = Some(crc32c.as_ref())
                .filter(|digits| digits.len() == 8 && digits.bytes().all(|b| b.is_ascii_hexdigit()))
                .and_then(|digits| u32::from_str_radix(digits, 16).ok())
                .ok_or("crc32c is not eight hexadecimal digits")?;
            let chunks = chunks.into_owned();
            check_chunks(&chunks, size, chunk_size, packs)?;
            EntryKind::File(FileContent { size, crc32c, chunks })
        }
        _ => return Err("a file needs size, crc32c and chunks; a directory has none".to_owned()),
    };
    Ok(TableEntry { path, mode: line.mode, mtime: line.mtime, kind })
}

/// The chunks cover the file exactly, and lie in packs that the manifest names.
fn check_chunks(chunks: &[ChunkRef], size: u64, chunk_size: u32, packs: usize) -> Result<(), String> {
    let wanted = size.div_ceil(u64::from(chunk_size.max(1)));
    if chunks.len() as u64 != wanted {
        return Err(format!("{size} bytes need {wanted} chunks, there are {}", chunks.len()));
    }
    let mut left = size;
    for chunk in chunks {
        let plain = left.min(u64::from(chunk_size));
        if u64::from(chunk.plain()) != plain {
            return Err(format!("a chunk has {} bytes where {plain} are due", chunk.plain()));
        }
        left -= plain;
        match chunk {
            ChunkRef::Zeros { .. } => {}
            ChunkRef::Stored(chunk) => check_place(chunk, packs)?,
            ChunkRef::Patched(PatchedChunk { patch, base }) => {
                check_place(patch, packs)?;
                check_place(base, packs)?;
                if base.plain == 0 || base.plain > chunk_size {
                    return Err(format!("a patch over a chunk of {} bytes", base.plain));
                }
            }
        }
    }
    Ok(())
}

fn check_place(chunk: &StoredChunk, packs: usize) -> Result<(), String> {
    if chunk.pack as usize >= packs {
        return Err(format!("a chunk lies in pack {} of {packs}", chunk.pack));
    }
    if chunk.stored == 0 || chunk.offset.checked_add(chunk.stored).is_none() {
        return Err(format!("a chunk of {} bytes cannot lie at {}", chunk.stored, chunk.offset));
    }
    Ok(())
}

impl Serialize for ChunkRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Zeros { plain } => (-1, 0, 0, plain, "").serialize(serializer),
            Self::Stored(chunk) => chunk.serialize(serializer),
            Self::Patched(PatchedChunk { patch, base }) => {
                let mut digits = [0; 64];
                let digits = digits_of(patch, &mut digits);
                (patch.pack, patch.offset, patch.stored, patch.plain, digits, Over { xor: *base }).serialize(serializer)
            }
        }
    }
}

impl<'de> Deserialize<'de> for ChunkRef {
    /// Any other member after the fifth is a feature that this version does not know, and an error.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ChunkMembers)
    }
}

/// What a page patch lies over.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Over {
    xor: StoredChunk,
}

struct ChunkMembers;

impl<'de> Visitor<'de> for ChunkMembers {
    type Value = ChunkRef;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a chunk: pack, offset, stored, plain, hash, and what it is a patch over")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut members: A) -> Result<ChunkRef, A::Error> {
        let missing = || A::Error::custom("a chunk has five members or six");
        let pack: i64 = members.next_element()?.ok_or_else(missing)?;
        let offset = members.next_element()?.ok_or_else(missing)?;
        let stored = members.next_element()?.ok_or_else(missing)?;
        let plain = members.next_element()?.ok_or_else(missing)?;
        let digits: Cow<'_, str> = members.next_element()?.ok_or_else(missing)?;
        let over: Option<Over> = members.next_element()?;
        if members.next_element::<serde::de::IgnoredAny>()?.is_some() {
            return Err(missing());
        }
        if (pack, offset, stored, digits.is_empty(), over.is_none()) == (-1, 0, 0, true, true) {
            return Ok(ChunkRef::Zeros { plain });
        }
        let pack = u32::try_from(pack).map_err(|_| A::Error::custom("a pack's number is out of range"))?;
        let chunk = StoredChunk { pack, offset, stored, plain, hash: hash_of(&digits).map_err(A::Error::custom)? };
        Ok(match over {
            None => ChunkRef::Stored(chunk),
            Some(Over { xor }) => ChunkRef::Patched(PatchedChunk { patch: chunk, base: xor }),
        })
    }
}

impl Serialize for StoredChunk {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut digits = [0; 64];
        (self.pack, self.offset, self.stored, self.plain, digits_of(self, &mut digits)).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for StoredChunk {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        type Members<'a> = (u32, u32, u32, u32, Cow<'a, str>);
        let (pack, offset, stored, plain, digits) = Members::deserialize(deserializer)?;
        Ok(Self { pack, offset, stored, plain, hash: hash_of(&digits).map_err(D::Error::custom)? })
    }
}

fn digits_of<'a>(chunk: &StoredChunk, digits: &'a mut [u8; 64]) -> &'a str {
    hex::encode_to_slice(chunk.hash.0, digits).expect("64 digits hold 32 bytes");
    std::str::from_utf8(digits).expect("hexadecimal digits are ASCII")
}

fn hash_of(digits: &str) -> Result<ChunkHash, hex::FromHexError> {
    let mut hash = [0; 32];
    hex::decode_to_slice(digits.as_bytes(), &mut hash)?;
    Ok(ChunkHash(hash))
}
