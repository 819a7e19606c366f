//! Targets that close connections they had kept: announced or not, after each so many answers.

use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{Ask, Load, at, failures, service, start, way};
use crate::backend::{Backend, Reply};
use crate::services::Service;

/// Of all requests; half of them are posts.
const REQUESTS: usize = 20_000;
/// Connections of clients to each target.
const CLIENTS: usize = 2;

#[actix_web::test]
async fn a_target_that_hangs_up_after_each_kth_answer_is_not_noticed() {
    let arrived: Arc<Mutex<HashMap<String, u32>>> = Arc::default();
    let cases: Vec<(u64, bool)> = [1, 2, 3, 7].into_iter().flat_map(|k| [(k, true), (k, false)]).collect();
    let mut toml = String::from("workers = 2\n");
    let mut backends = vec![];
    for (n, (k, announced)) in cases.iter().copied().enumerate() {
        let arrived = arrived.clone();
        let backend = Backend::start(move |seen| {
            if seen.method == "POST" {
                let id = String::from_utf8_lossy(&seen.body).into_owned();
                *arrived.lock().unwrap().entry(id).or_default() += 1;
            }
            let last = (seen.on_connection + 1) % k == 0;
            let headers: &[_] = if last && announced { &[("connection", "close")] } else { &[] };
            let reply = Reply::with(200, headers, "ok");
            if last { reply.close() } else { reply }
        });
        toml.push_str(&service(&format!("u{n}"), &[backend.address.to_string()], ""));
        toml.push_str(&way(&format!("r{n}"), &format!("/{n}/"), &format!("u{n}"), ""));
        backends.push(backend.forgetful());
    }
    let app = start(&toml).await;
    let (address, begun) = (at(&app), Instant::now());
    let clients = cases.len() * CLIENTS;
    let each = REQUESTS / clients;
    let load = Load::start(
        clients,
        |_| address,
        move |client, i| {
            let case = client / CLIENTS;
            // Two of one kind follow each other, so that each kind meets a connection that the other one left.
            let post = (i / 2) % 2 == 1;
            let ask = if post {
                Ask::post(format!("/{case}/p"), format!("{client}-{i}"))
            } else {
                Ask::get(format!("/{case}/g"))
            };
            (i < each).then_some(ask)
        },
    );
    crate::support::within(Duration::from_secs(120), "all are answered", async || load.done() == REQUESTS as u64).await;
    let all = load.end().await;
    let took = begun.elapsed();
    assert_eq!(all.len(), REQUESTS);
    let (posts, gets): (Vec<_>, Vec<_>) = all.into_iter().partition(|went| went.method == "POST");
    let (lost_posts, lost_gets) = (failures(&posts), failures(&gets));
    println!("{REQUESTS} in {took:?}: {} of {} posts failed: {lost_posts:?}", lost_posts.len(), posts.len());
    assert_eq!(lost_gets, Vec::<String>::new(), "what can be repeated is never seen to fail");
    let arrived = arrived.lock().unwrap().clone();
    let twice: Vec<_> = arrived.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "posts that arrived twice: {twice:?}");
    for post in &posts {
        assert!(post.status() != 200 || arrived.contains_key(&post.body), "{} never arrived", post.body);
        assert!([200, 502].contains(&post.status()), "{post:?}");
    }
    // The first one that meets a connection which is being closed cannot be told from one that was taken and not answered.
    assert!(lost_posts.len() <= cases.len() * 2, "{} posts failed", lost_posts.len());
    app.stop().await;
}

/// Requests that come about when their target closes what was idle, with or without a word.
async fn idle_connections_end(word: &'static str) -> (usize, usize) {
    let idle = Duration::from_millis(40);
    let backend = Backend::start(move |_| Reply::ok("ok").then(word, idle).close()).forgetful();
    let app = start(&service_alone(&backend)).await;
    let address = at(&app);
    let load = Load::paced(
        8,
        idle,
        |_| address,
        |client, i| {
            (i < 80).then(|| if (client + i).is_multiple_of(2) { Ask::get("/") } else { Ask::post("/", "a body") })
        },
    );
    let all = load.end().await;
    app.stop().await;
    let (posts, gets): (Vec<_>, Vec<_>) = all.into_iter().partition(|went| went.method == "POST");
    (failures(&gets).len(), failures(&posts).len())
}

fn service_alone(backend: &Backend) -> String {
    super::gateway(&[backend], "breaker = false\nmax_fails = 0", "")
}

#[actix_web::test]
async fn idle_connections_end_as_requests_come() {
    for word in ["", "HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"] {
        let (gets, posts) = idle_connections_end(word).await;
        println!("closed after {word:?}: {gets} of 320 gets failed, {posts} of 320 posts");
        assert_eq!(gets, 0);
        // At most those that met the first such end.
        assert!(posts <= 8, "{posts}");
    }
}

#[actix_web::test]
async fn an_answer_that_breaks_off_is_neither_repeated_nor_made_whole() {
    let backend = Backend::start(|seen| {
        let head = if seen.target == "/length" { "content-length: 1000" } else { "transfer-encoding: chunked" };
        Reply::raw(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n5\r\nhello\r\n")).close()
    });
    let app = start(&super::gateway(&[&backend], "max_fails = 3\nfail_timeout = \"10s\"", "")).await;
    for path in ["/length", "/chunked", "/chunked"] {
        let mut stream = std::net::TcpStream::connect(at(&app)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: t\r\n\r\n").as_bytes()).unwrap();
        let mut all = Vec::new();
        // It ends, by an error or without; it must not look whole.
        let _ = stream.read_to_end(&mut all);
        let text = String::from_utf8_lossy(&all);
        assert!(text.starts_with("HTTP/1.1 200") && text.contains("hello"), "{text}");
        assert!(!text.ends_with("0\r\n\r\n"), "{text}");
    }
    assert_eq!(backend.count(), 3);
    super::metric_becomes(&app, r#"tidegate_target_failures_total{upstream="a",target="0"}"#, 3.0).await;
    super::metric_becomes(&app, r#"tidegate_target_usable{upstream="a",target="0"}"#, 0.0).await;
    app.stop().await;
}

#[actix_web::test]
async fn a_target_that_hangs_up_is_left_alone_and_the_last_one_is_not() {
    let rude = Backend::start(|_| Reply::hang_up()).forgetful();
    let kind = Backend::start(|_| Reply::ok("ok")).forgetful();
    let upstream = "max_fails = 3\nfail_timeout = \"1h\"\nbreaker = false\npanic_threshold = 0.0";
    let app = start(&super::gateway(&[&rude, &kind], upstream, "")).await;
    let address = at(&app);
    let load = Load::start(1, |_| address, |_, i| (i < 60).then(|| Ask::get("/")));
    assert_eq!(failures(&load.end().await), Vec::<String>::new());
    assert_eq!((rude.count(), kind.count()), (3, 60), "three failures, and no more");
    // With nobody left, both are asked: better than to answer nobody for an hour.
    kind.kill();
    let asked = rude.count();
    let load = Load::start(1, |_| address, |_, i| (i < 20).then(|| Ask::get("/")));
    assert!(load.end().await.iter().all(|went| went.status() == 502));
    assert!(rude.count() > asked);
    let back = super::again(kind.address, |_| Reply::ok("ok")).await.forgetful();
    let load = Load::start(1, |_| address, |_, i| (i < 40).then(|| Ask::get("/")));
    assert_eq!(failures(&load.end().await), Vec::<String>::new());
    assert_eq!(back.count(), 40, "it is used as soon as it answers");
    app.stop().await;
}

#[actix_web::test]
async fn connections_of_http2_that_say_farewell_are_not_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("nginx.conf");
    // After so many requests it says GOAWAY, and opens no further streams.
    let text = "log_format ids '$http_x_id'; server { listen 127.0.0.1:@PORT@ http2; keepalive_requests 7; \
                access_log @DIR@/ids.log ids; location / { return 200 \"ok\"; } }";
    std::fs::write(&config, text).unwrap();
    let servers = [(); 2].map(|()| Service::start("nginx", &[config.to_str().unwrap()]));
    let addresses: Vec<String> = servers.iter().map(|s| s.address.trim_start_matches("http://").to_owned()).collect();
    let upstream = "protocol = \"http2\"\nbreaker = false\nfail_timeout = \"500ms\"";
    let app = start(&super::of_addresses(&addresses[..1], upstream, "")).await;
    let address = at(&app);
    let mixed = |client: usize, i: usize| {
        let ask = if (client + i).is_multiple_of(2) { Ask::get("/") } else { Ask::post("/", "a body") };
        Ask { headers: format!("x-id: {}-{client}-{i}\r\n", ask.method), ..ask }
    };
    let load = Load::start(8, |_| address, move |client, i| (i < 250).then(|| mixed(client, i)));
    let (posts, gets): (Vec<_>, Vec<_>) = load.end().await.into_iter().partition(|went| went.method == "POST");
    println!(
        "HTTP/2: {} gets failed, {} posts: {:?}",
        failures(&gets).len(),
        failures(&posts).len(),
        failures(&posts).first()
    );
    assert_eq!(failures(&gets), Vec::<String>::new());
    assert_eq!(failures(&posts), Vec::<String>::new(), "a farewell says which requests were not begun");
    app.stop().await;
    let log = std::fs::read_to_string(servers[0].file("ids.log")).unwrap();
    let posts: Vec<&str> = log.lines().filter(|id| id.starts_with("POST")).collect();
    let different: HashSet<&str> = posts.iter().copied().collect();
    assert_eq!((posts.len(), different.len()), (1000, 1000), "each post arrived once");
    // And one of two is killed, three times: how many are under way just then is chance.
    drop(servers);
    let mut counts = Vec::new();
    for _ in 0..3 {
        let servers = [(); 2].map(|()| Service::start("nginx", &[config.to_str().unwrap()]));
        let addresses: Vec<String> =
            servers.iter().map(|s| s.address.trim_start_matches("http://").to_owned()).collect();
        let app = start(&super::of_addresses(&addresses, upstream, "")).await;
        let address = at(&app);
        let load = Load::start(8, |_| address, move |client, i| (i < 250).then(|| mixed(client, i)));
        load.reaches(500).await;
        servers[1].kill(None);
        let failed = failures(&load.end().await);
        println!("HTTP/2: {} of 2000 failed as one of two was killed: {failed:?}", failed.len());
        // Only what was under way and must not be repeated: of eight clients at most one each.
        assert!(failed.len() <= 8 && failed.iter().all(|failed| failed.starts_with("POST")), "{failed:?}");
        counts.push(failed.len());
        app.stop().await;
    }
    counts.sort_unstable();
    assert!(counts[1] <= 3, "{counts:?}");
}
