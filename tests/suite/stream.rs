//! The stream: what was accepted is in Kafka, each event once, as clients see it that are not ours.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tidegate::clock::Clock;

use crate::client;
use crate::crash::{Chance, Load, check, seed};
use crate::kafka::{Broker, prefix, skipped};
use crate::services::{Line, Proxy, Service};
use crate::shared_faults::{keyspace, told};
use crate::support::{Process, TestApp};

fn settings<'a>(brokers: &'a str, prefix: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![
        ("stream.brokers", brokers),
        ("stream.topic_prefix", prefix),
        ("stream.partitions", "3"),
        ("stream.flush_interval", "20ms"),
        ("stream.aggregate_interval", "100ms"),
    ]
}

pub fn brokers(address: &str) -> String {
    format!("[\"{address}\"]")
}

pub async fn delivered(app: &TestApp) {
    let core = app.app().core();
    let end = core.journal.end();
    let stream = core.stream.as_ref().unwrap();
    let both = async {
        stream.delivered_through(end).await;
        stream.aggregated_through(end).await;
    };
    let waited = tokio::time::timeout(std::time::Duration::from_secs(60), both).await;
    let faults = (stream.events().fault(), stream.aggregates().fault());
    assert!(waited.is_ok(), "not delivered within 60 s: {faults:?}");
}

/// What Kafka holds, on a thread: a foreign client takes seconds.
pub async fn read(broker: &'static Broker, client: &'static str, topic: String) -> Vec<Value> {
    actix_web::rt::task::spawn_blocking(move || broker.read(client, &topic, "read_committed")).await.unwrap()
}

#[actix_web::test]
async fn events_arrive_once_as_cloud_events() {
    let (broker, prefix) = (Broker::shared(), prefix());
    let app = TestApp::with(&settings(&brokers(broker.address()), &prefix), Clock::system()).await;
    let mut ids = BTreeSet::new();
    for n in 0..60 {
        let id = format!("order-{n}");
        let event =
            json!({"type": "buy", "id": id, "site": "shop", "user_id": format!("u{}", n % 7), "data": {"n": n}});
        assert_eq!(app.post(event.to_string()).await.status, 202);
        // A retry is no other event.
        assert_eq!(app.post(event.to_string()).await.status, 202);
        ids.insert(id);
    }
    assert_eq!(app.post(r#"{"url":"https://shop.example/a?utm_source=x","user_id":"u1"}"#).await.status, 202);
    delivered(&app).await;
    let journal = app.app().core().journal.name().to_owned();
    let events = read(broker, "confluent-kafka", format!("{prefix}.events.v1")).await;
    assert_eq!(events.len(), 61);
    let mut places: BTreeMap<String, u64> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for event in &events {
        let (headers, value) = (&event["headers"], event["value"].as_str().unwrap());
        let value: Value = serde_json::from_str(value).unwrap();
        assert_eq!(headers["ce_specversion"], "1.0");
        assert_eq!(headers["content-type"], "application/json");
        assert_eq!(headers["ce_id"], value["id"]);
        assert_eq!(headers["ce_type"], value["type"]);
        assert_eq!(headers["ce_time"], value["timestamp"]);
        assert_eq!(headers["ce_dataschema"], "/schemas/events.v1.json");
        assert_eq!(headers["tidegate-journal"], json!(journal));
        assert_eq!(headers["tidegate-offset"], json!(value["offset"].to_string()));
        let (site, visitor) = (value["site"].as_str().unwrap(), value["visitor"].as_str().unwrap());
        assert_eq!(headers["ce_source"], json!(format!("/tidegate/{journal}/{site}")));
        let key = format!("{site}:{visitor}");
        assert_eq!(event["key"], json!(key));
        assert_eq!(tidegate::clock::parse_rfc3339(value["timestamp"].as_str().unwrap()), event["timestamp"].as_i64());
        let place = event["partition"].as_u64().unwrap();
        assert_eq!(*places.entry(key).or_insert(place), place, "one visitor, one partition");
        seen.insert(value["id"].as_str().unwrap().to_owned());
    }
    assert!(seen.is_superset(&ids) && seen.contains(&format!("{journal}-120")), "{seen:?}");
    // Java's rule, by another implementation of it.
    for (key, place) in &places {
        assert_eq!(u64::from(murmur2(key.as_bytes()) & 0x7fff_ffff) % 3, *place, "{key}");
    }
    assert!(places.values().collect::<BTreeSet<_>>().len() > 1);
    // And another client sees the same.
    let again = read(broker, "kafka-python", format!("{prefix}.events.v1")).await;
    let offsets = |events: &[Value]| -> BTreeSet<String> {
        events.iter().map(|e| format!("{}/{} {}", e["partition"], e["offset"], e["value"])).collect()
    };
    assert_eq!(offsets(&events), offsets(&again));
    let cursor = app.app().core().stream.as_ref().unwrap().books();
    assert_eq!(cursor.sites["shop"].counted, 60);
    assert_eq!(cursor.sites["shop"].duplicates, 60);
    // A restart goes on where it was.
    let folder = app.stop().await;
    let app = TestApp::on(folder, &settings(&brokers(broker.address()), &prefix), Clock::system()).await;
    app.post(r#"{"type":"click","id":"last"}"#).await;
    delivered(&app).await;
    assert_eq!(read(broker, "confluent-kafka", format!("{prefix}.events.v1")).await.len(), 62);
    app.stop().await;
}

/// `org.apache.kafka.common.utils.Utils.murmur2`.
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut h = 0x9747_b28c_u32 ^ data.len() as u32;
    let words = data.chunks_exact(4);
    let rest = words.remainder();
    for word in words {
        let mut k = u32::from_le_bytes(word.try_into().unwrap()).wrapping_mul(M);
        k ^= k >> 24;
        h = h.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    for (at, byte) in rest.iter().enumerate() {
        h ^= u32::from(*byte) << (8 * at);
    }
    if !rest.is_empty() {
        h = h.wrapping_mul(M);
    }
    h ^= h >> 13;
    h = h.wrapping_mul(M);
    h ^ (h >> 15)
}

#[test]
fn murmur2_is_javas() {
    // From Kafka's own UtilsTest.
    for (text, hash) in [
        ("21", -973_932_308_i32),
        ("foobar", -790_332_482),
        ("a-little-bit-long-string", -985_981_536),
        ("a-little-bit-longer-string", -1_486_304_829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
        ("abc", 479_470_107),
    ] {
        assert_eq!(murmur2(text.as_bytes()) as i32, hash, "{text}");
    }
}

/// Tidegate, Redis and the broker are killed again and again; then what was sent is compared with Redis, with Kafka as a
/// client reads it that is not ours, with the API, and with the audit.
#[actix_web::test]
async fn kills_of_all_sides_lose_and_double_nothing() {
    if skipped("kills_of_all_sides_lose_and_double_nothing", "keeps all in memory, and forgets it when it is killed") {
        return;
    }
    let broker = Arc::new(Broker::start(&[]));
    let redis = Arc::new(Service::start("redis", &["--appendonly", "yes", "--appendfsync", "always"]));
    let shared = redis.address.clone();
    let (address, prefix, seed) = (broker.address().to_owned(), prefix(), seed());
    println!("seed {seed}");
    let address = brokers(&address);
    let mut settings = settings(&address, &prefix);
    settings.push(("journal.segment_bytes", "64KiB"));
    settings.push(("journal.max_bytes", "1GiB"));
    settings.push(("stats.url", &shared));
    settings.push(("stats.redis.flush_interval", "50ms"));
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut chance = Chance(seed | 1);
    let load = Load::start(3, seed, false);
    // They die on a schedule of their own.
    let stop = Arc::new(AtomicBool::new(false));
    let kills = {
        let (broker, redis, stop) = (broker.clone(), redis.clone(), stop.clone());
        std::thread::spawn(move || {
            let mut chance = Chance(seed.rotate_left(7) | 1);
            let mut kills = 0;
            while !stop.load(Ordering::SeqCst) || kills < 5 {
                std::thread::sleep(Duration::from_millis(1000 + chance.below(1500)));
                redis.kill(None);
                std::thread::sleep(Duration::from_millis(chance.below(200)));
                redis.restart();
                broker.kill();
                broker.restart();
                kills += 1;
            }
            kills
        })
    };
    for kill in 0..21 {
        let server = Process::start(&data, &settings);
        load.aim(Some(server.address));
        let life = if kill % 4 == 3 { chance.below(100) } else { 200 + chance.below(900) };
        tokio::time::sleep(Duration::from_millis(life)).await;
        server.kill();
        load.aim(None);
    }
    stop.store(true, Ordering::SeqCst);
    let server = Process::start(&data, &settings);
    load.aim(Some(server.address));
    let sent = load.finish();
    let kills = actix_web::rt::task::spawn_blocking(move || kills.join().unwrap()).await.unwrap();
    assert!(kills >= 5, "{kills}");
    let settled = async || {
        let health = client::get(&format!("{}/health", server.url)).await.json();
        health["shared"]["behind"] == 0
            && health["stream"]["behind"] == 0
            && health["stream"]["aggregates_through"] == health["journal"]["next_offset"]
    };
    let begun = std::time::Instant::now();
    while !settled().await {
        let health = client::get(&format!("{}/health", server.url)).await.text();
        let log = std::fs::read_to_string(data.with_extension("log")).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(90), "not delivered within 90 s: {health}\n{log}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let export = client::get(&format!("{}/api/v1/export", server.url)).await.text();
    let mut accepted = BTreeSet::new();
    for line in export.lines() {
        accepted.insert(serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().to_owned());
    }
    assert!(accepted.is_superset(&sent.answered) && sent.answered.len() > 500, "{}", sent.answered.len());
    let (topic, aggregates) = (format!("{prefix}.events.v1"), format!("{prefix}.aggregates.v1.latest"));
    let (events, held) = actix_web::rt::task::spawn_blocking(move || {
        let read = |topic: &str| broker.read("confluent-kafka", topic, "read_committed");
        (read(&topic), hold(read(&aggregates)))
    })
    .await
    .unwrap();
    let summary = client::get(&format!("{}/api/v1/stats/summary?from=-2d", server.url)).await.json();
    for size in ["minute", "hour", "day"] {
        assert_eq!(sum(&held, "default", size, "page_views", None), summary["data"]["page_views"], "{size}");
        assert_eq!(sum(&held, "default", size, "events", Some("type")), summary["data"]["events"]);
    }
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    for event in events {
        *seen.entry(event["headers"]["ce_id"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    let double: Vec<_> = seen.iter().filter(|(_, count)| **count > 1).take(5).collect();
    assert!(double.is_empty(), "in Kafka twice: {double:?}");
    assert_eq!(seen.len(), accepted.len());
    assert!(seen.keys().all(|id| accepted.contains(id)));
    let audit = client::get(&format!("{}/api/v1/audit", server.url)).await.json();
    assert_eq!(audit["data"]["agree"], true, "{audit}");
    for (at, store) in ["redis", "kafka"].into_iter().enumerate() {
        assert_eq!(audit["data"]["stores"][at]["store"], store);
        assert_eq!(audit["data"]["stores"][at]["sites"][0]["store"]["counted"], json!(seen.len()), "{store}");
    }
    assert_eq!(keyspace(&redis.address, ""), told(&server).await);
    check(&server.url, &sent).await;
    println!("{} events, {kills} kills each of Redis and the broker", seen.len());
}

async fn within(seconds: u64, what: &str, mut done: impl AsyncFnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !done().await {
        assert!(begun.elapsed() < Duration::from_secs(seconds), "not within {seconds} s: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What a consumer holds that reads the compacted topic from its start: the last value of each key.
async fn latest(broker: &'static Broker, prefix: &str) -> BTreeMap<String, Value> {
    hold(read(broker, "confluent-kafka", format!("{prefix}.aggregates.v1.latest")).await)
}

fn hold(records: Vec<Value>) -> BTreeMap<String, Value> {
    let mut held = BTreeMap::new();
    for record in records {
        let key = record["key"].as_str().unwrap().to_owned();
        match record["value"].as_str() {
            Some(value) => {
                let value: Value = serde_json::from_str(value).unwrap();
                let before: Option<Value> = held.insert(key, value.clone());
                if let Some(before) = before {
                    assert!(before["revision"].as_u64() <= value["revision"].as_u64(), "{before} then {value}");
                }
            }
            None => drop(held.remove(&key)),
        }
    }
    held
}

/// The sum of a metric over windows of a size.
fn sum(held: &BTreeMap<String, Value>, site: &str, size: &str, metric: &str, dimension: Option<&str>) -> Value {
    let of = held.values().filter(|value| {
        value["site"] == site
            && value["window_size"] == size
            && value["metric"] == metric
            && value["dimension"]["name"].as_str() == dimension
    });
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    for value in of {
        let name = value["dimension"]["value"].as_str().unwrap_or("");
        *sums.entry(name.to_owned()).or_default() += value["value"].as_u64().unwrap();
    }
    if dimension.is_none() { json!(sums.get("").copied().unwrap_or(0)) } else { json!(sums) }
}

#[actix_web::test]
async fn who_reads_the_latest_aggregates_holds_what_the_api_says() {
    let (broker, prefix) = (Broker::shared(), prefix());
    // Half past twelve, so that hours and days are not torn by the events' times; long ago, because a broker refuses what
    // lies in its future.
    let today = Clock::system().now();
    let day = today - today.rem_euclid(86_400_000) - 100 * 86_400_000;
    let noon = day + 45_000_000;
    let clock = Clock::manual(noon + 30_000);
    let brokers = brokers(broker.address());
    let app = TestApp::with(&settings(&brokers, &prefix), clock.clone()).await;
    let agent = [("user-agent", "Googlebot/2.1 (+http://www.google.com/bot.html)")];
    let post = async |minute: i64, user: u32, event: Value| {
        let mut event = event;
        event["timestamp"] = json!(noon - minute * 60_000);
        event["sent_at"] = json!(noon);
        event["user_id"] = json!(format!("u{user}"));
        event["session_id"] = json!(format!("s{user}-{minute}"));
        assert_eq!(app.post(event.to_string()).await.status, 202);
    };
    for n in 0..40_u32 {
        let page = format!("https://shop.example/p/{}", n % 5);
        post(i64::from(n % 20), n % 9, json!({"url": page, "referrer": "https://news.example/x"})).await;
        post(i64::from(n % 3), n % 4, json!({"type": "buy"})).await;
        if n % 8 == 0 {
            client::post(&format!("{}/api/v1/events", app.url), &agent, br#"{"url":"/bot"}"#.to_vec()).await;
            delivered(&app).await;
        }
    }
    delivered(&app).await;
    let held = latest(broker, &prefix).await;
    let summary = app.data("/api/v1/stats/summary?from=-1d").await;
    for size in ["minute", "hour", "day"] {
        assert_eq!(sum(&held, "default", size, "page_views", None), summary["page_views"], "{size}");
        assert_eq!(sum(&held, "default", size, "bots", None), summary["bots"]);
        assert_eq!(sum(&held, "default", size, "bots", Some("reason")), summary["bot_reasons"]);
        assert_eq!(sum(&held, "default", size, "events", Some("type")), summary["events"]);
        let pages = sum(&held, "default", size, "page_views", Some("page"));
        for item in app.data("/api/v1/stats/pages?from=-1d").await["items"].as_array().unwrap() {
            assert_eq!(pages[item["url"].as_str().unwrap()], item["views"], "{size} {item}");
        }
        let referrers = sum(&held, "default", size, "page_views", Some("referrer"));
        assert_eq!(referrers["news.example"], 40, "{referrers}");
    }
    // The day's visitors and sessions are those of the range, as it lies in one day.
    assert_eq!(sum(&held, "default", "day", "unique_visitors", None), summary["unique_visitors"]);
    assert_eq!(sum(&held, "default", "day", "sessions", None), summary["sessions"]);
    assert!(held.values().all(|value| value["exact"] == true));
    let find = |held: &BTreeMap<String, Value>, size: &str, start: i64| {
        let start = tidegate::clock::rfc3339(start);
        let found = held.values().find(|v| {
            v["window_size"] == size
                && v["window_start"] == json!(start)
                && v["metric"] == "page_views"
                && v["dimension"].is_null()
        });
        found.cloned().unwrap_or(Value::Null)
    };
    // Windows become final when nothing comes any more.
    let before = find(&held, "minute", noon - 60_000);
    assert_eq!(before["final"], false);
    clock.advance(Duration::from_secs(600));
    let now_final = async || find(&latest(broker, &prefix).await, "minute", noon)["final"] == true;
    within(30, "the minutes are final", now_final).await;
    let held = latest(broker, &prefix).await;
    let settled = find(&held, "minute", noon - 60_000);
    assert_eq!((&settled["final"], &settled["value"]), (&json!(true), &before["value"]));
    assert!(settled["revision"].as_u64() > before["revision"].as_u64());
    assert_eq!(find(&held, "day", day)["final"], false);
    // A late event raises the revision of what was final.
    let sent = noon + 600_000;
    let late =
        json!({"url": "https://shop.example/p/1", "timestamp": noon - 60_000, "sent_at": sent, "user_id": "late"});
    assert_eq!(app.post(late.to_string()).await.status, 202);
    delivered(&app).await;
    let held = latest(broker, &prefix).await;
    let corrected = find(&held, "minute", noon - 60_000);
    assert_eq!((&corrected["final"], &corrected["late"]), (&json!(true), &json!(1)));
    assert_eq!(corrected["value"].as_u64(), settled["value"].as_u64().map(|value| value + 1));
    assert!(corrected["revision"].as_u64() > settled["revision"].as_u64());
    assert_eq!(find(&held, "day", day)["late"], 0);
    // A restart forgets nothing of it.
    let folder = app.stop().await;
    let app = TestApp::on(folder, &settings(&brokers, &prefix), clock.clone()).await;
    assert_eq!(app.post(late.to_string()).await.status, 202);
    delivered(&app).await;
    assert_eq!(find(&latest(broker, &prefix).await, "minute", noon - 60_000)["late"], 2);
    // Shortly before the store drops the minutes, tombstones go out; hours and days stay.
    clock.set(noon + 2 * 86_400_000 + 600_000);
    let gone = async || latest(broker, &prefix).await.values().all(|value| value["window_size"] != "minute");
    within(30, "the minutes are deleted", gone).await;
    let held = latest(broker, &prefix).await;
    assert_eq!(sum(&held, "default", "day", "page_views", None), json!(42));
    assert_eq!(sum(&held, "default", "hour", "page_views", None), json!(42));
    // What is dropped while no server runs is deleted by the next that does.
    let folder = app.stop().await;
    clock.set(noon + 92 * 86_400_000);
    let app = TestApp::on(folder, &settings(&brokers, &prefix), clock.clone()).await;
    app.post(r#"{"url":"/now"}"#).await;
    delivered(&app).await;
    let held = latest(broker, &prefix).await;
    assert_eq!(sum(&held, "default", "hour", "page_views", None), json!(1));
    assert_eq!(sum(&held, "default", "day", "page_views", None), json!(43));
    app.stop().await;
}

/// The ids in the topic of events, which must all be different.
pub fn ids(events: &[Value]) -> BTreeSet<String> {
    let ids: Vec<String> = events.iter().map(|e| e["headers"]["ce_id"].as_str().unwrap().to_owned()).collect();
    let set: BTreeSet<String> = ids.iter().cloned().collect();
    assert_eq!(set.len(), ids.len(), "an event is in Kafka twice");
    set
}

pub async fn post_events(app: &TestApp, from: u32, to: u32) {
    for n in from..to {
        let event = json!({"type": "click", "id": format!("e{n}"), "user_id": format!("u{}", n % 11)});
        assert_eq!(app.post(event.to_string()).await.status, 202);
    }
}

#[actix_web::test]
async fn a_broker_that_is_away_is_no_ingest_outage() {
    if skipped("a_broker_that_is_away_is_no_ingest_outage", "keeps all in memory, and forgets it when it is killed") {
        return;
    }
    let broker = Broker::start(&[]);
    let (prefix, address) = (prefix(), brokers(broker.address()));
    broker.kill();
    let mut with = settings(&address, &prefix);
    with.push(("stream.create_topics", "false"));
    let app = TestApp::with(&with, Clock::system()).await;
    post_events(&app, 0, 50).await;
    app.counted().await;
    assert_eq!(app.get("/health/ready").await.status, 200);
    let degraded = async || app.get("/health").await.json()["stream"]["reason"].is_string();
    within(20, "health says why", degraded).await;
    let health = app.get("/health").await.json();
    assert_eq!((&health["status"], &health["stream"]["status"]), (&json!("degraded"), &json!("degraded")), "{health}");
    assert_eq!(health["stream"]["delivered_through"], 0);
    assert!(!health.to_string().contains(broker.address()), "no addresses: {health}");
    // It comes back, but has no topics, and Tidegate may create none: it says with which commands to.
    broker.restart();
    let reason = async || app.get("/health").await.json()["stream"]["reason"].as_str().unwrap_or("").to_owned();
    within(30, "health has the commands", async || reason().await.contains("kafka-topics.sh")).await;
    let said = reason().await;
    let commands: Vec<&str> = said.split("kafka-topics.sh --bootstrap-server BROKER ").skip(1).collect();
    assert_eq!(commands.len(), 5, "{said}");
    for command in commands {
        let words: Vec<&str> = command.trim_end_matches([';', ' ']).split_whitespace().collect();
        broker.tool("kafka-topics", &words);
    }
    delivered(&app).await;
    let described = broker.tool("kafka-topics", &["--describe"]);
    let of = |topic: &str| described.lines().find(|l| l.contains(&format!("Topic: {prefix}.{topic}\t"))).unwrap_or("");
    assert!(of("events.v1").contains("PartitionCount: 3") && of("events.v1").contains("retention.ms=604800000"));
    assert!(of("aggregates.v1.latest").contains("cleanup.policy=compact"), "{described}");
    assert!(of("cursors").contains("PartitionCount: 1\t") && of("cursors").contains("cleanup.policy=compact"));
    // And away for a while, in the middle of things.
    broker.kill();
    post_events(&app, 50, 200).await;
    app.counted().await;
    broker.restart();
    post_events(&app, 200, 220).await;
    delivered(&app).await;
    assert_eq!(ids(&broker.read("confluent-kafka", &format!("{prefix}.events.v1"), "read_committed")).len(), 220);
    assert_eq!(app.get("/health").await.json()["stream"]["status"], "ok");
    let metrics = app.get("/metrics").await.text();
    assert!(metrics.contains("tidegate_stream_behind{reader=\"events\"} 0"), "{metrics}");
    // Kafka's own consumer, as a person would start it.
    let topic = format!("{prefix}.events.v1");
    let arguments =
        ["--topic", &topic, "--from-beginning", "--isolation-level", "read_committed", "--max-messages", "220"];
    let console = broker.tool("kafka-console-consumer", &arguments);
    assert_eq!(console.lines().filter(|line| line.starts_with('{')).count(), 220);
    app.stop().await;
}

#[actix_web::test]
async fn what_kafka_refuses_goes_to_the_dead_letters_and_the_rest_goes_on() {
    if skipped("what_kafka_refuses_goes_to_the_dead_letters_and_the_rest_goes_on", "has none of the limits of a topic")
    {
        return;
    }
    let (broker, prefix) = (Broker::shared(), prefix());
    let address = brokers(broker.address());
    // The broker takes less than Tidegate knows: some are refused here, and some there.
    let topic = format!("{prefix}.events.v1");
    let config = "max.message.bytes=6000";
    let create = ["--create", "--topic", &topic, "--partitions", "3", "--replication-factor", "1", "--config", config];
    broker.tool("kafka-topics", &create);
    let mut with = settings(&address, &prefix);
    with.extend([
        ("stream.max_message_bytes", "16KiB"),
        ("stream.compression", "none"),
        ("stream.flush_interval", "300ms"),
    ]);
    let app = TestApp::with(&with, Clock::system()).await;
    let data =
        |seed: u32| -> String { (0..7000_u32).map(|n| char::from(b'a' + (n * (seed + 3) % 26) as u8)).collect() };
    let long = "x".repeat(2000);
    for n in 0..60_u32 {
        let mut event = json!({"type": "click", "id": format!("e{n}"), "user_id": format!("u{n}")});
        if n % 20 == 7 {
            event["data"] = json!({"a": data(n)});
        } else if n == 30 {
            // Escapes make it longer than 16 KiB.
            event["data"] = json!({"a": "y".repeat(7900)});
            event["url"] = json!(format!("https://shop.example/{}", "u".repeat(2000)));
            event["referrer"] = json!(format!("https://a.example/{long}"));
            event["title"] = json!("\u{1}".repeat(500));
        }
        let answer = app.post(event.to_string()).await;
        assert_eq!((answer.status, &answer.json()["data"]["accepted"]), (202, &json!(1)), "{}", answer.text());
    }
    delivered(&app).await;
    let found = ids(&read(broker, "confluent-kafka", topic).await);
    let refused: BTreeSet<String> = ["e7", "e27", "e47", "e30"].map(String::from).into();
    assert_eq!(found.len(), 56, "{found:?}");
    assert!(found.is_disjoint(&refused));
    let letters = read(broker, "kafka-python", format!("{prefix}.dead-letter.v1")).await;
    let mut dead = BTreeSet::new();
    for letter in &letters {
        let value: Value = serde_json::from_str(letter["value"].as_str().unwrap()).unwrap();
        assert_eq!(letter["headers"]["reason"], "too_large");
        assert_eq!((&value["reason"], &value["truncated"]), (&json!("too_large"), &json!(true)));
        assert_eq!(letter["headers"]["tidegate-offset"], json!(value["offset"].to_string()));
        let begin = value["value"].as_str().unwrap().split('"').nth(3).unwrap().to_owned();
        dead.insert(begin);
    }
    assert_eq!(dead, refused);
    let health = app.get("/health").await.json();
    assert_eq!((&health["stream"]["dead_letters"], &health["stream"]["status"]), (&json!(4), &json!("ok")), "{health}");
    let audit = app.data("/api/v1/audit").await;
    assert_eq!((&audit["agree"], &audit["stores"][0]["sites"][0]["store"]["counted"]), (&json!(true), &json!(60)));
    // The schemas are true of what is there.
    for (schema, topic) in [
        ("events.v1.json", "events.v1"),
        ("aggregates.v1.json", "aggregates.v1.updates"),
        ("aggregates.v1.json", "aggregates.v1.latest"),
        ("dead-letter.v1.json", "dead-letter.v1"),
    ] {
        let records = read(broker, "confluent-kafka", format!("{prefix}.{topic}")).await;
        let values = records.iter().filter_map(|record| record["value"].as_str());
        let lines: String = values.map(|value| format!("{value}\n")).collect();
        assert!(crate::kafka::validate(schema, &lines) >= 4, "{topic}");
        let served = app.get(&format!("/schemas/{schema}")).await;
        assert_eq!((served.status, served.header("content-type")), (200, Some("application/schema+json")));
        assert_eq!(served.json()["$id"], json!(format!("/schemas/{schema}")));
    }
    assert_eq!(app.get("/schemas/nosuch.json").await.status, 404);
    // And a person at a terminal sees them.
    let tail = async |topic: &str, more: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command.env("TIDEGATE__STREAM__BROKERS", &address).env("TIDEGATE__STREAM__TOPIC_PREFIX", &prefix);
        command.args(["tail", "--from-beginning", "--topic", topic]).args(more);
        let output = actix_web::rt::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let lines = tail("events", &["--limit", "5"]).await;
    assert!(lines.lines().count() == 5 && lines.contains("click") && !lines.contains('\u{1b}'), "{lines}");
    let lines = tail("dead-letter", &["--limit", "4"]).await;
    assert_eq!(lines.matches("too_large").count(), 4, "{lines}");
    let lines = tail("latest", &["--limit", "3", "--json", "--site", "default"]).await;
    for line in lines.lines() {
        assert_eq!(serde_json::from_str::<Value>(line).unwrap()["value"]["site"], "default");
    }
    app.stop().await;
}

#[test]
fn a_tail_without_kafka_says_what_to_set() {
    let (code, _, stderr) = crate::support::run(&["tail"]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("brokers = [\"host:9092\"]"), "{stderr}");
}

#[actix_web::test]
async fn a_connection_that_loses_answers_doubles_nothing() {
    if skipped(
        "a_connection_that_loses_answers_doubles_nothing",
        "cannot be told to name the address of a proxy, and shows what a transaction gave up",
    ) {
        return;
    }
    // The broker sends its clients to the proxy, whose port is found by having had it.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let broker = Broker::start(&[&format!("advertised.listeners=PLAINTEXT://{free}")]);
    let proxy = Proxy::listen_on(&free.to_string(), broker.address());
    let (prefix, address) = (prefix(), brokers(&free.to_string()));
    let app = TestApp::with(&settings(&address, &prefix), Clock::system()).await;
    post_events(&app, 0, 20).await;
    delivered(&app).await;
    let mut chance = Chance(seed() | 1);
    let mut sent = 20;
    for round in 0..12 {
        match round % 3 {
            0 => proxy.set(Line::Swallow),
            1 => proxy.set(Line::Slow),
            _ => {}
        }
        let more = 20 + chance.below(60) as u32;
        post_events(&app, sent, sent + more).await;
        sent += more;
        tokio::time::sleep(Duration::from_millis(chance.below(250))).await;
        // What comes after a gap makes no sense, so that the connection ends.
        proxy.set(Line::Cut);
        proxy.set(Line::Good);
    }
    delivered(&app).await;
    let events = broker.read("confluent-kafka", &format!("{prefix}.events.v1"), "read_committed");
    assert_eq!(ids(&events).len(), sent as usize);
    let audit = app.data("/api/v1/audit").await;
    assert_eq!((&audit["agree"], &audit["stores"][0]["sites"][0]["store"]["counted"]), (&json!(true), &json!(sent)));
    app.stop().await;
}

#[actix_web::test]
async fn mode_idempotent_goes_on_after_what_is_there() {
    if skipped("mode_idempotent_goes_on_after_what_is_there", "says the end of a partition wrong, by up to a batch") {
        return;
    }
    let (broker, prefix, seed) = (Broker::shared(), prefix(), seed());
    println!("seed {seed}");
    let address = brokers(broker.address());
    let mut with = settings(&address, &prefix);
    with.push(("stream.mode", "idempotent"));
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut chance = Chance(seed | 1);
    let load = Load::start(2, seed, true);
    for _ in 0..5 {
        let server = Process::start(&data, &with);
        load.aim(Some(server.address));
        let health = async || client::get(&format!("{}/health", server.url)).await.json();
        // Killed when something is on its way.
        within(20, "the stream runs", async || health().await["stream"]["delivered_through"].as_u64() > Some(0)).await;
        tokio::time::sleep(Duration::from_millis(chance.below(200))).await;
        server.kill();
        load.aim(None);
        // What the dead process has sent arrives, or not, before its successor looks.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let server = Process::start(&data, &with);
    load.aim(Some(server.address));
    let sent = load.finish();
    let settled = async || client::get(&format!("{}/health", server.url)).await.json()["stream"]["behind"] == 0;
    within(30, "all is delivered", settled).await;
    let found = ids(&read(broker, "confluent-kafka", format!("{prefix}.events.v1")).await);
    assert!(found.is_superset(&sent.answered) && sent.answered.len() > 100);
    let audit = client::get(&format!("{}/api/v1/audit", server.url)).await.json();
    assert_eq!(
        (&audit["data"]["agree"], &audit["data"]["stores"][0]["sites"][0]["store"]["counted"]),
        (&json!(true), &json!(found.len()))
    );
}
