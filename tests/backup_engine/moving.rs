//! Are files that vanish, grow or shrink while a backup is being sent what PostgreSQL's manifest says of them?

use std::fs;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use pgvault::primary::{ConnectOptions, Conninfo, Environment};

use super::{Bench, fast, noise};
use crate::support::exact::files_below;
use crate::support::pg::{PgNode, give_to_server_user, major, test_dir};
use crate::support::proxy::{Direction, Proxy};

/// Shows where in the stream the heavy file is.
const MARK: &[u8] = b"the heavy file is on its way";

/// Holds whoever wants to pass until it is opened.
#[derive(Default)]
struct Gate {
    /// Whether somebody waits, and whether it is open.
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Gate {
    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.0 = true;
        self.changed.notify_all();
        drop(self.changed.wait_while(state, |(_, open)| !*open).unwrap());
    }

    fn wait_for_somebody(&self) {
        let state = self.state.lock().unwrap();
        let (state, waited) =
            self.changed.wait_timeout_while(state, Duration::from_secs(120), |(came, _)| !*came).unwrap();
        drop(state);
        assert!(!waited.timed_out(), "the heavy file never came by");
    }

    fn is_open(&self) -> bool {
        self.state.lock().unwrap().1
    }

    fn open(&self) {
        self.state.lock().unwrap().1 = true;
        self.changed.notify_all();
    }
}

/// Lets the proxy end, however the test does.
struct OpenedAtTheEnd(Arc<Gate>);

impl Drop for OpenedAtTheEnd {
    fn drop(&mut self) {
        self.0.open();
    }
}

/// Names in the order in which the server reads this directory.
fn in_order(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_vanishes_grows_or_shrinks_while_it_is_sent_is_as_the_server_says() {
    let dir = test_dir();
    let node = PgNode::start_new(dir.path(), "primary", major(15));
    let moving = node.data.join("moving");
    fs::create_dir(&moving).unwrap();
    for number in 0..40 {
        fs::write(moving.join(format!("file {number}")), noise(number, 5000)).unwrap();
    }
    // While the first of them is on its way, the server has named the others to itself and not opened them.
    let order = in_order(&moving);
    let mut heavy = noise(99, 80 << 20);
    for piece in heavy[..8 << 20].chunks_exact_mut(64 << 10) {
        piece[..MARK.len()].copy_from_slice(MARK);
    }
    fs::write(moving.join(&order[0]), &heavy).unwrap();
    assert_eq!(in_order(&moving), order);
    give_to_server_user(&moving);

    // Held where the first mark is seen: the server can go on by what sockets take, which is less than 60 MiB.
    let gate = Arc::new(Gate::default());
    let proxy = Proxy::start_tapped(node.port, {
        let gate = Arc::clone(&gate);
        move |_, direction, bytes| {
            let looks = direction == Direction::ToClient && !gate.is_open();
            if looks && bytes.windows(MARK.len()).any(|window| window == MARK) {
                gate.pass();
            }
        }
    });
    let _opened = OpenedAtTheEnd(Arc::clone(&gate));
    let mut bench = Bench::in_memory(&node).await;
    let conninfo = format!("host=127.0.0.1 port={} user=postgres", proxy.port());
    bench.options = ConnectOptions::new(Conninfo::parse(&conninfo, &Environment::default()).unwrap(), "test");
    let bench = Arc::new(bench);
    let running = tokio::spawn({
        let bench = Arc::clone(&bench);
        async move { bench.take(&fast()).await }
    });
    tokio::task::spawn_blocking({
        let gate = Arc::clone(&gate);
        move || gate.wait_for_somebody()
    })
    .await
    .unwrap();
    let [vanishes, grows, shrinks, comes] = [&order[10], &order[20], &order[30], &"came later".to_owned()];
    fs::remove_file(moving.join(vanishes)).unwrap();
    fs::write(moving.join(grows), noise(7, 300_000)).unwrap();
    fs::write(moving.join(shrinks), b"short").unwrap();
    fs::write(moving.join(comes), b"late").unwrap();
    // The server pads what was cut off with zeros.
    let cut = 70 << 20;
    fs::File::options().write(true).open(moving.join(&order[0])).unwrap().set_len(cut).unwrap();
    give_to_server_user(&moving);
    gate.open();

    let manifest = running.await.unwrap().unwrap_or_else(|error| panic!("{error}"));
    let out = dir.path().join("out");
    bench.write_out(&manifest, &out).await;
    let verified = node.tool("pg_verifybackup").arg("-n").arg(&out).output().unwrap();
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
    let files = files_below(&out.join("moving"));
    let content = |name: &str| fs::read(&files[name.as_bytes()]).unwrap();
    assert!(!files.contains_key(vanishes.as_bytes()), "the server never opened it");
    assert!(content(grows) == noise(7, 300_000) && content(shrinks) == b"short");
    let first = content(&order[0]);
    let kept = usize::try_from(cut).unwrap();
    assert!(first.len() == heavy.len() && first[..kept] == heavy[..kept]);
    assert!(first[kept..].iter().all(|byte| *byte == 0), "what was cut off before it was read is zeros");
}
