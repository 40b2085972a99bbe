//! The keywords of libpq (`PQconninfoOptions` of PostgreSQL 18) and what pgvault does with each.

use super::{ConninfoError, Word, Words};

/// One keyword.
pub(super) struct Keyword {
    pub(super) name: &'static str,
    pub(super) variable: Option<&'static str>,
    pub(super) treatment: Treatment,
}

/// What becomes of a value.
#[derive(Clone, Copy)]
pub(super) enum Treatment {
    /// It is used.
    Used,
    /// It has no meaning for pgvault and takes nothing away from anyone.
    Ignored,
    /// Only these values, which ask for nothing that we lack.
    Only(&'static [&'static str], &'static str),
    /// It cannot be honoured.
    Refused(&'static str),
}

use Treatment::{Ignored, Only, Refused, Used};

const fn keyword(name: &'static str, variable: &'static str, treatment: Treatment) -> Keyword {
    Keyword { name, variable: Some(variable), treatment }
}

const fn no_variable(name: &'static str, treatment: Treatment) -> Keyword {
    Keyword { name, variable: None, treatment }
}

const NO_OAUTH: Treatment = Refused("OAuth is not supported");
const NO_KERBEROS: &str = "Kerberos is not supported";

/// All keywords.
pub(super) const KEYWORDS: &[Keyword] = &[
    keyword("service", "PGSERVICE", Used),
    keyword("servicefile", "PGSERVICEFILE", Used),
    keyword("user", "PGUSER", Used),
    keyword("password", "PGPASSWORD", Used),
    keyword("passfile", "PGPASSFILE", Used),
    keyword("channel_binding", "PGCHANNELBINDING", Used),
    keyword("connect_timeout", "PGCONNECT_TIMEOUT", Used),
    keyword("dbname", "PGDATABASE", Used),
    keyword("host", "PGHOST", Used),
    keyword("hostaddr", "PGHOSTADDR", Used),
    keyword("port", "PGPORT", Used),
    keyword("client_encoding", "PGCLIENTENCODING", Ignored),
    keyword("options", "PGOPTIONS", Used),
    keyword("application_name", "PGAPPNAME", Used),
    no_variable("fallback_application_name", Used),
    no_variable("keepalives", Used),
    no_variable("keepalives_idle", Used),
    no_variable("keepalives_interval", Used),
    no_variable("keepalives_count", Used),
    no_variable("tcp_user_timeout", Used),
    keyword("sslmode", "PGSSLMODE", Used),
    keyword("sslnegotiation", "PGSSLNEGOTIATION", Used),
    keyword("sslcompression", "PGSSLCOMPRESSION", Ignored),
    keyword("sslcert", "PGSSLCERT", Used),
    keyword("sslkey", "PGSSLKEY", Used),
    keyword("sslcertmode", "PGSSLCERTMODE", Used),
    no_variable("sslpassword", Refused("encrypted key files are not supported: decrypt the key, with mode 0600")),
    keyword("sslrootcert", "PGSSLROOTCERT", Used),
    keyword("sslcrl", "PGSSLCRL", Used),
    keyword("sslcrldir", "PGSSLCRLDIR", Refused("directories of revocation lists are not supported: use sslcrl")),
    keyword("sslsni", "PGSSLSNI", Used),
    no_variable("sslkeylogfile", Refused("pgvault does not write TLS secrets to a file")),
    keyword("requirepeer", "PGREQUIREPEER", Refused("checking the owner of the socket's peer is not supported")),
    keyword("require_auth", "PGREQUIREAUTH", Used),
    keyword("min_protocol_version", "PGMINPROTOCOLVERSION", Only(&["3.0"], "pgvault speaks protocol 3.0")),
    keyword("max_protocol_version", "PGMAXPROTOCOLVERSION", Ignored),
    keyword("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION", Used),
    keyword("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION", Used),
    keyword("gssencmode", "PGGSSENCMODE", Only(&["disable", "prefer"], NO_KERBEROS)),
    keyword("krbsrvname", "PGKRBSRVNAME", Ignored),
    keyword("gsslib", "PGGSSLIB", Ignored),
    keyword("gssdelegation", "PGGSSDELEGATION", Only(&["0"], NO_KERBEROS)),
    no_variable("replication", Ignored),
    keyword("target_session_attrs", "PGTARGETSESSIONATTRS", Used),
    keyword("load_balance_hosts", "PGLOADBALANCEHOSTS", Only(&["disable"], "hosts are always tried in order")),
    no_variable("scram_client_key", Refused("SCRAM keys are not supported: give the password")),
    no_variable("scram_server_key", Refused("SCRAM keys are not supported: give the password")),
    no_variable("oauth_issuer", NO_OAUTH),
    no_variable("oauth_client_id", NO_OAUTH),
    no_variable("oauth_client_secret", NO_OAUTH),
    no_variable("oauth_scope", NO_OAUTH),
];

/// Takes one `name=value` into `words`; the last of several counts.
pub(super) fn take(words: &mut Words, name: &str, value: String) -> Result<(), ConninfoError> {
    let known = KEYWORDS.iter().find(|keyword| keyword.name == name).ok_or_else(|| unknown(name))?;
    words.insert(known.name, Word { value, origin: known.name.to_owned() });
    Ok(())
}

/// Takes what `fill` brings for keywords that are still open.
pub(super) fn take_if_open(words: &mut Words, known: &Keyword, value: String, origin: &str) {
    words.entry(known.name).or_insert_with(|| Word { value, origin: origin.to_owned() });
}

fn unknown(name: &str) -> ConninfoError {
    let distance = |keyword: &&Keyword| strsim::damerau_levenshtein(keyword.name, name);
    let suggestion = KEYWORDS.iter().min_by_key(distance).filter(|keyword| distance(keyword) <= 3);
    // A whole conninfo with a password may stand where a keyword was expected: show no more than a word.
    let shown: String = name.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').take(40).collect();
    ConninfoError::UnknownKeyword { keyword: shown, suggestion: suggestion.map(|keyword| keyword.name.to_owned()) }
}

/// Refuses values that cannot be honoured.
pub(super) fn check_support(words: &Words) -> Result<(), ConninfoError> {
    for keyword in KEYWORDS {
        let Some(word) = words.get(keyword.name).filter(|word| !word.value.is_empty()) else { continue };
        let reason = match keyword.treatment {
            Used | Ignored => continue,
            Only(values, _) if values.contains(&word.value.as_str()) => continue,
            Only(_, reason) | Refused(reason) => reason,
        };
        return Err(ConninfoError::Unsupported { origin: word.origin.clone(), reason: reason.to_owned() });
    }
    Ok(())
}
