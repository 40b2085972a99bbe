//! Is what is stored for nobody but the holders of a key, and does everything work for them?

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

use pgvault::codec::digest::sha256;
use pgvault::codec::encryption::{DataKey, Generation, encrypt, open_blocks};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::support::pg::{give_to_server_user, major};
use crate::support::pgvault::Pgvault;
use crate::support::scene::{Scene, Setting};
use crate::support::tree::files_below;
use crate::support::truth::Target;

const MAGIC: &[u8] = b"PGVENC1\n";

fn contains(bytes: &[u8], what: &str) -> bool {
    bytes.windows(what.len()).any(|window| window == what.as_bytes())
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The stored objects that must be encrypted: all but the marker and the key ring.
fn objects(installed: &Pgvault) -> Vec<(PathBuf, Vec<u8>)> {
    let clear = |path: &Path| {
        let name = path.strip_prefix(&installed.repository).unwrap();
        name == Path::new("pgvault-repository.json") || name.starts_with("keys")
    };
    let files = files_below(&installed.repository).into_iter().filter(|path| !clear(path));
    files.map(|path| (fs::read(&path).unwrap(), path)).map(|(bytes, path)| (path, bytes)).collect()
}

/// The generations whose keys were used.
fn generations(installed: &Pgvault) -> Vec<u8> {
    let mut found: Vec<u8> = objects(installed).iter().map(|(_, bytes)| bytes[8]).collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// A copy of the configuration in which `line` stands in place of the identity.
fn with_identity(installed: &Pgvault, line: &str) -> PathBuf {
    let text = fs::read_to_string(&installed.config).unwrap();
    let lines = text.lines().map(|own| if own.starts_with("identity_file") { line } else { own });
    let path = installed.dir.join("other.toml");
    fs::write(&path, lines.collect::<Vec<_>>().join("\n")).unwrap();
    path
}

fn python(installed: &Pgvault, arguments: &[&str]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/read_repository.py");
    let mut command = Command::new("python3");
    command.arg("-B").arg(script).env_remove("PGVAULT_IDENTITY_FILE").arg(&installed.repository).args(arguments);
    command.output().unwrap()
}

#[test]
fn the_main_job_is_done_from_an_encrypted_s3() {
    let mut scene = Scene::new(Setting { s3: true, encrypted: true, ..Setting::of(major(15)) });
    scene.backup();
    scene.more(40);
    let one = scene.note("encrypted");
    scene.backup();
    scene.more(40);
    let oracle = scene.settle();
    let at = Target::Time { time: one.time, inclusive: true };
    scene.paused_is_exact(&oracle, &["--target-time", &one.time.to_string()], &at);
    let last = scene.latest();
    let last = scene.promoted_is_exact(&oracle, &["--latest"], &last);
    assert_eq!(last.found, oracle.attempts().len());
}

#[test]
fn what_was_stored_before_a_rotation_is_restored_with_what_came_after_and_nothing_shows() {
    let mut scene = Scene::new(Setting { encrypted: true, ..Setting::of(major(16)) });
    scene.node.sql("CREATE TABLE secrets AS SELECT 'canary-' || g AS s FROM generate_series(1, 2000) g");
    let first = scene.backup();
    scene.more(20);
    assert_eq!(generations(&scene.installed), [1]);
    let rotated = scene.installed.ok(["key", "rotate"]);
    assert!(rotated.starts_with("generation 2 is for age1"), "{rotated}");
    scene.more(20);
    let second = scene.backup();
    let one = scene.note("after the rotation");
    scene.more(20);
    let oracle = scene.settle();

    // Nobody learns anything from what is stored.
    for (path, bytes) in objects(&scene.installed) {
        assert!(bytes.starts_with(MAGIC), "{} is in the clear", path.display());
        for word in ["canary-", "pg_control", "PG_VERSION", "sha256", "BaseBackup", "system_identifier"] {
            assert!(!contains(&bytes, word), "{} holds {word}", path.display());
        }
    }
    let identity = fs::read_to_string(scene.installed.state.join("identity.txt")).unwrap();
    let secret = identity.lines().last().unwrap();
    assert!(secret.starts_with("AGE-SECRET-KEY-1"));
    assert!(!scene.daemon.as_ref().unwrap().log().contains(secret));
    assert_eq!(generations(&scene.installed), [1, 2], "the running daemon uses the new key");

    // The backup from before, WAL from both; then the backup from after, which shares its packs.
    let at = Target::Time { time: one.time, inclusive: true };
    let time = one.time.to_string();
    scene.paused_is_exact(&oracle, &["--target-time", &time, "--backup", first["id"].as_str().unwrap()], &at);
    scene.paused_is_exact(&oracle, &["--target-time", &time, "--backup", second["id"].as_str().unwrap()], &at);
    scene.installed.ok(["wal", "verify", "main"]);
    for backup in [&first, &second] {
        scene.installed.ok(["backup", "verify", backup["id"].as_str().unwrap()]);
    }
    two_packs_in_each_others_place_are_found(&scene.installed, &second);

    // The reader that was written from the format page alone.
    let file = scene.installed.state.join("identity.txt");
    let identity = ["--identity", file.to_str().unwrap()];
    let verified = python(&scene.installed, &[&identity[..], &["verify"]].concat());
    let text = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert!(verified.status.success() && text.trim_end().ends_with(" 0 damaged"), "{text}{}", stderr(&verified));
    let to = scene.path().join("by-python");
    let restore = ["restore", "main", first["id"].as_str().unwrap(), to.to_str().unwrap()];
    let restored = python(&scene.installed, &[&identity[..], &restore].concat());
    assert!(restored.status.success() && to.join("global/pg_control").exists(), "{}", stderr(&restored));
    let refused = python(&scene.installed, &["verify"]);
    assert_eq!(refused.status.code(), Some(255), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("give --identity"), "{}", stderr(&refused));

    who_has_no_key_is_told_so(&scene, secret);
}

/// Their blocks open in either place: the name and the chunks tell.
fn two_packs_in_each_others_place_are_found(installed: &Pgvault, backup: &Value) {
    let packs = files_below(&installed.repository.join("main/packs"));
    let [one, other] = [&packs[0], &packs[1]];
    let swap = || {
        let (first, second) = (fs::read(one).unwrap(), fs::read(other).unwrap());
        for (path, bytes) in [(one, second), (other, first)] {
            fs::remove_file(path).unwrap();
            fs::write(path, bytes).unwrap();
            give_to_server_user(path);
        }
    };
    swap();
    let (code, report) = installed.json(&["backup", "verify", backup["id"].as_str().unwrap()]);
    assert_eq!(code, 9, "{report}");
    swap();
}

fn who_has_no_key_is_told_so(scene: &Scene, secret: &str) {
    let installed = &scene.installed;
    let other = installed.state.join("other.txt");
    let recipient = installed.ok(["key", "init", other.to_str().unwrap()]);
    assert_eq!(fs::metadata(&other).unwrap().permissions().mode() & 0o777, 0o600);
    let again = installed.run(["key", "init", other.to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(7), "an identity is never overwritten");
    let wrong = format!("identity_file = \"{}\"", other.display());
    let standby = scene.path().join("standby");
    fs::create_dir(&standby).unwrap();
    fs::write(standby.join("standby.signal"), "").unwrap();
    give_to_server_user(&standby);
    let names: Vec<String> = objects(installed).iter().filter_map(|(path, _)| segment(path)).collect();
    for (line, why) in [("", "no identity is configured"), (wrong.as_str(), "does not open the repository's key ring")]
    {
        let config = with_identity(installed, line);
        let run =
            |args: &[&str]| installed.command(["-c", config.to_str().unwrap()].iter().chain(args)).output().unwrap();
        let to = scene.path().join("nowhere");
        for args in [
            &["recover", "main", "--to", to.to_str().unwrap(), "--latest"][..],
            &["window", "main"],
            &["backup", "list", "main"],
            &["repo", "check"],
        ] {
            // The daemon, which has the key, is not asked.
            let output = run(&[args, &["--set", "daemon.state_dir=/var/tmp/pgvault-none"]].concat());
            assert_eq!(output.status.code(), Some(5), "{args:?}: {}", stderr(&output));
            let said = stderr(&output);
            assert!(said.contains("error[E0406]") && said.contains(why) && said.contains("help: "), "{said}");
            assert!(!said.contains(secret), "{said}");
        }
        assert!(!to.exists());
        // Never "absent": not for what is there, not for what is not, not for a standby.
        for name in [names[0].as_str(), "0000000100000000000000FE", "00000002.history"] {
            for dir in [installed.dir.as_path(), &standby] {
                let args = ["--set", "daemon.state_dir=/var/tmp/pgvault-none", "wal", "fetch", "main", name, "out"];
                let mut command = installed.command(["-c", config.to_str().unwrap()].iter().chain(&args));
                let output = command.current_dir(dir).output().unwrap();
                assert_eq!(output.status.code(), Some(255), "{name}: {}", stderr(&output));
            }
        }
        let listed = run(&["key", "list"]);
        assert!(listed.status.success(), "{}", stderr(&listed));
        assert!(!String::from_utf8_lossy(&listed.stdout).contains(recipient.trim()));
    }
    // The key ring is gone.
    fs::rename(installed.repository.join("keys"), scene.path().join("keys")).unwrap();
    let output = installed.run(["--set", "daemon.state_dir=/var/tmp/pgvault-none", "window", "main"]);
    assert_eq!(output.status.code(), Some(5));
    assert!(stderr(&output).contains("its key ring (keys/*.json) is gone"), "{}", stderr(&output));
}

fn segment(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?.strip_suffix(".zst")?;
    (name.len() == 24).then(|| name.to_owned())
}

#[test]
#[ignore = "a measurement, by name: cargo test --test suite how_much_cpu_encryption_takes -- --ignored --nocapture"]
fn how_much_cpu_encryption_takes() {
    let plain: Vec<u8> = (0..64_u64 << 20).map(|at| at.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes()[0]).collect();
    let (key, digest) = (DataKey::new(Zeroizing::new([1; 32])), sha256(&plain));
    let per_gib = |work: &mut dyn FnMut()| {
        let start = Instant::now();
        (0..8).for_each(|_| work());
        start.elapsed().as_secs_f64() * 2.0
    };
    let mut stored = Vec::new();
    let encrypting =
        per_gib(&mut || stored = encrypt(&key, Generation::FIRST, "main/packs/*", &plain, &digest).unwrap());
    let opening = per_gib(&mut || assert!(open_blocks(&key, "main/packs/*", 0, &stored).unwrap().is_end));
    let hashing = per_gib(&mut || assert_eq!(sha256(&plain), digest));
    println!("seconds per GiB: encrypting {encrypting:.3}, opening {opening:.3}, SHA-256 {hashing:.3}");
}
