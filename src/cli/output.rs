//! The only place that writes to the terminal: data to stdout, everything else to stderr.

use std::io::{self, IsTerminal, Write};

use comfy_table::{ContentArrangement, Table};
use serde_json::{Value, json};

use crate::error::Error;

/// How to talk to whoever started us.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    /// JSON in place of text.
    pub(super) json: bool,
    /// Errors and data only.
    pub(super) quiet: bool,
    /// Colours on stdout.
    pub(super) color: bool,
}

impl Output {
    /// By flags and by the conventions `NO_COLOR`, `CLICOLOR_FORCE` and `TERM=dumb`.
    pub(super) fn new(json: bool, quiet: bool, no_color: bool, variable: impl Fn(&str) -> Option<String>) -> Self {
        let forced = variable("CLICOLOR_FORCE").is_some_and(|value| value != "0");
        let dumb = variable("TERM").is_some_and(|term| term == "dumb");
        let refused = no_color || variable("NO_COLOR").is_some_and(|value| !value.is_empty());
        let color = !refused && (forced || (io::stdout().is_terminal() && !dumb));
        Self { json, quiet, color }
    }

    /// Data, as text.
    pub(super) fn text(&self, text: &str) {
        write_line(&mut io::stdout().lock(), text);
    }

    /// Data, as one JSON document on one line.
    pub(super) fn document(&self, value: &Value) {
        write_line(&mut io::stdout().lock(), &value.to_string());
    }

    /// Something to know that is not data.
    pub(super) fn note(&self, text: &str) {
        if !self.quiet {
            write_line(&mut io::stderr().lock(), text);
        }
    }

    /// What went wrong: to stderr, and with `--json` as the last line of stdout.
    pub(super) fn error(&self, error: &Error) {
        write_line(&mut io::stderr().lock(), &error.to_string());
        if self.json {
            self.document(&error_document(error));
        }
    }

    /// A word in colour, when colours are wanted.
    pub(super) fn paint(&self, color: Color, text: &str) -> String {
        if self.color { format!("\x1b[{}m{text}\x1b[0m", color as u8) } else { text.to_owned() }
    }

    /// Rows under a header; columns are as wide as they need to be.
    pub(super) fn table(&self, header: &[&str], rows: Vec<Vec<String>>) {
        self.text(&render_table(header, rows));
    }
}

/// Colours, by their number in SGR.
#[derive(Clone, Copy, Debug)]
pub(super) enum Color {
    /// Bad.
    Red = 31,
    /// Good.
    Green = 32,
    /// Look here.
    Yellow = 33,
}

/// INTERFACE section 3, with the causes added.
pub(super) fn error_document(error: &Error) -> Value {
    json!({
        "type": "error",
        "code": error.code().as_str(),
        "message": error.message(),
        "causes": error.causes(),
        "help": error.help_lines(),
    })
}

/// A table as text, without a line end.
pub(super) fn render_table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().copied());
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// A reader that went away (`pgvault … | head`) is no error; nothing else can be done about a terminal that fails.
fn write_line(to: &mut dyn Write, text: &str) {
    if let Err(error) = writeln!(to, "{text}").and_then(|()| to.flush())
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        tracing::debug!(%error, "cannot write to the terminal");
    }
}

/// Bytes for people: `41.2 GiB`.
pub(super) fn bytes(count: u64) -> String {
    let mut value = count as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB", "PiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{count} B") } else { format!("{value:.1} {unit}") }
}

/// A length of time for people, the two largest units: `7 d 3 h`, `11 min 4 s`.
pub(super) fn seconds(seconds: i64) -> String {
    let total = seconds.unsigned_abs();
    let parts = [("d", total / 86_400), ("h", total / 3_600 % 24), ("min", total / 60 % 60), ("s", total % 60)];
    let first = parts.iter().position(|(_, count)| *count > 0).unwrap_or(3);
    let text: Vec<String> = parts[first..]
        .iter()
        .take(2)
        .filter(|(_, count)| *count > 0)
        .map(|(unit, count)| format!("{count} {unit}"))
        .collect();
    if text.is_empty() { "0 s".to_owned() } else { text.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorCode;

    #[test]
    fn an_error_is_one_document() {
        let error = Error::new(ErrorCode::NotFound, "no such cluster \"x\"").because("why").help("do this");
        let document = error_document(&error);
        assert_eq!(document["type"], "error");
        assert_eq!(document["code"], "E0004");
        assert_eq!(document["help"][0], "do this");
    }

    #[test]
    fn amounts_are_for_people() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(44_237_851_034), "41.2 GiB");
        assert_eq!(seconds(0), "0 s");
        assert_eq!(seconds(664), "11 min 4 s");
        assert_eq!(seconds(615_600), "7 d 3 h");
        assert_eq!(seconds(86_400), "1 d");
    }

    #[test]
    fn a_table_has_aligned_columns() {
        let rows = vec![vec!["a".to_owned(), "1".to_owned()], vec!["long".to_owned(), "2".to_owned()]];
        assert_eq!(render_table(&["name", "n"], rows), "name  n\na     1\nlong  2");
    }
}
