//! Who may be a server: anyone (`require`), whoever has a trusted certificate (`verify-ca`), or only the host that we
//! asked for (`verify-full`).

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{
    WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature, verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};

use super::endpoint;

/// Takes every certificate: encryption against listeners, not against servers in the middle. The handshake still proves
/// that the peer holds the certificate's key, which channel binding relies on.
#[derive(Debug)]
pub(super) struct AnyCertificate {
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // Certificates of X.509 version 1, as PostgreSQL's manual makes them, cannot be read by webpki: their key can.
        match verify_tls13_signature(message, certificate, signature, &self.algorithms) {
            Err(Error::InvalidCertificate(error)) => match endpoint::public_key(certificate) {
                Some(key) => {
                    let key = SubjectPublicKeyInfoDer::from(key.as_slice());
                    verify_tls13_signature_with_raw_key(message, &key, signature, &self.algorithms)
                }
                None => Err(Error::InvalidCertificate(error)),
            },
            result => result,
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Takes certificates of trusted authorities.
#[derive(Debug)]
pub(super) struct TrustedCertificate {
    pub(super) chain: Arc<WebPkiServerVerifier>,
    /// What `sslrootcert` holds.
    pub(super) trusted: Vec<CertificateDer<'static>>,
    pub(super) check_name: bool,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl TrustedCertificate {
    /// The server's certificate itself may stand in `sslrootcert` (self-signed, as PostgreSQL's manual shows).
    fn verify_chain(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<(), Error> {
        if self.trusted.iter().any(|trusted| trusted == end_entity) {
            return match endpoint::is_valid_at(end_entity, now) {
                Some(true) => Ok(()),
                Some(false) => Err(CertificateError::Expired.into()),
                None => Err(CertificateError::BadEncoding.into()),
            };
        }
        match self.chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Ok(_) => Ok(()),
            // webpki looks at the name last: the chain is good.
            Err(error) if is_name_error(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn is_name_error(error: &Error) -> bool {
    use CertificateError::{NotValidForName, NotValidForNameContext};
    matches!(error, Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }))
}

/// Whether the certificate is for this host: by its alternative names, or by its common name when it has none.
fn verify_name(certificate: &CertificateDer<'_>, name: &ServerName<'_>) -> Result<(), Error> {
    let parsed = ParsedCertificate::try_from(certificate)?;
    let error = match verify_server_name(&parsed, name) {
        Ok(()) => return Ok(()),
        Err(error) => error,
    };
    if let ServerName::DnsName(host) = name
        && is_name_error(&error)
        && let Some(common_name) = endpoint::common_name_without_alternatives(certificate)
        && endpoint::name_matches(&common_name, host.as_ref())
    {
        return Ok(());
    }
    Err(error)
}

impl ServerCertVerifier for TrustedCertificate {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify_chain(end_entity, intermediates, server_name, ocsp_response, now)?;
        if self.check_name {
            verify_name(end_entity, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
