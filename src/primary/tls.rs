//! TLS as libpq's `sslmode` means it (fe-secure.c, fe-secure-openssl.c), on rustls.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::conninfo::{Host, HostName, RootCert, SslMode, SslNegotiation, TlsWords};

mod endpoint;
mod verifier;

use verifier::{AnyCertificate, TrustedCertificate};

/// SSLRequest: length 8, request code 80877103.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
/// The protocol's name in ALPN, which PostgreSQL 17 demands of direct negotiation.
const ALPN: &[u8] = b"postgresql";

/// What came of asking a server for TLS.
pub(super) enum Negotiated {
    /// TLS is up; with the digest of the server's certificate for SCRAM's channel binding, where it has one.
    Tls(Box<TlsStream<TcpStream>>, Option<Vec<u8>>),
    /// The server does not do TLS; the socket is as fresh.
    Plain(TcpStream),
}

/// Asks for TLS and shakes hands. Certificates and keys are read from disk each time, so that they can be renewed.
pub(super) async fn negotiate(mut socket: TcpStream, words: &TlsWords, host: &Host) -> Result<Negotiated, String> {
    let config = client_config(words)?;
    if words.negotiation == SslNegotiation::Postgres {
        socket.write_all(&SSL_REQUEST).await.map_err(|error| error.to_string())?;
        // Exactly one byte: whatever an attacker appends goes to TLS, which refuses it (CVE-2021-23222).
        match socket.read_u8().await.map_err(|error| error.to_string())? {
            b'S' => {}
            b'N' => return Ok(Negotiated::Plain(socket)),
            other => return Err(format!("the server answered 0x{other:02x} to the request for TLS")),
        }
    }
    let name = server_name(words, host, &socket)?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await.map_err(|error| explain(&error))?;
    let (_, session) = stream.get_ref();
    if words.negotiation == SslNegotiation::Direct && session.alpn_protocol() != Some(ALPN) {
        return Err("the server does not know sslnegotiation=direct (PostgreSQL 17 and later do)".to_owned());
    }
    let digest = session.peer_certificates().and_then(<[_]>::first).and_then(endpoint::tls_server_end_point);
    Ok(Negotiated::Tls(Box::new(stream), digest))
}

fn client_config(words: &TlsWords) -> Result<ClientConfig, String> {
    let provider = Arc::new(default_provider());
    let versions: &[&SupportedProtocolVersion] = match (words.only_tls12, words.only_tls13) {
        (true, _) => &[&TLS12],
        (_, true) => &[&TLS13],
        _ => &[&TLS13, &TLS12],
    };
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier(words, &provider)?);
    let mut config = match &words.client {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = read_certificates(certificate)?;
            builder
                .with_client_auth_cert(chain, read_key(key)?)
                .map_err(|error| format!("client certificate {}: {error}", certificate.display()))?
        }
    };
    config.enable_sni = words.sni;
    if words.negotiation == SslNegotiation::Direct {
        config.alpn_protocols = vec![ALPN.to_vec()];
    }
    Ok(config)
}

/// Who checks the server's certificate. `require` with a root certificate at hand checks the chain, as libpq does.
fn verifier(words: &TlsWords, provider: &Arc<CryptoProvider>) -> Result<Arc<dyn ServerCertVerifier>, String> {
    let algorithms = provider.signature_verification_algorithms;
    let unchecked = match (words.mode, &words.root_cert) {
        (SslMode::Disable | SslMode::Allow | SslMode::Prefer, _) | (SslMode::Require, RootCert::Absent) => true,
        (SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull, _) => false,
    };
    if unchecked {
        return Ok(Arc::new(AnyCertificate { algorithms }));
    }
    let trusted = match &words.root_cert {
        RootCert::File(path) => read_certificates(path)?,
        RootCert::System => {
            let found = rustls_native_certs::load_native_certs();
            if found.certs.is_empty() {
                return Err("the operating system has no trusted certificates: install ca-certificates".to_owned());
            }
            found.certs
        }
        RootCert::Absent => {
            return Err(format!(
                "sslmode={} needs a root certificate: give sslrootcert=FILE, sslrootcert=system, or ~/.postgresql/root.crt",
                words.mode
            ));
        }
    };
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(trusted.iter().cloned());
    if added == 0 {
        return Err("the root certificates cannot be used: they must be X.509 version 3".to_owned());
    }
    let mut builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    if let Some(path) = &words.crl {
        builder = builder.with_crls(read_revocations(path)?).allow_unknown_revocation_status();
    }
    let chain = builder.build().map_err(|error| error.to_string())?;
    Ok(Arc::new(TrustedCertificate { chain, trusted, check_name: words.mode == SslMode::VerifyFull, algorithms }))
}

/// The name for SNI and for `verify-full`: the host as given, never the `hostaddr`.
fn server_name(words: &TlsWords, host: &Host, socket: &TcpStream) -> Result<ServerName<'static>, String> {
    if let HostName::Tcp(name) = &host.name
        && let Ok(name) = ServerName::try_from(name.clone())
    {
        return Ok(name);
    }
    if words.mode == SslMode::VerifyFull {
        return Err("sslmode=verify-full needs a host name".to_owned());
    }
    let peer = socket.peer_addr().map_err(|error| error.to_string())?;
    Ok(ServerName::from(peer.ip()))
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = |error: rustls::pki_types::pem::Error| format!("cannot read {}: {error}", path.display());
    let certificates: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(read)?.collect::<Result<_, _>>().map_err(read)?;
    if certificates.is_empty() { Err(format!("{} holds no certificate", path.display())) } else { Ok(certificates) }
}

fn read_revocations(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    let read = |error: rustls::pki_types::pem::Error| format!("cannot read {}: {error}", path.display());
    CertificateRevocationListDer::pem_file_iter(path).map_err(read)?.collect::<Result<_, _>>().map_err(read)
}

/// Reads a private key that only its owner can read (or its group, when root owns it), as libpq wants.
fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let metadata = fs::metadata(path).map_err(|error| format!("cannot read the key {}: {error}", path.display()))?;
    let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if !metadata.is_file() || metadata.mode() & forbidden != 0 {
        return Err(format!(
            "the private key {} must be a file with mode 0600 or less, or 0640 or less when root owns it",
            path.display()
        ));
    }
    PrivateKeyDer::from_pem_file(path).map_err(|error| format!("cannot read the key {}: {error}", path.display()))
}

/// rustls' words for a failed handshake, and what they mean for PostgreSQL's certificates.
fn explain(error: &std::io::Error) -> String {
    let text = error.to_string();
    let meaning = match text.as_str() {
        text if text.contains("UnknownIssuer") => "it is not signed by a certificate in sslrootcert",
        text if text.contains("UnsupportedCertVersion") => {
            "it must be X.509 version 3: add an extension when you sign it"
        }
        text if text.contains("Expired") => "it has expired",
        _ => return text,
    };
    format!("{text}: the server's certificate cannot be trusted, {meaning}")
}
