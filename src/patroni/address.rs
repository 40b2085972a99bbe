//! Where a REST API is.

use std::fmt;

use hyper::Uri;

/// The URL of one member's REST API: `http://pg1:8008` or `https://pg1:8008`. A path in it is not used.
#[derive(Clone, PartialEq, Eq)]
pub struct PatroniUrl {
    /// Whether TLS is spoken.
    pub(super) tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
}

/// The text is no such URL. Never quotes a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidUrl(String);

/// Where Patroni listens unless told otherwise.
const PORT: u16 = 8008;

impl PatroniUrl {
    /// Reads a URL.
    pub fn parse(text: &str) -> Result<Self, InvalidUrl> {
        let wrong = || InvalidUrl("is no URL of Patroni's REST API: http://HOST:8008 or https://HOST:8008".to_owned());
        let uri: Uri = text.trim().parse().map_err(|_| wrong())?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong()),
        };
        let authority = uri.authority().ok_or_else(wrong)?;
        if authority.as_str().contains('@') {
            return Err(InvalidUrl("holds a user name: Patroni answers what pgvault asks without one".to_owned()));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(wrong());
        }
        Ok(Self { tls, host: host.to_owned(), port: authority.port_u16().unwrap_or(PORT) })
    }

    /// Host and port as they stand in a `Host` header.
    pub(super) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for PatroniUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.authority())
    }
}

impl fmt::Debug for PatroniUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::PatroniUrl;

    #[test]
    fn urls_are_read_and_what_is_none_is_refused() {
        for (text, shown) in [
            ("http://pg1:8008", "http://pg1:8008"),
            ("https://pg1", "https://pg1:8008"),
            ("http://10.0.0.1:9000/cluster", "http://10.0.0.1:9000"),
            ("http://[::1]:8008/", "http://[::1]:8008"),
        ] {
            assert_eq!(PatroniUrl::parse(text).unwrap().to_string(), shown);
        }
        for text in ["", "pg1:8008", "ftp://pg1", "http://", "http://:8008", "http://u:secret@pg1:8008", "/x"] {
            let error = PatroniUrl::parse(text).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
