//! A client's connection with a [`Guard`] between the socket and the parser.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connection::ConnectionState;
use super::guard::Guard;
use crate::clock::Monotonic;

/// A connection whose requests are looked at before they are parsed.
#[derive(Debug)]
pub struct Guarded<S> {
    inner: S,
    guard: Guard,
    state: ConnectionState,
    clock: Monotonic,
    refused: bool,
}

/// No method begins so: the parser answers 400 and closes, in its turn behind what is still to be answered.
const REFUSED: &[u8] = b"\0";

impl<S> Guarded<S> {
    /// Guards a connection of HTTP/1 that has not been read from.
    pub fn new(inner: S, state: ConnectionState, clock: Monotonic) -> Self {
        Self { inner, guard: Guard::default(), state, clock, refused: false }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.refused {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "the request was refused")));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        if self.state.is_upgraded() {
            return Poll::Ready(Ok(()));
        }
        let this = &mut *self;
        if let Err(violation) = this.guard.check(&buf.filled()[before..]) {
            log::debug!("a request was refused: {}", violation.what);
            this.state.refuse();
            buf.set_filled(before + violation.good);
            if violation.in_head && buf.remaining() >= REFUSED.len() {
                buf.put_slice(REFUSED);
            } else {
                // The parser gets what was good; then its line is cut.
                this.refused = true;
                if violation.good == 0 {
                    return self.poll_read(cx, buf);
                }
            }
        }
        let heading = this.guard.is_within_head();
        if heading != this.state.is_heading() {
            this.state.heading(heading.then(|| this.clock.now()));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
