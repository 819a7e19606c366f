//! The stream: what was accepted is in Kafka, each event once, as clients see it that are not ours.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tidegate::clock::Clock;

use crate::client;
use crate::crash::{Chance, Load, seed};
use crate::kafka::{Broker, prefix};
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

fn brokers(address: &str) -> String {
    format!("[\"{address}\"]")
}

async fn delivered(app: &TestApp) {
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
async fn read(broker: &'static Broker, client: &'static str, topic: String) -> Vec<Value> {
    actix_web::rt::task::spawn_blocking(move || broker.read(client, &topic, "read_committed")).await.unwrap()
}

#[actix_web::test]
async fn events_arrive_once_as_cloud_events() {
    let (broker, prefix) = (Broker::shared(), prefix());
    let app = TestApp::with(&settings(&brokers(&broker.address), &prefix), Clock::system()).await;
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
    let app = TestApp::on(folder, &settings(&brokers(&broker.address), &prefix), Clock::system()).await;
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

/// Tidegate and the broker are killed again and again; then everything in Kafka is compared with what was sent.
#[actix_web::test]
async fn kills_of_both_sides_lose_and_double_nothing() {
    let broker = Arc::new(Mutex::new(Broker::start(&[])));
    let (address, prefix, seed) = (broker.lock().unwrap().address.clone(), prefix(), seed());
    println!("seed {seed}");
    let address = brokers(&address);
    let mut settings = settings(&address, &prefix);
    settings.push(("journal.segment_bytes", "64KiB"));
    settings.push(("journal.max_bytes", "1GiB"));
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut chance = Chance(seed | 1);
    let load = Load::start(3, seed, false);
    // The broker dies on a schedule of its own.
    let stop = Arc::new(AtomicBool::new(false));
    let kills = {
        let (broker, stop) = (broker.clone(), stop.clone());
        std::thread::spawn(move || {
            let mut chance = Chance(seed.rotate_left(7) | 1);
            let mut kills = 0;
            while !stop.load(Ordering::SeqCst) || kills < 5 {
                std::thread::sleep(Duration::from_millis(1500 + chance.below(1500)));
                let mut broker = broker.lock().unwrap();
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
        let life = if kill % 4 == 3 { chance.below(100) } else { 300 + chance.below(1500) };
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
        health["stream"]["behind"] == 0 && health["stream"]["delivered_through"] != 0
    };
    within(60, "all is delivered", settled).await;
    let export = client::get(&format!("{}/api/v1/export", server.url)).await.text();
    let mut accepted = BTreeSet::new();
    for line in export.lines() {
        accepted.insert(serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().to_owned());
    }
    assert!(accepted.is_superset(&sent.answered) && sent.answered.len() > 500, "{}", sent.answered.len());
    let topic = format!("{prefix}.events.v1");
    let events = actix_web::rt::task::spawn_blocking(move || {
        broker.lock().unwrap().read("confluent-kafka", &topic, "read_committed")
    });
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    for event in events.await.unwrap() {
        *seen.entry(event["headers"]["ce_id"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    let double: Vec<_> = seen.iter().filter(|(_, count)| **count > 1).take(5).collect();
    assert!(double.is_empty(), "in Kafka twice: {double:?}");
    assert_eq!(seen.len(), accepted.len());
    assert!(seen.keys().all(|id| accepted.contains(id)));
    let audit = client::get(&format!("{}/api/v1/audit", server.url)).await.json();
    assert_eq!(audit["data"]["agree"], true, "{audit}");
    assert_eq!(audit["data"]["stores"][0]["sites"][0]["store"]["counted"], json!(seen.len()));
    println!("{} events, {kills} kills of the broker", seen.len());
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
    let mut held = BTreeMap::new();
    for record in read(broker, "confluent-kafka", format!("{prefix}.aggregates.v1.latest")).await {
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
    let brokers = brokers(&broker.address);
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
