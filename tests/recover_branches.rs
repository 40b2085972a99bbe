//! Does recovery stay on the branch that is meant, when the history of a cluster has several?

use pgvault::restore::window;
use recovery::{Note, RecoveryTarget, TargetAction, TargetTimeline, Window};
use wal::{Lsn, PgTime, TimelineId};

use crate::support::LIMIT;
use crate::support::pg::{PgNode, major, test_dir};
use crate::support::restored::{Scene, lsn, now, wait_paused, wait_promoted};

fn tli(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

fn rows(node: &PgNode) -> String {
    node.sql("SELECT string_agg(n::text, ',' ORDER BY n) FROM t")
}

fn window_of(scene: &Scene) -> Window {
    let lineage = scene.vault.lineage();
    scene.vault.runtime.block_on(async {
        let catalog = lineage.catalog().await.unwrap();
        window(&lineage, &catalog).await.unwrap()
    })
}

/// Ends the pipeline's stream when everything that the node wrote is stored.
fn store_all(scene: &Scene, node: &PgNode, work: impl FnOnce()) -> Lsn {
    let pipeline = scene.vault.start(&node.conninfo());
    pipeline.wait_streaming();
    work();
    let end = lsn(node, "SELECT pg_current_wal_flush_lsn()");
    pipeline.wait_shipped(end);
    pipeline.stop();
    end
}

#[test]
fn a_recovery_that_was_promoted_is_a_branch_and_both_can_be_recovered() {
    let dir = test_dir();
    let scene = Scene::new(dir.path());
    let mut primary = PgNode::start_new(dir.path(), "primary", major(16));
    primary.sql("CREATE TABLE t (n int)");
    let mut fork = Lsn::INVALID;
    let mut between = PgTime::from_micros(0);
    let first_end = store_all(&scene, &primary, || {
        scene.backup(&primary);
        primary.sql("INSERT INTO t VALUES (1)");
        fork = lsn(&primary, "SELECT pg_current_wal_insert_lsn()");
        between = now();
        primary.sql("INSERT INTO t VALUES (2)");
        primary.sql("SELECT pg_create_restore_point('left_behind')");
        primary.sql("INSERT INTO t VALUES (3)");
    });
    assert!(primary.stop("fast", LIMIT));

    // Back to before 2, and on from there.
    let promoted = scene.recover("promoted", major(16), |request| {
        request.recovery.target = RecoveryTarget::Lsn(fork);
        request.recovery.inclusive = false;
        request.recovery.action = Some(TargetAction::Promote);
    });
    wait_promoted(&promoted);
    assert_eq!(rows(&promoted), "1");
    store_all(&scene, &promoted, || {
        promoted.sql("INSERT INTO t VALUES (4)");
        promoted.sql("SELECT pg_switch_wal()");
        promoted.sql("INSERT INTO t VALUES (5)");
    });
    drop(promoted);

    let window = window_of(&scene);
    let branches: Vec<u32> = window.ranges.iter().map(|range| range.branch.get()).collect();
    assert_eq!(branches, [2, 1], "{window:?}");
    assert!(window.gaps.is_empty(), "{window:?}");
    assert!(window.ranges[0].to.timeline == tli(2) && window.ranges[1].to.timeline == tli(1), "{window:?}");
    assert_eq!(window.ranges[1].to.lsn, first_end);
    assert_eq!(window.timelines[1].parent, Some(tli(1)));

    let latest = scene.recover("latest", major(16), |_| ());
    wait_promoted(&latest);
    assert_eq!(rows(&latest), "1,4,5");
    assert_eq!(latest.sql("SELECT timeline_id FROM pg_control_checkpoint()"), "3");
    drop(latest);

    // The live branch is meant unless another one is named, or it alone holds the target.
    let live = scene.recover("live", major(16), |request| request.recovery.target = RecoveryTarget::Time(between));
    wait_paused(&live);
    assert_eq!(rows(&live), "1");
    drop(live);
    let named = scene.recover("named", major(16), |request| {
        request.recovery.timeline = Some(TargetTimeline::Number(tli(1)));
        request.recovery.action = Some(TargetAction::Pause);
    });
    wait_paused(&named);
    assert_eq!(rows(&named), "1,2,3");
    drop(named);
    let target = RecoveryTarget::Name("left_behind".to_owned());
    let plan = scene.plan(&scene.request(&dir.path().join("only_there"), target.clone())).unwrap();
    assert!(matches!(plan.recovery.notes[0], Note::OtherBranch { .. }), "{:?}", plan.recovery.notes);
    let only_there = scene.recover("only_there", major(16), |request| request.recovery.target = target.clone());
    wait_paused(&only_there);
    assert_eq!(rows(&only_there), "1,2");
    let mut strict = scene.request(&dir.path().join("strict"), target);
    strict.recovery.timeline = Some(TargetTimeline::Latest);
    assert_eq!(scene.plan(&strict).unwrap_err().code().exit_code(), 8);
}
