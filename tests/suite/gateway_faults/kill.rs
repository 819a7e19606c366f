//! Killed under load: a target, and Tidegate itself; and targets that come and go in a registry.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::{Ask, Load, at, failures, gateway, get, metric, metric_becomes, of_addresses, start};
use crate::backend::{Backend, Reply, Seen};
use crate::discovery::Etcd;
use crate::services::Service;
use crate::support::{Process, eventually};

fn busy(_: &Seen) -> Reply {
    Reply::ok("ok").after(Duration::from_millis(1))
}

/// Every third one posts.
fn mixed(client: usize, i: usize) -> Ask {
    if i % 3 == 2 { Ask::post(format!("/p/{client}/{i}"), "a body") } else { Ask::get(format!("/g/{client}/{i}")) }
}

async fn one_of_three_is_killed(checks: &str) -> usize {
    let backends = [Backend::start(busy), Backend::start(busy), Backend::start(busy)];
    let upstream = format!("balance = \"least_conn\"\nfail_timeout = \"500ms\"\n{checks}");
    let toml = gateway(&[&backends[0], &backends[1], &backends[2]], &upstream, "");
    let app = start(&toml).await;
    let address = at(&app);
    let load = Load::start(9, |_| address, |client, i| (i < 334).then(|| mixed(client, i)));
    load.reaches(800).await;
    backends[1].kill();
    load.reaches(1800).await;
    let back = super::again(backends[1].address, busy).await;
    let all = load.end().await;
    assert_eq!(all.len(), 9 * 334);
    let failed = failures(&all);
    println!("{} of {} requests failed: {failed:?}", failed.len(), all.len());
    assert!(failed.len() <= 3, "{failed:?}");
    assert!(backends[0].count() > 300 && backends[2].count() > 300);
    let seen = backends.iter().chain([&back]).flat_map(Backend::seen);
    let posts: Vec<String> = seen.filter(|seen| seen.method == "POST").map(|seen| seen.target).collect();
    assert_eq!(posts.iter().collect::<HashSet<_>>().len(), posts.len(), "a post arrived twice");
    // It is used again, whether while there was load or now.
    eventually("the target that came back is used", async || {
        get(address, "/again");
        back.count() > 10
    })
    .await;
    metric_becomes(&app, r#"tidegate_upstream_usable_targets{upstream="a"}"#, 3.0).await;
    metric_becomes(&app, r#"tidegate_upstream_in_flight{upstream="a"}"#, 0.0).await;
    app.stop().await;
    failed.len()
}

#[actix_web::test]
async fn one_of_three_targets_dies_and_comes_back() {
    one_of_three_is_killed("").await;
}

#[actix_web::test]
async fn one_of_three_targets_dies_and_comes_back_with_active_checks() {
    let health = "health = { path = \"/health\", interval = \"100ms\", timeout = \"100ms\", healthy_after = 2, unhealthy_after = 2 }";
    one_of_three_is_killed(health).await;
}

#[actix_web::test]
async fn one_of_three_nginx_is_killed_with_kill_9() {
    let servers: Vec<Service> = (0..3).map(|_| Service::start("nginx", &[])).collect();
    let addresses: Vec<String> = servers.iter().map(|server| server.address.clone()).collect();
    let addresses: Vec<String> = addresses.iter().map(|a| a.trim_start_matches("http://").to_owned()).collect();
    let app = start(&of_addresses(&addresses, "fail_timeout = \"500ms\"", "")).await;
    let address = at(&app);
    let load = Load::start(9, |_| address, |client, i| (i < 334).then(|| mixed(client, i)));
    load.reaches(600).await;
    servers[2].kill(None);
    load.reaches(1500).await;
    servers[2].restart();
    let failed = failures(&load.end().await);
    println!("{} of 3006 requests to nginx failed: {failed:?}", failed.len());
    assert!(failed.len() <= 3, "{failed:?}");
    let requests = r#"tidegate_target_requests_total{target="2",upstream="a"}"#;
    let before = metric(&app, requests).await.expect(requests);
    eventually("nginx is used again", async || {
        get(address, "/");
        metric(&app, r#"tidegate_upstream_usable_targets{upstream="a"}"#).await == Some(3.0)
            && metric(&app, requests).await > Some(before + 3.0)
    })
    .await;
    app.stop().await;
}

#[actix_web::test]
async fn targets_of_a_registry_come_and_go_under_load() {
    let etcd = Etcd::start();
    let backends = [Backend::start(busy), Backend::start(busy), Backend::start(busy)];
    let [a, b, c] = &backends;
    etcd.put("/users/a", &a.address.to_string()).await;
    let toml = format!(
        "workers = 2\n[gateway.upstreams.a.etcd]\nendpoints = [{:?}]\nprefix = \"/users/\"\n{}",
        etcd.0.address,
        super::way("all", "/", "a", "")
    );
    let app = start(&toml).await;
    let address = at(&app);
    eventually("the first target is found", async || get(address, "/").status == 200).await;
    let load = Load::start(6, |_| address, |client, i| Some(mixed(client, i)));
    load.reaches(100).await;
    etcd.put("/users/b", &b.address.to_string()).await;
    eventually("a second target is used", async || b.count() > 50).await;
    etcd.delete("/users/a").await;
    let usable = r#"tidegate_target_requests_total{target="0",upstream="a"}"#;
    eventually("the first one is not listed any more", async || metric(&app, usable).await.is_none()).await;
    metric_becomes(&app, r#"tidegate_upstream_usable_targets{upstream="a"}"#, 1.0).await;
    load.reaches(load.done() + 20).await;
    let left = a.count();
    a.kill();
    etcd.put("/users/c", &format!(r#"{{"address": "{}", "weight": 3}}"#, c.address)).await;
    eventually("a third target is used", async || c.count() > 50).await;
    // A registry that is away changes nothing.
    etcd.0.kill(None);
    let done = load.done();
    load.reaches(done + 200).await;
    load.stop();
    let all = load.end().await;
    assert_eq!(failures(&all), Vec::<String>::new());
    assert_eq!(a.count(), left, "what is not listed gets nothing");
    app.stop().await;
}

#[actix_web::test]
async fn a_stop_finishes_what_is_under_way() {
    let folder = tempfile::tempdir().unwrap();
    let backend =
        Backend::start(|seen| Reply::ok("ok").after(Duration::from_millis(100 + seen.number * 37 % 100))).forgetful();
    let server = Process::with_gateway(&folder.path().join("data"), &gateway(&[&backend], "", ""), &[]);
    let address = server.gateway.unwrap();
    let load = Load::start(8, |_| address, |client, i| Some(mixed(client, i)));
    load.reaches(40).await;
    let told = Instant::now();
    server.terminate();
    let (took, well) = tokio::task::spawn_blocking(move || server.wait(Duration::from_secs(15))).await.unwrap();
    load.stop();
    let all = load.end().await;
    assert!(well && took < Duration::from_secs(10), "it took {took:?}");
    let lost: Vec<&super::Went> = all.iter().filter(|went| went.begun < told && went.status() != 200).collect();
    assert!(lost.is_empty(), "{lost:?}");
    // Behind the signal, a connection that is kept ends only between two requests, and says so before.
    let late: Vec<&super::Went> =
        all.iter().filter(|went| went.begun >= told && went.status() == 0 && went.kept).collect();
    let served = all.iter().filter(|went| went.begun >= told && went.status() == 200).count();
    println!("it took {took:?}; begun after the signal: {served} served, {} on kept connections refused", late.len());
    assert!(
        late.iter().all(|went| went.ended - went.begun < Duration::from_millis(90)),
        "what was begun is cut: {late:?}"
    );
}
