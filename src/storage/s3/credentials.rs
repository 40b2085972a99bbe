//! Where credentials come from, and a name for it that can be shown.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::credential_feature::AwsCredentialFeature;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::future::ProvideCredentials as Answer;
use aws_credential_types::provider::{ProvideCredentials, Result, SharedCredentialsProvider};
use secrecy::{ExposeSecret, SecretString};

use crate::clock::Clock;

/// How long credentials from files are used before the files are read again, ten seconds before their end: rotation needs
/// no restart, and neither does the correction of a wrong key.
const READ_AGAIN: Duration = Duration::from_secs(15);
/// A key file is short; anything else is another file.
const MAX_FILE: u64 = 16 << 10;

/// Credentials from two files, read again every few minutes.
#[derive(Clone, Debug)]
pub(super) struct FileCredentials {
    pub(super) access_key: PathBuf,
    pub(super) secret_key: PathBuf,
    pub(super) session_token: Option<PathBuf>,
    pub(super) clock: Arc<dyn Clock>,
}

impl FileCredentials {
    fn load(&self) -> Result {
        let access_key = read_key(&self.access_key)?;
        let secret_key = read_key(&self.secret_key)?;
        let session_token = self.session_token.as_deref().map(read_key).transpose()?;
        let session_token = session_token.map(|token| token.expose_secret().to_owned());
        let expiry = SystemTime::from(self.clock.now()) + READ_AGAIN;
        let (id, secret) = (access_key.expose_secret(), secret_key.expose_secret());
        Ok(Credentials::new(id, secret, session_token, Some(expiry), "key files"))
    }
}

impl ProvideCredentials for FileCredentials {
    fn provide_credentials<'a>(&'a self) -> Answer<'a>
    where
        Self: 'a,
    {
        // Two small local files: not worth a thread.
        Answer::ready(self.load())
    }
}

/// The first line of a key file.
fn read_key(path: &Path) -> std::result::Result<SecretString, CredentialsError> {
    let wrong = |what: String| CredentialsError::invalid_configuration(format!("{}: {what}", path.display()));
    let metadata = std::fs::metadata(path).map_err(|error| wrong(error.to_string()))?;
    if metadata.len() > MAX_FILE {
        return Err(wrong(format!("{} bytes are too long for a key", metadata.len())));
    }
    let text = SecretString::from(std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?);
    match text.expose_secret().trim() {
        "" => Err(wrong("is empty".to_owned())),
        key if key.contains(char::is_whitespace) => Err(wrong("holds more than one word".to_owned())),
        key => Ok(SecretString::from(key)),
    }
}

/// Passes credentials on and remembers, for messages, where the last ones came from.
#[derive(Clone, Debug)]
pub(super) struct NamedCredentials {
    inner: SharedCredentialsProvider,
    last: Arc<Mutex<Option<String>>>,
}

impl NamedCredentials {
    pub(super) fn new(inner: SharedCredentialsProvider) -> Self {
        Self { inner, last: Arc::default() }
    }

    /// Where the last credentials came from, and the key id cut to what identifies it. No secret.
    pub(super) fn source(&self) -> String {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.clone().unwrap_or_else(|| "no credentials were found".to_owned())
    }

    fn remember(&self, credentials: &Credentials) {
        let source = match credentials.get_property::<Vec<AwsCredentialFeature>>().and_then(|all| all.first()) {
            Some(feature) => source_name(feature),
            None => "key files",
        };
        let text = format!("credentials from {source}, access key {}", masked(credentials.access_key_id()));
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
    }
}

impl ProvideCredentials for NamedCredentials {
    fn provide_credentials<'a>(&'a self) -> Answer<'a>
    where
        Self: 'a,
    {
        Answer::new(async move {
            let credentials = self.inner.provide_credentials().await?;
            self.remember(&credentials);
            Ok(credentials)
        })
    }
}

fn source_name(feature: &AwsCredentialFeature) -> &'static str {
    match feature {
        AwsCredentialFeature::CredentialsEnvVars => "the environment",
        AwsCredentialFeature::CredentialsProfile
        | AwsCredentialFeature::CredentialsProfileSourceProfile
        | AwsCredentialFeature::CredentialsProfileNamedProvider => "a profile",
        AwsCredentialFeature::CredentialsEnvVarsStsWebIdToken
        | AwsCredentialFeature::CredentialsProfileStsWebIdToken
        | AwsCredentialFeature::CredentialsStsAssumeRoleWebId => "a web identity token",
        AwsCredentialFeature::CredentialsStsAssumeRole => "an assumed role",
        AwsCredentialFeature::CredentialsProcess | AwsCredentialFeature::CredentialsProfileProcess => {
            "a credential process"
        }
        AwsCredentialFeature::CredentialsHttp => "the container's credential service",
        AwsCredentialFeature::CredentialsImds => "the instance metadata service",
        AwsCredentialFeature::CredentialsSso | AwsCredentialFeature::CredentialsProfileSso => "single sign-on",
        _ => "the AWS credential chain",
    }
}

/// An access key id is no secret, but it need not stand whole in every log.
fn masked(id: &str) -> String {
    match (id.get(..4), id.len().checked_sub(4).and_then(|at| id.get(at..))) {
        (Some(head), Some(tail)) if id.len() >= 12 => format!("{head}…{tail}"),
        _ => "…".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};

    use super::{FileCredentials, NamedCredentials, masked};
    use crate::clock::SystemClock;

    #[tokio::test]
    async fn key_files_are_read_again_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let (access_key, secret_key) = (dir.path().join("id"), dir.path().join("secret"));
        let files = FileCredentials {
            access_key: access_key.clone(),
            secret_key: secret_key.clone(),
            session_token: None,
            clock: Arc::new(SystemClock),
        };
        let error = files.provide_credentials().await.unwrap_err();
        assert!(format!("{error:?}").contains("id"), "{error:?}");
        fs::write(&access_key, "AKIAABCDEFGHIJKL\n").unwrap();
        for bad in ["", " \n", "two words"] {
            fs::write(&secret_key, bad).unwrap();
            let error = files.provide_credentials().await.unwrap_err();
            assert!(!format!("{error:?}").contains("words"), "{error:?}");
        }
        for secret in ["first-secret", "second-secret"] {
            fs::write(&secret_key, secret).unwrap();
            let named = NamedCredentials::new(SharedCredentialsProvider::new(files.clone()));
            let found = named.provide_credentials().await.unwrap();
            assert_eq!((found.access_key_id(), found.secret_access_key()), ("AKIAABCDEFGHIJKL", secret));
            assert!(found.expiry().is_some());
            assert_eq!(named.source(), "credentials from key files, access key AKIA…IJKL");
            assert!(!format!("{named:?} {found:?} {files:?}").contains(secret));
        }
    }

    #[tokio::test]
    async fn temporary_credentials_come_with_their_token() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &str| {
            let path = dir.path().join(name);
            fs::write(&path, content).unwrap();
            path
        };
        let files = FileCredentials {
            access_key: file("id", "ASIAABCDEFGHIJKL\n"),
            secret_key: file("secret", "a-secret\n"),
            session_token: Some(file("token", &("t".repeat(3000) + "\n"))),
            clock: Arc::new(SystemClock),
        };
        let found = files.provide_credentials().await.unwrap();
        assert_eq!(found.session_token().map(str::len), Some(3000));
        fs::remove_file(dir.path().join("token")).unwrap();
        files.provide_credentials().await.unwrap_err();
    }

    #[test]
    fn short_key_ids_are_not_shown_at_all() {
        assert_eq!((masked("k"), masked("AKIA12345678"), masked("")), ("…".into(), "AKIA…5678".into(), "…".into()));
    }
}
