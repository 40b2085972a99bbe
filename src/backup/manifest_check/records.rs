//! A list on disk of what arrived: first written, then read, in the same order.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::path::Path;

use recovery::DataPath;

use crate::backup::error::CopyError;
use crate::durable::{PRIVATE_FILE, TempFile};

/// What arrived of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Received {
    pub(super) size: u64,
    pub(super) crc32c: u32,
}

#[derive(Debug)]
pub(super) struct Records {
    temp: TempFile,
    side: Side,
    left: u64,
}

#[derive(Debug)]
enum Side {
    Write(BufWriter<File>),
    Read(BufReader<File>),
}

impl Records {
    pub(super) fn new(dir: &Path) -> Result<Self, CopyError> {
        let temp = TempFile::in_dir(dir, PRIVATE_FILE).map_err(CopyError::Scratch)?;
        let file = temp.file().try_clone().map_err(CopyError::Scratch)?;
        Ok(Self { temp, side: Side::Write(BufWriter::new(file)), left: 0 })
    }

    pub(super) fn push(&mut self, path: &DataPath, received: Received) -> Result<(), CopyError> {
        let Side::Write(writer) = &mut self.side else { return Err(CopyError::OutOfTurn("a file after the manifest")) };
        self.left += 1;
        write(writer, path, received).map_err(CopyError::Scratch)
    }

    /// The next one; the first call ends the writing.
    pub(super) fn next(&mut self) -> Result<Option<(DataPath, Received)>, CopyError> {
        let reader = match &mut self.side {
            Side::Read(reader) => reader,
            Side::Write(writer) => {
                writer.flush().map_err(CopyError::Scratch)?;
                let mut file = self.temp.file().try_clone().map_err(CopyError::Scratch)?;
                file.rewind().map_err(CopyError::Scratch)?;
                self.side = Side::Read(BufReader::new(file));
                return self.next();
            }
        };
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        read(reader).map(Some).map_err(CopyError::Scratch)
    }
}

fn write(writer: &mut impl Write, path: &DataPath, received: Received) -> io::Result<()> {
    let len = u16::try_from(path.as_bytes().len()).map_err(io::Error::other)?;
    writer.write_all(&len.to_le_bytes())?;
    writer.write_all(path.as_bytes())?;
    writer.write_all(&received.size.to_le_bytes())?;
    writer.write_all(&received.crc32c.to_le_bytes())
}

fn read(reader: &mut impl Read) -> io::Result<(DataPath, Received)> {
    let mut path = vec![0; usize::from(u16::from_le_bytes(array(reader)?))];
    reader.read_exact(&mut path)?;
    let path = DataPath::new(&path).map_err(io::Error::other)?;
    let size = u64::from_le_bytes(array(reader)?);
    Ok((path, Received { size, crc32c: u32::from_le_bytes(array(reader)?) }))
}

fn array<const N: usize>(reader: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}
