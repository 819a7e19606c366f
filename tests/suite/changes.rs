//! The log of changes: whatever an operator changes, of whichever kind the operator is, is a line with their name.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};
use tidegate::clock::Clock;

use crate::backend::Backend;
use crate::client;
use crate::identity::{CHEAP, Key, KeyServer, login, register, tidegate, tokens};
use crate::identity::{refresh, with_token};
use crate::support::{Answer, Process, TestApp, eventually};

const ADMIN_KEY: &str = "the-admins-own-secret";
/// Of a client, who must not be in the log.
const ADDRESS: &str = "203.0.113.77";

/// What changes data and is no line: each product has its version, and each event is in the journal.
const DATA: &[&str] = &[
    "POST /api/v1/products",
    "PUT /api/v1/products/{id}",
    "PATCH /api/v1/products/{id}",
    "DELETE /api/v1/products/{id}",
    "POST /api/v1/import",
];

/// Every other operation that only operators may do and that is no question.
fn changes() -> Vec<(&'static str, &'static str, Value, &'static str, &'static str)> {
    vec![
        ("POST /api/v1/admin/config", "", Value::Null, "config.apply", "config"),
        ("POST /api/v1/admin/config/rollback", "", Value::Null, "config.apply", "config"),
        ("POST /api/v1/admin/config/reload", "", Value::Null, "config.apply", "config"),
        (
            "POST /api/v1/admin/upstreams/{name}/breaker",
            "/api/v1/admin/upstreams/a/breaker",
            json!({"state": "reset"}),
            "breaker.force",
            "a",
        ),
        (
            "DELETE /api/v1/admin/limits/{name}/bucket",
            "/api/v1/admin/limits/few/bucket?address=203.0.113.77",
            Value::Null,
            "limit.reset",
            "few",
        ),
        (
            "POST /api/v1/admin/routes/{route}/canary",
            "/api/v1/admin/routes/all/canary",
            json!({"weight": 5}),
            "canary",
            "all",
        ),
        (
            "DELETE /api/v1/cache/{type}/{key}",
            "/api/v1/cache/product_detail/42",
            Value::Null,
            "cache.invalidate",
            "product_detail/42",
        ),
        ("POST /api/v1/cache/warm", "/api/v1/cache/warm", json!({"limit": 3}), "cache.warm", "products"),
    ]
}

fn config(backend: &Backend, retries: usize, more: &str) -> String {
    format!(
        "[gateway]\nlisten = \"127.0.0.1:0\"\n[gateway.limits.few]\nby = [\"address\"]\nlimit = 100\nperiod = \"1h\"\n\
         [gateway.upstreams.a]\ntargets = [\"{0}\"]\n[gateway.upstreams.b]\ntargets = [\"{0}\"]\n[[gateway.routes]]\nname = \"all\"\n\
         path = \"/\"\nupstream = \"a\"\nretries = {retries}\ncanary = {{ upstream = \"b\", weight = 1 }}\n{more}",
        backend.address
    )
}

fn behind_head(text: &str) -> &str {
    text.splitn(3, '\n').nth(2).unwrap()
}

fn lines(data: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(data.join("audit.log")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Makes every change as somebody, and looks for its line.
async fn change_everything(app: &TestApp, backend: &Backend, more: &str, bearer: Option<&str>, who: &str) {
    let data = app.folder.path().join("data");
    let headers: Vec<(&str, &str)> = [("content-type", "application/json")]
        .into_iter()
        .chain(bearer.map(|bearer| ("authorization", bearer)))
        .collect();
    let text = |retries| config(backend, retries, more);
    let file = app.folder.path().join("tidegate.toml");
    // Each config is another than the one before, whoever was here.
    let n = lines(&data).len();
    for (operation, path, body, action, target) in changes() {
        let (method, template) = operation.split_once(' ').unwrap();
        let path = if path.is_empty() { template } else { path };
        let base = if path.starts_with("/api/v1/admin/") { app.admin() } else { app.url.clone() };
        let before = lines(&data).len();
        let url = format!("{base}{path}");
        let answer = match template.rsplit_once('/').unwrap().1 {
            "config" => client::post(&url, &headers, text(2 + n % 5).into_bytes()).await,
            "reload" => {
                let other = if std::fs::read_to_string(&file).unwrap().contains("retries = 8") { 9 } else { 8 };
                std::fs::write(&file, text(other)).unwrap();
                client::post(&url, &headers, vec![]).await
            }
            _ if body.is_null() => client::request(method, &url, &headers).await,
            _ => client::send(method, &url, &headers, &body).await,
        };
        assert_eq!(answer.status, 200, "{who}: {operation}: {}", answer.text());
        let now = lines(&data);
        assert_eq!(now.len(), before + 1, "{who}: {operation} is one line: {now:?}");
        let line = &now[before];
        assert_eq!(
            (line["who"].as_str(), line["action"].as_str(), line["target"].as_str()),
            (Some(who), Some(action), Some(target)),
            "{operation}"
        );
        if action == "config.apply" {
            let history = client::get_with(&format!("{}/api/v1/admin/config/history", app.admin()), &headers).await;
            assert_eq!(history.json()["data"][0]["who"], who, "{operation}");
        }
    }
}

/// What only operators may change, as it is described.
async fn described(app: &TestApp) -> BTreeSet<String> {
    let document = app.get("/openapi.json").await.json();
    let mut found = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let operators =
                path.starts_with("/api/v1/admin/") || operation["security"].to_string().contains("operator");
            if operators && method != "get" {
                found.insert(format!("{} {path}", method.to_uppercase()));
            }
        }
    }
    found
}

/// Operations of handlers, as their attributes name them.
fn written(folder: &Path) -> Vec<String> {
    let mut found = vec![];
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(written(&path));
            continue;
        }
        for line in std::fs::read_to_string(&path).unwrap().lines() {
            let attribute = line.strip_prefix("#[").and_then(|rest| rest.strip_suffix("\")]"));
            let Some((method, path)) = attribute.and_then(|rest| rest.split_once("(\"")) else { continue };
            if ["post", "put", "patch", "delete"].contains(&method) {
                found.push(format!("{} {}", method.to_uppercase(), path.replace(":.*}", "}")));
            }
        }
    }
    found
}

#[actix_web::test]
async fn what_changes_something_is_described() {
    let app = TestApp::start().await;
    let document = app.get("/openapi.json").await.json();
    let written = written(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http"));
    assert!(written.len() > 20, "{written:?}");
    for operation in written {
        let (method, path) = operation.split_once(' ').unwrap();
        assert!(document["paths"][path][method.to_lowercase()].is_object(), "{operation} is not in openapi.rs");
    }
    app.stop().await;
}

#[actix_web::test]
async fn every_change_is_a_line_with_the_name_of_whoever_made_it() {
    let backend = Backend::echo();
    let server = KeyServer::start();
    let issuers_key = Key::new("EdDSA");
    server.keys.lock().unwrap().push(issuers_key.jwk("1"));
    let more = format!(
        "[server]\nadmin_key = \"{ADMIN_KEY}\"\n[[identity.issuers]]\nissuer = \"https://login.example\"\njwks_url = \"{}\"\n\
         audience = \"shop\"\nalgorithms = [\"EdDSA\"]\nroles = [\"user\", \"operator\"]\n",
        server.url
    );
    let settings =
        [CHEAP.as_slice(), &[("admin.watch_file", "false"), ("identity.refresh_interval", "100ms")]].concat();
    let app = TestApp::with_gateway(behind_head(&config(&backend, 1, &more)), &settings).await;
    let data = app.folder.path().join("data");

    // Nothing that an operator may change is left out of this test.
    let tried: BTreeSet<String> = changes().iter().map(|change| change.0.to_owned()).collect();
    let all: BTreeSet<String> = tried.iter().cloned().chain(DATA.iter().map(|data| (*data).to_owned())).collect();
    assert_eq!(described(&app).await, all, "say in this test what becomes of it in the log of changes");

    register(&app.url, "boss").await;
    let (plain, token) = login(&app.url, "boss").await;
    assert!(tidegate(&data, "", &["user", "roles", "boss", "user", "operator"]).0);
    let (boss, _) = tokens(&refresh(&app.url, &token).await);
    let id = with_token(&app.url, "/api/v1/auth/me", &boss).await.json()["data"]["id"].as_str().unwrap().to_owned();
    let (_, key, _) = tidegate(&data, "", &["key", "create", "--name", "ops", "--scope", "operator"]);
    eventually("the key is seen", async || with_token(&app.url, "/api/v1/auth/me", &key).await.status == 200).await;
    let now = Clock::system().now() / 1000;
    let claims = json!({"iss": "https://login.example", "aud": "shop", "sub": "42", "name": "Ann\nthe admin key", "exp": now + 3600,
        "roles": ["operator"]});
    let foreign = issuers_key.token("1", &claims);
    let made: Vec<(String, String)> = lines(&data)
        .iter()
        .map(|line| (line["action"].as_str().unwrap().to_owned(), line["who"].as_str().unwrap().to_owned()))
        .collect();
    let uid = format!("the command line (uid {})", rustix::process::getuid().as_raw());
    assert_eq!(made, [(String::from("user.roles"), uid.clone()), (String::from("key.create"), uid)]);

    let operators = [
        (ADMIN_KEY, String::from("the admin key")),
        (&boss, format!("account boss ({id})")),
        (&key, format!("key {} (ops)", &key[..15])),
        (&foreign, String::from("https://login.example|42 (Ann\u{fffd}the admin key)")),
    ];
    for (token, who) in &operators {
        change_everything(&app, &backend, &more, Some(&format!("Bearer {token}")), who).await;
    }
    // Who may not, and what is not done, is no line.
    let before = lines(&data).len();
    let breaker = format!("{}/api/v1/admin/upstreams/a/breaker", app.admin());
    let order = json!({"state": "open"});
    let send = async |url: &str, token: &str, body: &Value| -> Answer {
        let bearer = format!("Bearer {token}");
        client::send("POST", url, &[("content-type", "application/json"), ("authorization", &bearer)], body).await
    };
    assert_eq!(send(&breaker, &plain, &order).await.status, 403);
    assert_eq!(send(&breaker, "wrong", &order).await.status, 401);
    assert_eq!(send(&breaker.replace("/a/", "/c/"), ADMIN_KEY, &order).await.status, 404);
    assert_eq!(send(&breaker, ADMIN_KEY, &json!({"state": "ajar"})).await.status, 400);
    assert_eq!(send(&format!("{}/api/v1/cache/warm", app.url), &plain, &json!({})).await.status, 403);
    assert_eq!(lines(&data).len(), before);
    // A key in the place of its name.
    let url = format!("{}/api/v1/admin/limits/few/bucket?address={ADDRESS}&api_key={key}&user={boss}", app.admin());
    let bearer = format!("Bearer {ADMIN_KEY}");
    assert_eq!(client::request("DELETE", &url, &[("authorization", &bearer)]).await.status, 200);
    assert_eq!(
        lines(&data)[before]["detail"],
        json!({"by": ["address", "api_key", "user"], "api_key": null, "route": null})
    );

    let log = std::fs::read_to_string(data.join("audit.log")).unwrap();
    let tail = |token: &str| token[token.len() - 40..].to_owned();
    for secret in [ADMIN_KEY, ADDRESS, &key[16..], &tail(&boss), &tail(&plain), &tail(&foreign), &tail(&token)] {
        assert!(!log.contains(secret), "{secret} is in the log of changes: {log}");
    }
    let mode = std::fs::metadata(data.join("audit.log")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777, 0o600);
}

#[actix_web::test]
async fn without_a_key_it_is_this_machine_or_who_it_says_it_is() {
    let backend = Backend::echo();
    let settings = [CHEAP.as_slice(), &[("admin.watch_file", "false")]].concat();
    let app = TestApp::with_gateway(behind_head(&config(&backend, 1, "")), &settings).await;
    let data = app.folder.path().join("data");
    change_everything(&app, &backend, "", None, "this machine").await;
    register(&app.url, "boss").await;
    let (plain, token) = login(&app.url, "boss").await;
    assert!(tidegate(&data, "", &["user", "roles", "boss", "admin"]).0);
    let (boss, _) = tokens(&refresh(&app.url, &token).await);
    let id = with_token(&app.url, "/api/v1/auth/me", &boss).await.json()["data"]["id"].as_str().unwrap().to_owned();
    change_everything(&app, &backend, "", Some(&format!("Bearer {boss}")), &format!("account boss ({id})")).await;
    // Who shows what is not enough is not let in for where they sit.
    let breaker = format!("{}/api/v1/admin/upstreams/a/breaker", app.admin());
    for (bearer, status) in [(plain.as_str(), 403), ("rubbish", 401)] {
        let headers = [("content-type", "application/json"), ("authorization", &format!("Bearer {bearer}"))];
        assert_eq!(client::send("POST", &breaker, &headers, &json!({"state": "open"})).await.status, status);
    }
}

#[actix_web::test]
async fn what_cannot_be_noted_is_not_done() {
    let backend = Backend::echo();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    // A disk that takes no byte.
    std::os::unix::fs::symlink("/dev/full", data.join("audit.log")).unwrap();
    let first = config(&backend, 1, "");
    let server = Process::with_gateway(&data, behind_head(&first), &[("admin.watch_file", "false")]);
    let upstreams = format!("{}/api/v1/admin/upstreams", server.admin);
    let json_type = [("content-type", "application/json")];
    let tries = [
        client::send("POST", &format!("{upstreams}/a/breaker"), &json_type, &json!({"state": "open"})).await,
        client::post(&format!("{}/api/v1/admin/config", server.admin), &[], config(&backend, 2, "").into()).await,
        client::request("DELETE", &format!("{}/api/v1/cache/product_detail/1", server.url), &[]).await,
    ];
    for refused in tries {
        assert_eq!((refused.status, refused.json()["error"]["code"].as_str()), (503, Some("unavailable")));
        assert!(refused.text().contains("the log of changes cannot be written"), "{}", refused.text());
    }
    assert_eq!(client::get(&upstreams).await.json()["data"][0]["breaker"]["state"], "closed");
    let shown = client::get(&format!("{}/api/v1/admin/config", server.admin)).await.json();
    assert_eq!(shown["data"]["config"]["gateway"]["routes"][0]["retries"], 1);
    assert_eq!(std::fs::read_to_string(folder.path().join("tidegate.toml")).unwrap(), first);
}
