//! From a host to an open socket that notices a dead peer.

use std::ffi::OsStr;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream, UnixStream, lookup_host};

use super::conninfo::{Host, HostName, Keepalive};
use super::error::PgError;

/// Where a connection can be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    Tcp(SocketAddr),
    /// Path of the socket itself, `…/.s.PGSQL.5432`.
    Unix(PathBuf),
}

/// An open socket.
#[derive(Debug)]
pub(super) enum Dialled {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Dialled {
    /// Our own address; `None` on a unix socket.
    pub(super) fn local_address(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(stream) => stream.local_addr().ok().map(|address| address.ip()),
            Self::Unix(_) => None,
        }
    }
}

/// All addresses of a host, in the resolver's order; asked anew at every connect, since names move in a failover.
pub(super) async fn addresses(host: &Host) -> Result<Vec<Address>, PgError> {
    let unreachable = |reason: String| PgError::Unreachable { host: host.to_string(), reason };
    match (&host.name, host.address) {
        (HostName::Unix(directory), _) => Ok(vec![Address::Unix(directory.join(format!(".s.PGSQL.{}", host.port)))]),
        (HostName::Tcp(_), Some(address)) => Ok(vec![Address::Tcp(SocketAddr::new(address, host.port))]),
        (HostName::Tcp(name), None) => {
            let found = lookup_host((name.as_str(), host.port))
                .await
                .map_err(|error| unreachable(format!("cannot resolve the name: {error}")))?;
            let mut addresses: Vec<Address> = Vec::new();
            for address in found.map(Address::Tcp) {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            if addresses.is_empty() { Err(unreachable("the name has no address".to_owned())) } else { Ok(addresses) }
        }
    }
}

/// Opens a socket; the caller sets the deadline.
pub(super) async fn dial(address: &Address, keepalive: &Keepalive) -> io::Result<Dialled> {
    match address {
        Address::Tcp(address) => dial_tcp(*address, keepalive).await.map(Dialled::Tcp),
        Address::Unix(path) => dial_unix(path).await.map(Dialled::Unix),
    }
}

async fn dial_tcp(address: SocketAddr, keepalive: &Keepalive) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    // Status updates are small and must not wait for more.
    socket.set_tcp_nodelay(true)?;
    if keepalive.on {
        let probes = TcpKeepalive::new().with_time(keepalive.idle).with_interval(keepalive.interval);
        socket.set_tcp_keepalive(&probes.with_retries(keepalive.count))?;
        // Keepalive alone does not end a connection whose sent bytes are never acknowledged.
        socket.set_tcp_user_timeout(keepalive.user_timeout)?;
    }
    TcpSocket::from_std_stream(socket.into()).connect(address).await
}

async fn dial_unix(path: &Path) -> io::Result<UnixStream> {
    match path.as_os_str().as_bytes().strip_prefix(b"@") {
        None => UnixStream::connect(path).await,
        Some(name) => {
            let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
            // Local: connecting does not wait for a network.
            let stream = std::os::unix::net::UnixStream::connect_addr(&address)?;
            stream.set_nonblocking(true)?;
            UnixStream::from_std(stream)
        }
    }
}

/// What to show of a socket's path.
pub(super) fn describe(address: &Address) -> String {
    match address {
        Address::Tcp(address) => address.to_string(),
        Address::Unix(path) => OsStr::new(path).to_string_lossy().into_owned(),
    }
}
