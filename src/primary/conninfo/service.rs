//! Service files: named sets of keywords (`parseServiceInfo`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{ConninfoError, Environment, Words, keyword};

/// Debian's directory of the system-wide file.
const SYSTEM_DIRECTORY: &str = "/etc/postgresql-common";

/// Fills keywords that are still open from the service that the words or `PGSERVICE` name.
pub(super) fn fill(words: &mut Words, environment: &Environment) -> Result<(), ConninfoError> {
    let named = words.get("service").map(|word| word.value.clone());
    let Some(service) = named.or_else(|| environment.variable("PGSERVICE").map(str::to_owned)) else { return Ok(()) };
    let fail = |problem: String| ConninfoError::Service { service: service.clone(), problem };
    let given = words.get("servicefile").map(|word| word.value.clone());
    let given = given.or_else(|| environment.variable("PGSERVICEFILE").map(str::to_owned)).map(PathBuf::from);
    let of_user = environment.home.as_ref().map(|home| home.join(".pg_service.conf"));
    let system = Path::new(environment.variable("PGSYSCONFDIR").unwrap_or(SYSTEM_DIRECTORY)).join("pg_service.conf");

    let must_exist = given.is_some();
    for path in [given.or(of_user), Some(system)].into_iter().flatten() {
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !must_exist => continue,
            Err(error) => return Err(fail(format!("cannot read {}: {error}", path.display()))),
        };
        if let Some(pairs) =
            section(&text, &service).map_err(|problem| fail(format!("{}: {problem}", path.display())))?
        {
            for (name, value) in pairs {
                let known = keyword::KEYWORDS.iter().find(|known| known.name == name);
                let known = known.ok_or_else(|| fail(format!("{}: unknown keyword \"{name}\"", path.display())))?;
                keyword::take_if_open(words, known, value, &format!("{}, {name}", path.display()));
            }
            return Ok(());
        }
        if must_exist {
            break;
        }
    }
    Err(fail("there is no such service in the service file".to_owned()))
}

/// The pairs of one section; `None` when the file does not have it.
fn section(text: &str, service: &str) -> Result<Option<Vec<(String, String)>>, String> {
    let mut pairs = None;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[') {
            if pairs.is_some() {
                break;
            }
            if name.strip_suffix(']') == Some(service) {
                pairs = Some(Vec::new());
            }
            continue;
        }
        let Some(pairs) = pairs.as_mut() else { continue };
        if line.starts_with("ldap") {
            return Err(format!("line {}: LDAP look-ups are not supported", index + 1));
        }
        let (name, value) =
            line.split_once('=').ok_or_else(|| format!("line {}: expected keyword=value", index + 1))?;
        if name == "service" || name == "servicefile" {
            return Err(format!("line {}: a service cannot name another", index + 1));
        }
        pairs.push((name.to_owned(), value.to_owned()));
    }
    Ok(pairs)
}
