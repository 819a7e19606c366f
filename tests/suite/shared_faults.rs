//! What goes wrong with the shared store, and that the numbers are exact again without anyone's help.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use deadpool_redis::redis::{self, Commands};
use serde_json::{Value, json};

use crate::client;
use crate::crash::{Chance, Load, check, seed};
use crate::services::{Line, Proxy, Service, fresh, redis, redis_client};
use crate::support::{Process, eventually, within};

async fn get(server: &Process, path: &str) -> Value {
    client::get(&format!("{}{path}", server.url)).await.json()
}

/// A number of `/metrics`.
async fn metric(server: &Process, name: &str) -> f64 {
    let text = client::get(&format!("{}/metrics", server.url)).await.text();
    let line =
        text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name} is not there: {text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

async fn connected(server: &Process) {
    eventually("the shared store works", async || get(server, "/health").await["shared"]["status"] == "ok").await;
}

/// The sums that the keys of the older deployment hold, whoever wrote them.
pub fn keyspace(url: &str, prefix: &str) -> (u64, u64, u64) {
    let mut redis = redis_client(url);
    let mut sum = |pattern: &str| -> u64 {
        let keys: Vec<String> = redis.keys(format!("{prefix}{pattern}")).unwrap();
        keys.iter().map(|key| redis.get::<_, u64>(key).unwrap()).sum()
    };
    let (views, pages) = (sum("pv:day:*"), sum("pv:page:*:total"));
    let days: Vec<String> = redis.keys(format!("{prefix}uv:day:*")).unwrap();
    let visitors: u64 = redis.sunion::<_, Vec<String>>(days).map_or(0, |members| members.len() as u64);
    (views, pages, visitors)
}

/// What the API says, for comparison with [`keyspace`].
pub async fn told(server: &Process) -> (u64, u64, u64) {
    let summary = get(server, "/api/v1/stats/summary?from=-2d").await["data"].clone();
    let views = summary["page_views"].as_u64().unwrap();
    (views, views, summary["unique_visitors"].as_u64().unwrap())
}

#[actix_web::test]
async fn an_outage_costs_nothing_but_freshness() {
    let service = Service::start("redis", &["--appendonly", "yes", "--appendfsync", "always"]);
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let settings = [("stats.url", service.address.as_str()), ("stats.redis.flush_interval", "100ms")];
    let server = Process::start(&data, &settings);
    connected(&server).await;
    let load = Load::start(4, seed(), true);
    load.aim(Some(server.address));
    let answered = |n: u64| load.answers.load(Ordering::SeqCst) > n;
    eventually("some load", async || answered(100)).await;
    let before = metric(&server, "tidegate_shared_offset").await;
    service.kill(None);
    let gone = load.answers.load(Ordering::SeqCst);
    eventually("it is noticed", async || get(&server, "/health").await["shared"]["status"] == "degraded").await;
    eventually("ingest goes on", async || answered(gone + 300)).await;
    let health = get(&server, "/health").await;
    assert_eq!((&health["status"], &health["journal"]["status"]), (&json!("degraded"), &json!("ok")), "{health}");
    assert!(!health.to_string().contains("127.0.0.1"), "an address is shown: {health}");
    assert_eq!(client::get(&format!("{}/health/ready", server.url)).await.status, 200);
    for path in ["summary", "timeseries", "pages", "referrers", "events", "realtime"] {
        let began = Instant::now();
        let answer = get(&server, &format!("/api/v1/stats/{path}")).await;
        assert_eq!(answer["data"]["degraded"], true, "{path}: {answer}");
        assert!(answer["data"]["as_of"]["offset"].as_f64().unwrap() > before, "{path}: {answer}");
        assert!(began.elapsed() < Duration::from_secs(1), "{path} waits for what is gone");
    }
    // Memory does not hold what the journal holds.
    let (resident, at) = (server.resident(), load.answers.load(Ordering::SeqCst));
    eventually("more of it", async || answered(at + 500)).await;
    assert!(server.resident() < resident + (48 << 20), "{} after {resident}", server.resident());
    service.restart();
    connected(&server).await;
    let sent = load.finish();
    check(&server.url, &sent).await;
    assert_eq!(get(&server, "/api/v1/stats/summary").await["data"].get("degraded"), None);
    assert_eq!(keyspace(&service.address, ""), told(&server).await);
    assert_eq!(metric(&server, "tidegate_shared_losses_total").await, 0.0);
}

#[actix_web::test]
async fn a_start_without_redis_delivers_when_it_comes() {
    let service = Service::start("redis", &[]);
    service.kill(None);
    let folder = tempfile::tempdir().unwrap();
    let server = Process::start(&folder.path().join("data"), &[("stats.url", service.address.as_str())]);
    let answer = client::post(&format!("{}/api/v1/events", server.url), &[], br#"{"type":"buy"}"#.to_vec()).await;
    assert_eq!(answer.status, 202);
    assert_eq!(get(&server, "/health").await["shared"]["behind"], 1);
    service.restart();
    eventually("it is there", async || {
        get(&server, "/api/v1/audit").await["data"]["stores"][0]["sites"][0]["store"]["counted"] == 1
    })
    .await;
}

#[actix_web::test]
async fn after_flushall_under_load_the_numbers_of_two_instances_are_exact_within_ten_seconds() {
    let service = Service::start("redis", &[]);
    let folder = tempfile::tempdir().unwrap();
    let settings = [
        ("stats.url", service.address.as_str()),
        ("stats.redis.flush_interval", "100ms"),
        // So that the journal's beginning is gone when it is needed: the embedded store has to tell it.
        ("journal.segment_bytes", "16KiB"),
        ("journal.retention", "1s"),
    ];
    let servers: Vec<Process> =
        (0..2).map(|i| Process::start(&folder.path().join(format!("i{i}")), &settings)).collect();
    let loads: Vec<Load> = servers.iter().map(|_| Load::start(2, seed(), true)).collect();
    for (server, load) in servers.iter().zip(&loads) {
        connected(server).await;
        load.aim(Some(server.address));
    }
    let all = |n: u64| loads.iter().all(|load| load.answers.load(Ordering::SeqCst) > n);
    eventually("some load", async || all(200)).await;
    let mut redis = redis_client(&service.address);
    redis::cmd("FLUSHALL").exec(&mut redis).unwrap();
    eventually("more load", async || all(400)).await;
    redis::cmd("FLUSHALL").exec(&mut redis).unwrap();
    eventually("and more", async || all(500)).await;
    let sent: Vec<_> = loads.into_iter().map(Load::finish).collect();
    let ended = Instant::now();
    let mut users = std::collections::BTreeSet::new();
    let mut views = 0;
    for sent in &sent {
        for id in &sent.answered {
            let (kind, _, user) = &sent.events[id];
            views += u64::from(kind == "page_view");
            users.insert(user.clone());
        }
    }
    let expected = (views, views, users.len() as u64);
    within(Duration::from_secs(10), "exact again", async || {
        keyspace(&service.address, "") == expected && told(&servers[0]).await == expected
    })
    .await;
    println!("exact {} ms after the last event", ended.elapsed().as_millis());
    let pages = |top: &Value| top["data"]["total"].as_u64();
    assert_eq!(pages(&get(&servers[1], "/api/v1/stats/pages?from=-2d").await), Some(views));
    for server in &servers {
        assert!(metric(server, "tidegate_shared_losses_total").await >= 1.0);
        assert!(metric(server, "tidegate_shared_rebuilds_total").await >= 1.0);
        let audit = get(server, "/api/v1/audit").await;
        assert_eq!(audit["data"]["agree"], true, "{audit}");
    }
}

#[actix_web::test]
async fn a_store_that_comes_back_older_is_brought_up_to_date() {
    // As after a lost append-only tail, or a failover to a replica that was behind.
    let service = Service::start("redis", &["--dbfilename", "old.rdb"]);
    let folder = tempfile::tempdir().unwrap();
    let settings = [("stats.url", service.address.as_str()), ("stats.redis.flush_interval", "50ms")];
    let server = Process::start(&folder.path().join("data"), &settings);
    connected(&server).await;
    let load = Load::start(2, seed(), true);
    load.aim(Some(server.address));
    eventually("some load", async || load.answers.load(Ordering::SeqCst) > 100).await;
    redis::cmd("SAVE").exec(&mut redis_client(&service.address)).unwrap();
    let saved = metric(&server, "tidegate_shared_offset").await;
    eventually("more load", async || load.answers.load(Ordering::SeqCst) > 300).await;
    eventually("delivered beyond", async || metric(&server, "tidegate_shared_offset").await > saved + 100.0).await;
    service.kill(None);
    service.restart();
    connected(&server).await;
    let sent = load.finish();
    check(&server.url, &sent).await;
    assert_eq!(keyspace(&service.address, ""), told(&server).await);
    assert!(metric(&server, "tidegate_shared_losses_total").await >= 1.0);
    assert_eq!(metric(&server, "tidegate_shared_rebuilds_total").await, 0.0, "the journal had it all");
}

#[actix_web::test]
async fn a_store_that_refuses_is_down_until_it_takes_and_its_keys_still_expire() {
    let service = Service::start("redis", &[]);
    let folder = tempfile::tempdir().unwrap();
    let settings = [("stats.url", service.address.as_str()), ("stats.redis.flush_interval", "20ms")];
    let server = Process::start(&folder.path().join("data"), &settings);
    connected(&server).await;
    let mut redis = redis_client(&service.address);
    for forbidden in [&["-evalsha", "-eval"][..], &["-hset"]] {
        redis::cmd("ACL").arg("SETUSER").arg("default").arg(forbidden).exec(&mut redis).unwrap();
        let event = br#"{"type":"page_view","url":"/a","user_id":"u1","session_id":"s1"}"#.to_vec();
        client::post(&format!("{}/api/v1/events", server.url), &[], event).await;
        eventually("it is noticed", async || get(&server, "/health").await["shared"]["status"] == "degraded").await;
        // It can be read all the time, and is not taken for well because of that.
        let until = Instant::now() + Duration::from_secs(2);
        while Instant::now() < until {
            assert_eq!(get(&server, "/health").await["shared"]["status"], "degraded");
            assert_eq!(get(&server, "/api/v1/stats/realtime").await["data"]["degraded"], true);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        redis::cmd("ACL").arg("SETUSER").arg("default").arg("+@all").exec(&mut redis).unwrap();
        connected(&server).await;
    }
    let keys: Vec<String> = redis.keys("*").unwrap();
    let windows = |key: &&String| key.contains("minute:") || key.contains("hour:") || key.contains("quarter:");
    let windows: Vec<&String> = keys.iter().filter(windows).collect();
    assert!(windows.len() > 15, "{keys:?}");
    for key in windows {
        assert!(redis.ttl::<_, i64>(key).unwrap() > 0, "{key} stays for ever");
    }
}

#[actix_web::test]
async fn a_bad_line_never_doubles() {
    let prefix = fresh("line-");
    let proxy = Proxy::to(redis());
    let url = format!("redis://{}", proxy.address);
    let folder = tempfile::tempdir().unwrap();
    let settings = [
        ("stats.url", url.as_str()),
        ("stats.redis.prefix", &prefix),
        ("stats.redis.flush_interval", "20ms"),
        ("stats.redis.timeout", "300ms"),
    ];
    let server = Process::start(&folder.path().join("data"), &settings);
    connected(&server).await;
    let seed = seed();
    println!("seed {seed}");
    let mut chance = Chance(seed | 1);
    let load = Load::start(1, seed, true);
    load.aim(Some(server.address));
    for round in 0..12 {
        let line = [Line::Slow, Line::SwallowScripts, Line::Cut, Line::Swallow][round % 4];
        let felt = if line == Line::SwallowScripts {
            "tidegate_shared_resent_total"
        } else {
            "tidegate_shared_failures_total"
        };
        let before = metric(&server, felt).await;
        tokio::time::sleep(Duration::from_millis(chance.below(100))).await;
        proxy.set(line);
        if line == Line::Slow {
            tokio::time::sleep(Duration::from_millis(200 + chance.below(400))).await;
        } else {
            eventually("the bad line is felt", async || metric(&server, felt).await > before).await;
        }
        proxy.set(Line::Good);
        // Answers that were held back do not come after all.
        proxy.cut();
        connected(&server).await;
    }
    let sent = load.finish();
    connected(&server).await;
    check(&server.url, &sent).await;
    assert_eq!(keyspace(redis(), &prefix), told(&server).await);
    let failures = metric(&server, "tidegate_shared_failures_total").await;
    let resent = metric(&server, "tidegate_shared_resent_total").await;
    let already = metric(&server, "tidegate_shared_already_total").await;
    println!("{failures} failures, {resent} scripts sent again, {already} of them had been applied");
    assert!(failures >= 6.0 && already >= 3.0, "a script whose answer was swallowed had been applied");
    assert_eq!(metric(&server, "tidegate_shared_losses_total").await, 0.0);
}

#[actix_web::test]
async fn kills_of_both_sides_lose_and_double_nothing() {
    let service = Service::start("redis", &["--appendonly", "yes", "--appendfsync", "always"]);
    let seed = seed();
    println!("seed {seed}");
    let mut chance = Chance(seed | 1);
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let settings = [
        ("stats.url", service.address.as_str()),
        ("stats.redis.flush_interval", "20ms"),
        ("journal.segment_bytes", "64KiB"),
    ];
    let load = Load::start(4, seed, false);
    for round in 0..20 {
        let server = Process::start(&data, &settings);
        load.aim(Some(server.address));
        let before = load.answers.load(Ordering::SeqCst);
        while load.answers.load(Ordering::SeqCst) < before + 5 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        tokio::time::sleep(Duration::from_millis(chance.below(250))).await;
        if round % 4 == 1 {
            service.kill(None);
            tokio::time::sleep(Duration::from_millis(chance.below(100))).await;
            // Sometimes it is back before Tidegate goes, sometimes after.
            if round % 8 == 1 {
                service.restart();
                server.kill();
            } else {
                server.kill();
                service.restart();
            }
        } else {
            server.kill();
        }
        load.aim(None);
    }
    let server = Process::start(&data, &settings);
    load.aim(Some(server.address));
    let sent = load.finish();
    connected(&server).await;
    check(&server.url, &sent).await;
    assert_eq!(keyspace(&service.address, ""), told(&server).await);
}

#[actix_web::test]
async fn a_cluster_spreads_the_load_and_fails_over() {
    let cluster = Service::start("redis-cluster", &[]);
    let nodes: Vec<&str> = cluster.address.split(',').collect();
    assert_eq!(nodes.len(), 6);
    let folder = tempfile::tempdir().unwrap();
    let settings = [
        ("stats.url", cluster.address.as_str()),
        ("stats.redis.flush_interval", "50ms"),
        ("stats.redis.timeout", "500ms"),
    ];
    let server = Process::start(&folder.path().join("data"), &settings);
    connected(&server).await;
    let load = Load::start(3, seed(), true);
    load.aim(Some(server.address));
    eventually("some load", async || load.answers.load(Ordering::SeqCst) > 100).await;
    eventually("some delivered", async || metric(&server, "tidegate_shared_offset").await > 100.0).await;
    for node in &nodes[..3] {
        let keys: u64 = redis::cmd("DBSIZE").query(&mut redis_client(node)).unwrap();
        assert!(keys > 5, "a master has {keys} keys");
    }
    cluster.kill(Some(1));
    let at = load.answers.load(Ordering::SeqCst);
    eventually("ingest goes on", async || load.answers.load(Ordering::SeqCst) > at + 100).await;
    let failed_over = async || {
        let info: String = redis::cmd("CLUSTER").arg("INFO").query(&mut redis_client(nodes[1])).unwrap();
        info.contains("cluster_state:ok")
    };
    within(Duration::from_secs(30), "a replica takes over", failed_over).await;
    let sent = load.finish();
    within(Duration::from_secs(60), "it works again", async || {
        let health = get(&server, "/health").await;
        health["shared"]["status"] == "ok" && health["shared"]["behind"] == 0
    })
    .await;
    check(&server.url, &sent).await;
    // The keyspace, from all nodes: the names are the same behind their tags.
    let mut views = 0;
    for node in nodes[1..].iter() {
        let mut redis = redis_client(node);
        let role: Vec<redis::Value> = redis::cmd("ROLE").query(&mut redis).unwrap();
        if matches!(&role[0], redis::Value::BulkString(role) if role == b"master") {
            let keys: Vec<String> = redis.keys("{tg-*}:pv:day:*").unwrap();
            views += keys.iter().map(|key| redis.get::<_, u64>(key).unwrap()).sum::<u64>();
        }
    }
    assert_eq!(views, told(&server).await.0);
}
