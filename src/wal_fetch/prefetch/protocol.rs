//! What `wal fetch` and the prefetcher say to each other: one line there, lines back.

use std::str::FromStr;

use crate::wal_fetch::FetchName;

/// No line is longer, in bytes.
pub(super) const MAX_LINE: u64 = 4096;

/// What the prefetcher says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is at it.
    Wait,
    /// The file lies, whole and correct, under this name in the prefetcher's folder.
    Found(String),
    /// Authoritatively absent: asked of the repository just now.
    Absent,
    /// Neither can be said.
    Trouble,
}

/// The line is none of the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not understood: {0:?}")]
pub(super) struct NotUnderstood(String);

/// The line that asks for a file.
pub(super) fn ask(file: &FetchName) -> String {
    format!("fetch {file}\n")
}

/// The file that a line asks for.
pub(super) fn asked(line: &str) -> Result<FetchName, NotUnderstood> {
    let file = line.strip_suffix('\n').and_then(|line| line.strip_prefix("fetch "));
    file.and_then(|file| file.parse().ok()).ok_or_else(|| NotUnderstood(line.chars().take(100).collect()))
}

impl Answer {
    /// As a line.
    pub(super) fn to_line(&self) -> String {
        match self {
            Self::Wait => "wait\n".to_owned(),
            Self::Found(name) => format!("found {name}\n"),
            Self::Absent => "absent\n".to_owned(),
            Self::Trouble => "trouble\n".to_owned(),
        }
    }
}

impl FromStr for Answer {
    type Err = NotUnderstood;

    fn from_str(line: &str) -> Result<Self, NotUnderstood> {
        let refused = || NotUnderstood(line.chars().take(100).collect());
        // A line without its end is what a prefetcher that was killed began to say.
        match line.strip_suffix('\n').ok_or_else(refused)? {
            "wait" => Ok(Self::Wait),
            "absent" => Ok(Self::Absent),
            "trouble" => Ok(Self::Trouble),
            text => {
                let name = text.strip_prefix("found ").ok_or_else(refused)?;
                let plain = !name.is_empty() && name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric());
                if plain { Ok(Self::Found(name.to_owned())) } else { Err(refused()) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::any;
    use proptest::{prop_assert, proptest};

    use super::{Answer, ask, asked};

    #[test]
    fn what_is_said_is_understood() {
        for answer in [Answer::Wait, Answer::Absent, Answer::Trouble, Answer::Found("answer".to_owned())] {
            assert_eq!(answer.to_line().parse::<Answer>().unwrap(), answer);
        }
        for file in ["000000010000000500000012", "0000000A.history"] {
            let file = file.parse().unwrap();
            assert_eq!(asked(&ask(&file)).unwrap(), file);
        }
    }

    #[test]
    fn half_a_line_and_names_outside_of_the_folder_are_refused() {
        for line in ["absent", "", "found \n", "found ../x\n", "found a/b\n", "found .lock\n", "absent \n", "ABSENT\n"]
        {
            assert!(line.parse::<Answer>().is_err(), "{line:?}");
        }
        for line in ["fetch ../../etc/passwd\n", "fetch 0000000A.history", "0000000A.history\n"] {
            assert!(asked(line).is_err(), "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_says_more_than_it_should(text in any::<String>()) {
            if let Ok(answer) = text.parse::<Answer>() {
                prop_assert!(answer.to_line() == text);
            }
        }
    }
}
