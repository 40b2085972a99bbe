//! How to reach a store: address, TLS, credentials, time limits.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_config::environment::region::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::region::ProfileFileRegionProvider;
use aws_config::{AppName, BehaviorVersion, Region, SdkConfig};
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{
    RequestChecksumCalculation, ResponseChecksumValidation, SharedHttpClient, StalledStreamProtectionConfig,
};
use aws_sdk_s3::types::StorageClass;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::bucket::Bucket;
use super::credentials::{FileCredentials, NamedCredentials};
use super::place::Place;
use crate::storage::{StorageContext, StorageError, StorageErrorKind, StorageOptions, StorageResult};

/// How long a connection may take to come up.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a request without much content may take.
const REQUEST: Duration = Duration::from_secs(30);
/// The slowest line that content may take: 128 KiB a second.
const SLOWEST: u64 = 128 * 1024;
/// A download on which nothing arrives for so long has died.
const STALLED: Duration = Duration::from_secs(30);
/// Services other than AWS take any region; this one they all know.
const ANY_REGION: &str = "us-east-1";

/// How long an attempt with so much content may take.
pub(super) fn time_for(len: u64) -> Duration {
    REQUEST + Duration::from_secs(len / SLOWEST)
}

/// The time limits of a request with so much content. They bound one attempt; there is only one.
pub(super) fn timeouts(len: u64) -> TimeoutConfig {
    let limit = time_for(len);
    TimeoutConfig::builder()
        .connect_timeout(CONNECT)
        .read_timeout(limit)
        .operation_attempt_timeout(limit)
        .operation_timeout(limit)
        .build()
}

/// Prepares access to the place that the options name. Reads files and the environment; asks the store nothing.
pub(super) async fn connect(options: &StorageOptions, context: &StorageContext) -> StorageResult<Bucket> {
    let wrong = |message: String| StorageError::new(StorageErrorKind::Other, "open", options.url.clone(), message);
    let place = Place::parse(&options.url).map_err(wrong)?;
    let endpoint =
        options.endpoint.clone().or_else(|| variable("AWS_ENDPOINT_URL_S3")).or_else(|| variable("AWS_ENDPOINT_URL"));
    if let Some(endpoint) = &endpoint {
        check_endpoint(endpoint, options.allow_http).map_err(wrong)?;
    }
    let http = http_client(options, endpoint.as_deref()).map_err(wrong)?;
    let shared = shared_config(options, context, endpoint.is_some(), http).await.map_err(wrong)?;
    let credentials = shared
        .credentials_provider()
        .ok_or_else(|| wrong("there is no way to get credentials".to_owned()))
        .map(NamedCredentials::new)?;
    let mut config = aws_sdk_s3::config::Builder::from(&shared)
        .credentials_provider(credentials.clone())
        .force_path_style(options.path_style.unwrap_or(endpoint.is_some()));
    let is_aws = endpoint.is_none();
    if let Some(endpoint) = endpoint {
        config = config.endpoint_url(endpoint);
    }
    let class = options.storage_class.as_deref().filter(|class| !class.is_empty());
    let storage_class = class.map(StorageClass::from);
    Ok(Bucket { client: Client::from_conf(config.build()), place, storage_class, is_aws, credentials })
}

async fn shared_config(
    options: &StorageOptions,
    context: &StorageContext,
    has_endpoint: bool,
    http: SharedHttpClient,
) -> Result<SdkConfig, String> {
    let stalled = StalledStreamProtectionConfig::enabled()
        // An upload is sent from memory; that the store takes its time to answer is bounded by the time limit.
        .upload_enabled(false)
        .grace_period(STALLED)
        .build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http)
        .timeout_config(timeouts(0))
        .retry_config(RetryConfig::disabled())
        .stalled_stream_protection(stalled)
        // Checksums that nobody asked for break several services; our own SHA-256 decides.
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    if let Ok(name) = AppName::new("pgvault") {
        loader = loader.app_name(name);
    }
    let configured = options.region.clone().map(Region::new);
    if has_endpoint {
        // Not from the instance metadata service: away from AWS nobody answers there, and asking takes seconds.
        let region = RegionProviderChain::first_try(configured)
            .or_else(EnvironmentVariableRegionProvider::new())
            .or_else(ProfileFileRegionProvider::new())
            .or_else(Region::from_static(ANY_REGION));
        loader = loader.region(region);
    } else {
        let region = RegionProviderChain::first_try(configured).or_default_provider();
        loader = loader.region(region.or_else(Region::from_static(ANY_REGION)));
    }
    match (&options.access_key_file, &options.secret_key_file) {
        (Some(access_key), Some(secret_key)) => {
            let (access_key, secret_key) = (access_key.clone(), secret_key.clone());
            let session_token = options.session_token_file.clone();
            let files = FileCredentials { access_key, secret_key, session_token, clock: Arc::clone(&context.clock) };
            loader = loader.credentials_provider(SharedCredentialsProvider::new(files));
        }
        (None, None) => {}
        _ => return Err("access_key_file and secret_key_file are needed both or neither".to_owned()),
    }
    Ok(loader.load().await)
}

/// Refuses an address that is none, and plain HTTP unless it was allowed or does not leave this machine.
fn check_endpoint(endpoint: &str, allow_http: bool) -> Result<(), String> {
    if endpoint.strip_prefix("https://").is_some_and(|rest| !rest.is_empty()) {
        return Ok(());
    }
    let Some(rest) = endpoint.strip_prefix("http://").filter(|rest| !rest.is_empty()) else {
        return Err(format!("the endpoint \"{endpoint}\" is no address: https://host[:port]"));
    };
    let authority = rest.split('/').next().unwrap_or_default();
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    if allow_http || matches!(host, "127.0.0.1" | "localhost" | "[::1]") {
        return Ok(());
    }
    Err(format!(
        "the endpoint {endpoint} is plain http: whoever listens reads the backup; use https, or set allow_http = true"
    ))
}

/// The client underneath. Where the endpoint is plain HTTP it can do nothing else, and no certificates are looked for.
fn http_client(options: &StorageOptions, endpoint: Option<&str>) -> Result<SharedHttpClient, String> {
    let builder = aws_smithy_http_client::Builder::new();
    if endpoint.is_some_and(|endpoint| endpoint.starts_with("http://")) {
        return Ok(builder.build_http());
    }
    let mut trust = TrustStore::default();
    let from_environment = || variable("AWS_CA_BUNDLE").map(Into::into);
    if let Some(path) = options.ca_file.clone().or_else(from_environment) {
        trust.add_pem_certificate(read_certificates(&path)?);
    }
    let tls = TlsContext::builder().with_trust_store(trust).build().map_err(|error| format!("TLS: {error}"))?;
    Ok(builder.tls_provider(Provider::Rustls(CryptoMode::AwsLc)).tls_context(tls).build_https())
}

/// Reads a file of certificates and makes sure that each can be used, since the client panics over one that cannot.
fn read_certificates(path: &Path) -> Result<Vec<u8>, String> {
    let wrong = |what: &dyn std::fmt::Display| format!("the certificates in {}: {what}", path.display());
    let pem = std::fs::read(path).map_err(|error| wrong(&error))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        roots.add(certificate.map_err(|error| wrong(&error))?).map_err(|error| wrong(&error))?;
    }
    if roots.is_empty() { Err(wrong(&"there are none")) } else { Ok(pem) }
}

/// A variable of the environment that is not empty.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{check_endpoint, read_certificates, time_for};

    #[test]
    fn plain_http_leaves_the_machine_only_when_allowed() {
        for good in ["https://s3.example.com", "http://127.0.0.1:9000", "http://localhost/x", "http://[::1]:9000"] {
            check_endpoint(good, false).unwrap();
        }
        for bad in ["http://minio:9000", "http://127.0.0.1.example.com", "http://localhost.evil:1"] {
            assert!(check_endpoint(bad, false).unwrap_err().contains("allow_http"), "{bad}");
            check_endpoint(bad, true).unwrap();
        }
        for bad in ["", "minio:9000", "ftp://x", "https://", "http://"] {
            assert!(check_endpoint(bad, true).is_err(), "{bad}");
        }
    }

    #[test]
    fn files_without_certificates_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        assert!(read_certificates(&path).is_err());
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for text in ["", "no certificate", garbage] {
            fs::write(&path, text).unwrap();
            assert!(read_certificates(&path).is_err(), "{text}");
        }
    }

    #[test]
    fn large_bodies_get_time() {
        assert_eq!(time_for(0).as_secs(), 30);
        assert_eq!(time_for(64 << 20).as_secs(), 30 + 512);
    }
}
