//! From words to typed connection information, with libpq's defaults and its rules between keywords.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use super::{
    AuthMethod, ChannelBinding, Conninfo, ConninfoError, Environment, Host, HostName, Keepalive, Password, RequireAuth,
    RootCert, SslMode, SslNegotiation, TargetSessionAttrs, TlsWords, Words, keyword,
};

/// Understands every word.
pub(super) fn resolve(words: Words, environment: &Environment) -> Result<Conninfo, ConninfoError> {
    keyword::check_support(&words)?;
    let reader = Reader { words: &words };
    let user = match reader.text("user").or(environment.user.as_deref()) {
        Some(user) => user.to_owned(),
        None => return Err(ConninfoError::Contradiction("no user is named, and the system knows no name".to_owned())),
    };
    let passfile = reader.path("passfile").or_else(|| environment.home.as_ref().map(|home| home.join(".pgpass")));
    let conninfo = Conninfo {
        hosts: hosts(&reader, environment)?,
        user,
        dbname: reader.text("dbname").map(str::to_owned),
        password: Password { given: reader.text("password").map(Into::into), file: None, passfile },
        options: reader.text("options").map(str::to_owned),
        application_name: reader
            .text("application_name")
            .or_else(|| reader.text("fallback_application_name"))
            .map(str::to_owned),
        connect_timeout: reader.seconds("connect_timeout")?.filter(|limit| !limit.is_zero()),
        target_session_attrs: reader
            .word("target_session_attrs", TargetSessionAttrs::WORDS)?
            .unwrap_or(TargetSessionAttrs::Any),
        tls: tls(&reader, environment)?,
        channel_binding: reader.word("channel_binding", ChannelBinding::WORDS)?.unwrap_or(ChannelBinding::Prefer),
        require_auth: require_auth(&reader)?,
        keepalive: keepalive(&reader)?,
    };
    if conninfo.channel_binding == ChannelBinding::Require && conninfo.tls.mode == SslMode::Disable {
        return Err(ConninfoError::Contradiction("channel_binding=require needs TLS, and sslmode=disable".to_owned()));
    }
    Ok(conninfo)
}

/// Typed access to words; an empty value counts as not given.
struct Reader<'a> {
    words: &'a Words,
}

impl<'a> Reader<'a> {
    fn text(&self, name: &str) -> Option<&'a str> {
        self.words.get(name).map(|word| word.value.as_str()).filter(|value| !value.is_empty())
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.text(name).map(PathBuf::from)
    }

    fn invalid(&self, name: &str, value: &str, expected: impl Into<String>) -> ConninfoError {
        let origin = self.words.get(name).map_or(name, |word| word.origin.as_str());
        ConninfoError::InvalidValue { origin: origin.to_owned(), value: value.to_owned(), expected: expected.into() }
    }

    fn word<T: FromStr>(&self, name: &str, allowed: &[&str]) -> Result<Option<T>, ConninfoError> {
        let Some(text) = self.text(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| self.invalid(name, text, format!("one of {}", allowed.join(", "))))
    }

    fn number(&self, name: &str) -> Result<Option<i64>, ConninfoError> {
        let Some(text) = self.text(name) else { return Ok(None) };
        text.trim().parse().map(Some).map_err(|_| self.invalid(name, text, "a number"))
    }

    /// Negative counts as zero, as in libpq.
    fn seconds(&self, name: &str) -> Result<Option<Duration>, ConninfoError> {
        Ok(self.number(name)?.map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0))))
    }

    fn flag(&self, name: &str, default: bool) -> Result<bool, ConninfoError> {
        match self.text(name) {
            None => Ok(default),
            Some("1") => Ok(true),
            Some("0") => Ok(false),
            Some(other) => Err(self.invalid(name, other, "0 or 1")),
        }
    }

    /// A comma-separated list; empty items stay.
    fn list(&self, name: &str) -> Vec<&'a str> {
        self.text(name).map(|text| text.split(',').map(str::trim).collect()).unwrap_or_default()
    }
}

/// Pairs hosts, addresses and ports as `connectOptions2` does.
fn hosts(reader: &Reader<'_>, environment: &Environment) -> Result<Vec<Host>, ConninfoError> {
    let (names, addresses, ports) = (reader.list("host"), reader.list("hostaddr"), reader.list("port"));
    let count = names.len().max(addresses.len()).max(1);
    let contradiction = |text: String| Err(ConninfoError::Contradiction(text));
    if !names.is_empty() && !addresses.is_empty() && names.len() != addresses.len() {
        return contradiction(format!("{} hosts, but {} hostaddr values", names.len(), addresses.len()));
    }
    if ports.len() > 1 && ports.len() != count {
        return contradiction(format!("{} ports for {count} hosts", ports.len()));
    }
    (0..count)
        .map(|index| {
            let port = if ports.len() == 1 { ports.first() } else { ports.get(index) };
            Ok(Host {
                name: host_name(names.get(index), addresses.get(index), environment),
                address: addresses
                    .get(index)
                    .filter(|text| !text.is_empty())
                    .map(|text| address(reader, text))
                    .transpose()?,
                port: port.filter(|text| !text.is_empty()).map_or(Ok(5432), |text| port_number(reader, text))?,
            })
        })
        .collect()
}

fn host_name(name: Option<&&str>, address: Option<&&str>, environment: &Environment) -> HostName {
    match (name.copied().unwrap_or_default(), address.copied().unwrap_or_default()) {
        ("", "") => match &environment.socket_directory {
            Some(directory) => HostName::Unix(directory.clone()),
            None => HostName::Tcp("localhost".to_owned()),
        },
        ("", address) => HostName::Tcp(address.to_owned()),
        (name, _) if name.starts_with('/') || name.starts_with('@') => HostName::Unix(PathBuf::from(name)),
        (name, _) => HostName::Tcp(name.to_owned()),
    }
}

fn address(reader: &Reader<'_>, text: &str) -> Result<IpAddr, ConninfoError> {
    text.parse().map_err(|_| reader.invalid("hostaddr", text, "an IP address"))
}

fn port_number(reader: &Reader<'_>, text: &str) -> Result<u16, ConninfoError> {
    let port = text.parse().ok().filter(|&port: &u16| port != 0);
    port.ok_or_else(|| reader.invalid("port", text, "a port from 1 to 65535"))
}

fn tls(reader: &Reader<'_>, environment: &Environment) -> Result<TlsWords, ConninfoError> {
    let of_user = |name: &str| {
        let path = environment.home.as_ref()?.join(".postgresql").join(name);
        path.exists().then_some(path)
    };
    let root_cert = match reader.text("sslrootcert") {
        Some("system") => RootCert::System,
        Some(path) => RootCert::File(PathBuf::from(path)),
        None => of_user("root.crt").map_or(RootCert::Absent, RootCert::File),
    };
    let default_mode = if root_cert == RootCert::System { SslMode::VerifyFull } else { SslMode::Prefer };
    let mode = reader.word("sslmode", SslMode::WORDS)?.unwrap_or(default_mode);
    if root_cert == RootCert::System && mode != SslMode::VerifyFull {
        let text = format!("sslmode={mode} is weaker than sslrootcert=system needs: use verify-full");
        return Err(ConninfoError::Contradiction(text));
    }
    let negotiation = reader.word("sslnegotiation", SslNegotiation::WORDS)?.unwrap_or(SslNegotiation::Postgres);
    if negotiation == SslNegotiation::Direct && mode < SslMode::Require {
        let text =
            format!("sslmode={mode} is too weak for sslnegotiation=direct: use require, verify-ca or verify-full");
        return Err(ConninfoError::Contradiction(text));
    }
    let (lowest, highest) =
        (tls_version(reader, "ssl_min_protocol_version")?, tls_version(reader, "ssl_max_protocol_version")?);
    let (only_tls13, only_tls12) = (lowest == Some(13), highest.is_some_and(|version| version < 13));
    if only_tls13 && only_tls12 || highest.is_some_and(|version| version < 12) {
        return Err(ConninfoError::Contradiction("no TLS version is left: pgvault speaks 1.2 and 1.3".to_owned()));
    }
    Ok(TlsWords {
        mode,
        negotiation,
        root_cert,
        crl: reader.path("sslcrl").or_else(|| of_user("root.crl")),
        client: client_certificate(reader, of_user("postgresql.crt"), environment.home.as_deref())?,
        sni: reader.flag("sslsni", true)?,
        only_tls13,
        only_tls12,
    })
}

fn tls_version(reader: &Reader<'_>, name: &str) -> Result<Option<u8>, ConninfoError> {
    match reader.text(name) {
        None => Ok(None),
        Some("TLSv1") => Ok(Some(10)),
        Some("TLSv1.1") => Ok(Some(11)),
        Some("TLSv1.2") => Ok(Some(12)),
        Some("TLSv1.3") => Ok(Some(13)),
        Some(other) => Err(reader.invalid(name, other, "one of TLSv1, TLSv1.1, TLSv1.2, TLSv1.3")),
    }
}

fn client_certificate(
    reader: &Reader<'_>,
    default: Option<PathBuf>,
    home: Option<&Path>,
) -> Result<Option<(PathBuf, PathBuf)>, ConninfoError> {
    let mode = reader.text("sslcertmode").unwrap_or("allow");
    if !["allow", "disable", "require"].contains(&mode) {
        return Err(reader.invalid("sslcertmode", mode, "one of disable, allow, require"));
    }
    let certificate = reader.path("sslcert").or(default).filter(|_| mode != "disable");
    let key = reader.path("sslkey").or_else(|| home.map(|home| home.join(".postgresql/postgresql.key")));
    match (certificate, key) {
        (Some(certificate), Some(key)) => Ok(Some((certificate, key))),
        (Some(_), None) => Err(ConninfoError::Contradiction("sslcert is given, but no sslkey".to_owned())),
        (None, _) if mode == "require" => {
            Err(ConninfoError::Contradiction("sslcertmode=require, but there is no client certificate".to_owned()))
        }
        (None, _) => Ok(None),
    }
}

fn require_auth(reader: &Reader<'_>) -> Result<RequireAuth, ConninfoError> {
    let text = reader.text("require_auth").unwrap_or_default();
    let methods = RequireAuth::parse(text).map_err(|expected| reader.invalid("require_auth", text, expected))?;
    let available = [AuthMethod::Password, AuthMethod::Md5, AuthMethod::ScramSha256, AuthMethod::None];
    if !methods.only.is_empty() && !methods.only.iter().any(|method| available.contains(method)) {
        return Err(reader.invalid(
            "require_auth",
            text,
            "a method that pgvault has: scram-sha-256, none, md5, password",
        ));
    }
    Ok(methods)
}

fn keepalive(reader: &Reader<'_>) -> Result<Keepalive, ConninfoError> {
    let nonzero = |limit: &Duration| !limit.is_zero();
    let count = reader.number("keepalives_count")?.filter(|&count| count > 0);
    let user_timeout = match reader.number("tcp_user_timeout")? {
        // Zero is the system's own limit, about a quarter of an hour.
        Some(0) => None,
        Some(milliseconds) => u64::try_from(milliseconds).ok().map(Duration::from_millis),
        None => Some(Duration::from_secs(60)),
    };
    Ok(Keepalive {
        on: reader.flag("keepalives", true)?,
        idle: reader.seconds("keepalives_idle")?.filter(nonzero).unwrap_or(Duration::from_secs(30)),
        interval: reader.seconds("keepalives_interval")?.filter(nonzero).unwrap_or(Duration::from_secs(10)),
        count: count.and_then(|count| u32::try_from(count).ok()).unwrap_or(3),
        user_timeout,
    })
}
