use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use jsonwebtoken::Algorithm;
use parking_lot::Mutex;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::identity::options::JwksUrl;
use crate::identity::ring::SigningKey;

/// An issuer's key server, which does as it is told.
struct Server {
    port: u16,
    asked: Arc<AtomicUsize>,
    /// What it answers; nothing is silence.
    answer: Arc<Mutex<Option<String>>>,
}

fn answer(status: &str, body: &str) -> Option<String> {
    Some(format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len()))
}

fn document(keys: &[&SigningKey]) -> String {
    let keys: Vec<_> = keys
        .iter()
        .map(|key| json!({"kty": "OKP", "crv": "Ed25519", "kid": key.kid, "x": key.public, "alg": "EdDSA"}))
        .collect();
    json!({"keys": keys}).to_string()
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (asked, answer): (Arc<AtomicUsize>, Arc<Mutex<Option<String>>>) = Default::default();
        let (count, says) = (asked.clone(), answer.clone());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (count, says) = (count.clone(), says.clone());
                tokio::spawn(async move {
                    let mut head = vec![];
                    while !head.ends_with(b"\r\n\r\n") {
                        head.push(stream.read_u8().await.unwrap());
                    }
                    count.fetch_add(1, Ordering::SeqCst);
                    let text = says.lock().clone();
                    match text {
                        Some(text) => stream.write_all(text.as_bytes()).await.unwrap(),
                        None => std::future::pending().await,
                    }
                });
            }
        });
        Self { port, asked, answer }
    }

    fn says(&self, text: Option<String>) {
        *self.answer.lock() = text;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn issuer(&self, clock: &Clock) -> Arc<Issuer> {
        let options = IssuerOptions {
            issuer: String::from("https://login.example"),
            jwks: JwksUrl::parse(&format!("http://127.0.0.1:{}/keys", self.port)).unwrap(),
            audience: String::from("shop"),
            algorithms: vec![Algorithm::EdDSA],
            roles: vec![],
            refresh: Duration::from_secs(300),
            stale: Duration::from_secs(86_400),
            timeout: Duration::from_millis(300),
            ca: None,
        };
        Issuer::new(options, clock.clone(), Arc::new(AtomicU64::new(0))).unwrap()
    }
}

const DOWN: Rejection = wait(1);

const fn wait(seconds: u64) -> Rejection {
    Rejection::Unavailable { retry_after: Duration::from_secs(seconds) }
}

#[actix_web::test]
async fn a_flood_at_the_start_is_one_question() {
    let (server, clock, key) = (Server::start().await, Clock::manual(1_000_000), SigningKey::generate().unwrap());
    server.says(answer("200 OK", &document(&[&key])));
    let issuer = server.issuer(&clock);
    let asks = (0..100).map(|_| {
        let (issuer, kid) = (issuer.clone(), key.kid.clone());
        tokio::spawn(async move { issuer.key(Some(&kid)).await.is_ok() })
    });
    for ask in asks.collect::<Vec<_>>() {
        assert!(ask.await.unwrap());
    }
    assert_eq!(server.asked(), 1);
}

#[actix_web::test]
async fn a_new_key_is_found_and_unknown_ones_are_looked_for_once_in_ten_seconds() {
    let (server, clock) = (Server::start().await, Clock::manual(1_000_000));
    let (old, new) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    server.says(answer("200 OK", &document(&[&old])));
    let issuer = server.issuer(&clock);
    issuer.tend().await;
    assert!(issuer.key(Some(&old.kid)).await.is_ok());
    server.says(answer("200 OK", &document(&[&old, &new])));
    assert!(issuer.key(Some(&new.kid)).await.is_ok(), "it is in use before it was read ahead");
    assert_eq!(server.asked(), 2);
    for _ in 0..1000 {
        assert_eq!(issuer.key(Some("nobody")).await.unwrap_err(), wait(10), "nobody has looked for it");
    }
    assert_eq!(server.asked(), 2);
    clock.advance(Duration::from_secs(10));
    for _ in 0..1000 {
        assert_eq!(issuer.key(Some("nobody")).await.unwrap_err(), Rejection::Invalid("unknown_key"));
    }
    assert_eq!(server.asked(), 3);
}

#[actix_web::test]
async fn a_new_key_is_not_refused_because_a_forged_one_has_used_up_the_question() {
    let (server, clock) = (Server::start().await, Clock::manual(1_000_000));
    let (old, new) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    server.says(answer("200 OK", &document(&[&old])));
    let issuer = server.issuer(&clock);
    issuer.tend().await;
    assert_eq!(issuer.key(Some("forged")).await.unwrap_err(), Rejection::Invalid("unknown_key"));
    assert_eq!(server.asked(), 2);
    // It takes another key into use, of which nobody could know; and a flood of names is there too.
    clock.advance(Duration::from_secs(3));
    server.says(answer("200 OK", &document(&[&old, &new])));
    for second in (1..=7).rev() {
        assert_eq!(issuer.key(Some(&new.kid)).await.unwrap_err(), wait(second));
        for n in 0..2000 {
            assert!(issuer.key(Some(&format!("forged {second} {n}"))).await.is_err());
        }
        assert_eq!(issuer.key(Some("forged")).await.unwrap_err(), Rejection::Invalid("unknown_key"));
        clock.advance(Duration::from_secs(1));
    }
    assert_eq!(server.asked(), 2);
    assert!(issuer.key(Some(&new.kid)).await.is_ok(), "it waits no longer than for the next question");
    assert_eq!(issuer.key(Some("forged 7 0")).await.unwrap_err(), Rejection::Invalid("unknown_key"));
    assert_eq!(server.asked(), 3);
}

#[test]
fn of_many_threads_at_once_one_asks() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    runtime.block_on(async {
        let (server, clock, key) = (Server::start().await, Clock::manual(1_000_000), SigningKey::generate().unwrap());
        server.says(answer("200 OK", &document(&[&key])));
        let issuer = server.issuer(&clock);
        issuer.tend().await;
        for round in 0..300 {
            clock.advance(Duration::from_secs(10));
            let asked = server.asked();
            let asks = (0..32).map(|n| {
                let issuer = issuer.clone();
                tokio::spawn(async move { issuer.key(Some(&format!("forged {round} {n}"))).await.is_err() })
            });
            for ask in asks.collect::<Vec<_>>() {
                assert!(ask.await.unwrap());
            }
            assert_eq!(server.asked() - asked, 1, "in round {round}");
        }
    });
}

#[actix_web::test]
async fn who_hangs_up_does_not_use_up_the_question() {
    let (server, clock, key) = (Server::start().await, Clock::manual(1_000_000), SigningKey::generate().unwrap());
    server.says(answer("200 OK", &document(&[&key])));
    let issuer = server.issuer(&clock);
    {
        let mut asks = Box::pin(issuer.key(Some("forged")));
        assert!(futures_util::poll!(&mut asks).is_pending(), "it has begun to ask");
    }
    assert!(issuer.key(Some(&key.kid)).await.is_ok());
    assert_eq!(server.asked(), 1);
}

#[actix_web::test]
async fn an_hour_without_its_server_changes_nothing_for_known_keys() {
    let (server, clock, key) = (Server::start().await, Clock::manual(1_000_000), SigningKey::generate().unwrap());
    server.says(answer("200 OK", &document(&[&key])));
    let issuer = server.issuer(&clock);
    issuer.tend().await;
    for second in 0..3600 {
        // Down, silent, and talking rubbish.
        server.says(match second % 3 {
            0 => answer("500 Internal Server Error", "{}"),
            1 => answer("200 OK", "<html>"),
            _ => answer("200 OK", &"x".repeat(300 << 10)),
        });
        clock.advance(Duration::from_secs(1));
        issuer.tend().await;
        assert!(issuer.key(Some(&key.kid)).await.is_ok(), "after {second} s");
    }
    server.says(None);
    clock.advance(Duration::from_secs(60));
    let watch = crate::clock::Stopwatch::start();
    assert_eq!(issuer.key(Some("new")).await.unwrap_err(), DOWN, "nobody can say that there is no such key");
    assert!(watch.elapsed() < Duration::from_secs(2));
    assert!(issuer.key(Some(&key.kid)).await.is_ok());
    clock.advance(Duration::from_secs(86_400));
    assert_eq!(issuer.key(Some(&key.kid)).await.unwrap_err(), DOWN, "not for ever");
    server.says(answer("200 OK", &document(&[&key])));
    clock.advance(Duration::from_secs(30));
    issuer.tend().await;
    assert!(issuer.key(Some(&key.kid)).await.is_ok());
}

#[actix_web::test]
async fn one_that_was_never_read_is_not_known_to_be_wrong() {
    let (server, clock) = (Server::start().await, Clock::manual(1_000_000));
    server.says(answer("404 Not Found", "{}"));
    let issuer = server.issuer(&clock);
    for _ in 0..100 {
        assert_eq!(issuer.key(Some("any")).await.unwrap_err(), DOWN);
    }
    assert_eq!(server.asked(), 1);
}
