//! Does the fault proxy do to a connection what tests ask of it?

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::LIMIT;
use crate::support::proxy::{Direction, Proxy};

/// A server that sends back what it gets, and ends when its client does; its port.
fn echo_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                }
            });
        }
    });
    port
}

fn connect(proxy: &Proxy) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

fn echo(stream: &mut TcpStream, text: &[u8]) -> std::io::Result<Vec<u8>> {
    stream.write_all(text)?;
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

#[test]
fn it_passes_bytes_and_shows_them() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let recorder = Arc::clone(&seen);
    let proxy = Proxy::start_tapped(echo_server(), move |number, direction, bytes: &[u8]| {
        recorder.lock().unwrap().push((number, direction, bytes.to_vec()));
    });
    let mut stream = connect(&proxy);
    assert_eq!(echo(&mut stream, b"hello").unwrap(), b"hello");
    let seen = seen.lock().unwrap();
    assert_eq!(*seen, [(0, Direction::ToServer, b"hello".to_vec()), (0, Direction::ToClient, b"hello".to_vec())]);
    assert_eq!((proxy.connections(), proxy.open()), (1, 1));
}

#[test]
fn a_cut_ends_open_connections_and_no_later_ones() {
    let proxy = Proxy::start(echo_server());
    let mut stream = connect(&proxy);
    echo(&mut stream, b"a").unwrap();
    proxy.cut();
    assert!(echo(&mut stream, b"b").is_err());
    assert_eq!(echo(&mut connect(&proxy), b"c").unwrap(), b"c");
    proxy.refuse(true);
    assert!(echo(&mut connect(&proxy), b"d").is_err());
}

#[test]
fn a_cut_can_come_in_the_middle_of_a_message() {
    let proxy = Proxy::start(echo_server());
    let mut stream = connect(&proxy);
    proxy.cut_after(Direction::ToClient, 3);
    stream.write_all(b"hello").unwrap();
    let mut answer = Vec::new();
    // Whether the end comes as a reset or as an end of file is the system's affair.
    drop(stream.read_to_end(&mut answer));
    assert_eq!(answer, b"hel");
}

#[test]
fn a_stall_holds_one_direction_until_it_is_healed() {
    let proxy = Proxy::start(echo_server());
    let mut stream = connect(&proxy);
    echo(&mut stream, b"a").unwrap();
    proxy.stall(Direction::ToClient, true);
    stream.write_all(b"b").unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let error = stream.read(&mut [0; 1]).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut));
    proxy.heal();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut answer = [0; 1];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"b");
}

#[test]
fn delays_and_rates_take_their_time() {
    let proxy = Proxy::start(echo_server());
    let mut stream = connect(&proxy);
    proxy.delay(Direction::ToServer, Duration::from_millis(150));
    proxy.limit_rate(Direction::ToClient, Some(1000));
    let before = Instant::now();
    assert_eq!(echo(&mut stream, &[7; 200]).unwrap(), [7; 200]);
    assert!(before.elapsed() >= Duration::from_millis(350), "150 ms of delay, 200 ms for 200 bytes");
}

#[test]
fn one_direction_can_be_closed_alone() {
    let proxy = Proxy::start(echo_server());
    let mut stream = connect(&proxy);
    echo(&mut stream, b"a").unwrap();
    proxy.half_close(Direction::ToClient);
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    stream.write_all(b"still open this way").unwrap();
    stream.shutdown(Shutdown::Both).unwrap();
}
