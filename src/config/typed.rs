//! Settings become a [`Config`]: every value parsed, every contradiction refused.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;

use super::environment::{self, Variables};
use super::settings::Settings;
use super::{
    ClusterConfig, Config, HttpConfig, IdentityConfig, LogConfig, LogFormat, RepositoryConfig, RetentionConfig,
    Schedule, SpoolConfig,
};
use super::{keys::Section, values};
use crate::codec::Compression;
use crate::error::{Error, ErrorCode, Result};
use crate::patroni::PatroniUrl;
use crate::repository::keys::Recipient;
use crate::storage::StorageOptions;

/// Parses and checks everything.
pub(super) fn typed(files: Vec<PathBuf>, settings: Settings, variables: &Variables) -> Result<Config> {
    let variables = variables.with_secrets_resolved()?;
    let state_dir =
        settings.text(&Section::Daemon, "state_dir")?.filter(|_| settings.get(&Section::Daemon, "state_dir").is_some());
    let state_dir = state_dir.map_or_else(|| environment::default_state_dir(&variables).0, PathBuf::from);
    let state_dir = absolute(&settings, &Section::Daemon, "state_dir", state_dir)?;
    Ok(Config {
        repository: repository(&settings, &variables, &state_dir)?,
        clusters: settings.clusters().iter().map(|name| cluster(&settings, name)).collect::<Result<_>>()?,
        spool: spool(&settings, &state_dir)?,
        http: http(&settings, &variables)?,
        log: log(&settings)?,
        files,
        state_dir,
        variables,
        settings,
    })
}

/// Paths are resolved once: a restore_command runs in another directory.
fn absolute(settings: &Settings, section: &Section, name: &str, path: PathBuf) -> Result<PathBuf> {
    std::path::absolute(&path).map_err(|error| settings.invalid(section, name, &format!("is not a path: {error}")))
}

fn path(settings: &Settings, section: &Section, name: &str) -> Result<Option<PathBuf>> {
    settings.text(section, name)?.map(|text| absolute(settings, section, name, PathBuf::from(text))).transpose()
}

fn repository(settings: &Settings, variables: &Variables, state_dir: &Path) -> Result<RepositoryConfig> {
    let at = &Section::Repository;
    // X_FILE variables stand for the same as the keys; the chain of AWS reads X itself.
    let key_file = |name: &str, variable: &str| -> Result<Option<PathBuf>> {
        let from_variable = || variables.get(&format!("{variable}_FILE")).map(PathBuf::from);
        Ok(path(settings, at, name)?.or_else(from_variable))
    };
    let access_key_file = key_file("access_key_file", "AWS_ACCESS_KEY_ID")?;
    let secret_key_file = key_file("secret_key_file", "AWS_SECRET_ACCESS_KEY")?;
    if access_key_file.is_some() != secret_key_file.is_some() {
        let (given, missing) = if access_key_file.is_some() {
            ("access_key_file", "secret_key_file")
        } else {
            ("secret_key_file", "access_key_file")
        };
        return Err(settings.invalid(at, given, &format!("needs `{missing}` beside it")));
    }
    let session_token_file = variables.get("AWS_SESSION_TOKEN_FILE").map(PathBuf::from);
    if session_token_file.is_some() && secret_key_file.is_none() {
        return Err(Error::new(
            ErrorCode::InvalidConfig,
            "AWS_SESSION_TOKEN_FILE is set, and the keys it belongs to are not in files",
        )
        .help("set AWS_ACCESS_KEY_ID_FILE and AWS_SECRET_ACCESS_KEY_FILE as well"));
    }
    let storage = StorageOptions {
        url: repository_url(settings, state_dir)?,
        endpoint: settings.text(at, "endpoint")?,
        region: settings.text(at, "region")?,
        path_style: settings.boolean(at, "path_style")?,
        allow_http: settings.boolean(at, "allow_http")?.unwrap_or(false),
        ca_file: path(settings, at, "ca_file")?,
        storage_class: settings.text(at, "storage_class")?,
        connections: Some(connections(settings)?),
        access_key_file,
        secret_key_file,
        session_token_file,
    };
    let compression = settings.parsed(at, "compression", compression)?.unwrap_or(Compression::Zstd(1));
    let (encryption, identity) = (recipients(settings)?, identity(settings, variables)?);
    Ok(RepositoryConfig { storage, compression, encryption, identity })
}

/// For whom the repository is encrypted. Data that were meant to be encrypted must never be stored in the clear: what is no
/// recipient is an error.
fn recipients(settings: &Settings) -> Result<Vec<Recipient>> {
    let at = &Section::Repository;
    let listed = settings.list(at, "encryption")?;
    let recipients = listed.iter().filter(|text| !matches!(text.as_str(), "" | "off" | "none"));
    recipients
        .map(|text| {
            text.parse().map_err(|what| {
                settings
                    .invalid(at, "encryption", &format!("names no recipient age1…: {what}"))
                    .help("make an identity and its recipient: pgvault key init")
            })
        })
        .collect()
}

/// What opens the key ring. The file is read when the repository is opened.
fn identity(settings: &Settings, variables: &Variables) -> Result<IdentityConfig> {
    let file = path(settings, &Section::Repository, "identity_file")?;
    let text = variables.get("PGVAULT_IDENTITY").map(|text| SecretString::from(text.to_owned()));
    if file.is_some() && text.is_some() {
        return Err(Error::new(
            ErrorCode::AmbiguousSecret,
            "the identity is given twice: in PGVAULT_IDENTITY, and as a file",
        )
        .help("unset PGVAULT_IDENTITY"));
    }
    Ok(IdentityConfig { file, text })
}

fn repository_url(settings: &Settings, state_dir: &Path) -> Result<String> {
    let at = &Section::Repository;
    let Some(url) = settings.text(at, "url")? else {
        if settings.get(at, "url").is_some() {
            return Err(no_repository());
        }
        return Ok(format!("file://{}", state_dir.join("repository").display()));
    };
    if let Some(path) = url.strip_prefix("file://") {
        if !path.starts_with('/') {
            return Err(settings.invalid(at, "url", "is not absolute: three slashes, as in file:///srv/pgvault"));
        }
        return Ok(url);
    }
    match url.split_once("://") {
        Some(("s3", rest)) if !rest.is_empty() && !rest.starts_with('/') => Ok(url),
        Some(("s3", _)) => Err(settings.invalid(at, "url", "names no bucket: expected s3://bucket/prefix")),
        Some(("memory", _)) => Ok(url),
        _ if url.starts_with('/') => Err(settings.invalid(at, "url", &format!("has no scheme: write file://{url}"))),
        _ => Err(settings.invalid(at, "url", "is neither s3://bucket/prefix nor file:///path")),
    }
}

fn no_repository() -> Error {
    Error::new(ErrorCode::NoRepository, "no repository is configured")
        .help("in /etc/pgvault/pgvault.toml:  [repository]  url = \"s3://bucket/prefix\"")
        .help("or in the environment:  PGVAULT_REPOSITORY=file:///srv/pgvault")
}

fn connections(settings: &Settings) -> Result<usize> {
    let at = &Section::Repository;
    match settings.number(at, "connections")? {
        number @ 1..=256 => Ok(usize::try_from(number).unwrap_or(256)),
        _ => Err(settings.invalid(at, "connections", "is not a number from 1 to 256")),
    }
}

fn compression(text: &str) -> values::Parsed<Compression> {
    text.parse().map_err(|_| "is neither \"none\" nor \"zstd:LEVEL\" with a level from -7 to 19".to_owned())
}

/// One cluster, whether or not anything is set for it.
pub(super) fn cluster(settings: &Settings, name: &str) -> Result<ClusterConfig> {
    let at = &Section::Cluster(name.to_owned());
    let zone = settings.parsed(at, "time_zone", values::zone)?.unwrap_or(chrono_tz::UTC);
    let cron = settings.parsed(at, "schedule", |text| values::cron(text).map(|cron| (cron, text.to_owned())))?;
    settings.parsed(at, "backup_from", |text| match text {
        "primary" | "standby" | "prefer-standby" => Ok(()),
        _ => Err("is none of primary, standby and prefer-standby".to_owned()),
    })?;
    Ok(ClusterConfig {
        name: name.to_owned(),
        conninfo: SecretString::from(settings.text(at, "conninfo")?.unwrap_or_default()),
        slot: settings.parsed(at, "slot", values::slot_name)?,
        application_name: settings
            .parsed(at, "application_name", application_name)?
            .unwrap_or_else(|| "pgvault".to_owned()),
        create_slot: settings.boolean(at, "create_slot")?.unwrap_or(true),
        max_rpo: settings.parsed(at, "max_rpo", max_rpo)?.unwrap_or(Duration::from_secs(5)),
        synchronous: settings.boolean(at, "synchronous")?.unwrap_or(false),
        report_apply: settings.boolean(at, "report_apply")?.unwrap_or(false),
        schedule: cron.map(|(cron, text)| Schedule { cron, zone, text }),
        data_directory: path(settings, at, "data_directory")?.filter(|path| !path.as_os_str().is_empty()),
        max_rate: settings.parsed(at, "max_rate", values::rate)?,
        patroni_urls: patroni_urls(settings, at)?,
        retention: retention(settings, name)?,
    })
}

fn patroni_urls(settings: &Settings, at: &Section) -> Result<Vec<PatroniUrl>> {
    let name = "patroni_urls";
    let parse = |url: String| {
        PatroniUrl::parse(&url).map_err(|error| settings.invalid(at, name, &format!("names a URL that {error}")))
    };
    settings.list(at, name)?.into_iter().map(parse).collect()
}

fn application_name(text: &str) -> values::Parsed<String> {
    // PostgreSQL replaces what is not printable ASCII and cuts at NAMEDATALEN; then nobody finds the name.
    if text.len() < 64 && text.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        Ok(text.to_owned())
    } else {
        Err("is not a name that PostgreSQL keeps: up to 63 printable ASCII characters".to_owned())
    }
}

fn max_rpo(text: &str) -> values::Parsed<Duration> {
    let duration = values::duration(text)?;
    let shortest = Duration::from_millis(100);
    if duration.is_zero() || duration >= shortest {
        Ok(duration)
    } else {
        Err("is shorter than 100ms: use \"0\" for whole segments only".to_owned())
    }
}

fn retention(settings: &Settings, name: &str) -> Result<RetentionConfig> {
    let at = &Section::Retention(name.to_owned());
    let keep = |name| settings.number(at, name);
    Ok(RetentionConfig {
        recovery_window: settings.parsed(at, "recovery_window", values::duration)?,
        redundancy: keep("redundancy")?,
        keep: [keep("keep_daily")?, keep("keep_weekly")?, keep("keep_monthly")?, keep("keep_yearly")?],
        wal_window: settings.parsed(at, "wal_window", values::duration)?,
    })
}

fn spool(settings: &Settings, state_dir: &Path) -> Result<SpoolConfig> {
    let at = &Section::Spool;
    settings.parsed(at, "on_full", |text| match text {
        "stall" => Ok(()),
        _ => Err("is not available: this version knows \"stall\"".to_owned()),
    })?;
    let max_size = settings.parsed(at, "max_size", values::size)?;
    if max_size.is_some_and(|bytes| bytes < 64 << 20) {
        return Err(settings.invalid(at, "max_size", "is too small: at least 64MB, four segments"));
    }
    Ok(SpoolConfig { dir: path(settings, at, "dir")?.unwrap_or_else(|| state_dir.join("spool")), max_size })
}

fn http(settings: &Settings, variables: &Variables) -> Result<HttpConfig> {
    let at = &Section::Http;
    let token_file = path(settings, at, "token_file")?;
    let token = match (variables.secret("PGVAULT_HTTP_TOKEN")?, token_file) {
        (Some(_), Some(_)) => {
            return Err(Error::new(
                ErrorCode::AmbiguousSecret,
                "both PGVAULT_HTTP_TOKEN and `token_file` in [http] are set",
            )
            .help("unset PGVAULT_HTTP_TOKEN"));
        }
        (Some(token), None) => Some(token),
        (None, Some(file)) => Some(environment::read_secret("`token_file`", &file)?),
        (None, None) => None,
    };
    if token.as_ref().is_some_and(|token| token.trim().is_empty()) {
        return Err(settings.invalid(at, "token_file", "holds no token"));
    }
    let actions = settings.boolean(at, "actions")?.unwrap_or(false);
    if actions && token.is_none() {
        return Err(settings.invalid(at, "actions", "needs a token").help("set `token_file` in [http]"));
    }
    Ok(HttpConfig { listen: settings.parsed(at, "listen", listen)?, token: token.map(SecretString::from), actions })
}

/// `host:port`, `:port` for every address, or a port alone on this machine.
fn listen(text: &str) -> values::Parsed<SocketAddr> {
    let wrong = || "is not an address to listen on: expected 127.0.0.1:8080".to_owned();
    let full = match text.strip_prefix(':') {
        Some(port) => format!("0.0.0.0:{port}"),
        None if text.bytes().all(|b| b.is_ascii_digit()) => format!("127.0.0.1:{text}"),
        None => text.to_owned(),
    };
    full.to_socket_addrs().map_err(|_| wrong())?.next().ok_or_else(wrong)
}

fn log(settings: &Settings) -> Result<LogConfig> {
    let at = &Section::Log;
    let format = settings.parsed(at, "format", |text| match text {
        "auto" => Ok(LogFormat::Auto),
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("is none of auto, text and json".to_owned()),
    })?;
    let level = settings.parsed(at, "level", |text| {
        text.parse::<tracing::Level>().map_err(|_| "is none of error, warn, info, debug and trace".to_owned())
    })?;
    let rotate_size = settings.parsed(at, "rotate_size", values::size)?.unwrap_or(10 << 20);
    if rotate_size < 64 << 10 {
        return Err(settings.invalid(at, "rotate_size", "is too small: at least 64kB"));
    }
    let rotate_keep = settings.number(at, "rotate_keep")?;
    Ok(LogConfig {
        format: format.unwrap_or(LogFormat::Auto),
        level: level.unwrap_or(tracing::Level::INFO),
        file: path(settings, at, "file")?,
        rotate_size,
        rotate_keep: usize::try_from(rotate_keep)
            .ok()
            .filter(|&keep| keep <= 1000)
            .ok_or_else(|| settings.invalid(at, "rotate_keep", "is more than 1000"))?,
    })
}
