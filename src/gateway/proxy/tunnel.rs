//! What flows after a 101: bytes, both ways, that are nobody's business.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;

use super::exchange::Exchange;
use super::guarded::Guarded;
use super::send::Ticket;
use super::watched::Watched;

/// A client and a target that have both agreed to speak something else.
pub struct Tunnel {
    /// The client's connection, when the 101 is written.
    pub client: OnUpgrade,
    /// The target's.
    pub target: OnUpgrade,
    /// What is held until it ends.
    pub ticket: Ticket,
}

impl Tunnel {
    /// Joins both ends for as long as they like.
    pub fn join(self, mut exchange: Box<Exchange>) {
        let Self { client, target, ticket } = self;
        tokio::task::spawn_local(async move {
            let target = match target.await {
                Ok(target) => target,
                Err(error) => {
                    exchange.cut = Some("upgrade_broken");
                    ticket.finish(false);
                    return log::debug!("a target took its upgrade back: {error}");
                }
            };
            let client = match client.await {
                Ok(client) => client,
                Err(error) => {
                    // It went before the 101 was written, which is not the target's failure.
                    exchange.cut = Some("upgrade_broken");
                    ticket.finish(true);
                    return log::debug!("an upgrade came to nothing: {error}");
                }
            };
            let Some(client) = opened(client) else {
                exchange.cut = Some("upgrade_broken");
                ticket.finish(true);
                return log::debug!("a client did not wait for the answer to its upgrade");
            };
            let target = TokioIo::new(target);
            let (up, down) = pass(client, target, exchange.client_timeout()).await;
            exchange.progress.bytes.set(up);
            exchange.bytes_out = down;
            exchange.whole = true;
            ticket.finish(true);
        });
    }
}

/// Passes bytes both ways, and says how many, as far as is known. An end without a farewell is how most of these end.
///
/// A client that has nothing more to say may go on listening for as long as the target speaks. A target that has ended has
/// nobody behind it who could listen: the client has `patience` to see that. Both may be silent for as long as they like; but who
/// takes nothing of what the other one says for `patience` ends it, as else that one's farewell would never be read.
async fn pass(client: impl Stream, target: impl Stream, patience: Duration) -> (u64, u64) {
    let (mut from_client, to_client) = tokio::io::split(client);
    let (mut from_target, to_target) = tokio::io::split(target);
    let (mut to_client, mut to_target) = (Taker::new(to_client, patience), Taker::new(to_target, patience));
    let up = async {
        let passed = tokio::io::copy(&mut from_client, &mut to_target).await;
        let _ = to_target.shutdown().await;
        passed
    };
    let down = async {
        let passed = tokio::io::copy(&mut from_target, &mut to_client).await;
        let _ = to_client.shutdown().await;
        passed
    };
    let (up, down) = match select(pin!(up), pin!(down)).await {
        // Whom it came from is broken, or the other one takes nothing any more.
        Either::Left((Err(_), _)) | Either::Right((Err(_), _)) => return (0, 0),
        Either::Left((up, down)) => (up, down.await),
        Either::Right((down, up)) => (tokio::time::timeout(patience, up).await.unwrap_or(Ok(0)), down),
    };
    (up.unwrap_or_default(), down.unwrap_or_default())
}

/// Who has to take what is written, or it fails.
struct Taker<W> {
    inner: W,
    patience: Duration,
    /// While nothing is taken.
    waits: Option<Pin<Box<Sleep>>>,
}

impl<W> Taker<W> {
    fn new(inner: W, patience: Duration) -> Self {
        Self { inner, patience, waits: None }
    }

    fn wait<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.waits = None;
            return polled;
        }
        let patience = self.patience;
        let waits = self.waits.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        ready!(waits.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Taker<W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.wait(cx, polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_flush(cx);
        self.wait(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.wait(cx, polled)
    }
}

/// A stream of bytes.
trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

/// The client's connection, if nothing came over it between its request and our answer. What did was looked at as a request
/// of HTTP, and could be one: it is not for the target, which takes it for something else.
fn opened(client: Upgraded) -> Option<Box<dyn Stream>> {
    let (stream, early): (Box<dyn Stream>, Bytes) = match client.downcast::<TokioIo<Guarded<Watched<TcpStream>>>>() {
        Ok(plain) => (Box::new(plain.io.into_inner()), plain.read_buf),
        Err(client) => {
            let secure = client.downcast::<TokioIo<Guarded<TlsStream<Watched<TcpStream>>>>>().ok()?;
            (Box::new(secure.io.into_inner()), secure.read_buf)
        }
    };
    early.is_empty().then_some(stream)
}
