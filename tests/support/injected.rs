//! Makes system calls of a running process fail, by attaching strace to it.

use super::LIMIT;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What fails.
#[derive(Clone, Copy, Debug)]
pub struct Injection<'a> {
    /// System calls, comma-separated.
    pub calls: &'a str,
    /// `EIO`, `ENOSPC`, …
    pub error: &'a str,
    /// Which of them, in strace's words: `1+` all, `3` the third.
    pub when: &'a str,
    /// Only those about these files; about any file when empty. A file need not exist yet.
    pub paths: &'a [PathBuf],
}

/// A process whose calls fail until this is stopped or dropped.
#[derive(Debug)]
pub struct Injected {
    strace: Option<Child>,
    log: PathBuf,
}

impl Injected {
    /// Begins; returns once the process is attached. `log` is a file of its own.
    pub fn start(pid: u32, injection: Injection<'_>, log: &Path) -> Self {
        let Injection { calls, error, when, paths } = injection;
        let mut command = Command::new("strace");
        command.args(["-f", "-y", "-p", &pid.to_string(), "-e", &format!("trace={calls}"), "-o"]).arg(log);
        command.args(["-e", &format!("inject={calls}:error={error}:when={when}")]);
        for path in paths {
            command.arg("-P").arg(path);
        }
        let said = log.with_extension("said");
        let strace =
            command.stdin(Stdio::null()).stderr(fs::File::create(&said).unwrap()).spawn().expect("strace is installed");
        let injected = Self { strace: Some(strace), log: log.to_owned() };
        let deadline = Instant::now() + LIMIT;
        loop {
            let text = fs::read_to_string(&said).unwrap();
            if text.contains(" attached") {
                return injected;
            }
            assert!(!text.contains("not permitted"), "tracing is not allowed here: {text}");
            assert!(Instant::now() < deadline, "strace did not attach: {text}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The calls that failed so far.
    pub fn failed(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().filter(|line| line.contains("(INJECTED)")).map(str::to_owned).collect()
    }

    /// Lets everything work again; the calls that failed.
    pub fn stop(mut self) -> Vec<String> {
        self.end();
        self.failed()
    }

    fn end(&mut self) {
        if let Some(mut strace) = self.strace.take() {
            // Asked to end, it lets the process go.
            let asked = Command::new("kill").args(["-INT", &strace.id().to_string()]).status().unwrap();
            assert!(asked.success());
            strace.wait().unwrap();
        }
    }
}

impl Drop for Injected {
    fn drop(&mut self) {
        self.end();
    }
}
