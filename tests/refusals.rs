//! Is what cannot be done refused: with its code, the reason and the way out, in both forms, and with nothing written?

mod damage;
mod servers;
mod targets;
mod wal_fetch;

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use crate::support::pgvault::Pgvault;
use crate::support::restored::listing;

/// What was refused, as `--json` and as text.
pub(crate) struct Refusal {
    pub(crate) json: Value,
    pub(crate) text: String,
}

impl Refusal {
    /// Panics unless message, causes or help say this.
    #[track_caller]
    pub(crate) fn says(&self, what: &str) -> &Self {
        assert!(self.text.contains(what), "{what:?} is not said in:\n{}", self.text);
        self
    }

    /// The cause that begins so, without that beginning.
    #[track_caller]
    pub(crate) fn cause(&self, beginning: &str) -> String {
        let causes = self.json["causes"].as_array().unwrap();
        let texts = causes.iter().map(|cause| cause.as_str().unwrap());
        let found = texts.clone().find_map(|cause| cause.strip_prefix(beginning));
        found.unwrap_or_else(|| panic!("no cause begins with {beginning:?}: {causes:?}")).to_owned()
    }
}

/// Runs a command in both forms, which must be refused so, and must leave everything below `watched` as it was.
#[track_caller]
pub(crate) fn refused(installed: &Pgvault, args: &[&str], watched: &[&Path], code: &str, exit: i32) -> Refusal {
    let before: Vec<BTreeSet<String>> = watched.iter().map(|path| listing(path)).collect();
    let output = installed.run(args);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(exit), "{args:?}: {text}");
    assert!(text.contains(&format!("error[{code}]: ")), "{args:?}: {text}");
    assert!(text.contains("\nhelp: "), "{args:?} leaves us without help: {text}");
    assert!(!text.contains("stack backtrace") && !text.contains("panicked"), "{text}");
    let (json_exit, json) = installed.json(args);
    assert_eq!((json_exit, &json["type"], &json["code"]), (exit, &"error".into(), &code.into()), "{args:?}: {json}");
    assert!(text.contains(json["message"].as_str().unwrap()), "{json}: {text}");
    assert!(json["help"].as_array().is_some_and(|help| !help.is_empty()), "{json}");
    let after: Vec<BTreeSet<String>> = watched.iter().map(|path| listing(path)).collect();
    for (before, after) in before.iter().zip(&after) {
        let changed: Vec<&String> = before.symmetric_difference(after).collect();
        assert!(changed.is_empty(), "{args:?} changed {changed:?}");
    }
    Refusal { json, text }
}
