//! Clients that take what they asked for slowly, in part, or not at all, and peers that vanish: what may go on, and what must end.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::gateway::{all_to, route};
use crate::gateway_protocol::{Hand, SWITCH, UPGRADE, with_gateway_times};
use crate::support::{TestApp, eventually};
use crate::wire::{PATIENCE, Wire, beside};

/// One chunk of an answer.
fn chunk(length: usize) -> Vec<u8> {
    [format!("{length:x}\r\n").into_bytes(), vec![b'x'; length], b"\r\n".to_vec()].concat()
}

const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

/// Writes this over and over, as fast as it is taken, until that fails; `None` if it does not for so long.
fn pour(stream: &mut TcpStream, piece: &[u8], most: Duration) -> Option<(Duration, ErrorKind)> {
    stream.set_write_timeout(Some(most)).unwrap();
    let begun = Instant::now();
    while begun.elapsed() < most {
        if let Err(error) = stream.write_all(piece) {
            let failed = (begun.elapsed(), error.kind());
            return (failed.1 != ErrorKind::WouldBlock).then_some(failed);
        }
    }
    None
}

/// Reads so much every 10 ms until told to stop, or the connection ends.
fn sip(mut stream: TcpStream, bytes: usize, stop: &AtomicBool) {
    let mut piece = vec![0; bytes];
    while !stop.load(Ordering::Relaxed) && stream.read_exact(&mut piece).is_ok() {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What the metrics say of the only upstream.
async fn metric(app: &TestApp, name: &str) -> String {
    let text = app.get("/metrics").await.text();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
    line.rsplit(' ').next().unwrap().to_owned()
}

#[actix_web::test]
async fn an_answer_ends_in_time_however_slowly_it_is_taken() {
    // Who takes 1.6 MB/s, and who takes nothing but has the patience of the settings for it.
    for sip_of in [16 << 10, 0] {
        let hand = Hand::listen();
        let toml =
            format!("client_timeout = \"1m\"\n{}", hand.toml()) + &route("all", "path = \"/\"\ntotal_timeout = \"1s\"");
        let app = TestApp::with_gateway(&toml, &[]).await;
        let gateway = app.app().gateway_address().unwrap();
        beside(move || {
            let mut client = Wire::connect(gateway);
            client.send("GET / HTTP/1.1\r\nHost: t\r\n\r\n");
            let (mut target, _) = hand.take();
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                if sip_of > 0 {
                    let stream = client.stream.try_clone().unwrap();
                    scope.spawn(|| sip(stream, sip_of, &stop));
                }
                target.send(CHUNKED);
                let ended = pour(&mut target.stream, &chunk(64 << 10), PATIENCE);
                stop.store(true, Ordering::Relaxed);
                let (after, _) = ended.expect("it goes on and on");
                assert!((Duration::from_millis(800)..Duration::from_secs(3)).contains(&after), "{after:?}");
            });
        })
        .await;
    }
}

#[actix_web::test]
async fn a_client_that_reads_slowly_and_steadily_is_served() {
    let hand = Hand::listen();
    let toml = format!("client_timeout = \"1s\"\n{}", hand.toml())
        + &route("all", "path = \"/\"\ntotal_timeout = \"forever\"");
    let app = TestApp::with_gateway(&toml, &[]).await;
    let gateway = app.app().gateway_address().unwrap();
    beside(move || {
        let mut client = Wire::connect(gateway);
        client.send("GET / HTTP/1.1\r\nHost: t\r\n\r\n");
        let (mut target, _) = hand.take();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let stream = client.stream.try_clone().unwrap();
            // 400 KB/s: what the kernel would hold is gone only after many times the client's time.
            scope.spawn(|| sip(stream, 4 << 10, &stop));
            target.send(CHUNKED);
            let ended = pour(&mut target.stream, &chunk(16 << 10), Duration::from_secs(6));
            stop.store(true, Ordering::Relaxed);
            assert_eq!(ended, None, "it is cut");
        });
    })
    .await;
}

#[actix_web::test]
async fn who_takes_nothing_of_a_tunnel_ends_it() {
    let (_app, hand, gateway) = with_gateway_times("client_timeout = \"300ms\"\n").await;
    beside(move || {
        let open = || {
            let mut client = Wire::connect(gateway);
            client.send(UPGRADE);
            let (mut target, _) = hand.take();
            target.send(SWITCH);
            assert_eq!(client.head().unwrap().status, 101);
            (client, target)
        };
        // The target speaks, and hangs up; its client reads nothing of it.
        let (mut client, mut target) = open();
        let ended = pour(&mut target.stream, &[b'x'; 64 << 10], PATIENCE);
        assert!(ended.is_some(), "a target is held for ever by who reads nothing");
        // Not even that it ended. What was under way is cut short.
        client.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        while client.more() {}
        // The other way round.
        let (mut client, target) = open();
        assert!(pour(&mut client.stream, &[b'x'; 64 << 10], PATIENCE).is_some(), "a client is held for ever");
        drop(target);
        // Silence is no fault, and neither is a pause of the one while the other speaks a little.
        let (mut client, mut target) = open();
        for _ in 0..3 {
            assert!(client.is_silent(Duration::from_millis(500)));
            client.send("ping");
            assert!(target.through(b"ping").is_some());
            target.send("pong");
            assert!(client.through(b"pong").is_some());
        }
    })
    .await;
}

/// Whether the connection from `local` to `remote` asks its peer whether it is there, and when it does so next, as the kernel has
/// it.
fn probes_within(local: u16, remote: u16) -> Option<Duration> {
    let port = |column: &str| u16::from_str_radix(column.rsplit(':').next()?, 16).ok();
    ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|path| {
        std::fs::read_to_string(path).ok()?.lines().skip(1).find_map(|line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            if port(columns[1]) != Some(local) || port(columns[2]) != Some(remote) {
                return None;
            }
            let (timer, when) = columns[5].split_once(':').unwrap();
            // In hundredths of a second.
            (timer == "02").then(|| Duration::from_millis(u64::from_str_radix(when, 16).unwrap() * 10))
        })
    })
}

#[actix_web::test]
async fn peers_that_vanish_are_noticed() {
    let (_app, hand, gateway) = with_gateway_times("").await;
    let ports = beside(move || {
        let mut client = Wire::connect(gateway);
        client.send(UPGRADE);
        let (mut target, _) = hand.take();
        target.send(SWITCH);
        assert_eq!(client.head().unwrap().status, 101);
        let port = |address: std::io::Result<SocketAddr>| address.unwrap().port();
        let of_client = (gateway.port(), port(client.stream.local_addr()));
        let of_target = (port(target.stream.peer_addr()), hand.address.port());
        (of_client, of_target, client, target)
    })
    .await;
    for (name, (local, remote)) in [("client", ports.0), ("target", ports.1)] {
        eventually(&format!("the {name} is asked within a minute"), async || {
            probes_within(local, remote).is_some_and(|within| within <= Duration::from_secs(61))
        })
        .await;
    }
}

#[actix_web::test]
async fn a_client_that_does_not_take_its_101_ends_alone() {
    let hand = Hand::listen();
    let toml = format!("client_timeout = \"1s\"\n{}max_fails = 1\nfail_timeout = \"1m\"\n", hand.toml())
        + &route("all", "path = \"/\"");
    let app = TestApp::with_gateway(&toml, &[]).await;
    let gateway = app.app().gateway_address().unwrap();
    beside(move || {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(4 << 10).unwrap();
        socket.connect(&gateway.into()).unwrap();
        let mut client = Wire { stream: socket.into(), held: Vec::new() };
        client.send(["GET / HTTP/1.1\r\nHost: t\r\n\r\n", UPGRADE].concat());
        let (mut target, _) = hand.take();
        // The kernel holds one of these for it, and not both.
        let pad = "x".repeat(110 << 10);
        target.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{pad}", pad.len()));
        let head = String::from_utf8(target.through(b"\r\n\r\n").expect("the next request")).unwrap();
        assert!(head.to_ascii_lowercase().contains("upgrade: websocket"), "{head}");
        target.send(format!("{}X-Pad: {pad}\r\n\r\n", SWITCH.strip_suffix("\r\n").unwrap()));
        let waited = target.end();
        assert!(waited > Duration::from_millis(500), "the 101 was no answer: {waited:?}");
        drop(client);
    })
    .await;
    // Which says nothing of the target.
    assert_eq!(metric(&app, "tidegate_upstream_usable_targets").await, "1");
}

mod two {
    use bytes::Bytes;
    use http_body_util::BodyExt;
    use hyper::Request;
    use hyper_util::rt::TokioIo;

    use super::*;
    use crate::backend::{Backend, Reply};
    use crate::gateway_protocol::two::{Local, Sender2, body, connect, file, tls_toml};

    /// A gateway with these settings, before a service whose answers are short at `/small` and 4 MiB elsewhere.
    async fn with(settings: &str, of_route: &str) -> (Backend, TestApp, Sender2) {
        let backend = Backend::start(|seen| match seen.target.as_str() {
            "/small" => Reply::ok("x"),
            _ => Reply::ok(&"x".repeat(4 << 20)),
        });
        let toml = format!("{settings}{}", tls_toml(&file("server.pem"), &file("server.key"))) + &all_to(&backend);
        let app = TestApp::with_gateway(&(toml + of_route), &[]).await;
        let at = app.app().gateway_tls_address().unwrap();
        let ca = std::fs::read(file("ca.pem")).unwrap();
        let (sender, driver) = hyper::client::conn::http2::Builder::new(Local)
            .initial_stream_window_size(65_535)
            .handshake(TokioIo::new(connect(at, &ca, &[b"h2"]).await.unwrap()))
            .await
            .unwrap();
        tokio::task::spawn_local(async move {
            let _ = driver.await;
        });
        (backend, app, sender)
    }

    async fn get(sender: &mut Sender2, path: &str) -> hyper::Response<hyper::body::Incoming> {
        let answer =
            sender.send_request(Request::get(format!("https://t{path}")).body(body("")).unwrap()).await.unwrap();
        assert_eq!(answer.status(), 200);
        answer
    }

    async fn small(sender: &mut Sender2) {
        assert_eq!(get(sender, "/small").await.into_body().collect().await.unwrap().to_bytes(), "x");
    }

    /// Asks for something small again and again until nothing else is under way; how long that took.
    async fn until_alone(app: &TestApp, sender: &mut Sender2) -> Duration {
        let begun = Instant::now();
        eventually("its place is let go of", async || {
            small(sender).await;
            metric(app, "tidegate_upstream_in_flight").await == "0"
        })
        .await;
        begun.elapsed()
    }

    #[actix_web::test]
    async fn one_answer_that_is_not_taken_does_not_live_by_the_others() {
        let (_backend, app, mut sender) = with("client_timeout = \"300ms\"\n", "total_timeout = \"forever\"\n").await;
        let paused = get(&mut sender, "/large").await;
        let took = until_alone(&app, &mut sender).await;
        assert!(
            took > Duration::from_millis(1000),
            "a pause beside others is allowed for a while, not for {took:?} only"
        );
        assert!(paused.into_body().collect().await.is_err(), "it looks whole");
        small(&mut sender).await;
    }

    #[actix_web::test]
    async fn one_answer_that_takes_too_long_ends_alone() {
        let (_backend, app, mut sender) = with("client_timeout = \"1m\"\n", "total_timeout = \"700ms\"\n").await;
        let paused = get(&mut sender, "/large").await;
        let took = until_alone(&app, &mut sender).await;
        assert!((Duration::from_millis(500)..Duration::from_secs(3)).contains(&took), "{took:?}");
        assert!(paused.into_body().collect().await.is_err(), "it looks whole");
        small(&mut sender).await;
    }

    #[actix_web::test]
    async fn a_stream_that_is_taken_slowly_and_steadily_comes_whole() {
        let (_backend, _app, mut sender) = with("client_timeout = \"1500ms\"\n", "total_timeout = \"forever\"\n").await;
        let mut large = get(&mut sender, "/large").await.into_body();
        let (begun, mut got) = (Instant::now(), 0);
        // 160 KB/s at most: what the target sends at once takes longer than a client may pause.
        while begun.elapsed() < Duration::from_secs(6) {
            let piece: Bytes = large.frame().await.expect("more").expect("it is cut").into_data().unwrap();
            got += piece.len();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        while let Some(frame) = large.frame().await {
            got += frame.unwrap().into_data().unwrap().len();
        }
        assert_eq!(got, 4 << 20);
    }
}
