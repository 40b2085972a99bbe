//! What the daemon does when it is signalled.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{Error, ErrorCode, Result};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// TERM, INT: end in good order.
    Stop,
    /// HUP: read the configuration and open the log again.
    Reload,
    /// USR1: write the status to the log.
    Report,
}

/// Which signal asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// INT: a person.
    Interrupt,
    /// TERM, HUP: the system.
    Terminate,
}

/// The signals of this process.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    user: Signal,
}

impl Signals {
    /// Takes the signals over; from here on they no longer end the process by themselves.
    pub fn listen() -> Result<Self> {
        let listen = |kind| {
            signal(kind)
                .map_err(|error| Error::new(ErrorCode::Unclassified, "cannot listen for signals").because(error))
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
            user: listen(SignalKind::user_defined1())?,
        })
    }

    /// The next request to stop, told apart; others are ignored.
    pub async fn next_stop(&mut self) -> Stop {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return Stop::Terminate,
                _ = self.interrupt.recv() => return Stop::Interrupt,
                _ = self.hang_up.recv() => return Stop::Terminate,
                _ = self.user.recv() => {}
            }
        }
    }

    /// The next request. May be dropped at any time: a signal that has arrived stays.
    pub async fn next(&mut self) -> Request {
        tokio::select! {
            _ = self.terminate.recv() => Request::Stop,
            _ = self.interrupt.recv() => Request::Stop,
            _ = self.hang_up.recv() => Request::Reload,
            _ = self.user.recv() => Request::Report,
        }
    }
}
