use sha2::{Digest, Sha256};

use super::*;
use crate::codec::decompress_bounded;
use crate::storage::Body;

const FILES: [(&str, u64, u32); 3] =
    [("backup_label", 225, 0x0102_0304), ("base/5/1259", 8192, 7), ("global/pg_control", 8192, 9)];

fn path(text: &str) -> DataPath {
    DataPath::new(text.as_bytes()).unwrap()
}

fn manifest(files: &[(&str, u64, u32)]) -> String {
    let lines: Vec<String> = files
        .iter()
        .map(|(path, size, crc)| {
            let crc = hex::encode(crc.to_le_bytes());
            format!(
                r#"{{ "Path": "{path}", "Size": {size}, "Last-Modified": "2026-11-20 08:00:00 GMT", "Checksum-Algorithm": "CRC32C", "Checksum": "{crc}" }}"#
            )
        })
        .collect();
    sealed(&lines.join(",\n"))
}

fn sealed(lines: &str) -> String {
    let body =
        format!("{{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n{lines}\n],\n\"WAL-Ranges\": [\n],\n");
    format!("{body}\"Manifest-Checksum\": \"{}\"}}\n", hex::encode(Sha256::digest(&body)))
}

fn check(received: &[(&str, u64, u32)], manifest: &str) -> Result<(ManifestFacts, Vec<u8>), CopyError> {
    let dir = tempfile::tempdir().unwrap();
    let mut check = ManifestCheck::new(dir.path(), Compression::default())?;
    for (name, size, crc32c) in received {
        check.file(&path(name), *size, *crc32c)?;
    }
    for piece in manifest.as_bytes().chunks(50) {
        check.manifest(piece)?;
    }
    let (facts, kept) = check.finish()?;
    let Body::File { path, len } = kept.body() else { panic!() };
    let stored = std::fs::read(path).unwrap();
    assert_eq!((stored.len() as u64, crate::codec::digest::sha256(&stored)), (len, kept.sha256));
    Ok((facts, decompress_bounded(&stored, 1 << 20).unwrap()))
}

fn mismatch(received: &[(&str, u64, u32)], manifest: &str) -> ManifestMismatch {
    match check(received, manifest) {
        Err(CopyError::Mismatch(mismatch)) => mismatch,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_manifest_that_agrees_is_kept_byte_for_byte() {
    let text = manifest(&FILES);
    let (facts, kept) = check(&FILES, &text).unwrap();
    assert_eq!(facts.files, 3);
    assert!(kept == text.as_bytes());
}

#[test]
fn another_order_is_not_a_difference() {
    let [a, b, c] = FILES;
    for order in [[a, c, b], [b, a, c], [b, c, a], [c, a, b], [c, b, a]] {
        check(&order, &manifest(&FILES)).unwrap();
        check(&FILES, &manifest(&order)).unwrap();
    }
}

#[test]
fn every_difference_is_named() {
    let text = manifest(&FILES);
    let [a, b, c] = FILES;
    assert_eq!(mismatch(&[a, c], &text), ManifestMismatch::NotSent(path(b.0)));
    assert_eq!(mismatch(&[a, b], &text), ManifestMismatch::NotSent(path(c.0)));
    assert_eq!(mismatch(&[a, b, ("extra", 0, 0), c], &text), ManifestMismatch::NotNamed(path("extra")));
    assert_eq!(mismatch(&[a, b, c, ("extra", 0, 0)], &text), ManifestMismatch::NotNamed(path("extra")));
    assert!(matches!(mismatch(&[a, (b.0, 8191, b.2), c], &text), ManifestMismatch::Size { received: 8191, .. }));
    assert!(matches!(
        mismatch(&[a, (b.0, b.1, 8), c], &text),
        ManifestMismatch::Checksum { received: 8, stated: 7, .. }
    ));
    assert!(matches!(mismatch(&[c, b, (a.0, a.1, 8)], &text), ManifestMismatch::Checksum { received: 8, .. }));
    assert_eq!(mismatch(&[a, b, c], &manifest(&[a, b, b, c])), ManifestMismatch::NotSent(path(b.0)));
    let bare = sealed(r#"{ "Path": "backup_label", "Size": 225, "Last-Modified": "x" }"#);
    assert_eq!(mismatch(&[a], &bare), ManifestMismatch::NoChecksum(path(a.0)));
}

#[test]
fn a_damaged_manifest_is_refused() {
    let text = manifest(&FILES).replace("225", "226");
    let received = [("backup_label", 226, 0x0102_0304), FILES[1], FILES[2]];
    assert!(matches!(check(&received, &text), Err(CopyError::Manifest(_))));
    assert!(matches!(check(&FILES, ""), Err(CopyError::Manifest(_))));
}
