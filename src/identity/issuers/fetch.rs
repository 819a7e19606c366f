//! Reads a document over HTTP/1.1, with TLS or without: a connection a document, no redirects, bounded in time and length.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsConnector;

use crate::identity::options::JwksUrl;

/// The longest document, in bytes.
const MAX_DOCUMENT: usize = 256 << 10;
/// Addresses of a name that are tried.
const MAX_ADDRESSES: usize = 8;
/// How long an address has before the next one is tried beside it (RFC 8305, section 5); less if the time for all is short.
const AHEAD: Duration = Duration::from_millis(250);

/// Why there is no document. The texts name no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("it cannot be reached ({0})")]
    Connect(ErrorKind),
    #[error("TLS fails")]
    Tls,
    #[error("it does not speak HTTP")]
    Protocol,
    #[error("it answers {0}")]
    Status(u16),
    #[error("its answer is too long")]
    TooLong,
    #[error("it did not answer in time")]
    Late,
    #[error("its answer holds no keys")]
    NoKeys,
    #[error("its ca_file holds no certificates in PEM")]
    Authorities,
}

/// Reads from one address.
#[derive(Clone)]
pub(super) struct Fetcher {
    url: JwksUrl,
    tls: Option<TlsConnector>,
    timeout: Duration,
}

impl std::fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fetcher")
    }
}

struct Line(JoinHandle<()>);

impl Drop for Line {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Fetcher {
    pub fn new(url: JwksUrl, ca: Option<&[u8]>, timeout: Duration) -> Result<Self, Fault> {
        let tls = if url.tls { Some(connector(ca)?) } else { None };
        Ok(Self { url, tls, timeout })
    }

    /// The document.
    pub async fn fetch(&self) -> Result<Bytes, Fault> {
        let fetching = async {
            let stream = self.connect().await.map_err(|error| Fault::Connect(error.kind()))?;
            match &self.tls {
                None => self.ask(stream).await,
                Some(tls) => {
                    let name = ServerName::try_from(self.url.host.clone()).map_err(|_| Fault::Tls)?;
                    self.ask(tls.connect(name, stream).await.map_err(|_| Fault::Tls)?).await
                }
            }
        };
        tokio::time::timeout(self.timeout, fetching).await.unwrap_or(Err(Fault::Late))
    }

    async fn connect(&self) -> io::Result<TcpStream> {
        let found = tokio::net::lookup_host((self.url.host.as_str(), self.url.port)).await?;
        first(by_turns(found), AHEAD.min(self.timeout / 8)).await
    }

    async fn ask(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Bytes, Fault> {
        let (mut sender, driver) = http1::handshake(TokioIo::new(stream)).await.map_err(|_| Fault::Protocol)?;
        // Its errors are those of the request.
        let _line = Line(tokio::spawn(async move { drop(driver.await) }));
        let request = Request::get(&self.url.path)
            .header(header::HOST, self.url.authority())
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, "tidegate")
            .body(Empty::<Bytes>::new())
            .map_err(|_| Fault::Protocol)?;
        let mut answer = sender.send_request(request).await.map_err(|_| Fault::Protocol)?;
        if answer.status() != StatusCode::OK {
            return Err(Fault::Status(answer.status().as_u16()));
        }
        let mut whole = BytesMut::new();
        while let Some(frame) = answer.body_mut().frame().await {
            let Ok(piece) = frame.map_err(|_| Fault::Protocol)?.into_data() else { continue };
            if whole.len() + piece.len() > MAX_DOCUMENT {
                return Err(Fault::TooLong);
            }
            whole.extend_from_slice(&piece);
        }
        Ok(whole.freeze())
    }
}

/// Addresses of both families by turns, beginning with the family of the first (RFC 8305, section 4).
fn by_turns(found: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let (mut one, mut other) = (VecDeque::new(), VecDeque::new());
    for address in found {
        let of_one = one.front().is_none_or(|first: &SocketAddr| first.is_ipv6() == address.is_ipv6());
        if of_one { one.push_back(address) } else { other.push_back(address) }
    }
    let mut all = Vec::new();
    while all.len() < MAX_ADDRESSES && (!one.is_empty() || !other.is_empty()) {
        all.extend(one.pop_front());
        all.extend(other.pop_front());
    }
    all
}

/// The first connection that comes about. An address that does not answer holds the next one up for `ahead` alone, and one that
/// refuses not at all.
async fn first(addresses: Vec<SocketAddr>, ahead: Duration) -> io::Result<TcpStream> {
    let mut waiting = addresses.into_iter();
    // Those that are left over end with it.
    let mut tries = JoinSet::new();
    let mut last = io::Error::from(ErrorKind::NotFound);
    loop {
        if let Some(address) = waiting.next() {
            tries.spawn(TcpStream::connect(address));
        }
        let limit = if waiting.len() > 0 { ahead } else { Duration::MAX };
        match tokio::time::timeout(limit, tries.join_next()).await {
            Ok(Some(Ok(Ok(stream)))) => return Ok(stream),
            Ok(Some(Ok(Err(error)))) => last = error,
            Ok(Some(Err(_))) | Err(_) => {}
            Ok(None) => return Err(last),
        }
    }
}

fn connector(ca: Option<&[u8]>) -> Result<TlsConnector, Fault> {
    // Once a process; another room may have done it before.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut roots = RootCertStore::empty();
    match ca {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(|_| Fault::Authorities)?;
                roots.add(certificate).map_err(|_| Fault::Authorities)?;
            }
            if roots.is_empty() {
                return Err(Fault::Authorities);
            }
        }
        None => _ = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs),
    }
    Ok(TlsConnector::from(Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Stopwatch;

    fn port() -> tokio::net::TcpSocket {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        socket
    }

    #[tokio::test]
    async fn an_address_that_does_not_answer_does_not_hide_one_that_does() {
        // Who does not take its connections: when its queue is full, the system lets further ones go unanswered.
        let hole = port().listen(1).unwrap();
        let silent = hole.local_addr().unwrap();
        let mut queued = vec![];
        while let Ok(line) = tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(silent)).await {
            queued.push(line.unwrap());
            assert!(queued.len() < 100, "its queue is never full");
        }
        let refusing = port().local_addr().unwrap();
        let good = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = good.local_addr().map(|address| (good, address)).unwrap();
        let ahead = Duration::from_millis(50);
        for before in [vec![], vec![silent], vec![refusing], vec![silent, refusing, silent]] {
            let (watch, count) = (Stopwatch::start(), before.len());
            let line = first([before, vec![good.1]].concat(), ahead).await.unwrap();
            assert_eq!(line.peer_addr().unwrap(), good.1);
            assert!(watch.elapsed() < Duration::from_secs(1), "after {count} others: {:?}", watch.elapsed());
        }
        assert_eq!(first(vec![refusing], ahead).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert_eq!(first(vec![], ahead).await.unwrap_err().kind(), ErrorKind::NotFound);
        let nobody = first(vec![silent, silent], ahead);
        assert!(tokio::time::timeout(Duration::from_millis(500), nobody).await.is_err(), "it waits for all");
    }

    #[test]
    fn families_take_turns() {
        let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let found = addresses(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "2.2.2.2:1"]);
        assert_eq!(
            by_turns(found.into_iter()),
            addresses(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "[::3]:1"])
        );
        let many = (1..100).map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        assert_eq!(by_turns(many).len(), MAX_ADDRESSES);
    }
}
