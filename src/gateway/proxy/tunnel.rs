//! What flows after a 101: bytes, both ways, that are nobody's business.

use bytes::Bytes;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
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
            let Some(mut client) = opened(client) else {
                exchange.cut = Some("upgrade_broken");
                ticket.finish(true);
                return log::debug!("a client did not wait for the answer to its upgrade");
            };
            let mut target = TokioIo::new(target);
            // An end without a farewell is how most of these end.
            let passed = tokio::io::copy_bidirectional(&mut client, &mut target).await;
            if let Ok((up, down)) = passed {
                exchange.progress.bytes.set(up);
                exchange.bytes_out = down;
            }
            exchange.whole = true;
            ticket.finish(true);
        });
    }
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
