//! The gateway when what is behind it fails: killed, hanging up, silent, slow, too small, moving; and when it has to stop itself.

mod balance;
mod breaker;
mod hangups;
mod kill;
mod overload;
mod retries;
mod shared_limits;
mod timeouts;

use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::backend::Backend;
use crate::support::{TestApp, eventually};

/// A gateway's settings: an upstream `a` of these backends with further lines, and a route to it for every path with further
/// lines of its own.
fn gateway(backends: &[&Backend], upstream: &str, route: &str) -> String {
    let addresses: Vec<String> = backends.iter().map(|backend| backend.address.to_string()).collect();
    of_addresses(&addresses, upstream, route)
}

fn of_addresses(addresses: &[String], upstream: &str, route: &str) -> String {
    let mut toml = String::from("workers = 2\n");
    toml.push_str(&service("a", addresses, upstream));
    toml.push_str(&way("all", "/", "a", route));
    toml
}

fn service(name: &str, addresses: &[String], lines: &str) -> String {
    format!("[gateway.upstreams.{name}]\ntargets = {addresses:?}\n{lines}\n")
}

fn way(name: &str, path: &str, upstream: &str, lines: &str) -> String {
    format!("[[gateway.routes]]\nname = \"{name}\"\npath = \"{path}\"\nupstream = \"{upstream}\"\n{lines}\n")
}

/// A client's connection.
struct Line(BufReader<TcpStream>);

/// An answer.
#[derive(Debug)]
struct Got {
    status: u16,
    /// In lower case.
    head: String,
    body: String,
}

impl Got {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    }

    /// The stable code of an error.
    fn code(&self) -> String {
        let body: serde_json::Value = serde_json::from_str(&self.body).unwrap_or_default();
        body["error"]["code"].as_str().unwrap_or_default().to_owned()
    }
}

impl Line {
    fn to(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Sends a request; `headers` are whole lines.
    fn send(&mut self, method: &str, path: &str, headers: &str, body: &str) -> std::io::Result<()> {
        let (length, body) = match method {
            "GET" => (String::new(), ""),
            _ => (format!("content-length: {}\r\n", body.len()), body),
        };
        let request = format!("{method} {path} HTTP/1.1\r\nhost: t\r\n{length}{headers}\r\n{body}");
        self.0.get_mut().write_all(request.as_bytes())
    }

    /// Reads an answer, whose length must be known.
    fn read(&mut self) -> std::io::Result<Got> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if self.0.read_line(&mut head)? == 0 {
                return Err(Error::from(ErrorKind::UnexpectedEof));
            }
        }
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(ErrorKind::InvalidData)?;
        let mut got = Got { status, head: head.to_ascii_lowercase(), body: String::new() };
        let length: usize = got.header("content-length").and_then(|n| n.parse().ok()).ok_or(ErrorKind::InvalidData)?;
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        got.body = String::from_utf8_lossy(&body).into_owned();
        Ok(got)
    }

    fn ask(&mut self, method: &str, path: &str, headers: &str, body: &str) -> std::io::Result<Got> {
        self.send(method, path, headers, body)?;
        self.read()
    }

    fn is_to_close(got: &Got) -> bool {
        got.header("connection").is_some_and(|connection| connection.contains("close"))
    }
}

/// One request over a connection of its own.
fn ask(address: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> Got {
    Line::to(address).and_then(|mut line| line.ask(method, path, headers, body)).expect("an answer")
}

fn get(address: SocketAddr, path: &str) -> Got {
    ask(address, "GET", path, "", "")
}

/// What a client of a [`Load`] sends next.
struct Ask {
    method: &'static str,
    path: String,
    headers: String,
    body: String,
}

impl Ask {
    fn get(path: impl Into<String>) -> Self {
        Self { method: "GET", path: path.into(), headers: String::new(), body: String::new() }
    }

    fn post(path: impl Into<String>, body: impl Into<String>) -> Self {
        Self { method: "POST", path: path.into(), headers: String::new(), body: body.into() }
    }
}

/// How a request of a [`Load`] went.
#[derive(Debug)]
struct Went {
    method: &'static str,
    path: String,
    body: String,
    begun: Instant,
    ended: Instant,
    /// Whether it was sent over a connection that had been used.
    kept: bool,
    /// `None` if the connection ended instead.
    got: Option<Got>,
}

impl Went {
    fn status(&self) -> u16 {
        self.got.as_ref().map_or(0, |got| got.status)
    }
}

/// Clients that each send one request after the other over a connection that they keep.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Vec<Went>>>,
}

impl Load {
    /// `next` says what client `n` sends as its `i`-th, and ends with `None`.
    fn start(
        clients: usize,
        address: impl Fn(usize) -> SocketAddr,
        next: impl Fn(usize, usize) -> Option<Ask> + Send + Sync + 'static,
    ) -> Self {
        Self::paced(clients, Duration::ZERO, address, next)
    }

    /// The same, where each begins a request every `pace`, unless the one before is still under way.
    fn paced(
        clients: usize,
        pace: Duration,
        address: impl Fn(usize) -> SocketAddr,
        next: impl Fn(usize, usize) -> Option<Ask> + Send + Sync + 'static,
    ) -> Self {
        let (stop, done, next) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default(), Arc::new(next));
        let count = clients;
        let clients = (0..count).map(|client| {
            let (stop, done, next, address) = (stop.clone(), done.clone(), next.clone(), address(client));
            std::thread::spawn(move || {
                let (mut line, mut all) = (None, vec![]);
                // Evenly, not all at once.
                let mut due = Instant::now() + pace * client as u32 / count as u32;
                for i in 0.. {
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    due = (due + pace).max(Instant::now());
                    let asked = next(client, i).filter(|_| !stop.load(Ordering::SeqCst));
                    let Some(Ask { method, path, headers, body }) = asked else { break };
                    let (begun, kept) = (Instant::now(), line.is_some());
                    let mut sent = || -> std::io::Result<Got> {
                        let line = match &mut line {
                            Some(line) => line,
                            None => line.insert(Line::to(address)?),
                        };
                        line.ask(method, &path, &headers, &body)
                    };
                    let got = sent().ok();
                    if got.as_ref().is_none_or(Line::is_to_close) {
                        line = None;
                    }
                    if got.is_none() {
                        // Who is refused does not insist.
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    all.push(Went { method, path, body, begun, ended: Instant::now(), kept, got });
                    done.fetch_add(1, Ordering::SeqCst);
                }
                all
            })
        });
        Self { clients: clients.collect(), stop, done }
    }

    /// Requests that have ended.
    fn done(&self) -> u64 {
        self.done.load(Ordering::SeqCst)
    }

    async fn reaches(&self, count: u64) {
        eventually("requests are answered", async || self.done() >= count).await;
    }

    /// No further ones.
    fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// Waits until all have ended; those of all clients.
    async fn end(self) -> Vec<Went> {
        eventually("all clients are done", async || self.clients.iter().all(JoinHandle::is_finished)).await;
        self.clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    }
}

/// Those that were not answered 200, for a message.
fn failures(all: &[Went]) -> Vec<String> {
    let failed = all.iter().filter(|went| went.status() != 200);
    failed.map(|w| format!("{} {}: {} {:?}", w.method, w.path, w.status(), w.got.as_ref().map(Got::code))).collect()
}

/// What holds whoever passes until it is opened.
#[derive(Clone, Default)]
struct Barrier(Arc<(Mutex<bool>, Condvar)>);

impl Barrier {
    fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    fn pass(&self) {
        let open = self.0.0.lock().unwrap();
        let _ = self.0.1.wait_timeout_while(open, Duration::from_secs(20), |open| !*open).unwrap();
    }
}

impl Drop for Barrier {
    fn drop(&mut self) {
        // A test that failed leaves nobody waiting for long.
        if std::thread::panicking() {
            self.open();
        }
    }
}

/// Starts it, and lets it begin to listen: a test that then blocks its thread blocks nothing else.
async fn start(toml: &str) -> TestApp {
    let app = TestApp::with_gateway(toml, &[]).await;
    assert_eq!(app.get("/health/live").await.status, 200);
    app
}

fn at(app: &TestApp) -> SocketAddr {
    app.app().gateway_address().unwrap()
}

/// The value of a series of `/metrics`, named as there, with its labels in any order.
async fn metric(app: &TestApp, series: &str) -> Option<f64> {
    let (name, labels) = series.trim_end_matches('}').split_once('{').unwrap_or((series, ""));
    let text = app.get("/metrics").await.text();
    text.lines().find_map(|line| {
        let (its_name, rest) = line.split_once('{')?;
        let (its_labels, value) = rest.rsplit_once("} ")?;
        let is = its_name == name && labels.split(',').all(|label| its_labels.split(',').any(|its| its == label));
        is.then(|| value.trim().parse().ok()).flatten()
    })
}

async fn metric_becomes(app: &TestApp, series: &str, value: f64) {
    eventually(&format!("{series} is {value}"), async || metric(app, series).await == Some(value)).await;
}

/// Starts a backend anew where it was, as soon as the port is free.
async fn again(
    address: SocketAddr,
    answer: impl Fn(&crate::backend::Seen) -> crate::backend::Reply + Send + Sync + Clone + 'static,
) -> Backend {
    eventually("the port is free again", async || std::net::TcpListener::bind(address).is_ok()).await;
    Backend::start_on(&address.to_string(), answer)
}
