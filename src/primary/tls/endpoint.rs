//! What is read out of a server's certificate: the digest for channel binding, its key, dates and common name.

use rustls::pki_types::{CertificateDer, UnixTime};
use sha2::{Digest, Sha256, Sha384, Sha512};
use x509_cert::Certificate;
use x509_cert::der::asn1::{Ia5StringRef, ObjectIdentifier, PrintableStringRef, Utf8StringRef};
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// Signature algorithms by the hash that they use: MD5 and SHA-1 count as SHA-256 (RFC 5929, 4.1).
const SHA256: [&str; 6] = [
    "1.2.840.113549.1.1.4",
    "1.2.840.113549.1.1.5",
    "1.2.840.113549.1.1.11",
    "1.2.840.10045.4.1",
    "1.2.840.10045.4.3.2",
    "2.16.840.1.101.3.4.2.1",
];
const SHA384: [&str; 3] = ["1.2.840.113549.1.1.12", "1.2.840.10045.4.3.3", "2.16.840.1.101.3.4.2.2"];
const SHA512: [&str; 3] = ["1.2.840.113549.1.1.13", "1.2.840.10045.4.3.4", "2.16.840.1.101.3.4.2.3"];
/// RSASSA-PSS names its hash in its parameters.
const RSA_PSS: &str = "1.2.840.113549.1.1.10";
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const ALTERNATIVE_NAMES: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.17");

/// The `tls-server-end-point` data: the certificate's hash by the hash of its own signature. `None` where that is not
/// defined (Ed25519).
pub(super) fn tls_server_end_point(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let parsed = Certificate::from_der(certificate).ok()?;
    let algorithm = &parsed.signature_algorithm;
    let mut oid = algorithm.oid.to_string();
    if oid == RSA_PSS {
        oid = pss_hash(algorithm.parameters.as_ref()?.value())?;
    }
    let oid = oid.as_str();
    if SHA256.contains(&oid) {
        Some(Sha256::digest(certificate).to_vec())
    } else if SHA384.contains(&oid) {
        Some(Sha384::digest(certificate).to_vec())
    } else if SHA512.contains(&oid) {
        Some(Sha512::digest(certificate).to_vec())
    } else {
        None
    }
}

/// The hash in RSASSA-PSS-params, `[0] SEQUENCE { OBJECT IDENTIFIER …`; absent = SHA-1, which counts as SHA-256.
fn pss_hash(parameters: &[u8]) -> Option<String> {
    let Some([0xA0, _, 0x30, _, rest @ ..]) = parameters.get(..) else {
        return Some("2.16.840.1.101.3.4.2.1".to_owned());
    };
    let length = usize::from(*rest.get(1)?);
    ObjectIdentifier::from_der(rest.get(..length.checked_add(2)?)?).ok().map(|oid| oid.to_string())
}

/// The public key, DER of SubjectPublicKeyInfo.
pub(super) fn public_key(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    Certificate::from_der(certificate).ok()?.tbs_certificate.subject_public_key_info.to_der().ok()
}

/// Whether `now` lies between the certificate's dates.
pub(super) fn is_valid_at(certificate: &CertificateDer<'_>, now: UnixTime) -> Option<bool> {
    let validity = Certificate::from_der(certificate).ok()?.tbs_certificate.validity;
    let (from, to) = (validity.not_before.to_unix_duration(), validity.not_after.to_unix_duration());
    Some((from.as_secs()..=to.as_secs()).contains(&now.as_secs()))
}

/// The common name of a certificate that has no alternative DNS names: libpq falls back on it only then.
pub(super) fn common_name_without_alternatives(certificate: &CertificateDer<'_>) -> Option<String> {
    let tbs = Certificate::from_der(certificate).ok()?.tbs_certificate;
    for extension in tbs.extensions.iter().flatten().filter(|extension| extension.extn_id == ALTERNATIVE_NAMES) {
        let names = SubjectAltName::from_der(extension.extn_value.as_bytes()).ok()?;
        if names.0.iter().any(|name| matches!(name, GeneralName::DnsName(_))) {
            return None;
        }
    }
    let mut names = tbs.subject.0.iter().flat_map(|rdn| rdn.0.iter()).filter(|attribute| attribute.oid == COMMON_NAME);
    let value = &names.next()?.value;
    let utf8 = value.decode_as::<Utf8StringRef<'_>>().ok().map(|text| text.as_str().to_owned());
    let utf8 = utf8.or_else(|| value.decode_as::<PrintableStringRef<'_>>().ok().map(|text| text.as_str().to_owned()));
    utf8.or_else(|| value.decode_as::<Ia5StringRef<'_>>().ok().map(|text| text.as_str().to_owned()))
}

/// Whether a certificate's name is the host's: equal without regard to case, or `*` for the first label.
pub(super) fn name_matches(pattern: &str, host: &str) -> bool {
    if pattern.contains('\0') {
        return false;
    }
    if pattern.eq_ignore_ascii_case(host) {
        return true;
    }
    match (pattern.strip_prefix("*."), host.split_once('.')) {
        (Some(rest), Some((label, parent))) => {
            !label.is_empty() && rest.contains('.') && rest.eq_ignore_ascii_case(parent)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::name_matches;

    #[test]
    fn names_match_as_libpq_matches_them() {
        let cases = [
            ("pg1.example.com", "pg1.example.com", true),
            ("PG1.Example.com", "pg1.example.COM", true),
            ("*.example.com", "pg1.example.com", true),
            ("*.example.com", "a.pg1.example.com", false),
            ("*.example.com", "example.com", false),
            ("*.com", "example.com", false),
            ("*", "localhost", false),
            ("pg1", "pg2", false),
            ("pg1\0.evil", "pg1", false),
        ];
        for (pattern, host, expected) in cases {
            assert_eq!(name_matches(pattern, host), expected, "{pattern} {host}");
        }
    }
}
