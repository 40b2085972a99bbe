//! Where the demo happens: a directory, the programs, and the user who may run PostgreSQL.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use super::{cannot, fits_socket};
use crate::config::Variables;
use crate::error::{Error, ErrorCode, Result};

/// The directory of one demo.
#[derive(Debug)]
pub(super) struct Place {
    /// Where everything lies.
    pub(super) dir: PathBuf,
    /// PostgreSQL's programs.
    pub(super) bin: PathBuf,
    /// This program, where the user of the servers can run it.
    pub(super) pgvault: PathBuf,
    /// How to become that user; empty when we are no root.
    become_user: Vec<String>,
    /// Variables of this process that would lead the demo's programs elsewhere, a restore_command above all.
    misleading: Vec<String>,
}

impl Place {
    /// Makes the directory and finds the programs.
    pub(super) fn make(variables: &Variables, dir: Option<&Path>) -> Result<Self> {
        let bin = find_programs(variables)?;
        let become_user = how_to_become_postgres()?;
        let leads_elsewhere = |name: &&str| ["PGVAULT_", "PG", "AWS_"].iter().any(|prefix| name.starts_with(prefix));
        let misleading = variables.iter().map(|(name, _)| name).filter(leads_elsewhere).map(str::to_owned).collect();
        let dir = match dir {
            Some(dir) => std::path::absolute(dir).map_err(|error| cannot("use that directory", &error))?,
            None => std::env::temp_dir().join(format!("pgvault-demo-{:08x}", rand::random::<u32>())),
        };
        if fs::read_dir(&dir).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(Error::new(ErrorCode::TargetDirectory, format!("{} is not empty", dir.display()))
                .help("name another one: --dir DIR"));
        }
        if !fits_socket(&dir) {
            return Err(Error::new(
                ErrorCode::Usage,
                format!("{} is too long a path for a unix socket", dir.display()),
            )
            .help("name a shorter one: --dir /tmp/demo"));
        }
        fs::create_dir_all(&dir).map_err(|error| cannot(&format!("make {}", dir.display()), &error))?;
        let place = Self { pgvault: dir.join("bin/pgvault"), dir, bin, become_user, misleading };
        place.fill().inspect_err(|_| {
            // The reason for the failure is what matters; an empty directory that stays hurts nobody.
            drop(place.remove());
        })?;
        Ok(place)
    }

    fn fill(&self) -> Result<()> {
        let io = |error: io::Error| cannot(&format!("prepare {}", self.dir.display()), &error);
        fs::set_permissions(&self.dir, fs::Permissions::from_mode(0o755)).map_err(io)?;
        for sub in ["bin", "run", "state", "repository"] {
            fs::create_dir(self.dir.join(sub)).map_err(io)?;
        }
        fs::set_permissions(self.dir.join("run"), fs::Permissions::from_mode(0o700)).map_err(io)?;
        if !self.become_user.is_empty() {
            let status = std::process::Command::new("chown")
                .arg("-R")
                .arg("postgres:postgres")
                .arg(&self.dir)
                .status()
                .map_err(io)?;
            if !status.success() {
                return Err(Error::new(
                    ErrorCode::Unclassified,
                    format!("cannot give {} to the user postgres", self.dir.display()),
                ));
            }
        }
        // After the rest was given away: a hard link shares its owner with the program that was started.
        let ourselves = std::env::current_exe().map_err(io)?;
        if fs::hard_link(&ourselves, &self.pgvault).is_err() {
            fs::copy(&ourselves, &self.pgvault).map_err(io)?;
        }
        Ok(())
    }

    /// A command that runs as the user of the servers, in the demo's directory, without what misleads.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = match self.become_user.split_first() {
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
            None => Command::new(program),
        };
        for name in &self.misleading {
            command.env_remove(name);
        }
        command.current_dir(&self.dir).env("HOME", &self.dir).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Writes a file that the user of the servers can read.
    pub(super) fn write(&self, name: &str, text: &str) -> Result<()> {
        fs::write(self.dir.join(name), text).map_err(|error| cannot(&format!("write {name}"), &error))
    }

    /// A log file for a child.
    pub(super) fn log(&self, name: &str) -> Result<Stdio> {
        let file = fs::OpenOptions::new().create(true).append(true).open(self.dir.join(name));
        file.map(Stdio::from).map_err(|error| cannot(&format!("write {name}"), &error))
    }

    /// The last lines of a log.
    pub(super) fn tail(&self, name: &str) -> String {
        let text = fs::read_to_string(self.dir.join(name)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let last = lines.get(lines.len().saturating_sub(5)..).unwrap_or_default();
        format!("the end of {}:\n  {}", self.dir.join(name).display(), last.join("\n  "))
    }

    /// Takes everything away.
    pub(super) fn remove(&self) -> io::Result<()> {
        fs::remove_dir_all(&self.dir)
    }
}

/// The directory of initdb and postgres: what is asked for, what is in PATH, what distributions use; newest first.
fn find_programs(variables: &Variables) -> Result<PathBuf> {
    let mut looked = Vec::new();
    let complete = |dir: &Path| dir.join("initdb").exists() && dir.join("postgres").exists();
    if let Some(dir) = variables.get("PGVAULT_DEMO_BIN") {
        return if complete(Path::new(dir)) {
            Ok(PathBuf::from(dir))
        } else {
            Err(Error::new(ErrorCode::NotFound, format!("PGVAULT_DEMO_BIN={dir} has no initdb and postgres"))
                .help("name the directory of PostgreSQL's server programs"))
        };
    }
    if let Some(pg_config) = variables.get("PG_CONFIG") {
        let output = std::process::Command::new(pg_config).arg("--bindir").output();
        looked.extend(output.ok().map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())));
    }
    looked
        .extend(variables.get("PATH").unwrap_or_default().split(':').filter(|dir| !dir.is_empty()).map(PathBuf::from));
    looked.extend(installed("/usr/lib/postgresql", "bin"));
    looked.extend(installed("/usr", "bin").into_iter().filter(|dir| dir.to_string_lossy().contains("/pgsql-")));
    looked.into_iter().find(|dir| complete(dir)).ok_or_else(|| {
        Error::new(ErrorCode::NotFound, "no PostgreSQL server was found on this machine")
            .because("looked for initdb in PATH, PG_CONFIG and /usr/lib/postgresql/*/bin")
            .help("install one: apt-get install postgresql")
            .help("or name the directory of its programs: PGVAULT_DEMO_BIN=/opt/postgresql/17/bin pgvault demo")
    })
}

/// `<root>/<version>/<sub>`, highest version first.
fn installed(root: &str, sub: &str) -> Vec<PathBuf> {
    let mut versions: Vec<PathBuf> =
        fs::read_dir(root).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
    let number = |path: &PathBuf| -> u32 {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        name.trim_start_matches("pgsql-").parse().unwrap_or(0)
    };
    versions.sort_by_key(|path| std::cmp::Reverse(number(path)));
    versions.into_iter().map(|path| path.join(sub)).collect()
}

/// PostgreSQL does not run as root: then everything of the demo runs as the user postgres.
fn how_to_become_postgres() -> Result<Vec<String>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(Vec::new());
    }
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let ways = ["setpriv --reuid=postgres --regid=postgres --init-groups", "runuser -u postgres --"];
    for way in ways {
        let way = words(way);
        let Some((first, rest)) = way.split_first() else { continue };
        let works = std::process::Command::new(first)
            .args(rest)
            .arg("true")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if works.is_ok_and(|status| status.success()) {
            return Ok(way);
        }
    }
    Err(Error::new(ErrorCode::Refused, "PostgreSQL does not run as root, and this machine has no user postgres")
        .help("run the demo as an ordinary user")
        .help("or make one: useradd --system postgres"))
}
