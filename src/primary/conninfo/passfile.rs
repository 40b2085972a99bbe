//! Password files: `hostname:port:database:username:password`, one server per line (`passwordFromFile`).

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use secrecy::SecretString;

use super::{Host, HostName};

/// A password file that cannot be used. libpq warns and goes on without; we say what is wrong when a password is needed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PassfileError {
    /// Others could read it.
    #[error("the password file {} is readable by group or others: chmod 0600", .0.display())]
    TooOpen(PathBuf),
    /// Not a regular file.
    #[error("the password file {} is not a plain file", .0.display())]
    NotAFile(PathBuf),
    /// It cannot be read.
    #[error("cannot read the password file {}: {reason}", path.display())]
    Unreadable {
        /// Its path.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// The largest password file that is read.
const MAX_SIZE: u64 = 16 << 20;

/// The password of the first line that fits; `None` when none does or the file does not exist.
pub(super) fn look_up(
    path: &Path,
    host: &Host,
    database: &str,
    user: &str,
) -> Result<Option<SecretString>, PassfileError> {
    let Some(text) = read_private(path)? else { return Ok(None) };
    let (host_name, port) = (name_for_look_up(host), host.port.to_string());
    let wanted = [host_name.as_str(), port.as_str(), database, user];
    Ok(text.lines().filter(|line| !line.starts_with('#')).find_map(|line| matching_password(line, wanted)))
}

/// The whole file as the password, without the line end at its end.
pub(super) fn read_whole(path: &Path) -> Result<SecretString, PassfileError> {
    let unreadable = |reason: String| PassfileError::Unreadable { path: path.to_owned(), reason };
    // Secrets mounted into containers are often readable by their group: the mode is not ours to judge here.
    let text = fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))?;
    let password = text.strip_suffix('\n').unwrap_or(&text);
    let password = password.strip_suffix('\r').unwrap_or(password);
    if password.is_empty() { Err(unreadable("it is empty".to_owned())) } else { Ok(password.to_owned().into()) }
}

/// The file's text; `None` when there is no such file.
fn read_private(path: &Path) -> Result<Option<String>, PassfileError> {
    let unreadable = |error: &io::Error| PassfileError::Unreadable { path: path.to_owned(), reason: error.to_string() };
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(&error)),
    };
    if !metadata.is_file() || metadata.len() > MAX_SIZE {
        return Err(PassfileError::NotAFile(path.to_owned()));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(PassfileError::TooOpen(path.to_owned()));
    }
    let bytes = fs::read(path).map_err(|error| unreadable(&error))?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// The host as lines name it: the default socket directory is "localhost".
fn name_for_look_up(host: &Host) -> String {
    match &host.name {
        HostName::Tcp(name) => name.clone(),
        HostName::Unix(directory) => {
            let default =
                ["/var/run/postgresql", "/run/postgresql", "/tmp"].iter().any(|known| directory == Path::new(known));
            if default { "localhost".to_owned() } else { directory.display().to_string() }
        }
    }
}

/// The fifth field when the first four fit, each being `*` or equal; `\` escapes the next character.
fn matching_password(line: &str, wanted: [&str; 4]) -> Option<SecretString> {
    let mut rest = line;
    for wanted in wanted {
        let (field, after) = next_field(rest);
        if field.raw != "*" && field.text != wanted {
            return None;
        }
        rest = after?;
    }
    let password = next_field(rest).0.text;
    (!password.is_empty()).then(|| password.into())
}

struct Field<'a> {
    raw: &'a str,
    text: String,
}

/// One field and what follows its colon, if there is one.
fn next_field(line: &str) -> (Field<'_>, Option<&str>) {
    let mut text = String::new();
    let mut characters = line.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '\\' => text.extend(characters.next().map(|(_, escaped)| escaped)),
            ':' => return (Field { raw: &line[..at], text }, Some(&line[at + 1..])),
            c => text.push(c),
        }
    }
    (Field { raw: line, text }, None)
}
