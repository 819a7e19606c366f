//! What flows after a 101: bytes, both ways, that are nobody's business.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::exchange::Exchange;
use super::guarded::Guarded;
use super::send::Ticket;

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
            let (client, target) = match tokio::try_join!(client, target) {
                Ok(both) => both,
                Err(error) => {
                    exchange.cut = Some("upgrade_broken");
                    ticket.finish(false);
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
/// nobody behind it who could listen: the client has `linger` to see that.
async fn pass(client: impl Stream, target: impl Stream, linger: Duration) -> (u64, u64) {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_target, mut to_target) = tokio::io::split(target);
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
        Either::Right((down, up)) => (tokio::time::timeout(linger, up).await.unwrap_or(Ok(0)), down),
    };
    (up.unwrap_or_default(), down.unwrap_or_default())
}

/// A stream of bytes.
trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

/// The client's connection, if nothing came over it between its request and our answer. What did was looked at as a request
/// of HTTP, and could be one: it is not for the target, which takes it for something else.
fn opened(client: Upgraded) -> Option<Box<dyn Stream>> {
    let (stream, early): (Box<dyn Stream>, Bytes) = match client.downcast::<TokioIo<Guarded<TcpStream>>>() {
        Ok(plain) => (Box::new(plain.io.into_inner()), plain.read_buf),
        Err(client) => {
            let secure = client.downcast::<TokioIo<Guarded<TlsStream<TcpStream>>>>().ok()?;
            (Box::new(secure.io.into_inner()), secure.read_buf)
        }
    };
    early.is_empty().then_some(stream)
}
