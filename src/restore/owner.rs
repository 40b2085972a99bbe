//! Who owns what is restored.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use crate::error::{Error, ErrorCode, Result};

/// A user and a group by number.
///
/// PostgreSQL does not start as root nor on files of root. So root restores for somebody: for the user named, else for
/// the owner of the directory to restore into, or of the one it will lie in. Anybody else restores for himself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

impl Owner {
    /// Who shall own what is restored to `directory`; `None` when that is who runs us.
    pub fn decide(named: Option<&str>, directory: &Path) -> Result<Option<Self>> {
        let me = rustix::process::geteuid();
        match named {
            Some(name) => {
                let owner = Self::lookup(name)?;
                if me.is_root() {
                    Ok(Some(owner))
                } else if owner.uid == me.as_raw() {
                    Ok(None)
                } else {
                    Err(Error::new(
                        ErrorCode::Refused,
                        format!("only root can give files to \"{name}\"; this process runs as user {}", me.as_raw()),
                    )
                    .help(format!("run it as that user: sudo -u {name} pgvault recover …")))
                }
            }
            None if !me.is_root() => Ok(None),
            None => Self::of_place(directory).map(Some),
        }
    }

    /// The owner of `directory`, or of the nearest directory above it that exists; root owns neither.
    fn of_place(directory: &Path) -> Result<Self> {
        let existing = directory.ancestors().find_map(|path| fs::metadata(path).ok().map(|meta| (path, meta)));
        match existing {
            Some((_, meta)) if meta.uid() != 0 => Ok(Self { uid: meta.uid(), gid: meta.gid() }),
            _ => Err(Error::new(
                ErrorCode::Refused,
                format!("root restores to {}, which belongs to root: PostgreSQL would not start", directory.display()),
            )
            .help("say who shall own the files: --owner postgres")),
        }
    }

    /// Finds a user by name, or reads `uid` or `uid:gid`.
    fn lookup(name: &str) -> Result<Self> {
        let (user, group) = name.split_once(':').unwrap_or((name, name));
        if let (Ok(uid), Ok(gid)) = (user.parse(), group.parse()) {
            return Ok(Self { uid, gid });
        }
        let unknown = || {
            Error::new(ErrorCode::Usage, format!("there is no user \"{name}\" on this machine"))
                .help("name a user, or give numbers: --owner 999:999")
        };
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        if let Some(owner) = passwd.lines().find_map(|line| in_passwd(line, name)) {
            return Ok(owner);
        }
        // Users of a directory service: ask the system's own tool.
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-@".contains(&b));
        if !plain || name.starts_with('-') {
            return Err(unknown());
        }
        let output = Command::new("getent").args(["passwd", name]).output().map_err(|_| unknown())?;
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines().find_map(|line| in_passwd(line, name)).ok_or_else(unknown)
    }
}

/// Reads a line `name:x:uid:gid:…`.
fn in_passwd(line: &str, name: &str) -> Option<Owner> {
    let mut fields = line.split(':');
    if fields.next()? != name {
        return None;
    }
    Some(Owner { uid: fields.nth(1)?.parse().ok()?, gid: fields.next()?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_and_by_number() {
        assert_eq!(in_passwd("postgres:x:102:104:PG:/var/lib:/bin/sh", "postgres"), Some(Owner { uid: 102, gid: 104 }));
        assert_eq!(in_passwd("postgres2:x:102:104::/:", "postgres"), None);
        assert_eq!(in_passwd("postgres:x", "postgres"), None);
        assert_eq!(Owner::lookup("102:104").unwrap(), Owner { uid: 102, gid: 104 });
        assert_eq!(Owner::lookup("1000").unwrap(), Owner { uid: 1000, gid: 1000 });
        assert_eq!(Owner::lookup("no such user").unwrap_err().code(), ErrorCode::Usage);
        assert_eq!(Owner::lookup("--help").unwrap_err().code(), ErrorCode::Usage);
    }
}
