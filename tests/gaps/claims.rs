//! Is what `window` claims what is really there? An independent scanner looks, and moments are drawn.

use std::fs;
use std::path::Path;
use std::process::Command;

use pgvault::restore::window;
use recovery::{RecoveryTarget, TargetAction};
use serde_json::Value;
use wal::{Lsn, PgTime, SegmentNumber, SegmentSize, TimelineId};

use super::{FORGETFUL, SIZE, flush_lsn, make_forget};
use crate::support::LIMIT;
use crate::support::pg::{PgNode, bin_dir, give_to_server_user, test_dir};
use crate::support::restored::{Scene, listing, lsn, now, wait_promoted};

const MAJOR: u32 = 16;

/// Compares what is claimed now with the scanner's findings; the claims.
fn audit(scene: &Scene, ranges: usize, gaps: usize) -> Value {
    give_to_server_user(&scene.installed.repository);
    let (code, window) = scene.installed.json(&["window", "main"]);
    assert_eq!(code, 0, "{window}");
    let counted = (window["ranges"].as_array().unwrap().len(), window["gaps"].as_array().unwrap().len());
    assert_eq!(counted, (ranges, gaps), "{window:#}");
    let claims = scene.dir.join("window.json");
    fs::write(&claims, window.to_string()).unwrap();
    let output = Command::new("python3")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/claims.py"))
        .args([scene.installed.repository.as_os_str(), "main".as_ref(), claims.as_os_str()])
        .arg(bin_dir(MAJOR).join("pg_waldump"))
        .arg(scene.dir.join("scan"))
        .env("LD_LIBRARY_PATH", bin_dir(MAJOR).parent().unwrap().join("lib"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{window:#}");
    print!("{said}");
    window
}

/// Draws moments: those inside a range have a plan, those outside are refused, and nothing is touched either way.
fn draw(scene: &Scene, window: &Value) {
    let mut seed = 7_u64;
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below.max(1)
    };
    let time = |value: &Value| -> PgTime { value["time"].as_str().unwrap().parse().unwrap() };
    let target = scene.dir.join("never-made");
    let plan = |moment: PgTime, branch: &Value| {
        let (moment, branch) = (moment.to_string(), branch.to_string());
        let to = target.to_str().unwrap();
        scene.installed.json(&[
            "recover",
            "main",
            "--target-time",
            &moment,
            "--timeline",
            &branch,
            "--to",
            to,
            "--dry-run",
        ])
    };
    let before = listing(&scene.installed.repository);
    let ranges = window["ranges"].as_array().unwrap();
    let inside = |moment: PgTime, branch: &Value| {
        ranges.iter().any(|r| r["branch"] == *branch && (time(&r["from"])..=time(&r["to"])).contains(&moment))
    };
    for range in ranges {
        let (from, to) = (time(&range["from"]).as_micros(), time(&range["to"]).as_micros());
        let span = u64::try_from(to - from).unwrap();
        let drawn =
            [from, to, from + i64::try_from(random(span)).unwrap(), from + i64::try_from(random(span)).unwrap()];
        for moment in drawn.map(PgTime::from_micros) {
            let (code, document) = plan(moment, &range["branch"]);
            assert_eq!((code, &document["reachable"]), (0, &Value::Bool(true)), "{moment}: {document}");
        }
        for moment in [from - 1, to + 1, to + 3_600_000_000].map(PgTime::from_micros) {
            let (code, document) = plan(moment, &range["branch"]);
            let expected = if inside(moment, &range["branch"]) { 0 } else { 8 };
            assert_eq!(code, expected, "{moment}: {document}\n{window:#}");
        }
    }
    assert!(!target.exists());
    assert_eq!(listing(&scene.installed.repository), before);
}

#[test]
fn what_is_advertised_is_what_an_independent_scanner_finds() {
    let dir = test_dir();
    let scene = Scene::new(dir.path());
    let mut primary = PgNode::init(dir.path(), "primary", MAJOR, &["--wal-segsize=1"], &FORGETFUL);
    primary.start();
    primary.sql("CREATE TABLE t (n int, pad text)");
    let write = |node: &PgNode, rounds: u32| {
        for n in 0..rounds {
            node.sql(&format!("INSERT INTO t SELECT {n}, repeat('x', 300) FROM generate_series(1, 400)"));
        }
    };
    // One timeline, with a tail at its end.
    let running = scene.vault.start(&primary.conninfo());
    running.wait_streaming();
    scene.backup(&primary);
    write(&primary, 12);
    let fork = lsn(&primary, "SELECT pg_current_wal_insert_lsn()");
    let at_fork = now();
    write(&primary, 8);
    running.wait_shipped(flush_lsn(&primary));
    running.stop();
    let held = flush_lsn(&primary);
    let one = audit(&scene, 1, 0);
    draw(&scene, &one);

    // A gap, and a backup behind it.
    primary.drop_slot("pgvault");
    make_forget(&primary, held);
    let running = scene.vault.start(&primary.conninfo());
    running.wait("the gap", |status| status.streaming() && status.gaps.len() == 1);
    scene.backup(&primary);
    write(&primary, 6);
    running.wait_shipped(flush_lsn(&primary));
    running.stop();
    assert!(primary.stop("fast", LIMIT));
    let two = audit(&scene, 2, 1);
    draw(&scene, &two);

    // Another timeline that forks before the gap, with a backup of its own.
    let promoted = scene.recover("promoted", MAJOR, |request| {
        request.recovery.target = RecoveryTarget::Lsn(fork);
        request.recovery.action = Some(TargetAction::Promote);
    });
    wait_promoted(&promoted);
    let running = scene.vault.start(&promoted.conninfo());
    running.wait("the new timeline", |status| status.streaming() && status.timeline == TimelineId::new(2));
    write(&promoted, 6);
    scene.backup(&promoted);
    write(&promoted, 16);
    let end = flush_lsn(&promoted);
    running.wait_shipped(end);
    running.stop();
    let three = audit(&scene, 3, 1);
    draw(&scene, &three);

    // A hole made by hand in the middle of the new timeline.
    let size = SegmentSize::new(SIZE).unwrap();
    let backup_end: Lsn = {
        let catalog = scene.vault.runtime.block_on(scene.vault.lineage().catalog()).unwrap();
        catalog.backups.last().unwrap().stop_lsn
    };
    let victim =
        wal::SegmentName::new(TimelineId::new(2).unwrap(), SegmentNumber::containing(backup_end, size).next(), size);
    let found = listing(&scene.installed.repository).into_iter().find_map(|line| {
        line.split(' ').next().filter(|path| path.ends_with(&format!("{victim}.zst"))).map(str::to_owned)
    });
    fs::remove_file(found.expect("a whole segment behind the backup")).unwrap();
    let four = audit(&scene, 3, 2);
    draw(&scene, &four);
    let (code, verified) = scene.installed.json(&["wal", "verify", "main"]);
    assert_eq!((code, verified["problems"].as_array().unwrap().len()), (9, 1), "{verified}");
    assert!(verified["problems"][0]["object"].as_str().unwrap().contains(&victim.to_string()), "{verified}");

    // And one of the drawn moments by PostgreSQL itself: on the way to both timelines.
    let rows = |node: &PgNode| node.sql("SELECT count(*) FROM t");
    for timeline in [1, 2] {
        let mut node = scene.recover(&format!("drawn-{timeline}"), MAJOR, |request| {
            request.recovery.target = RecoveryTarget::Time(at_fork);
            request.recovery.timeline = TimelineId::new(timeline).map(recovery::TargetTimeline::Number);
            request.recovery.action = Some(TargetAction::Promote);
        });
        wait_promoted(&node);
        assert_eq!(rows(&node), (12 * 400).to_string());
        assert!(node.stop("immediate", LIMIT));
    }
    // The library and the command claim the same.
    let lineage = scene.vault.lineage();
    let claimed = scene.vault.runtime.block_on(async {
        let catalog = lineage.catalog().await.unwrap();
        window(&lineage, &catalog).await.unwrap()
    });
    assert_eq!(claimed.ranges.len(), four["ranges"].as_array().unwrap().len());
}
