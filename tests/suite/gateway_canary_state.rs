//! Canaries over a restart: killed at any moment, on a disk that is damaged or refuses, the release stands where it stood.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tidegate::gateway::canary::{Phase, Weight};

use crate::backend::Backend;
use crate::client;
use crate::gateway_canary::{gateway, named, snapshot};
use crate::support::{Process, TestApp, eventually, within};
use crate::wire::{Wire, beside};

const GET: &str = "GET / HTTP/1.1\r\nhost: t\r\n\r\n";

fn start(folder: &Path, stable: &Backend, next: &Backend, settings: &str) -> Process {
    let toml = gateway(&stable.address.to_string(), &next.address.to_string(), settings);
    Process::with_gateway(&folder.join("data"), &toml, &[])
}

/// What the admin API says of the canary.
async fn canary(process: &Process) -> Value {
    let answer = client::get(&format!("{}/api/v1/admin/routes", process.admin)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["data"][0]["canary"].clone()
}

async fn order(process: &Process, order: Value) -> Value {
    let url = format!("{}/api/v1/admin/routes/all/canary", process.admin);
    let answer = client::send("POST", &url, &[("content-type", "application/json")], &order).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["data"].clone()
}

/// Without what a start begins anew.
fn stands(canary: &Value) -> Value {
    let keys = ["phase", "weight", "next", "since", "reason", "transitions", "aborts"];
    keys.iter().map(|key| (String::from(*key), canary[key].clone())).collect::<serde_json::Map<_, _>>().into()
}

#[actix_web::test]
async fn one_that_was_aborted_is_so_after_kill_9_and_says_since_when_and_why() {
    let (stable, next) = (named("stable", None), named("next", Some(3)));
    let folder = tempfile::tempdir().unwrap();
    let settings = "steps = [50, 100]\nheader = \"x-canary\"";
    let process = start(folder.path(), &stable, &next, settings);
    let at = process.gateway.unwrap();
    let mut wire = Wire::connect(at);
    within(Duration::from_secs(60), "it is aborted, and that is on disk", async || {
        for _ in 0..50 {
            wire.ask(GET);
        }
        let canary = canary(&process).await;
        canary["phase"] == "aborted" && canary["saved"] == true
    })
    .await;
    let before = canary(&process).await;
    process.kill();
    let count = next.count();
    let process = start(folder.path(), &stable, &next, settings);
    let after = canary(&process).await;
    assert_eq!(stands(&after), stands(&before));
    assert_eq!((&after["reason"], &after["weight"], &after["aborts"]), (&json!("errors"), &json!(0.0), &json!(1)));
    let (change, was) = (&after["last"][0], &before["last"][0]);
    assert_eq!((&change["at"], &change["measured"]), (&was["at"], &was["measured"]));
    assert_eq!((&was["here"], &change["here"]), (&json!(true), &json!(false)));
    assert!(change["measured"].as_str().unwrap().contains("requests failed"), "{change}");
    let since = after["since"].as_i64().unwrap();
    let now = tidegate::clock::Clock::system().now();
    assert!((now - 120_000..=now).contains(&since), "{since} is no time of day");
    let mut wire = Wire::connect(process.gateway.unwrap());
    for _ in 0..200 {
        assert_eq!(wire.ask(GET).text(), "stable");
        assert_eq!(wire.ask("GET / HTTP/1.1\r\nhost: t\r\nx-canary: always\r\n\r\n").text(), "stable");
    }
    assert_eq!(next.count(), count, "it gets nothing");
    // Another one begins anew, and is what is kept from then on.
    process.kill();
    let process = start(folder.path(), &stable, &next, &format!("{settings}\nrelease = \"2\""));
    let begun = canary(&process).await;
    assert_eq!(
        (&begun["phase"], &begun["weight"], &begun["transitions"]),
        (&json!("running"), &json!(50.0), &json!(0))
    );
    eventually("it is on disk", async || canary(&process).await["saved"] == true).await;
    process.kill();
    let process = start(folder.path(), &stable, &next, &format!("{settings}\nrelease = \"2\""));
    assert_eq!(stands(&canary(&process).await), stands(&begun));
    // And the one that was aborted is so again, though it had left the config when the server died.
    process.kill();
    let process = start(folder.path(), &stable, &next, settings);
    assert_eq!(stands(&canary(&process).await), stands(&before));
}

/// The canary's file is written when a change is made, and the config's history after that: whoever dies in between starts
/// with the old config, and whoever starts with the new one may go back.
#[actix_web::test]
async fn an_abort_outlives_a_change_of_the_config_and_kill_9_in_any_order() {
    let (stable, next) = (named("stable", None), named("next", None));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("data/gateway/canaries.json");
    let says = |what: &str| std::fs::read_to_string(&file).is_ok_and(|text| text.contains(what));
    let first = "steps = [50, 100]";
    let second = "steps = [40, 100]\nrelease = \"second\"";
    let toml = |settings: &str| gateway(&stable.address.to_string(), &next.address.to_string(), settings);
    let process = start(folder.path(), &stable, &next, first);
    assert_eq!(order(&process, json!("abort")).await["saved"], true);
    let aborted = canary(&process).await;
    let config = folder.path().join("tidegate.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    assert!(text.contains(first));
    std::fs::write(&config, text.replace(first, second)).unwrap();
    eventually("the change is in the canary's file", async || says("40.0")).await;
    process.kill();
    // As if it had died before the change was in the history.
    let process = start(folder.path(), &stable, &next, first);
    assert_eq!(stands(&canary(&process).await), stands(&aborted));
    process.kill();
    // It is not in the config for a few starts, which write the file anew, and nor is any.
    for settings in [second, second, "none"] {
        let toml = toml(settings);
        let toml = if settings == "none" { toml.split_once("[gateway.routes.canary]").unwrap().0 } else { &toml };
        let process = Process::with_gateway(&folder.path().join("data"), toml, &[]);
        eventually("it is in the file", async || says("\"aborted\"") && says("40.0")).await;
        process.kill();
    }
    let process = start(folder.path(), &stable, &next, first);
    assert_eq!(stands(&canary(&process).await), stands(&aborted));
    let count = next.count();
    let mut wire = Wire::connect(process.gateway.unwrap());
    for _ in 0..100 {
        assert_eq!(wire.ask(GET).text(), "stable");
    }
    assert_eq!(next.count(), count, "it gets nothing");
}

#[actix_web::test]
async fn who_was_in_is_in_after_kill_9() {
    let (stable, next) = (named("stable", None), named("next", None));
    let folder = tempfile::tempdir().unwrap();
    let settings = "steps = [10, 30, 50]\ninterval = \"100ms\"\nmin_requests = 20\nmax_p99_ratio = 1000.0";
    let process = start(folder.path(), &stable, &next, settings);
    let mut wire = Wire::connect(process.gateway.unwrap());
    within(Duration::from_secs(60), "it has taken its steps", async || {
        for _ in 0..50 {
            wire.ask(GET);
        }
        let canary = canary(&process).await;
        canary["weight"] == 50.0 && canary["saved"] == true
    })
    .await;
    let before = canary(&process).await;
    let browsers: Vec<(String, bool)> = (0..400)
        .map(|_| {
            let answer = wire.ask(GET);
            let cookie = answer.headers.iter().find(|(_, value)| value.contains("tidegate_canary=")).unwrap();
            (cookie.1.split(';').next().unwrap().to_owned(), answer.text() == "next")
        })
        .collect();
    let inside = browsers.iter().filter(|(_, inside)| *inside).count();
    assert!((120..280).contains(&inside), "{inside} of 400");
    process.kill();
    let process = start(folder.path(), &stable, &next, settings);
    let mut wire = Wire::connect(process.gateway.unwrap());
    for (cookie, inside) in &browsers {
        let answer = wire.ask(format!("GET / HTTP/1.1\r\nhost: t\r\ncookie: {cookie}\r\n\r\n"));
        assert_eq!(answer.text() == "next", *inside, "{cookie} flipped");
    }
    let after = canary(&process).await;
    assert_eq!(stands(&after), stands(&before));
    let times = |canary: &Value| canary["last"].as_array().unwrap().iter().map(|c| c["at"].clone()).collect::<Vec<_>>();
    assert_eq!((times(&after), times(&after).len()), (times(&before), 2));
}

#[actix_web::test]
async fn killed_at_any_moment_it_stands_before_or_after_the_order_that_was_under_way() {
    let (stable, next) = (named("stable", None), named("next", None));
    let folder = tempfile::tempdir().unwrap();
    // In hundredths of a percent.
    let mut last = 0;
    for round in 0..8_u64 {
        let process = start(folder.path(), &stable, &next, "weight = 1");
        let found = canary(&process).await;
        if round > 0 {
            let weight = (100.0 * found["weight"].as_f64().unwrap()).round() as u64;
            assert!(weight == last || weight == last + 1, "{weight} after {last} was answered");
            assert_eq!(found["phase"], "held");
            last = weight;
        }
        // Orders come as fast as they are answered, and one is under way when it ends.
        let url = format!("{}/api/v1/admin/routes/all/canary", process.admin);
        let begin = last + 1;
        let (told, hears) = std::sync::mpsc::channel();
        let orders = std::thread::spawn(move || {
            let mut wire = Wire::to(url.split("/api/").next().unwrap());
            for weight in begin.. {
                let body = format!("{{\"weight\": {}.{:02}}}", weight / 100, weight % 100);
                let head = "POST /api/v1/admin/routes/all/canary HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json";
                if !wire.try_send(format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len())) {
                    break;
                }
                let Some(answer) = wire.answer() else { break };
                let data: Value = serde_json::from_slice(&answer.body).unwrap();
                assert_eq!(data["data"]["saved"], true, "{data}");
                told.send(weight).unwrap();
            }
        });
        let answered: Vec<u64> = (0..=round % 4).map(|_| hears.recv().unwrap()).collect();
        std::thread::sleep(Duration::from_micros(137 * round));
        process.kill();
        orders.join().unwrap();
        last = answered.into_iter().chain(hears.try_iter()).last().unwrap();
    }
}

#[actix_web::test]
async fn a_file_that_makes_no_sense_is_told_and_the_server_starts() {
    let (stable, next) = (named("stable", None), named("next", None));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("data/gateway/canaries.json");
    let process = start(folder.path(), &stable, &next, "steps = [5, 50]");
    assert_eq!(order(&process, json!("step")).await["weight"], 50.0);
    let url = format!("{}/api/v1/admin/routes/all/canary", process.admin);
    let none = client::send("POST", &url, &[("content-type", "application/json")], &json!("step")).await;
    assert_eq!((none.status, &none.json()["error"]["code"]), (409, &json!("conflict")), "{}", none.text());
    assert_eq!(order(&process, json!("abort")).await["saved"], true);
    process.kill();
    let good = std::fs::read_to_string(&file).unwrap();
    let newer = good.replacen("\"version\": 1", "\"version\": 2", 1);
    let wrong = good.replace("\"weight\": 0.0", "\"weight\": 700.0");
    let half = good[..good.len() / 2].to_owned();
    for (text, said) in [
        (half, "cannot be read"),
        (String::from("\u{0}\u{0}\u{0}"), "cannot be read"),
        (String::from("{\"targets\": []}"), "cannot be read"),
        (newer, "version 2"),
        (wrong, "route all: a weight is 0 to 100"),
    ] {
        std::fs::write(&file, &text).unwrap();
        let process = start(folder.path(), &stable, &next, "steps = [5, 50]");
        let canary_now = canary(&process).await;
        assert_eq!((&canary_now["phase"], &canary_now["weight"]), (&json!("running"), &json!(5.0)), "{text:.40}");
        assert_eq!(client::get(&format!("http://{}", process.gateway.unwrap())).await.status, 200);
        let log = std::fs::read_to_string(folder.path().join("data.log")).unwrap();
        assert!(log.contains("canar") && log.contains(said), "{said}: {log}");
        eventually("a good one is in its place", async || {
            let text = std::fs::read_to_string(&file).unwrap();
            serde_json::from_str::<Value>(&text).is_ok_and(|found| found["canaries"]["all"]["state"]["weight"] == 5.0)
        })
        .await;
        process.kill();
    }
    // What is left behind of a write that did not end does not matter.
    std::fs::write(&file, &good).unwrap();
    std::fs::write(file.with_extension("json.new"), "{\"ver").unwrap();
    let process = start(folder.path(), &stable, &next, "steps = [5, 50]");
    assert_eq!(canary(&process).await["phase"], "aborted");
}

#[actix_web::test]
async fn a_disk_that_refuses_is_told_and_stops_no_traffic() {
    let (stable, next) = (named("stable", None), named("next", None));
    let toml = gateway(&stable.address.to_string(), &next.address.to_string(), "weight = 50");
    let app = TestApp::with_gateway(&toml, &[]).await;
    let gateway = app.app().gateway().unwrap().clone();
    eventually("it is on disk", async || snapshot(&gateway).saved).await;
    // A folder stands where the new file would be written.
    let file = app.folder.path().join("data/gateway/canaries.json");
    let before = std::fs::read_to_string(&file).unwrap();
    let stone = file.with_extension("json.new");
    std::fs::create_dir(&stone).unwrap();
    let canary = gateway.canary("all").unwrap();
    canary.abort();
    assert!(!canary.saved(Duration::from_millis(100)).await);
    let reason = async || app.get("/health").await.json()["gateway"]["canaries"].as_str().map(String::from);
    eventually("health says so", async || reason().await.is_some_and(|why| why.contains("cannot be kept on disk")))
        .await;
    assert_eq!(app.get("/health").await.json()["gateway"]["status"], "degraded");
    let metrics = app.get("/metrics").await.text();
    assert!(metrics.contains("tidegate_canary_saved{route=\"all\"} 0"), "{metrics}");
    assert!(!metrics.contains("tidegate_canary_shared{"), "nothing is shared");
    let at = app.gateway();
    beside(move || {
        let mut wire = Wire::to(&at);
        for _ in 0..50 {
            assert_eq!(wire.ask(GET).text(), "stable");
        }
    })
    .await;
    assert_eq!(std::fs::read_to_string(&file).unwrap(), before);
    std::fs::remove_dir(&stone).unwrap();
    let begun = Instant::now();
    eventually("it is tried again by itself", async || snapshot(&gateway).saved).await;
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(reason().await, None);
    // An end in order has all on disk.
    canary.set_weight(Weight::percent(12.5).unwrap());
    let folder = app.stop().await;
    let kept: Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("data/gateway/canaries.json")).unwrap()).unwrap();
    assert_eq!(kept["canaries"]["all"]["state"]["weight"], 12.5);
    assert_eq!(snapshot(&gateway).phase, Phase::Held);
}
