//! `keyword=value` pairs (`conninfo_parse`).

use super::{ConninfoError, Words, keyword};

/// Reads pairs separated by white space; values may stand in single quotes, `\` escapes the next character.
pub(super) fn parse(text: &str) -> Result<Words, ConninfoError> {
    let mut words = Words::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let name_end = rest.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(rest.len());
        let (name, after) = rest.split_at(name_end);
        let Some(after) = after.trim_start().strip_prefix('=') else {
            return Err(ConninfoError::Syntax(format!("missing \"=\" after \"{}\"", shown(name))));
        };
        let (value, after) = value(after.trim_start())?;
        keyword::take(&mut words, name, value)?;
        rest = after.trim_start();
    }
    Ok(words)
}

/// What may be repeated of a word that is not where it belongs: it may be part of a password.
fn shown(name: &str) -> &str {
    if keyword::KEYWORDS.iter().any(|known| known.name == name) { name } else { "…" }
}

/// One value and what follows it.
fn value(text: &str) -> Result<(String, &str), ConninfoError> {
    let (quoted, body) = match text.strip_prefix('\'') {
        Some(body) => (true, body),
        None => (false, text),
    };
    let mut value = String::new();
    let mut characters = body.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            '\'' if quoted => return Ok((value, &body[at + 1..])),
            c if c.is_whitespace() && !quoted => return Ok((value, &body[at..])),
            c => value.push(c),
        }
    }
    if quoted { Err(ConninfoError::Syntax("unterminated quoted value".to_owned())) } else { Ok((value, "")) }
}
