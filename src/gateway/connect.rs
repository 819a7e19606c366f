//! Connecting to what stands behind the gateway: names, TCP, TLS and the protocol, within one time-out.

use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::options::{Protocol, UpstreamOptions, UpstreamTls};
use super::socket::{self, Liveness, Socket};

/// How long an address of a name may be silent before the next one is tried beside it (RFC 8305, section 5).
const STAGGER: Duration = Duration::from_millis(250);

/// Why there is no connection. The texts name no addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The address is not `host:port`.
    #[error("the address is not host:port")]
    Address,
    /// The name has no address, or nobody knows it.
    #[error("the name cannot be resolved")]
    Resolve,
    /// Nobody listens there.
    #[error("the connection was refused")]
    Refused,
    /// There is no way there.
    #[error("it cannot be reached")]
    Unreachable,
    /// It took too long, wherever it was by then.
    #[error("connecting took too long")]
    TimedOut,
    /// The certificate is not believed.
    #[error("its certificate {0}")]
    Untrusted(&'static str),
    /// The certificate is somebody else's.
    #[error("its certificate is for another name")]
    WrongName,
    /// TLS failed otherwise.
    #[error("TLS failed: {0}")]
    Tls(String),
    /// It does not speak what it should.
    #[error("it does not speak {}", match .0 { Protocol::Http1 => "HTTP/1.1", Protocol::Http2 => "HTTP/2" })]
    WrongProtocol(Protocol),
    /// What the settings say of TLS cannot be used.
    #[error("{0}")]
    Settings(String),
}

/// Connects to the targets of one upstream.
#[derive(Clone)]
pub struct Connector {
    protocol: Protocol,
    tls: Option<Tls>,
}

#[derive(Clone)]
struct Tls {
    connector: TlsConnector,
    /// The name that certificates must have, instead of the target's.
    name: Option<ServerName<'static>>,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector")
            .field("protocol", &self.protocol)
            .field("tls", &self.tls.is_some())
            .finish_non_exhaustive()
    }
}

impl ConnectError {
    /// A word for logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Resolve => "resolve",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed_out",
            Self::Untrusted(_) => "untrusted_certificate",
            Self::WrongName => "wrong_name_in_certificate",
            Self::Tls(_) => "tls",
            Self::WrongProtocol(_) => "wrong_protocol",
            Self::Settings(_) => "settings",
        }
    }
}

impl Connector {
    /// What an upstream's settings ask for. Reads the system's certificates where those are to be trusted.
    pub fn new(options: &UpstreamOptions) -> Result<Self, ConnectError> {
        let tls = options.tls.as_ref().map(|tls| Tls::new(tls, options.protocol)).transpose()?;
        Ok(Self { protocol: options.protocol, tls })
    }

    /// Plain TCP, for HTTP/1.1.
    pub fn plain() -> Self {
        Self { protocol: Protocol::Http1, tls: None }
    }

    /// Plain TCP, for HTTP/2 that is known beforehand.
    #[cfg(test)]
    pub(super) fn http2() -> Self {
        Self { protocol: Protocol::Http2, tls: None }
    }

    /// What is spoken on its connections.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Whether its connections are TLS.
    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Connects to `host:port` within a time that covers everything: resolving, each address of the name, and TLS.
    pub async fn connect(&self, address: &str, timeout: Duration) -> Result<Connection, ConnectError> {
        let connecting = async {
            let (host, port) = split(address).ok_or(ConnectError::Address)?;
            let socket = Socket::new(reach(host, port).await?);
            let Some(tls) = &self.tls else { return Ok(Connection { io: Io::Plain(socket) }) };
            let name = match &tls.name {
                Some(name) => name.clone(),
                None => ServerName::try_from(host.to_owned()).map_err(|_| ConnectError::WrongName)?,
            };
            let stream = tls.connector.connect(name, socket).await.map_err(|error| tls_error(&error, self.protocol))?;
            match (self.protocol, stream.get_ref().1.alpn_protocol()) {
                // Who knows no ALPN speaks HTTP/1.1.
                (Protocol::Http1, None | Some(b"http/1.1")) | (Protocol::Http2, Some(b"h2")) => {}
                (protocol, _) => return Err(ConnectError::WrongProtocol(protocol)),
            }
            Ok(Connection { io: Io::Tls(Box::new(stream)) })
        };
        tokio::time::timeout(timeout, connecting).await.unwrap_or(Err(ConnectError::TimedOut))
    }
}

impl Tls {
    fn new(options: &UpstreamTls, protocol: Protocol) -> Result<Self, ConnectError> {
        let settings = |text: &str| ConnectError::Settings(String::from(text));
        let mut roots = RootCertStore::empty();
        match &options.ca {
            Some(pem) => {
                for certificate in CertificateDer::pem_slice_iter(pem) {
                    let certificate = certificate.map_err(|_| settings("the authorities' file is not PEM"))?;
                    roots.add(certificate).map_err(|_| settings("the authorities' file has a broken certificate"))?;
                }
                if roots.is_empty() {
                    return Err(settings("the authorities' file has no certificate"));
                }
            }
            None => {
                // The system's store may hold some that are of no use; the others are.
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                if roots.is_empty() {
                    return Err(settings(
                        "the system has no trusted certificates; name an authority for this upstream",
                    ));
                }
            }
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|_| settings("TLS cannot be set up"))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![match protocol {
            Protocol::Http1 => b"http/1.1".to_vec(),
            Protocol::Http2 => b"h2".to_vec(),
        }];
        let name = match &options.server_name {
            Some(name) => Some(ServerName::try_from(name.clone()).map_err(|_| settings("the server name is no name"))?),
            None => None,
        };
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name })
    }
}

/// Host (an IPv6 address without its brackets) and port.
pub(super) fn split(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    // Without brackets nobody knows where an IPv6 address ends.
    let host = inner.or_else(|| (!host.contains([':', '[', ']'])).then_some(host))?;
    let port: u16 = port.bytes().all(|c| c.is_ascii_digit()).then(|| port.parse().ok())??;
    (!host.is_empty() && port > 0).then_some((host, port))
}

/// A connection to the first of a name's addresses that answers.
async fn reach(host: &str, port: u16) -> Result<TcpStream, ConnectError> {
    // Not only the resolver's "no such name": an address that is none, too.
    let found = tokio::net::lookup_host((host, port)).await.map_err(|_| ConnectError::Resolve)?;
    let mut waiting = found.collect::<Vec<SocketAddr>>().into_iter();
    let mut attempts = FuturesUnordered::new();
    attempts.push(TcpStream::connect(waiting.next().ok_or(ConnectError::Resolve)?));
    let mut stagger = pin!(tokio::time::sleep(STAGGER));
    loop {
        let failed = tokio::select! {
            biased;
            done = attempts.next() => match done {
                Some(Ok(stream)) => {
                    socket::tune(&stream).map_err(|error| tcp_error(&error))?;
                    return Ok(stream);
                }
                Some(Err(error)) => Some(tcp_error(&error)),
                None => return Err(ConnectError::Unreachable),
            },
            () = stagger.as_mut(), if waiting.len() > 0 => None,
        };
        if let Some(next) = waiting.next() {
            attempts.push(TcpStream::connect(next));
            stagger.set(tokio::time::sleep(STAGGER));
        } else if let Some(error) = failed
            && attempts.is_empty()
        {
            return Err(error);
        }
    }
}

fn tcp_error(error: &io::Error) -> ConnectError {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => ConnectError::Refused,
        io::ErrorKind::TimedOut => ConnectError::TimedOut,
        _ => ConnectError::Unreachable,
    }
}

fn tls_error(error: &io::Error, protocol: Protocol) -> ConnectError {
    use rustls::Error;
    let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
        return ConnectError::Tls(String::from(match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                "it closed the connection during the handshake"
            }
            _ => "the connection broke during the handshake",
        }));
    };
    match inner {
        Error::InvalidCertificate(why) => match why {
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                ConnectError::WrongName
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                ConnectError::Untrusted("has expired")
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                ConnectError::Untrusted("is not valid yet")
            }
            CertificateError::UnknownIssuer => ConnectError::Untrusted("is signed by nobody who is trusted"),
            CertificateError::Revoked => ConnectError::Untrusted("was revoked"),
            _ => ConnectError::Untrusted("is not acceptable"),
        },
        Error::NoApplicationProtocol | Error::AlertReceived(AlertDescription::NoApplicationProtocol) => {
            ConnectError::WrongProtocol(protocol)
        }
        Error::AlertReceived(alert) => ConnectError::Tls(format!("it sent the alert {alert:?}")),
        Error::InvalidMessage(_) => ConnectError::Tls(String::from("it does not speak TLS")),
        Error::PeerIncompatible(_) => ConnectError::Tls(String::from("it knows no version or cipher that we do")),
        _ => ConnectError::Tls(String::from("the handshake failed")),
    }
}

/// A connection to a target.
#[derive(Debug)]
pub struct Connection {
    io: Io,
}

#[derive(Debug)]
enum Io {
    Plain(Socket),
    Tls(Box<TlsStream<Socket>>),
}

impl Connection {
    /// Something that still knows of this connection's state when it has been given away. It does not keep it open.
    pub fn liveness(&self) -> Liveness {
        match &self.io {
            Io::Plain(socket) => socket.liveness(),
            Io::Tls(stream) => stream.get_ref().0.liveness(),
        }
    }

    /// Whether an idle connection is of no use any more; see [`Liveness::is_stale`].
    pub fn is_stale(&self) -> bool {
        self.liveness().is_stale()
    }
}

macro_rules! delegate {
    ($self:ident, $io:ident => $call:expr) => {
        match &mut $self.get_mut().io {
            Io::Plain(stream) => {
                let $io = Pin::new(stream);
                $call
            }
            Io::Tls(stream) => {
                let $io = Pin::new(stream.as_mut());
                $call
            }
        }
    };
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        delegate!(self, io => io.poll_read(cx, buf))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        delegate!(self, io => io.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        delegate!(self, io => io.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(socket) => socket.is_write_vectored(),
            Io::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, io => io.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, io => io.poll_shutdown(cx))
    }
}

#[cfg(test)]
#[path = "connect_tests.rs"]
mod tests;
