use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::{prop_assert, prop_assert_eq, proptest};
use recovery::{BackupId, LineageId};
use wal::{Lsn, PgTime, SegmentName, SystemIdentifier, TimelineId};

use super::{GapName, LineageKeys, LineageObject, MarkKind, ObjectName, Parsed, ShortHash, TailName};
use crate::repository::ClusterName;
use crate::storage::ObjectKey;

fn keys() -> LineageKeys {
    let lineage = LineageId { system_identifier: SystemIdentifier::new(7_123), number: 2 };
    LineageKeys::new(ClusterName::new("main").unwrap(), lineage)
}

fn segment() -> SegmentName {
    "00000002000000A1000000FE".parse().unwrap()
}

fn backup() -> BackupId {
    "20261119T020512-3f2a".parse().unwrap()
}

#[test]
fn keys_are_those_of_the_format_page() {
    let tail = TailName { segment: segment(), from: Lsn::new(0xA1_FE00_0000), to: Lsn::new(0xA1_FE00_1234) };
    let hash = ShortHash::of(&[0xAB; 32]);
    let below = "main/7123-2";
    let wal = format!("{below}/wal/00000002/000000A1/00000002000000A1000000FE");
    let cases = [
        (LineageObject::Document, format!("{below}/lineage.json")),
        (LineageObject::History(TimelineId::new(10).unwrap()), format!("{below}/wal/0000000A/0000000A.history")),
        (LineageObject::Segment(segment()), format!("{wal}.zst")),
        (LineageObject::Tail(tail), format!("{wal}.tail/000000A1FE000000-000000A1FE001234.zst")),
        (
            LineageObject::FilePart(backup(), 7, hash),
            format!("{below}/backups/20261119T020512-3f2a/files/00007-abababababababab.zst"),
        ),
        (
            LineageObject::PostgresManifest(backup(), hash),
            format!("{below}/backups/20261119T020512-3f2a/backup_manifest-abababababababab.zst"),
        ),
        (LineageObject::Manifest(backup()), format!("{below}/backups/20261119T020512-3f2a/manifest")),
        (
            LineageObject::Mark(backup(), 3, MarkKind::Keep),
            format!("{below}/backups/20261119T020512-3f2a/marks/00003-keep"),
        ),
        (
            LineageObject::Gap(GapName {
                timeline: TimelineId::new(10).unwrap(),
                from: Lsn::new(0xA1_FE00_1234),
                to: Lsn::new(0xA2_0000_0000),
            }),
            format!("{below}/gaps/0000000A-000000A1FE001234-000000A200000000.json"),
        ),
    ];
    for (object, text) in cases {
        assert_eq!(keys().key(&object).as_str(), text);
        assert_eq!(ObjectName::parse(&text), Parsed::Known(ObjectName::InLineage(keys(), object)));
    }
    assert_eq!(ObjectName::Marker.key().as_str(), "pgvault-repository.json");
    let pack = ObjectName::Pack(ClusterName::new("main").unwrap(), [0xCD; 32]);
    assert_eq!(pack.key().as_str(), format!("main/packs/{}", "cd".repeat(32)));
}

#[test]
fn keys_that_are_not_spelt_as_we_spell_them_are_unknown() {
    let wal = "main/7123-2/wal";
    for text in [
        "",
        "lost+found",
        "main",
        "main/7123-2",
        "Main/7123-2/lineage.json",
        "main/7123-02/lineage.json",
        "main/7123-0/lineage.json",
        "keys/7123-2/lineage.json",
        "keys/01.json",
        &format!("{wal}/00000002/00000003.history"),
        &format!("{wal}/00000002/000000A2/00000002000000A1000000FE.zst"),
        &format!("{wal}/00000003/000000A1/00000002000000A1000000FE.zst"),
        &format!("{wal}/00000002/000000A1/00000002000000A1000000FE"),
        &format!("{wal}/00000002/000000A1/00000002000000a1000000FE.zst"),
        &format!("{wal}/00000002/000000A1/00000002000000A1000000FE.tail/0000000000000002-0000000000000001.zst"),
        "main/7123-2/backups/20261119T020512-3f2a/marks/3-keep",
        "main/7123-2/backups/20261119T020512-3f2a/marks/00003-kept",
        "main/7123-2/backups/latest/manifest",
        "main/packs/ABCD",
        "main/7123-2/gaps/00000001-0000000000000002-0000000000000002.json",
        "main/7123-2/gaps/00000001-0000000000000001-0000000000000002-.json",
    ] {
        assert_eq!(ObjectName::parse(text), Parsed::Unknown, "{text}");
    }
}

#[test]
fn an_encrypted_object_is_not_taken_for_absent() {
    let name = ObjectName::InLineage(keys(), LineageObject::Segment(segment()));
    assert_eq!(ObjectName::parse(&format!("{}.enc", name.key())), Parsed::Encrypted(name));
}

#[test]
fn what_was_refused_is_kept_under_its_content_and_its_name() {
    let key = keys().key(&LineageObject::Segment(segment()));
    let kept = keys().conflict_key(&[0x11; 32], &key);
    let name = "wal_00000002_000000A1_00000002000000A1000000FE.zst";
    assert_eq!(kept.as_str(), format!("main/7123-2/conflict/{}-{name}", "11".repeat(32)));
    let parsed = ObjectName::parse(kept.as_str());
    assert_eq!(
        parsed,
        Parsed::Known(ObjectName::InLineage(keys(), LineageObject::Conflict([0x11; 32], name.to_owned())))
    );
}

#[test]
fn cluster_names_are_held_to_what_every_store_keeps() {
    for good in ["a", "main", "9_-x", &"a".repeat(63)] {
        assert!(ClusterName::new(good).is_ok(), "{good}");
    }
    for bad in ["", "Main", "a.b", "a/b", "ä", "a b", "keys", &"a".repeat(64)] {
        assert!(ClusterName::new(bad).is_err(), "{bad}");
    }
}

fn timelines() -> impl Strategy<Value = TimelineId> {
    (1..=u32::MAX).prop_map(|number| TimelineId::new(number).unwrap())
}

fn segments() -> impl Strategy<Value = SegmentName> {
    (timelines(), any::<u32>(), any::<u32>())
        .prop_map(|(timeline, log, part)| format!("{}{log:08X}{part:08X}", timeline.hex()).parse().unwrap())
}

fn backups() -> impl Strategy<Value = BackupId> {
    (0..2_000_000_000_000_000i64, any::<u16>())
        .prop_map(|(micros, random)| BackupId::new(PgTime::from_micros(micros), random))
}

fn objects() -> impl Strategy<Value = LineageObject> {
    let hash = any::<[u8; 32]>().prop_map(|sha256| ShortHash::of(&sha256));
    prop_oneof![
        Just(LineageObject::Document),
        timelines().prop_map(LineageObject::History),
        segments().prop_map(LineageObject::Segment),
        (segments(), any::<u64>(), 1..1u64 << 30).prop_map(|(segment, from, length)| {
            let from = from >> 1;
            LineageObject::Tail(TailName { segment, from: Lsn::new(from), to: Lsn::new(from + length) })
        }),
        (backups(), 0..100_000u32, hash.clone()).prop_map(|(id, part, hash)| LineageObject::FilePart(id, part, hash)),
        (backups(), hash).prop_map(|(id, hash)| LineageObject::PostgresManifest(id, hash)),
        backups().prop_map(LineageObject::Manifest),
        (timelines(), any::<u64>(), 1..1u64 << 40).prop_map(|(timeline, from, length)| {
            let from = from >> 1;
            LineageObject::Gap(GapName { timeline, from: Lsn::new(from), to: Lsn::new(from + length) })
        }),
        (backups(), 0..100_000u32, 0..4usize).prop_map(|(id, number, kind)| LineageObject::Mark(
            id,
            number,
            MarkKind::ALL[kind]
        )),
    ]
}

fn clusters() -> impl Strategy<Value = ClusterName> {
    "[a-z0-9_-]{1,63}".prop_filter_map("reserved", |text| ClusterName::new(text).ok())
}

proptest! {
    #[test]
    fn every_name_comes_back_from_its_key(
        cluster in clusters(),
        system in any::<u64>(),
        number in 1..=u32::MAX,
        object in objects(),
        sha256 in any::<[u8; 32]>(),
    ) {
        let lineage = LineageId { system_identifier: SystemIdentifier::new(system), number };
        let keys = LineageKeys::new(cluster.clone(), lineage);
        for name in [ObjectName::InLineage(keys.clone(), object.clone()), ObjectName::Pack(cluster, sha256)] {
            prop_assert_eq!(ObjectName::parse(name.key().as_str()), Parsed::Known(name.clone()));
        }
        let refused = keys.conflict_key(&sha256, &keys.key(&object));
        let parsed = ObjectName::parse(refused.as_str());
        prop_assert!(matches!(parsed, Parsed::Known(ObjectName::InLineage(_, LineageObject::Conflict(..)))));
    }

    #[test]
    fn no_key_makes_it_panic(text in "[a-z0-9/._-]{0,120}") {
        if let Parsed::Known(name) = ObjectName::parse(&text) {
            prop_assert_eq!(name.key(), ObjectKey::new(text).unwrap());
        }
    }
}

#[test]
fn a_bound_name_leaves_out_what_is_made_of_the_stored_bytes() {
    let (backup, sha256) = ("20261119T020512-3f2a".parse::<BackupId>().unwrap(), [0xCD; 32]);
    let short = ShortHash::of(&sha256);
    let below = |object: LineageObject| ObjectName::bound(&keys().key(&object));
    let prefix = keys().prefix();
    let pack = ObjectName::Pack(ClusterName::new("main").unwrap(), sha256).key();
    assert_eq!(ObjectName::bound(&pack), "main/packs/*");
    let folder = format!("{prefix}backups/{backup}");
    assert_eq!(below(LineageObject::FilePart(backup.clone(), 7, short)), format!("{folder}/files/00007-*.zst"));
    assert_eq!(
        below(LineageObject::PostgresManifest(backup.clone(), short)),
        format!("{folder}/backup_manifest-*.zst")
    );
    let refused = keys().conflict_key(&sha256, &pack);
    assert_eq!(ObjectName::bound(&refused), format!("{prefix}conflict/*-main_packs_{}", "cd".repeat(32)));
    for object in [LineageObject::Document, LineageObject::Segment(segment()), LineageObject::Manifest(backup)] {
        assert_eq!(below(object.clone()), keys().key(&object).as_str());
    }
}
