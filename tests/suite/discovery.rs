//! Discovery: targets follow a real etcd and a Consul that misbehaves to order, and outlive them.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use actix::Arbiter;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tidegate::clock::Monotonic;
use tidegate::gateway::connect::Connector;
use tidegate::gateway::discovery::{Fault, Origin, Watcher};
use tidegate::gateway::options::{Discovery, Secret, TargetOptions};
use tokio::sync::Notify;

use crate::services::{Line, Proxy, Service};

const PATIENCE: Duration = Duration::from_secs(20);

/// A watcher, and all that it told.
struct Followed {
    watcher: Watcher,
    told: Arc<Mutex<Vec<Vec<String>>>>,
}

fn follow(discovery: &Discovery, folder: &Path) -> Followed {
    let told = Arc::<Mutex<Vec<Vec<String>>>>::default();
    let tells = told.clone();
    let changed = move |targets: &[TargetOptions]| {
        tells.lock().unwrap().push(targets.iter().map(|t| format!("{} {}", t.address, t.weight)).collect());
    };
    let arbiter = Arbiter::current();
    Followed { watcher: Watcher::start("users", discovery, folder, Monotonic::system(), arbiter, changed), told }
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let since = Instant::now();
    while !done() {
        assert!(since.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

impl Followed {
    fn now(&self) -> Vec<String> {
        self.told.lock().unwrap().last().cloned().unwrap_or_default()
    }

    async fn becomes(&self, targets: &[&str]) {
        let what = format!("{targets:?}");
        let held = until(&what, || self.now() == targets);
        tokio::select! {
            () = held => {}
            () = tokio::time::sleep(PATIENCE - Duration::from_secs(1)) => {
                panic!("not {what} but {:?}: {:?}", self.now(), self.watcher.snapshot());
            }
        }
    }

    /// Whether they were told, and perhaps others after them.
    async fn becomes_once(&self, targets: &[&str]) {
        until(&format!("once {targets:?}"), || self.told.lock().unwrap().iter().any(|told| told == targets)).await;
    }

    async fn fault(&self, fault: Fault) {
        until(&format!("{fault:?}"), || self.watcher.snapshot().fault.as_ref() == Some(&fault)).await;
    }

    async fn well(&self) {
        until("it is well", || self.watcher.snapshot().fault.is_none()).await;
    }

    async fn saved(&self) {
        until("it is saved", || self.watcher.snapshot().saved).await;
    }

    /// Whatever was told, it was never nothing.
    fn never_empty(&self) {
        assert!(self.told.lock().unwrap().iter().all(|targets| !targets.is_empty()));
    }
}

/// A client of etcd that is not Tidegate's.
pub struct Etcd(pub Service);

impl Etcd {
    pub fn start() -> Self {
        Self(Service::start("etcd", &[]))
    }

    async fn call(&self, path: &str, body: &Value) -> Value {
        let url = format!("http://{}{path}", self.0.address);
        let answer =
            crate::client::post(&url, &[("content-type", "application/json")], body.to_string().into_bytes()).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.json()
    }

    pub async fn put(&self, key: &str, value: &str) {
        self.call("/v3/kv/put", &json!({"key": STANDARD.encode(key), "value": STANDARD.encode(value)})).await;
    }

    pub async fn delete(&self, key: &str) {
        self.call("/v3/kv/deleterange", &json!({"key": STANDARD.encode(key)})).await;
    }

    async fn compact(&self) {
        let answer = self.call("/v3/kv/range", &json!({"key": STANDARD.encode("x")})).await;
        self.call("/v3/kv/compaction", &json!({"revision": answer["header"]["revision"], "physical": true})).await;
    }

    fn discovery(&self) -> Discovery {
        etcd_at(&[&self.0.address])
    }
}

fn etcd_at(endpoints: &[&str]) -> Discovery {
    Discovery::Etcd {
        endpoints: endpoints.iter().map(|endpoint| String::from(*endpoint)).collect(),
        prefix: String::from("/users/"),
    }
}

#[actix_web::test]
async fn targets_follow_etcd_and_the_last_ones_stay() {
    let (etcd, folder) = (Etcd::start(), tempfile::tempdir().unwrap());
    let followed = follow(&etcd.discovery(), folder.path());
    followed.fault(Fault::Empty).await;
    assert_eq!(followed.now(), [""; 0]);
    etcd.put("/users/a", "10.0.0.1:80").await;
    followed.becomes(&["10.0.0.1:80 1"]).await;
    tokio::time::timeout(PATIENCE, followed.watcher.known()).await.unwrap();
    etcd.put("/users/b", r#"{"address": "b.internal:81", "weight": 5}"#).await;
    // Somebody else's.
    etcd.put("/users", "10.0.0.9:80").await;
    etcd.put("/users0", "10.0.0.9:80").await;
    followed.becomes(&["10.0.0.1:80 1", "b.internal:81 5"]).await;
    etcd.put("/users/a", r#"{"address": "10.0.0.1:80", "weight": 2}"#).await;
    followed.becomes(&["10.0.0.1:80 2", "b.internal:81 5"]).await;
    // What cannot be read costs only itself.
    etcd.put("/users/c", "not an address").await;
    etcd.put("/users/d", "").await;
    etcd.put("/users/e", "10.0.0.5:85").await;
    followed.becomes(&["10.0.0.1:80 2", "10.0.0.5:85 1", "b.internal:81 5"]).await;
    until("two are rejected", || followed.watcher.snapshot().rejected == 2).await;
    assert!(followed.watcher.snapshot().fault.is_none());
    for key in ["/users/a", "/users/c", "/users/d", "/users/e"] {
        etcd.delete(key).await;
    }
    followed.becomes(&["b.internal:81 5"]).await;
    etcd.put("/users/b", "spoilt").await;
    followed.fault(Fault::AllBad(1)).await;
    etcd.delete("/users/b").await;
    followed.fault(Fault::Empty).await;
    assert_eq!(followed.now(), ["b.internal:81 5"], "the last ones stay");
    etcd.put("/users/f", "10.0.0.6:86").await;
    followed.becomes(&["10.0.0.6:86 1"]).await;
    followed.well().await;
    let snapshot = followed.watcher.snapshot();
    assert_eq!((snapshot.source, snapshot.origin, snapshot.restarts), ("etcd", Origin::Registry, 0));
    assert!(snapshot.age.unwrap() < PATIENCE && snapshot.counts.suspect >= 3);
    followed.never_empty();
}

#[actix_web::test]
async fn etcd_may_die_and_come_back() {
    let (etcd, folder) = (Etcd::start(), tempfile::tempdir().unwrap());
    etcd.put("/users/a", "10.0.0.1:80").await;
    let followed = follow(&etcd.discovery(), folder.path());
    followed.becomes(&["10.0.0.1:80 1"]).await;
    etcd.0.kill(None);
    until("its death is noticed", || followed.watcher.snapshot().fault.is_some()).await;
    assert_eq!(followed.now(), ["10.0.0.1:80 1"]);
    etcd.0.restart();
    etcd.put("/users/b", "10.0.0.2:80").await;
    followed.becomes(&["10.0.0.1:80 1", "10.0.0.2:80 1"]).await;
    followed.well().await;
    followed.never_empty();
    assert!(followed.watcher.snapshot().counts.failures >= 1);
}

#[actix_web::test]
async fn a_cold_start_without_etcd_is_served_from_the_disk() {
    let (etcd, folder) = (Etcd::start(), tempfile::tempdir().unwrap());
    etcd.put("/users/a", "10.0.0.1:80").await;
    etcd.put("/users/b", r#"{"address": "10.0.0.2:80", "weight": 7}"#).await;
    let followed = follow(&etcd.discovery(), folder.path());
    followed.becomes(&["10.0.0.1:80 1", "10.0.0.2:80 7"]).await;
    followed.saved().await;
    drop(followed);
    etcd.0.kill(None);
    let followed = follow(&etcd.discovery(), folder.path());
    followed.becomes(&["10.0.0.1:80 1", "10.0.0.2:80 7"]).await;
    let snapshot = followed.watcher.snapshot();
    assert_eq!((snapshot.origin, snapshot.age), (Origin::Disk, None));
    assert!(snapshot.fault.is_some());
    // Another question has another answer.
    let Discovery::Etcd { endpoints, .. } = etcd.discovery() else { unreachable!() };
    let other = follow(&Discovery::Etcd { endpoints, prefix: String::from("/orders/") }, folder.path());
    until("it has tried", || other.watcher.snapshot().counts.failures >= 3).await;
    assert_eq!(other.watcher.snapshot().origin, Origin::Nowhere);
    etcd.0.restart();
    etcd.delete("/users/a").await;
    followed.becomes(&["10.0.0.2:80 7"]).await;
    assert_eq!(followed.watcher.snapshot().origin, Origin::Registry);
    followed.saved().await;
    let kept = std::fs::read_to_string(folder.path().join("discovery-users.json")).unwrap();
    assert!(kept.contains("10.0.0.2:80") && !kept.contains("10.0.0.1:80"), "{kept}");
    followed.never_empty();
}

#[actix_web::test]
async fn what_was_compacted_meanwhile_is_read_anew() {
    let (etcd, folder) = (Etcd::start(), tempfile::tempdir().unwrap());
    let line = Proxy::to(&etcd.0.address);
    etcd.put("/users/a", "10.0.0.1:80").await;
    let followed = follow(&etcd_at(&[&line.address.to_string()]), folder.path());
    followed.becomes(&["10.0.0.1:80 1"]).await;
    line.set(Line::Cut);
    until("the cut is noticed", || followed.watcher.snapshot().fault.is_some()).await;
    for n in 0..50 {
        etcd.put("/users/b", &format!("10.0.1.{n}:80")).await;
    }
    etcd.delete("/users/a").await;
    etcd.compact().await;
    line.set(Line::Good);
    followed.becomes(&["10.0.1.49:80 1"]).await;
    followed.well().await;
    followed.never_empty();
}

#[actix_web::test]
async fn an_endpoint_that_is_dead_costs_nothing_while_another_lives() {
    let (etcd, folder) = (Etcd::start(), tempfile::tempdir().unwrap());
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    etcd.put("/users/a", "10.0.0.1:80").await;
    // Wherever it begins, it finds the one that lives.
    for _ in 0..4 {
        let followed = follow(&etcd_at(&[&dead, &etcd.0.address, &dead]), folder.path());
        followed.becomes(&["10.0.0.1:80 1"]).await;
        followed.well().await;
        assert_eq!(followed.watcher.snapshot().origin, Origin::Registry);
    }
}

#[actix_web::test]
async fn a_burst_of_changes_is_told_in_few_words_and_soon() {
    let (etcd, folder) = (Etcd::start(), tempfile::tempdir().unwrap());
    etcd.put("/users/a", "10.0.0.1:80").await;
    let followed = follow(&etcd.discovery(), folder.path());
    followed.becomes(&["10.0.0.1:80 1"]).await;
    let begun = Instant::now();
    for n in 0..300 {
        etcd.put("/users/b", &format!("10.0.{}.{}:80", n / 100, n % 100)).await;
    }
    let written = begun.elapsed();
    followed.becomes(&["10.0.0.1:80 1", "10.0.2.99:80 1"]).await;
    let told = followed.told.lock().unwrap().len() - 1;
    let most = begun.elapsed().as_millis() / 100 + 2;
    assert!(told as u128 <= most, "told {told} times in {:?}", begun.elapsed());
    println!("300 changes in {written:?} were told {told} times");
    // A change after a quiet while is told at once.
    let mut delays = vec![];
    for n in 0..20 {
        tokio::time::sleep(Duration::from_millis(120)).await;
        let address = format!("10.1.0.{n}:80");
        etcd.put("/users/b", &address).await;
        let put = Instant::now();
        until("it is told", || followed.now().iter().any(|target| target.starts_with(&address))).await;
        delays.push(put.elapsed());
    }
    delays.sort();
    println!("a change is told after {:?} at the median, {:?} at most", delays[10], delays[19]);
    assert!(delays[10] < Duration::from_millis(100), "{delays:?}");
}

#[actix_web::test]
async fn a_registry_hears_no_more_of_who_was_dropped() {
    let consul = Consul::start().await;
    consul.says(7, 200, nodes(&["10.0.0.1"]));
    let folder = tempfile::tempdir().unwrap();
    let followed = follow(&consul.discovery(), folder.path());
    followed.becomes(&["10.0.0.1:80 1"]).await;
    until("a query waits", || consul.0.open.load(Ordering::SeqCst) == 1).await;
    drop(followed);
    until("its connection is closed", || consul.0.open.load(Ordering::SeqCst) == 0).await;
}

#[actix_web::test]
async fn a_watch_that_cannot_go_on_is_begun_anew() {
    // An etcd that says: what you want to hear from there on is compacted; or: there is no such revision yet.
    let compacted = r#"{"result":{"header":{"revision":"8"},"created":true}}
        {"result":{"header":{"cluster_id":"1"},"canceled":true,"compact_revision":"8"}}"#;
    let set_back = r#"{"result":{"header":{"revision":"3"},"created":true}}"#;
    for (n, broken) in [compacted, set_back].into_iter().enumerate() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let hears = asked.clone();
        actix_web::rt::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let hears = hears.clone();
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let hears = hears.clone();
                    async move {
                        let path = request.uri().path().to_owned();
                        let body: Value = serde_json::from_slice(&request.collect().await.unwrap().to_bytes()).unwrap();
                        let watches = path == "/v3/watch";
                        let (revision, first) = {
                            let mut hears = hears.lock().unwrap();
                            hears.push(format!("{path} {}", body["create_request"]["start_revision"]));
                            (4 * hears.len() + 4, hears.len() <= 2)
                        };
                        let text = match (watches, first) {
                            (true, true) => broken.lines().map(|line| format!("{}\n", line.trim())).collect(),
                            // The end of the answer is the end of the watch.
                            (true, false) => {
                                String::from("{\"result\":{\"header\":{\"revision\":\"90\"},\"created\":true}}\n")
                            }
                            (false, _) => {
                                let value = STANDARD.encode(format!("10.0.0.{revision}:80"));
                                let kv =
                                    json!({"key": STANDARD.encode("/users/a"), "value": value, "mod_revision": "2"});
                                json!({"header": {"revision": revision.to_string()}, "kvs": [kv]}).to_string()
                            }
                        };
                        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
                    }
                });
                let serving =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                actix_web::rt::spawn(async move { drop(serving.await) });
            }
        });
        let folder = tempfile::tempdir().unwrap();
        let followed = follow(&etcd_at(&[&address]), folder.path());
        until("it has read again, and watches from there", || asked.lock().unwrap().len() >= 4).await;
        let asked = asked.lock().unwrap()[..4].to_vec();
        let expected = ["/v3/kv/range null", "/v3/watch \"9\"", "/v3/kv/range null", "/v3/watch \"17\""];
        assert_eq!(asked, expected, "case {n}");
        followed.becomes_once(&["10.0.0.16:80 1"]).await;
        followed.never_empty();
    }
}

#[actix_web::test]
async fn a_panic_in_what_is_told_does_not_end_discovery() {
    let consul = Consul::start().await;
    consul.says(10, 200, nodes(&["10.0.0.1"]));
    let folder = tempfile::tempdir().unwrap();
    let calls = Arc::new(AtomicU64::new(0));
    let counts = calls.clone();
    let changed = move |targets: &[TargetOptions]| {
        assert_eq!(targets.len(), 1);
        assert!(counts.fetch_add(1, Ordering::SeqCst) > 0, "as the test asks");
    };
    let arbiter = actix::Arbiter::new();
    let clock = Monotonic::system();
    let watcher = Watcher::start("users", &consul.discovery(), folder.path(), clock, arbiter.handle(), changed);
    until("it is told again", || calls.load(Ordering::SeqCst) == 2).await;
    assert_eq!(watcher.snapshot().restarts, 1);
    consul.says(11, 200, nodes(&["10.0.0.2"]));
    until("and followed", || calls.load(Ordering::SeqCst) == 3).await;
    let target = TargetOptions { address: String::from("10.0.0.2:80"), weight: 1 };
    assert_eq!(watcher.snapshot().targets, [target]);
}

/// A Consul that says what it is told to. Like the real one it lets a query wait that names its index.
struct Consul(Arc<Agent>);

struct Agent {
    address: String,
    state: Mutex<(u64, u16, Bytes)>,
    changed: Notify,
    /// Paths and tokens of the queries so far.
    asked: Mutex<VecDeque<(String, Option<String>)>>,
    open: AtomicU64,
    delay: AtomicU64,
}

impl Consul {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let agent = Arc::new(Agent {
            address: listener.local_addr().unwrap().to_string(),
            state: Mutex::new((1, 200, Bytes::from("[]"))),
            changed: Notify::new(),
            asked: Mutex::default(),
            open: AtomicU64::new(0),
            delay: AtomicU64::new(0),
        });
        let the_agent = agent.clone();
        actix_web::rt::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let agent = the_agent.clone();
                actix_web::rt::spawn(async move {
                    agent.open.fetch_add(1, Ordering::SeqCst);
                    let asked = agent.clone();
                    let service = service_fn(move |request| answer(asked.clone(), request));
                    let serving = hyper::server::conn::http1::Builder::new();
                    let _ = serving.serve_connection(TokioIo::new(stream), service).await;
                    agent.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self(agent)
    }

    fn says(&self, index: u64, status: u16, body: impl Into<Bytes>) {
        *self.0.state.lock().unwrap() = (index, status, body.into());
        self.0.changed.notify_waiters();
    }

    fn discovery(&self) -> Discovery {
        Discovery::Consul {
            address: self.0.address.clone(),
            service: String::from("users"),
            tag: None,
            token: Some(Secret(String::from("s3cret"))),
        }
    }

    fn asked(&self) -> Vec<(String, Option<String>)> {
        self.0.asked.lock().unwrap().iter().cloned().collect()
    }
}

async fn answer<B>(agent: Arc<Agent>, request: Request<B>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().to_string();
    let token = request.headers().get("x-consul-token").map(|token| token.to_str().unwrap().to_owned());
    agent.asked.lock().unwrap().push_back((path.clone(), token));
    let waits_for = path.split("index=").nth(1).and_then(|rest| rest.split('&').next()?.parse::<u64>().ok());
    let end = tokio::time::sleep(Duration::from_secs(30));
    let mut end = std::pin::pin!(end);
    loop {
        let changed = agent.changed.notified();
        let (index, status, _) = *agent.state.lock().unwrap();
        if status != 200 || waits_for != Some(index) {
            break;
        }
        tokio::select! {
            () = changed => {}
            () = end.as_mut() => break,
        }
    }
    tokio::time::sleep(Duration::from_millis(agent.delay.load(Ordering::SeqCst))).await;
    let (index, status, body) = agent.state.lock().unwrap().clone();
    let answer = Response::builder().status(status).header("X-Consul-Index", index).body(Full::new(body));
    Ok(answer.unwrap())
}

fn nodes(addresses: &[&str]) -> String {
    let node = |address: &&str| json!({"Node": {"Address": "10.9.9.9"}, "Service": {"Address": address, "Port": 80}});
    Value::from(addresses.iter().map(node).collect::<Vec<_>>()).to_string()
}

#[actix_web::test]
async fn targets_follow_consul_whatever_it_says() {
    let consul = Consul::start().await;
    consul.says(10, 200, nodes(&["10.0.0.1"]));
    let folder = tempfile::tempdir().unwrap();
    let followed = follow(&consul.discovery(), folder.path());
    followed.becomes(&["10.0.0.1:80 1"]).await;
    consul.says(11, 200, nodes(&["10.0.0.2", "10.0.0.1", "10.0.0.2"]));
    followed.becomes(&["10.0.0.1:80 1", "10.0.0.2:80 1"]).await;
    let waiting = "/v1/health/service/users?passing=1&index=11&wait=30s";
    until("it waits", || consul.asked().last().unwrap().0 == waiting).await;
    assert!(consul.asked().iter().all(|(_, token)| token.as_deref() == Some("s3cret")));
    assert!(!consul.asked()[0].0.contains("index="), "the first does not wait");

    // The index goes back: it starts over, and misses nothing.
    consul.says(3, 200, nodes(&["10.0.0.3"]));
    followed.becomes(&["10.0.0.3:80 1"]).await;
    until("it waits for the new index", || consul.asked().last().unwrap().0.contains("index=3&")).await;
    let paths: Vec<String> = consul.asked().into_iter().map(|(path, _)| path).collect();
    assert!(!paths[paths.len() - 2].contains("index="), "{paths:?}");

    // Nothing, however often and in whatever words.
    for (n, empty) in ["[]", "null", "[]"].into_iter().enumerate() {
        consul.says(20 + n as u64, 200, empty);
        followed.fault(Fault::Empty).await;
        consul.says(30 + n as u64, 200, nodes(&["10.0.0.3"]));
        followed.well().await;
    }
    // One bad node among good ones, and then bad ones alone.
    let mixed = json!([{"Service": {"Address": "10.0.0.4", "Port": 80}}, {"Service": {"Port": "x"}}, 7]);
    consul.says(40, 200, mixed.to_string());
    followed.becomes(&["10.0.0.4:80 1"]).await;
    assert_eq!(followed.watcher.snapshot().rejected, 2);
    consul.says(41, 200, "[7]");
    followed.fault(Fault::AllBad(1)).await;
    // Errors and nonsense.
    for (status, body, fault) in [
        (500, "rpc error", Fault::Status(500)),
        (403, "ACL not found", Fault::Refused),
        (200, "<html>", Fault::Malformed),
        (429, "", Fault::Status(429)),
        (200, "[{]", Fault::Malformed),
    ] {
        consul.says(50, status, body);
        followed.fault(fault).await;
    }
    consul.says(51, 200, Bytes::from(vec![b' '; (16 << 20) + 1]));
    followed.fault(Fault::TooLong).await;
    assert_eq!(followed.now(), ["10.0.0.4:80 1"]);
    let before = consul.asked().len();
    until("it goes on asking, with pauses", || consul.asked().len() > before + 2).await;
    consul.says(52, 200, nodes(&["10.0.0.5"]));
    followed.becomes(&["10.0.0.5:80 1"]).await;
    followed.well().await;
    followed.never_empty();
    assert_eq!(followed.watcher.snapshot().restarts, 0);
}

#[actix_web::test]
async fn a_slow_consul_is_waited_for_and_a_silent_one_is_not_for_ever() {
    let consul = Consul::start().await;
    consul.says(10, 200, nodes(&["10.0.0.1"]));
    let folder = tempfile::tempdir().unwrap();
    let first = follow(&consul.discovery(), folder.path());
    first.becomes(&["10.0.0.1:80 1"]).await;
    first.saved().await;
    // Slow: at the start the disk serves, until it has answered.
    consul.0.delay.store(2_000, Ordering::SeqCst);
    consul.says(11, 200, nodes(&["10.0.0.2"]));
    let second = follow(&consul.discovery(), folder.path());
    second.becomes(&["10.0.0.1:80 1"]).await;
    assert_eq!((second.watcher.snapshot().origin, second.watcher.snapshot().fault), (Origin::Disk, None));
    second.becomes(&["10.0.0.2:80 1"]).await;
    assert_eq!(second.watcher.snapshot().origin, Origin::Registry);
    first.becomes(&["10.0.0.2:80 1"]).await;
    // Silent.
    consul.0.delay.store(60_000, Ordering::SeqCst);
    let third = follow(&consul.discovery(), folder.path());
    third.fault(Fault::Late).await;
    third.becomes(&["10.0.0.2:80 1"]).await;
}

#[actix_web::test]
async fn an_index_that_never_rests_does_not_make_a_storm() {
    let consul = Consul::start().await;
    let folder = tempfile::tempdir().unwrap();
    consul.says(1, 200, nodes(&["10.0.0.1"]));
    let followed = follow(&consul.discovery(), folder.path());
    followed.becomes(&["10.0.0.1:80 1"]).await;
    let (before, begun) = (consul.asked().len(), Instant::now());
    let mut index = 2;
    while begun.elapsed() < Duration::from_millis(1500) {
        consul.says(index, 200, nodes(&["10.0.0.1"]));
        index += 1;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let asked = consul.asked().len() - before;
    let most = begun.elapsed().as_millis() as usize / 100 + 2;
    assert!((5..=most).contains(&asked), "{asked} queries in {:?}", begun.elapsed());
    assert_eq!(followed.told.lock().unwrap().len(), 1, "nothing changed");
}

#[actix_web::test]
async fn a_real_nginx_is_reached_and_seen_to_close() {
    let config = tempfile::NamedTempFile::new().unwrap();
    let text = "server { listen 127.0.0.1:@PORT@; keepalive_timeout 1s; location / { return 200 \"hello\\n\"; } }";
    std::fs::write(config.path(), text).unwrap();
    let nginx = Service::start("nginx", &[config.path().to_str().unwrap()]);
    let connection = Connector::plain().connect(&nginx.address, PATIENCE).await.unwrap();
    let looks = connection.liveness();
    let (mut sender, driver) = hyper::client::conn::http1::handshake(TokioIo::new(connection)).await.unwrap();
    // Driven by hand: what comes after the answer is noticed by looking alone.
    let mut driver = std::pin::pin!(driver);
    let request = Request::get("/").header("host", "localhost").body(Full::new(Bytes::new())).unwrap();
    let exchange = async {
        let answer = sender.send_request(request).await.unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "hello\n");
    };
    tokio::select! {
        () = exchange => {}
        ended = driver.as_mut() => panic!("{ended:?}"),
    }
    assert!(!looks.is_stale());
    until("nginx closes what is idle", || looks.is_stale()).await;
    nginx.kill(None);
    let error = Connector::plain().connect(&nginx.address, PATIENCE).await.unwrap_err();
    assert_eq!(error.to_string(), "the connection was refused");
    nginx.restart();
    assert!(Connector::plain().connect(&nginx.address, PATIENCE).await.is_ok());
}
