//! The gateway's listeners: connections are taken by actix's workers, and each is served on the thread it was taken on.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use actix_server::{Server, ServerBuilder};
use actix_service::{fn_factory, fn_service};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::connection::{ConnectionState, Patience};
use super::exchange::malformed;
use super::guarded::Guarded;
use super::own::OwnFactory;
use super::stream::Streams;
use super::tls::Certificates;
use super::watched::Watched;
use super::worker::{Client, Worker};
use crate::clock;
use crate::gateway::Gateway;
use crate::gateway::socket;

/// How often idle connections to targets are looked through.
const SWEEP: Duration = Duration::from_secs(1);
/// Streams of one connection of HTTP/2 at once.
const MAX_STREAMS: u32 = 128;
/// Streams that a client may open and reset before it is cut off (CVE-2023-44487), and that it may make us reset
/// (CVE-2025-8671).
const MAX_RESETS: usize = 32;

/// Sockets that are bound, so that a mistake in an address is found before anything else is started.
#[derive(Debug)]
pub struct Listeners {
    plain: Option<TcpListener>,
    tls: Option<(TcpListener, Arc<Certificates>)>,
}

impl Listeners {
    /// Binds what the options name.
    ///
    /// # Errors
    /// With the setting that is the matter.
    pub fn bind(gateway: &crate::gateway::options::GatewayOptions) -> io::Result<Self> {
        let bind = |setting: &str, at: SocketAddr| {
            TcpListener::bind(at)
                .map_err(|error| io::Error::new(error.kind(), format!("{setting}: cannot listen on {at}: {error}")))
        };
        let plain = gateway.listen.map(|at| bind("gateway.listen", at)).transpose()?;
        let tls = match &gateway.tls {
            None => None,
            Some(tls) => {
                let certificates = Certificates::load(&tls.cert_file, &tls.key_file).map_err(io::Error::other)?;
                Some((bind("gateway.tls_listen", tls.listen)?, Arc::new(certificates)))
            }
        };
        Ok(Self { plain, tls })
    }

    /// Where plain HTTP is taken.
    pub fn plain(&self) -> Option<SocketAddr> {
        self.plain.as_ref()?.local_addr().ok()
    }

    /// Where HTTPS is taken.
    pub fn tls(&self) -> Option<SocketAddr> {
        self.tls.as_ref()?.0.local_addr().ok()
    }
}

/// Serves the gateway on these listeners; it runs when awaited or spawned.
///
/// # Errors
/// When a socket cannot be used.
pub fn server(gateway: &Gateway, listeners: Listeners, own: OwnFactory) -> io::Result<Server> {
    let options = gateway.options();
    let mut builder = ServerBuilder::new()
        .workers(options.workers.max(1))
        .max_concurrent_connections(options.max_connections)
        .shutdown_timeout(options.drain_timeout.as_secs().max(1))
        .disable_signals();
    if let Some(listener) = listeners.plain {
        let (gateway, own) = (gateway.clone(), own.clone());
        builder = builder.listen("gateway", listener, move || {
            let (gateway, own) = (gateway.clone(), own.clone());
            fn_factory(move || {
                let (gateway, own) = (gateway.clone(), own.clone());
                async move {
                    let worker = start_worker(gateway, &own).await;
                    Ok::<_, ()>(fn_service(move |stream: TcpStream| {
                        let worker = worker.clone();
                        async move {
                            plain(worker, stream).await;
                            Ok::<_, ()>(())
                        }
                    }))
                }
            })
        })?;
    }
    if let Some((listener, certificates)) = listeners.tls {
        let (gateway, own) = (gateway.clone(), own.clone());
        certificates.clone().watch();
        builder = builder.listen("gateway-tls", listener, move || {
            let (gateway, own, certificates) = (gateway.clone(), own.clone(), certificates.clone());
            fn_factory(move || {
                let (gateway, own, certificates) = (gateway.clone(), own.clone(), certificates.clone());
                async move {
                    let worker = start_worker(gateway, &own).await;
                    Ok::<_, ()>(fn_service(move |stream: TcpStream| {
                        let (worker, certificates) = (worker.clone(), certificates.clone());
                        async move {
                            tls(worker, stream, &certificates).await;
                            Ok::<_, ()>(())
                        }
                    }))
                }
            })
        })?;
    }
    Ok(builder.run())
}

thread_local! {
    /// The workers of this thread: one for each gateway, whichever of its sockets a request comes by.
    static WORKERS: RefCell<Vec<Weak<Worker>>> = const { RefCell::new(Vec::new()) };
}

async fn start_worker(gateway: Gateway, own: &OwnFactory) -> Rc<Worker> {
    let here = WORKERS.with_borrow_mut(|workers| {
        workers.retain(|worker| worker.strong_count() > 0);
        workers.iter().filter_map(Weak::upgrade).find(|worker| worker.gateway.is(&gateway))
    });
    if let Some(worker) = here {
        return worker;
    }
    let worker = Rc::new(Worker::new(gateway, own().await));
    WORKERS.with_borrow_mut(|workers| workers.push(Rc::downgrade(&worker)));
    let weak = Rc::downgrade(&worker);
    tokio::task::spawn_local(async move {
        loop {
            tokio::time::sleep(SWEEP).await;
            let Some(worker) = weak.upgrade() else { break };
            worker.sweep();
        }
    });
    worker
}

async fn plain(worker: Rc<Worker>, stream: TcpStream) {
    let Ok(peer) = stream.peer_addr() else { return };
    let (stream, state) = watched(&worker, stream);
    one(worker, stream, state, peer, false).await;
}

/// A client's socket as we want it, and its state.
fn watched(worker: &Worker, stream: TcpStream) -> (Watched<TcpStream>, ConnectionState) {
    if let Err(error) = socket::tune(&stream) {
        log::debug!("a client's socket cannot be tuned: {error}");
    }
    let clock = worker.gateway.clock().clone();
    let state = ConnectionState::new(clock.now());
    (Watched::new(stream, state.clone(), clock), state)
}

async fn tls(worker: Rc<Worker>, stream: TcpStream, certificates: &Certificates) {
    let Ok(peer) = stream.peer_addr() else { return };
    let (stream, state) = watched(&worker, stream);
    let patience = worker.gateway.options().client_timeout;
    let shaken = tokio::time::timeout(patience, certificates.acceptor().accept(stream)).await;
    let stream = match shaken {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return log::debug!("a TLS handshake failed: {error}"),
        Err(_) => return log::debug!("a TLS handshake took too long"),
    };
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        two(worker, stream, state, peer).await;
    } else {
        one(worker, stream, state, peer, true).await;
    }
}

/// What is read and written at once, at most: more costs memory a connection, and makes nothing faster.
pub(super) const BUFFER: usize = 128 << 10;

/// Serves a connection of HTTP/1.
async fn one<S>(worker: Rc<Worker>, stream: S, state: ConnectionState, peer: SocketAddr, secure: bool)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let clock = worker.gateway.clock().clone();
    let io = TokioIo::new(Guarded::new(stream, state.clone(), clock));
    let client = Client { peer: peer.ip(), port: peer.port(), secure, state: state.clone() };
    let serving = worker.clone();
    let service = service_fn(move |request| serving.clone().answer(request, client.clone()));
    let mut served = pin!(
        http1::Builder::new()
            .half_close(false)
            .max_header_size(worker.gateway.options().max_header_bytes)
            .max_buf_size(worker.gateway.options().max_header_bytes.max(BUFFER))
            .serve_connection(io, service)
            .with_upgrades()
    );
    let ended = attend(&worker, &state, |cx, stop| {
        if stop {
            served.as_mut().graceful_shutdown();
        }
        served.as_mut().poll(cx)
    });
    match ended.await {
        // With all that was under way; an upgrade whose 101 was never taken, too.
        None => return,
        Some(Ok(())) => {}
        Some(Err(error)) => {
            log::debug!("a client's connection ended: {error}");
            if error.is_parse() {
                malformed(&worker.gateway);
            }
        }
    }
    // What it was upgraded to has its place among the connections, until it ends or we do.
    if state.is_upgraded() {
        let mut drain = worker.gateway.draining();
        let stop = pin!(drain.wait_for(|draining| *draining));
        futures_util::future::select(pin!(state.over()), stop).await;
    }
}

/// Serves a connection of HTTP/2.
async fn two<S>(worker: Rc<Worker>, stream: S, state: ConnectionState, peer: SocketAddr)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let options = worker.gateway.options();
    let streams = Streams::new(state.clone(), worker.gateway.clock().clone(), options.client_timeout);
    let client = Client { peer: peer.ip(), port: peer.port(), secure: true, state: state.clone() };
    let serving = worker.clone();
    let service = service_fn(move |request| serving.clone().answer(request, client.clone()));
    let mut served = pin!(
        http2::Builder::new(streams)
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(options.max_header_bytes as u32)
            .max_pending_accept_reset_streams(MAX_RESETS)
            .max_local_error_reset_streams(MAX_RESETS)
            .keep_alive_interval(options.keep_alive / 2)
            .serve_connection(TokioIo::new(stream), service)
    );
    let ended = attend(&worker, &state, |cx, stop| {
        if stop {
            served.as_mut().graceful_shutdown();
        }
        served.as_mut().poll(cx)
    });
    if let Some(Err(error)) = ended.await {
        log::debug!("a client's connection of HTTP/2 ended: {error}");
    }
}

/// Polls a connection to its end, tells it to stop when the server drains or it has been idle for too long, and lets go of it
/// (`None`) when a head takes too long, or an answer.
async fn attend<T>(
    worker: &Worker,
    state: &ConnectionState,
    mut poll: impl FnMut(&mut std::task::Context<'_>, bool) -> Poll<T>,
) -> Option<T> {
    let options = worker.gateway.options();
    let clock = worker.gateway.clock();
    let (keep_alive, head) = (options.keep_alive, options.client_timeout);
    let mut drain = worker.gateway.draining();
    let mut draining = pin!(async move { drain.wait_for(|draining| *draining).await.map(|_| ()) });
    let mut timer = pin!(tokio::time::sleep(keep_alive.min(head)));
    let mut stopped = false;
    poll_fn(move |cx| {
        let mut stop = false;
        if !stopped && draining.as_mut().poll(cx).is_ready() {
            (stop, stopped) = (true, true);
        }
        while timer.as_mut().poll(cx).is_ready() {
            match state.judge(clock.now(), keep_alive, head) {
                Patience::Slow => return Poll::Ready(None),
                Patience::Idle if stopped => return Poll::Ready(None),
                Patience::Idle => {
                    (stop, stopped) = (true, true);
                    timer.as_mut().reset(clock::instant() + head);
                }
                Patience::For(left) => timer.as_mut().reset(clock::instant() + left),
            }
        }
        if let Poll::Ready(ended) = poll(cx, stop) {
            return Poll::Ready(Some(ended));
        }
        // An answer has begun that is to be over before we would look again.
        if let Some(at) = state.deadline() {
            let end = clock::instant() + Duration::from_nanos(at.saturating_sub(clock.now()));
            if end < timer.deadline() {
                timer.as_mut().reset(end);
                // So that it wakes us.
                if timer.as_mut().poll(cx).is_ready() {
                    cx.waker().wake_by_ref();
                }
            }
        }
        Poll::Pending
    })
    .await
}
