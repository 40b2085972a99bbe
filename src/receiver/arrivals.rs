//! Waiting for work by two threads at once.
//!
//! A commit that waits for us waits for the read loop to be woken, and then for the syncing thread to be woken by it. Waking
//! a thread on an idle processor takes longer than writing the bytes. So the syncing thread waits for the same packet: when
//! the bytes are written it is awake.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

/// What ended the wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    /// Something has arrived, and was perhaps read by now.
    ByArrival,
    /// The bell was rung.
    ByBell,
    /// One cannot wait here.
    Failed,
}

/// A socket that is read by somebody else, and a bell.
#[derive(Debug)]
pub(super) struct Arrivals {
    socket: OwnedFd,
    bell: OwnedFd,
}

impl Arrivals {
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { socket, bell })
    }

    /// Ends the wait, or the next one.
    pub(super) fn ring(&self) {
        // Fails only where it was rung 2^64 times since it was heard.
        let _rung = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    /// Waits until something has arrived that nobody has read yet, or the bell is rung.
    pub(super) fn wait(&self) -> Woken {
        let (socket, bell) = (self.socket.as_fd(), self.bell.as_fd());
        let mut both = [PollFd::new(&socket, PollFlags::IN), PollFd::new(&bell, PollFlags::IN)];
        match poll(&mut both, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return Woken::Failed,
        }
        let [arrived, rung] = both.map(|one| !one.revents().is_empty());
        if rung {
            // It is emptied; nothing in it is of interest.
            let _counted = rustix::io::read(&self.bell, &mut [0; 8]);
        }
        if arrived && !rung { Woken::ByArrival } else { Woken::ByBell }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_arrives_and_the_bell_end_the_wait_and_the_bell_is_heard_once() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let arrivals = Arrivals::new(ours.try_clone().unwrap().into()).unwrap();
        arrivals.ring();
        arrivals.ring();
        assert_eq!(arrivals.wait(), Woken::ByBell);
        theirs.write_all(b"x").unwrap();
        assert_eq!(arrivals.wait(), Woken::ByArrival);
        assert_eq!(arrivals.wait(), Woken::ByArrival, "as long as nobody reads it");
        ours.read_exact(&mut [0]).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| arrivals.ring());
            assert_eq!(arrivals.wait(), Woken::ByBell);
        });
        drop(theirs);
        assert_eq!(arrivals.wait(), Woken::ByArrival, "the end arrives too");
    }
}
