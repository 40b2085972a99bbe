//! What of a data directory belongs into a backup: the rules of BASE_BACKUP (`sendDir` in basebackup.c).

/// Directories whose content is made anew at start (`excludeDirContents`).
const EMPTY: [&[u8]; 7] =
    [b"pg_stat_tmp", b"pg_replslot", b"pg_dynshmem", b"pg_notify", b"pg_serial", b"pg_snapshots", b"pg_subtrans"];

/// Files that are never copied, wherever they lie (`excludeFiles`).
const LEFT_OUT: [&[u8]; 8] = [
    b"postgresql.auto.conf.tmp",
    b"current_logfiles.tmp",
    b"backup_label",
    b"tablespace_map",
    b"backup_manifest",
    b"postmaster.pid",
    b"postmaster.opts",
    b".DS_Store",
];

/// What former recoveries left at the top.
const OLD_AT_TOP: [&[u8]; 2] = [b"backup_label.old", b"tablespace_map.old"];

/// Names that begin so are never copied: `PG_TEMP_FILE_PREFIX`, `RELCACHE_INIT_FILENAME`.
const PREFIXES_LEFT_OUT: [&[u8]; 2] = [b"pgsql_tmp", b"pg_internal.init"];

/// Directories without which no server starts: a link in their place would be left out, and the loss go unnoticed.
const MUST_NOT_BE_LINKS: [&[u8]; 9] = [
    b"base",
    b"global",
    b"pg_xact",
    b"pg_multixact",
    b"pg_commit_ts",
    b"pg_twophase",
    b"pg_logical",
    b"pg_stat",
    b"pg_tblspc",
];

/// What is done with an entry, whatever it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Copied.
    Copy,
    /// Copied, unless a file of this name lies beside it: then it is of an unlogged relation.
    CopyUnless(Vec<u8>),
    /// The directory without its content.
    Empty,
    /// `pg_wal`: the directory and its empty folders.
    Wal,
    /// `pg_tblspc`: the directory; its links are looked at on their own.
    Tablespaces,
    /// Left out.
    Skip,
}

/// What is done with the entry at `path`, relative to the data directory.
pub(super) fn decide(path: &[u8]) -> Decision {
    let components: Vec<&[u8]> = path.split(|&byte| byte == b'/').collect();
    let Some((&name, parents)) = components.split_last() else { return Decision::Skip };
    let prefixed = PREFIXES_LEFT_OUT.iter().any(|prefix| name.starts_with(prefix));
    if prefixed || LEFT_OUT.contains(&name) {
        return Decision::Skip;
    }
    match parents {
        [] if EMPTY.contains(&name) => Decision::Empty,
        [] if OLD_AT_TOP.contains(&name) => Decision::Skip,
        [] if name == b"pg_wal" => Decision::Wal,
        [] if name == b"pg_tblspc" => Decision::Tablespaces,
        // It comes last.
        [b"global"] if name == b"pg_control" => Decision::Skip,
        [b"base", database] | [b"pg_tblspc", _, _, database] if is_number(database) => of_database(name),
        _ => Decision::Copy,
    }
}

/// Whether a symbolic link there would make a backup that cannot start.
pub(super) fn must_not_be_a_link(path: &[u8]) -> bool {
    let top = path.split(|&byte| byte == b'/').next().unwrap_or_default();
    MUST_NOT_BE_LINKS.contains(&top)
}

/// In the directory of a database: temporary relations are left out, unlogged ones but for their init fork.
fn of_database(name: &[u8]) -> Decision {
    if is_temporary(name) {
        return Decision::Skip;
    }
    match relation(name) {
        Some((number, fork)) if fork != Some(b"init") => Decision::CopyUnless([number, b"_init"].concat()),
        _ => Decision::Copy,
    }
}

/// `looks_like_temp_rel_name`: `t<backend>_<number>[_<fork>][.<segment>]`.
fn is_temporary(name: &[u8]) -> bool {
    let Some(rest) = name.strip_prefix(b"t") else { return false };
    let Some(at) = rest.iter().position(|&byte| byte == b'_') else { return false };
    is_number(&rest[..at]) && relation(&rest[at + 1..]).is_some()
}

/// `parse_filename_for_nontemp_relation`: number and fork of `<number>[_<fork>][.<segment>]`.
fn relation(name: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    let name = match name.iter().position(|&byte| byte == b'.') {
        Some(dot) => is_number(&name[dot + 1..]).then_some(&name[..dot])?,
        None => name,
    };
    let (number, fork) = match name.iter().position(|&byte| byte == b'_') {
        Some(at) => (&name[..at], Some(&name[at + 1..])),
        None => (name, None),
    };
    let known = fork.is_none_or(|fork| [&b"fsm"[..], b"vm", b"init"].contains(&fork));
    (is_number(number) && known).then_some((number, fork))
}

fn is_number(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::Decision::{Copy, CopyUnless, Empty, Skip, Tablespaces, Wal};
    use super::*;

    #[test]
    fn what_base_backup_leaves_out_is_left_out() {
        let unless = |name: &str| CopyUnless(name.as_bytes().to_vec());
        let cases = [
            ("PG_VERSION", Copy),
            ("postmaster.pid", Skip),
            ("postmaster.opts", Skip),
            ("postgresql.auto.conf", Copy),
            ("postgresql.auto.conf.tmp", Skip),
            ("current_logfiles", Copy),
            ("current_logfiles.tmp", Skip),
            ("backup_label", Skip),
            ("backup_label.old", Skip),
            ("backup_label.txt", Copy),
            ("tablespace_map", Skip),
            ("backup_manifest", Skip),
            ("pg_wal", Wal),
            ("pg_tblspc", Tablespaces),
            ("pg_stat_tmp", Empty),
            ("pg_replslot", Empty),
            ("pg_subtrans", Empty),
            ("pg_stat", Copy),
            ("pg_xact/0000", Copy),
            ("global/pg_control", Skip),
            ("global/pg_control.old", Copy),
            ("global/pg_internal.init", Skip),
            ("global/1262", Copy),
            ("base/5/pg_internal.init.1234", Skip),
            ("base/pgsql_tmp", Skip),
            ("pg_tblspc/16384/PG_15_202209061/pgsql_tmp", Skip),
            ("base/5/PG_VERSION", Copy),
            ("base/5/16400", unless("16400_init")),
            ("base/5/16400.1", unless("16400_init")),
            ("base/5/16400_fsm", unless("16400_init")),
            ("base/5/16400_vm.2", unless("16400_init")),
            ("base/5/16400_init", Copy),
            ("base/5/16400_init.1", Copy),
            ("base/5/16400_other", Copy),
            ("base/5/t3_16400", Skip),
            ("base/5/t3_16400_fsm", Skip),
            ("base/5/t3_16400.1", Skip),
            ("base/5/t3_x", Copy),
            ("base/5/t_1", Copy),
            ("base/x/t3_16400", Copy),
            ("pg_tblspc/16384/PG_15_202209061/5/t3_16400", Skip),
            ("pg_tblspc/16384/PG_15_202209061/5/16400", unless("16400_init")),
            ("somewhere/.DS_Store", Skip),
        ];
        for (path, decision) in cases {
            assert_eq!(decide(path.as_bytes()), decision, "{path}");
        }
    }

    #[test]
    fn links_in_place_of_what_a_server_needs_are_noticed() {
        for path in ["base", "base/5", "pg_xact", "global/1262", "pg_tblspc/x"] {
            assert!(must_not_be_a_link(path.as_bytes()), "{path}");
        }
        for path in ["postgresql.conf", "log", "server.key", "baseline"] {
            assert!(!must_not_be_a_link(path.as_bytes()), "{path}");
        }
    }
}
