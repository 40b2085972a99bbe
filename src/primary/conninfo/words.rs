//! The values that libpq's keywords take.

use std::fmt;
use std::str::FromStr;

/// Declares an enum whose variants are libpq's words.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// Every word, for messages.
            pub(super) const WORDS: &'static [&'static str] = &[$($word),+];

            /// libpq's word for it.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl FromStr for $name {
            type Err = ();

            fn from_str(text: &str) -> Result<Self, ()> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(()),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// `sslmode`. Never used on a unix socket.
    SslMode {
        /// No TLS.
        Disable = "disable",
        /// TLS only where the server refuses without.
        Allow = "allow",
        /// TLS where the server has it; the certificate is not checked.
        Prefer = "prefer",
        /// Always TLS; the certificate is not checked, unless there is a root certificate.
        Require = "require",
        /// Always TLS, with a certificate from a trusted authority.
        VerifyCa = "verify-ca",
        /// Always TLS, with a trusted certificate for the host's name.
        VerifyFull = "verify-full",
    }
}

words! {
    /// `sslnegotiation`.
    SslNegotiation {
        /// Ask by SSLRequest first.
        Postgres = "postgres",
        /// TLS from the first byte (PostgreSQL 17 and later).
        Direct = "direct",
    }
}

words! {
    /// `channel_binding`: whether SCRAM is tied to the TLS connection.
    ChannelBinding {
        /// Never.
        Disable = "disable",
        /// Where the server offers it.
        Prefer = "prefer",
        /// Always, or no connection.
        Require = "require",
    }
}

words! {
    /// `target_session_attrs`: which of several hosts is wanted.
    TargetSessionAttrs {
        /// The first that answers.
        Any = "any",
        /// One that accepts writes.
        ReadWrite = "read-write",
        /// One whose sessions are read-only.
        ReadOnly = "read-only",
        /// One that is not in recovery.
        Primary = "primary",
        /// One in recovery.
        Standby = "standby",
        /// One in recovery if there is any, else the first that answers.
        PreferStandby = "prefer-standby",
    }
}

words! {
    /// A word of `require_auth`.
    AuthMethod {
        /// The password itself, readable by the server.
        Password = "password",
        /// An MD5 hash.
        Md5 = "md5",
        /// Kerberos; not available.
        Gss = "gss",
        /// Windows; not available.
        Sspi = "sspi",
        /// SCRAM, with or without channel binding.
        ScramSha256 = "scram-sha-256",
        /// OAuth (PostgreSQL 18); not available.
        Oauth = "oauth",
        /// The server asks for nothing: `trust`, `peer`, `cert`.
        None = "none",
    }
}

/// `require_auth`: the ways of authentication that we take part in.
///
/// Where it says nothing, MD5 and clear text are refused: a server in the middle could ask for them.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct LoginMethods {
    /// Only these, when not empty.
    pub(super) only: Vec<AuthMethod>,
    /// Not these.
    pub(super) not: Vec<AuthMethod>,
}

impl LoginMethods {
    /// Whether we take part in this way of authentication.
    pub fn allows(&self, method: AuthMethod) -> bool {
        if !self.only.is_empty() {
            return self.only.contains(&method);
        }
        !self.not.contains(&method) && !matches!(method, AuthMethod::Md5 | AuthMethod::Password)
    }

    /// Reads libpq's list: `scram-sha-256,none` or `!password,!md5`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut methods = Self::default();
        for item in text.split(',').filter(|_| !text.is_empty()) {
            let (list, word) = match item.strip_prefix('!') {
                Some(word) => (&mut methods.not, word),
                None => (&mut methods.only, item),
            };
            let method = word.parse().map_err(|()| format!("one of {}", AuthMethod::WORDS.join(", ")))?;
            if list.contains(&method) {
                return Err("a list without repetition".to_owned());
            }
            list.push(method);
        }
        if methods.only.is_empty() || methods.not.is_empty() {
            Ok(methods)
        } else {
            Err("either a list of methods or a list of \"!method\"".to_owned())
        }
    }
}
