//! The bodies of answers: streamed as they come, and at their end the connection goes back to its pool, the upstream's place to
//! the next request, and the log and the metrics hear of it.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep};

use super::body::BodyError;
use super::compress::Compressed;
use super::exchange::Exchange;
use super::own::OwnBody;
use super::pool::{Http1, Key, Pool};
use super::send::Ticket;
use super::stream::Stream;
use super::worker::Worker;
use crate::clock::{self, Nanos};
use crate::gateway::headers;
use crate::gateway::stale::Keeping;

/// The most that is given to a stream of HTTP/2 at once, in bytes: the next is asked for when all of it was taken, and who takes it
/// slowly must not seem to take nothing.
const PIECE: usize = 16 << 10;

/// The body of an answer.
#[derive(Debug)]
pub struct Answer {
    source: Source,
    /// Written to the log when the body is dropped, at its end or before.
    exchange: Option<Box<Exchange>>,
    /// When the request has taken long enough.
    deadline: Option<Pin<Box<Sleep>>>,
    /// What it broke off with, until that is told.
    broken: Option<BodyError>,
    /// What is left of a piece of its source.
    rest: Bytes,
    /// Of HTTP/2.
    stream: Option<Rc<Stream>>,
}

/// Where a body comes from.
#[derive(Debug)]
pub enum Source {
    /// There is none.
    Empty,
    /// It is all here.
    Whole(Option<Bytes>),
    /// A target sends it.
    Upstream(Box<UpstreamBody>),
    /// The same, compressed on its way.
    Compressed(Box<Compressed>),
    /// Tidegate's own endpoints.
    Own(OwnBody),
}

/// A body that a target sends, with all that is held while it does.
pub struct UpstreamBody {
    incoming: Incoming,
    /// Until its end. `None` for HTTP/2, whose connection is everybody's.
    connection: Option<(Http1, Key, usize)>,
    ticket: Option<Ticket>,
    /// What is kept of it, should the next one not come.
    keeping: Option<Keeping>,
    worker: Rc<Worker>,
}

impl std::fmt::Debug for UpstreamBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UpstreamBody")
    }
}

impl UpstreamBody {
    /// A body whose head has come over this connection; `most` idle ones are kept to its target.
    pub fn new(
        incoming: Incoming,
        connection: Option<(Http1, Key, usize)>,
        ticket: Ticket,
        keeping: Option<Keeping>,
        worker: Rc<Worker>,
    ) -> Self {
        Self { incoming, connection, ticket: Some(ticket), keeping, worker }
    }

    /// If there is no body at all, everything that is held is let go of.
    pub fn settle(mut self) -> Source {
        if self.incoming.is_end_stream() {
            // The connection's own state is a step behind its answer.
            if let Some((connection, ..)) = &mut self.connection {
                connection.drive(&mut Context::from_waker(std::task::Waker::noop()));
            }
            self.finish(true);
            return Source::Empty;
        }
        Source::Upstream(Box::new(self))
    }

    fn finish(&mut self, whole: bool) {
        if let Some(ticket) = self.ticket.take() {
            ticket.finish(whole);
        }
        let (connection, keeping) = (self.connection.take(), self.keeping.take());
        if !whole {
            return;
        }
        let gateway = &self.worker.gateway;
        if let Some((connection, key, most)) = connection {
            Pool::put_back(&self.worker, key, connection, most);
        }
        if let Some(keeping) = keeping {
            gateway.stale().put(keeping, gateway.clock().now());
        }
    }

    /// The next piece.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some((connection, ..)) = &mut self.connection {
            connection.drive(cx);
        }
        let frame = match ready!(Pin::new(&mut self.incoming).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                self.finish(false);
                return Poll::Ready(Some(Err(error.into())));
            }
            None => {
                self.end(cx);
                return Poll::Ready(None);
            }
        };
        if let (Some(keeping), Some(data)) = (&mut self.keeping, frame.data_ref())
            && !keeping.push(data)
        {
            self.keeping = None;
        }
        if self.incoming.is_end_stream() {
            // Nobody may ask again.
            self.end(cx);
        }
        match frame.into_trailers() {
            Ok(mut trailers) => {
                // They are the last, and nobody may ask again.
                self.end(cx);
                headers::trailers(&mut trailers);
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            Err(frame) => Poll::Ready(Some(Ok(frame))),
        }
    }

    fn end(&mut self, cx: &mut Context<'_>) {
        if let Some((connection, ..)) = &mut self.connection {
            connection.drive(cx);
        }
        self.finish(true);
    }

    /// How long it is, as far as that is known.
    pub fn size(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl Answer {
    /// A body; the exchange is over when it is.
    pub fn new(source: Source, exchange: Option<Box<Exchange>>, deadline: Option<Pin<Box<Sleep>>>) -> Self {
        let stream = Stream::current().filter(|_| exchange.is_some());
        let this = Self { source, exchange, deadline, broken: None, rest: Bytes::new(), stream };
        if !this.is_end_stream() {
            this.offer();
        }
        this.until(this.deadline.as_ref().map(|deadline| deadline.deadline()));
        this
    }

    /// The deadline, for who looks after it while nobody asks for more of this.
    fn until(&self, deadline: Option<Instant>) {
        let Some(exchange) = &self.exchange else { return };
        let (connection, clock) = exchange.connection();
        let deadline = deadline.map(|at| {
            let left = at.saturating_duration_since(clock::instant());
            clock.now().saturating_add(Nanos::try_from(left.as_nanos()).unwrap_or(Nanos::MAX))
        });
        match &self.stream {
            Some(stream) => stream.until(deadline),
            None => connection.until(deadline),
        }
    }

    fn offer(&self) {
        if let Some(stream) = &self.stream {
            stream.offer();
        }
    }

    fn taken(&self) {
        if let Some(stream) = &self.stream {
            stream.taken();
        }
    }

    fn fail(&mut self, code: &'static str) {
        if let Some(exchange) = &mut self.exchange {
            exchange.cut = Some(code);
        }
    }

    fn is_late(&self) -> bool {
        self.deadline.as_ref().is_some_and(|deadline| clock::instant() >= deadline.deadline())
    }

    /// It has taken too long.
    fn end(&mut self) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.fail("deadline");
        self.source = Source::Empty;
        self.deadline = None;
        Poll::Ready(Some(Err("the answer took too long".into())))
    }

    /// A piece goes to the client.
    fn give(&mut self, mut piece: Bytes) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.stream.is_some() && piece.len() > PIECE {
            self.rest = piece.split_off(PIECE);
        }
        if let Some(exchange) = &mut self.exchange {
            exchange.bytes_out += piece.len() as u64;
        }
        self.offer();
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.taken();
        // Nobody asked for more of it before it was cut.
        let cut = self.stream.as_ref().and_then(|stream| stream.cut());
        let cut = cut.or_else(|| (self.is_late() && !self.is_end_stream()).then_some("deadline"));
        if let Some(exchange) = &mut self.exchange
            && !exchange.whole
        {
            exchange.cut = exchange.cut.or(cut);
        }
        self.until(None);
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        this.taken();
        if let Some(error) = this.broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
        // Before anything else: a source that always has more would never let it come to that.
        if this.is_late() {
            return this.end();
        }
        if !this.rest.is_empty() {
            let rest = std::mem::take(&mut this.rest);
            return this.give(rest);
        }
        let polled = match &mut this.source {
            Source::Empty => Poll::Ready(None),
            Source::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Source::Upstream(body) => body.poll(cx),
            Source::Compressed(body) => body.poll(cx),
            Source::Own(body) => body.poll(cx).map(|piece| piece.map(|piece| piece.map(Frame::data))),
        };
        match polled {
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(piece) => this.give(piece),
                Err(trailers) => {
                    if let Some(exchange) = &mut this.exchange {
                        exchange.whole = true;
                    }
                    this.offer();
                    Poll::Ready(Some(Ok(trailers)))
                }
            },
            Poll::Ready(Some(Err(error))) => {
                log::debug!("an answer broke off: {error}");
                this.fail("answer_broken");
                // The error ends the connection at once. What came before it is written first: a client that saw nothing at
                // all could think that its request was not taken, and repeat it.
                this.broken = Some(error);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Ready(None) => {
                if let Some(exchange) = &mut this.exchange {
                    exchange.whole = true;
                }
                Poll::Ready(None)
            }
            Poll::Pending => {
                if let Some(deadline) = &mut this.deadline
                    && deadline.as_mut().poll(cx).is_ready()
                {
                    return this.end();
                }
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        if !self.rest.is_empty() {
            return false;
        }
        match &self.source {
            Source::Empty | Source::Whole(None) => true,
            Source::Upstream(body) => body.incoming.is_end_stream(),
            Source::Whole(Some(_)) | Source::Compressed(_) | Source::Own(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.len() as u64;
        let more = match &self.source {
            Source::Empty | Source::Whole(None) => SizeHint::with_exact(0),
            Source::Whole(Some(bytes)) => SizeHint::with_exact(bytes.len() as u64),
            Source::Upstream(body) => body.size(),
            Source::Compressed(_) => SizeHint::default(),
            Source::Own(body) => body.length().map_or_else(SizeHint::default, SizeHint::with_exact),
        };
        let mut hint = SizeHint::new();
        hint.set_lower(more.lower() + rest);
        if let Some(upper) = more.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}
