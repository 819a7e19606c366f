//! The bodies that pass through: what goes to an upstream is counted, bounded and must not pause; what comes back is streamed
//! as it comes, and whoever waits for its end is told.

use std::cell::{Cell, RefCell};
use std::error::Error as StdError;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep};

use super::error::GatewayError;
use crate::clock;
use crate::gateway::headers;

/// Of a body that nobody wants, so much is read.
const DRAINED: u64 = 1 << 20;
/// For so long.
const DRAIN: Duration = Duration::from_secs(2);

/// What bodies fail with; the text is for the log.
pub type BodyError = Box<dyn StdError + Send + Sync>;

/// The longest body that is kept until its request is answered, in bytes, where it may have to be sent again.
const MAX_KEPT: usize = 64 << 10;

/// Why a request's body did not come whole; the client's doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It is longer than the route takes.
    TooLarge,
    /// It paused for too long.
    TooSlow,
    /// The client went, or its framing was broken.
    Broken,
}

impl Trouble {
    /// What the client is told; `most` is how long its body may be.
    pub fn error(self, most: Option<u64>) -> GatewayError {
        match self {
            Self::TooLarge => GatewayError::BodyTooLarge(most.unwrap_or_default()),
            Self::TooSlow => GatewayError::RequestTimeout,
            Self::Broken => GatewayError::BadRequest("the body's framing is broken"),
        }
    }
}

/// How far a request's body got, for whoever sends it.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes handed on.
    pub bytes: Cell<u64>,
    /// Whether any of it was asked for: then the request cannot be sent again.
    pub begun: Cell<bool>,
    /// When the last of it was handed on.
    pub ended: Cell<Option<Instant>>,
    /// What the client did wrong.
    pub trouble: Cell<Option<Trouble>>,
    /// All that was handed on, if that was asked for and is not too much.
    kept: RefCell<Option<Vec<Bytes>>>,
}

impl Progress {
    /// Keeps what is handed on from now on: a target of HTTP/2 may say that it did not begin with a request it was sent.
    pub fn keep(&self) {
        if !self.begun.get() {
            *self.kept.borrow_mut() = Some(Vec::new());
        }
    }

    /// The body anew, if it was kept and came whole.
    pub fn again(&self) -> Option<RequestBody> {
        self.ended.get()?;
        self.kept.borrow().clone().map(|pieces| RequestBody::Kept(pieces.into_iter()))
    }

    fn note(&self, data: &Bytes) {
        let mut kept = self.kept.borrow_mut();
        if self.bytes.get() > MAX_KEPT as u64 {
            *kept = None;
        }
        kept.iter_mut().for_each(|pieces| pieces.push(data.clone()));
    }
}

/// A request's body on its way to an upstream.
#[derive(Debug)]
pub enum RequestBody {
    /// There is none.
    Empty,
    /// The client's, as it comes.
    Client(Box<ClientBody>),
    /// What came of it before, once more.
    Kept(std::vec::IntoIter<Bytes>),
}

/// A body that a client sends.
#[derive(Debug)]
pub struct ClientBody {
    incoming: Incoming,
    left: u64,
    pause: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    progress: Rc<Progress>,
}

impl RequestBody {
    /// A client's body, that pauses for at most `pause`.
    pub fn new(incoming: Incoming, pause: Duration, progress: Rc<Progress>) -> Self {
        if incoming.is_end_stream() {
            return Self::Empty;
        }
        Self::Client(Box::new(ClientBody { incoming, left: u64::MAX, pause, timer: None, progress }))
    }

    /// Takes at most so many bytes.
    pub fn limit(&mut self, most: Option<u64>) {
        if let Self::Client(body) = self {
            body.left = most.unwrap_or(u64::MAX);
        }
    }

    /// Reads what the client still sends, within bounds, though nobody wants it: a connection that is closed on it would take
    /// the answer with it before the client has read that.
    pub fn drain(mut self) {
        if self.is_empty() {
            return;
        }
        self.limit(Some(DRAINED));
        tokio::task::spawn_local(tokio::time::timeout(DRAIN, async move {
            let mut body = std::pin::pin!(self);
            while let Some(Ok(_)) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {}
        }));
    }

    /// Whether nothing of it has to be sent.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }
}

impl ClientBody {
    fn fail(&self, trouble: Trouble) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.progress.trouble.set(Some(trouble));
        let what = match trouble {
            Trouble::TooLarge => "the request's body is too long",
            Trouble::TooSlow => "the request's body paused for too long",
            Trouble::Broken => "the client's connection broke",
        };
        Poll::Ready(Some(Err(what.into())))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let body = match self.get_mut() {
            Self::Empty => return Poll::Ready(None),
            Self::Kept(pieces) => return Poll::Ready(pieces.next().map(|piece| Ok(Frame::data(piece)))),
            Self::Client(body) => body,
        };
        body.progress.begun.set(true);
        match Pin::new(&mut body.incoming).poll_frame(cx) {
            Poll::Pending => {
                let pause = body.pause;
                let timer = body.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(pause)));
                match timer.as_mut().poll(cx) {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(()) => body.fail(Trouble::TooSlow),
                }
            }
            Poll::Ready(None) => {
                body.progress.ended.set(Some(clock::instant()));
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(_))) => body.fail(Trouble::Broken),
            Poll::Ready(Some(Ok(frame))) => {
                body.timer = None;
                match frame.into_data() {
                    Ok(data) => {
                        let Some(left) = body.left.checked_sub(data.len() as u64) else {
                            return body.fail(Trouble::TooLarge);
                        };
                        body.left = left;
                        body.progress.bytes.set(body.progress.bytes.get() + data.len() as u64);
                        body.progress.note(&data);
                        if body.incoming.is_end_stream() {
                            // Nobody may ask for the end.
                            body.progress.ended.set(Some(clock::instant()));
                        }
                        Poll::Ready(Some(Ok(Frame::data(data))))
                    }
                    Err(frame) => {
                        let Ok(mut trailers) = frame.into_trailers() else { return Poll::Ready(None) };
                        headers::trailers(&mut trailers);
                        // Nobody asks for more behind them.
                        body.progress.ended.set(Some(clock::instant()));
                        *body.progress.kept.borrow_mut() = None;
                        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Kept(pieces) => pieces.as_slice().is_empty(),
            Self::Client(body) => body.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Kept(pieces) => SizeHint::with_exact(pieces.as_slice().iter().map(|piece| piece.len() as u64).sum()),
            Self::Client(body) => body.incoming.size_hint(),
        }
    }
}
