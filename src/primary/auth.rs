//! Who we are, proven to the server: SCRAM-SHA-256 with and without channel binding, `trust` and certificates; MD5 and
//! clear text only where `require_auth` names them (fe-auth.c).

use std::time::Duration;

use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{self, ScramSha256};
use postgres_protocol::message::frontend;
use secrecy::{ExposeSecret, SecretString};

use super::conninfo::{AuthMethod, ChannelBinding, Conninfo, Host};
use super::error::PgError;
use super::wire::{Wire, body, unexpected};

const DOING: &str = "authenticating";

/// What authentication needs to know.
pub(super) struct Login<'a> {
    pub(super) conninfo: &'a Conninfo,
    pub(super) host: &'a Host,
    /// The database as password files name it.
    pub(super) database: &'a str,
    /// Whether TLS is up, and the digest of the server's certificate where there is one.
    pub(super) encrypted: bool,
    pub(super) endpoint: Option<Vec<u8>>,
    pub(super) limit: Duration,
}

/// How the server was convinced.
struct Proven {
    method: AuthMethod,
    bound: bool,
}

impl Login<'_> {
    fn error(&self, reason: impl Into<String>) -> PgError {
        PgError::Auth { host: self.host.to_string(), reason: reason.into() }
    }

    /// The password, read now.
    fn password(&self) -> Result<SecretString, PgError> {
        match self.conninfo.password_for(self.host, self.database) {
            Ok(Some(password)) => Ok(password),
            Ok(None) => Err(self.error("the server asks for a password, and none is given")),
            Err(error) => Err(self.error(error.to_string())),
        }
    }

    /// Refuses a way of authentication that was not asked for, before anything derived from the password is sent.
    fn allow(&self, method: AuthMethod) -> Result<(), PgError> {
        if !self.conninfo.require_auth.allows(method) {
            let reason = match method {
                AuthMethod::None => {
                    "the server asks for no authentication, which require_auth does not allow".to_owned()
                }
                AuthMethod::Md5 | AuthMethod::Password => format!(
                    "the server asks for {method} authentication, which shows the password to whoever pretends to be the server; \
                     use scram-sha-256, or allow it with require_auth={method}"
                ),
                other => format!("the server asks for {other} authentication, which require_auth does not allow"),
            };
            return Err(self.error(reason));
        }
        if self.conninfo.channel_binding == ChannelBinding::Require && method != AuthMethod::ScramSha256 {
            return Err(self.error("channel_binding=require, but the server does not ask for SCRAM"));
        }
        Ok(())
    }
}

/// Answers the server until it says AuthenticationOk. An ErrorResponse comes back as [`PgError::Server`].
pub(super) async fn authenticate(wire: &mut Wire, login: &Login<'_>) -> Result<(), PgError> {
    let mut proven = Proven { method: AuthMethod::None, bound: false };
    loop {
        let (code, data) = next_request(wire, login).await?;
        match code {
            0 => break,
            3 => {
                login.allow(AuthMethod::Password)?;
                let password = login.password()?;
                wire.send(login.limit, |out| frontend::password_message(password.expose_secret().as_bytes(), out))
                    .await?;
                proven.method = AuthMethod::Password;
            }
            5 => {
                login.allow(AuthMethod::Md5)?;
                let salt =
                    data.first_chunk().ok_or_else(|| PgError::Protocol("an MD5 salt that is too short".to_owned()))?;
                let password = login.password()?;
                let hash = md5_hash(login.conninfo.user().as_bytes(), password.expose_secret().as_bytes(), *salt);
                wire.send(login.limit, |out| frontend::password_message(hash.as_bytes(), out)).await?;
                proven.method = AuthMethod::Md5;
            }
            10 => {
                login.allow(AuthMethod::ScramSha256)?;
                proven = scram(wire, login, &data).await?;
            }
            7 | 9 => {
                return Err(
                    login.error("the server asks for Kerberos or SSPI, which pgvault does not have; use scram-sha-256")
                );
            }
            other => {
                return Err(login.error(format!("the server asks for authentication of an unknown kind ({other})")));
            }
        }
    }
    if proven.method == AuthMethod::None {
        login.allow(AuthMethod::None)?;
    }
    if login.conninfo.channel_binding == ChannelBinding::Require && !proven.bound {
        return Err(login.error("channel_binding=require, but the server authenticated us without it"));
    }
    Ok(())
}

/// The next authentication request: its code and data.
async fn next_request(wire: &mut Wire, login: &Login<'_>) -> Result<(i32, Vec<u8>), PgError> {
    loop {
        let frame = wire.reader.frame(login.limit, DOING).await?;
        let bytes = wire.reader.body(&frame);
        match frame.tag {
            b'R' => {
                let (code, data) =
                    body::take_i32(bytes).ok_or_else(|| PgError::Protocol("a torn request".to_owned()))?;
                return Ok((code, data.to_vec()));
            }
            b'E' => return Err(PgError::Server(Box::new(body::error_fields(bytes)))),
            // NegotiateProtocolVersion: the server's version is older than what we asked for, and 3.0 is what we speak.
            b'v' => {}
            other => return Err(unexpected(other, DOING)),
        }
    }
}

/// SCRAM (RFC 5802), bound to the TLS connection where both sides can.
async fn scram(wire: &mut Wire, login: &Login<'_>, mechanisms: &[u8]) -> Result<Proven, PgError> {
    let (mechanism, binding, bound) = choose_mechanism(login, mechanisms)?;
    let password = login.password()?;
    let mut exchange = ScramSha256::new(password.expose_secret().as_bytes(), binding);
    // The library's texts are about the exchange; none of them holds the password.
    let failed = |error: std::io::Error| login.error(format!("SCRAM: {error}"));

    wire.send(login.limit, |out| frontend::sasl_initial_response(mechanism, exchange.message(), out)).await?;
    let challenge = expect_sasl(wire, login, 11).await?;
    exchange.update(&challenge).map_err(failed)?;
    wire.send(login.limit, |out| frontend::sasl_response(exchange.message(), out)).await?;
    let outcome = expect_sasl(wire, login, 12).await?;
    // The server proves that it knows our password too: without this, anyone could accept us.
    exchange.finish(&outcome).map_err(failed)?;
    Ok(Proven { method: AuthMethod::ScramSha256, bound })
}

async fn expect_sasl(wire: &mut Wire, login: &Login<'_>, expected: i32) -> Result<Vec<u8>, PgError> {
    match next_request(wire, login).await? {
        (code, data) if code == expected => Ok(data),
        (code, _) => Err(PgError::Protocol(format!("authentication step {code} where {expected} was due"))),
    }
}

/// The mechanism by what the server offers, our end of the connection and `channel_binding`.
fn choose_mechanism(
    login: &Login<'_>,
    mechanisms: &[u8],
) -> Result<(&'static str, sasl::ChannelBinding, bool), PgError> {
    let offered = |name: &str| mechanisms.split(|&byte| byte == 0).any(|offer| offer == name.as_bytes());
    let (plain, plus) = (offered(sasl::SCRAM_SHA_256), offered(sasl::SCRAM_SHA_256_PLUS));
    let wanted = login.conninfo.channel_binding;
    if plus
        && wanted != ChannelBinding::Disable
        && let Some(endpoint) = &login.endpoint
    {
        let binding = sasl::ChannelBinding::tls_server_end_point(endpoint.clone());
        return Ok((sasl::SCRAM_SHA_256_PLUS, binding, true));
    }
    if wanted == ChannelBinding::Require {
        let reason = match (login.encrypted, plus) {
            (false, _) => "channel_binding=require needs TLS",
            (true, false) => "channel_binding=require, but the server does not offer it",
            (true, true) => "channel_binding=require, but it is not defined for the server's certificate (Ed25519)",
        };
        return Err(login.error(reason));
    }
    if !plain {
        return Err(login.error("the server offers no SCRAM mechanism that we can use"));
    }
    // "y" says: we could, you did not offer. Where we cannot (no digest), or were told not to, we say "n".
    let could = login.encrypted && login.endpoint.is_some() && wanted != ChannelBinding::Disable && !plus;
    let binding = if could { sasl::ChannelBinding::unrequested() } else { sasl::ChannelBinding::unsupported() };
    Ok((sasl::SCRAM_SHA_256, binding, false))
}
