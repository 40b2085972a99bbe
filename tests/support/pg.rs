//! Real PostgreSQL servers for tests, one directory and one port each, run as the user `postgres` when we are root.

use super::LIMIT;
use std::fmt::Write as _;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Where `make setup` puts servers, unless PGVAULT_TEST_SERVERS says otherwise.
pub fn servers_dir() -> PathBuf {
    std::env::var_os("PGVAULT_TEST_SERVERS")
        .map_or_else(|| PathBuf::from("/var/tmp/pgvault-test-servers"), PathBuf::from)
}

/// The major version for a test to which any is right: `usual`, unless `make matrix` asks for another by PGVAULT_TEST_MAJOR.
pub fn major(usual: u32) -> u32 {
    std::env::var("PGVAULT_TEST_MAJOR")
        .map_or(usual, |asked| asked.parse().expect("PGVAULT_TEST_MAJOR is a major version"))
}

/// What initdb needs for a cluster without page checksums: since 18 it makes them unless it is told not to.
pub fn without_checksums(major: u32) -> &'static [&'static str] {
    if major >= 18 { &["--no-data-checksums"] } else { &[] }
}

/// Where the binaries of a major version are: `pg/<major>/bin` below [`servers_dir`], for
/// 15 also Debian's.
pub fn bin_dir(major: u32) -> PathBuf {
    let fetched = servers_dir().join(format!("pg/{major}/bin"));
    let debian = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
    [fetched, debian]
        .into_iter()
        .find(|dir| dir.join("postgres").exists())
        .unwrap_or_else(|| panic!("no PostgreSQL {major}: run `make setup` (scripts/fetch-servers.sh)"))
}

/// A port that was free a moment ago, and that nobody gets by chance: below those that the system gives to outgoing
/// connections, and never the same twice in a process.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let offset = std::process::id().wrapping_mul(137);
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 10_000 + u16::try_from(offset.wrapping_add(step) % 12_000).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Whether this process is root, who may not run PostgreSQL.
pub fn am_root() -> bool {
    rustix::process::getuid().is_root()
}

/// A command that runs as an ordinary user: as `postgres` when we are root. Programs of a PostgreSQL of the tests use that
/// one's libpq: its walreceiver would otherwise load the system's, which may be older.
pub fn as_server_user(program: impl AsRef<Path>) -> Command {
    let program = program.as_ref();
    let mut command = if am_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    let libraries = program.parent().and_then(Path::parent).map(|version| version.join("lib"));
    if let Some(libraries) = libraries.filter(|dir| dir.join("libpq.so.5").exists()) {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    command
}

/// The same command, ended when it takes longer than any sane one does: a test that hangs tells less than one that fails.
pub fn with_limit(command: &Command, limit: Duration) -> Command {
    let mut limited = Command::new("timeout");
    limited.args(["--kill-after=5", &limit.as_secs().to_string()]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        limited.current_dir(dir);
    }
    limited.stdin(Stdio::null());
    limited
}

/// Gives a path to the user that runs the servers.
pub fn give_to_server_user(path: &Path) {
    if am_root() {
        let status = Command::new("chown").arg("-R").arg("postgres:postgres").arg(path).status().unwrap();
        assert!(status.success(), "chown {}", path.display());
    }
}

/// State and parent of a process; none when it is gone.
fn process(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the name, which may hold anything.
    let mut words = stat.rsplit_once(')')?.1.split_whitespace();
    Some((words.next()?.chars().next()?, words.next()?.parse().ok()?))
}

/// The processes that this one has started.
pub fn children(parent: u32) -> Vec<u32> {
    let all = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    all.filter(|&pid| process(pid).is_some_and(|(_, of)| of == parent)).collect()
}

/// Waits until none of these processes does anything any more: a zombie does not, though its pid is taken until somebody
/// has waited for it.
pub fn wait_gone(pids: &[u32]) {
    let deadline = Instant::now() + LIMIT;
    while let Some(left) = pids.iter().find(|&&pid| process(pid).is_some_and(|(state, _)| state != 'Z')) {
        assert!(Instant::now() < deadline, "process {left} does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args([format!("-{name}"), pid.to_string()]).status().unwrap();
    assert!(status.success(), "{name} of process {pid}");
}

/// Waits until a process that was told to stop for a while has done so, or has ended.
fn wait_stopped(pid: u32) {
    let deadline = Instant::now() + LIMIT;
    while process(pid).is_some_and(|(state, _)| !matches!(state, 'T' | 'Z')) {
        assert!(Instant::now() < deadline, "process {pid} does not stop");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A temporary directory that the servers' user can enter; removed at the end of the test.
pub fn test_dir() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("pgvault-test-").tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

/// One PostgreSQL server.
#[derive(Debug)]
pub struct PgNode {
    /// Its major version.
    pub major: u32,
    /// Its data directory.
    pub data: PathBuf,
    /// Its port, on 127.0.0.1 and on a socket in `run`.
    pub port: u16,
    /// Directory of its unix socket.
    pub run: PathBuf,
    process: Option<Child>,
}

impl PgNode {
    /// initdb with the given extra arguments and settings; not started.
    pub fn init(base: &Path, name: &str, major: u32, initdb_args: &[&str], settings: &[(&str, &str)]) -> Self {
        let node = Self::at(base, name, major);
        let output = as_server_user(bin_dir(major).join("initdb"))
            .arg("-D")
            .arg(&node.data)
            .args(["-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C"])
            .args(initdb_args)
            .output()
            .unwrap();
        assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        node.configure(settings);
        node
    }

    /// A node for a data directory that something else fills (a restore, a pg_basebackup).
    pub fn at(base: &Path, name: &str, major: u32) -> Self {
        let data = base.join(name);
        let run = base.join(format!("{name}.run"));
        fs::create_dir_all(&run).unwrap();
        give_to_server_user(&run);
        if am_root() {
            // initdb makes the data directory itself, so its parent must be writable for the servers' user.
            let status = Command::new("chown").arg("postgres:postgres").arg(base).status().unwrap();
            assert!(status.success());
        }
        Self { major, data, port: free_port(), run, process: None }
    }

    /// initdb with settings for tests, started.
    pub fn start_new(base: &Path, name: &str, major: u32) -> Self {
        let mut node = Self::init(base, name, major, &[], &[]);
        node.start();
        node
    }

    /// Appends settings to postgresql.conf, the ones that every test server has first.
    pub fn configure(&self, settings: &[(&str, &str)]) {
        let mut text = String::from("\n");
        let port = self.port.to_string();
        let run = self.run.to_str().unwrap();
        let defaults = [
            ("port", port.as_str()),
            ("listen_addresses", "127.0.0.1"),
            ("unix_socket_directories", run),
            ("wal_level", "replica"),
            ("max_wal_senders", "10"),
            ("max_replication_slots", "10"),
            ("shared_buffers", "32MB"),
            ("fsync", "off"),
            ("log_min_messages", "info"),
            ("log_line_prefix", "%m [%p] "),
            ("track_commit_timestamp", "on"),
        ];
        for (name, value) in defaults.iter().chain(settings) {
            writeln!(text, "{name} = '{value}'").unwrap();
        }
        let path = self.data.join("postgresql.conf");
        let before = fs::read_to_string(&path).unwrap_or_default();
        fs::write(&path, before + &text).unwrap();
    }

    /// Starts the server and waits until it answers or ends; panics with its log when it ends.
    pub fn start(&mut self) {
        assert!(self.try_start(), "server did not start:\n{}", self.log());
    }

    /// Starts the server; false when it ended instead of accepting connections (read-only ones included).
    pub fn try_start(&mut self) -> bool {
        assert!(self.process.is_none(), "already running");
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_path()).unwrap();
        let mut server = as_server_user(bin_dir(self.major).join("postgres"));
        // A restore_command must not see what the tests' own environment sets for pgvault.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PGVAULT_")) {
            server.env_remove(name);
        }
        let child = server
            .arg("-D")
            .arg(&self.data)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(child);
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            if self.process.as_mut().unwrap().try_wait().unwrap().is_some() {
                self.process = None;
                return false;
            }
            if self.try_sql("SELECT 1").is_ok() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("server neither started nor ended in {} s:\n{}", LIMIT.as_secs(), self.log());
    }

    /// Waits until the server has ended by itself.
    pub fn wait_end(&mut self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            match self.process.as_mut().map(|child| child.try_wait().unwrap()) {
                None | Some(Some(_)) => {
                    self.process = None;
                    return true;
                }
                Some(None) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
        false
    }

    /// `pg_ctl stop -m <mode>`; returns whether it ended within `limit`.
    pub fn stop(&mut self, mode: &str, limit: Duration) -> bool {
        let output = self.pg_ctl(&["stop", "-m", mode, "-t", &limit.as_secs().max(1).to_string()]);
        let ended = output.status.success();
        if ended && let Some(mut child) = self.process.take() {
            child.wait().unwrap();
        }
        ended
    }

    /// kill -9 of the postmaster. Its children notice by themselves: until they are gone they hold its shared memory, and
    /// may still write to its files.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.process.take() {
            let mut orphans = Vec::new();
            if let Some(pid) = self.postmaster_pid() {
                // One that is stopped starts no more of them, and none is overlooked.
                signal(pid, "STOP");
                wait_stopped(pid);
                orphans = children(pid);
                signal(pid, "KILL");
            }
            child.wait().unwrap();
            wait_gone(&orphans);
        }
    }

    /// Promotes a standby and waits for it.
    pub fn promote(&self) {
        let output = self.pg_ctl(&["promote", "-w", "-t", &LIMIT.as_secs().to_string()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// pid of the postmaster, from postmaster.pid.
    pub fn postmaster_pid(&self) -> Option<u32> {
        fs::read_to_string(self.data.join("postmaster.pid")).ok()?.lines().next()?.trim().parse().ok()
    }

    fn pg_ctl(&self, args: &[&str]) -> Output {
        as_server_user(bin_dir(self.major).join("pg_ctl")).arg("-D").arg(&self.data).args(args).output().unwrap()
    }

    /// A standby of this node, by pg_basebackup with streaming; not started.
    pub fn make_standby(&self, base: &Path, name: &str) -> Self {
        let standby = Self::at(base, name, self.major);
        let output = self
            .tool("pg_basebackup")
            .args(["-X", "stream", "-c", "fast", "-R", "-D"])
            .arg(&standby.data)
            .output()
            .unwrap();
        assert!(output.status.success(), "pg_basebackup: {}", String::from_utf8_lossy(&output.stderr));
        standby.configure(&[]);
        standby
    }

    /// One of PostgreSQL's client programs, pointed at this server by environment.
    pub fn tool(&self, program: &str) -> Command {
        let mut command = as_server_user(bin_dir(self.major).join(program));
        command.env("PGHOST", "127.0.0.1").env("PGPORT", self.port.to_string()).env("PGUSER", "postgres");
        command.env("PGDATABASE", "postgres");
        command
    }

    /// libpq words for this server, `host=127.0.0.1 port=… user=postgres`.
    pub fn conninfo(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres", self.port)
    }

    /// Runs SQL through psql; unaligned rows, fields joined by `|`. Panics on an error.
    pub fn sql(&self, sql: &str) -> String {
        self.try_sql(sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// Runs SQL through psql; the error text when it fails.
    pub fn try_sql(&self, sql: &str) -> Result<String, String> {
        let mut psql = self.tool("psql");
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql]);
        let output = with_limit(&psql, LIMIT).output().unwrap();
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// Drops a replication slot as soon as nobody streams through it: whoever did is given up by the server a moment later.
    pub fn drop_slot(&self, slot: &str) {
        self.wait_idle(slot);
        self.sql(&format!("SELECT pg_drop_replication_slot('{slot}')"));
    }

    /// Waits until nobody streams through a replication slot.
    pub fn wait_idle(&self, slot: &str) {
        let active = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{slot}' AND active");
        let deadline = Instant::now() + LIMIT;
        while self.sql(&active) != "0" {
            assert!(Instant::now() < deadline, "slot {slot} is still active");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn log_path(&self) -> PathBuf {
        self.run.join("server.log")
    }

    /// What the server wrote to its log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }
}

impl Drop for PgNode {
    /// Ends what this node started, by its pid.
    fn drop(&mut self) {
        if self.process.is_some() && !self.stop("immediate", LIMIT) {
            self.kill();
        }
    }
}
