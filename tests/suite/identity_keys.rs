//! Keys that are new, old or not there: nobody is refused whose key could not be known yet, nobody is believed whose key is too
//! old, and nobody is believed for a key that is another's. And in which order the keys of a session are held.

use std::sync::atomic::Ordering;
use std::time::Duration;

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::signature::KeyPair;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tidegate::clock::Clock;

use super::catalog_stores::urls;
use super::identity::{CHEAP, Key, KeyServer, NOON, PASSWORD, code, coded, login, me, post, refresh, register, tokens};
use super::services::Service;
use super::support::{TestApp, eventually};

fn part(json: &Value) -> String {
    URL_SAFE_NO_PAD.encode(json.to_string())
}

fn unavailable() -> (u16, String) {
    coded(503, "unavailable")
}

#[actix_web::test]
async fn a_key_of_another_instance_is_not_refused_because_a_forged_one_was_looked_for() {
    let database = urls().await.swap_remove(1).1;
    // Only what a request needs is read.
    let settings =
        [CHEAP.as_slice(), &[("catalog.url", database.as_str()), ("identity.refresh_interval", "1h")]].concat();
    let clock = Clock::manual(NOON);
    let b = TestApp::with(&settings, clock.clone()).await;
    register(&b.url, "joe").await;
    let (ours, _) = login(&b.url, "joe").await;
    let forged = |kid: &str| {
        let rest = ours.split_once('.').unwrap().1;
        format!("{}.{rest}", part(&json!({"alg": "EdDSA", "typ": "at+jwt", "kid": kid})))
    };
    assert_eq!(code(&me(&b.url, &forged("one")).await), coded(401, "unauthorized"), "it was looked for at once");
    // Another instance starts, with keys that nobody has seen.
    let a = TestApp::with(&settings, Clock::manual(NOON)).await;
    let (new, _) = login(&a.url, "joe").await;
    for _ in 0..20 {
        let answer = me(&b.url, &new).await;
        assert_eq!((code(&answer), answer.header("retry-after")), (unavailable(), Some("1")));
        assert_eq!(code(&me(&b.url, &forged("two")).await), unavailable());
        assert_eq!(code(&me(&b.url, &forged("one")).await), coded(401, "unauthorized"));
    }
    clock.advance(Duration::from_secs(1));
    assert_eq!(me(&b.url, &new).await.status, 200);
    assert_eq!(code(&me(&b.url, &forged("two")).await), coded(401, "unauthorized"));
    b.stop().await;
    a.stop().await;
}

#[actix_web::test]
async fn nothing_is_issued_that_others_cannot_verify_when_the_database_comes_late() {
    let database = Service::start("postgres", &[]);
    let settings =
        [CHEAP.as_slice(), &[("catalog.url", database.address.as_str()), ("identity.refresh_interval", "1h")]].concat();
    let b = TestApp::with(&settings, Clock::system()).await;
    register(&b.url, "joe").await;
    database.kill(None);
    let a = TestApp::with(&settings, Clock::system()).await;
    let log_in = async |url: &str| post(url, "login", &json!({"login": "joe", "password": PASSWORD})).await;
    assert_eq!(code(&log_in(&a.url).await), unavailable());
    database.restart();
    eventually("the other one has its database again", async || log_in(&b.url).await.status == 200).await;
    let mut access = String::new();
    eventually("it is there", async || {
        let answer = log_in(&a.url).await;
        assert!(answer.status == 200 || code(&answer) == unavailable(), "{}", answer.text());
        if answer.status == 200 {
            access = tokens(&answer).0;
        }
        answer.status == 200
    })
    .await;
    eventually("what it issued is good everywhere", async || {
        let answer = me(&b.url, &access).await;
        assert!(answer.status == 200 || code(&answer) == unavailable(), "{}", answer.text());
        answer.status == 200
    })
    .await;
    a.stop().await;
    b.stop().await;
}

#[actix_web::test]
async fn a_token_in_use_is_not_taken_beyond_the_time_of_its_issuers_keys() {
    let (server, clock, key) = (KeyServer::start(), Clock::manual(NOON), Key::new("EdDSA"));
    server.keys.lock().unwrap().push(key.jwk("1"));
    let issuers = format!(
        "[{{issuer = \"https://login.example\", jwks_url = \"{}\", audience = \"shop\", timeout = \"300ms\", \
         algorithms = [\"EdDSA\"], max_stale = \"10m\"}}]",
        server.url
    );
    let app = TestApp::with(&[("identity.issuers", issuers.as_str())], clock.clone()).await;
    let claims = json!({"iss": "https://login.example", "aud": "shop", "sub": "42", "exp": NOON / 1000 + 36_000});
    let token = key.token("1", &claims);
    for _ in 0..3 {
        assert_eq!(me(&app.url, &token).await.status, 200);
    }
    server.down.store(true, Ordering::SeqCst);
    clock.advance(Duration::from_secs(599));
    assert_eq!(me(&app.url, &token).await.status, 200, "max_stale is not over");
    clock.advance(Duration::from_secs(1));
    for _ in 0..3 {
        assert_eq!(code(&me(&app.url, &token).await), unavailable());
    }
    server.down.store(false, Ordering::SeqCst);
    eventually("its keys are read again", async || {
        clock.advance(Duration::from_secs(1));
        me(&app.url, &token).await.status == 200
    })
    .await;
    app.stop().await;
}

fn pem(what: &str, der: &[u8]) -> Vec<u8> {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {what}-----\n{}\n-----END {what}-----\n", lines.join("\n")).into_bytes()
}

#[actix_web::test]
async fn what_another_issuer_did_not_sign_for_us_now_is_refused() {
    let (server, theirs) = (KeyServer::start(), KeyServer::start());
    let (key, second, other) = (Key::new("RS256"), Key::new("RS256"), Key::new("RS256"));
    server.keys.lock().unwrap().extend([key.jwk("1"), second.jwk("2")]);
    theirs.keys.lock().unwrap().push(other.jwk("theirs"));
    let issuer = |name: &str, url: &str| {
        format!(
            "{{issuer = \"https://{name}.example\", jwks_url = \"{url}\", audience = \"shop\", algorithms = [\"RS256\"]}}"
        )
    };
    let issuers = format!("[{}, {}]", issuer("login", &server.url), issuer("other", &theirs.url));
    let clock = Clock::manual(NOON);
    let app = TestApp::with(&[("identity.issuers", issuers.as_str())], clock.clone()).await;
    let good = || {
        let now = clock.now() / 1000;
        json!({"iss": "https://login.example", "aud": "shop", "sub": "42", "exp": now + 3600, "iat": now})
    };
    let mut of_other = good();
    of_other["iss"] = json!("https://other.example");
    eventually("the keys of both are read", async || {
        me(&app.url, &key.token("1", &good())).await.status == 200
            && me(&app.url, &other.token("theirs", &of_other)).await.status == 200
    })
    .await;

    let Key::Rsa(pair) = &key else { unreachable!() };
    let whole = pair.public_key().as_der().unwrap();
    let (whole, bare): (&[u8], &[u8]) = (whole.as_ref(), pair.public_key().as_ref());
    let (whole_pem, bare_pem) = (pem("PUBLIC KEY", whole), pem("RSA PUBLIC KEY", bare));
    let trimmed = String::from_utf8(whole_pem.clone()).unwrap().trim_end().as_bytes().to_vec();
    let modulus = pair.public_key().modulus().big_endian_without_leading_zero().to_vec();
    let jwk = key.jwk("1").to_string().into_bytes();
    let confused = |alg: &str, secret: &[u8]| {
        let algorithm = match alg {
            "HS256" => aws_lc_rs::hmac::HMAC_SHA256,
            "HS384" => aws_lc_rs::hmac::HMAC_SHA384,
            _ => aws_lc_rs::hmac::HMAC_SHA512,
        };
        let message = format!("{}.{}", part(&json!({"alg": alg, "kid": "1", "typ": "JWT"})), part(&good()));
        let tag = aws_lc_rs::hmac::sign(&aws_lc_rs::hmac::Key::new(algorithm, secret), message.as_bytes());
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(tag))
    };
    // With the right key, so that what a token says is all that can be wrong with it.
    let says = |name: &str, value: Value| {
        let mut claims = good();
        claims[name] = value;
        key.token("1", &claims)
    };
    let without = |name: &str| {
        let mut claims = good();
        claims.as_object_mut().unwrap().remove(name);
        key.token("1", &claims)
    };
    let nameless = {
        let message = format!("{}.{}", part(&json!({"alg": "RS256", "typ": "JWT"})), part(&good()));
        let mut signature = vec![0; pair.public_modulus_len()];
        let random = aws_lc_rs::rand::SystemRandom::new();
        pair.sign(&aws_lc_rs::signature::RSA_PKCS1_SHA256, &random, message.as_bytes(), &mut signature).unwrap();
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    };
    let bare_none = format!("{}.{}.", part(&json!({"alg": "none", "kid": "1"})), part(&good()));
    let now = NOON / 1000;
    let table = [
        ("its public key in PEM as a secret", confused("HS256", &whole_pem), "wrong_algorithm"),
        ("the same without the line's end", confused("HS256", &trimmed), "wrong_algorithm"),
        ("in DER", confused("HS256", whole), "wrong_algorithm"),
        ("as PKCS#1 in PEM", confused("HS256", &bare_pem), "wrong_algorithm"),
        ("as PKCS#1 in DER", confused("HS256", bare), "wrong_algorithm"),
        ("its modulus", confused("HS256", &modulus), "wrong_algorithm"),
        ("its JWK", confused("HS256", &jwk), "wrong_algorithm"),
        ("HS384", confused("HS384", &whole_pem), "wrong_algorithm"),
        ("HS512", confused("HS512", whole), "wrong_algorithm"),
        ("no signature", bare_none, "malformed"),
        ("another issuer's name", says("iss", json!("https://evil.example")), "unknown_issuer"),
        ("its name, almost", says("iss", json!("https://login.example/")), "unknown_issuer"),
        ("our name", says("iss", json!("tidegate")), "unknown_key"),
        ("the other one's name", says("iss", json!("https://other.example")), "unknown_key"),
        ("no name", without("iss"), "malformed"),
        ("for somebody else", says("aud", json!("tidegate")), "wrong_audience"),
        ("for several others", says("aud", json!(["a", "b"])), "wrong_audience"),
        ("for nobody", without("aud"), "malformed"),
        ("expired", says("exp", json!(now - 31)), "expired"),
        ("without an end", without("exp"), "malformed"),
        ("not yet valid", says("nbf", json!(now + 86_400)), "not_yet_valid"),
        ("issued ahead", says("iat", json!(now + 86_400)), "not_yet_valid"),
        ("of nobody", without("sub"), "malformed"),
        ("no kid where there are two keys", nameless, "unknown_key"),
        ("a kid of another issuer", other.token("theirs", &good()), "unknown_key"),
        ("another issuer's key", other.token("1", &good()), "wrong_signature"),
        ("another key of its own", second.token("1", &good()), "wrong_signature"),
        ("no kid of anybody", key.token("3", &good()), "unknown_key"),
    ];
    let count = async |reason: &str| {
        let line = format!("tidegate_tokens_rejected_total{{reason=\"{reason}\"}} ");
        let metrics = app.get("/metrics").await.text();
        metrics.lines().find_map(|metric| metric.strip_prefix(&line)).map_or(0, |n| n.parse::<f64>().unwrap() as u64)
    };
    for (what, token, reason) in &table {
        if *reason == "unknown_key" {
            // Looked for when there may be a question again; nobody knows before.
            let status = me(&app.url, token).await.status;
            assert!(status == 401 || status == 503, "{what}: {status}");
            clock.advance(Duration::from_secs(10));
        }
        let before = count(reason).await;
        let answer = me(&app.url, token).await;
        assert_eq!(code(&answer), coded(401, "unauthorized"), "{what}: {}", answer.text());
        assert_eq!(count(reason).await, before + 1, "{what} is refused for something else than {reason}");
    }
    assert_eq!(me(&app.url, &key.token("1", &good())).await.status, 200, "the good one is as good as before");
    app.stop().await;
}

#[actix_web::test]
async fn a_session_is_held_before_its_tokens() {
    let all = urls().await;
    for (name, url) in all.into_iter().filter(|(name, _)| *name != "SQLite") {
        let app = TestApp::with(&[CHEAP.as_slice(), &[("catalog.url", &url)]].concat(), Clock::system()).await;
        register(&app.url, "joe").await;
        let (_, token) = login(&app.url, "joe").await;
        let (at, held) = (app.url.clone(), token.clone());
        let refreshing = async move { refresh(&at, &held).await };
        let (family, first) =
            ("SELECT id FROM token_families FOR UPDATE", "SELECT hash FROM refresh_tokens FOR UPDATE NOWAIT");
        // Somebody holds the session, as who deletes its account does. A refresh that waits for it must not hold the token.
        let answer = if name == "PostgreSQL" {
            let (client, line) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
            let (watch, other) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
            let lines = [tokio::spawn(line), tokio::spawn(other)];
            client.batch_execute(&format!("BEGIN; {family}")).await.unwrap();
            let refreshing = actix_web::rt::spawn(refreshing);
            eventually(name, async || {
                let sql = "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
                watch.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) > 0
            })
            .await;
            client.query(first, &[]).await.expect("the token is free");
            client.batch_execute("ROLLBACK").await.unwrap();
            drop((client, watch));
            for line in lines {
                line.await.unwrap().unwrap();
            }
            refreshing.await.unwrap()
        } else {
            use mysql_async::prelude::Queryable;
            let mut client = mysql_async::Conn::from_url(&url).await.unwrap();
            let watch = tokio::sync::Mutex::new(mysql_async::Conn::from_url(&url).await.unwrap());
            client.query_drop("BEGIN").await.unwrap();
            client.query_drop(family).await.unwrap();
            let refreshing = actix_web::rt::spawn(refreshing);
            eventually(name, async || {
                let sql = "SELECT COUNT(*) FROM information_schema.innodb_trx t JOIN information_schema.processlist p \
                           ON p.id = t.trx_mysql_thread_id WHERE p.db = DATABASE() AND t.trx_state = 'LOCK WAIT'";
                // What this shows is taken anew only when nobody has asked for a tenth of a second.
                tokio::time::sleep(Duration::from_millis(150)).await;
                watch.lock().await.query_first::<i64, _>(sql).await.unwrap() > Some(0)
            })
            .await;
            client.query_drop(first).await.expect("the token is free");
            client.query_drop("ROLLBACK").await.unwrap();
            client.disconnect().await.unwrap();
            watch.into_inner().disconnect().await.unwrap();
            refreshing.await.unwrap()
        };
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
        assert_eq!(refresh(&app.url, &tokens(&answer).1).await.status, 200, "{name}");
        app.stop().await;
    }
}
