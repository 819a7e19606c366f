use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

const CA: &[u8] = include_bytes!("test_tls/ca.pem");
const SECOND: Duration = Duration::from_secs(1);

/// A connector as an upstream's settings make it.
fn connector(protocol: Protocol, ca: Option<&[u8]>, name: Option<&str>) -> Connector {
    let tls = UpstreamTls { server_name: name.map(String::from), ca: ca.map(|ca| Arc::new(ca.to_vec())) };
    Connector { protocol, tls: Some(Tls::new(&tls, protocol).unwrap()) }
}

/// A listener whose every client gets a handshake with these protocols, and back what it sends.
async fn tls_echo(alpn: &'static [&'static [u8]]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(include_bytes!("test_tls/server.pem")).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("test_tls/server.key")).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let (mut read, mut write) = tokio::io::split(stream);
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    address
}

#[test]
fn addresses_are_a_host_and_a_port() {
    assert_eq!(split("users.internal:8080"), Some(("users.internal", 8080)));
    assert_eq!(split("10.0.0.1:1"), Some(("10.0.0.1", 1)));
    assert_eq!(split("[::1]:65535"), Some(("::1", 65535)));
    for wrong in
        ["", "users", "users:", ":80", "users:0", "users:65536", "users:+80", "::1:80", "[::1]", "[]:80", "[a:80"]
    {
        assert_eq!(split(wrong), None, "{wrong}");
    }
}

#[tokio::test]
async fn failures_are_told_apart() {
    let connector = Connector::plain();
    assert_eq!(connector.connect("nowhere", SECOND).await.unwrap_err(), ConnectError::Address);
    // RFC 6761 keeps this name from ever being given away.
    let error = connector.connect("nowhere.invalid:80", SECOND * 20).await.unwrap_err();
    assert_eq!(error, ConnectError::Resolve);
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    assert_eq!(connector.connect(&closed, SECOND).await.unwrap_err(), ConnectError::Refused);
    // A listener that never answers the handshake of TLS.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let tls = super::tests::connector(Protocol::Http1, Some(CA), None);
    let error = tls.connect(&address, Duration::from_millis(50)).await.unwrap_err();
    assert_eq!(error, ConnectError::TimedOut);
    for error in [ConnectError::Refused, ConnectError::TimedOut, ConnectError::WrongProtocol(Protocol::Http2)] {
        assert!(!error.to_string().contains(':'), "{error}");
    }
}

#[tokio::test]
async fn all_addresses_of_a_name_are_tried() {
    // On most machines this name has ::1 too, where nobody listens.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut connection = Connector::plain().connect(&format!("localhost:{port}"), SECOND * 5).await.unwrap();
    let (mut peer, _) = listener.accept().await.unwrap();
    connection.write_all(b"hello").await.unwrap();
    connection.shutdown().await.unwrap();
    let mut heard = vec![];
    peer.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"hello");
}

#[tokio::test]
async fn tls_is_checked_and_says_what_is_wrong() {
    let http1 = tls_echo(&[b"http/1.1"]).await;
    let both = tls_echo(&[b"h2", b"http/1.1"]).await;
    let none = tls_echo(&[]).await;
    for (address, protocol) in [(&http1, Protocol::Http1), (&both, Protocol::Http2), (&none, Protocol::Http1)] {
        let mut connection = connector(protocol, Some(CA), None).connect(address, SECOND * 5).await.unwrap();
        connection.write_all(b"over TLS").await.unwrap();
        let mut back = [0; 8];
        connection.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"over TLS");
        assert!(!connection.is_stale());
    }
    for (address, protocol) in [(&http1, Protocol::Http2), (&none, Protocol::Http2)] {
        let error = connector(protocol, Some(CA), None).connect(address, SECOND * 5).await.unwrap_err();
        assert_eq!(error, ConnectError::WrongProtocol(protocol));
    }
    let named = connector(Protocol::Http1, Some(CA), Some("tidegate.test"));
    assert!(named.connect(&http1, SECOND * 5).await.is_ok());
    let other = connector(Protocol::Http1, Some(CA), Some("other.test"));
    assert_eq!(other.connect(&http1, SECOND * 5).await.unwrap_err(), ConnectError::WrongName);
    // The server's own certificate is nobody's authority.
    let stranger = connector(Protocol::Http1, Some(include_bytes!("test_tls/server.pem")), None);
    let error = stranger.connect(&http1, SECOND * 5).await.unwrap_err();
    assert!(matches!(error, ConnectError::Untrusted(_)), "{error}");
    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = plain.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let (mut peer, _) = plain.accept().await.unwrap();
        peer.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        let _ = peer.read(&mut [0; 1024]).await;
    });
    let error = connector(Protocol::Http1, Some(CA), None).connect(&address, SECOND * 5).await.unwrap_err();
    assert_eq!(error, ConnectError::Tls(String::from("it does not speak TLS")));
}

#[test]
fn authorities_that_are_none_are_refused_at_once() {
    for (pem, says) in [
        (&b"-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n"[..], "not PEM"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "broken"),
        (b"", "no certificate"),
    ] {
        let options = UpstreamTls { server_name: None, ca: Some(Arc::new(pem.to_vec())) };
        let error = Tls::new(&options, Protocol::Http1).err().unwrap();
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[tokio::test]
async fn a_connection_that_the_peer_has_closed_is_stale() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let accept = || listener.accept().unwrap().0;
    let connect = async || Connector::plain().connect(&address, SECOND).await.unwrap();
    // On loopback what a peer does is there when its call returns.
    let (connection, peer) = (connect().await, accept());
    let looks = connection.liveness();
    assert!(!connection.is_stale() && !looks.is_closed());
    drop(peer);
    assert!(connection.is_stale() && looks.clone().is_closed());

    let (connection, mut peer) = (connect().await, accept());
    peer.write_all(b"unasked").unwrap();
    assert!(connection.is_stale() && !connection.liveness().is_closed());

    let (connection, mut peer) = (connect().await, accept());
    let looks = connection.liveness();
    assert!(!looks.is_stale());
    drop(connection);
    assert!(looks.is_stale() && looks.is_closed(), "whoever looks does not keep it open");
    assert_eq!(peer.read(&mut [0; 8]).unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_stuck_however_it_is_cut() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let (mut peer, _) = listener.accept().await.unwrap();
        let (mut read, mut write) = peer.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    });
    let connection = Connector::plain().connect(&address, SECOND).await.unwrap();
    let (mut read, mut write) = tokio::io::split(connection);
    let sent: Vec<u8> = (0..8_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let sending = sent.clone();
    let writing = tokio::spawn(async move {
        let (mut at, mut size) = (0, 1);
        while at < sending.len() {
            let end = (at + size).min(sending.len());
            let middle = at + (end - at) / 2;
            let pieces = [io::IoSlice::new(&sending[at..middle]), io::IoSlice::new(&sending[middle..end])];
            at += write.write_vectored(&pieces).await.unwrap();
            size = size * 7 % 70_001 + 1;
        }
        write.shutdown().await.unwrap();
    });
    let reading = async {
        let (mut heard, mut size) = (vec![], 1);
        loop {
            let mut piece = vec![0; size];
            let n = read.read(&mut piece).await.unwrap();
            if n == 0 {
                return heard;
            }
            heard.extend_from_slice(&piece[..n]);
            size = size * 5 % 50_021 + 1;
        }
    };
    let heard = tokio::time::timeout(SECOND * 30, reading).await.expect("it is not stuck");
    writing.await.unwrap();
    assert!(heard == sent, "what comes back is what was sent");
}
