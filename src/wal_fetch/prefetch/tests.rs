use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::{Life, Parts, PrefetchLimits, PrefetchPlace, PrefetchRequest, Reply, ask, serve};
use crate::clock::SystemClock;
use crate::storage::StorageErrorKind;
use crate::storage::faulty::{Fault, Operation, Rule};
use crate::wal_fetch::NoLocalSource;
use crate::wal_fetch::tests::{Fixture, MIB, name, segment, tli};

const RECOVERY: PrefetchRequest = PrefetchRequest { timeline: None, until: None, standby: false };

fn limits() -> PrefetchLimits {
    PrefetchLimits { bytes: 4 * MIB, reserve_bytes: 0, parallel: 2, ..PrefetchLimits::default() }
}

/// A recovery of this process, in the fixture's directory.
struct Scene {
    fixture: Arc<Fixture>,
    place: PrefetchPlace,
}

impl Scene {
    async fn new() -> Self {
        let fixture = Fixture::new().await;
        let dir = fixture.dir.path();
        fs::write(dir.join("postmaster.pid"), format!("{}\n/data\n1000\n", std::process::id())).unwrap();
        fs::write(dir.join("recovery.signal"), "").unwrap();
        let place = PrefetchPlace::beside(&dir.join("pg_wal/RECOVERYXLOG"), 7).unwrap();
        Self { fixture: Arc::new(fixture), place }
    }

    fn destination(&self) -> PathBuf {
        self.fixture.dir.path().join("pg_wal/RECOVERYXLOG")
    }

    fn life(&self) -> Life {
        Life::in_directory(self.fixture.dir.path()).unwrap()
    }

    /// Runs a prefetcher while `work` asks it; it must have ended well and left nothing.
    async fn with(&self, request: PrefetchRequest, limits: PrefetchLimits, work: impl AsyncFnOnce()) {
        let (stop, stopped) = oneshot::channel::<()>();
        let (heard, listening) = oneshot::channel();
        let served = self.serve(request, limits, heard, stopped);
        let worked = async {
            listening.await.unwrap();
            work().await;
            drop(stop);
        };
        let (served, ()) = tokio::join!(served, worked);
        served.unwrap();
        assert!(!self.place.dir().parent().unwrap().exists(), "it leaves nothing");
    }

    async fn serve(
        &self,
        request: PrefetchRequest,
        limits: PrefetchLimits,
        heard: oneshot::Sender<()>,
        stopped: oneshot::Receiver<()>,
    ) -> io::Result<()> {
        let claim = self.place.clone().claim().unwrap().unwrap();
        let fixture = Arc::clone(&self.fixture);
        let parts = Parts {
            open: async move || Ok(fixture.lineage.clone()),
            local: Arc::new(NoLocalSource),
            life: &self.life(),
            clock: &SystemClock,
            listening: || heard.send(()).map_err(|()| io::Error::other("nobody listens")),
            stop: async { drop(stopped.await) },
        };
        serve(claim, request, limits, parts).await
    }

    /// Asks as `wal fetch` does.
    async fn ask(&self, file: &str) -> Reply {
        let (place, destination, life) = (self.place.clone(), self.destination(), self.life());
        let file = file.parse().unwrap();
        let asked = move || ask(&place, &file, &destination, life.asker(), || Err(io::ErrorKind::NotFound.into()));
        let reply = tokio::task::spawn_blocking(asked).await.unwrap();
        assert_eq!(self.destination().exists(), reply == Reply::Found);
        reply
    }

    async fn segment(&self, timeline: u32, number: u64) -> Option<Vec<u8>> {
        match self.ask(&name(timeline, number).to_string()).await {
            Reply::Found => Some(self.take()),
            Reply::Absent => None,
            Reply::Unanswered => panic!("unanswered"),
        }
    }

    fn take(&self) -> Vec<u8> {
        let bytes = fs::read(self.destination()).unwrap();
        fs::remove_file(self.destination()).unwrap();
        bytes
    }

    /// Names of segments that lie ready or are being made.
    fn ahead(&self) -> Vec<String> {
        let names = fs::read_dir(self.place.dir()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
        names.retain(|name| name.len() == 24);
        names.sort();
        names
    }

    async fn wait_ahead(&self, names: &[String]) {
        for _ in 0..30_000 {
            if self.ahead() == names {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{:?} instead of {names:?}", self.ahead());
    }

    fn requests(&self) -> Vec<String> {
        let calls = self.fixture.faulty.calls();
        self.fixture.faulty.forget_calls();
        calls.into_iter().map(|(operation, key)| format!("{operation:?} {key}")).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_are_fetched_ahead_and_each_is_asked_of_the_store_once() {
    let scene = Scene::new().await;
    scene.fixture.put(1, 1..=12).await;
    scene.fixture.faulty.forget_calls();
    scene
        .with(RECOVERY, limits(), async || {
            for number in 1..=12 {
                assert_eq!(scene.segment(1, number).await.unwrap(), segment(1, number), "{number}");
            }
            let gets: Vec<String> = scene.requests();
            for number in 1..=12 {
                let key = name(1, number).to_string();
                assert_eq!(gets.iter().filter(|call| call.contains(&key)).count(), 1, "{gets:?}");
            }
            assert_eq!(gets.len(), 13, "and one for the end: {gets:?}");
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn never_more_lies_ahead_than_allowed_and_what_is_not_needed_goes() {
    let scene = Scene::new().await;
    scene.fixture.put(1, 1..=30).await;
    let names = |numbers: std::ops::RangeInclusive<u64>| numbers.map(|n| name(1, n).to_string()).collect::<Vec<_>>();
    scene
        .with(RECOVERY, limits(), async || {
            for number in 1..=5 {
                scene.segment(1, number).await.unwrap();
            }
            scene.wait_ahead(&names(6..=9)).await;
            // Recovery begins again from an earlier place.
            assert_eq!(scene.segment(1, 2).await.unwrap(), segment(1, 2));
            scene.wait_ahead(&names(3..=3)).await;
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_absent_is_asked_for_each_time() {
    let scene = Scene::new().await;
    scene.fixture.put(1, 1..=3).await;
    scene
        .with(RECOVERY, limits(), async || {
            for number in 1..=3 {
                scene.segment(1, number).await.unwrap();
            }
            for _ in 0..3 {
                assert_eq!(scene.segment(1, 4).await, None);
                assert_eq!(scene.ask("00000002.history").await, Reply::Absent);
            }
            scene.requests();
            assert_eq!(scene.segment(1, 4).await, None);
            let polled = scene.requests();
            assert!(polled.len() <= 4, "a question at the end of the WAL is cheap: {polled:?}");
            assert_eq!(scene.ask("00000002.history").await, Reply::Absent);
            let polled = scene.requests();
            assert_eq!(polled.len(), 1, "{polled:?}");
            scene.fixture.put(1, [4]).await;
            assert_eq!(scene.segment(1, 4).await.unwrap(), segment(1, 4));
            scene.fixture.put_history(2, "1\t0/480000\tx\n").await;
            assert_eq!(scene.ask("00000002.history").await, Reply::Found);
            assert_eq!(scene.take(), b"1\t0/480000\tx\n");
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_is_served_as_it_is_when_asked_for() {
    let scene = Scene::new().await;
    scene.fixture.put(1, 1..=3).await;
    scene.fixture.put_tail(1, 4, 5000).await;
    scene
        .with(RECOVERY, limits(), async || {
            for number in 1..=3 {
                scene.segment(1, number).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert!(scene.ahead().is_empty(), "it is not fetched ahead");
            scene.fixture.put_tail(1, 4, 9000).await;
            let bytes = scene.segment(1, 4).await.unwrap();
            assert_eq!(bytes[..9000], segment(1, 4)[..9000], "what came meanwhile is in it");
            assert!(bytes.len() as u64 == MIB && bytes[9000..].iter().all(|&byte| byte == 0));
            scene.fixture.put(1, [4]).await;
            assert_eq!(scene.segment(1, 4).await.unwrap(), segment(1, 4));
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_way_is_kept_to_and_a_switch_begins_anew() {
    let scene = Scene::new().await;
    scene.fixture.put(1, 1..=8).await;
    scene.fixture.put_history(2, "1\t0/480000\tx\n").await;
    scene.fixture.put(2, 4..=8).await;
    let request = PrefetchRequest { timeline: Some(tli(2)), ..RECOVERY };
    scene
        .with(request, limits(), async || {
            for number in 1..=3 {
                assert_eq!(scene.segment(1, number).await.unwrap(), segment(1, number));
            }
            // Fetched ahead, up to the switch; beyond it the old timeline is another history.
            let bytes = scene.segment(1, 4).await.unwrap();
            assert_eq!(bytes[..0x80000], segment(1, 4)[..0x80000]);
            assert!(bytes.len() as u64 == MIB && bytes[0x80000..].iter().all(|&byte| byte == 0));
            assert_eq!(scene.segment(1, 5).await, None);
            for number in 4..=8 {
                assert_eq!(scene.segment(2, number).await.unwrap(), segment(2, number));
            }
            assert_eq!(scene.segment(2, 9).await, None);
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trouble_is_left_to_whoever_asks() {
    let scene = Scene::new().await;
    scene.fixture.put(1, (1..=3).chain(5..=9)).await;
    scene
        .with(RECOVERY, limits(), async || {
            for number in 1..=3 {
                scene.segment(1, number).await.unwrap();
            }
            assert_eq!(scene.ask(&name(1, 4).to_string()).await, Reply::Unanswered, "a hole");
            scene.fixture.faulty.add(Rule::new(Fault::Fail(StorageErrorKind::Transient)));
            for file in ["000000010000000000000005", "00000002.history"] {
                assert_eq!(scene.ask(file).await, Reply::Unanswered, "{file}");
            }
            scene.fixture.faulty.heal();
            let damaged = Rule::new(Fault::FlipBit(80_000)).on(Operation::GetRange).key("000000010000000000000006");
            scene.fixture.faulty.add(damaged);
            assert_eq!(scene.segment(1, 5).await.unwrap(), segment(1, 5));
            scene.fixture.faulty.heal();
            assert_eq!(scene.segment(1, 6).await.unwrap(), segment(1, 6), "what was damaged ahead is fetched anew");
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_nothing_is_fetched_ahead() {
    let scene = Scene::new().await;
    scene.fixture.put(1, 1..=6).await;
    scene
        .with(RECOVERY, PrefetchLimits { reserve_bytes: u64::MAX, ..limits() }, async || {
            for number in 1..=6 {
                assert_eq!(scene.segment(1, number).await.unwrap(), segment(1, number));
                assert!(scene.ahead().is_empty());
            }
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_prefetcher_left_is_never_handed_out() {
    let scene = Scene::new().await;
    scene.fixture.put(1, 1..=3).await;
    for left in ["000000010000000000000002", ".000000010000000000000002.pgvault", "answer"] {
        fs::create_dir_all(scene.place.dir()).unwrap();
        fs::write(scene.place.file(left), "half-made").unwrap();
    }
    let beside = scene.place.dir().with_file_name("00000000000000ff");
    fs::create_dir(&beside).unwrap();
    fs::write(beside.join("lock"), "").unwrap();
    fs::write(beside.join("000000010000000000000002"), "of another command line").unwrap();
    // Nobody listens: what lies there is not looked at.
    assert_eq!(scene.ask("000000010000000000000002").await, Reply::Unanswered);
    scene
        .with(RECOVERY, limits(), async || {
            assert!(!beside.exists());
            assert!(scene.ahead().is_empty());
            for number in 1..=3 {
                assert_eq!(scene.segment(1, number).await.unwrap(), segment(1, number));
            }
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_with_the_recovery_the_server_or_when_nobody_asks() {
    let scene = Scene::new().await;
    scene.fixture.put(1, 1..=5).await;
    let (data, patient) = (scene.fixture.dir.path(), limits());
    let run = async |limits, end: &dyn Fn()| {
        let (stop, stopped) = oneshot::channel();
        let (heard, listening) = oneshot::channel();
        let served = scene.serve(RECOVERY, limits, heard, stopped);
        let worked = async {
            listening.await.unwrap();
            scene.segment(1, 1).await.unwrap();
            end();
        };
        let (served, ()) = tokio::join!(served, worked);
        served.unwrap();
        drop(stop);
        assert!(!scene.place.dir().exists());
    };
    run(PrefetchLimits { idle: Duration::from_secs(1), ..patient }, &|| ()).await;
    run(patient, &|| fs::write(data.join("postmaster.pid"), "1\n/data\n1001\n").unwrap()).await;
    fs::write(data.join("postmaster.pid"), format!("{}\n/data\n1000\n", std::process::id())).unwrap();
    run(patient, &|| fs::remove_file(data.join("recovery.signal")).unwrap()).await;
    assert!(Life::in_directory(data).is_none(), "without a recovery there is none");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_started_it_may_be_gone_before_it_listens_and_nothing_is_left() {
    let scene = Scene::new().await;
    let (_stop, stopped) = oneshot::channel();
    let (heard, listening) = oneshot::channel();
    // The server was stopped, and the command that it waited for with it.
    drop(listening);
    scene.serve(RECOVERY, limits(), heard, stopped).await.unwrap_err();
    assert!(!scene.place.dir().parent().unwrap().exists(), "it leaves nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_place_has_one_prefetcher_and_nothing_outside_is_touched() {
    let scene = Scene::new().await;
    let claim = scene.place.clone().claim().unwrap().unwrap();
    assert!(scene.place.clone().claim().unwrap().is_none(), "a second one");
    claim.release().unwrap();
    let elsewhere = scene.fixture.dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("precious"), "x").unwrap();
    let base = scene.place.dir().parent().unwrap();
    std::os::unix::fs::symlink(&elsewhere, base).unwrap();
    assert!(scene.place.clone().claim().is_err(), "through a link");
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 1);
    fs::remove_file(base).unwrap();
    for name in ["000000010000000000000001", "x", "RECOVERYXLOG2"] {
        let destination = scene.fixture.dir.path().join("pg_wal").join(name);
        assert_eq!(PrefetchPlace::beside(&destination, 7), None, "not the destination of a server: {name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_gone_gets_nothing() {
    let scene = Scene::new().await;
    scene.fixture.put(1, 1..=2).await;
    scene
        .with(RECOVERY, limits(), async || {
            let life = scene.life();
            fs::write(scene.fixture.dir.path().join("postmaster.pid"), "1\n/data\n2000\n").unwrap();
            let (place, destination) = (scene.place.clone(), scene.destination());
            let file = name(1, 1).to_string().parse().unwrap();
            let asked = move || ask(&place, &file, &destination, life.asker(), || Err(io::ErrorKind::NotFound.into()));
            assert_eq!(tokio::task::spawn_blocking(asked).await.unwrap(), Reply::Unanswered);
            assert!(!scene.destination().exists());
        })
        .await;
}
