//! Popularity through the production wiring: beacons in, the hot list out, with crashes between, on real input, and shared
//! over Redis.

use std::collections::HashMap;
use std::io::Read;
use std::sync::atomic::Ordering;
use std::time::Duration;

use deadpool_redis::redis::cluster::ClusterClient;
use deadpool_redis::redis::{self, Commands, Connection};
use serde_json::{Value, json};
use tidegate::catalog::popularity::PopularityHandle;
use tidegate::clock::{Clock, parse_rfc3339};

use crate::client;
use crate::services::{Line, Proxy, Service, fresh, redis, redis_client};
use crate::support::{Process, TestApp, eventually, real_data};

const HOUR: i64 = 3_600_000;

async fn counted(app: &TestApp) -> &PopularityHandle {
    let core = app.app().core();
    let all = core.popularity.delivered_through(core.journal.end());
    tokio::time::timeout(Duration::from_secs(20), all).await.expect("all is counted within 20 s");
    &core.popularity
}

fn hottest(popularity: &PopularityHandle) -> Vec<(String, u64, u64)> {
    let hot = popularity.hottest(1_000);
    hot.iter().map(|hot| (hot.product_id.to_string(), hot.score.views_24h, hot.score.units_7d)).collect()
}

#[actix_web::test]
async fn a_server_that_stops_goes_on_where_it_was() {
    let at = Clock::system().now();
    let mut app = TestApp::with(&[], Clock::manual(at)).await;
    let mut before = Vec::new();
    for round in 1..=3u64 {
        let views = json!({"type": "product_view", "product_id": "a"});
        let bought = json!({"type": "purchase", "data": {"items": [{"product_id": "b", "quantity": 3}]}});
        let body = Value::Array(vec![views.clone(), views, bought]);
        assert_eq!(app.post(body.to_string()).await.status, 202);
        let popularity = counted(&app).await;
        before = hottest(popularity);
        assert_eq!(before, [("b".into(), 0, 3 * round), ("a".into(), 2 * round, 0)]);
        assert_eq!((popularity.behind(), popularity.fault()), (0, None));
        let folder = app.stop().await;
        app = TestApp::on(folder, &[], Clock::manual(at)).await;
    }
    assert_eq!(hottest(counted(&app).await), before);
    let folder = app.stop().await;
    // The scores' file is gone; the journal knows.
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(folder.path().join(format!("data/popularity.db{suffix}")));
    }
    let app = TestApp::on(folder, &[], Clock::manual(at)).await;
    assert_eq!(hottest(counted(&app).await), before);
    app.stop().await;
}

/// The click stream has no column of products. A session stays with one, so its number says which.
fn product(session: &str) -> String {
    let number: u64 = session.trim_start_matches("sess_").parse().unwrap();
    format!("{}", 1 + number * number % 97)
}

#[actix_web::test]
async fn the_hot_list_of_a_click_stream_is_that_of_a_recount() {
    let Some(path) = real_data("ecom-clickstream.csv.gz") else {
        eprintln!("skipped: the real input is missing: put ecom-clickstream.csv.gz into ../shared/data");
        return;
    };
    let mut text = String::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
    let mut rows: Vec<(i64, &str, String)> = text
        .lines()
        .skip(1)
        .map(|line| line.split(',').collect::<Vec<_>>())
        .filter(|row| ["product_view", "purchase"].contains(&row[2]))
        .map(|row| (parse_rfc3339(&format!("{}Z", row[3].replace(' ', "T"))).unwrap(), row[2], product(row[1])))
        .collect();
    rows.sort();
    assert_eq!(rows.len(), 6_851 + 470);

    let clock = Clock::manual(rows[0].0);
    let (shop, names) = super::catalog_stores::demo_shop().await;
    let settings = [("catalog.url", shop.as_str())];
    let mut app = TestApp::with(&settings, clock.clone()).await;
    let (mut compared, mut most) = (0, 0);
    for (piece, part) in rows.chunks(rows.len() / 40 + 1).enumerate() {
        let until = part.last().unwrap().0;
        clock.set(until);
        let events: Vec<Value> = part
            .iter()
            .map(|(at, kind, product)| match *kind {
                "purchase" => {
                    json!({"type": kind, "timestamp": at, "data": {"items": [{"product_id": product, "quantity": 2}]}})
                }
                _ => json!({"type": kind, "timestamp": at, "product_id": product}),
            })
            .collect();
        assert_eq!(app.post(Value::Array(events).to_string()).await.status, 202);
        if piece == 20 {
            app = TestApp::on(app.stop().await, &settings, clock.clone()).await;
        }
        let popularity = counted(&app).await;

        // By quarters of an hour and by hours, the running one among them.
        let mut recount: HashMap<String, (u64, u64)> = HashMap::new();
        for (at, kind, product) in rows.iter().filter(|row| row.0 <= until) {
            let of = recount.entry(product.clone()).or_default();
            match *kind {
                "product_view" if at / (HOUR / 4) > until / (HOUR / 4) - 96 => of.0 += 1,
                "purchase" if at / HOUR > until / HOUR - 168 => of.1 += 2,
                _ => {}
            }
        }
        let mut expected: Vec<(String, u64, u64)> =
            recount.into_iter().map(|(id, (views, units))| (id, views, units)).collect();
        expected.retain(|(_, views, units)| views + units > 0);
        expected.sort_by_key(|(id, views, units)| (u64::MAX - views - 10 * units, id.clone()));
        assert_eq!(hottest(popularity), expected, "piece {piece}");
        for (id, views, units) in &expected {
            let score = popularity.score(id);
            assert_eq!(
                (score.views_24h, score.units_7d, score.score, score.exact),
                (*views, *units, views + 10 * units, true)
            );
        }
        // And over HTTP, with the names that PostgreSQL has.
        let hot = app.data("/api/v1/products/hot?limit=100").await;
        let shown: Vec<Value> = hot
            .as_array()
            .unwrap()
            .iter()
            .map(|hot| json!([hot["product_id"], hot["score"], hot["product"]["name"]]))
            .collect();
        let sold = expected.iter().filter(|(id, ..)| names.contains_key(id));
        let told: Vec<Value> = sold.map(|(id, v, u)| json!([id, v + 10 * u, names[id]])).collect();
        assert_eq!(shown, told, "piece {piece}");
        compared += expected.len();
        most = most.max(expected.first().map_or(0, |(_, views, units)| views + 10 * units));
    }
    assert!(compared > 1_000 && most >= 40, "{compared} products compared, the hottest with {most}");
    app.stop().await;
}

#[actix_web::test]
async fn a_server_that_is_killed_again_and_again_counts_each_beacon_once() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let settings = [("popularity.snapshot_interval", "100ms"), ("popularity.max_products", "1000")];
    let mut recount: HashMap<String, u64> = HashMap::new();
    for round in 0..4u64 {
        let server = Process::start(&data, &settings);
        for i in 0..60u64 {
            let ids: Vec<String> = (0..20).map(|n| format!("p{}", (round + i * n) % 37)).collect();
            let events: Vec<Value> = ids.iter().map(|id| json!({"url": "/p", "product_id": id})).collect();
            let url = format!("{}/api/v1/events", server.url);
            assert_eq!(client::post(&url, &[], json!(events).to_string().into()).await.status, 202);
            ids.into_iter().for_each(|id| *recount.entry(id).or_default() += 1);
            if i % 20 == 19 {
                // Over some snapshots, so that the kill comes after one and before the next.
                tokio::time::sleep(Duration::from_millis(130)).await;
            }
        }
        server.kill();
        assert!(data.join("popularity.db").exists());
    }
    let app = TestApp::on(folder, &[("popularity.max_products", "1000")], Clock::system()).await;
    let popularity = counted(&app).await;
    let found: HashMap<String, u64> = hottest(popularity).into_iter().map(|(id, views, _)| (id, views)).collect();
    assert_eq!(found, recount);
    assert_eq!(popularity.numbers().rebuilds.load(Ordering::Relaxed), 0, "from its snapshot");
    app.stop().await;
}

/// Settings of instances that share; each has a folder of its own.
async fn sharing(url: &str, prefix: &str, clock: Clock) -> TestApp {
    let settings = [
        ("stats.url", url),
        ("stats.redis.prefix", prefix),
        ("stats.redis.timeout", "1s"),
        ("popularity.publish_interval", "20ms"),
        ("popularity.share_interval", "50ms"),
    ];
    TestApp::with(&settings, clock).await
}

/// Posts views of a product, and units of it sold in one purchase.
async fn visit(app: &TestApp, product: &str, views: usize, units: u64) {
    let mut events = vec![json!({"type": "product_view", "product_id": product}); views];
    if units > 0 {
        events.push(json!({"type": "purchase", "data": {"items": [{"product_id": product, "quantity": units}]}}));
    }
    assert_eq!(app.post(Value::Array(events).to_string()).await.status, 202);
}

fn numbers(app: &TestApp, product: &str) -> (u64, u64) {
    let score = app.app().core().popularity.score(product);
    assert!(score.exact && score.score == score.views_24h + 10 * score.units_7d);
    (score.views_24h, score.units_7d)
}

/// What the older deployment would read: no key is nil, and counts as 0.
fn plain(redis: &mut Connection, prefix: &str, product: &str) -> (u64, u64) {
    let mut get = |name: &str| redis.get::<_, Option<u64>>(format!("{prefix}{name}{product}")).unwrap();
    (get("product:views:24h:").unwrap_or(0), get("product:sales:7d:").unwrap_or(0))
}

/// Waits until all apps and the plain keys say the same of the products, and the hot lists have their order.
async fn agree(apps: &[&TestApp], redis: &mut Connection, prefix: &str, expected: &[(&str, u64, u64)]) {
    let list: Vec<(String, u64, u64)> =
        expected.iter().map(|(id, views, units)| (String::from(*id), *views, *units)).collect();
    let begun = std::time::Instant::now();
    loop {
        let told: Vec<_> = apps.iter().map(|app| hottest(&app.app().core().popularity)).collect();
        let read: Vec<_> = expected.iter().map(|(id, ..)| plain(redis, prefix, id)).collect();
        if told.iter().all(|told| *told == list) && read.iter().zip(expected).all(|(read, (_, v, u))| *read == (*v, *u))
        {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "expected {expected:?}\ntold {told:?}\nread {read:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for (app, (id, views, units)) in apps.iter().flat_map(|app| expected.iter().map(move |one| (app, one))) {
        assert_eq!(numbers(app, id), (*views, *units), "{id}");
    }
}

/// Near the real time, in the middle of a quarter of an hour.
fn quarter() -> i64 {
    Clock::system().now() / (HOUR / 4) * (HOUR / 4) + HOUR / 8
}

#[actix_web::test]
async fn three_instances_add_up_and_a_dead_one_keeps_its_part_until_that_is_old() {
    let (prefix, clock) = (fresh("pop-"), Clock::manual(quarter()));
    let mut conn = redis_client(redis());
    let apps = [
        sharing(redis(), &prefix, clock.clone()).await,
        sharing(redis(), &prefix, clock.clone()).await,
        sharing(redis(), &prefix, clock.clone()).await,
    ];
    for round in 1..=4u64 {
        for (i, app) in (1..).zip(&apps) {
            visit(app, "a", i, 0).await;
            visit(app, "b", 1, i as u64).await;
            visit(app, &format!("own-{i}"), 1, 0).await;
        }
        let all: Vec<&TestApp> = apps.iter().collect();
        let expected = [
            ("b", 3 * round, 6 * round),
            ("a", 6 * round, 0),
            ("own-1", round, 0),
            ("own-2", round, 0),
            ("own-3", round, 0),
        ];
        agree(&all, &mut conn, &prefix, &expected).await;
        assert!(apps.iter().all(|app| !app.app().core().popularity.degraded()));
    }
    let ttl: i64 = conn.ttl(format!("{prefix}product:views:24h:a")).unwrap();
    assert!((23 * 3600..=24 * 3600).contains(&ttl), "{ttl}");
    let ttl: i64 = conn.ttl(format!("{prefix}product:sales:7d:b")).unwrap();
    assert!((167 * 3600..=168 * 3600).contains(&ttl), "{ttl}");

    // The first goes for ever. What it counted stays, and goes with its time.
    let [dead, second, third] = apps;
    drop(dead.stop().await);
    clock.advance(Duration::from_secs(12 * 3600));
    visit(&second, "a", 5, 0).await;
    let expected = [("b", 12, 24), ("a", 29, 0), ("own-1", 4, 0), ("own-2", 4, 0), ("own-3", 4, 0)];
    agree(&[&second, &third], &mut conn, &prefix, &expected).await;
    // Nothing comes any more, and the sums slide all the same: 24 hours after the first views, then 7 days.
    clock.advance(Duration::from_secs(12 * 3600));
    agree(&[&second, &third], &mut conn, &prefix, &[("b", 0, 24), ("a", 5, 0)]).await;
    assert_eq!(plain(&mut conn, &prefix, "own-1"), (0, 0));
    // Somebody who comes new reads what the dead one left.
    let fourth = sharing(redis(), &prefix, clock.clone()).await;
    agree(&[&second, &third, &fourth], &mut conn, &prefix, &[("b", 0, 24), ("a", 5, 0)]).await;
    clock.advance(Duration::from_secs(6 * 86_400));
    agree(&[&second, &third, &fourth], &mut conn, &prefix, &[]).await;
    for name in ["product:*", "tg:popularity:of:*", "tg:popularity:due", "tg:popularity:changed"] {
        eventually(name, async || conn.keys::<_, Vec<String>>(format!("{prefix}{name}")).unwrap().is_empty()).await;
    }
    for app in [second, third, fourth] {
        app.stop().await;
    }
}

#[actix_web::test]
async fn a_restarted_instance_counts_its_part_once() {
    let (prefix, clock) = (fresh("pop-"), Clock::manual(quarter()));
    let mut conn = redis_client(redis());
    let other = sharing(redis(), &prefix, clock.clone()).await;
    let mut app = sharing(redis(), &prefix, clock.clone()).await;
    visit(&other, "a", 2, 1).await;
    let settings =
        [("stats.url", redis()), ("stats.redis.prefix", prefix.as_str()), ("popularity.share_interval", "50ms")];
    for round in 1..=3u64 {
        visit(&app, "a", 3, 0).await;
        let expected = [("a", 2 + 3 * round, 1), ("b", round - 1, 0)];
        agree(&[&app, &other], &mut conn, &prefix, &expected[..1 + usize::from(round > 1)]).await;
        visit(&app, "b", 1, 0).await;
        let folder = app.stop().await;
        if round == 2 {
            // Even when it has to read its whole journal again.
            for suffix in ["", "-wal", "-shm"] {
                let _ = std::fs::remove_file(folder.path().join(format!("data/popularity.db{suffix}")));
            }
        }
        // What it had not told is told at its stop.
        assert_eq!(plain(&mut conn, &prefix, "b"), (round, 0));
        app = TestApp::on(folder, &settings, clock.clone()).await;
        agree(&[&app, &other], &mut conn, &prefix, &[("a", 2 + 3 * round, 1), ("b", round, 0)]).await;
    }
    app.stop().await;
    other.stop().await;
}

#[actix_web::test]
async fn a_store_that_was_flushed_is_filled_again() {
    let service = Service::start("redis", &[]);
    let clock = Clock::manual(quarter());
    let mut redis = redis_client(&service.address);
    let apps = [
        sharing(&service.address, "", clock.clone()).await,
        sharing(&service.address, "", clock.clone()).await,
        sharing(&service.address, "", clock.clone()).await,
    ];
    for (i, app) in (1..).zip(&apps) {
        visit(app, "a", i, 0).await;
        visit(app, "b", 1, 2).await;
    }
    agree(&apps.each_ref(), &mut redis, "", &[("b", 3, 6), ("a", 6, 0)]).await;
    redis::cmd("FLUSHALL").exec(&mut redis).unwrap();
    agree(&apps.each_ref(), &mut redis, "", &[("b", 3, 6), ("a", 6, 0)]).await;
    let losses = |app: &TestApp| app.app().core().popularity.shared().unwrap().numbers.losses.load(Ordering::Relaxed);
    assert!(apps.iter().all(|app| losses(app) == 1));
    // What an instance had told that is no more, nobody can tell again.
    let [gone, second, third] = apps;
    drop(gone.stop().await);
    redis::cmd("FLUSHALL").exec(&mut redis).unwrap();
    agree(&[&second, &third], &mut redis, "", &[("b", 2, 4), ("a", 5, 0)]).await;
    visit(&third, "a", 1, 0).await;
    agree(&[&second, &third], &mut redis, "", &[("b", 2, 4), ("a", 6, 0)]).await;
    second.stop().await;
    third.stop().await;
}

#[actix_web::test]
async fn without_redis_own_numbers_go_on_and_are_shared_when_it_is_back() {
    let service = Service::start("redis", &["--appendonly", "yes", "--appendfsync", "always"]);
    let proxy = Proxy::to(&service.address);
    let clock = Clock::manual(quarter());
    let mut redis = redis_client(&service.address);
    let there = sharing(&service.address, "", clock.clone()).await;
    let cut = sharing(&format!("redis://{}", proxy.address), "", clock.clone()).await;
    visit(&there, "a", 3, 0).await;
    visit(&cut, "a", 4, 1).await;
    agree(&[&there, &cut], &mut redis, "", &[("a", 7, 1)]).await;
    for line in [Line::Cut, Line::Swallow, Line::SwallowScripts] {
        let (before, _) = numbers(&there, "a");
        proxy.set(line);
        visit(&cut, "a", 2, 0).await;
        eventually("its own go on", async || numbers(&cut, "a").0 == before + 2).await;
        eventually("it says so", async || cut.app().core().popularity.degraded()).await;
        let fault = cut.app().core().popularity.shared().unwrap().fault().unwrap();
        assert!(fault.starts_with("Redis ") && !fault.contains("127.0.0.1"), "{fault}");
        visit(&there, "a", 1, 0).await;
        eventually("the other's too", async || numbers(&there, "a").0 > before).await;
        proxy.set(Line::Good);
        proxy.cut();
        agree(&[&there, &cut], &mut redis, "", &[("a", before + 3, 1)]).await;
        eventually("it says so", async || !cut.app().core().popularity.degraded()).await;
    }
    let losses = |app: &TestApp| app.app().core().popularity.shared().unwrap().numbers.losses.load(Ordering::Relaxed);
    assert_eq!((losses(&there), losses(&cut)), (0, 0), "what was not heard of was not lost");

    // Redis itself is gone, and time passes: what the others had slides here too.
    service.kill(None);
    clock.advance(Duration::from_secs(25 * 3600));
    visit(&cut, "b", 1, 0).await;
    eventually("it slides", async || hottest(&cut.app().core().popularity) == [("a".into(), 0, 1), ("b".into(), 1, 0)])
        .await;
    service.restart();
    let mut redis = redis_client(&service.address);
    agree(&[&there, &cut], &mut redis, "", &[("a", 0, 1), ("b", 1, 0)]).await;
    there.stop().await;
    cut.stop().await;
}

#[actix_web::test]
async fn in_a_cluster_they_add_up_too() {
    let cluster = Service::start("redis-cluster", &[]);
    let nodes: Vec<&str> = cluster.address.split(',').collect();
    let client = ClusterClient::new(nodes.clone()).unwrap();
    let mut redis = client.get_connection().unwrap();
    let clock = Clock::manual(quarter());
    let apps = [sharing(&cluster.address, "", clock.clone()).await, sharing(&cluster.address, "", clock.clone()).await];
    let ids: Vec<String> = (0..40).map(|i| format!("p{i}")).collect();
    let mut expected: HashMap<&str, (u64, u64)> = HashMap::new();
    for round in 0..5 {
        for (at, id) in ids.iter().enumerate() {
            let (views, units) = ((at + round) % 3 + 1, (at % 4) as u64);
            visit(&apps[(at + round) % 2], id, views, units).await;
            let of = expected.entry(id).or_default();
            *of = (of.0 + views as u64, of.1 + units);
        }
    }
    let mut settle = async |expected: &HashMap<&str, (u64, u64)>| {
        let mut last = String::new();
        eventually("all agree", async || {
            let wrong = expected.iter().find(|(id, of)| {
                let mut get = |name: &str| redis.get::<_, Option<u64>>(format!("{name}{id}")).unwrap().unwrap_or(0);
                let read = (get("product:views:24h:"), get("product:sales:7d:"));
                let told: Vec<_> = apps.iter().map(|app| numbers(app, id)).collect();
                last = format!("{id}: {of:?}, told {told:?}, read {read:?}");
                read != **of || told.iter().any(|told| told != *of)
            });
            wrong.is_none()
        })
        .await;
        last
    };
    settle(&expected).await;
    clock.advance(Duration::from_secs(24 * 3600));
    expected.values_mut().for_each(|of| of.0 = 0);
    settle(&expected).await;
    visit(&apps[1], "p7", 3, 0).await;
    expected.insert("p7", (3, expected["p7"].1));
    settle(&expected).await;
    // All masters.
    for node in &nodes {
        let mut one = redis_client(node);
        let role: Vec<redis::Value> = redis::cmd("ROLE").query(&mut one).unwrap();
        if matches!(&role[0], redis::Value::BulkString(role) if role == b"master") {
            redis::cmd("FLUSHALL").exec(&mut one).unwrap();
        }
    }
    settle(&expected).await;
    for app in apps {
        app.stop().await;
    }
}

/// Commands that Redis has run, by name, those within scripts too.
fn calls(redis: &mut Connection) -> HashMap<String, u64> {
    let info: String = redis::cmd("INFO").arg("commandstats").query(redis).unwrap();
    let line = |line: &str| {
        let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        Some((name.to_owned(), rest.split(',').next()?.parse().ok()?))
    };
    info.lines().filter_map(line).collect()
}

#[actix_web::test]
async fn many_views_of_many_products_are_few_commands() {
    let service = Service::start("redis", &[]);
    let mut redis = redis_client(&service.address);
    // The statistics have commands of their own: only what they never use is looked at, and scripts of the one that shares.
    let settings = [
        ("stats.url", service.address.as_str()),
        ("stats.redis.flush_interval", "1s"),
        ("popularity.share_interval", "500ms"),
    ];
    let clock = Clock::manual(quarter());
    let apps = [TestApp::with(&settings, clock.clone()).await, TestApp::with(&settings, clock.clone()).await];
    let shared = |app: &TestApp| {
        let numbers = &app.app().core().popularity.shared().unwrap().numbers;
        [&numbers.scripts, &numbers.published, &numbers.read].map(|n| n.load(Ordering::Relaxed))
    };
    eventually("connected", async || apps.iter().all(|app| !app.app().core().popularity.degraded())).await;
    redis::cmd("CONFIG").arg("RESETSTAT").exec(&mut redis).unwrap();
    let (before, begun) = (shared(&apps[0]), std::time::Instant::now());
    const PRODUCTS: u64 = 2_500;
    for round in 0..4 {
        let events: Vec<Value> = (0..PRODUCTS)
            .flat_map(|i| {
                vec![json!({"type": "product_view", "product_id": format!("p{i}")}); 1 + (i + round) as usize % 3]
            })
            .collect();
        for some in events.chunks(1_000) {
            assert_eq!(apps[0].post(json!(some).to_string()).await.status, 202);
        }
    }
    let views: u64 = (0..4).flat_map(|round| (0..PRODUCTS).map(move |i| 1 + (i + round) % 3)).sum();
    eventually("all is there", async || {
        let mut all = 0;
        for i in 0..PRODUCTS {
            all += numbers(&apps[1], &format!("p{i}")).0;
        }
        all == views
    })
    .await;
    let [scripts, published, _] = shared(&apps[0]);
    let (scripts, published) = (scripts - before[0], published - before[1]);
    let rounds = (begun.elapsed().as_millis() / 500 + 2) as u64;
    assert!(published >= PRODUCTS && published <= PRODUCTS * rounds, "{published} in {rounds} rounds");
    assert!(scripts <= rounds + published / 1_000 + rounds, "{scripts} scripts for {published}");
    let calls = calls(&mut redis);
    let of = |name: &str| calls.get(name).copied().unwrap_or(0);
    let read = shared(&apps[1])[2];
    assert_eq!(of("hgetall"), published + read, "one a product, where it is brought and where it is read");
    assert!(read <= published, "{read} of {published}");
    assert!(of("zadd") <= 40 * scripts, "sorted sets are written in lists");
    let info: String = redis::cmd("INFO").arg("commandstats").query(&mut redis).unwrap();
    let script = info.lines().find(|line| line.starts_with("cmdstat_evalsha:")).unwrap_or_default();
    println!("{script}");
    println!("{views} views of {PRODUCTS} products: {published} brought in {scripts} scripts, {read} read; {calls:?}");
    for app in apps {
        app.stop().await;
    }
}
