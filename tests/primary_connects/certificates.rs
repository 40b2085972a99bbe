//! Certificates made with the openssl command.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::pg::give_to_server_user;

/// An authority and what it signed, in one directory.
pub(super) struct Authority {
    directory: PathBuf,
    name: String,
}

fn openssl(args: &[&str]) {
    let output = Command::new("openssl").args(args).output().unwrap();
    assert!(output.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Authority {
    /// A new self-signed authority.
    pub(super) fn new(directory: &Path, name: &str) -> Self {
        let authority = Self { directory: directory.to_owned(), name: name.to_owned() };
        let (key, cert) = (authority.path("ca.key"), authority.certificate());
        #[rustfmt::skip]
        openssl(&["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
            "-subj", &format!("/CN={name}"), "-keyout", key.to_str().unwrap(), "-out", cert.to_str().unwrap()]);
        authority
    }

    fn path(&self, suffix: &str) -> PathBuf {
        self.directory.join(format!("{}-{suffix}", self.name))
    }

    /// Its certificate.
    pub(super) fn certificate(&self) -> PathBuf {
        self.path("ca.crt")
    }

    /// Signs a certificate with this common name and these X.509 extensions (none at all makes it version 1); returns
    /// certificate and key.
    pub(super) fn sign(&self, file: &str, common_name: &str, extensions: &str) -> (PathBuf, PathBuf) {
        let (key, request, cert) =
            (self.path(&format!("{file}.key")), self.path(&format!("{file}.csr")), self.path(&format!("{file}.crt")));
        #[rustfmt::skip]
        openssl(&["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-subj", &format!("/CN={common_name}"), "-keyout", key.to_str().unwrap(), "-out", request.to_str().unwrap()]);
        let (ca, ca_key) = (self.certificate(), self.path("ca.key"));
        let mut args = vec!["x509", "-req", "-days", "30", "-sha256", "-set_serial", "7"];
        let (request, cert_text) = (request.to_str().unwrap(), cert.to_str().unwrap());
        args.extend(["-in", request, "-out", cert_text]);
        args.extend(["-CA", ca.to_str().unwrap(), "-CAkey", ca_key.to_str().unwrap()]);
        let extension_file = self.path("ext");
        if !extensions.is_empty() {
            fs::write(&extension_file, extensions).unwrap();
            args.extend(["-extfile", extension_file.to_str().unwrap()]);
        }
        openssl(&args);
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        (cert, key)
    }
}

/// Puts certificate and key where a server finds them as `server.crt` and `server.key`.
pub(super) fn install(data: &Path, (certificate, key): &(PathBuf, PathBuf)) {
    for (from, name) in [(certificate, "server.crt"), (key, "server.key")] {
        let to = data.join(name);
        fs::copy(from, &to).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).unwrap();
        give_to_server_user(&to);
    }
}
