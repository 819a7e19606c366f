//! Changes of a running server that come by themselves: from the file, by SIGHUP, from the command line; and what is taken back.

use std::time::Duration;

use serde_json::json;

use crate::backend::{Backend, Reply};
use crate::client;
use crate::control::{behind_head, config, file, get, post};
use crate::support::{Process, TestApp, eventually, run, within};

/// What a route and upstream of their own add.
fn another(backend: &Backend) -> String {
    format!(
        "[gateway.upstreams.b]\ntargets = [\"{}\"]\n[gateway.upstreams.b.health]\npath = \"/up\"\ninterval = \"100ms\"\ntimeout = \"100ms\"\n\
         [[gateway.routes]]\nname = \"b\"\npath = \"/b/\"\nupstream = \"b\"\n\
         [gateway.routes.canary]\nupstream = \"a\"\nweight = 1\n",
        backend.address
    )
}

#[actix_web::test]
async fn the_file_brings_upstreams_with_all_that_they_start() {
    let backend = Backend::echo();
    let first = config(&backend, 1, "");
    let app = TestApp::with_gateway(behind_head(&first), &[]).await;
    std::fs::write(file(&app), config(&backend, 1, &another(&backend))).unwrap();
    eventually("the upstream is there", async || get(&app, "config").await["version"] == 2).await;
    assert_eq!(client::get(&format!("{}/b/x", app.gateway())).await.status, 200);
    let routes = get(&app, "routes").await;
    assert!(routes.as_array().unwrap().iter().any(|route| route["name"] == "b" && route["canary"].is_object()));
    // And it is still looked at.
    std::fs::write(file(&app), &first).unwrap();
    eventually("it is gone again", async || get(&app, "config").await["version"] == 3).await;
    assert_eq!(get(&app, "upstreams").await.as_array().unwrap().len(), 1);
}

#[actix_web::test]
async fn a_signal_brings_upstreams_too() {
    let backend = Backend::echo();
    let folder = tempfile::tempdir().unwrap();
    let first = config(&backend, 1, "[admin]\nwatch_file = false\n");
    let server = Process::with_gateway(&folder.path().join("data"), behind_head(&first), &[]);
    let gateway = server.gateway.unwrap();
    let other = client::get(&format!("http://{gateway}/b/x")).await;
    assert!(other.text().contains("/b/x"), "by the route for all: {}", other.text());
    let next = config(&backend, 1, &format!("[admin]\nwatch_file = false\n{}", another(&backend)));
    let path = folder.path().join("tidegate.toml");
    std::fs::write(&path, &next).unwrap();
    let shown = async || client::get(&format!("{}/api/v1/admin/config", server.admin)).await.json()["data"].clone();
    // Nobody overwrites what is not read yet.
    let url = format!("{}/api/v1/admin/config", server.admin);
    let refused = client::post(&url, &[], first.clone().into_bytes()).await;
    assert_eq!((refused.status, refused.json()["error"]["code"].as_str()), (412, Some("precondition_failed")));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), next);
    server.hang_up();
    eventually("it is read", async || shown().await["version"] == 2).await;
    assert_eq!(client::get(&format!("http://{gateway}/b/x")).await.status, 200);
    let history = client::get(&format!("{url}/history")).await.json()["data"].clone();
    assert_eq!((history[0]["how"].as_str(), history[0]["who"].as_str()), (Some("signal"), Some("SIGHUP")));
    // A mistake changes nothing, and the next signal is heard all the same.
    std::fs::write(&path, "rubbish = [").unwrap();
    server.hang_up();
    std::fs::write(&path, &first).unwrap();
    server.hang_up();
    eventually("the last is read", async || shown().await["config"]["gateway"]["upstreams"]["b"].is_null()).await;
}

/// Fifty requests that go well.
async fn traffic(url: &str) {
    for _ in 0..50 {
        assert_eq!(client::get(url).await.status, 200);
    }
}

#[actix_web::test]
async fn a_harmful_rename_is_taken_back_with_what_it_removed() {
    let backend = Backend::echo();
    let good = config(&backend, 1, "");
    let app = TestApp::with_gateway(behind_head(&good), &[]).await;
    let url = format!("{}/x", app.gateway());
    traffic(&url).await;
    let dead = Backend::start(|_| Reply::with(500, &[], "no"));
    let renamed =
        config(&dead, 1, "").replace("upstreams.a]", "upstreams.c]").replace("upstream = \"a\"", "upstream = \"c\"");
    assert_eq!(post(&app, "config", &renamed).await.status, 200);
    within(Duration::from_secs(10), "it is taken back", async || client::get(&url).await.status == 200).await;
    assert_eq!(get(&app, "config/history").await[0]["how"], "automatic");
    assert_eq!(std::fs::read_to_string(file(&app)).unwrap(), good);
    assert_eq!(get(&app, "upstreams").await[0]["name"], "a");
}

#[actix_web::test]
async fn a_harmless_change_behind_a_harmful_one_does_not_keep_it() {
    let backend = Backend::echo();
    let dead = Backend::start(|_| Reply::with(500, &[], "no"));
    let good = config(&backend, 1, "");
    let app = TestApp::with_gateway(behind_head(&good), &[]).await;
    let url = format!("{}/x", app.gateway());
    traffic(&url).await;
    assert_eq!(post(&app, "config", &config(&dead, 1, "")).await.status, 200);
    assert_eq!(client::get(&url).await.status, 500);
    assert_eq!(post(&app, "config", &config(&dead, 2, "")).await.status, 200);
    within(Duration::from_secs(10), "both are taken back", async || client::get(&url).await.status == 200).await;
    // What failed meanwhile is not held against what is there again.
    traffic(&url).await;
    assert_eq!(get(&app, "upstreams").await[0]["breaker"]["state"], "closed");
    let history = get(&app, "config/history").await;
    assert_eq!((&history[0]["how"], &history[0]["version"]), (&json!("automatic"), &json!(4)));
    assert!(history[0]["reason"].as_str().unwrap().ends_with("back to version 1"), "{}", history[0]);
    assert_eq!(std::fs::read_to_string(file(&app)).unwrap(), good);
}

#[actix_web::test]
async fn harm_is_taken_back_also_when_the_disk_takes_nothing() {
    let backend = Backend::echo();
    let dead = Backend::start(|_| Reply::with(500, &[], "no"));
    let app = TestApp::with_gateway(behind_head(&config(&backend, 1, "")), &[]).await;
    let url = format!("{}/x", app.gateway());
    traffic(&url).await;
    assert_eq!(post(&app, "config", &config(&dead, 1, "")).await.status, 200);
    // No version can be written any more; those that are there can be read.
    let folder = app.folder.path().join("data/config");
    for version in [3, 4] {
        std::fs::create_dir(folder.join(format!("{version:08}.json.new"))).unwrap();
    }
    within(Duration::from_secs(10), "it is taken back", async || client::get(&url).await.status == 200).await;
    assert_eq!(post(&app, "config", &config(&backend, 2, "")).await.status, 503, "a person's change is not made then");
    assert_eq!(client::get(&url).await.status, 200);
}

#[actix_web::test]
async fn a_file_that_was_emptied_is_not_taken() {
    let backend = Backend::echo();
    let app = TestApp::with_gateway(behind_head(&config(&backend, 1, "")), &[]).await;
    std::fs::write(file(&app), " \n").unwrap();
    let url = format!("{}/x", app.gateway());
    let begun = std::time::Instant::now();
    let fault = async || app.get("/health").await.json()["config"]["reason"].clone();
    while begun.elapsed() < Duration::from_millis(2500) {
        assert_eq!(client::get(&url).await.status, 200);
    }
    assert!(fault().await.as_str().unwrap().contains("not in force"));
    std::fs::write(file(&app), config(&backend, 1, "")).unwrap();
    eventually("it is as it was", async || fault().await.is_null()).await;
    std::fs::write(file(&app), "rubbish = [").unwrap();
    eventually("health has it", async || fault().await.as_str().is_some_and(|why| why.contains("not in force"))).await;
    std::fs::write(file(&app), config(&backend, 2, "")).unwrap();
    eventually("the next is taken", async || get(&app, "config").await["version"] == 2).await;
    eventually("health is well", async || fault().await.is_null()).await;
}

#[actix_web::test]
async fn what_changed_while_no_server_ran_is_told_too() {
    let backend = Backend::echo();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    Process::with_gateway(&data, behind_head(&config(&backend, 1, "")), &[]).kill();
    let server = Process::with_gateway(&data, behind_head(&config(&backend, 3, "")), &[]);
    let history = client::get(&format!("{}/api/v1/admin/config/history", server.admin)).await.json()["data"].clone();
    let change = json!([{"key": "gateway.routes.all.retries", "before": "1", "after": "3"}]);
    assert_eq!((&history[0]["how"], &history[0]["changes"]), (&json!("start"), &change));
    let log = std::fs::read_to_string(data.join("audit.log")).unwrap();
    assert!(log.contains("gateway.routes.all.retries") && log.lines().count() == 1, "{log}");
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o700, "it is nobody else's");
}

#[actix_web::test]
async fn a_file_that_is_a_link_stays_one() {
    let backend = Backend::echo();
    let app = TestApp::with_gateway(behind_head(&config(&backend, 1, "")), &[]).await;
    let real = app.folder.path().join("real.toml");
    std::fs::rename(file(&app), &real).unwrap();
    std::os::unix::fs::symlink(&real, file(&app)).unwrap();
    let next = config(&backend, 2, "");
    assert_eq!(post(&app, "config", &next).await.status, 200);
    assert!(std::fs::symlink_metadata(file(&app)).unwrap().is_symlink());
    assert_eq!(std::fs::read_to_string(&real).unwrap(), next);
}

#[actix_web::test]
async fn the_command_line_changes_a_running_server() {
    let backend = Backend::echo();
    let folder = tempfile::tempdir().unwrap();
    let server = Process::with_gateway(&folder.path().join("data"), behind_head(&config(&backend, 1, "")), &[]);
    let next = folder.path().join("next.toml");
    std::fs::write(&next, config(&backend, 2, "")).unwrap();
    let admin = server.admin.clone();
    let own = folder.path().join("tidegate.toml");
    tokio::task::spawn_blocking(move || {
        let command = |words: &[&str]| {
            let file = own.to_str().unwrap();
            run(&[&["--config", file, "config", "--admin", &admin], words].concat())
        };
        let (code, said, _) = command(&["apply", next.to_str().unwrap()]);
        assert_eq!((code, said.as_str()), (Some(0), "version 2 is in force\n  gateway.routes.all.retries: 1 -> 2\n"));
        let (code, said, _) = command(&["rollback"]);
        assert_eq!((code, said.as_str()), (Some(0), "version 3 is in force\n  gateway.routes.all.retries: 2 -> 1\n"));
        let (code, said, _) = command(&["history"]);
        assert_eq!((code, said.lines().next().unwrap().starts_with("3  ")), (Some(0), true), "{said}");
        assert!(said.contains("by this machine (rollback): back to version 1"), "{said}");
        let (code, said, _) = command(&["reload"]);
        assert_eq!((code, said.as_str()), (Some(0), "version 3 is in force\n"));
        // A mistake is told where its author made it.
        std::fs::write(&next, "[server]\nworker = 1\n").unwrap();
        let (code, _, said) = command(&["apply", next.to_str().unwrap()]);
        let (lost, _, why) = run(&["--config", next.to_str().unwrap(), "config", "rollback"]);
        assert!(lost != Some(0) && why.contains("server.worker") && why.contains("--admin URL"), "{why}");
        assert!(code != Some(0) && said.contains(&format!("{}:2:1: server.worker: ", next.display())), "{said}");
    })
    .await
    .unwrap();
    assert_eq!(client::get(&format!("http://{}/x", server.gateway.unwrap())).await.status, 200);
}
