//! What stands before a header and changes it: GNU long names, PAX records.

use recovery::DataPath;

use super::header::{Header, TypeFlag};
use super::{Member, MemberKind, TarProblem};

/// The largest size that eleven octal digits hold.
const MAX_OCTAL_SIZE: u64 = (1 << 33) - 1;

/// What the extensions before a member said.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    seen_pax: bool,
}

impl Extensions {
    pub(super) fn is_empty(&self) -> bool {
        self.path.is_none() && self.link.is_none() && self.size.is_none() && !self.seen_pax
    }

    /// Takes the content of an extension.
    pub(super) fn add(&mut self, kind: TypeFlag, content: &[u8]) -> Result<(), TarProblem> {
        match kind {
            TypeFlag::LongName => once(&mut self.path, terminated(content)?),
            TypeFlag::LongLink => once(&mut self.link, terminated(content)?),
            _ if self.seen_pax => Err(TarProblem::Extension("was given twice")),
            _ => {
                self.seen_pax = true;
                self.pax(content)
            }
        }
    }

    /// `<length of the record> <key>=<value>\n`, again and again.
    fn pax(&mut self, mut content: &[u8]) -> Result<(), TarProblem> {
        let malformed = TarProblem::Extension("is not well formed");
        while !content.is_empty() {
            let space = content.iter().position(|&byte| byte == b' ').ok_or(malformed.clone())?;
            let (digits, _) = content.split_at(space);
            let len = decimal(digits).and_then(|len| usize::try_from(len).ok()).ok_or(malformed.clone())?;
            let record = content.get(space + 1..len).ok_or(malformed.clone())?;
            content = &content[len..];
            let record = record.strip_suffix(b"\n").ok_or(malformed.clone())?;
            let equals = record.iter().position(|&byte| byte == b'=').ok_or(malformed.clone())?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" => once(&mut self.path, value.to_vec())?,
                b"linkpath" => once(&mut self.link, value.to_vec())?,
                b"size" => once(&mut self.size, decimal(value).ok_or(TarProblem::Number("size"))?)?,
                sparse if sparse.starts_with(b"GNU.sparse.") => return Err(TarProblem::Kind("a sparse file")),
                // Times, owners, comments: nothing that a backup needs.
                _ => {}
            }
        }
        Ok(())
    }

    /// The member that `header` and the extensions before it describe.
    pub(super) fn apply(self, header: Header) -> Result<Member, TarProblem> {
        let size = match self.size {
            // The header says the same, or cannot say it: two readers must not see two archives in these bytes.
            Some(size) if size != header.size && (size <= MAX_OCTAL_SIZE || header.size > MAX_OCTAL_SIZE) => {
                return Err(TarProblem::Extension("contradicts it about the size"));
            }
            Some(size) => size,
            None => header.size,
        };
        let name = self.path.unwrap_or(header.name);
        // PostgreSQL sends "./pg_wal/archive_status"; GNU tar begins every name so when asked for ".".
        let name = name.strip_prefix(b"./").unwrap_or(&name);
        let link = self.link.unwrap_or(header.link);
        // PostgreSQL and others end the names of directories, and of links to them, with a slash.
        let (kind, name) = match header.kind {
            TypeFlag::Directory => (MemberKind::Directory, name.strip_suffix(b"/").unwrap_or(name)),
            TypeFlag::Symlink => (MemberKind::Symlink(link), name.strip_suffix(b"/").unwrap_or(name)),
            _ => (MemberKind::File, name),
        };
        if kind != MemberKind::File && size != 0 {
            return Err(TarProblem::UnexpectedData(size));
        }
        Ok(Member { path: DataPath::new(name)?, kind, size, mode: header.mode, mtime: header.mtime })
    }
}

fn once<T>(place: &mut Option<T>, value: T) -> Result<(), TarProblem> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(TarProblem::Extension("was given twice")),
    }
}

/// GNU ends long names with a NUL.
fn terminated(content: &[u8]) -> Result<Vec<u8>, TarProblem> {
    let name = content.strip_suffix(b"\0").ok_or(TarProblem::Extension("is not well formed"))?;
    Ok(name.to_vec())
}

fn decimal(digits: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(digits).ok()?;
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}
