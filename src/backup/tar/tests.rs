use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};

use proptest::prelude::{ProptestConfig, any, proptest};
use proptest::{collection, prop_assert_eq};

use super::*;

/// A header as PostgreSQL's tarCreateHeader writes it.
fn header(name: &str, kind: u8, size: u64) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    block[..name.len()].copy_from_slice(name.as_bytes());
    put(&mut block, 100, "0000600\0");
    if size < 1 << 33 {
        put(&mut block, 124, &format!("{size:011o}\0"));
    } else {
        block[124] = 0x80;
        block[128..136].copy_from_slice(&size.to_be_bytes());
    }
    put(&mut block, 136, "14506741000\0");
    block[156] = kind;
    put(&mut block, 257, "ustar\x0000");
    sealed(block)
}

fn put(block: &mut [u8], at: usize, text: &str) {
    block[at..at + text.len()].copy_from_slice(text.as_bytes());
}

fn sealed(mut block: Vec<u8>) -> Vec<u8> {
    put(&mut block, 148, "        ");
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    put(&mut block, 148, &format!("{sum:06o}\0 "));
    block
}

fn padded(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    data.resize(data.len().next_multiple_of(BLOCK), 0);
    data
}

fn with_link(name: &str, target: &str) -> Vec<u8> {
    let mut block = header(name, b'2', 0);
    put(&mut block, 157, target);
    sealed(block)
}

fn pax(records: &str) -> Vec<u8> {
    [header("PaxHeaders/x", b'x', records.len() as u64), padded(records.as_bytes())].concat()
}

fn read(archive: &[u8]) -> Result<Vec<(Member, Vec<u8>)>, TarProblem> {
    let (members, end) = read_in_pieces(archive, archive.len().max(1));
    end.map(|_| members).map_err(|error| error.problem)
}

fn names(archive: &[u8]) -> Vec<String> {
    read(archive).unwrap().iter().map(|(member, _)| member.path.to_string()).collect()
}

fn sample() -> Vec<u8> {
    [
        header("backup_label", b'0', 5),
        padded(b"hello"),
        header("base/", b'5', 0),
        header("base/PG_VERSION", 0, 0),
        with_link("pg_tblspc/16384/", "/srv/fast"),
        header("exact", b'0', 512),
        padded(&[7; 512]),
    ]
    .concat()
}

#[test]
fn members_and_data_are_read_in_order() {
    let members = read(&sample()).unwrap();
    let kinds: Vec<_> = members.iter().map(|(m, data)| (m.path.to_string(), m.kind.clone(), data.len())).collect();
    assert_eq!(
        kinds,
        [
            ("backup_label".to_owned(), MemberKind::File, 5),
            ("base".to_owned(), MemberKind::Directory, 0),
            ("base/PG_VERSION".to_owned(), MemberKind::File, 0),
            ("pg_tblspc/16384".to_owned(), MemberKind::Symlink(b"/srv/fast".to_vec()), 0),
            ("exact".to_owned(), MemberKind::File, 512),
        ]
    );
    assert_eq!(members[0].0.mode, 0o600);
    assert_eq!(members[0].0.mtime, 0o14_506_741_000);
    assert_eq!(members[0].1, b"hello");
}

#[test]
fn an_archive_may_lack_its_end_but_not_its_middle() {
    let archive = sample();
    let ended = [archive.clone(), vec![0; 1024], vec![0; 8192]].concat();
    assert_eq!(read_in_pieces(&archive, 512).1, Ok(false));
    assert_eq!(read_in_pieces(&ended, 512).1, Ok(true));
    let boundaries = [0, 1024, 1536, 2048, 2560];
    for len in 0..archive.len() {
        assert_eq!(read(&archive[..len]).is_ok(), boundaries.contains(&len), "cut at {len}");
    }
}

#[test]
fn nothing_may_follow_the_end() {
    let more = [sample(), vec![0; 1024], header("late", b'0', 0)].concat();
    assert_eq!(read(&more), Err(TarProblem::AfterEnd));
    let lone = [sample(), vec![0; 512], header("late", b'0', 0)].concat();
    assert_eq!(read(&lone), Err(TarProblem::AfterEnd));
}

#[test]
fn a_changed_bit_in_a_header_is_noticed() {
    let good = header("base/5/1259", b'0', 0);
    for bit in 0..BLOCK * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        // The checksum's own field can be spelled in several ways (spaces, NULs).
        let same = read(&bad).is_ok_and(|members| members == read(&good).unwrap());
        assert!(read(&bad).is_err() || (same && (148..156).contains(&(bit / 8))), "bit {bit}");
    }
}

#[test]
fn names_that_lead_outside_are_refused() {
    for name in ["/etc/passwd", "../x", "base/../../x", "base//x", "././x", "./../x", "./", "base/.", ""] {
        assert!(matches!(read(&header(name, b'0', 0)), Err(TarProblem::Path(_))), "{name}");
    }
    assert!(matches!(read(&header("base/x/", b'0', 0)), Err(TarProblem::Path(_))));
    assert!(matches!(read(&header("base//", b'5', 0)), Err(TarProblem::Path(_))));
    let nul = [pax("14 path=a\0bcd\n"), header("x", b'0', 0)].concat();
    assert!(matches!(read(&nul), Err(TarProblem::Path(_))), "{:?}", read(&nul));
}

#[test]
fn kinds_that_have_no_place_in_a_backup_are_refused() {
    for kind in [b'1', b'3', b'4', b'6', b'S', b'g'] {
        assert!(matches!(read(&header("x", kind, 0)), Err(TarProblem::Kind(_))), "{}", char::from(kind));
    }
    for kind in [b'7', b'V', b'D', 1, 255] {
        assert_eq!(read(&header("x", kind, 0)), Err(TarProblem::UnknownKind(kind)));
    }
    assert_eq!(read(&header("x", b'5', 1)), Err(TarProblem::UnexpectedData(1)));
    assert_eq!(read(&header("x", b'2', 512)), Err(TarProblem::UnexpectedData(512)));
    let sparse = [pax("22 GNU.sparse.major=1\n"), header("x", b'0', 0)].concat();
    assert_eq!(read(&sparse), Err(TarProblem::Kind("a sparse file")));
    let mut v7 = header("x", b'0', 0);
    put(&mut v7, 257, "\0\0\0\0\0\0\0\0");
    assert_eq!(read(&sealed(v7)), Err(TarProblem::Magic));
}

#[test]
fn numbers_are_octal_or_base_256_and_never_negative() {
    let size_of = |size| {
        let archive = header("big", b'0', size);
        let mut reader = TarReader::new();
        match reader.next(&mut archive.as_slice()) {
            Ok(Some(TarEvent::Member(member))) => member.size,
            other => panic!("{other:?}"),
        }
    };
    for size in [0, 1, 511, (1 << 33) - 1, 1 << 33, 9_000_000_000, u64::MAX] {
        assert_eq!(size_of(size), size);
    }
    for bad in ["0000000008\0", "-0000000001\0", "00000 00001\0", "0000000x001\0"] {
        let mut block = header("x", b'0', 0);
        put(&mut block, 124, bad);
        assert_eq!(read(&sealed(block)), Err(TarProblem::Number("size")), "{bad}");
    }
    let mut negative = header("x", b'0', 0);
    negative[124..136].fill(0xff);
    assert_eq!(read(&sealed(negative)), Err(TarProblem::Number("size")));
}

#[test]
fn a_name_may_begin_at_the_current_directory() {
    assert_eq!(names(&header("./pg_wal/archive_status/", b'5', 0)), ["pg_wal/archive_status"]);
}

#[test]
fn a_posix_prefix_comes_before_the_name() {
    let mut block = header("x", b'0', 0);
    put(&mut block, 345, "deep/er");
    assert_eq!(names(&sealed(block)), ["deep/er/x"]);
}

#[test]
fn long_names_are_bounded_terminated_and_given_once() {
    let long = "d/".repeat(150) + "x";
    let gnu = |kind, name: &str| [header("././@LongLink", kind, name.len() as u64), padded(name.as_bytes())].concat();
    let file = header("short", b'0', 0);
    let terminated = format!("{long}\0");
    assert_eq!(names(&[gnu(b'L', &terminated), file.clone()].concat()), std::slice::from_ref(&long));
    let target = read(&[gnu(b'K', &terminated), with_link("pg_wal", "")].concat()).unwrap();
    assert_eq!(target[0].0.kind, MemberKind::Symlink(long.clone().into_bytes()));
    let bad = [
        [gnu(b'L', &long), file.clone()].concat(),
        [gnu(b'L', &terminated), gnu(b'L', &terminated), file.clone()].concat(),
        [header("././@LongLink", b'L', 0), file.clone()].concat(),
        [header("././@LongLink", b'L', MAX_EXTENSION + 1), file.clone()].concat(),
        [gnu(b'L', &terminated), vec![0; 1024]].concat(),
        [gnu(b'L', &terminated), pax("12 path=abc\n"), file.clone()].concat(),
    ];
    for (at, archive) in bad.iter().enumerate() {
        assert!(matches!(read(archive), Err(TarProblem::Extension(_))), "case {at}: {:?}", read(archive));
    }
    assert_eq!(read(&gnu(b'L', &terminated)), Err(TarProblem::Truncated));
}

#[test]
fn pax_records_change_the_next_member_only() {
    let archive =
        [pax("18 path=other/name\n30 mtime=1763600000.123456789\n"), header("short", b'0', 0), header("next", b'0', 0)]
            .concat();
    assert!(matches!(read(&archive), Err(TarProblem::Extension(_))), "a length that is wrong");
    let archive = [pax("19 path=other/name\n"), header("short", b'0', 0), header("next", b'0', 0)].concat();
    assert_eq!(names(&archive), ["other/name", "next"]);
    let malformed =
        ["x path=a\n", "5\n", "0 path=a\n", "11 path=abcd", "99 path=a\n", "4 =\n\n", "10 patha\n", "-1 path=a\n"];
    for records in malformed {
        let archive = [pax(records), header("short", b'0', 0)].concat();
        assert!(matches!(read(&archive), Err(TarProblem::Extension(_))), "{records}");
    }
    let twice = [pax("12 path=abc\n"), pax("12 path=abc\n"), header("short", b'0', 0)].concat();
    assert!(matches!(read(&twice), Err(TarProblem::Extension(_))));
}

#[test]
fn a_pax_size_may_not_contradict_the_header() {
    let data = padded(&[1; 600]);
    let same = [pax("12 size=600\n"), header("x", b'0', 600), data.clone()].concat();
    assert_eq!(read(&same).unwrap()[0].1.len(), 600);
    let other = [pax("12 size=600\n"), header("x", b'0', 0), data].concat();
    assert_eq!(read(&other), Err(TarProblem::Extension("contradicts it about the size")));
    // What eleven octal digits cannot say, only the record says.
    let big = [pax("19 size=9000000000\n"), header("x", b'0', 0)].concat();
    let mut input = big.as_slice();
    let mut reader = TarReader::new();
    let Ok(Some(TarEvent::Member(member))) = reader.next(&mut input) else { panic!() };
    assert_eq!(member.size, 9_000_000_000);
}

fn gnu_tar(dir: &Path, format: &str) -> Vec<u8> {
    let output = Command::new("tar")
        .args(["--format", format, "-cf", "-", "--sort=name", "-C"])
        .arg(dir)
        .args(["--transform=s,^\\./,,", "--exclude=.", "--no-recursion", "--verbatim-files-from", "--null", "-T", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .and_then(|mut child| {
            let mut names = Vec::new();
            list(dir, dir, &mut names);
            std::io::Write::write_all(&mut child.stdin.take().unwrap(), &names)?;
            child.wait_with_output()
        })
        .unwrap();
    assert!(output.status.success());
    output.stdout
}

fn list(root: &Path, dir: &Path, names: &mut Vec<u8>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        names.extend_from_slice(path.strip_prefix(root).unwrap().as_os_str().as_bytes());
        names.push(0);
        if path.is_dir() && !path.is_symlink() {
            list(root, &path, names);
        }
    }
}

#[test]
fn archives_made_by_gnu_tar_are_read_as_gnu_tar_means_them() {
    let dir = tempfile::tempdir().unwrap();
    let long = "long".repeat(40);
    let files: [(&[u8], Vec<u8>); 7] = [
        (b"plain", b"content".to_vec()),
        (b"empty", Vec::new()),
        (b"with space\\and[odd#=", vec![9; 1025]),
        (b"latin-\xe9", vec![1; 512]),
        (b"deep/dir/file", vec![3; 100_000]),
        (long.as_bytes(), b"a long name".to_vec()),
        (b"deep/\xc3\xa4", b"umlaut".to_vec()),
    ];
    fs::create_dir_all(dir.path().join("deep/dir")).unwrap();
    for (name, content) in &files {
        fs::write(dir.path().join(std::ffi::OsStr::from_bytes(name)), content).unwrap();
    }
    std::os::unix::fs::symlink("/x/".to_owned() + &long, dir.path().join("link")).unwrap();
    for format in ["gnu", "posix", "oldgnu"] {
        let members = read(&gnu_tar(dir.path(), format)).unwrap();
        assert_eq!(members.len(), files.len() + 3, "{format}");
        for (name, content) in &files {
            let (_, data) = members.iter().find(|(member, _)| member.path.as_bytes() == *name).unwrap();
            assert!(data == content, "{format}: {}", name.escape_ascii());
        }
        let link = members.iter().find(|(member, _)| member.path.as_bytes() == b"link").unwrap();
        assert_eq!(link.0.kind, MemberKind::Symlink(("/x/".to_owned() + &long).into_bytes()), "{format}");
    }
}

#[test]
fn members_of_more_than_8_gib_made_by_gnu_tar_have_their_size() {
    let dir = tempfile::tempdir().unwrap();
    let big = 9 << 30;
    fs::File::create(dir.path().join("big")).unwrap().set_len(big).unwrap();
    for format in ["gnu", "posix"] {
        let mut child = Command::new("tar")
            .args(["--format", format, "-cf", "-", "-C"])
            .arg(dir.path())
            .arg("big")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut start = vec![0; 4096];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut start).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let mut input = start.as_slice();
        match TarReader::new().next(&mut input) {
            Ok(Some(TarEvent::Member(member))) => assert_eq!(member.size, big, "{format}"),
            other => panic!("{format}: {other:?}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_split_gives_the_same_events(sizes in collection::vec(0_u64..3000, 0..8), piece in 1_usize..2000) {
        let mut archive = Vec::new();
        for (at, size) in sizes.iter().enumerate() {
            archive.extend(header(&format!("base/{at}"), b'0', *size));
            archive.extend(padded(&vec![u8::try_from(at).unwrap() + 1; usize::try_from(*size).unwrap()]));
        }
        prop_assert_eq!(read_in_pieces(&archive, piece), read_in_pieces(&archive, archive.len().max(1)));
        prop_assert_eq!(read(&archive).unwrap().len(), sizes.len());
    }

    #[test]
    fn damaged_archives_never_panic(at in any::<usize>(), byte in any::<u8>(), piece in 1_usize..700) {
        let mut archive = [pax("19 path=other/name\n"), sample()].concat();
        let at = at % archive.len();
        archive[at] = byte;
        prop_assert_eq!(read_in_pieces(&archive, piece), read_in_pieces(&archive, archive.len()));
    }

    #[test]
    fn hostile_bytes_never_panic(bytes in collection::vec(any::<u8>(), 0..2000)) {
        fuzz_tar(&bytes);
    }
}
