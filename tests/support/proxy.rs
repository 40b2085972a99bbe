//! A TCP proxy that misbehaves on demand: cuts, stalls, delays, limits rates, closes one direction, and lets a test look
//! at every byte.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From whoever connected to the proxy, to the real server.
    ToServer,
    /// From the real server.
    ToClient,
}

/// Sees each piece of bytes before it is passed on; connections are numbered from 0.
pub type Tap = Box<dyn Fn(usize, Direction, &[u8]) + Send + Sync>;

/// What is done to one direction.
#[derive(Clone, Copy, Debug, Default)]
struct Fault {
    /// Nothing is read or written.
    stalled: bool,
    /// Each piece waits so long.
    delay: Duration,
    /// Bytes per second.
    rate: Option<u64>,
}

#[derive(Default)]
struct Faults {
    to_server: Fault,
    to_client: Fault,
    /// New connections are closed at once.
    refusing: bool,
    /// Connections up to this number are cut.
    cut_below: usize,
    /// Cut everything once so many more bytes have gone this way.
    cut_after: Option<(Direction, u64)>,
}

struct Shared {
    server: SocketAddr,
    faults: Mutex<Faults>,
    changed: Condvar,
    ended: AtomicBool,
    connections: AtomicUsize,
    open: AtomicUsize,
    sockets: Mutex<Vec<(usize, TcpStream, TcpStream)>>,
    tap: Option<Tap>,
}

/// The proxy; it ends with this value, and all its connections with it.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
}

impl Proxy {
    /// A proxy on a free port of 127.0.0.1 in front of `server_port`.
    pub fn start(server_port: u16) -> Self {
        Self::start_with(server_port, None)
    }

    /// The same with a look at every byte.
    pub fn start_tapped(server_port: u16, tap: impl Fn(usize, Direction, &[u8]) + Send + Sync + 'static) -> Self {
        Self::start_with(server_port, Some(Box::new(tap)))
    }

    fn start_with(server_port: u16, tap: Option<Tap>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            server: SocketAddr::from(([127, 0, 0, 1], server_port)),
            faults: Mutex::default(),
            changed: Condvar::new(),
            ended: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            sockets: Mutex::default(),
            tap,
        });
        let for_listener = Arc::clone(&shared);
        let listener = thread::spawn(move || for_listener.accept(&listener));
        Self { address, shared, listener: Some(listener) }
    }

    /// Where to connect to.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// How many connections were made so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// How many are open now.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// Closes all connections that are open now; new ones work.
    pub fn cut(&self) {
        let below = self.connections();
        self.change(|faults| faults.cut_below = below);
        self.shared.close_below(below);
    }

    /// Closes everything once `bytes` more have gone in this direction: in the middle of a message, for one.
    pub fn cut_after(&self, direction: Direction, bytes: u64) {
        self.change(|faults| faults.cut_after = Some((direction, bytes)));
    }

    /// Closes new connections at once, until told otherwise.
    pub fn refuse(&self, refusing: bool) {
        self.change(|faults| faults.refusing = refusing);
    }

    /// Stops passing bytes in one direction, without closing anything; `false` lets them go on.
    pub fn stall(&self, direction: Direction, stalled: bool) {
        self.change(|faults| faults.of(direction).stalled = stalled);
    }

    /// Stops passing bytes in both directions: a network that swallows packets.
    pub fn stall_both(&self, stalled: bool) {
        self.change(|faults| {
            faults.to_server.stalled = stalled;
            faults.to_client.stalled = stalled;
        });
    }

    /// Holds each piece back for so long.
    pub fn delay(&self, direction: Direction, delay: Duration) {
        self.change(|faults| faults.of(direction).delay = delay);
    }

    /// Passes so many bytes per second; `None` for as many as come.
    pub fn limit_rate(&self, direction: Direction, bytes_per_second: Option<u64>) {
        self.change(|faults| faults.of(direction).rate = bytes_per_second);
    }

    /// Closes one direction of all open connections; the other goes on.
    pub fn half_close(&self, direction: Direction) {
        for (_, client, server) in self.shared.sockets.lock().unwrap().iter() {
            let receiver = if direction == Direction::ToServer { server } else { client };
            // A connection that has ended by itself needs no closing.
            drop(receiver.shutdown(Shutdown::Write));
        }
    }

    /// Everything works again, for connections that are still open and for new ones.
    pub fn heal(&self) {
        self.change(|faults| *faults = Faults { cut_below: faults.cut_below, ..Faults::default() });
    }

    fn change(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.shared.faults.lock().unwrap());
        self.shared.changed.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.shared.changed.notify_all();
        self.shared.close_below(usize::MAX);
        // Wakes the listener.
        drop(TcpStream::connect(self.address));
        if let Some(listener) = self.listener.take() {
            listener.join().unwrap();
        }
    }
}

impl Faults {
    fn of(&mut self, direction: Direction) -> &mut Fault {
        match direction {
            Direction::ToServer => &mut self.to_server,
            Direction::ToClient => &mut self.to_client,
        }
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for client in listener.incoming() {
            if self.ended.load(Ordering::SeqCst) {
                return;
            }
            let Ok(client) = client else { continue };
            let number = self.connections.fetch_add(1, Ordering::SeqCst);
            if self.faults.lock().unwrap().refusing {
                continue;
            }
            let Ok(server) = TcpStream::connect(self.server) else { continue };
            self.open.fetch_add(1, Ordering::SeqCst);
            self.sockets.lock().unwrap().push((number, client.try_clone().unwrap(), server.try_clone().unwrap()));
            let to_server = (client.try_clone().unwrap(), server.try_clone().unwrap());
            let upward = {
                let shared = Arc::clone(self);
                thread::spawn(move || shared.pump(number, Direction::ToServer, &to_server.0, &to_server.1))
            };
            let shared = Arc::clone(self);
            thread::spawn(move || {
                shared.pump(number, Direction::ToClient, &server, &client);
                // Both directions are done when the other thread is too.
                drop(upward.join());
                shared.sockets.lock().unwrap().retain(|(other, ..)| *other != number);
                shared.open.fetch_sub(1, Ordering::SeqCst);
            });
        }
    }

    /// Passes bytes of one direction until either side ends.
    fn pump(&self, number: usize, direction: Direction, mut from: &TcpStream, mut to: &TcpStream) {
        let mut buffer = vec![0; 16 << 10];
        loop {
            if !self.wait_while_stalled(number, direction) {
                break;
            }
            let count = match from.read(&mut buffer) {
                Ok(0) => {
                    // The end of one direction is passed on; the other may go on.
                    drop(to.shutdown(Shutdown::Write));
                    return;
                }
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            // A stall that began during the read holds these bytes back too.
            if !self.wait_while_stalled(number, direction) {
                break;
            }
            let allowed = self.slow_down(direction, count);
            if let Some(tap) = &self.tap {
                tap(number, direction, &buffer[..allowed]);
            }
            if to.write_all(&buffer[..allowed]).is_err() {
                break;
            }
            if allowed < count {
                self.close_below(usize::MAX);
                break;
            }
        }
        drop(from.shutdown(Shutdown::Both));
        drop(to.shutdown(Shutdown::Both));
    }

    /// False when the connection was cut.
    fn wait_while_stalled(&self, number: usize, direction: Direction) -> bool {
        let mut faults = self.faults.lock().unwrap();
        while faults.of(direction).stalled && number >= faults.cut_below && !self.ended.load(Ordering::SeqCst) {
            faults = self.changed.wait_timeout(faults, Duration::from_millis(100)).unwrap().0;
        }
        number >= faults.cut_below && !self.ended.load(Ordering::SeqCst)
    }

    /// Waits as delay and rate ask for; how many of `count` bytes may pass before everything is cut.
    fn slow_down(&self, direction: Direction, count: usize) -> usize {
        let (pause, allowed) = {
            let mut faults = self.faults.lock().unwrap();
            let allowed = match &mut faults.cut_after {
                Some((wanted, left)) if *wanted == direction => {
                    let allowed = usize::try_from(*left).unwrap_or(usize::MAX).min(count);
                    *left -= allowed as u64;
                    if allowed < count {
                        faults.cut_after = None;
                    }
                    allowed
                }
                _ => count,
            };
            let fault = faults.of(direction);
            let for_rate =
                fault.rate.map(|rate| Duration::from_secs_f64(count as f64 / rate as f64)).unwrap_or_default();
            (fault.delay + for_rate, allowed)
        };
        let until = Instant::now() + pause;
        while Instant::now() < until && !self.ended.load(Ordering::SeqCst) {
            thread::sleep(until.saturating_duration_since(Instant::now()).min(Duration::from_millis(50)));
        }
        allowed
    }

    fn close_below(&self, below: usize) {
        for (number, client, server) in self.sockets.lock().unwrap().iter() {
            if *number < below {
                drop(client.shutdown(Shutdown::Both));
                drop(server.shutdown(Shutdown::Both));
            }
        }
    }
}
