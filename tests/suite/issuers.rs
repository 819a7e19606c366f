//! Other issuers at their worst: keys that change under load while their server comes and goes, and servers that cannot prove
//! who they are. And our own keys, when they cannot be written.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use tidegate::clock::Clock;

use crate::identity::{CHEAP, Key, KeyServer, code, coded, login, me, register};
use crate::support::{TestApp, eventually};

fn issuer(url: &str, more: &str) -> String {
    format!(
        "[{{issuer = \"https://login.example\", jwks_url = \"{url}\", audience = \"shop\", timeout = \"300ms\", \
         algorithms = [\"EdDSA\"]{more}}}]"
    )
}

fn claims() -> serde_json::Value {
    let now = Clock::system().now() / 1000;
    json!({"iss": "https://login.example", "aud": "shop", "sub": "42", "exp": now + 3600})
}

#[actix_web::test]
async fn keys_change_under_load_while_their_server_comes_and_goes() {
    let server = KeyServer::start();
    let made: Vec<(String, Key)> = (0..8).map(|n| (format!("key{n}"), Key::new("EdDSA"))).collect();
    let publish = |which: std::ops::Range<usize>| {
        *server.keys.lock().unwrap() = made[which].iter().map(|(kid, key)| key.jwk(kid)).collect();
    };
    publish(0..2);
    let issuers = issuer(&server.url, ", refresh_interval = \"1s\", max_stale = \"1h\"");
    let app = TestApp::with(&[("identity.issuers", issuers.as_str())], Clock::system()).await;
    // What is in use: a token of the key that signs and one of the key before, as those are about for their lifetime.
    let of = |n: usize| made[n].1.token(&made[n].0, &claims());
    let in_use = Arc::new(Mutex::new(vec![of(0)]));
    eventually("the first are read", async || me(&app.url, &of(0)).await.status == 200).await;
    let (over, checked, slowest) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let load: Vec<_> = (0..4)
        .map(|_| {
            let (url, in_use, over) = (app.url.clone(), in_use.clone(), over.clone());
            let (checked, slowest) = (checked.clone(), slowest.clone());
            actix_web::rt::spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    let tokens = in_use.lock().unwrap().clone();
                    for token in tokens {
                        let begun = Instant::now();
                        let answer = me(&url, &token).await;
                        assert_eq!(answer.status, 200, "{}", answer.text());
                        let took = u64::try_from(begun.elapsed().as_millis()).unwrap();
                        slowest.fetch_max(took, Ordering::Relaxed);
                        checked.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
        })
        .collect();
    // One that is used before it is published: nobody knows, and nobody says it is wrong while the issuer does not answer.
    let unknown = made[7].1.token(&made[7].0, &claims());
    for n in 0..6_usize {
        // The next is published; whoever reads ahead has it before it signs.
        publish(n.saturating_sub(1)..n + 2);
        server.silent.store(false, Ordering::SeqCst);
        server.down.store(false, Ordering::SeqCst);
        let before = server.asked.load(Ordering::SeqCst);
        eventually("it was asked, and read", async || {
            server.asked.load(Ordering::SeqCst) > before && me(&app.url, &of(n + 1)).await.status == 200
        })
        .await;
        // It falls silent, or hangs up; and just then the next key takes over.
        let away = if n % 2 == 0 { &server.silent } else { &server.down };
        away.store(true, Ordering::SeqCst);
        *in_use.lock().unwrap() = vec![of(n), of(n + 1)];
        let (asked, begun) = (server.asked.load(Ordering::SeqCst), Instant::now());
        eventually("it was asked in vain", async || server.asked.load(Ordering::SeqCst) >= asked + 2).await;
        eventually("that nobody knows is told", async || {
            let answer = code(&me(&app.url, &unknown).await);
            let known = answer == coded(503, "unavailable");
            assert!(known || begun.elapsed() < Duration::from_secs(5), "{answer:?}");
            known
        })
        .await;
    }
    over.store(true, Ordering::Relaxed);
    for one in load {
        one.await.unwrap();
    }
    let (checked, slowest) = (checked.load(Ordering::Relaxed), slowest.load(Ordering::Relaxed));
    println!("{checked} requests while 7 keys signed, the slowest after {slowest} ms");
    assert!(checked > 200 && slowest < 1000, "{checked} requests, the slowest after {slowest} ms");
    app.stop().await;
}

#[actix_web::test]
async fn keys_come_over_tls_from_whom_the_authority_vouches_for() {
    let at = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("src/gateway/test_tls").join(name);
    let read = |name: &str| std::fs::read(at(name)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other.pem");
    let stranger = folder.path().join("stranger.key");
    let openssl = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "3"])
        .args(["-subj", "/CN=stranger", "-addext", "subjectAltName=IP:127.0.0.1"])
        .arg("-keyout")
        .arg(&stranger)
        .arg("-out")
        .arg(&other)
        .output()
        .unwrap();
    assert!(openssl.status.success(), "{}", String::from_utf8_lossy(&openssl.stderr));
    let (right, false_one) = (
        KeyServer::secure(&read("server.pem"), &read("server.key")),
        KeyServer::secure(&std::fs::read(&other).unwrap(), &std::fs::read(&stranger).unwrap()),
    );
    let plain = KeyServer::start();
    let key = Key::new("EdDSA");
    for server in [&right, &false_one, &plain] {
        server.keys.lock().unwrap().push(key.jwk("1"));
    }
    let ca = |path: &Path| format!(", ca_file = \"{}\"", path.display());
    let token = key.token("1", &claims());
    let by_name = right.url.replace("127.0.0.1", "localhost");
    let to_plain = plain.url.replace("http://", "https://");
    for (what, url, more, status) in [
        ("the right one", &right.url, ca(&at("ca.pem")), 200),
        ("another's certificate", &false_one.url, ca(&at("ca.pem")), 503),
        ("another authority", &right.url, ca(&other), 503),
        ("the system's authorities", &right.url, String::new(), 503),
        ("another name", &by_name, ca(&at("ca.pem")), 503),
        ("no TLS", &to_plain, ca(&at("ca.pem")), 503),
    ] {
        let issuers = issuer(url, &more);
        let app = TestApp::with(&[("identity.issuers", issuers.as_str())], Clock::system()).await;
        let answer = me(&app.url, &token).await;
        assert_eq!(answer.status, status, "{what}: {}", answer.text());
        let reason = "the keys of identity.issuers.#1 could never be read; its tokens are answered 503";
        let wanted =
            if status == 200 { json!({"status": "ok"}) } else { json!({"status": "degraded", "reason": reason}) };
        eventually(what, async || app.get("/health").await.json()["identity"] == wanted).await;
        assert_eq!(app.get("/health/ready").await.status, 200, "{what}");
        app.stop().await;
    }
}

#[actix_web::test]
async fn health_tells_that_the_next_signing_key_cannot_be_written() {
    let settings =
        [CHEAP.as_slice(), &[("identity.key_rotation", "1s"), ("identity.refresh_interval", "100ms")]].concat();
    let app = TestApp::with(&settings, Clock::system()).await;
    register(&app.url, "joe").await;
    // Where the new keys are written first.
    let beside = app.folder.path().join("data/identity/keys.json.new");
    eventually("it cannot be written", async || std::fs::create_dir(&beside).is_ok() || beside.is_dir()).await;
    let health = async || app.get("/health").await.json()["identity"].clone();
    eventually("health tells", async || {
        health().await
            == json!({"status": "degraded", "reason": "the next signing key cannot be written; the old one signs on"})
    })
    .await;
    let (access, _) = login(&app.url, "joe").await;
    assert_eq!(me(&app.url, &access).await.status, 200, "the old one signs on");
    std::fs::remove_dir(&beside).unwrap();
    eventually("it is well again", async || health().await == json!({"status": "ok"})).await;
    assert_eq!(me(&app.url, &access).await.status, 200);
    app.stop().await;
}
