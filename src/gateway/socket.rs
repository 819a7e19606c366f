//! How TCP connections are kept, on either side, and one that others can look at while its owner, like an HTTP client, has it.
//!
//! tokio's own stream has one owner, and a second descriptor for looking would keep the connection open after its owner let
//! go. So the stream is counted, its owner holds the only strong count, and who looks holds a weak one.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// After so long without a byte a peer is asked whether it is still there.
const IDLE: Duration = Duration::from_secs(60);
/// When it does not answer, again after so long each.
const PROBE: Duration = Duration::from_secs(10);
/// And so often.
const PROBES: u32 = 3;
/// So much may wait in the kernel that could not be sent yet, in bytes. What is on its way is not bounded by this.
const UNSENT: u32 = 128 << 10;

/// Sets up a connection, whoever made it.
///
/// # Errors
/// When the system refuses, which it does for one that is broken.
pub fn tune(stream: &TcpStream) -> io::Result<()> {
    // What is written is written whole: waiting for more, or for the peer's delayed acknowledgement, only costs time.
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    // A peer that vanished without a word would else have its connection, and what hangs on that, for ever.
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(IDLE).with_interval(PROBE).with_retries(PROBES))?;
    // Else the kernel takes megabytes, and says only when a third of them is gone that it takes more: whoever reads slowly and
    // steadily would seem not to read at all.
    #[cfg(target_os = "linux")]
    socket.set_tcp_notsent_lowat(UNSENT)?;
    Ok(())
}

/// The owner's side.
#[derive(Debug)]
pub(super) struct Socket(Arc<TcpStream>);

/// Knows of a connection's state, and does not keep it open.
#[derive(Clone, Debug)]
pub struct Liveness(Weak<TcpStream>);

impl Socket {
    pub fn new(stream: TcpStream) -> Self {
        Self(Arc::new(stream))
    }

    pub fn liveness(&self) -> Liveness {
        Liveness(Arc::downgrade(&self.0))
    }
}

impl Liveness {
    /// Whether an idle connection is of no use any more: the peer closed it, it broke, its owner dropped it, or there are
    /// bytes that nobody asked for. One system call that does not wait. For HTTP/1.1, before a request is sent.
    pub fn is_stale(&self) -> bool {
        self.has(PollFlags::IN | PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR)
    }

    /// The same for HTTP/2, where bytes that nobody asked for (pings, settings) are no fault.
    pub fn is_closed(&self) -> bool {
        self.has(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR)
    }

    fn has(&self, flags: PollFlags) -> bool {
        let Some(stream) = self.0.upgrade() else { return true };
        let mut polled = [PollFd::new(&*stream, flags)];
        match rustix::event::poll(&mut polled, Some(&Timespec::default())) {
            Ok(0) => false,
            Ok(_) => true,
            Err(error) => error != rustix::io::Errno::INTR,
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let stream = &self.0;
        while buf.remaining() > 0 {
            ready!(stream.poll_read_ready(cx))?;
            let room = buf.remaining();
            let mut read = None;
            // A read that does not fill its buffer has emptied the socket: to say so here, with the readiness from before the
            // read, saves the read that would only find out (tokio's own `poll_read` does the same).
            let told = stream.try_io(Interest::READABLE, || {
                let n = stream.try_read_buf(buf)?;
                read = Some(n);
                if 0 < n && n < room { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            match (read, told) {
                (Some(_), _) => return Poll::Ready(Ok(())),
                (None, Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
                (None, Err(error)) => return Poll::Ready(Err(error)),
                (None, Ok(())) => {}
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Socket {
    fn poll_writing(
        &self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match write(&self.0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_writing(cx, |stream| stream.try_write(buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_writing(cx, |stream| stream.try_write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match rustix::net::shutdown(&*self.0, rustix::net::Shutdown::Write) {
            // The peer was quicker.
            Ok(()) | Err(rustix::io::Errno::NOTCONN) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}
