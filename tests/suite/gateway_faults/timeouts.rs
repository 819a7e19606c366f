//! Time-outs, and clients that do not wait for an answer.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::{Barrier, Line, ask, at, gateway, get, metric_becomes, of_addresses, start};
use crate::backend::{Backend, Reply};
use crate::support::eventually;

const IN_FLIGHT: &str = r#"tidegate_upstream_in_flight{upstream="a"}"#;

/// An address that takes no further connection and refuses none, for as long as these live.
fn full() -> (tokio::net::TcpListener, SocketAddr, Vec<TcpStream>) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = vec![];
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        waiting.push(stream);
    }
    (listener, address, waiting)
}

#[actix_web::test]
async fn a_target_that_takes_no_connection() {
    let (_listener, address, _waiting) = full();
    let route = "connect_timeout = \"200ms\"\nretries = 0";
    let app = start(&of_addresses(&[address.to_string()], "", route)).await;
    let begun = Instant::now();
    let got = get(at(&app), "/");
    assert_eq!((got.status, got.code().as_str()), (504, "upstream_timeout"));
    assert!(begun.elapsed() >= Duration::from_millis(200) && begun.elapsed() < Duration::from_secs(2));
    // Another target takes what it was not sent.
    let well = Backend::echo();
    let route = "connect_timeout = \"200ms\"";
    let addresses = [address.to_string(), well.address.to_string()];
    let second = start(&of_addresses(&addresses, "", route)).await;
    for n in 0..4 {
        assert_eq!(ask(at(&second), "POST", &format!("/{n}"), "", "body").status, 200);
    }
    assert_eq!(well.count(), 4);
    app.stop().await;
    second.stop().await;
}

#[actix_web::test]
async fn a_target_that_says_nothing_or_does_not_finish() {
    let backend = Backend::start(|seen| {
        if seen.target == "/silent" {
            return Reply::ok("late").after(Duration::from_millis(800));
        }
        let head = "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n";
        (0..20).fold(Reply::raw(head), |reply, _| reply.then("some", Duration::from_millis(50)))
    });
    let mut toml = gateway(&[&backend], "", "first_byte_timeout = \"200ms\"");
    toml.push_str(&super::way("total", "/total", "a", "total_timeout = \"300ms\""));
    let app = start(&toml).await;
    for method in ["GET", "POST"] {
        let begun = Instant::now();
        let got = ask(at(&app), method, "/silent", "", "x");
        assert_eq!((got.status, got.code().as_str()), (504, "upstream_timeout"), "{method}");
        assert!(begun.elapsed() >= Duration::from_millis(200) && begun.elapsed() < Duration::from_millis(750));
        // It may have been heard, so it is not sent again.
        assert_eq!(backend.seen().iter().filter(|seen| seen.method == method).count(), 1);
    }
    let begun = Instant::now();
    let mut line = Line::to(at(&app)).unwrap();
    line.send("GET", "/total", "", "").unwrap();
    assert!(line.read().is_err(), "an answer that is cut is not made to look whole");
    assert!(begun.elapsed() >= Duration::from_millis(250) && begun.elapsed() < Duration::from_millis(900));
    metric_becomes(&app, IN_FLIGHT, 0.0).await;
    app.stop().await;
}

#[actix_web::test]
async fn who_waits_for_a_place_waits_no_longer_than_for_the_answer() {
    let barrier = Barrier::default();
    let held = barrier.clone();
    let backend = Backend::start(move |_| {
        held.pass();
        Reply::ok("ok")
    });
    let upstream = "max_in_flight = 1\nmax_queue = 5\nqueue_timeout = \"10s\"";
    let toml = gateway(&[&backend], upstream, "") + &super::way("brief", "/brief", "a", "total_timeout = \"200ms\"");
    let app = start(&toml).await;
    let mut first = Line::to(at(&app)).unwrap();
    first.send("GET", "/", "", "").unwrap();
    eventually("it is under way", async || backend.count() == 1).await;
    let begun = Instant::now();
    let got = get(at(&app), "/brief");
    assert_eq!((got.status, got.code().as_str()), (503, "overloaded"), "{got:?}");
    assert!(got.header("retry-after").is_some() && begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    metric_becomes(&app, r#"tidegate_upstream_waiting{upstream="a"}"#, 0.0).await;
    barrier.open();
    assert_eq!(first.read().unwrap().status, 200);
    app.stop().await;
}

#[actix_web::test]
async fn a_client_that_leaves_gives_back_its_place() {
    let barrier = Barrier::default();
    let held = barrier.clone();
    let backend = Backend::start(move |seen| {
        if seen.target == "/held" {
            held.pass();
        }
        Reply::ok("ok")
    });
    let app = start(&gateway(&[&backend], "max_in_flight = 2\nmax_queue = 1\nqueue_timeout = \"10s\"", "")).await;
    for (n, method) in ["GET", "POST"].into_iter().enumerate() {
        let mut lines: Vec<Line> = (0..2).map(|_| Line::to(at(&app)).unwrap()).collect();
        lines.iter_mut().for_each(|line| line.send(method, "/held", "", "body").unwrap());
        let all = 3 * n as u64;
        eventually("both are under way", async || backend.count() == all + 2).await;
        metric_becomes(&app, IN_FLIGHT, 2.0).await;
        // One more waits, and leaves as well.
        let mut third = Line::to(at(&app)).unwrap();
        third.send(method, "/held", "", "").unwrap();
        metric_becomes(&app, r#"tidegate_upstream_waiting{upstream="a"}"#, 1.0).await;
        drop(third);
        metric_becomes(&app, r#"tidegate_upstream_waiting{upstream="a"}"#, 0.0).await;
        drop(lines);
        metric_becomes(&app, IN_FLIGHT, 0.0).await;
        assert_eq!(get(at(&app), "/free").status, 200, "there is room again");
        metric_becomes(&app, IN_FLIGHT, 0.0).await;
    }
    assert_eq!(backend.count(), 6, "who left while waiting was never sent");
    metric_becomes(&app, r#"tidegate_target_in_flight{upstream="a",target="0"}"#, 0.0).await;
    metric_becomes(&app, r#"tidegate_gateway_requests_total{route="all",status="cancelled"}"#, 6.0).await;
    barrier.open();
    app.stop().await;
}
