//! HTTP/1.1 and HTTP/2 through the gateway, byte by byte where that is what matters.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use crate::backend::{Backend, Reply};
use crate::client;
use crate::gateway::{all_to, route, upstream};
use crate::support::{Process, TestApp, eventually};
use crate::wire::{PATIENCE, Wire, beside};

/// A service whose connections a test speaks on by itself.
pub struct Hand {
    pub address: SocketAddr,
    connections: Receiver<TcpStream>,
}

impl Hand {
    pub fn listen() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (took, connections) = channel();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if took.send(stream).is_err() {
                    break;
                }
            }
        });
        Self { address, connections }
    }

    pub fn toml(&self) -> String {
        format!("workers = 1\n[gateway.upstreams.a]\ntargets = [\"{}\"]\n", self.address)
    }

    /// The next connection, with the head of its first request.
    pub fn take(&self) -> (Wire, String) {
        let stream = self.connections.recv_timeout(PATIENCE).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut wire = Wire { stream, held: Vec::new() };
        let head = String::from_utf8(wire.through(b"\r\n\r\n").expect("a request")).unwrap();
        (wire, head)
    }
}

pub async fn with_hand(lines: &str) -> (TestApp, Hand, SocketAddr) {
    let hand = Hand::listen();
    let app = TestApp::with_gateway(&(hand.toml() + &route("all", &format!("path = \"/\"\n{lines}"))), &[]).await;
    let gateway = app.app().gateway_address().unwrap();
    (app, hand, gateway)
}

pub const UPGRADE: &str = "GET /chat HTTP/1.1\r\nHost: t\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
pub const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

#[actix_web::test]
async fn an_upgrade_passes_bytes_both_ways() {
    let (app, hand, gateway) = with_hand("total_timeout = \"1s\"").await;
    beside(move || {
        let mut client = Wire::connect(gateway);
        client.send(UPGRADE);
        let (mut target, head) = hand.take();
        let lower = head.to_ascii_lowercase();
        assert!(
            lower.contains("\r\nupgrade: websocket\r\n") && lower.contains("\r\nconnection: upgrade\r\n"),
            "{head}"
        );
        assert!(lower.contains("sec-websocket-key: dghlihnhbxbszsbub25jzq==\r\n"));
        // The target speaks at once, in the same segment.
        target.send([SWITCH.as_bytes(), b"\x81\x02hi"].concat());
        let head = client.head().unwrap();
        assert_eq!(
            (head.status, head.header("upgrade"), head.header("connection")),
            (101, Some("websocket"), Some("upgrade"))
        );
        assert_eq!(head.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert!(client.through(b"\x81\x02hi").is_some());
        // Nothing of this is HTTP, and all of it passes.
        let mut noise: Vec<u8> = (0..200_000u32).map(|n| (n * 31 % 251) as u8).collect();
        noise.extend_from_slice(b"GET / HTTP/1.1\nContent-Length: x\0\r\n\r\n END");
        client.send(&noise);
        assert_eq!(target.through(b" END").unwrap(), noise);
        target.send(&noise);
        assert_eq!(client.through(b" END").unwrap(), noise);
        // Nobody minds a pause, nor the time that a request may take.
        client.stream.set_read_timeout(Some(Duration::from_millis(1500))).unwrap();
        assert!(client.stream.read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));
        client.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        client.send("still");
        assert!(target.through(b"still").is_some());
        target.hang_up();
        client.end();
    })
    .await;
    assert!(app.stop().await.path().exists());
}

#[actix_web::test]
async fn what_is_sent_before_a_101_is_not_passed() {
    let (_app, hand, gateway) = with_hand("").await;
    beside(move || {
        // In the same segment as the request, and before the answer.
        for early in [UPGRADE, "\u{1}rubbish\r\n", "GET / HTTP/1.1\r\nHost: t\r\n\r\n"] {
            let mut client = Wire::connect(gateway);
            client.send([UPGRADE, early].concat());
            let (mut target, _) = hand.take();
            assert!(
                target.is_silent(Duration::from_millis(100)),
                "{early:?}: {:?}",
                String::from_utf8_lossy(&target.held)
            );
            target.send(SWITCH);
            // Whether it is then upgraded or refused: the target never sees what was said too early.
            match client.answer() {
                Some(answer) if answer.status == 101 => {
                    client.try_send("after");
                    let got = target.through(b"after");
                    assert!(got.is_none() || got.as_deref() == Some(b"after".as_slice()), "{early:?}: {got:?}");
                }
                other => assert!(other.is_none_or(|answer| answer.status >= 400)),
            }
        }
    })
    .await;
}

#[actix_web::test]
async fn an_upgrade_that_is_refused_leaves_http_as_strict_as_before() {
    let (_app, hand, gateway) = with_hand("").await;
    beside(move || {
        let mut client = Wire::connect(gateway);
        client.send(UPGRADE);
        let (mut target, _) = hand.take();
        target.send("HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nno");
        let answer = client.answer().unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (426, "no"));
        client.send("GET /next HTTP/1.1\r\nHost: t\r\n\r\n");
        let next = target.through(b"\r\n\r\n").expect("the connection is kept");
        assert!(next.starts_with(b"GET /next "));
        target.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(client.answer().unwrap().status, 200);
        assert_eq!(client.ask("GET /bad HTTP/1.1\nHost: t\r\n\r\n").status, 400);
        client.end();
        // A 101 that nobody asked for, and one to something else, are no answers.
        for request in [
            "GET / HTTP/1.1\r\nHost: t\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: t\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n\r\nx",
        ] {
            let mut client = Wire::connect(gateway);
            client.send(request);
            let (mut target, head) = match target.through(b"\r\n\r\n") {
                Some(head) => (
                    Wire { stream: target.stream.try_clone().unwrap(), held: Vec::new() },
                    String::from_utf8(head).unwrap(),
                ),
                None => hand.take(),
            };
            assert!(!head.to_ascii_lowercase().contains("upgrade:"), "{head}");
            target.try_send(SWITCH);
            assert_eq!(client.answer().unwrap().status, 502);
        }
    })
    .await;
}

#[actix_web::test]
async fn events_arrive_one_by_one() {
    let (_app, hand, gateway) = with_hand("total_timeout = \"forever\"\ncompress = true").await;
    beside(move || {
        let mut client = Wire::connect(gateway);
        client.send("GET /events HTTP/1.1\r\nHost: t\r\nAccept-Encoding: gzip\r\n\r\n");
        let (mut target, _) = hand.take();
        target.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
        assert_eq!(client.head().unwrap().header("content-encoding"), None);
        let mut slowest = Duration::ZERO;
        for number in 0..50 {
            let event = format!("data: {number}\n\n");
            let begun = Instant::now();
            target.send(format!("{:x}\r\n{event}\r\n", event.len()));
            // The next one is sent only when this one has arrived.
            assert_eq!(client.chunk().unwrap().unwrap(), event.as_bytes());
            slowest = slowest.max(begun.elapsed());
        }
        assert!(slowest < Duration::from_secs(1), "{slowest:?}");
        // A client that goes is noticed by the target.
        client.hang_up();
        drop(client);
        target.end();
    })
    .await;
}

#[actix_web::test]
async fn trailers_pass_both_ways_and_are_filtered() {
    let (_app, hand, gateway) = with_hand("").await;
    beside(move || {
        let mut client = Wire::connect(gateway);
        client.send("POST / HTTP/1.1\r\nHost: t\r\nTE: trailers\r\nTrailer: X-Sum, X-Internal-A\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 1\r\nX-Internal-A: 1\r\n\r\n");
        let (mut target, head) = hand.take();
        let lower = head.to_ascii_lowercase();
        assert!(lower.contains("\r\nte: trailers\r\n") && lower.contains("\r\ntrailer: "), "{head}");
        assert_eq!(target.chunk().unwrap().unwrap(), b"abc");
        assert_eq!(target.chunk(), Some(None));
        assert_eq!(target.trailers().unwrap(), [(String::from("x-sum"), String::from("1"))]);
        target.send("HTTP/1.1 200 OK\r\nTrailer: X-Digest, X-Internal-B, Set-Cookie\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nxyz\r\n0\r\nX-Digest: 2\r\nX-Internal-B: 3\r\nSet-Cookie: a=b\r\n\r\n");
        let answer = client.answer().unwrap();
        assert_eq!(answer.text(), "xyz");
        assert_eq!(answer.header("x-digest"), Some("2"));
        assert_eq!((answer.header("x-internal-b"), answer.header("set-cookie")), (None, None));
        // A client that takes none gets none.
        client.send("GET / HTTP/1.1\r\nHost: t\r\n\r\n");
        assert!(target.through(b"\r\n\r\n").is_some());
        target.send("HTTP/1.1 200 OK\r\nTrailer: X-Digest\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nxyz\r\n0\r\nX-Digest: 2\r\n\r\n");
        assert_eq!(client.answer().unwrap().text(), "xyz");
        client.send("GET /again HTTP/1.1\r\nHost: t\r\n\r\n");
        assert!(target.through(b"\r\n\r\n").is_some(), "and its connection goes on");
    })
    .await;
}

#[actix_web::test]
async fn a_request_ends_with_its_trailers() {
    let (_app, hand, gateway) = with_hand("first_byte_timeout = \"300ms\"\ntotal_timeout = \"1m\"").await;
    beside(move || {
        let mut client = Wire::connect(gateway);
        client.send("POST / HTTP/1.1\r\nHost: t\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n");
        let (mut target, _) = hand.take();
        assert_eq!(target.chunk().unwrap().unwrap(), b"abc");
        // From here on the target has so long to answer, and does not.
        assert_eq!(client.answer().expect("an answer in time").status, 504);
    })
    .await;
}

#[actix_web::test]
async fn bodies_are_asked_for_only_where_they_are_wanted() {
    let backend = Backend::echo();
    let toml = upstream(&backend)
        + "[gateway.limits.none]\nlimit = 1\nperiod = \"1h\"\nburst = 1\n"
        + &route("all", "path = \"/\"\nmax_body = 5")
        + &route("closed", "path = \"/closed/\"\nauth = \"api_key\"")
        + &route("limited", "path = \"/limited/\"\nlimits = [\"none\"]")
        + &format!("[gateway.api_keys]\ntill = \"sha256:{}\"\n", "0".repeat(64));
    let app = TestApp::with_gateway(&toml, &[]).await;
    let gateway = app.app().gateway_address().unwrap();
    beside(move || {
        let post = |path: &str, length: usize| {
            format!("POST {path} HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n")
        };
        let mut wire = Wire::connect(gateway);
        for _ in 0..2 {
            assert_eq!(wire.ask(post("/a", 5)).status, 100);
            let answer = wire.ask("hello");
            assert_eq!((answer.status, answer.json()["body"].as_str()), (200, Some("hello")));
        }
        assert_eq!(wire.ask(post("/limited/", 5)).status, 100);
        assert_eq!(wire.ask("hello").status, 200);
        // Who does not wait for it is served all the same.
        let answer = wire.ask(post("/a", 5) + "hello");
        let answer = if answer.status == 100 { wire.answer().unwrap() } else { answer };
        assert_eq!(answer.json()["body"], "hello");
        for (path, length, status) in [("/a", 6, 413), ("/closed/", 5, 401), ("/limited/", 5, 429), ("/%zz", 5, 400)] {
            let mut wire = Wire::connect(gateway);
            let answer = wire.ask(post(path, length));
            assert_eq!(answer.status, status, "and no 100 before it");
            // The client may send the body or not: so nothing else can come over this connection.
            let at = wire.held.len();
            wire.try_send("GET /a HTTP/1.1\r\nHost: t\r\n\r\n");
            assert_eq!(at, 0);
            wire.end();
        }
    })
    .await;
    let backend_expects = backend.seen().iter().filter(|seen| seen.header("expect").is_some()).count();
    assert_eq!(backend_expects, 0);
}

#[actix_web::test]
async fn answers_without_bodies_have_none() {
    let backend = Backend::start(|seen| match seen.target.as_str() {
        "/204" => Reply::raw("HTTP/1.1 204 No Content\r\n\r\n"),
        "/304" => Reply::raw("HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nContent-Length: 7\r\n\r\n"),
        "/head" => Reply::raw("HTTP/1.1 200 OK\r\nContent-Length: 123456\r\nContent-Type: text/plain\r\n\r\n"),
        "/head-chunked" => Reply::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        "/early" => {
            Reply::raw("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        }
        _ => Reply::raw("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    });
    let app = TestApp::with_gateway(&(upstream(&backend) + &route("all", "path = \"/\"\ncompress = true")), &[]).await;
    let gateway = app.app().gateway_address().unwrap();
    beside(move || {
        let mut wire = Wire::connect(gateway);
        let ask = |wire: &mut Wire, method: &str, path: &str| {
            wire.send(format!("{method} {path} HTTP/1.1\r\nHost: t\r\nAccept-Encoding: gzip\r\n\r\n"));
            wire.head().unwrap()
        };
        for _ in 0..2 {
            let none = ask(&mut wire, "GET", "/204");
            assert_eq!(
                (none.status, none.header("content-length"), none.header("transfer-encoding")),
                (204, None, None)
            );
            let same = ask(&mut wire, "GET", "/304");
            assert_eq!(
                (same.status, same.header("etag"), same.header("transfer-encoding")),
                (304, Some("\"a\""), None)
            );
            let head = ask(&mut wire, "HEAD", "/head");
            assert_eq!(head.status, 200);
            assert!(matches!(head.header("content-length"), None | Some("123456")), "{head:?}");
            let chunked = ask(&mut wire, "HEAD", "/head-chunked");
            assert_eq!((chunked.status, chunked.header("content-length")), (200, None), "a length would be made up");
            let empty = ask(&mut wire, "GET", "/empty");
            assert_eq!((empty.status, empty.header("content-length")), (200, Some("0")));
            wire.send("GET /early HTTP/1.1\r\nHost: t\r\n\r\n");
            let answer = wire.answer().unwrap();
            let answer = if answer.status == 103 { wire.answer().unwrap() } else { answer };
            assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
        }
    })
    .await;
    assert_eq!(backend.connections(), 1);
}

#[actix_web::test]
async fn an_answer_ends_as_the_upstreams_does() {
    let backend = Backend::start(|seen| match seen.target.as_str() {
        "/until-close" => Reply::raw("HTTP/1.1 200 OK\r\n\r\nall of it").close(),
        "/http10" => Reply::raw("HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nold").close(),
        "/short" => Reply::raw("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nnot all").close(),
        "/broken" => Reply::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\nnot all\r\n").close(),
        "/rubbish" => Reply::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nxyz\r\n").close(),
        "/both" => Reply::raw(
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        )
        .close(),
        "/lengths" => Reply::raw("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd").close(),
        "/coded" => {
            Reply::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n").close()
        }
        "/more" => Reply::raw(
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison",
        ),
        "/no-http" => Reply::raw("220 smtp ready\r\n").close(),
        _ => Reply::ok("fine"),
    });
    let toml = format!(
        "workers = 1\n[gateway.upstreams.a]\ntargets = [\"{}\"]\nbreaker = false\nmax_fails = 0\n",
        backend.address
    ) + &route("all", "path = \"/\"\nretries = 0");
    let app = TestApp::with_gateway(&toml, &[]).await;
    let gateway = app.app().gateway_address().unwrap();
    beside(move || {
        let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: t\r\n\r\n");
        let mut wire = Wire::connect(gateway);
        let whole = wire.ask(get("/until-close"));
        assert_eq!((whole.status, whole.text().as_str()), (200, "all of it"));
        assert_eq!(whole.header("transfer-encoding"), Some("chunked"), "so that the end can be told from a break");
        assert_eq!(wire.ask(get("/http10")).text(), "old");
        assert_eq!(wire.ask(get("/fine")).text(), "fine", "the client's connection goes on");
        // An answer of HTTP/1.0 to who speaks that.
        let mut old = Wire::connect(gateway);
        let whole = old.ask("GET /until-close HTTP/1.0\r\n\r\n");
        assert_eq!((whole.text().as_str(), whole.header("transfer-encoding")), ("all of it", None));
        for path in ["/short", "/broken", "/rubbish"] {
            let mut wire = Wire::connect(gateway);
            wire.send(get(path));
            if let Some(head) = wire.head() {
                assert!(head.status == 200, "{path}: {head:?}");
                while wire.more() {}
                assert!(
                    !wire.held.ends_with(b"0\r\n\r\n"),
                    "{path} looks whole: {:?}",
                    String::from_utf8_lossy(&wire.held)
                );
                assert!(wire.held.len() < 100);
            }
        }
        for path in ["/lengths", "/no-http", "/coded"] {
            let answer = Wire::connect(gateway).ask(get(path));
            assert_eq!(answer.status, 502, "{path}: {}", answer.text());
        }
        // The encoding wins, as RFC 9112 says, or nothing comes of it.
        let both = Wire::connect(gateway).ask(get("/both"));
        assert!(both.status == 502 || (both.text() == "abc" && both.header("content-length").is_none()), "{both:?}");
        for _ in 0..3 {
            let more = Wire::connect(gateway).ask(get("/more"));
            assert_eq!(more.text(), "abc");
            assert_eq!(
                Wire::connect(gateway).ask(get("/fine")).text(),
                "fine",
                "what was not asked for is nobody's answer"
            );
        }
    })
    .await;
}

#[actix_web::test]
async fn slow_clients_are_cut_off() {
    let (app, hand, gateway) = with_gateway_times("client_timeout = \"300ms\"\nkeep_alive = \"400ms\"\n").await;
    let url = app.gateway();
    beside(move || {
        // A head that does not come to its end, however often a piece of it comes.
        let mut slow = Wire::connect(gateway);
        let begun = Instant::now();
        slow.send("GET / HTTP/1.1\r\nHost: t\r\n");
        let mut piece = [0; 16];
        slow.stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let ended = loop {
            let _ = slow.stream.write_all(b"X: y\r\n");
            match slow.stream.read(&mut piece) {
                Ok(0) => break begun.elapsed(),
                Ok(_) => panic!("an answer to half a head"),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => break begun.elapsed(),
            }
            assert!(begun.elapsed() < PATIENCE);
        };
        assert!((Duration::from_millis(290)..Duration::from_secs(2)).contains(&ended), "{ended:?}");
        // Whoever says nothing at all, and whoever says nothing more.
        let silent = Wire::connect(gateway).end();
        assert!((Duration::from_millis(390)..Duration::from_secs(3)).contains(&silent), "{silent:?}");
        let mut idle = Wire::connect(gateway);
        idle.send("GET / HTTP/1.1\r\nHost: t\r\n\r\n");
        let (mut target, _) = hand.take();
        // An answer may take longer than any of these.
        std::thread::sleep(Duration::from_millis(600));
        target.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        assert_eq!(idle.answer().unwrap().text(), "ok");
        let waited = idle.end();
        assert!((Duration::from_millis(390)..Duration::from_secs(3)).contains(&waited), "{waited:?}");
        // A body that pauses.
        let mut pauses = Wire::to(&url);
        pauses.send("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 10\r\n\r\n");
        let mut got = Vec::new();
        for piece in ["ab", "cd", "ef"] {
            pauses.send(piece);
            if got.is_empty() {
                assert!(target.through(b"\r\n\r\n").is_some());
            }
            while got.len() < piece.len() {
                if target.held.is_empty() {
                    assert!(target.more());
                }
                got.append(&mut target.held);
            }
            got = vec![0];
            std::thread::sleep(Duration::from_millis(200));
        }
        let answer = pauses.answer().expect("an answer");
        assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (408, Some("request_timeout")));
        pauses.end();
        target.end();
    })
    .await;
}

pub async fn with_gateway_times(times: &str) -> (TestApp, Hand, SocketAddr) {
    let hand = Hand::listen();
    let app = TestApp::with_gateway(&(times.to_owned() + &hand.toml() + &route("all", "path = \"/\"")), &[]).await;
    let gateway = app.app().gateway_address().unwrap();
    (app, hand, gateway)
}

#[actix_web::test]
async fn a_client_that_does_not_read_is_cut_off() {
    let (_app, hand, gateway) = with_gateway_times("client_timeout = \"300ms\"\n").await;
    beside(move || {
        let mut client = Wire::connect(gateway);
        client.send("GET / HTTP/1.1\r\nHost: t\r\n\r\n");
        let (mut target, _) = hand.take();
        target.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        let chunk = [format!("{:x}\r\n", 64 << 10).into_bytes(), vec![b'x'; 64 << 10], b"\r\n".to_vec()].concat();
        // As soon as nothing is read any more, this blocks; as soon as the client is given up, it fails.
        target.stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let begun = Instant::now();
        let error = loop {
            if let Err(error) = target.stream.write_all(&chunk) {
                break error;
            }
            assert!(begun.elapsed() < PATIENCE, "it takes all of it");
        };
        assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "it is held for ever");
        drop(client);
    })
    .await;
}

#[actix_web::test]
async fn an_upgrade_has_its_place_among_the_connections() {
    let hand = Hand::listen();
    let toml =
        format!("max_connections = 1\nclient_timeout = \"300ms\"\n{}", hand.toml()) + &route("all", "path = \"/\"");
    let app = TestApp::with_gateway(&toml, &[]).await;
    let gateway = app.app().gateway_address().unwrap();
    beside(move || {
        let mut first = Wire::connect(gateway);
        first.send(UPGRADE);
        let (mut target, _) = hand.take();
        target.send(SWITCH);
        assert_eq!(first.head().unwrap().status, 101);
        let mut second = Wire::connect(gateway);
        second.send("GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n");
        assert!(second.is_silent(Duration::from_millis(300)), "there is no room for it");
        first.send("still");
        assert!(target.through(b"still").is_some());
        // The client does not close its end, and is not waited for.
        target.hang_up();
        first.end();
        let (mut target, _) = hand.take();
        target.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        assert_eq!(second.answer().unwrap().body, b"ok");
    })
    .await;
    assert!(app.stop().await.path().exists());
}

#[actix_web::test]
async fn what_is_no_request_is_counted_and_logged() {
    let backend = Backend::echo();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("access.log");
    let toml = format!("access_log = \"{}\"\n", file.display()) + &all_to(&backend);
    let app = TestApp::with_gateway(&toml, &[]).await;
    let gateway = app.app().gateway_address().unwrap();
    beside(move || {
        for rubbish in ["rubbish\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"] {
            let mut client = Wire::connect(gateway);
            client.send(rubbish);
            assert_eq!(client.answer().unwrap().status, 400);
        }
    })
    .await;
    eventually("both are in the log", async || {
        let log = std::fs::read_to_string(&file).unwrap_or_default();
        log.matches("\"status\":400,").count() == 2 && log.matches("\"error\":\"malformed_request\"").count() == 2
    })
    .await;
    let metrics = app.get("/metrics").await.text();
    assert!(metrics.contains("tidegate_gateway_requests_total{route=\"(none)\",status=\"4xx\"} 2"), "{metrics}");
    assert_eq!(backend.count(), 0);
}

#[actix_web::test]
async fn requests_in_a_row_are_answered_in_their_order() {
    let backend = Backend::start(|seen| {
        let wait = if seen.target == "/0" { Duration::from_millis(150) } else { Duration::ZERO };
        Reply::ok(&seen.target).after(wait)
    });
    let app = TestApp::with_gateway(&all_to(&backend), &[]).await;
    let gateway = app.app().gateway_address().unwrap();
    beside(move || {
        let mut wire = Wire::connect(gateway);
        let all: String = (0..20).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: t\r\n\r\n")).collect();
        wire.send(all);
        for n in 0..20 {
            assert_eq!(wire.answer().unwrap().text(), format!("/{n}"));
        }
        // HTTP/1.0: one answer, unless more is asked for.
        let mut old = Wire::connect(gateway);
        let answer = old.ask("GET /old HTTP/1.0\r\n\r\n");
        assert_eq!(answer.text(), "/old");
        old.end();
        let mut kept = Wire::connect(gateway);
        for _ in 0..2 {
            let answer = kept.ask("GET /kept HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
            assert_eq!((answer.text().as_str(), answer.header("connection")), ("/kept", Some("keep-alive")));
        }
        let mut last = Wire::connect(gateway);
        assert_eq!(last.ask("GET /last HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n").text(), "/last");
        last.end();
    })
    .await;
    assert!(backend.seen().iter().all(|seen| seen.version == "HTTP/1.1"));
}

#[actix_web::test]
async fn heads_that_are_too_long_are_refused() {
    let backend = Backend::echo();
    let app = TestApp::with_gateway(&("max_header_bytes = \"8KiB\"\n".to_owned() + &all_to(&backend)), &[]).await;
    let gateway = app.app().gateway_address().unwrap();
    beside(move || {
        let with = |length: usize| format!("GET / HTTP/1.1\r\nHost: t\r\nX-A: {}\r\n\r\n", "a".repeat(length));
        assert_eq!(Wire::connect(gateway).ask(with(6000)).status, 200);
        let mut wire = Wire::connect(gateway);
        let answer = wire.ask(with(20_000));
        assert_eq!(answer.status, 431);
        wire.end();
        let target = format!("GET /{} HTTP/1.1\r\nHost: t\r\n\r\n", "a".repeat(100_000));
        let mut wire = Wire::connect(gateway);
        wire.try_send(target);
        let answer = wire.answer();
        assert!(answer.as_ref().is_none_or(|answer| [400, 414, 431].contains(&answer.status)), "{answer:?}");
        let many: String = (0..500).map(|n| format!("X-{n}: a\r\n")).collect();
        let answer = Wire::connect(gateway).ask(format!("GET / HTTP/1.1\r\nHost: t\r\n{many}\r\n"));
        assert_eq!(answer.status, 431);
    })
    .await;
    assert_eq!(backend.count(), 1);
}

mod big {
    use super::*;

    /// So much each way.
    const BYTES: u64 = 1 << 30;
    /// What may be resident beyond what was before: the buffers of two connections on two threads are below 1 MiB, what the
    /// system's allocator keeps of freed ones is the rest.
    const MOST: u64 = 2 << 20;

    fn serve(listener: &TcpListener, done: &Sender<u64>) {
        let piece = vec![b'x'; 256 << 10];
        for stream in listener.incoming().map_while(Result::ok) {
            let mut reader = BufReader::with_capacity(256 << 10, stream.try_clone().unwrap());
            let mut stream = stream;
            loop {
                let (mut first, mut line, mut length) = (String::new(), String::new(), 0u64);
                if reader.read_line(&mut first).unwrap_or(0) == 0 {
                    break;
                }
                loop {
                    line.clear();
                    reader.read_line(&mut line).unwrap();
                    if line == "\r\n" {
                        break;
                    }
                    if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap();
                    }
                }
                if let Some(rest) = first.strip_prefix("GET /") {
                    let bytes: u64 = rest.split(' ').next().unwrap().parse().unwrap();
                    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n").unwrap();
                    let mut left = bytes;
                    while left > 0 {
                        let n = left.min(piece.len() as u64);
                        stream.write_all(&piece[..n as usize]).unwrap();
                        left -= n;
                    }
                } else {
                    let got = std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink()).unwrap();
                    done.send(got).unwrap();
                    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
                }
            }
        }
    }

    fn download(gateway: SocketAddr, bytes: u64) {
        let mut wire = Wire::connect(gateway);
        wire.send(format!("GET /{bytes} HTTP/1.1\r\nHost: t\r\n\r\n"));
        let head = wire.head().unwrap();
        assert_eq!(head.header("content-length"), Some(bytes.to_string().as_str()));
        let mut left = bytes - wire.held.len() as u64;
        let mut piece = vec![0; 256 << 10];
        while left > 0 {
            let n = wire.stream.read(&mut piece).unwrap();
            assert!(n > 0, "{left} are missing");
            left -= n as u64;
        }
    }

    fn upload(gateway: SocketAddr, bytes: u64) {
        let mut wire = Wire::connect(gateway);
        wire.send(format!("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: {bytes}\r\n\r\n"));
        let piece = vec![b'y'; 256 << 10];
        let mut left = bytes;
        while left > 0 {
            let n = left.min(piece.len() as u64);
            wire.send(&piece[..n as usize]);
            left -= n;
        }
        assert_eq!(wire.answer().unwrap().status, 200);
    }

    #[test]
    fn large_bodies_pass_without_being_kept() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (done, got) = channel();
        std::thread::spawn(move || {
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| serve(&listener, &done));
                }
            });
        });
        let folder = tempfile::tempdir().unwrap();
        let toml = format!("workers = 1\n[gateway.upstreams.a]\ntargets = [\"{address}\"]\n")
            + &route("all", "path = \"/\"\nmax_body = 0\ntotal_timeout = \"forever\"");
        let server = Process::with_gateway(&folder.path().join("data"), &toml, &[]);
        let gateway = server.gateway.unwrap();
        // What is built with the first requests is built; what is kept of a body would be seen below.
        upload(gateway, 1 << 20);
        download(gateway, 1 << 20);
        got.recv_timeout(PATIENCE).unwrap();
        let before = server.resident();
        let begun = Instant::now();
        let (mut peak, mut samples) = (before, 0);
        std::thread::scope(|scope| {
            let both = [scope.spawn(move || download(gateway, BYTES)), scope.spawn(move || upload(gateway, BYTES))];
            while both.iter().any(|one| !one.is_finished()) {
                peak = peak.max(server.resident());
                samples += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        assert_eq!(got.recv_timeout(PATIENCE).unwrap(), BYTES);
        let took = begun.elapsed();
        println!(
            "{} MiB each way in {took:?}: {} KiB resident before, at most {} KiB more in {samples} samples",
            BYTES >> 20,
            before >> 10,
            (peak - before) >> 10
        );
        assert!(samples > 5);
        assert!(peak - before <= MOST, "{} bytes more are resident", peak - before);
    }
}

pub mod two {
    use std::convert::Infallible;
    use std::sync::Arc;

    use bytes::Bytes;
    use http_body_util::{BodyExt, Full, StreamBody};
    use hyper::body::{Frame, Incoming};
    use hyper::{HeaderMap, Request, Response};
    use hyper_util::rt::TokioIo;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, ServerName};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Spawns on the thread of the test.
    #[derive(Clone, Copy)]
    pub struct Local;

    impl<F: Future + 'static> hyper::rt::Executor<F> for Local {
        fn execute(&self, task: F) {
            tokio::task::spawn_local(async move {
                task.await;
            });
        }
    }

    pub fn file(name: &str) -> std::path::PathBuf {
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/gateway/test_tls").join(name)
    }

    pub fn tls_toml(cert: &std::path::Path, key: &std::path::Path) -> String {
        format!(
            "tls_listen = \"127.0.0.1:0\"\ntls_cert_file = \"{}\"\ntls_key_file = \"{}\"\n",
            cert.display(),
            key.display()
        )
    }

    fn connector(ca: &[u8], alpn: &[&[u8]]) -> tokio_rustls::TlsConnector {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut roots = rustls::RootCertStore::empty();
        for cert in CertificateDer::pem_slice_iter(ca) {
            roots.add(cert.unwrap()).unwrap();
        }
        let mut config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        tokio_rustls::TlsConnector::from(Arc::new(config))
    }

    pub type Tls = tokio_rustls::client::TlsStream<tokio::net::TcpStream>;

    pub async fn connect(at: SocketAddr, ca: &[u8], alpn: &[&[u8]]) -> std::io::Result<Tls> {
        let stream = tokio::net::TcpStream::connect(at).await?;
        stream.set_nodelay(true)?;
        connector(ca, alpn).connect(ServerName::try_from("tidegate.test").unwrap(), stream).await
    }

    pub type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;
    pub type Sender2 = hyper::client::conn::http2::SendRequest<Body>;

    pub fn body(bytes: &'static str) -> Body {
        Full::new(Bytes::from_static(bytes.as_bytes())).boxed_unsync()
    }

    async fn greet(stream: Tls) -> Sender2 {
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
        let (sender, driver) = hyper::client::conn::http2::handshake(Local, TokioIo::new(stream)).await.unwrap();
        tokio::task::spawn_local(async move {
            let _ = driver.await;
        });
        sender
    }

    /// A service that speaks HTTP/2 alone, and says what it saw in headers, body and trailers.
    async fn service() -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::task::spawn_local(async move {
                    let serve = hyper::service::service_fn(async |request: Request<Incoming>| {
                        let (parts, body) = request.into_parts();
                        let body = body.collect().await.unwrap();
                        let trailers = body.trailers().cloned().unwrap_or_default();
                        let said = serde_json::json!({
                            "version": format!("{:?}", parts.version),
                            "uri": parts.uri.to_string(),
                            "headers": parts.headers.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect::<Vec<_>>(),
                            "trailers": trailers.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect::<Vec<_>>(),
                            "body": String::from_utf8_lossy(&body.to_bytes()),
                        });
                        let mut trailers = HeaderMap::new();
                        trailers.insert("grpc-status", "0".parse().unwrap());
                        trailers.insert("x-internal-a", "1".parse().unwrap());
                        let frames = [Frame::data(Bytes::from(said.to_string())), Frame::trailers(trailers)];
                        let body = StreamBody::new(futures_util::stream::iter(frames.map(Ok::<_, Infallible>)));
                        Ok::<_, Infallible>(Response::new(body))
                    });
                    let _ = hyper::server::conn::http2::Builder::new(Local)
                        .serve_connection(TokioIo::new(stream), serve)
                        .await;
                });
            }
        });
        address
    }

    #[actix_web::test]
    async fn both_versions_are_spoken_over_tls() {
        let backend = Backend::echo();
        let app =
            TestApp::with_gateway(&(tls_toml(&file("server.pem"), &file("server.key")) + &all_to(&backend)), &[]).await;
        let at = app.app().gateway_tls_address().unwrap();
        let ca = std::fs::read(file("ca.pem")).unwrap();
        let mut sender = greet(connect(at, &ca, &[b"h2", b"http/1.1"]).await.unwrap()).await;
        let answers = futures_util::future::join_all((0..20).map(|n| {
            let mut sender = sender.clone();
            async move {
                let request = Request::post(format!("https://shop.example:444/{n}"))
                    .header("cookie", "a=1")
                    .header("cookie", "b=2")
                    .header("x-internal-a", "1")
                    .body(body("hello"))
                    .unwrap();
                let answer = sender.send_request(request).await.unwrap();
                assert_eq!(answer.status(), 200);
                serde_json::from_slice::<serde_json::Value>(&answer.into_body().collect().await.unwrap().to_bytes())
                    .unwrap()
            }
        }))
        .await;
        for (n, seen) in answers.iter().enumerate() {
            assert_eq!(
                (seen["target"].as_str(), seen["body"].as_str()),
                (Some(format!("/{n}").as_str()), Some("hello"))
            );
            let told = |name: &str| -> Vec<&str> {
                let headers = seen["headers"].as_array().unwrap();
                headers.iter().filter(|pair| pair[0] == name).map(|pair| pair[1].as_str().unwrap()).collect()
            };
            assert_eq!(told("x-forwarded-proto"), ["https"]);
            assert_eq!(told("x-forwarded-host"), ["shop.example:444"]);
            assert_eq!(told("x-forwarded-port"), ["444"]);
            assert_eq!(told("via"), ["2.0 tidegate"]);
            assert_eq!(told("cookie"), ["a=1; b=2"], "RFC 9113, section 8.2.3");
            assert!(told("x-internal-a").is_empty());
        }
        // The path rules are those of HTTP/1.
        for (uri, status) in [("https://t/a%2fb", 400), ("https://admin@t/", 400)] {
            let answer = sender.send_request(Request::get(uri).body(body("")).unwrap()).await;
            assert!(
                answer.as_ref().is_ok_and(|answer| answer.status() == status) || answer.is_err(),
                "{uri}: {answer:?}"
            );
        }
        let stream = connect(at, &ca, &[b"http/1.1"]).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"http/1.1".as_slice()));
        let (mut sender, driver) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::task::spawn_local(async move {
            let _ = driver.await;
        });
        let answer =
            sender.send_request(Request::get("/one").header("host", "t").body(body("")).unwrap()).await.unwrap();
        assert_eq!(answer.status(), 200);
        // What is no TLS gets no further, and harms nobody.
        beside(move || {
            let mut plain = Wire::connect(at);
            plain.send("GET / HTTP/1.1\r\nHost: t\r\n\r\n");
            while plain.more() {}
        })
        .await;
        assert!(connect(at, &ca, &[]).await.is_ok());
    }

    #[actix_web::test]
    async fn an_upgrade_passes_over_tls() {
        let hand = Hand::listen();
        let toml = tls_toml(&file("server.pem"), &file("server.key")) + &hand.toml() + &route("all", "path = \"/\"");
        let app = TestApp::with_gateway(&toml, &[]).await;
        let at = app.app().gateway_tls_address().unwrap();
        let ca = std::fs::read(file("ca.pem")).unwrap();
        let mut client = connect(at, &ca, &[b"http/1.1"]).await.unwrap();
        client.write_all(UPGRADE.as_bytes()).await.unwrap();
        let (head, mut target) = beside(move || {
            let (mut target, head) = hand.take();
            target.send([SWITCH.as_bytes(), b"hi"].concat());
            (head, target)
        })
        .await;
        assert!(head.to_ascii_lowercase().contains("x-forwarded-proto: https\r\n"), "{head}");
        let mut said = Vec::new();
        while !said.ends_with(b"\r\n\r\nhi") {
            assert!(client.read_buf(&mut said).await.unwrap() > 0, "{:?}", String::from_utf8_lossy(&said));
        }
        assert!(said.starts_with(b"HTTP/1.1 101 "));
        client.write_all(b"\0no HTTP\n").await.unwrap();
        beside(move || assert!(target.through(b"\0no HTTP\n").is_some())).await;
        assert_eq!(client.read(&mut [0]).await.unwrap_or_default(), 0, "the end passes, too");
    }

    #[actix_web::test]
    async fn trailers_pass_over_http2_to_the_upstream_and_back() {
        let address = service().await;
        let toml = tls_toml(&file("server.pem"), &file("server.key"))
            + &format!("workers = 1\n[gateway.upstreams.a]\ntargets = [\"{address}\"]\nprotocol = \"http2\"\n")
            + &route("all", "path = \"/\"\npreserve_host = true");
        let app = TestApp::with_gateway(&toml, &[]).await;
        let ca = std::fs::read(file("ca.pem")).unwrap();
        let at = app.app().gateway_tls_address().unwrap();
        let mut sender = greet(connect(at, &ca, &[b"h2"]).await.unwrap()).await;
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "1".parse().unwrap());
        trailers.insert("x-internal-a", "1".parse().unwrap());
        let frames = [Frame::data(Bytes::from_static(b"hello")), Frame::trailers(trailers)];
        let sent = StreamBody::new(futures_util::stream::iter(frames.map(Ok::<_, Infallible>)));
        let request =
            Request::post("https://shop.example/a.B/C?q").header("te", "trailers").body(sent.boxed_unsync()).unwrap();
        let answer = sender.send_request(request).await.unwrap();
        assert_eq!(answer.status(), 200);
        let collected = answer.into_body().collect().await.unwrap();
        let trailers = collected.trailers().cloned().unwrap();
        assert_eq!(trailers.get("grpc-status").unwrap(), "0");
        assert!(trailers.get("x-internal-a").is_none());
        let seen: serde_json::Value = serde_json::from_slice(&collected.to_bytes()).unwrap();
        assert_eq!(seen["version"], "HTTP/2.0");
        assert_eq!(seen["uri"], "http://shop.example/a.B/C?q");
        assert_eq!(seen["body"], "hello");
        assert_eq!(seen["trailers"], serde_json::json!([["x-sum", "1"]]));
        let headers = seen["headers"].as_array().unwrap();
        assert!(headers.contains(&serde_json::json!(["te", "trailers"])), "{headers:?}");
        for gone in ["connection", "host", "transfer-encoding", "keep-alive"] {
            assert!(headers.iter().all(|pair| pair[0] != gone), "{gone}: {headers:?}");
        }
        // The same from HTTP/1.
        let gateway = app.app().gateway_address().unwrap();
        let answer = beside(move || {
            Wire::connect(gateway).ask("POST /x HTTP/1.1\r\nHost: t\r\nTE: trailers\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 3\r\n\r\n")
        })
        .await;
        let seen = answer.json();
        assert_eq!((seen["body"].as_str(), &seen["trailers"]), (Some("hi"), &serde_json::json!([["x-sum", "3"]])));
        assert_eq!(seen["uri"], "http://t/x");
    }

    #[actix_web::test]
    async fn a_flood_of_resets_ends_its_connection_alone() {
        let backend = Backend::start(|seen| {
            Reply::ok("x").after(Duration::from_millis(if seen.target == "/fine" { 0 } else { 200 }))
        });
        let app =
            TestApp::with_gateway(&(tls_toml(&file("server.pem"), &file("server.key")) + &all_to(&backend)), &[]).await;
        let at = app.app().gateway_tls_address().unwrap();
        let ca = std::fs::read(file("ca.pem")).unwrap();
        // Each stream is opened and reset at once: CVE-2023-44487.
        let (mut from, mut to) = tokio::io::split(connect(at, &ca, &[b"h2"]).await.unwrap());
        let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
            let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
            [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
        };
        let flood = async move {
            to.write_all(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &frame(4, 0, 0, &[])].concat()).await?;
            for stream in (1..20_001).step_by(2) {
                // `GET https://t/`, mostly out of HPACK's table.
                let open = frame(1, 5, stream, &[0x82, 0x87, 0x84, 0x41, 1, b't']);
                to.write_all(&[open, frame(3, 0, stream, &8u32.to_be_bytes())].concat()).await?;
            }
            to.flush().await
        };
        let mut said = Vec::new();
        let (_, read) = tokio::time::timeout(PATIENCE, futures_util::future::join(flood, from.read_to_end(&mut said)))
            .await
            .expect("the connection is ended");
        drop(read);
        assert!(backend.most_under_way() <= 140, "{} reached the service at once", backend.most_under_way());
        assert!(backend.count() < 1000, "{} reached the service", backend.count());
        let mut sender = greet(connect(at, &ca, &[b"h2"]).await.unwrap()).await;
        let answer = sender.send_request(Request::get("https://t/fine").body(body("")).unwrap()).await.unwrap();
        assert_eq!(answer.status(), 200);
        // And what was begun is let go of.
        eventually("nothing is under way", async || {
            let text = app.get("/metrics").await.text();
            let under_way = text.lines().filter(|line| line.starts_with("tidegate_upstream_in_flight"));
            under_way.clone().count() > 0 && under_way.clone().all(|line| line.ends_with(" 0"))
        })
        .await;
    }

    #[actix_web::test]
    async fn an_answer_for_which_no_window_is_opened_is_cut_off() {
        let backend = Backend::start(|seen| match seen.target.as_str() {
            "/small" => Reply::ok("x"),
            _ => Reply::ok(&"x".repeat(1 << 20)),
        });
        let toml = format!("client_timeout = \"300ms\"\n{}", tls_toml(&file("server.pem"), &file("server.key")));
        let app = TestApp::with_gateway(&(toml + &all_to(&backend)), &[]).await;
        let at = app.app().gateway_tls_address().unwrap();
        let ca = std::fs::read(file("ca.pem")).unwrap();
        for window in [0, 65_535] {
            let (mut sender, driver) = hyper::client::conn::http2::Builder::new(Local)
                .initial_stream_window_size(window)
                .handshake(TokioIo::new(connect(at, &ca, &[b"h2"]).await.unwrap()))
                .await
                .unwrap();
            tokio::task::spawn_local(async move {
                let _ = driver.await;
            });
            let small = sender.send_request(Request::get("https://t/small").body(body("")).unwrap()).await.unwrap();
            assert_eq!(small.status(), 200);
            let large = sender.send_request(Request::get("https://t/large").body(body("")).unwrap()).await.unwrap();
            assert_eq!(large.status(), 200);
            // It reads nothing, and all the same holds on.
            eventually("nothing is under way", async || {
                let text = app.get("/metrics").await.text();
                let under_way = text.lines().filter(|line| line.starts_with("tidegate_upstream_in_flight"));
                under_way.clone().count() > 0 && under_way.clone().all(|line| line.ends_with(" 0"))
            })
            .await;
            assert!(large.into_body().collect().await.is_err(), "it was cut");
            drop(small);
        }
    }

    #[actix_web::test]
    async fn a_certificate_that_is_exchanged_is_taken_up() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let path = |end: &str| folder.path().join(format!("{name}.{end}"));
            let made = std::process::Command::new("openssl")
                .args([
                    "req",
                    "-x509",
                    "-newkey",
                    "ec",
                    "-pkeyopt",
                    "ec_paramgen_curve:prime256v1",
                    "-nodes",
                    "-days",
                    "3",
                ])
                .args(["-subj", "/CN=tidegate.test", "-addext", "subjectAltName=DNS:tidegate.test"])
                .args(["-addext", "basicConstraints=critical,CA:FALSE"])
                .arg("-keyout")
                .arg(path("key"))
                .arg("-out")
                .arg(path("pem"))
                .output()
                .unwrap();
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            (std::fs::read(path("pem")).unwrap(), std::fs::read(path("key")).unwrap())
        };
        let (old, new) = (make("old"), make("new"));
        let (cert, key) = (folder.path().join("cert"), folder.path().join("private"));
        std::fs::write(&cert, &old.0).unwrap();
        std::fs::write(&key, &old.1).unwrap();
        let backend = Backend::echo();
        let app = TestApp::with_gateway(&(tls_toml(&cert, &key) + &all_to(&backend)), &[]).await;
        let at = app.app().gateway_tls_address().unwrap();
        let before = connect(at, &old.0, &[b"h2"]).await.unwrap();
        assert!(connect(at, &new.0, &[]).await.is_err());
        // Half of a pair changes nothing.
        std::fs::write(&cert, &new.0).unwrap();
        assert!(connect(at, &old.0, &[]).await.is_ok());
        std::fs::write(&key, &new.1).unwrap();
        eventually("the new certificate is used", async || connect(at, &new.0, &[]).await.is_ok()).await;
        assert!(connect(at, &old.0, &[]).await.is_err());
        let mut sender = greet(before).await;
        let answer = sender.send_request(Request::get("https://t/").body(body("")).unwrap()).await.unwrap();
        assert_eq!(answer.status(), 200, "connections of before go on");
    }

    #[actix_web::test]
    async fn curl_gets_what_it_asks_for() {
        let backend = Backend::echo();
        let app =
            TestApp::with_gateway(&(tls_toml(&file("server.pem"), &file("server.key")) + &all_to(&backend)), &[]).await;
        let at = app.app().gateway_tls_address().unwrap();
        for (version, told) in [("--http2", "2"), ("--http1.1", "1.1")] {
            let output = beside(move || {
                std::process::Command::new("curl")
                    .args(["-sS", version, "--max-time", "10", "--cacert"])
                    .arg(file("ca.pem"))
                    .args(["--resolve", &format!("tidegate.test:{}:127.0.0.1", at.port())])
                    .args(["-o", "-", "-w", "\n%{http_version} %{http_code}", "-d", "hello"])
                    .arg(format!("https://tidegate.test:{}/a", at.port()))
                    .output()
            })
            .await
            .expect("curl can be run");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(text.ends_with(&format!("\n{told} 200")), "{text} {}", String::from_utf8_lossy(&output.stderr));
            assert!(text.contains("\"body\":\"hello\""), "{text}");
        }
        let answer = client::get(&format!("{}/plain", app.gateway())).await;
        assert_eq!(answer.status, 200);
    }
}
