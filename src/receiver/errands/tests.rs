//! Tasks on real runtimes, and errands that end when the test says so.

use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::ThreadId;

use tokio::runtime::Builder;
use tokio::task::yield_now;

use super::*;

/// Notes who ran it, and waits for what the test sends.
#[derive(Debug)]
struct Waits {
    ran: Mutex<Vec<ThreadId>>,
    until: Mutex<mpsc::Receiver<()>>,
    done: Notify,
}

impl Waits {
    fn new() -> (Arc<Self>, mpsc::Sender<()>) {
        let (go, until) = mpsc::channel();
        (Arc::new(Self { ran: Mutex::default(), until: Mutex::new(until), done: Notify::new() }), go)
    }
}

impl Errand for Waits {
    fn run(&self) {
        lock(&self.until).recv().unwrap();
        lock(&self.ran).push(thread::current().id());
        self.done.notify_one();
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn here() -> ThreadId {
    thread::current().id()
}

#[test]
fn short_errands_are_run_by_the_thread_that_drives_the_task() {
    let (errand, go) = Waits::new();
    let errands = Errands::default();
    let task = async {
        for _ in 0..1000 {
            go.send(()).unwrap();
            errands.ask(Arc::clone(&errand) as Arc<dyn Errand>);
            errand.done.notified().await;
        }
        7
    };
    assert_eq!(drive(&runtime(), &errands, "second", task).unwrap(), 7);
    let ran = lock(&errand.ran);
    assert_eq!((ran.len(), ran.iter().all(|&thread| thread == here())), (1000, true));
}

#[test]
fn while_an_errand_takes_long_the_task_goes_on_with_its_timers_and_its_input() {
    let (errand, go) = Waits::new();
    let errands = Errands::default();
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let first = here();
    let task = async {
        ours.set_nonblocking(true).unwrap();
        let ours = tokio::net::UnixStream::from_std(ours).unwrap();
        for round in 0..3 {
            errands.ask(Arc::clone(&errand) as Arc<dyn Errand>);
            // Only another thread can go on from here: the errand ends after what follows.
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert_ne!(here(), first, "round {round}");
            (&theirs).write_all(b"x").unwrap();
            ours.readable().await.unwrap();
            assert_eq!(ours.try_read(&mut [0; 8]).unwrap(), 1);
            go.send(()).unwrap();
            errand.done.notified().await;
        }
    };
    drive(&runtime(), &errands, "second", task).unwrap();
    assert_eq!(*lock(&errand.ran), [first; 3]);
}

#[test]
fn a_task_that_ends_while_an_errand_is_run_has_its_answer_given_when_that_is_over() {
    let (errand, go) = Waits::new();
    let errands = Errands::default();
    let ended = AtomicUsize::new(0);
    let task = async {
        errands.ask(Arc::clone(&errand) as Arc<dyn Errand>);
        // Until the first thread is away.
        tokio::time::sleep(Duration::from_millis(1)).await;
        ended.fetch_add(1, Ordering::Relaxed);
        go.send(()).unwrap();
        7
    };
    assert_eq!(drive(&runtime(), &errands, "second", task).unwrap(), 7);
    assert_eq!((lock(&errand.ran).len(), ended.into_inner()), (1, 1));
    assert!(errands.take().is_none());
}

#[test]
fn a_task_that_panics_ends_both_threads() {
    for by_second in [false, true] {
        let (errand, go) = Waits::new();
        let errands = Errands::default();
        let task = async {
            if by_second {
                errands.ask(Arc::clone(&errand) as Arc<dyn Errand>);
                tokio::time::sleep(Duration::from_millis(1)).await;
                go.send(()).unwrap();
            }
            yield_now().await;
            panic!("on purpose");
        };
        let run = std::panic::AssertUnwindSafe(|| drive::<_>(&runtime(), &errands, "second", task));
        assert!(std::panic::catch_unwind(run).is_err());
    }
}
