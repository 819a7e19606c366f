//! Connections to targets: each worker has its own, so that none is handed between threads.
//!
//! A connection of HTTP/1 is driven by whoever uses it, in the same task, instead of by a task of its own: that saves the two
//! wake-ups of a request that a task in between would cost. Only where a request has a body, which must get on while nobody
//! asks for the answer, does the connection get a task.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::client::conn::http2;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};

use super::body::RequestBody;
use super::exec::LocalExec;
use super::front::BUFFER;
use super::worker::Worker;
use crate::clock::Nanos;
use crate::gateway::connect::Connection;
use crate::gateway::socket::Liveness;

/// Which target of which upstream; unique in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The upstream's number.
    pub upstream: u64,
    /// The target's number.
    pub target: u64,
}

/// How long it is remembered that a target closed a connection it had kept.
const WARY: Nanos = 60_000_000_000;

/// The connections of one worker that are not in use, and those of HTTP/2 that are shared.
#[derive(Default)]
pub struct Pool {
    idle: RefCell<HashMap<Key, Vec<Idle>>>,
    shared: RefCell<HashMap<Key, http2::SendRequest<RequestBody>>>,
    /// When a target was last found to have closed a connection that was kept.
    hung_up: RefCell<HashMap<Key, Nanos>>,
}

struct Idle {
    connection: Http1,
    since: Nanos,
}

/// A connection of HTTP/1 that one request at a time uses.
pub struct Http1 {
    sender: SendRequest<RequestBody>,
    /// What moves its bytes, while that is not a task of its own.
    driver: Option<Pin<Box<dyn Future<Output = hyper::Result<()>>>>>,
    probe: Liveness,
    ended: bool,
}

/// Why a request was not answered.
#[derive(Debug)]
pub struct Unsent {
    /// What went wrong.
    pub error: hyper::Error,
    /// The request, if none of it was sent.
    pub request: Option<Request<RequestBody>>,
}

impl Http1 {
    /// Greets a target over a new connection.
    ///
    /// # Errors
    /// None for HTTP/1, where nothing is said before the first request.
    pub async fn new(connection: Connection) -> hyper::Result<Self> {
        let probe = connection.liveness();
        let (sender, driver) = http1::Builder::new().max_buf_size(BUFFER).handshake(TokioIo::new(connection)).await?;
        Ok(Self { sender, driver: Some(Box::pin(driver.with_upgrades())), probe, ended: false })
    }

    /// Moves what there is to move.
    pub fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(driver) = &mut self.driver
            && driver.as_mut().poll(cx).is_ready()
        {
            self.driver = None;
            self.ended = true;
        }
    }

    /// Sends a request, and waits for the head of its answer.
    ///
    /// # Errors
    /// When the connection breaks first.
    pub async fn send(&mut self, request: Request<RequestBody>) -> Result<Response<Incoming>, Box<Unsent>> {
        if !request.body().is_empty() {
            self.detach();
        }
        let mut answer = pin!(self.sender.try_send_request(request));
        // A connection whose driver is here gets on only while this is polled.
        let (driver, ended) = (&mut self.driver, &mut self.ended);
        poll_fn(|cx| {
            if let Some(moving) = driver
                && moving.as_mut().poll(cx).is_ready()
            {
                *driver = None;
                *ended = true;
            }
            answer.as_mut().poll(cx)
        })
        .await
        .map_err(|mut failed| {
            let request = failed.take_message();
            Box::new(Unsent { error: failed.into_error(), request })
        })
    }

    /// Gives it a task of its own.
    pub fn detach(&mut self) {
        if let Some(driver) = self.driver.take() {
            tokio::task::spawn_local(driver);
        }
    }

    fn is_usable(&self) -> bool {
        !self.ended && self.sender.is_ready()
    }
}

impl Pool {
    /// An idle connection that is still good, the one used last first. For a request that can be sent but `once` there is none
    /// to a target that has lately closed such a connection: it may be about to close this one, and whether it took the request
    /// before that could not be known. Any other request finds out by itself that its connection is dead, and is spared the
    /// question to the kernel.
    pub fn take(&self, key: Key, now: Nanos, keep: Duration, once: bool) -> Option<Http1> {
        let mut idle = self.idle.borrow_mut();
        let of_target = idle.get_mut(&key)?;
        if once && self.hung_up.borrow().get(&key).is_some_and(|at| now.saturating_sub(*at) < WARY) {
            return None;
        }
        while let Some(Idle { connection, since }) = of_target.pop() {
            if now.saturating_sub(since) >= keep.as_nanos() as Nanos {
                continue;
            }
            if connection.is_usable() && (!once || !connection.probe.is_stale()) {
                return Some(connection);
            }
            self.hung_up(key, now);
            if once {
                return None;
            }
        }
        None
    }

    /// A target has closed a connection that was kept.
    pub fn hung_up(&self, key: Key, now: Nanos) {
        self.hung_up.borrow_mut().insert(key, now);
    }

    /// Takes back a connection whose answer has been read to its end. One that has a task of its own may have to end there
    /// first what this one is not waiting for.
    pub fn put_back(worker: &Rc<Worker>, key: Key, mut connection: Http1, most: usize) {
        if connection.is_usable() || connection.ended || connection.driver.is_some() {
            return worker.pool.put(key, connection, worker.gateway.clock().now(), most);
        }
        let worker = worker.clone();
        tokio::task::spawn_local(async move {
            if connection.sender.ready().await.is_ok() {
                worker.pool.put(key, connection, worker.gateway.clock().now(), most);
            }
        });
    }

    fn put(&self, key: Key, connection: Http1, now: Nanos, most: usize) {
        if !connection.is_usable() {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        let of_target = idle.entry(key).or_default();
        if of_target.len() >= most {
            // The oldest is the likeliest to be closed on us.
            of_target.remove(0);
        }
        of_target.push(Idle { connection, since: now });
    }

    /// Drops what has been idle for too long; `keep` says how long an upstream's may be, `None` for one that is no more.
    pub fn sweep(&self, now: Nanos, keep: impl Fn(u64) -> Option<Duration>) {
        self.idle.borrow_mut().retain(|key, of_target| {
            let keep = keep(key.upstream).unwrap_or_default().as_nanos() as Nanos;
            of_target.retain(|idle| now.saturating_sub(idle.since) < keep);
            !of_target.is_empty()
        });
        self.hung_up.borrow_mut().retain(|_, at| now.saturating_sub(*at) < WARY);
        self.shared.borrow_mut().retain(|key, sender| keep(key.upstream).is_some() && !sender.is_closed());
    }

    /// The connection of HTTP/2 to a target, if there is one.
    pub fn shared(&self, key: Key) -> Option<http2::SendRequest<RequestBody>> {
        let mut shared = self.shared.borrow_mut();
        let sender = shared.get(&key)?;
        if sender.is_closed() {
            shared.remove(&key);
            return None;
        }
        Some(sender.clone())
    }

    /// Greets a target in HTTP/2, and keeps the connection for all requests to it.
    ///
    /// # Errors
    /// When the target does not speak it.
    pub async fn share(&self, key: Key, connection: Connection) -> hyper::Result<http2::SendRequest<RequestBody>> {
        let (sender, driver) = http2::Builder::new(LocalExec)
            .timer(TokioTimer::new())
            .keep_alive_interval(Duration::from_secs(20))
            .max_header_list_size(64 << 10)
            .handshake(TokioIo::new(connection))
            .await?;
        tokio::task::spawn_local(async move {
            if let Err(error) = driver.await {
                log::debug!("a connection of HTTP/2 to a target ended: {error}");
            }
        });
        // Two requests may have greeted at once; the later one's serves from now on.
        self.shared.borrow_mut().insert(key, sender.clone());
        Ok(sender)
    }
}

/// Waits until a connection of HTTP/2 takes another request.
///
/// # Errors
/// When it has ended.
pub async fn ready(sender: &mut http2::SendRequest<RequestBody>) -> hyper::Result<()> {
    poll_fn(|cx| match sender.poll_ready(cx) {
        Poll::Ready(ready) => Poll::Ready(ready),
        Poll::Pending => Poll::Pending,
    })
    .await
}
