//! `postgresql://user:password@host:port,…/dbname?keyword=value&…` (`conninfo_uri_parse`).

use super::{ConninfoError, Words, keyword};

/// How a URI begins.
pub(super) const SCHEMES: [&str; 2] = ["postgresql://", "postgres://"];

/// Reads a connection URI. Messages never repeat the text: it may hold a password.
pub(super) fn parse(text: &str) -> Result<Words, ConninfoError> {
    let body = SCHEMES.iter().find_map(|scheme| text.strip_prefix(scheme)).ok_or_else(|| syntax("not a URI"))?;
    let mut words = Words::new();
    let (before_query, query) = match body.split_once('?') {
        Some((before, query)) => (before, Some(query)),
        None => (body, None),
    };
    let (authority, path) = match before_query.split_once('/') {
        Some((authority, path)) => (authority, Some(path)),
        None => (before_query, None),
    };
    let hosts = match authority.rsplit_once('@') {
        Some((login, hosts)) => {
            take_login(&mut words, login)?;
            hosts
        }
        None => authority,
    };
    take_hosts(&mut words, hosts)?;
    if let Some(path) = path.filter(|path| !path.is_empty()) {
        keyword::take(&mut words, "dbname", decode(path)?)?;
    }
    for parameter in query.unwrap_or_default().split('&').filter(|parameter| !parameter.is_empty()) {
        take_parameter(&mut words, parameter)?;
    }
    Ok(words)
}

fn syntax(problem: &str) -> ConninfoError {
    ConninfoError::Syntax(problem.to_owned())
}

fn take_login(words: &mut Words, login: &str) -> Result<(), ConninfoError> {
    let (user, password) = match login.split_once(':') {
        Some((user, password)) => (user, Some(password)),
        None => (login, None),
    };
    if !user.is_empty() {
        keyword::take(words, "user", decode(user)?)?;
    }
    if let Some(password) = password.filter(|password| !password.is_empty()) {
        keyword::take(words, "password", decode(password)?)?;
    }
    Ok(())
}

/// `host:port,[::1]:port,…`; each may be empty.
fn take_hosts(words: &mut Words, text: &str) -> Result<(), ConninfoError> {
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    for item in text.split(',') {
        let (host, port) = if let Some(literal) = item.strip_prefix('[') {
            let (address, after) =
                literal.split_once(']').ok_or_else(|| syntax("an IPv6 address in the URI has no closing \"]\""))?;
            match after.strip_prefix(':') {
                Some(port) => (address, port),
                None if after.is_empty() => (address, ""),
                None => return Err(syntax("unexpected text after the IPv6 address in the URI")),
            }
        } else {
            item.split_once(':').unwrap_or((item, ""))
        };
        hosts.push(decode(host)?);
        ports.push(decode(port)?);
    }
    if hosts.iter().any(|host| !host.is_empty()) {
        keyword::take(words, "host", hosts.join(","))?;
    }
    if ports.iter().any(|port| !port.is_empty()) {
        keyword::take(words, "port", ports.join(","))?;
    }
    Ok(())
}

fn take_parameter(words: &mut Words, parameter: &str) -> Result<(), ConninfoError> {
    let (name, value) = parameter.split_once('=').ok_or_else(|| syntax("a query parameter of the URI has no \"=\""))?;
    if value.contains('=') {
        return Err(syntax("a query parameter of the URI has more than one \"=\""));
    }
    let (name, value) = (decode(name)?, decode(value)?);
    // JDBC's word, which libpq takes too.
    if name == "ssl" && value == "true" {
        return keyword::take(words, "sslmode", "require".to_owned());
    }
    keyword::take(words, &name, value)
}

/// Percent-decodes; `%00` is not allowed.
fn decode(text: &str) -> Result<String, ConninfoError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
        match (digit(), digit()) {
            (Some(0), Some(0)) => return Err(syntax("\"%00\" is not allowed in a URI")),
            (Some(high), Some(low)) => {
                bytes.push(u8::try_from(high * 16 + low).map_err(|_| syntax("a digit of the URI is out of range"))?);
            }
            _ => return Err(syntax("\"%\" in a URI must be followed by two hexadecimal digits")),
        }
    }
    String::from_utf8(bytes).map_err(|_| syntax("the URI is not UTF-8"))
}
