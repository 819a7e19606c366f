//! The stream: what was accepted is in Kafka, each event once, as clients see it that are not ours.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use tidegate::clock::Clock;

use crate::kafka::{Broker, prefix};
use crate::support::TestApp;

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
        //AGG stream.aggregated_through(end).await;
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
