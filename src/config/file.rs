//! The file as it is written: TOML, every key known, every problem shown where it stands.

use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{self, Place, Section};
use super::settings::{Origin, Raw, Settings, Snippet, fits};
use super::values;
use crate::error::{Error, ErrorCode, Result};

/// Sections that a file can have, for "did you mean".
const TABLES: [&str; 6] = ["daemon", "repository", "cluster", "spool", "http", "log"];

/// Reads the text of one file into `settings`.
pub(super) fn read(path: &Path, text: &str, settings: &mut Settings) -> Result<()> {
    let reader = Reader { path, text };
    let document = DeTable::parse(text).map_err(|error| reader.syntax(&error))?;
    for (name, value) in document.get_ref() {
        let section = match name.get_ref().as_ref() {
            "daemon" => Section::Daemon,
            "repository" => Section::Repository,
            "spool" => Section::Spool,
            "http" => Section::Http,
            "log" => Section::Log,
            "cluster" => {
                reader.clusters(value, settings)?;
                continue;
            }
            other => return Err(reader.unknown(name.span(), other, "the file", &TABLES)),
        };
        reader.section(&section, value, settings)?;
    }
    Ok(())
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Reader<'_> {
    fn snippet(&self, span: std::ops::Range<usize>) -> Snippet {
        Snippet::new(self.path.to_owned(), self.text, span)
    }

    fn syntax(&self, error: &toml::de::Error) -> Error {
        let message = format!("{} is not valid TOML: {}", self.path.display(), error.message());
        let wrong = Error::new(ErrorCode::InvalidConfig, message);
        match error.span() {
            Some(span) => self.snippet(span).explain(wrong),
            None => wrong,
        }
    }

    fn unknown(&self, span: std::ops::Range<usize>, name: &str, place: &str, known: &[&str]) -> Error {
        let error =
            self.snippet(span).explain(Error::new(ErrorCode::UnknownKey, format!("unknown key `{name}` in {place}")));
        match keys::nearest(name, known.iter().copied()) {
            Some(near) => error.help(format!("did you mean `{near}`?")),
            None => error.help(format!("known here: {}", known.join(", "))),
        }
    }

    fn table<'t, 'i>(&self, name: &str, value: &'t Spanned<DeValue<'i>>) -> Result<&'t DeTable<'i>> {
        match value.get_ref() {
            DeValue::Table(table) => Ok(table),
            _ => Err(self
                .snippet(value.span())
                .explain(Error::new(ErrorCode::InvalidConfig, format!("`{name}` must be a table, written [{name}]")))),
        }
    }

    /// `[cluster.NAME]` and what lies in each.
    fn clusters(&self, value: &Spanned<DeValue<'_>>, settings: &mut Settings) -> Result<()> {
        for (name, value) in self.table("cluster", value)? {
            let cluster = values::cluster_name(name.get_ref()).map_err(|what| {
                let hint =
                    if keys::find(Place::Cluster, name.get_ref()).is_some() { Some("[cluster.main]") } else { None };
                let error = Error::new(ErrorCode::InvalidConfig, format!("\"{}\" {what}", name.get_ref()));
                let error = self.snippet(name.span()).explain(error);
                hint.map_or(error.clone(), |table| {
                    error.help(format!("keys of a cluster stand in a table such as {table}"))
                })
            })?;
            if !matches!(value.get_ref(), DeValue::Table(_)) && keys::find(Place::Cluster, &cluster).is_some() {
                let error = Error::new(
                    ErrorCode::InvalidConfig,
                    format!("`{cluster}` stands in [cluster] without a cluster's name"),
                );
                return Err(self
                    .snippet(name.span())
                    .explain(error)
                    .help("write it in a table such as [cluster.main]"));
            }
            settings.name_cluster(&cluster);
            self.section(&Section::Cluster(cluster), value, settings)?;
        }
        Ok(())
    }

    fn section(&self, section: &Section, value: &Spanned<DeValue<'_>>, settings: &mut Settings) -> Result<()> {
        for (name, value) in self.table(&section.to_string(), value)? {
            if let (Section::Cluster(cluster), "retention") = (section, name.get_ref().as_ref()) {
                self.section(&Section::Retention(cluster.clone()), value, settings)?;
                continue;
            }
            let Some(key) = keys::find(section.place(), name.get_ref()) else {
                let known: Vec<&str> = keys::of(section.place()).map(|key| key.name).collect();
                return Err(self.unknown(name.span(), name.get_ref(), &format!("[{section}]"), &known));
            };
            let raw = raw(value.get_ref()).filter(|raw| fits(key.form, raw)).ok_or_else(|| {
                let wanted = match key.form {
                    keys::Form::Text => "a string, in quotes",
                    keys::Form::Bool => "true or false",
                    keys::Form::Integer => "a whole number",
                    keys::Form::List => "an array of strings",
                };
                let error =
                    Error::new(ErrorCode::InvalidConfig, format!("`{}` in [{section}] must be {wanted}", key.name));
                self.snippet(value.span()).explain(error)
            })?;
            settings.set(section.clone(), key, raw, Origin::File(self.snippet(value.span())));
        }
        Ok(())
    }
}

/// The value as we keep it; `None` for forms that no key has.
fn raw(value: &DeValue<'_>) -> Option<Raw> {
    match value {
        DeValue::String(text) => Some(Raw::Text(text.to_string())),
        DeValue::Boolean(value) => Some(Raw::Bool(*value)),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).ok().map(Raw::Integer),
        DeValue::Array(items) => {
            let text = |item: &Spanned<DeValue<'_>>| match item.get_ref() {
                DeValue::String(text) => Some(text.to_string()),
                _ => None,
            };
            items.iter().map(text).collect::<Option<Vec<_>>>().map(Raw::List)
        }
        DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Table(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        read(Path::new("pgvault.toml"), text, &mut Settings::default()).unwrap_err().to_string()
    }

    #[test]
    fn an_unknown_key_is_shown_with_file_line_caret_and_suggestion() {
        let text = "[cluster.main]\nconninfo = \"host=db\"\nshedule = \"0 3 * * *\"\n";
        assert_eq!(
            error(text),
            "error[E0101]: unknown key `shedule` in [cluster.main]\n  \
             --> pgvault.toml:3:1\n    |\n  3 | shedule = \"0 3 * * *\"\n    | ^^^^^^^\n\
             help: did you mean `schedule`?"
        );
    }

    #[test]
    fn unknown_tables_and_far_words_list_what_is_known() {
        assert!(error("[repo]\nurl = \"x\"\n").contains("known here: daemon, repository"), "{}", error("[repo]\n"));
        assert!(error("[repositry]\n").ends_with("help: did you mean `repository`?"));
        assert!(error("[spool]\nzzz = 1\n").contains("known here: dir, max_size, on_full"));
        assert!(error("[cluster.main.retention]\nredundency = 2\n").contains("did you mean `redundancy`?"));
    }

    #[test]
    fn values_of_the_wrong_form_are_shown_where_they_stand() {
        let text = error("[cluster.main]\ncreate_slot = \"maybe\"\n");
        assert!(
            text.starts_with(
                "error[E0104]: `create_slot` in [cluster.main] must be true or false\n  --> pgvault.toml:2:15"
            ),
            "{text}"
        );
        assert!(text.contains("    |               ^^^^^^^"), "{text}");
        assert!(error("[log]\nrotate_keep = 1.5\n").contains("must be a whole number"));
        assert!(error("log = 1\n").contains("`log` must be a table, written [log]"));
        assert!(error("[cluster.main]\npatroni_urls = [1]\n").contains("must be an array of strings"));
    }

    #[test]
    fn broken_toml_is_shown_where_it_breaks() {
        let text = error("[http\nlisten = 1\n");
        assert!(text.starts_with("error[E0104]: pgvault.toml is not valid TOML: "), "{text}");
        assert!(text.contains("--> pgvault.toml:1:"), "{text}");
    }

    #[test]
    fn cluster_keys_need_a_clusters_name() {
        assert!(error("[cluster]\nslot = \"x\"\n").contains("help: write it in a table such as [cluster.main]"));
        assert!(error("[cluster.Main]\n").contains("is not a name for a cluster"));
    }

    #[test]
    fn everything_in_the_interface_is_accepted() {
        let text = include_str!("every_key.toml");
        let mut settings = Settings::default();
        read(Path::new("every_key.toml"), text, &mut settings).unwrap();
        let set: Vec<&str> = settings.iter().map(|(_, name, _)| name).collect();
        for key in keys::KEYS {
            assert!(set.contains(&key.name), "{} is not in every_key.toml", key.name);
        }
    }
}
