//! Reads a document over HTTP/1.1, with TLS or without: a connection a document, no redirects, bounded in time and length.

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
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use crate::identity::options::JwksUrl;

/// The longest document, in bytes.
const MAX_DOCUMENT: usize = 256 << 10;

/// Why there is no document. The texts name no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("it cannot be reached ({0})")]
    Connect(std::io::ErrorKind),
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
            let stream = TcpStream::connect((self.url.host.as_str(), self.url.port)).await;
            let stream = stream.map_err(|error| Fault::Connect(error.kind()))?;
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
