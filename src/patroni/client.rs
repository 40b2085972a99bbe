//! One GET over HTTP or HTTPS, bounded in time and size.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::address::PatroniUrl;

/// How long an answer may take: name, connection, TLS and content together.
const PATIENCE: Duration = Duration::from_secs(3);
/// A cluster of a hundred members takes 30 KB.
const MAX_ANSWER: usize = 1 << 20;

/// Asks REST APIs. Certificates of HTTPS are checked against those that the operating system trusts (`SSL_CERT_FILE` names
/// others).
#[derive(Clone)]
pub struct Client {
    tls: Option<Arc<ClientConfig>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("tls", &self.tls.is_some()).finish()
    }
}

/// No answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody there.
    #[error("cannot connect: {0}")]
    Connect(std::io::Error),
    /// TLS did not come up.
    #[error("TLS: {0}")]
    Tls(String),
    /// Not what HTTP looks like.
    #[error("{0}")]
    Http(String),
    /// Another status than 200.
    #[error("the answer has status {0}")]
    Status(u16),
    /// Nothing in time.
    #[error("no answer within {} s", PATIENCE.as_secs())]
    Late,
}

impl Client {
    /// For these URLs; certificates are read when one of them is HTTPS.
    pub fn new(urls: &[PatroniUrl]) -> Result<Self, ClientError> {
        if !urls.iter().any(|url| url.tls) {
            return Ok(Self { tls: None });
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| ClientError::Tls(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { tls: Some(Arc::new(config)) })
    }

    /// The content at this path.
    pub async fn get(&self, url: &PatroniUrl, path: &str) -> Result<Bytes, ClientError> {
        timeout(PATIENCE, self.exchange(url, path)).await.unwrap_or(Err(ClientError::Late))
    }

    async fn exchange(&self, url: &PatroniUrl, path: &str) -> Result<Bytes, ClientError> {
        let socket = TcpStream::connect((url.host.as_str(), url.port)).await.map_err(ClientError::Connect)?;
        match &self.tls {
            Some(config) if url.tls => {
                let name =
                    ServerName::try_from(url.host.clone()).map_err(|error| ClientError::Tls(error.to_string()))?;
                let connector = TlsConnector::from(Arc::clone(config));
                let stream =
                    connector.connect(name, socket).await.map_err(|error| ClientError::Tls(error.to_string()))?;
                ask(stream, url, path).await
            }
            _ => ask(socket, url, path).await,
        }
    }
}

async fn ask<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    url: &PatroniUrl,
    path: &str,
) -> Result<Bytes, ClientError> {
    let failed = |error: &dyn fmt::Display| ClientError::Http(error.to_string());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
    let request = Request::get(path)
        .header("host", url.authority())
        .header("connection", "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| failed(&error))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| failed(&error))?;
        let status = response.status();
        if !status.is_success() {
            return Err(ClientError::Status(status.as_u16()));
        }
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(|error| failed(&error))?;
        Ok(body.to_bytes())
    };
    // The connection is driven here and nowhere else: it ends with the exchange, also when that is dropped.
    tokio::pin!(answer, connection);
    tokio::select! {
        result = &mut answer => result,
        ended = &mut connection => match ended {
            // Everything was read; what the answer holds is in its channel.
            Ok(()) => answer.await,
            Err(error) => Err(failed(&error)),
        },
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// What comes of a server that answers with these bytes and closes.
    async fn answered(bytes: Vec<u8>) -> Result<Bytes, ClientError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = PatroniUrl::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let count = socket.read(&mut request).await.unwrap();
            assert!(request[..count].starts_with(b"GET /cluster HTTP/1.1\r\n"));
            // A client that has heard enough goes away.
            drop(socket.write_all(&bytes).await);
        });
        let client = Client::new(std::slice::from_ref(&url)).unwrap();
        let result = client.get(&url, "/cluster").await;
        server.await.unwrap();
        result
    }

    #[tokio::test]
    async fn an_answer_is_read_whole_and_anything_else_is_an_error() {
        let ok = answered(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}".to_vec()).await.unwrap();
        assert_eq!(&ok[..], b"{}");
        let until_closed = answered(b"HTTP/1.0 200 OK\r\n\r\n{\"a\": 1}".to_vec()).await.unwrap();
        assert_eq!(&until_closed[..], b"{\"a\": 1}");
        let refused = answered(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n".to_vec()).await;
        assert!(matches!(refused, Err(ClientError::Status(503))), "{refused:?}");
        let huge = [b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), vec![b' '; MAX_ANSWER + 1]].concat();
        for bytes in [huge, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}".to_vec(), b"\0\0\0".to_vec(), Vec::new()]
        {
            let result = answered(bytes).await;
            assert!(matches!(result, Err(ClientError::Http(_))), "{result:?}");
        }
    }

    #[tokio::test]
    async fn nobody_there_is_an_error() {
        let url = PatroniUrl::parse("http://127.0.0.1:1").unwrap();
        let result = Client::new(std::slice::from_ref(&url)).unwrap().get(&url, "/cluster").await;
        assert!(matches!(result, Err(ClientError::Connect(_))), "{result:?}");
    }
}
