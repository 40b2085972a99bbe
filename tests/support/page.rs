//! The snippets of a page of the documentation, so that tests run what people copy.

use std::fs;
use std::path::Path;

/// The first block of this language below a heading of any level.
pub fn snippet(page: &str, heading: &str, language: &str) -> String {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).unwrap();
    let fence = format!("```{language}");
    let mut lines =
        text.lines().skip_while(|line| line.trim_start_matches('#').trim() != heading || !line.starts_with('#'));
    assert!(lines.next().is_some(), "{page} has no heading {heading:?}");
    let block: Vec<&str> = lines
        .take_while(|line| !line.starts_with('#'))
        .skip_while(|line| **line != fence)
        .skip(1)
        .take_while(|line| *line != "```")
        .collect();
    assert!(!block.is_empty(), "{page} has no {language} under {heading:?}");
    block.join("\n") + "\n"
}
