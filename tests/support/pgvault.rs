//! Runs the built `pgvault` as its users do: as a command, and as a daemon, with a configuration of its own.

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::LIMIT;
use super::pg::{PgNode, as_server_user, free_port, give_to_server_user, with_limit};

/// One installation: a copy of the binary, a configuration, a state directory and a repository, all of which the servers'
/// user can use, because a `restore_command` runs as that user.
#[derive(Debug)]
pub struct Pgvault {
    /// Where everything lies.
    pub dir: PathBuf,
    /// The binary.
    pub binary: PathBuf,
    /// The configuration file.
    pub config: PathBuf,
    /// `state_dir`
    pub state: PathBuf,
    /// The directory of the `file://` repository.
    pub repository: PathBuf,
    /// The port of the HTTP server.
    pub http_port: u16,
}

impl Pgvault {
    /// Copies the binary below `dir` (a directory of [`super::pg::test_dir`]).
    pub fn new(dir: &Path) -> Self {
        let dir = dir.join("pgvault");
        fs::create_dir_all(&dir).unwrap();
        let binary = dir.join("pgvault");
        // A hard link is instant; across file systems, or where the target lies on a tmpfs, the bytes are copied.
        let built = Path::new(env!("CARGO_BIN_EXE_pgvault"));
        if fs::hard_link(built, &binary).is_err() {
            fs::copy(built, &binary).unwrap();
        }
        let state = dir.join("state");
        let repository = dir.join("repository");
        fs::create_dir_all(&state).unwrap();
        fs::create_dir_all(&repository).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        let config = dir.join("pgvault.toml");
        let installed = Self { dir, binary, config, state, repository, http_port: free_port() };
        for path in [&installed.state, &installed.repository] {
            give_to_server_user(path);
        }
        installed
    }

    /// Writes a configuration: daemon, repository, HTTP and log are set, `clusters` is the rest of the file.
    pub fn config(&self, clusters: &str) -> &Self {
        let text = format!(
            "[daemon]\nstate_dir = \"{}\"\n[repository]\nurl = \"file://{}\"\n[http]\nlisten = \"127.0.0.1:{}\"\n[log]\nformat = \"text\"\nlevel = \"debug\"\n\n{clusters}\n",
            self.state.display(),
            self.repository.display(),
            self.http_port,
        );
        fs::write(&self.config, text).unwrap();
        fs::set_permissions(&self.config, fs::Permissions::from_mode(0o644)).unwrap();
        self
    }

    /// `[cluster.main]` for a server, with no schedule and tails every half second, then `more` keys.
    pub fn config_for(&self, node: &PgNode, more: &str) -> &Self {
        let conninfo = node.conninfo();
        self.config(&format!("[cluster.main]\nconninfo = \"{conninfo}\"\nschedule = \"\"\nmax_rpo = \"500ms\"\n{more}"))
    }

    /// A command of this installation, run as the servers' user, without what the tests' own environment sets.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = as_server_user(&self.binary);
        for (name, _) in std::env::vars_os() {
            let name_text = name.to_string_lossy();
            if name_text.starts_with("PGVAULT_") || name_text.starts_with("PG") || name_text.starts_with("AWS_") {
                command.env_remove(&name);
            }
        }
        command.env("RUST_BACKTRACE", "1").env("HOME", &self.dir).current_dir(&self.dir).stdin(Stdio::null());
        if self.config.exists() {
            command.env("PGVAULT_CONFIG", &self.config);
        }
        command.args(args);
        command
    }

    /// Runs a command to its end.
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        let command = self.command(args);
        let output = with_limit(&command, LIMIT * 2).output().unwrap();
        assert!(output.status.code() != Some(124), "{command:?} took more than {:?}: {output:?}", LIMIT * 2);
        output
    }

    /// Runs a command that must succeed; its stdout.
    pub fn ok<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> String {
        let output = self.run(args);
        assert!(
            output.status.success(),
            "{:?}\nstdout: {}\nstderr: {}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command with `--json`; its exit code and the last document of stdout.
    pub fn json(&self, args: &[&str]) -> (i32, Value) {
        let output = self.run(args.iter().copied().chain(["--json"]));
        let stdout = String::from_utf8(output.stdout).unwrap();
        let last = stdout.lines().last().unwrap_or_else(|| {
            panic!("{args:?} printed nothing; stderr: {}", String::from_utf8_lossy(&output.stderr));
        });
        let document = serde_json::from_str(last).unwrap_or_else(|error| panic!("{args:?}: {error}: {last}"));
        (output.status.code().unwrap(), document)
    }

    /// Starts the daemon and waits until its control socket answers.
    pub fn serve(&self) -> Daemon {
        self.wait_up(self.spawn_serve(&[]))
    }

    /// The same below a program that looks on, `strace -D …` for one: it must not become another process.
    pub fn serve_below(&self, wrapper: &[&str]) -> Daemon {
        let mut command = as_server_user(wrapper[0]);
        let plain = self.command(["serve"]);
        command.args(&wrapper[1..]).arg(&self.binary).arg("serve");
        for (name, value) in plain.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.current_dir(&self.dir).stdin(Stdio::null());
        self.wait_up(self.spawn(command))
    }

    fn wait_up(&self, mut daemon: Daemon) -> Daemon {
        let deadline = Instant::now() + LIMIT;
        while !self.run(["health"]).status.success() {
            assert!(!daemon.has_ended(), "serve ended:\n{}", daemon.log());
            assert!(Instant::now() < deadline, "serve did not come up:\n{}", daemon.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        daemon
    }

    /// Starts the daemon with these variables and does not wait for anything.
    pub fn spawn_serve(&self, variables: &[(&str, &str)]) -> Daemon {
        let mut command = self.command(["serve"]);
        command.envs(variables.iter().copied());
        self.spawn(command)
    }

    fn spawn(&self, mut command: Command) -> Daemon {
        let log_path = self.dir.join(format!("serve-{}.log", free_port()));
        let log = fs::File::create(&log_path).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        Daemon { child: Some(command.spawn().unwrap()), log_path }
    }

    /// Waits until `status` says that WAL is streaming.
    pub fn wait_streaming(&self) {
        self.wait("streaming", LIMIT, || self.json(&["status", "main"]).1["clusters"][0]["wal"]["streaming"] == true);
    }

    /// Polls until something holds; panics with its name when it does not in time.
    pub fn wait(&self, what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + limit;
        while !holds() {
            assert!(Instant::now() < deadline, "still not after {} s: {what}", limit.as_secs());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// A GET of the HTTP server: status and body.
    pub fn http(&self, path: &str) -> (u16, String) {
        let address = format!("127.0.0.1:{}", self.http_port);
        let mut stream = std::net::TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        std::io::Write::write_all(&mut stream, format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split_whitespace().nth(1).unwrap().parse().unwrap(), body.to_owned())
    }
}

/// A running `pgvault serve`; killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Option<Child>,
    log_path: PathBuf,
}

impl Daemon {
    /// Its pid; `setpriv` keeps it when it becomes the program.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some())
    }

    /// What it wrote to its log.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log_path).unwrap_or_default()
    }

    /// Sends a signal, `TERM`, `HUP`, ….
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Waits for its end; the exit code.
    pub fn wait(mut self, limit: Duration) -> Option<i32> {
        let mut child = self.child.take().unwrap();
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status.code();
            }
            if Instant::now() >= deadline {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("serve did not end within {} s:\n{}", limit.as_secs(), self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it in good order; panics when it does not end with 0.
    pub fn stop(self) {
        self.signal("TERM");
        let log_path = self.log_path.clone();
        let code = self.wait(LIMIT);
        assert_eq!(code, Some(0), "{}", fs::read_to_string(log_path).unwrap_or_default());
    }

    /// kill -9.
    pub fn kill(mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

impl Drop for Daemon {
    #[expect(clippy::print_stderr, reason = "a failing test shows what the daemon said")]
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            if std::thread::panicking() {
                let log = fs::read_to_string(&self.log_path).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(80).collect();
                eprintln!("--- the end of serve's log ---");
                for line in tail.iter().rev() {
                    eprintln!("{line}");
                }
            }
            // It may have ended by itself: then there is nothing to kill.
            drop(child.kill());
            drop(child.wait());
        }
    }
}
