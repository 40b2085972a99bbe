//! Cuts the JSON of a manifest into the pieces that are parsed: members of the outer object, elements of its lists.

use super::PgManifestError;

/// A piece is at most this long: a file's entry with a name of 4 KiB, twice as long in hexadecimal digits, fits.
const MAX_UNIT: usize = 64 << 10;

/// A piece of the manifest.
#[derive(Debug)]
pub(super) enum Unit {
    /// `"key": scalar` of the outer object.
    Member(Vec<u8>),
    /// A list begins, with this name.
    ArrayBegins(String),
    /// An object of the list of this name.
    Element(String, Vec<u8>),
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Place {
    /// Before the outer object.
    #[default]
    Before,
    /// In the outer object.
    Outer,
    /// In a list of it, between elements.
    List,
    /// In an element, this many objects or lists deep.
    Element(u32),
    /// After the outer object.
    After,
}

/// Finds the pieces without understanding them: it counts brackets and knows strings.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    place: Place,
    in_string: bool,
    escaped: bool,
    unit: Vec<u8>,
    list: String,
    after_list: bool,
    position: u64,
}

impl Scanner {
    /// How many bytes were taken.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Whether the outer object was closed.
    pub(super) fn is_complete(&self) -> bool {
        self.place == Place::After
    }

    /// Takes a byte; returns the piece that it ends.
    pub(super) fn push(&mut self, byte: u8) -> Result<Option<Unit>, PgManifestError> {
        self.position += 1;
        if self.in_string {
            self.keep(byte)?;
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return Ok(None);
        }
        if byte.is_ascii_whitespace() {
            return Ok(None);
        }
        match (&mut self.place, byte) {
            (Place::Before, b'{') => self.place = Place::Outer,
            (Place::Outer, b'"') | (Place::Element(_), b'"') => {
                self.in_string = true;
                self.keep(byte)?;
            }
            (Place::Outer, b',' | b'}') => {
                if byte == b'}' {
                    self.place = Place::After;
                }
                let member = std::mem::take(&mut self.unit);
                match (std::mem::take(&mut self.after_list), member.is_empty()) {
                    (true, true) => {}
                    (false, false) => return Ok(Some(Unit::Member(member))),
                    _ => return Err(self.unexpected(byte)),
                }
            }
            (Place::Outer, b'[') => {
                let key = std::mem::take(&mut self.unit);
                let key = key.strip_prefix(b"\"").and_then(|key| key.strip_suffix(b"\":"));
                let name = key.and_then(|key| std::str::from_utf8(key).ok()).ok_or_else(|| self.unexpected(byte))?;
                self.list = name.to_owned();
                self.place = Place::List;
                return Ok(Some(Unit::ArrayBegins(self.list.clone())));
            }
            (Place::Outer, b'{' | b']') => return Err(self.unexpected(byte)),
            (Place::Outer, _) if self.after_list => return Err(self.unexpected(byte)),
            (Place::Outer, _) => self.keep(byte)?,
            (Place::List, b'{') => {
                self.place = Place::Element(1);
                self.keep(byte)?;
            }
            (Place::List, b',') => {}
            (Place::List, b']') => {
                self.place = Place::Outer;
                self.after_list = true;
            }
            (Place::Element(depth), b'{' | b'[') => {
                *depth += 1;
                self.keep(byte)?;
            }
            (Place::Element(depth), b'}' | b']') => {
                *depth -= 1;
                let ended = *depth == 0;
                self.keep(byte)?;
                if ended {
                    self.place = Place::List;
                    return Ok(Some(Unit::Element(self.list.clone(), std::mem::take(&mut self.unit))));
                }
            }
            (Place::Element(_), _) => self.keep(byte)?,
            (Place::Before | Place::List | Place::After, _) => return Err(self.unexpected(byte)),
        }
        Ok(None)
    }

    fn keep(&mut self, byte: u8) -> Result<(), PgManifestError> {
        if self.unit.len() >= MAX_UNIT {
            let what = "an entry is longer than any of PostgreSQL's".to_owned();
            return Err(PgManifestError::Malformed { at: self.position, what });
        }
        self.unit.push(byte);
        Ok(())
    }

    fn unexpected(&self, byte: u8) -> PgManifestError {
        PgManifestError::Malformed { at: self.position, what: format!("unexpected {:?}", char::from(byte)) }
    }
}
