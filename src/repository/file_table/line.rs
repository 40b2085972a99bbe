//! One entry as a line of JSON.

use std::borrow::Cow;

use recovery::DataPath;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{ChunkHash, ChunkRef, EntryKind, FileContent, StoredChunk, TableEntry};

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
        if let ChunkRef::Stored(chunk) = chunk {
            if chunk.pack as usize >= packs {
                return Err(format!("a chunk lies in pack {} of {packs}", chunk.pack));
            }
            if chunk.stored == 0 || chunk.offset.checked_add(chunk.stored).is_none() {
                return Err(format!("a chunk of {} bytes cannot lie at {}", chunk.stored, chunk.offset));
            }
        }
    }
    Ok(())
}

impl Serialize for ChunkRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Zeros { plain } => (-1, 0, 0, plain, "").serialize(serializer),
            Self::Stored(chunk) => {
                let mut digits = [0; 64];
                hex::encode_to_slice(chunk.hash.0, &mut digits).expect("64 digits hold 32 bytes");
                let digits = std::str::from_utf8(&digits).expect("hexadecimal digits are ASCII");
                (chunk.pack, chunk.offset, chunk.stored, chunk.plain, digits).serialize(serializer)
            }
        }
    }
}

impl<'de> Deserialize<'de> for ChunkRef {
    /// A sixth member (FORMAT 6.3) is a feature that this version does not know, and an error.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;

        type Members<'a> = (i64, u32, u32, u32, Cow<'a, str>);
        let (pack, offset, stored, plain, digits) = Members::deserialize(deserializer)?;
        if (pack, offset, stored, digits.is_empty()) == (-1, 0, 0, true) {
            return Ok(Self::Zeros { plain });
        }
        let pack = u32::try_from(pack).map_err(|_| D::Error::custom("a pack's number is out of range"))?;
        let mut hash = [0; 32];
        hex::decode_to_slice(digits.as_bytes(), &mut hash).map_err(D::Error::custom)?;
        Ok(Self::Stored(StoredChunk { pack, offset, stored, plain, hash: ChunkHash(hash) }))
    }
}
