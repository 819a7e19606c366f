//! Accounts, tokens and keys over HTTP, on all three databases; what forgers try; and keys that change under load.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aws_lc_rs::signature::{self, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tidegate::clock::Clock;

use super::catalog_stores::urls;
use super::client;
use super::support::{Answer, Process, TestApp, eventually, within};

pub const NOON: i64 = 1_795_435_200_000;
pub const PASSWORD: &str = "correct horse battery";
/// A hash that takes no time.
pub const CHEAP: [(&str, &str); 2] = [("identity.argon2.memory", "64"), ("identity.argon2.passes", "1")];

pub async fn post(url: &str, path: &str, body: &Value) -> Answer {
    client::send("POST", &format!("{url}/api/v1/auth/{path}"), &[], body).await
}

pub async fn with_token(url: &str, path: &str, token: &str) -> Answer {
    client::get_with(&format!("{url}{path}"), &[("authorization", &format!("Bearer {token}"))]).await
}

pub async fn me(url: &str, token: &str) -> Answer {
    with_token(url, "/api/v1/auth/me", token).await
}

pub fn code(answer: &Answer) -> (u16, String) {
    (answer.status, answer.json()["error"]["code"].as_str().unwrap_or_default().to_owned())
}

pub fn coded(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

pub async fn register(url: &str, login: &str) {
    let made = post(url, "register", &json!({"login": login, "password": PASSWORD})).await;
    assert_eq!(made.status, 201, "{}", made.text());
}

/// Access and refresh token.
pub fn tokens(answer: &Answer) -> (String, String) {
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let data = &answer.json()["data"];
    let text = |name: &str| data[name].as_str().unwrap().to_owned();
    (text("access_token"), text("refresh_token"))
}

pub async fn login(url: &str, login: &str) -> (String, String) {
    tokens(&post(url, "login", &json!({"login": login, "password": PASSWORD})).await)
}

pub async fn refresh(url: &str, token: &str) -> Answer {
    post(url, "refresh", &json!({"refresh_token": token})).await
}

/// The command line, on the database of a server.
pub fn tidegate(data: &std::path::Path, database: &str, args: &[&str]) -> (bool, String, String) {
    tidegate_with(data, database, args, "")
}

/// The same, with something to read.
pub fn tidegate_with(data: &std::path::Path, database: &str, args: &[&str], input: &str) -> (bool, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(args)
        .args(["--data", data.to_str().unwrap()])
        .env("TIDEGATE__CATALOG__URL", database)
        .env("TIDEGATE__IDENTITY__ARGON2__MEMORY", CHEAP[0].1)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may not want to read it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

/// A server on each database, with what names the database.
pub async fn servers(settings: &[(&str, &str)], clock: &Clock) -> Vec<(&'static str, String, TestApp)> {
    let mut servers = vec![];
    for (name, url) in urls().await {
        let mut all = [settings, &CHEAP].concat();
        all.push(("catalog.url", &url));
        let app = TestApp::with(&all, clock.clone()).await;
        servers.push((name, url, app));
    }
    servers
}

#[actix_web::test]
async fn an_accounts_life_is_the_same_on_every_database() {
    let clock = Clock::manual(NOON);
    for (name, _, app) in servers(&[], &clock).await {
        let url = &app.url;
        let whole = json!({"login": "Jo.Doe", "email": "Jo@Shop.example", "password": PASSWORD});
        let made = post(url, "register", &whole).await;
        assert_eq!(made.status, 201, "{name}: {}", made.text());
        let account = made.json()["data"].clone();
        assert_eq!(
            (&account["login"], &account["email"], &account["roles"]),
            (&json!("jo.doe"), &json!("jo@shop.example"), &json!(["user"])),
            "{name}"
        );
        for twice in [
            whole.clone(),
            json!({"login": "jo.DOE", "password": PASSWORD}),
            json!({"login": "other", "email": "jo@shop.example", "password": PASSWORD}),
        ] {
            assert_eq!(code(&post(url, "register", &twice).await), coded(409, "already_exists"), "{name}");
        }
        let bad = post(url, "register", &json!({"login": "x", "email": "y", "password": "short"})).await;
        assert_eq!(code(&bad), coded(422, "validation_failed"), "{name}");
        assert_eq!(bad.json()["error"]["fields"].as_array().unwrap().len(), 3, "{name}");

        let wrong = post(url, "login", &json!({"login": "jo.doe", "password": "wrong horse"})).await;
        let nobody = post(url, "login", &json!({"login": "nobody", "password": "wrong horse"})).await;
        assert_eq!(
            (code(&wrong), code(&nobody)),
            (coded(401, "invalid_credentials"), coded(401, "invalid_credentials"))
        );
        assert_eq!(wrong.json()["error"]["message"], nobody.json()["error"]["message"], "{name}");
        let by_mail = json!({"login": " JO@shop.EXAMPLE ", "password": PASSWORD});
        let (access, first) = tokens(&post(url, "login", &by_mail).await);
        let shown = me(url, &access).await;
        assert_eq!((shown.status, &shown.json()["data"]), (200, &account), "{name}");
        assert_eq!(code(&app.get("/api/v1/auth/me").await), coded(401, "unauthorized"), "{name}");

        // A refresh token is good once, and what was given before holds until it expires.
        let (second_access, second) = tokens(&refresh(url, &first).await);
        assert_eq!((me(url, &access).await.status, me(url, &second_access).await.status), (200, 200), "{name}");
        clock.advance(Duration::from_secs(11));
        let (_, third) = tokens(&refresh(url, &second).await);
        // An answer that was lost may be asked for again, and what it gave is then one too many.
        let (_, again) = tokens(&refresh(url, &second).await);
        let (_, last) = tokens(&refresh(url, &again).await);
        assert_eq!(code(&refresh(url, &third).await), coded(401, "unauthorized"), "{name}: both ways were used");
        assert_eq!(code(&refresh(url, &last).await), coded(401, "unauthorized"), "{name}: so all of them end");

        // A stolen one ends the family of this login alone.
        let (_, mine) = login(url, "jo.doe").await;
        let (_, other) = login(url, "jo.doe").await;
        let (_, next) = tokens(&refresh(url, &mine).await);
        clock.advance(Duration::from_secs(11));
        assert_eq!(refresh(url, &mine).await.status, 401, "{name}");
        assert_eq!(refresh(url, &next).await.status, 401, "{name}");
        let (_, other) = tokens(&refresh(url, &other).await);

        // Logging out, by either token.
        let out = post(url, "logout", &json!({"refresh_token": other})).await;
        assert_eq!((out.status, refresh(url, &other).await.status), (204, 401), "{name}");
        let (access, token) = login(url, "jo.doe").await;
        let bearer = format!("Bearer {access}");
        let path = format!("{url}/api/v1/auth/logout");
        let out = client::post(&path, &[("authorization", &bearer)], vec![]).await;
        assert_eq!((out.status, refresh(url, &token).await.status), (204, 401), "{name}");
        assert_eq!(code(&client::post(&path, &[], vec![]).await), coded(401, "unauthorized"), "{name}");
        assert_eq!(post(url, "logout", &json!({"refresh_token": "tgr_rubbish"})).await.status, 204, "{name}");

        // Nothing holds for ever.
        let (access, token) = login(url, "jo.doe").await;
        clock.advance(Duration::from_secs(600 + 31));
        assert_eq!(code(&me(url, &access).await), coded(401, "unauthorized"), "{name}");
        clock.advance(Duration::from_secs(30 * 86_400));
        assert_eq!(code(&refresh(url, &token).await), coded(401, "unauthorized"), "{name}");
        app.stop().await;
    }
}

#[actix_web::test]
async fn bodies_that_make_no_sense_are_told_without_what_they_say() {
    let app = TestApp::with(&CHEAP, Clock::system()).await;
    let path = |name: &str| format!("{}/api/v1/auth/{name}", app.url);
    for name in ["register", "login", "refresh"] {
        for (body, status) in [
            ("", 400),
            ("hunter2", 400),
            ("[\"hunter2\"]", 400),
            ("{\"login\":\"hunter2\",\"password\":", 400),
            ("{\"hunter2\":1}", 400),
            ("{}", 422),
        ] {
            let answer = client::post(&path(name), &[], body.into()).await;
            assert_eq!(answer.status, status, "{name}: {body}: {}", answer.text());
            assert!(!answer.text().contains("hunter2"), "{}", answer.text());
        }
        let long = format!("{{\"login\":\"{}\"}}", "a".repeat(20_000));
        let refused = client::post(&path(name), &[], long.into()).await;
        assert_eq!(refused.status, 413, "{name}");
        // One that is too long for any endpoint is told the limit of this one too.
        let longer = client::post(&path(name), &[], vec![b' '; (1 << 20) + 1]).await;
        let message = |answer: &Answer| answer.json()["error"]["message"].clone();
        assert_eq!((longer.status, message(&longer)), (413, message(&refused)), "{name}");
        assert!(message(&longer).to_string().contains("16384"), "{}", longer.text());
    }
    let answer = post(&app.url, "logout", &json!({})).await;
    assert_eq!(code(&answer), coded(422, "validation_failed"));
    let document = app.get("/openapi.json").await.json();
    assert!(document["paths"]["/api/v1/auth/logout"]["post"]["responses"]["422"].is_object());
    for field in ["login", "password"] {
        let mut body = json!({"login": "joe", "password": PASSWORD});
        body[field] = json!(["hunter2"]);
        let answer = post(&app.url, "login", &body).await;
        assert_eq!(code(&answer), coded(422, "validation_failed"));
        assert!(!answer.text().contains("hunter2"), "{}", answer.text());
    }
    app.stop().await;
    let closed = [CHEAP.as_slice(), &[("identity.registration", "false")]].concat();
    let app = TestApp::with(&closed, Clock::system()).await;
    let refused = post(&app.url, "register", &json!({"login": "joe", "password": PASSWORD})).await;
    assert_eq!(code(&refused), coded(403, "forbidden"));
    app.stop().await;
}

#[actix_web::test]
async fn guessing_is_slowed_down_and_the_owner_gets_in() {
    let clock = Clock::manual(NOON);
    let settings = [CHEAP.as_slice(), &[("server.trusted_proxies", "[\"127.0.0.1\"]")]].concat();
    let app = TestApp::with(&settings, clock.clone()).await;
    register(&app.url, "victim").await;
    let from = async |address: String, password: &str| {
        let body = json!({"login": "victim", "password": password});
        client::send("POST", &format!("{}/api/v1/auth/login", app.url), &[("x-forwarded-for", &address)], &body).await
    };
    let home = || String::from("203.0.113.7");
    assert_eq!(from(home(), PASSWORD).await.status, 200);
    // One guesser.
    let mut answers = vec![];
    for _ in 0..10 {
        answers.push(from(String::from("198.51.100.1"), "wrong horse").await);
    }
    let wrong = answers.iter().filter(|answer| answer.status == 401).count();
    assert_eq!((wrong, answers.len() - wrong), (6, 4));
    assert_eq!(code(&answers[9]), coded(429, "too_many_attempts"));
    assert_eq!(answers[9].header("retry-after"), Some("1"));
    assert_eq!(from(String::from("198.51.100.1"), PASSWORD).await.status, 429, "also with the right one, from there");
    assert_eq!(from(home(), PASSWORD).await.status, 200);
    // Many guessers.
    let mut taken = 0;
    for n in 0..200 {
        taken += usize::from(from(format!("192.0.2.{n}"), "wrong horse").await.status == 401);
    }
    assert!(taken <= 20, "{taken} guesses were taken");
    assert_eq!(from(home(), PASSWORD).await.status, 200, "a known network is not refused for others' guesses");
    assert_eq!(from(String::from("192.0.2.250"), PASSWORD).await.status, 429, "one that is not known waits");
    clock.advance(Duration::from_secs(30));
    assert_eq!(from(String::from("192.0.2.250"), PASSWORD).await.status, 200, "for seconds");
    let text = app.get("/metrics").await.text();
    assert!(text.contains("tidegate_logins_total{outcome=\"limited\"}"), "{text}");
    app.stop().await;
}

#[actix_web::test]
async fn one_password_is_not_tried_on_all_accounts() {
    let clock = Clock::manual(NOON);
    let settings = [CHEAP.as_slice(), &[("server.trusted_proxies", "[\"127.0.0.1\"]")]].concat();
    let app = TestApp::with(&settings, clock.clone()).await;
    register(&app.url, "owner").await;
    let from = async |address: &str, login: &str| {
        let body = json!({"login": login, "password": PASSWORD});
        client::send("POST", &format!("{}/api/v1/auth/login", app.url), &[("x-forwarded-for", address)], &body).await
    };
    // An office: as many as there are get in, as often as they like.
    for _ in 0..3 {
        assert_eq!(from("198.51.100.1", "owner").await.status, 200);
    }
    let mut tried = 0;
    for n in 0..150 {
        let answer = from("198.51.100.1", &format!("user{n}")).await;
        tried += usize::from(answer.status == 401);
        if answer.status != 401 {
            assert_eq!(code(&answer), coded(429, "too_many_attempts"));
            assert_eq!(answer.header("retry-after"), Some("30"));
        }
    }
    assert_eq!(tried, 100);
    assert_eq!(
        from("198.51.100.1", "owner").await.status,
        200,
        "who was there before is not refused for what others do"
    );
    assert_eq!(from("203.0.113.7", "user1").await.status, 401, "another network is left alone");
    clock.advance(Duration::from_secs(30));
    assert_eq!(from("198.51.100.1", "user200").await.status, 401);
    assert_eq!(from("198.51.100.1", "user201").await.status, 429);
    app.stop().await;
}

#[actix_web::test]
async fn a_flood_of_logins_leaves_the_rest_alone() {
    let settings =
        [("identity.hash_threads", "1"), ("identity.hash_queue", "7"), ("server.trusted_proxies", "[\"127.0.0.1\"]")];
    let app = TestApp::with(&settings, Clock::system()).await;
    async fn from(url: String, address: String, login: String) -> Answer {
        let body = json!({"login": login, "password": PASSWORD});
        client::send("POST", &format!("{url}/api/v1/auth/login"), &[("x-forwarded-for", &address)], &body).await
    }
    // From one network, again and again, and beside it somebody from another.
    let (refused, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let one = |n: usize| {
        let (url, refused, stop) = (app.url.clone(), refused.clone(), stop.clone());
        actix_web::rt::spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                let answer = from(url.clone(), String::from("198.51.100.1"), format!("user{n}")).await;
                refused.fetch_add(usize::from(answer.status == 503), Ordering::SeqCst);
            }
        })
    };
    let flood: Vec<_> = (0..16).map(one).collect();
    eventually("it has all places that it gets", async || refused.load(Ordering::SeqCst) > 0).await;
    for n in 0..5 {
        let answer = from(app.url.clone(), String::from("203.0.113.7"), format!("owner{n}")).await;
        assert_eq!(answer.status, 401, "one network took all places: {}", answer.text());
    }
    stop.store(true, Ordering::SeqCst);
    for task in flood {
        task.await.unwrap();
    }
    // From many.
    let one = |n| actix_web::rt::spawn(from(app.url.clone(), format!("198.51.100.{}", 10 + n), format!("user{n}")));
    let flood: Vec<_> = (0..40).map(one).collect();
    let begun = Instant::now();
    assert_eq!(app.get("/health/live").await.status, 200);
    let took = begun.elapsed();
    let (mut wrong, mut busy) = (0, 0);
    for answer in flood {
        let answer = answer.await.unwrap();
        match answer.status {
            401 => wrong += 1,
            503 => {
                assert!(answer.header("retry-after").is_some());
                busy += 1;
            }
            other => panic!("{other}: {}", answer.text()),
        }
    }
    assert!(wrong >= 3 && busy > 0, "{wrong} were looked at, {busy} refused");
    assert!(took < Duration::from_secs(2), "another request took {took:?}");
    app.stop().await;
}

fn part(json: &Value) -> String {
    URL_SAFE_NO_PAD.encode(json.to_string())
}

#[actix_web::test]
async fn forged_tokens_are_refused_at_once_and_alike() {
    let app = TestApp::with(&CHEAP, Clock::system()).await;
    register(&app.url, "joe").await;
    let (token, _) = login(&app.url, "joe").await;
    assert_eq!(me(&app.url, &token).await.status, 200);
    let jwks = app.get("/.well-known/jwks.json").await;
    assert_eq!(jwks.header("content-type"), Some("application/jwk-set+json"));
    assert!(jwks.header("cache-control").unwrap().starts_with("public, max-age="));
    let keys = jwks.json()["keys"].as_array().unwrap().clone();
    assert_eq!(keys.len(), 2, "one that signs, and the next");
    assert!(keys.iter().all(|key| key.get("d").is_none()), "{keys:?}");
    let mut parts = token.split('.');
    let decode = |text: &str| -> Value { serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).unwrap()).unwrap() };
    let (header, claims) = (decode(parts.next().unwrap()), decode(parts.next().unwrap()));
    let signature = parts.next().unwrap();
    assert_eq!((&header["alg"], &header["typ"]), (&json!("EdDSA"), &json!("at+jwt")));
    assert_eq!((&claims["iss"], &claims["aud"]), (&json!("tidegate"), &json!("tidegate")));
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 600);
    let public = keys.iter().find(|key| key["kid"] == header["kid"]).unwrap()["x"].as_str().unwrap();
    let public = URL_SAFE_NO_PAD.decode(public).unwrap();

    let with = |alg: &str| {
        let mut header = header.clone();
        header["alg"] = json!(alg);
        format!("{}.{}", part(&header), part(&claims))
    };
    let hs256 = |message: &str, secret: &[u8]| {
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret);
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(aws_lc_rs::hmac::sign(&key, message.as_bytes())))
    };
    let stranger = signature::Ed25519KeyPair::generate().unwrap();
    let forged = |change: &dyn Fn(&mut Value, &mut Value)| {
        let (mut header, mut claims) = (header.clone(), claims.clone());
        change(&mut header, &mut claims);
        let message = format!("{}.{}", part(&header), part(&claims));
        let signature = URL_SAFE_NO_PAD.encode(stranger.sign(message.as_bytes()));
        format!("{message}.{signature}")
    };
    // With the key that signs, so that what a token says is all that can be wrong with it.
    let file = std::fs::read(app.folder.path().join("data/identity/keys.json")).unwrap();
    let ring: Value = serde_json::from_slice(&file).unwrap();
    let ours = base64::engine::general_purpose::STANDARD_NO_PAD.decode(ring["active"]["private"].as_str().unwrap());
    let ours = signature::Ed25519KeyPair::from_pkcs8(&ours.unwrap()).unwrap();
    let signed = |change: &dyn Fn(&mut Value, &mut Value)| {
        let (mut header, mut claims) = (header.clone(), claims.clone());
        change(&mut header, &mut claims);
        let message = format!("{}.{}", part(&header), part(&claims));
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(ours.sign(message.as_bytes())))
    };
    assert_eq!(me(&app.url, &signed(&|_, claims| claims["more"] = json!(1))).await.status, 200);
    let without = |name: &'static str| signed(&|_, claims| _ = claims.as_object_mut().unwrap().remove(name));
    let own_key = json!({"kty": "OKP", "crv": "Ed25519", "x": URL_SAFE_NO_PAD.encode(stranger.public_key())});
    let now = claims["iat"].as_i64().unwrap();
    let table = [
        ("none", format!("{}.", with("none"))),
        ("none with the signature", format!("{}.{signature}", with("none"))),
        ("nOnE", format!("{}.", with("nOnE"))),
        ("the public key as a secret", hs256(&with("HS256"), &public)),
        ("an empty secret", hs256(&with("HS256"), b"")),
        ("RS256", format!("{}.{signature}", with("RS256"))),
        ("ES256", format!("{}.{signature}", with("ES256"))),
        ("another key", forged(&|_, _| ())),
        ("another key, embedded", forged(&|header, _| header["jwk"] = own_key.clone())),
        ("another key, by address", forged(&|header, _| header["jku"] = json!("http://127.0.0.1:1/keys"))),
        ("an unknown kid", forged(&|header, _| header["kid"] = json!("../../../dev/null"))),
        ("no kid", signed(&|header, _| _ = header.as_object_mut().unwrap().remove("kid"))),
        ("a kid that is SQL", forged(&|header, _| header["kid"] = json!("' OR 1=1 --"))),
        ("crit", signed(&|header, _| header["crit"] = json!(["b64"]))),
        ("wrong audience", signed(&|_, claims| claims["aud"] = json!("other"))),
        ("wrong issuer", signed(&|_, claims| claims["iss"] = json!("https://evil.example"))),
        ("expired", signed(&|_, claims| claims["exp"] = json!(now - 3600))),
        ("issued ahead", signed(&|_, claims| claims["iat"] = json!(now + 3600))),
        ("another type", signed(&|header, _| header["typ"] = json!("logout+jwt"))),
        ("no exp", without("exp")),
        ("no aud", without("aud")),
        ("no iss", without("iss")),
        ("no sub", without("sub")),
        ("exp as a text", signed(&|_, claims| claims["exp"] = json!((now + 600).to_string()))),
        ("not yet valid", signed(&|_, claims| claims["nbf"] = json!(now + 3600))),
        ("roles made up", format!("{}.{}.{signature}", part(&header), part(&json!({"roles": ["admin"]})))),
        ("truncated", token[..token.len() - 1].to_owned()),
        ("half", token[..token.len() / 2].to_owned()),
        ("two parts", token.rsplit_once('.').unwrap().0.to_owned()),
        ("four parts", format!("{token}.{signature}")),
        ("a character more", format!("{token}A")),
        ("dots", String::from("..")),
        ("a refresh token", login(&app.url, "joe").await.1),
        ("giant", "a".repeat(12_000)),
        ("giant and well made", format!("{}.{}.{signature}", part(&header), "a".repeat(12_000))),
        ("deep", format!("{}.{}.x", part(&header), URL_SAFE_NO_PAD.encode("[".repeat(5000)))),
        ("a key", String::from("tg_000000000000_1")),
    ];
    for (what, forged) in &table {
        let mut answer = me(&app.url, forged).await;
        if *what == "a kid that is SQL" {
            // Another instance's key may have such a name until it was looked for, which was done a moment ago for another.
            let begun = Instant::now();
            while code(&answer) == coded(503, "unavailable") && begun.elapsed() < Duration::from_secs(5) {
                assert_eq!(answer.header("retry-after"), Some("1"));
                tokio::time::sleep(Duration::from_millis(50)).await;
                answer = me(&app.url, forged).await;
            }
        }
        assert_eq!(code(&answer), coded(401, "unauthorized"), "{what}: {}", answer.text());
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"), "{what}");
    }
    // None is slow: what is refused costs no more than what is taken. Of some rounds, in which all take turns, the fastest of
    // each counts, as others use the machine too.
    let (mut taken, mut refused) = (Duration::MAX, vec![Duration::MAX; table.len()]);
    let timed = async |token: &str| {
        let begun = Instant::now();
        me(&app.url, token).await;
        begun.elapsed()
    };
    for _ in 0..10 {
        taken = taken.min(timed(&token).await);
        for (fastest, (_, forged)) in refused.iter_mut().zip(&table) {
            *fastest = (*fastest).min(timed(forged).await);
        }
    }
    let slowest = refused.into_iter().zip(table.iter().map(|(what, _)| *what)).max().unwrap();
    println!(
        "{} forged tokens: the slowest was refused after {slowest:?}, a good one taken after {taken:?}",
        table.len()
    );
    assert!(slowest.0 < taken * 3 + Duration::from_millis(20), "{slowest:?}, and a good one takes {taken:?}");
    // The header twice, which awc would not send.
    for (first, second) in [(&token, &token), (&token, &table[0].1)] {
        let mut line = std::net::TcpStream::connect(&app.url["http://".len()..]).unwrap();
        let text = format!(
            "GET /api/v1/auth/me HTTP/1.1\r\nhost: t\r\nconnection: close\r\nauthorization: Bearer {first}\r\n\
             authorization: Bearer {second}\r\n\r\n"
        );
        let answer = tokio::task::spawn_blocking(move || {
            line.write_all(text.as_bytes()).unwrap();
            let mut answer = String::new();
            line.read_to_string(&mut answer).unwrap();
            answer
        });
        let answer = answer.await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 401") && answer.contains("\"unauthorized\""), "{answer}");
    }
    assert_eq!(me(&app.url, &token).await.status, 200, "the good one is as good as before");
    let metrics = app.get("/metrics").await.text();
    for reason in [
        "wrong_algorithm",
        "wrong_signature",
        "wrong_audience",
        "unknown_key",
        "unknown_issuer",
        "expired",
        "not_yet_valid",
        "wrong_type",
        "critical_header",
        "too_long",
        "doubled_header",
    ] {
        assert!(metrics.contains(&format!("tidegate_tokens_rejected_total{{reason=\"{reason}\"}}")), "{reason}");
    }
    app.stop().await;
}

#[actix_web::test]
async fn keys_take_turns_under_load_on_two_instances_without_one_false_refusal() {
    let database = urls().await.swap_remove(1).1;
    let settings = [
        CHEAP.as_slice(),
        &[
            ("catalog.url", database.as_str()),
            ("identity.key_rotation", "1s"),
            ("identity.access_lifetime", "2s"),
            ("identity.refresh_interval", "200ms"),
        ],
    ]
    .concat();
    let a = TestApp::with(&settings, Clock::system()).await;
    let b = TestApp::with(&settings, Clock::system()).await;
    for login in ["anna", "bert"] {
        register(&a.url, login).await;
    }
    let (checked, kids) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(std::collections::BTreeSet::new())));
    let begun = Instant::now();
    let users = ["anna", "bert"].into_iter().zip([(&a, &b), (&b, &a)]).map(|(name, (home, other))| {
        let (home, other) = (home.url.clone(), other.url.clone());
        let (checked, kids) = (checked.clone(), kids.clone());
        actix_web::rt::spawn(async move {
            let (mut access, mut token) = login(&home, name).await;
            let mut refreshed = Instant::now();
            while begun.elapsed() < Duration::from_secs(10) {
                if refreshed.elapsed() > Duration::from_millis(700) {
                    (access, token) = tokens(&refresh(&home, &token).await);
                    refreshed = Instant::now();
                    kids.lock().unwrap().insert(access.split('.').next().unwrap().to_owned());
                }
                for url in [&home, &other] {
                    let answer = me(url, &access).await;
                    assert_eq!(answer.status, 200, "after {:?}: {}", begun.elapsed(), answer.text());
                    checked.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
    });
    for user in users.collect::<Vec<_>>() {
        user.await.unwrap();
    }
    let kids = kids.lock().unwrap().len();
    assert!(kids >= 10, "only {kids} keys signed");
    println!("{} requests while {kids} keys signed", checked.load(Ordering::Relaxed));
    let folder = a.stop().await;
    b.stop().await;
    let mode = std::fs::metadata(folder.path().join("data/identity/keys.json")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777, 0o600);
}

/// Another issuer's key server.
pub struct KeyServer {
    pub url: String,
    pub keys: Arc<Mutex<Vec<Value>>>,
    pub asked: Arc<AtomicUsize>,
    pub silent: Arc<AtomicBool>,
    /// Whether it hangs up on everybody.
    pub down: Arc<AtomicBool>,
}

impl KeyServer {
    pub fn start() -> Self {
        Self::start_with(None)
    }

    /// With TLS, by a certificate and its key in PEM.
    pub fn secure(certificate: &[u8], key: &[u8]) -> Self {
        use rustls::pki_types::pem::PemObject;
        use rustls::pki_types::{CertificateDer, PrivateKeyDer};
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let chain = CertificateDer::pem_slice_iter(certificate).map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_slice(key).unwrap();
        let config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
        Self::start_with(Some(Arc::new(config)))
    }

    fn start_with(tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}/keys", listener.local_addr().unwrap());
        let (keys, asked): (Arc<Mutex<Vec<Value>>>, Arc<AtomicUsize>) = Default::default();
        let (silent, down): (Arc<AtomicBool>, Arc<AtomicBool>) = Default::default();
        let (says, count, quiet, away) = (keys.clone(), asked.clone(), silent.clone(), down.clone());
        std::thread::spawn(move || {
            let mut held = vec![];
            for mut stream in listener.incoming().map_while(Result::ok) {
                count.fetch_add(1, Ordering::SeqCst);
                if away.load(Ordering::SeqCst) {
                    continue;
                }
                if quiet.load(Ordering::SeqCst) {
                    held.push(stream);
                    continue;
                }
                let body = json!({"keys": *says.lock().unwrap()}).to_string();
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
                let answer = |stream: &mut dyn ReadWrite| {
                    let mut asks = vec![0; 4096];
                    // Of whom it does not trust it hears nothing.
                    if stream.read(&mut asks).is_ok_and(|n| n > 0) {
                        let _ = stream.write_all((head + &body).as_bytes());
                    }
                };
                match &tls {
                    None => answer(&mut stream),
                    Some(config) => {
                        let line = rustls::ServerConnection::new(config.clone()).unwrap();
                        answer(&mut rustls::StreamOwned::new(line, stream));
                    }
                }
            }
        });
        Self { url, keys, asked, silent, down }
    }
}

trait ReadWrite: Read + Write {}

impl<T: Read + Write> ReadWrite for T {}

/// A key of another issuer, of one of three kinds.
pub enum Key {
    Ed(signature::Ed25519KeyPair),
    Ec(signature::EcdsaKeyPair),
    Rsa(signature::RsaKeyPair),
}

impl Key {
    pub fn new(alg: &str) -> Self {
        match alg {
            "EdDSA" => Self::Ed(signature::Ed25519KeyPair::generate().unwrap()),
            "ES256" => {
                Self::Ec(signature::EcdsaKeyPair::generate(&signature::ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
            }
            _ => Self::Rsa(signature::RsaKeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap()),
        }
    }

    pub fn alg(&self) -> &'static str {
        match self {
            Self::Ed(_) => "EdDSA",
            Self::Ec(_) => "ES256",
            Self::Rsa(_) => "RS256",
        }
    }

    pub fn jwk(&self, kid: &str) -> Value {
        let b64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match self {
            Self::Ed(key) => json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": b64(key.public_key().as_ref())}),
            Self::Ec(key) => {
                let point = key.public_key().as_ref();
                json!({"kty": "EC", "crv": "P-256", "kid": kid, "x": b64(&point[1..33]), "y": b64(&point[33..])})
            }
            Self::Rsa(key) => {
                let public = key.public_key();
                let (n, e) = (public.modulus(), public.exponent());
                json!({"kty": "RSA", "kid": kid, "use": "sig", "alg": "RS256",
                    "n": b64(n.big_endian_without_leading_zero()), "e": b64(e.big_endian_without_leading_zero())})
            }
        }
    }

    pub fn token(&self, kid: &str, claims: &Value) -> String {
        let message = format!("{}.{}", part(&json!({"alg": self.alg(), "kid": kid, "typ": "JWT"})), part(claims));
        let random = aws_lc_rs::rand::SystemRandom::new();
        let signature = match self {
            Self::Ed(key) => key.sign(message.as_bytes()).as_ref().to_vec(),
            Self::Ec(key) => key.sign(&random, message.as_bytes()).unwrap().as_ref().to_vec(),
            Self::Rsa(key) => {
                let mut out = vec![0; key.public_modulus_len()];
                key.sign(&signature::RSA_PKCS1_SHA256, &random, message.as_bytes(), &mut out).unwrap();
                out
            }
        };
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

#[actix_web::test]
async fn another_issuers_tokens_are_taken_also_while_its_keys_change_and_its_server_is_away() {
    let server = KeyServer::start();
    let clock = Clock::manual(NOON);
    let issuers = format!(
        "[{{issuer = \"https://login.example\", jwks_url = \"{}\", audience = \"shop\", timeout = \"300ms\", \
         algorithms = [\"EdDSA\", \"RS256\", \"ES256\"], roles = [\"user\", \"operator\"]}}]",
        server.url
    );
    let settings = [("identity.issuers", issuers.as_str()), ("server.admin_key", "0123456789abcdef")];
    let keys: Vec<Key> = ["EdDSA", "ES256", "RS256"].map(Key::new).into();
    server.keys.lock().unwrap().extend(keys.iter().map(|key| key.jwk(key.alg())));
    let app = TestApp::with(&settings, clock.clone()).await;
    let claims = |now: i64, roles: &[&str]| {
        json!({"iss": "https://login.example", "aud": ["shop", "other"], "sub": "42", "name": "Ann", "exp": now / 1000 + 3600,
            "iat": now / 1000, "roles": roles, "scope": "orders:read orders:write"})
    };
    for key in &keys {
        let token = key.token(key.alg(), &claims(NOON, &["user", "admin"]));
        let answer = me(&app.url, &token).await;
        assert_eq!(answer.status, 200, "{}: {}", key.alg(), answer.text());
        let data = &answer.json()["data"];
        assert_eq!(
            (&data["id"], &data["roles"], &data["scopes"]),
            (&json!("https://login.example|42"), &json!(["user"]), &json!(["orders:read", "orders:write"]))
        );
        assert_eq!(with_token(&app.url, "/api/v1/export", &token).await.status, 403, "it may not give that role");
        let token = key.token(key.alg(), &claims(NOON, &["operator"]));
        assert_eq!(with_token(&app.url, "/api/v1/export", &token).await.status, 200);
        // Signed by one key in the name of another, and for somebody else.
        for other in keys.iter().filter(|other| other.alg() != key.alg()) {
            assert_eq!(me(&app.url, &key.token(other.alg(), &claims(NOON, &[]))).await.status, 401);
        }
        let mut wrong = claims(NOON, &[]);
        wrong["aud"] = json!("tidegate");
        assert_eq!(me(&app.url, &key.token(key.alg(), &wrong)).await.status, 401);
    }
    // The issuer takes a new key into use at once.
    let new = Key::new("ES256");
    server.keys.lock().unwrap().push(new.jwk("new"));
    clock.advance(Duration::from_secs(20));
    let before = server.asked.load(Ordering::SeqCst);
    let token = new.token("new", &claims(NOON, &[]));
    let many = (0..50).map(|_| {
        let (url, token) = (app.url.clone(), token.clone());
        actix_web::rt::spawn(async move { me(&url, &token).await.status })
    });
    for status in many.collect::<Vec<_>>() {
        assert_eq!(status.await.unwrap(), 200);
    }
    assert_eq!(server.asked.load(Ordering::SeqCst), before + 1, "one question for all of them");
    for (asked, refused) in [(1, coded(503, "unavailable")), (2, coded(401, "unauthorized"))] {
        for n in 0..300 {
            let answer = me(&app.url, &new.token(&format!("unknown{n}"), &claims(NOON, &[]))).await;
            assert_eq!(code(&answer), refused, "{n}");
        }
        assert_eq!(server.asked.load(Ordering::SeqCst), before + asked, "a flood of unknown keys asks no more");
        clock.advance(Duration::from_secs(10));
    }

    // It falls silent: an hour changes nothing for the keys that are known.
    server.silent.store(true, Ordering::SeqCst);
    for _ in 0..6 {
        clock.advance(Duration::from_secs(600));
        let now = clock.now();
        eventually("it was tried in vain", async || {
            clock.advance(Duration::from_secs(31));
            code(&me(&app.url, &new.token("newer", &claims(now, &[]))).await) == coded(503, "unavailable")
        })
        .await;
        for key in &keys {
            let mut fastest = Duration::MAX;
            for _ in 0..3 {
                let begun = Instant::now();
                assert_eq!(me(&app.url, &key.token(key.alg(), &claims(now, &[]))).await.status, 200);
                fastest = fastest.min(begun.elapsed());
            }
            assert!(fastest < Duration::from_millis(250), "it waited for the key server");
        }
    }
    assert_eq!(app.get("/health/ready").await.status, 200);
    let health = app.get("/health").await;
    assert_eq!(
        health.json()["identity"],
        json!({"status": "degraded", "reason": "the keys of identity.issuers.#1 cannot be read; those that are known are used"})
    );
    assert!(!health.text().contains(&server.url["http://".len()..]), "{}", health.text());
    server.silent.store(false, Ordering::SeqCst);
    eventually("it is well again", async || {
        clock.advance(Duration::from_secs(31));
        app.get("/health").await.json()["identity"] == json!({"status": "ok"})
    })
    .await;
    app.stop().await;
}

#[actix_web::test]
async fn an_api_keys_life_is_the_same_on_every_database() {
    let settings = [("server.admin_key", "0123456789abcdef"), ("identity.refresh_interval", "100ms")];
    for (name, database, app) in servers(&settings, &Clock::system()).await {
        let data = app.folder.path().join("data");
        let run = |args: &[&str]| tidegate(&data, &database, args);
        let (fine, key, said) = run(&[
            "key",
            "create",
            "--name",
            "till 7",
            "--scope",
            "orders:read",
            "--scope",
            "stock",
            "--expires",
            "1d",
        ]);
        assert!(fine && key.starts_with("tg_") && key.len() == 88, "{name}: {said}");
        let shown = &key[..15];
        assert!(said.contains(shown) && !said.contains(&key), "{name}: {said}");
        eventually("the key is seen", async || me(&app.url, &key).await.status == 200).await;
        let data = me(&app.url, &key).await.json()["data"].clone();
        assert_eq!(
            (&data["id"], &data["login"], &data["scopes"], &data["roles"]),
            (&json!(shown), &json!("till 7"), &json!(["orders:read", "stock"]), &json!([])),
            "{name}"
        );
        assert_eq!(code(&with_token(&app.url, "/api/v1/export", &key).await), coded(403, "forbidden"), "{name}");
        assert_eq!(with_token(&app.url, "/api/v1/export", "0123456789abcdef").await.status, 200, "{name}");
        assert_eq!(code(&app.get("/api/v1/export").await), coded(401, "unauthorized"), "{name}");
        let (_, operator, _) = run(&["key", "create", "--name", "ops", "--scope", "operator"]);
        eventually("so is an operator's", async || {
            with_token(&app.url, "/api/v1/export", &operator).await.status == 200
        })
        .await;
        let (_, list, _) = run(&["key", "list"]);
        assert!(
            list.lines().count() == 2 && list.contains(shown) && list.contains("orders:read,stock"),
            "{name}: {list}"
        );
        assert!(!list.contains(&key[16..]), "{name}: {list}");
        assert!(run(&["key", "revoke", shown]).0, "{name}");
        within(Duration::from_secs(5), "it ends", async || me(&app.url, &key).await.status == 401).await;
        assert!(run(&["key", "list"]).1.contains("revoked 20"), "{name}");
        let (fine, _, said) = run(&["key", "revoke", "tg_ffffffffffff"]);
        assert!(!fine && said.contains("there is no such key"), "{name}: {said}");
        assert!(!run(&["key", "create", "--name", "x", "--scope", "a b"]).0, "{name}");

        // A role, from the next refresh on.
        register(&app.url, "boss").await;
        let (access, token) = login(&app.url, "boss").await;
        assert_eq!(code(&with_token(&app.url, "/api/v1/export", &access).await), coded(403, "forbidden"), "{name}");
        let (fine, _, said) = run(&["user", "roles", "Boss", "user", "operator"]);
        assert!(fine, "{name}: {said}");
        let (access, _) = tokens(&refresh(&app.url, &token).await);
        assert_eq!(with_token(&app.url, "/api/v1/export", &access).await.status, 200, "{name}");
        assert!(!run(&["user", "roles", "nobody", "admin"]).0, "{name}");
        assert!(!run(&["user", "roles", "boss", "root"]).0, "{name}");
        app.stop().await;
    }
}

/// All files of a folder, with their paths in it.
fn files(folder: &std::path::Path) -> Vec<(String, Vec<u8>)> {
    let mut found = vec![];
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().display().to_string();
                found.push((name, std::fs::read(&path).unwrap()));
            }
        }
    }
    found
}

fn holds(bytes: &[u8], text: &str) -> bool {
    memchr::memmem::find(bytes, text.as_bytes()).is_some()
}

#[actix_web::test]
async fn no_secret_is_in_a_log_a_metric_an_answer_or_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let admin_key = "the-admins-own-key";
    let settings = [
        CHEAP.as_slice(),
        &[("log.level", "trace"), ("server.admin_key", admin_key), ("identity.refresh_interval", "100ms")],
    ]
    .concat();
    let server = Process::start(&data, &settings);
    let url = &server.url;
    let mut said = vec![];
    let mut cli = |args: &[&str], input: &str| {
        let (fine, out, err) = tidegate_with(&data, "", args, input);
        assert!(fine, "{args:?}: {err}");
        said.push(err);
        out
    };
    let key = cli(&["key", "create", "--name", "till", "--scope", "a"], "");
    let operator = cli(&["key", "create", "--name", "ops", "--scope", "operator"], "");
    assert!(key.starts_with("tg_") && operator.starts_with("tg_"));
    let (fresh, wrong) = ("hunter2-hunter2-hunter2", "letmein-letmein-letmein");
    let (changed, reset) = ("opensesame-opensesame", "swordfish-swordfish");
    let mut seen = vec![];
    seen.push(post(url, "register", &json!({"login": "jo.doe", "password": fresh})).await);
    seen.push(post(url, "register", &json!({"login": "jo.doe", "password": fresh})).await);
    seen.push(post(url, "register", &json!({"login": fresh, "email": fresh, "password": fresh})).await);
    seen.push(post(url, "login", &json!({"login": "jo.doe", "password": wrong})).await);
    seen.push(post(url, "login", &json!({"login": "jo.doe", "password": fresh, wrong: wrong})).await);
    let (access, first) = tokens(&post(url, "login", &json!({"login": "jo.doe", "password": fresh})).await);
    let (second_access, second) = tokens(&refresh(url, &first).await);
    seen.push(me(url, &access).await);
    assert_eq!(seen.last().unwrap().status, 200);
    seen.push(me(url, &second_access[..second_access.len() - 2]).await);
    for key in [&key, &operator] {
        eventually("the key is seen", async || me(url, key).await.status == 200).await;
        seen.push(me(url, key).await);
    }
    seen.push(with_token(url, "/api/v1/export", &key).await);
    seen.push(with_token(url, "/api/v1/audit", admin_key).await);
    seen.push(refresh(url, &first[..20]).await);
    let (_, third) = tokens(&refresh(url, &second).await);
    seen.push(post(url, "logout", &json!({"refresh_token": second})).await);
    // Owners.
    let as_user = async |method: &str, path: &str, token: &str, body: Value| {
        let bearer = format!("Bearer {token}");
        client::send(method, &format!("{url}/api/v1/auth/{path}"), &[("authorization", &bearer)], &body).await
    };
    let words = |current: &str, new: &str| json!({"current_password": current, "new_password": new});
    seen.push(with_token(url, "/api/v1/auth/sessions", &access).await);
    seen.push(as_user("POST", "password", &access, words(wrong, changed)).await);
    seen.push(as_user("POST", "password", &access, words(fresh, "jo.doe")).await);
    seen.push(as_user("POST", "password", &access, json!({wrong: changed})).await);
    seen.push(as_user("POST", "password", &key, words(fresh, changed)).await);
    let (third_access, fourth) = tokens(&as_user("POST", "password", &access, words(fresh, changed)).await);
    seen.push(as_user("DELETE", &format!("sessions/{}", &fourth[..20]), &third_access, Value::Null).await);
    seen.push(as_user("DELETE", "me", &third_access, json!({"password": wrong})).await);
    seen.push(as_user("DELETE", "sessions", &third_access, Value::Null).await);
    // Operators.
    cli(&["user", "password", "jo.doe"], &format!("{reset}\n"));
    cli(&["user", "roles", "jo.doe", "user", "operator"], "");
    let (operators, fifth) = tokens(&post(url, "login", &json!({"login": "jo.doe", "password": reset})).await);
    for token in [admin_key, &operators, &operator] {
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", bearer.as_str())];
        for path in ["config", "config/history", "routes"] {
            seen.push(client::get_with(&format!("{}/api/v1/admin/{path}", server.admin), &headers).await);
        }
        seen.push(client::request("DELETE", &format!("{url}/api/v1/cache/product_detail/7"), &headers).await);
        assert_eq!(seen.last().unwrap().status, 200);
        seen.push(client::post(&format!("{}/api/v1/admin/config", server.admin), &headers, b"x = ".to_vec()).await);
    }
    let mut shown = vec![cli(&["user", "list"], ""), cli(&["key", "list"], "")];
    shown.push(cli(&["key", "revoke", &key[..15]], ""));
    shown.push(cli(&["user", "logout", "jo.doe"], ""));
    seen.push(as_user("DELETE", "me", &operators, json!({"password": reset})).await);
    assert_eq!(seen.last().unwrap().status, 204);
    for path in ["/metrics", "/health", "/.well-known/jwks.json", "/api/v1/audit", "/openapi.json"] {
        seen.push(client::get(&format!("{url}{path}")).await);
    }
    let private = std::fs::read_to_string(data.join("identity/keys.json")).unwrap();
    let private: Value = serde_json::from_str(&private).unwrap();
    let private = private["active"]["private"].as_str().unwrap().to_owned();
    server.terminate();
    assert!(server.wait(Duration::from_secs(30)).1);
    let log = std::fs::read_to_string(data.with_extension("log")).unwrap();
    assert!(log.lines().count() > 50, "the log is on: {log}");
    assert!(log.contains("cache.invalidate of product_detail/7, by the admin key"), "{log}");
    let tail = |token: &str| token[token.len() - 40..].to_owned();
    let mut secrets = vec![
        ("the admin key", admin_key.to_owned()),
        ("a private key", private),
        ("a hash", String::from("$argon2id$")),
        ("an API key", key[16..].to_owned()),
        ("an operator's API key", operator[16..].to_owned()),
    ];
    let passwords =
        [("a password", fresh), ("a wrong password", wrong), ("a new password", changed), ("one set", reset)];
    secrets.extend(passwords.map(|(what, text)| (what, text.to_owned())));
    for token in [&access, &second_access, &third_access, &operators] {
        secrets.push(("an access token", tail(token)));
    }
    for token in [&first, &second, &third, &fourth, &fifth] {
        secrets.push(("a refresh token", tail(token)));
    }
    let files = files(&data);
    for needed in ["audit.log", "catalog.db", "identity/keys.json"] {
        assert!(files.iter().any(|(name, bytes)| name == needed && !bytes.is_empty()), "{needed}");
    }
    assert!(files.iter().any(|(name, _)| name.starts_with("config/")), "the history of the config");
    for (what, secret) in &secrets {
        assert!(!log.contains(secret), "{what} is in the log");
        for text in said.iter().chain(&shown) {
            assert!(!text.contains(secret), "{what} is on the command line: {text}");
        }
        for answer in &seen {
            assert!(!answer.text().contains(secret), "{what} is in an answer: {}", answer.text());
            assert!(answer.headers.iter().all(|(_, value)| !value.contains(secret)), "{what} is in a header");
        }
        for (name, bytes) in &files {
            let its_place = match *what {
                "a private key" => name == "identity/keys.json",
                "a hash" => name.starts_with("catalog.db"),
                _ => false,
            };
            assert!(its_place || !holds(bytes, secret), "{what} is in {name}");
        }
    }
}

#[actix_web::test]
async fn nobody_is_refused_for_a_database_that_is_away() {
    let database = super::services::Service::start("postgres", &[]);
    let settings = [
        CHEAP.as_slice(),
        &[
            ("catalog.url", database.address.as_str()),
            ("catalog.query_timeout", "1s"),
            ("identity.refresh_interval", "100ms"),
        ],
    ]
    .concat();
    let app = TestApp::with(&settings, Clock::system()).await;
    register(&app.url, "joe").await;
    let (access, token) = login(&app.url, "joe").await;
    let (_, key, _) = tidegate(&app.folder.path().join("data"), &database.address, &["key", "create", "--name", "x"]);
    eventually("the key is seen", async || me(&app.url, &key).await.status == 200).await;
    database.kill(None);
    // What needs no database goes on; what does is told to come again.
    assert_eq!(me(&app.url, &key).await.status, 200);
    for answer in [
        refresh(&app.url, &token).await,
        post(&app.url, "login", &json!({"login": "joe", "password": PASSWORD})).await,
        post(&app.url, "register", &json!({"login": "ann", "password": PASSWORD})).await,
        me(&app.url, &access).await,
    ] {
        assert_eq!(code(&answer), coded(503, "unavailable"), "{}", answer.text());
        assert!(answer.header("retry-after").is_some());
        assert!(!answer.text().contains("127.0.0.1"), "{}", answer.text());
    }
    eventually("health tells", async || app.get("/health").await.json()["identity"]["status"] == "degraded").await;
    let health = app.get("/health").await;
    let reason = health.json()["identity"]["reason"].as_str().unwrap().to_owned();
    assert_eq!(reason, "the database cannot be read; API keys are used as they were read last");
    assert_eq!((health.status, app.get("/health/ready").await.status), (200, 200));
    // Of a key that another instance may have made a moment ago.
    let header = json!({"alg": "EdDSA", "typ": "at+jwt", "kid": "another"});
    let unknown = format!("{}.{}.x", part(&header), access.split('.').nth(1).unwrap());
    eventually("that it is away is noticed", async || code(&me(&app.url, &unknown).await) == coded(503, "unavailable"))
        .await;
    database.restart();
    eventually("nobody has that key", async || code(&me(&app.url, &unknown).await) == coded(401, "unauthorized")).await;
    eventually("it is back", async || refresh(&app.url, &token).await.status == 200).await;
    eventually("health too", async || app.get("/health").await.json()["identity"]["status"] == "ok").await;
    app.stop().await;
}
