//! Steering a running server: its config as a whole or not at all, and back.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::backend::{Backend, Reply};
use crate::client;
use crate::support::{Answer, Process, TestApp, eventually, within};

pub fn config(backend: &Backend, retries: u32, more: &str) -> String {
    format!(
        "[gateway]\nlisten = \"127.0.0.1:0\"\n[gateway.limits.few]\nby = [\"address\"]\nlimit = 100\nperiod = \"1d\"\nburst = 5\n\
         [gateway.upstreams.a]\ntargets = [\"{}\"]\n[[gateway.routes]]\nname = \"few\"\npath = \"/few/\"\nupstream = \"a\"\nlimits = [\"few\"]\n\
         [[gateway.routes]]\nname = \"all\"\npath = \"/\"\nupstream = \"a\"\nretries = {retries}\n{more}",
        backend.address
    )
}

/// The same without its first two lines, as `TestApp` has them.
pub fn behind_head(text: &str) -> &str {
    text.splitn(3, '\n').nth(2).unwrap()
}

pub async fn post(app: &TestApp, path: &str, body: &str) -> Answer {
    client::post(&format!("{}/api/v1/admin/{path}", app.admin()), &[], body.as_bytes().to_vec()).await
}

pub async fn get(app: &TestApp, path: &str) -> Value {
    let answer = client::get(&format!("{}/api/v1/admin/{path}", app.admin())).await;
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    answer.json()["data"].clone()
}

pub fn file(app: &TestApp) -> std::path::PathBuf {
    app.folder.path().join("tidegate.toml")
}

#[actix_web::test]
async fn a_config_is_changed_kept_and_taken_back() {
    let backend = Backend::echo();
    let first = config(&backend, 1, "");
    let app = TestApp::with_gateway(behind_head(&first), &[("server.admin_key", "")]).await;
    let shown = get(&app, "config").await;
    assert_eq!((shown["version"].as_u64(), &shown["config"]["gateway"]["routes"][1]["retries"]), (Some(1), &json!(1)));
    assert_eq!(shown["config"]["journal"]["durability"], "written", "defaults are shown");

    let second = config(&backend, 2, "");
    let applied = post(&app, "config", &second).await;
    assert_eq!(applied.status, 200, "{}", applied.text());
    let change = json!([{"key": "gateway.routes.all.retries", "before": "1", "after": "2"}]);
    assert_eq!(applied.json()["data"], json!({"version": 2, "changes": change, "restart": []}));
    assert_eq!(std::fs::read_to_string(file(&app)).unwrap(), second, "it is the file's text");
    let url = format!("{}/api/v1/admin/config", app.admin());
    let stale = client::post(&url, &[("if-match", "\"1\"")], first.clone().into_bytes()).await;
    assert_eq!((stale.status, stale.json()["error"]["code"].as_str()), (412, Some("precondition_failed")));

    // What a running process cannot follow is told.
    let third = second.replace("retries = 2", "retries = 3") + "[journal]\ndurability = \"synced\"\n";
    let applied = post(&app, "config", &third).await.json();
    assert_eq!(applied["data"]["restart"], json!(["journal.durability"]));

    // Through the file, which is looked at.
    std::fs::write(file(&app), config(&backend, 4, "")).unwrap();
    eventually("the file is taken up", async || get(&app, "config").await["version"] == 4).await;
    std::fs::write(file(&app), "rubbish = [").unwrap();
    let reload = post(&app, "config/reload", "").await;
    assert_eq!((reload.status, reload.json()["error"]["code"].as_str()), (422, Some("invalid_config")));
    assert!(reload.text().contains("tidegate.toml:1"), "{}", reload.text());
    assert_eq!(get(&app, "config").await["version"], 4);

    let back = post(&app, "config/rollback", "{\"to\": 2}").await.json();
    assert_eq!(back["data"]["version"], 5);
    assert_eq!(std::fs::read_to_string(file(&app)).unwrap(), second);
    let back = post(&app, "config/rollback", "").await.json();
    assert_eq!(back["data"]["changes"][0]["after"], "4", "{back}");
    let history = get(&app, "config/history").await;
    let how: Vec<&str> = history.as_array().unwrap().iter().map(|v| v["how"].as_str().unwrap()).collect();
    assert_eq!(how, ["rollback", "rollback", "file", "api", "api", "start"]);
    assert_eq!(post(&app, "config/rollback", "{\"to\": 77}").await.status, 404);

    let log = std::fs::read_to_string(app.folder.path().join("data/audit.log")).unwrap();
    assert_eq!(log.lines().count(), 5, "{log}");
    assert!(log.contains("gateway.routes.all.retries"));
}

#[actix_web::test]
async fn the_gateway_is_looked_into_and_steered() {
    let backend = Backend::echo();
    let app = TestApp::with_gateway(behind_head(&config(&backend, 1, "")), &[]).await;
    for _ in 0..3 {
        assert_eq!(client::get(&format!("{}/few/", app.gateway())).await.status, 200);
    }
    let routes = get(&app, "routes").await;
    assert_eq!((routes[0]["name"].as_str(), routes[0]["requests"].as_u64()), (Some("few"), Some(3)));
    assert_eq!(get(&app, "upstreams").await[0]["targets"][0]["requests"], 3);
    let bucket = get(&app, "limits/few/bucket?address=127.0.0.1").await;
    assert_eq!((bucket["remaining"].as_u64(), bucket["burst"].as_u64()), (Some(2), Some(5)));
    let url = format!("{}/api/v1/admin/limits/few/bucket?address=127.0.0.1", app.admin());
    assert_eq!(client::request("DELETE", &url, &[]).await.json()["data"], json!({"reset": true}));
    assert_eq!(get(&app, "limits/few/bucket?address=127.0.0.1").await["remaining"], 5);
    assert_eq!(get(&app, "limits").await[0]["allowed"], 3);
    let nobodys = format!("{}/api/v1/admin/limits/few/bucket", app.admin());
    assert_eq!(client::get(&nobodys).await.status, 404, "it goes by address");

    let order = |state: &str| json!({ "state": state });
    let breaker = format!("{}/api/v1/admin/upstreams/a/breaker", app.admin());
    let json_type = [("content-type", "application/json")];
    let opened = client::send("POST", &breaker, &json_type, &order("open")).await.json();
    assert_eq!(opened["data"]["breaker"]["state"], "forced_open");
    let refused = client::get(&format!("{}/x", app.gateway())).await;
    assert_eq!((refused.status, refused.json()["error"]["code"].as_str()), (503, Some("circuit_open")));
    let reset = client::send("POST", &breaker, &json_type, &order("reset")).await.json();
    assert_eq!(reset["data"]["breaker"]["state"], "closed");
    assert_eq!(client::get(&format!("{}/x", app.gateway())).await.status, 200);
    assert_eq!(client::send("POST", &breaker, &json_type, &order("ajar")).await.status, 400);
    let nobody = breaker.replace("/a/", "/b/");
    assert_eq!(client::send("POST", &nobody, &json_type, &order("open")).await.status, 404);
    let log = std::fs::read_to_string(app.folder.path().join("data/audit.log")).unwrap();
    for action in ["limit.reset", "breaker.force"] {
        assert!(log.contains(action), "{log}");
    }
    assert!(!log.contains("127.0.0.1"), "the log of changes has no addresses of clients: {log}");
}

#[actix_web::test]
async fn it_wants_the_key_and_shows_no_secret() {
    let backend = Backend::echo();
    let key = "a-key-of-the-operators";
    let more = format!("[server]\nadmin_key = \"{key}\"\n[stream]\nsasl_password = \"s3cr3t-word\"\n");
    let app = TestApp::with_gateway(behind_head(&config(&backend, 1, &more)), &[]).await;
    let url = format!("{}/api/v1/admin/config", app.admin());
    for sent in [None, Some("Bearer wrong")] {
        let headers: Vec<(&str, &str)> = sent.map(|sent| ("authorization", sent)).into_iter().collect();
        assert_eq!(client::get_with(&url, &headers).await.status, 401);
        assert_eq!(client::post(&url, &headers, b"x".to_vec()).await.status, 401);
    }
    let bearer = format!("Bearer {key}");
    let headers = [("authorization", bearer.as_str())];
    let shown = client::get_with(&url, &headers).await;
    assert_eq!(shown.status, 200);
    let other = config(&backend, 2, &more.replace("s3cr3t-word", "s3cr3t-too"));
    let applied = client::post(&url, &headers, other.into_bytes()).await;
    assert_eq!(applied.status, 200, "{}", applied.text());
    let history = client::get_with(&format!("{url}/history"), &headers).await;
    let log = std::fs::read_to_string(app.folder.path().join("data/audit.log")).unwrap();
    for text in [shown.text(), applied.text(), history.text(), log] {
        assert!(!text.contains("s3cr3t") && !text.contains(key), "{text}");
    }
    assert_eq!(client::get(&format!("{}/api/v1/admin/config", app.url)).await.status, 404, "it is nowhere else");
}

/// Line and key of every mistake in a message that begins each with this name.
fn mistakes<'a>(message: &'a str, name: &str) -> Vec<(usize, &'a str)> {
    let told = message.lines().filter(|line| !line.starts_with("    "));
    told.map(|mistake| {
        let place = mistake.strip_prefix(name).and_then(|rest| rest.strip_prefix(':'));
        let (line, rest) = place.and_then(|rest| rest.split_once(':')).unwrap_or_else(|| panic!("no line: {message}"));
        let column = rest.split_once(':').filter(|(column, _)| column.parse::<usize>().is_ok());
        let rest = column.map_or(rest, |(_, rest)| rest);
        let key = rest.trim_start().split_once(": ").map(|(key, _)| key).filter(|key| !key.contains(' '));
        (line.parse().unwrap(), key.unwrap_or_else(|| panic!("no key: {message}")))
    })
    .collect()
}

#[actix_web::test]
async fn broken_configs_are_refused_and_nothing_changes() {
    let backend = Backend::echo();
    let more = "[gateway.routes.cors]\norigins = [\"https://shop.example\"]\ncredentials = true\n\
         [gateway.routes.canary]\nupstream = \"b\"\nsteps = [1, 10]\ninterval = \"1m\"\n\
         [gateway.upstreams.b]\ntargets = [\"127.0.0.1:1\"]\nmax_fails = 3\nfail_timeout = \"30s\"\n\
         [gateway.upstreams.b.breaker]\nprobes = 3\n[gateway.upstreams.b.health]\npath = \"/up\"\ninterval = \"5s\"\n\
         [sites.shop]\nprivacy_signal = \"drop\"\n";
    let good = config(&backend, 1, more);
    let app = TestApp::with_gateway(behind_head(&good), &[]).await;
    assert_eq!(post(&app, "config", &good).await.status, 200);
    // Every line, broken in several ways; what happens to be valid all the same is left out.
    let mut broken = Vec::new();
    for (number, line) in good.lines().enumerate() {
        let with = |value: &str| line.split_once(" = ").map_or_else(String::new, |(key, _)| format!("{key} = {value}"));
        let ways = [
            line.replacen('=', "", 1),
            line.replacen('"', "", 1),
            line.replacen(" = ", "x = ", 1),
            line.replacen("[", "[[", 1).replacen("= [[", "= [", 1),
            with("-1"),
            with("\"no such thing\""),
            with("{}"),
            format!("{line}\n{line}"),
        ];
        for way in ways.iter().filter(|way| !way.is_empty() && *way != line) {
            let lines = good.lines().enumerate().map(|(n, kept)| if n == number { way.as_str() } else { kept });
            broken.push((number + 1, lines.collect::<Vec<_>>().join("\n")));
        }
    }
    let own = file(&app).display().to_string();
    let (mut refused, mut there) = (0, 0);
    for (number, text) in &broken {
        let answer = post(&app, "config?name=next.toml", text).await;
        if answer.status == 200 {
            // It means the same, or something else that is valid.
            assert_eq!(post(&app, "config", &good).await.status, 200);
            continue;
        }
        assert_eq!(answer.status, 422, "{text}\n{}", answer.text());
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        let told = mistakes(&message, "next.toml");
        assert!(
            !told.is_empty() && told.iter().all(|(line, _)| *line <= text.lines().count()),
            "{message}\n---\n{text}"
        );
        there += u32::from(told.iter().any(|(line, _)| line.abs_diff(*number) <= 1));
        assert_eq!(std::fs::read_to_string(file(&app)).unwrap(), good);
        refused += 1;
        assert_eq!(client::get(&format!("{}/x", app.gateway())).await.status, 200, "traffic is untouched");
        if refused % 10 == 0 {
            // The same from the file.
            std::fs::write(file(&app), text).unwrap();
            let answer = post(&app, "config/reload", "").await;
            let same = message.lines().map(|line| line.replacen("next.toml:", &format!("{own}:"), 1));
            let told = answer.json()["error"]["message"].as_str().unwrap().to_owned();
            assert_eq!((answer.status, told), (422, same.collect::<Vec<_>>().join("\n")));
            std::fs::write(file(&app), &good).unwrap();
        }
    }
    assert!(refused >= 100, "{refused} of {}", broken.len());
    // The others name what refers to it, as a route does that has lost its upstream.
    assert!(there * 10 >= refused * 8, "{there} of {refused} name the line that was broken");
    assert_eq!(get(&app, "config").await["config"]["gateway"]["routes"][1]["retries"], 1);
}

#[actix_web::test]
async fn a_harmful_config_is_taken_back_by_itself() {
    let good = Backend::echo();
    let bad = Backend::start(|_| Reply::with(500, &[], "no"));
    let app = TestApp::with_gateway(behind_head(&config(&good, 1, "")), &[]).await;
    let url = format!("{}/x", app.gateway());
    for _ in 0..50 {
        assert_eq!(client::get(&url).await.status, 200);
    }
    let harmful = config(&bad, 1, "[gateway.upstreams.b]\ntargets = [\"127.0.0.1:1\"]\n");
    let begun = std::time::Instant::now();
    assert_eq!(post(&app, "config", &harmful).await.status, 200);
    within(Duration::from_secs(10), "it is taken back", async || client::get(&url).await.status == 200).await;
    assert!(begun.elapsed() < Duration::from_secs(10));
    let history = get(&app, "config/history").await;
    assert_eq!((history[0]["how"].as_str(), history[0]["who"].as_str()), (Some("automatic"), Some("the server")));
    assert!(history[0]["reason"].as_str().unwrap().contains("100.0 %"), "{}", history[0]);
    assert_eq!(std::fs::read_to_string(file(&app)).unwrap(), config(&good, 1, ""));
}

/// Reads until a blank line.
fn head(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
        text.push(byte[0]);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// A server that switches protocols and then says everything back.
fn echo_socket() -> std::net::SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                head(&mut stream);
                let switch = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
                stream.write_all(switch.as_bytes()).unwrap();
                let mut piece = [0; 64];
                while let Ok(n @ 1..) = stream.read(&mut piece) {
                    if stream.write_all(&piece[..n]).is_err() {
                        break;
                    }
                }
            });
        }
    });
    address
}

#[actix_web::test]
async fn a_thousand_reloads_drop_no_request_and_no_socket() {
    let backend = Backend::start(|_| Reply::ok("x")).forgetful();
    let sockets_at = echo_socket();
    let more = format!(
        "[gateway.upstreams.sockets]\ntargets = [\"{sockets_at}\"]\n[[gateway.routes]]\nname = \"sockets\"\npath = \"/ws\"\nupstream = \"sockets\"\n\
         [gateway.upstreams.half]\ntargets = [\"{}\", \"127.0.0.1:1\"]\nmax_fails = 1\nfail_timeout = \"1h\"\n\
         [[gateway.routes]]\nname = \"half\"\npath = \"/half/\"\nupstream = \"half\"\n",
        backend.address
    );
    let first = config(&backend, 1, &more);
    let app = TestApp::with_gateway(behind_head(&first), &[]).await;
    let gateway = app.app().gateway_address().unwrap();
    let mut sockets: Vec<TcpStream> = (0..100)
        .map(|_| {
            let mut socket = TcpStream::connect(gateway).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let ask = "GET /ws HTTP/1.1\r\nhost: t\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
            socket.write_all(ask.as_bytes()).unwrap();
            socket
        })
        .collect();
    let mut sockets = tokio::task::spawn_blocking(move || {
        sockets.iter_mut().for_each(|socket| assert!(head(socket).starts_with("HTTP/1.1 101"), "an upgrade"));
        sockets
    })
    .await
    .unwrap();
    // A limit that is used up stays so, and an open breaker too.
    for _ in 0..5 {
        assert_eq!(client::get(&format!("http://{gateway}/few/")).await.status, 200);
    }
    let breaker = format!("{}/api/v1/admin/upstreams/sockets/breaker", app.admin());
    let json_type = [("content-type", "application/json")];
    client::send("POST", &breaker, &json_type, &json!({ "state": "open" })).await;

    // So do a target that is left alone for its failures, and what is in the cache.
    let ejected = async || {
        let all = get(&app, "upstreams").await;
        let half = all.as_array().unwrap().iter().find(|upstream| upstream["name"] == "half").unwrap();
        let dead =
            half["targets"].as_array().unwrap().iter().find(|target| target["address"] == "127.0.0.1:1").unwrap();
        (dead["ejections"].as_u64().unwrap(), dead["ejected_ms"].as_u64())
    };
    eventually("the dead target is left alone", async || {
        assert_eq!(client::get(&format!("http://{gateway}/half/")).await.status, 200);
        ejected().await.1.is_some()
    })
    .await;
    let before = ejected().await;
    let product = json!({"id": "17", "name": "Oak table", "price": "249.00"});
    assert_eq!(client::send("POST", &format!("{}/api/v1/products", app.url), &[], &product).await.status, 201);
    let cached = async || app.get("/api/v1/products/17").await.header("cache-status").unwrap_or_default().to_owned();
    assert!(cached().await.contains("fwd=miss"));
    assert!(cached().await.contains("hit"));

    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let load: Vec<_> = (0..4)
        .map(|_| {
            let (stop, sent) = (stop.clone(), sent.clone());
            std::thread::spawn(move || {
                let mut raw = client::Raw::connect(gateway).unwrap();
                while !stop.load(Ordering::SeqCst) {
                    let (status, _) = raw.get("/x").expect("no connection is dropped");
                    assert_eq!(status, 200);
                    sent.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    let control = app.app().control().clone();
    for n in 0..1000u32 {
        let applied = control.put(config(&backend, 2 + n % 2, &more), "config", None, "the test").await.unwrap();
        assert_eq!(applied.changes.len(), 1);
    }
    stop.store(true, Ordering::SeqCst);
    tokio::task::spawn_blocking(move || {
        load.into_iter().for_each(|thread| thread.join().expect("no request failed"));
        for socket in &mut sockets {
            socket.write_all(b"still here").unwrap();
            let mut back = [0; 10];
            socket.read_exact(&mut back).expect("no socket is dropped");
            assert_eq!(&back, b"still here");
        }
    })
    .await
    .unwrap();
    assert!(sent.load(Ordering::SeqCst) > 100, "there was load");
    assert_eq!(client::get(&format!("http://{gateway}/few/")).await.status, 429, "the limit is kept");
    let kept = get(&app, "upstreams").await;
    let sockets = kept.as_array().unwrap().iter().find(|upstream| upstream["name"] == "sockets").unwrap();
    assert_eq!(sockets["breaker"]["state"], "forced_open", "the breaker is kept");
    let after = ejected().await;
    assert!(after.0 == before.0 && after.1 <= before.1 && after.1.is_some(), "health is kept: {before:?}, {after:?}");
    assert_eq!(client::get(&format!("http://{gateway}/half/")).await.status, 200);
    assert!(cached().await.contains("hit"), "the cache is kept");
}

#[actix_web::test]
async fn a_kill_at_any_moment_leaves_a_config_that_starts() {
    let backend = Backend::echo();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let first = config(&backend, 1, "");
    let mut server = Process::with_gateway(&data, behind_head(&first), &[]);
    let file = folder.path().join("tidegate.toml");
    for round in 0..30u32 {
        let (url, backend_at) = (format!("{}/api/v1/admin/config", server.admin), backend.address);
        let text = |n: u32| config(&backend, 1 + n % 10, "");
        let deadline = std::time::Instant::now() + Duration::from_millis(10 + 7 * u64::from(round));
        let mut n = round;
        while std::time::Instant::now() < deadline {
            n += 1;
            let answer = client::post(&url, &[], text(n).into_bytes()).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        // One more is on its way as the process dies.
        let (last, to) = (text(n + 1), url.trim_start_matches("http://").split('/').next().unwrap().to_owned());
        let mut stream = TcpStream::connect(&to).unwrap();
        let request =
            format!("POST /api/v1/admin/config HTTP/1.1\r\nhost: {to}\r\ncontent-length: {}\r\n\r\n{last}", last.len());
        stream.write_all(request.as_bytes()).unwrap();
        server.kill();
        let left = std::fs::read_to_string(&file).unwrap();
        assert!(left == text(n) || left == last, "the file is whole, and one of both: {backend_at}\n{left}");
        server = Process::with_gateway(&data, behind_head(&left), &[]);
        let answer = client::get(&format!("{}/api/v1/admin/config", server.admin)).await.json();
        assert!(answer["data"]["version"].as_u64().unwrap() > 0);
    }
    // It died between the version and the file: the version is what was in force.
    let url = format!("{}/api/v1/admin/config", server.admin);
    let (before, after) = (config(&backend, 0, ""), config(&backend, 5, ""));
    for text in [&before, &after] {
        assert_eq!(client::post(&url, &[], text.clone().into_bytes()).await.status, 200);
    }
    let version = client::get(&url).await.json()["data"]["version"].as_u64().unwrap();
    server.kill();
    let hash = format!("{:032x}", xxhash_rust::xxh3::xxh3_128(before.as_bytes()));
    let promise = json!({ "version": version, "before": hash });
    std::fs::write(data.join("config/promise"), promise.to_string()).unwrap();
    let server = Process::with_gateway(&data, behind_head(&before), &[]);
    let shown = client::get(&format!("{}/api/v1/admin/config", server.admin)).await.json()["data"].clone();
    assert_eq!(
        (shown["version"].as_u64(), &shown["config"]["gateway"]["routes"][1]["retries"]),
        (Some(version), &json!(5))
    );
    assert_eq!(std::fs::read_to_string(&file).unwrap(), after);
}
