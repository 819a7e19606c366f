//! Active health checks: each target is asked at its interval, over a connection of its own, and what its answers add up to is
//! told. For whoever chooses targets, a target that nothing was told of yet counts as healthy.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use actix::ArbiterHandle;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::header::{HOST, USER_AGENT};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::backoff::Dice;
use super::connect::Connector;
use super::options::{HealthOptions, Protocol};
use super::schedule::Schedule;
use super::task::Task;
use crate::clock::Monotonic;

/// Checks of one upstream at once. Where that is not enough, checks are late.
const AT_ONCE: usize = 64;

/// Checks the targets of one upstream until it is dropped, and its connections with it.
pub struct Checker {
    shared: Arc<Shared>,
    task: Task,
}

type Report = dyn Fn(&str, bool) + Send + Sync;

struct Shared {
    options: HealthOptions,
    connector: Connector,
    clock: Monotonic,
    schedule: Mutex<Schedule>,
    changed: Notify,
    stopped: AtomicBool,
    report: Box<Report>,
}

impl Checker {
    /// Checks nothing until [`Checker::set`]. `report` gets a target's address and whether it is healthy, each time that turns,
    /// and the first time that it is known; after a panic all that is known is told again. It runs on the arbiter's thread and
    /// is not to wait. Must be called within actix's runtime.
    pub fn start(
        options: &HealthOptions,
        connector: Connector,
        clock: Monotonic,
        arbiter: ArbiterHandle,
        report: impl Fn(&str, bool) + Send + Sync + 'static,
    ) -> Self {
        let shared = Arc::new(Shared {
            options: options.clone(),
            connector,
            clock,
            schedule: Mutex::new(Schedule::new(options)),
            changed: Notify::new(),
            stopped: AtomicBool::new(false),
            report: Box::new(report),
        });
        let work = shared.clone();
        let task = Task::start("health checks", arbiter, move || Box::pin(run(work.clone())));
        Self { shared, task }
    }

    /// Checks these (`host:port`) from now on and no others. What is known of those that stay, or come back within 10 minutes,
    /// is kept.
    pub fn set<'a>(&self, addresses: impl IntoIterator<Item = &'a str>) {
        let shared = &self.shared;
        shared.schedule.lock().set(addresses.into_iter(), shared.clock.now(), &mut Dice::new());
        shared.changed.notify_one();
    }

    /// Whether a target is healthy; `None` where that is not known.
    pub fn verdict(&self, address: &str) -> Option<bool> {
        self.shared.schedule.lock().verdict(address)
    }

    /// Restarts after panics.
    pub fn restarts(&self) -> u64 {
        self.task.restarts()
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Checker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checker").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

async fn run(shared: Arc<Shared>) {
    let report = |address: &str, healthy| {
        if !shared.stopped.load(Ordering::Relaxed) {
            (shared.report)(address, healthy);
        }
    };
    let known = {
        let mut schedule = shared.schedule.lock();
        schedule.recover(shared.clock.now());
        schedule.verdicts()
    };
    for (address, healthy) in known {
        report(&address, healthy);
    }
    let (mut running, mut dice) = (FuturesUnordered::new(), Dice::new());
    loop {
        let now = shared.clock.now();
        let mut next = None;
        while running.len() < AT_ONCE {
            let mut schedule = shared.schedule.lock();
            let Some(address) = schedule.begin(now) else {
                next = schedule.next();
                break;
            };
            drop(schedule);
            running.push(async {
                let healthy = check(&shared.connector, &address, &shared.options).await;
                (address, healthy)
            });
        }
        let wait = Duration::from_nanos(next.unwrap_or(now).saturating_sub(now));
        tokio::select! {
            Some((address, healthy)) = running.next() => {
                let now = shared.clock.now();
                let turned = shared.schedule.lock().ended(&address, healthy, now, &mut dice);
                if let Some(healthy) = turned {
                    report(&address, healthy);
                }
            }
            () = tokio::time::sleep(wait), if next.is_some() => {}
            () = shared.changed.notified() => {}
        }
    }
}

/// Asks a target once.
async fn check(connector: &Connector, address: &str, options: &HealthOptions) -> bool {
    let asking = async {
        let connection = connector.connect(address, options.timeout).await.ok()?;
        status(connector, address, &options.path, TokioIo::new(connection)).await
    };
    let status = tokio::time::timeout(options.timeout, asking).await.ok().flatten();
    status.is_some_and(|status| (200..400).contains(&status.as_u16()))
}

async fn status(
    connector: &Connector,
    address: &str,
    path: &str,
    io: TokioIo<super::connect::Connection>,
) -> Option<StatusCode> {
    let request = Request::get(match connector.protocol() {
        Protocol::Http1 => path.to_owned(),
        Protocol::Http2 => format!("{}://{address}{path}", if connector.is_tls() { "https" } else { "http" }),
    })
    .header(USER_AGENT, "tidegate-health");
    match connector.protocol() {
        Protocol::Http1 => {
            let request = request.header(HOST, address).body(Empty::<Bytes>::new());
            let (mut sender, driver) = http1::handshake(io).await.ok()?;
            first(sender.send_request(request.ok()?), driver).await
        }
        Protocol::Http2 => {
            let request = request.body(Empty::<Bytes>::new());
            let (mut sender, driver) = http2::handshake(TokioExecutor::new(), io).await.ok()?;
            first(sender.send_request(request.ok()?), driver).await
        }
    }
}

/// The answer's status, while the connection is driven.
async fn first(
    answer: impl Future<Output = hyper::Result<Response<Incoming>>>,
    driver: impl Future<Output = hyper::Result<()>>,
) -> Option<StatusCode> {
    let (mut answer, driver) = (pin!(answer), pin!(driver));
    let answer = tokio::select! {
        biased;
        answer = answer.as_mut() => answer,
        // The end of the connection may come with the answer.
        _ = driver => answer.await,
    };
    answer.ok().map(|answer| answer.status())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicU16, AtomicU64};

    use hyper::service::service_fn;
    use tokio::net::TcpListener;

    use super::*;
    use crate::clock::Stopwatch;

    /// A target that answers with a status; 0 is silence.
    struct Target {
        address: String,
        status: Arc<AtomicU16>,
        asked: Arc<AtomicU64>,
        server: tokio::task::JoinHandle<()>,
    }

    async fn target(protocol: Protocol, status: u16) -> Target {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (status, asked) = (Arc::new(AtomicU16::new(status)), Arc::new(AtomicU64::new(0)));
        let (says, counts) = (status.clone(), asked.clone());
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (says, counts) = (says.clone(), counts.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let (says, counts) = (says.clone(), counts.clone());
                    async move {
                        assert_eq!((request.method().as_str(), request.uri().path()), ("GET", "/health"));
                        counts.fetch_add(1, Ordering::SeqCst);
                        while says.load(Ordering::SeqCst) == 0 {
                            tokio::time::sleep(Duration::from_millis(1)).await;
                        }
                        let answer =
                            Response::builder().status(says.load(Ordering::SeqCst)).body(Empty::<Bytes>::new());
                        Ok::<_, Infallible>(answer.unwrap())
                    }
                });
                tokio::spawn(async move {
                    let io = TokioIo::new(stream);
                    match protocol {
                        Protocol::Http1 => {
                            let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
                        }
                        Protocol::Http2 => {
                            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                            let _ = server.serve_connection(io, service).await;
                        }
                    }
                });
            }
        });
        Target { address, status, asked, server }
    }

    fn options() -> HealthOptions {
        HealthOptions {
            path: String::from("/health"),
            interval: Duration::from_millis(20),
            timeout: Duration::from_millis(500),
            healthy_after: 2,
            unhealthy_after: 2,
        }
    }

    type Told = Arc<Mutex<HashMap<String, Vec<bool>>>>;

    fn checker(connector: Connector, options: &HealthOptions) -> (Checker, Told) {
        let told = Told::default();
        let tells = told.clone();
        let report = move |address: &str, healthy| tells.lock().entry(address.to_owned()).or_default().push(healthy);
        let arbiter = actix::Arbiter::new().handle();
        (Checker::start(options, connector, Monotonic::system(), arbiter, report), told)
    }

    async fn until(what: &str, mut done: impl FnMut() -> bool) {
        let since = Stopwatch::start();
        while !done() {
            assert!(since.elapsed() < Duration::from_secs(10), "not within 10 s: {what}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    #[actix::test]
    async fn targets_turn_with_their_answers() {
        let (a, b) = (target(Protocol::Http1, 200).await, target(Protocol::Http1, 503).await);
        let (checker, told) = checker(Connector::plain(), &options());
        let heard = |target: &Target| told.lock().get(&target.address).cloned().unwrap_or_default();
        checker.set([a.address.as_str(), b.address.as_str()]);
        until("both are known", || heard(&a) == [true] && heard(&b) == [false]).await;
        b.status.store(399, Ordering::SeqCst);
        until("one recovers", || heard(&b) == [false, true]).await;
        a.status.store(404, Ordering::SeqCst);
        until("one falls ill", || heard(&a) == [true, false]).await;
        a.status.store(200, Ordering::SeqCst);
        until("and is well", || checker.verdict(&a.address) == Some(true)).await;
        // Nobody listens there any more.
        a.server.abort();
        until("it is gone", || heard(&a) == [true, false, true, false]).await;
        checker.set([a.address.as_str()]);
        assert_eq!(checker.verdict(&b.address), None);
        let asked = b.asked.load(Ordering::SeqCst);
        let failures = Stopwatch::start();
        while failures.elapsed() < options().interval * 5 {
            tokio::time::sleep(options().interval).await;
        }
        assert!(b.asked.load(Ordering::SeqCst) <= asked + 1, "one may have been under way");
        assert_eq!(heard(&b), [false, true]);
    }

    #[actix::test]
    async fn silence_is_a_failure_and_http2_is_spoken() {
        let silent = target(Protocol::Http1, 0).await;
        let options = HealthOptions { timeout: Duration::from_millis(50), ..options() };
        let (first, told) = checker(Connector::plain(), &options);
        first.set([silent.address.as_str()]);
        until("silence is noticed", || told.lock().get(&silent.address) == Some(&vec![false])).await;
        let other = target(Protocol::Http2, 204).await;
        let (second, told) = checker(Connector::http2(), &self::options());
        second.set([other.address.as_str(), silent.address.as_str()]);
        until("HTTP/2 is healthy", || second.verdict(&other.address) == Some(true)).await;
        until("HTTP/1.1 is not", || second.verdict(&silent.address) == Some(false)).await;
        drop(second);
        until("it stops", || Arc::strong_count(&told) == 1).await;
    }

    #[actix::test]
    async fn a_panic_does_not_end_the_checks() {
        let well = target(Protocol::Http1, 200).await;
        let calls = Arc::new(AtomicU64::new(0));
        let counts = calls.clone();
        let report = move |_: &str, _| assert!(counts.fetch_add(1, Ordering::SeqCst) > 0, "as the test asks");
        let arbiter = actix::Arbiter::new().handle();
        let checker = Checker::start(&options(), Connector::plain(), Monotonic::system(), arbiter, report);
        checker.set([well.address.as_str()]);
        until("it is told again", || calls.load(Ordering::SeqCst) == 2 && checker.restarts() == 1).await;
        well.status.store(500, Ordering::SeqCst);
        until("and checked", || calls.load(Ordering::SeqCst) == 3).await;
        assert_eq!(checker.verdict(&well.address), Some(false));
    }
}
