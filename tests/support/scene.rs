//! The whole product at work: a server under load, `pgvault serve` beside it, pg_receivewal as the reference, and what the
//! restored servers are compared with.

use std::fs;
use std::path::{Path, PathBuf};

use pgvault::storage::StorageOptions;
use serde_json::Value;
use tempfile::TempDir;
use wal::{Lsn, PgTime, SegmentSize, TimelineId};

pub use super::LIMIT;
use super::ledger::{Barrier, Ledger, Load};
use super::oracle::{Oracle, Verdict};
use super::pg::{PgNode, give_to_server_user, test_dir};
use super::pgvault::{Daemon, Pgvault};
use super::receivewal::ReceiveWal;
use super::restored::{wait_paused, wait_promoted};
use super::s3;
use super::truth::{Target, Truth};

/// What a scene is made of.
#[derive(Clone, Debug)]
pub struct Setting {
    pub major: u32,
    pub initdb: &'static [&'static str],
    pub segment_size: u64,
    pub s3: bool,
    pub tablespace: bool,
    /// Whether the repository is encrypted, from its beginning.
    pub encrypted: bool,
}

impl Setting {
    /// This major version, segments of 1 MB, a repository in a directory.
    pub fn of(major: u32) -> Self {
        Self {
            major,
            initdb: &["--wal-segsize=1"],
            segment_size: 1 << 20,
            s3: false,
            tablespace: false,
            encrypted: false,
        }
    }

    /// The same with segments of so many megabytes.
    pub fn segments_of(self, initdb: &'static [&'static str], megabytes: u64) -> Self {
        Self { initdb, segment_size: megabytes << 20, ..self }
    }
}

/// A moment that was noted while the load went on.
#[derive(Clone, Debug)]
pub struct Noted {
    pub time: PgTime,
    pub lsn: Lsn,
    pub barrier: Barrier,
}

/// A cluster under load that pgvault backs up.
pub struct Scene {
    pub node: PgNode,
    pub installed: Pgvault,
    pub ledger: Ledger,
    pub daemon: Option<Daemon>,
    pub load: Option<Load>,
    pub barriers: Vec<Barrier>,
    pub setting: Setting,
    reference: Option<ReceiveWal>,
    restores: usize,
    /// Last, so that everything else has ended when it is removed.
    pub dir: TempDir,
}

impl Scene {
    /// A new cluster under load, and a daemon that streams from it.
    pub fn new(setting: Setting) -> Self {
        let dir = test_dir();
        let settings = [("max_prepared_transactions", "20")];
        let mut node = PgNode::init(dir.path(), "primary", setting.major, setting.initdb, &settings);
        node.start();
        let installed = Pgvault::new(dir.path());
        installed.config_for(&node, "");
        if setting.s3 {
            store_in_s3(&installed);
        }
        if setting.encrypted {
            encrypt(&installed);
        }
        let reference = ReceiveWal::start(&node, &dir.path().join("reference"));
        let space = setting.tablespace.then(|| dir.path().join("space"));
        if let Some(space) = &space {
            fs::create_dir(space).unwrap();
            give_to_server_user(space);
        }
        let ledger = Ledger::create(&node, &dir.path().join("ledger"), space.as_deref());
        let daemon = installed.serve();
        installed.wait_streaming();
        let load = ledger.load(&node, 3);
        load.wait_for_more(20);
        Self {
            node,
            installed,
            ledger,
            daemon: Some(daemon),
            load: Some(load),
            barriers: Vec::new(),
            setting,
            reference: Some(reference),
            restores: 0,
            dir,
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    fn load(&self) -> &Load {
        self.load.as_ref().unwrap()
    }

    /// Lets the writers go on.
    pub fn more(&self, commits: u64) {
        self.load().wait_for_more(commits);
    }

    /// `backup now --wait` while the writers go on; its JSON.
    pub fn backup(&self) -> Value {
        let before = self.load.as_ref().map(Load::acknowledged);
        let (code, backup) = self.installed.json(&["backup", "now", "main", "--wait", "--fast-checkpoint"]);
        assert_eq!(code, 0, "{backup}");
        assert_eq!(backup["status"], "ok", "{backup}");
        if let Some(before) = before {
            assert!(self.load().acknowledged() > before, "the load stood still during the backup");
        }
        backup
    }

    /// Notes the moment, by the server's clock and position, while the writers go on, and sets a restore point.
    pub fn note(&mut self, name: &str) -> Noted {
        let barrier = self.load().barrier(&self.node, name);
        self.barriers.push(barrier.clone());
        self.more(10);
        let noted = now_and_here(&self.node);
        self.more(10);
        Noted { time: noted.0, lsn: noted.1, barrier }
    }

    /// Ends the writers, and waits until pgvault and the reference have everything; what really happened.
    pub fn settle(&mut self) -> Oracle {
        if let Some(load) = self.load.take() {
            load.stop();
        }
        let end = self.wait_stored();
        let reference = self.reference.take().unwrap();
        reference.wait_for(&self.node, end);
        reference.stop();
        self.oracle(&self.ledger, &self.path().join("reference"), TimelineId::FIRST)
    }

    /// What really happened up to `end`, where pgvault may not have stored it.
    pub fn oracle_so_far(&mut self, end: Lsn) -> Oracle {
        let reference = self.reference.take().unwrap();
        reference.wait_for(&self.node, end);
        reference.stop();
        self.oracle(&self.ledger, &self.path().join("reference"), TimelineId::FIRST)
    }

    /// What really happened, by another ledger's notes and another reference.
    pub fn oracle(&self, ledger: &Ledger, reference: &Path, timeline: TimelineId) -> Oracle {
        let size = SegmentSize::new(self.setting.segment_size).unwrap();
        Oracle::new(ledger, Truth::read(reference, timeline, size), self.barriers.clone())
    }

    /// Waits until everything that the server has flushed lies in the repository; that position.
    pub fn wait_stored(&self) -> Lsn {
        wait_stored(&self.installed, &self.node)
    }

    /// The advertised window.
    pub fn window(&self) -> Value {
        let (code, window) = self.installed.json(&["window", "main"]);
        assert_eq!(code, 0, "{window}");
        window
    }

    /// What `--latest` recovers: where the window ends.
    pub fn latest(&self) -> Target {
        let window = self.window();
        Target::EndOfWal(window["ranges"][0]["to"]["lsn"].as_str().unwrap().parse().unwrap())
    }

    /// Where this range of the window ends.
    pub fn latest_of(&self, range: usize) -> Target {
        let window = self.window();
        Target::EndOfWal(window["ranges"][range]["to"]["lsn"].as_str().unwrap().parse().unwrap())
    }

    /// `recover` with these arguments into a new directory; the server on it is not started.
    pub fn recover(&mut self, args: &[&str]) -> PgNode {
        let node = self.place();
        let to = node.data.to_str().unwrap();
        let args = ["recover", "main", "--to", to].into_iter().chain(args.iter().copied());
        self.installed.ok(args);
        configure(&node);
        node
    }

    /// A directory for one more restored server.
    pub fn place(&mut self) -> PgNode {
        self.restores += 1;
        PgNode::at(self.dir.path(), &format!("restored-{}", self.restores), self.setting.major)
    }

    /// Recovers, pauses at the target, and looks.
    #[track_caller]
    pub fn paused_is_exact(&mut self, oracle: &Oracle, args: &[&str], target: &Target) -> Verdict {
        let mut node = self.recover(args);
        node.start();
        wait_paused(&node);
        let verdict = oracle.check(&node, target);
        assert!(verdict.is_exact(), "{args:?}: {verdict}\n{}", node.log());
        self.forget(node);
        verdict
    }

    /// Recovers, waits until the server accepts writes, and looks.
    #[track_caller]
    pub fn promoted_is_exact(&mut self, oracle: &Oracle, args: &[&str], target: &Target) -> Verdict {
        let mut node = self.recover(args);
        node.start();
        wait_promoted(&node);
        let verdict = oracle.check(&node, target);
        assert!(verdict.is_exact(), "{args:?}: {verdict}\n{}", node.log());
        self.forget(node);
        verdict
    }

    /// Ends a restored server and removes it.
    pub fn forget(&self, mut node: PgNode) {
        assert!(node.stop("immediate", LIMIT));
        fs::remove_dir_all(&node.data).unwrap();
    }
}

/// The server's clock and insert position.
pub fn now_and_here(node: &PgNode) -> (PgTime, Lsn) {
    let sql = "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), pg_current_wal_insert_lsn()";
    let row = node.sql(sql);
    let (time, lsn) = row.split_once('|').unwrap();
    (time.parse().unwrap(), lsn.parse().unwrap())
}

/// Waits until everything that the server has flushed lies in the repository; that position.
pub fn wait_stored(installed: &Pgvault, node: &PgNode) -> Lsn {
    // A commit that is waited for, so that everything before it is flushed.
    let end: Lsn = node.sql("SELECT pg_logical_emit_message(true, 'end', '')").parse().unwrap();
    installed.wait("everything is stored", LIMIT, || {
        let (_, status) = installed.json(&["status", "main"]);
        let shipped = status["clusters"][0]["wal"]["shipped_lsn"].as_str().and_then(|lsn| lsn.parse::<Lsn>().ok());
        shipped.is_some_and(|shipped| shipped >= end)
    });
    end
}

/// Settings of a test server for a restored one, which runs beside the one that it was.
pub fn configure(node: &PgNode) {
    node.configure(&[]);
    give_to_server_user(&node.data.join("postgresql.conf"));
}

/// Has the repository encrypted for a new identity, `identity.txt` in the state directory; its recipient.
pub fn encrypt(installed: &Pgvault) -> String {
    let file = installed.state.join("identity.txt");
    let recipient = installed.ok(["key", "init", file.to_str().unwrap()]).trim().to_owned();
    let text = fs::read_to_string(&installed.config).unwrap();
    let keys = format!("[repository]\nencryption = [\"{recipient}\"]\nidentity_file = \"{}\"\n", file.display());
    fs::write(&installed.config, text.replace("[repository]\n", &keys)).unwrap();
    recipient
}

/// Puts the repository into a place of its own in the tests' S3 server.
pub fn store_in_s3(installed: &Pgvault) {
    store_at(installed, &s3::server().fresh());
}

/// Puts the repository into this place. Its key files are copied beside the configuration: `access` and `secret`.
pub fn store_at(installed: &Pgvault, options: &StorageOptions) {
    let keys = [&options.access_key_file, &options.secret_key_file];
    let keys = keys.map(|file| readable_copy(file.as_ref().unwrap(), &installed.dir));
    let text = fs::read_to_string(&installed.config).unwrap();
    let url = format!("url = \"file://{}\"", installed.repository.display());
    assert!(text.contains(&url));
    let s3 = format!(
        "url = \"{}\"\nendpoint = \"{}\"\nregion = \"us-east-1\"\npath_style = true\nallow_http = true\naccess_key_file = \"{}\"\nsecret_key_file = \"{}\"",
        options.url,
        options.endpoint.as_ref().unwrap(),
        keys[0].display(),
        keys[1].display(),
    );
    fs::write(&installed.config, text.replace(&url, &s3)).unwrap();
}

fn readable_copy(file: &Path, dir: &Path) -> PathBuf {
    let copy = dir.join(file.file_name().unwrap());
    fs::copy(file, &copy).unwrap();
    give_to_server_user(&copy);
    copy
}
