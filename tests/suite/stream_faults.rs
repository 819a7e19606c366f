//! Errors that a broker answers with, injected by librdkafka's mock cluster; and topics that go away.
//!
//! The mock keeps no transactions apart: what was written and then given up is seen by everybody, and nobody is fenced. So
//! "once" is asserted where nothing was written when a run was given up, and in mode idempotent, which needs nothing
//! hidden; elsewhere it is that nothing is lost. What a real broker hides is proven against one, in `stream.rs`. The mock
//! creates and deletes no topics for its clients, and compacts nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, Message};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::RDKafkaApiKey as Api;
use rdkafka::types::RDKafkaRespErr as Code;
use rdkafka::{Offset, TopicPartitionList};
use serde_json::{Value, json};
use tidegate::clock::Clock;
use tidegate::stream::{Spec, StreamOptions};

use crate::kafka::{Broker, prefix, skipped};
use crate::stream::{brokers, delivered, post_events, read};
use crate::support::{TestApp, within};

/// A broker in this process that fails on command.
struct Mock {
    cluster: MockCluster<'static, DefaultProducerContext>,
    prefix: String,
    brokers: String,
}

/// A record, as a reader of committed ones sees it.
struct Seen {
    id: String,
    offset: u64,
    reason: Option<String>,
}

impl Mock {
    /// With the topics there: the mock lets nobody create them.
    fn start() -> Self {
        let cluster = MockCluster::new(1).unwrap();
        let options = StreamOptions { topic_prefix: prefix(), partitions: 3, ..StreamOptions::default() };
        for spec in Spec::all(&options) {
            cluster.create_topic(&spec.name, spec.partitions as i32, 1).unwrap();
        }
        let brokers = brokers(&cluster.bootstrap_servers());
        Self { cluster, prefix: options.topic_prefix, brokers }
    }

    /// A server whose aggregates keep quiet once they have begun, so that errors meet events.
    async fn serve(&self, more: &[(&str, &str)]) -> TestApp {
        let mut settings = vec![
            ("stream.brokers", self.brokers.as_str()),
            ("stream.topic_prefix", &self.prefix),
            ("stream.flush_interval", "20ms"),
            ("stream.aggregate_interval", "10m"),
        ];
        settings.extend(more);
        TestApp::with(&settings, Clock::system()).await
    }

    /// The same, once both of its readers have begun.
    async fn ready(&self, more: &[(&str, &str)]) -> TestApp {
        let app = self.serve(more).await;
        let stream = app.app().core().stream.clone().unwrap();
        let begun = async || stream.events().sessions() > 0 && stream.aggregates().sessions() > 0;
        within(Duration::from_secs(30), "the stream begins", begun).await;
        post_events(&app, 0, 10).await;
        sent(&app).await;
        app
    }

    /// The next answers to a kind of request.
    fn answer(&self, api: Api, codes: &[Code]) {
        self.cluster.request_errors(api, codes);
    }

    /// All that is in a topic.
    async fn read(&self, topic: &str) -> Vec<Seen> {
        let (servers, topic) = (self.cluster.bootstrap_servers(), format!("{}.{topic}", self.prefix));
        actix_web::rt::task::spawn_blocking(move || read_all(&servers, &topic)).await.unwrap()
    }

    /// The ids of events, each of which must be there once.
    async fn ids(&self) -> BTreeSet<String> {
        let events = self.read("events.v1").await;
        let mut times: BTreeMap<u64, u32> = BTreeMap::new();
        for event in &events {
            *times.entry(event.offset).or_default() += 1;
        }
        assert!(times.values().all(|times| *times == 1), "an event is there twice: {times:?}");
        events.into_iter().map(|event| event.id).collect()
    }

    /// The ids of events, however often they are there.
    async fn some(&self) -> BTreeSet<String> {
        self.read("events.v1").await.into_iter().map(|event| event.id).collect()
    }
}

fn read_all(servers: &str, topic: &str) -> Vec<Seen> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", servers)
        .set("group.id", "test")
        .set("isolation.level", "read_committed")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .create()
        .unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(10)).unwrap();
    let mut places = TopicPartitionList::new();
    for partition in metadata.topics()[0].partitions() {
        places.add_partition_offset(topic, partition.id(), Offset::Beginning).unwrap();
    }
    consumer.assign(&places).unwrap();
    let (mut seen, mut left, begun) = (vec![], places.count(), Instant::now());
    while left > 0 {
        assert!(begun.elapsed() < Duration::from_secs(30), "the end of {topic} is not reached");
        match consumer.poll(Duration::from_millis(200)) {
            Some(Err(KafkaError::PartitionEOF(_))) => left -= 1,
            Some(Err(error)) => panic!("{topic}: {error}"),
            None => {}
            Some(Ok(message)) => {
                let header = |name: &str| {
                    let headers = message.headers()?;
                    let found = headers.iter().find(|header| header.key == name)?;
                    Some(String::from_utf8(found.value?.to_vec()).unwrap())
                };
                seen.push(Seen {
                    id: header("ce_id").unwrap_or_default(),
                    offset: header("tidegate-offset").unwrap().parse().unwrap(),
                    reason: header("reason"),
                });
            }
        }
    }
    seen
}

/// Waits until the events are delivered; the aggregates take their time here.
async fn sent(app: &TestApp) {
    let core = app.app().core();
    let stream = core.stream.as_ref().unwrap();
    let waited = tokio::time::timeout(Duration::from_secs(60), stream.delivered_through(core.journal.end())).await;
    assert!(waited.is_ok(), "not delivered within 60 s: {:?}", stream.events().fault());
}

/// The ids of the first events.
fn first(count: u32) -> BTreeSet<String> {
    (0..count).map(|n| format!("e{n}")).collect()
}

/// How often transactions were given up, and sessions opened.
fn tries(app: &TestApp) -> (u64, u64) {
    let stream = app.app().core().stream.as_ref().unwrap();
    (stream.events().aborts(), stream.events().sessions())
}

#[actix_web::test]
async fn errors_that_pass_are_waited_out() {
    let mock = Mock::start();
    // A broker that has just started, before anything goes well.
    let loading = Code::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS;
    mock.answer(Api::InitProducerId, &[loading, Code::RD_KAFKA_RESP_ERR_NOT_COORDINATOR, loading, loading]);
    let app = mock.ready(&[]).await;
    let before = tries(&app);
    let mut count = 10;
    for (api, codes) in [
        (
            Api::Produce,
            &[
                Code::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
                Code::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE,
                Code::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
            ][..],
        ),
        (Api::AddPartitionsToTxn, &[Code::RD_KAFKA_RESP_ERR_CONCURRENT_TRANSACTIONS, loading]),
        (Api::AddPartitionsToTxn, &[Code::RD_KAFKA_RESP_ERR_NOT_COORDINATOR]),
        (Api::EndTxn, &[loading, Code::RD_KAFKA_RESP_ERR_NOT_COORDINATOR]),
    ] {
        mock.answer(api, codes);
        post_events(&app, count, count + 10).await;
        count += 10;
        sent(&app).await;
        assert_eq!(mock.ids().await, first(count), "{api:?} {codes:?}");
    }
    // librdkafka itself has tried again: no transaction was given up.
    assert_eq!(tries(&app), before);
    assert_eq!(app.get("/health").await.json()["stream"]["status"], "ok");
    app.stop().await;
}

#[actix_web::test]
async fn errors_that_end_a_session_make_a_new_one() {
    let mock = Mock::start();
    let app = mock.ready(&[]).await;
    let mut count = 10;
    for (api, code, reopens) in [
        // The transaction can be given up, and is begun again.
        (Api::AddPartitionsToTxn, Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, false),
        // The producer is of no use any more.
        (Api::AddPartitionsToTxn, Code::RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED, true),
        (Api::AddPartitionsToTxn, Code::RD_KAFKA_RESP_ERR_PRODUCER_FENCED, true),
        (Api::AddPartitionsToTxn, Code::RD_KAFKA_RESP_ERR_INVALID_TXN_STATE, true),
        // Nobody knows what became of it: the new session reads the cursor. (Here all was written, and all can be read.)
        (Api::EndTxn, Code::RD_KAFKA_RESP_ERR_PRODUCER_FENCED, true),
        (Api::EndTxn, Code::RD_KAFKA_RESP_ERR_INVALID_TXN_STATE, true),
    ] {
        let before = tries(&app);
        // The aggregates may be just at it, and get the answer instead.
        for attempt in 0.. {
            assert!(attempt < 10, "{api:?} {code:?}: nothing was given up");
            mock.answer(api, &[code]);
            post_events(&app, count, count + 10).await;
            count += 10;
            sent(&app).await;
            if tries(&app) != before {
                break;
            }
        }
        // What is known to be delivered after such an end is delivered by the next run at the latest.
        post_events(&app, count, count + 1).await;
        count += 1;
        sent(&app).await;
        assert_eq!(mock.ids().await, first(count), "{api:?} {code:?}");
        let after = tries(&app);
        assert_eq!(after.1 > before.1, reopens, "{api:?} {code:?}: {before:?} then {after:?}");
    }
    assert_eq!(app.get("/health").await.json()["stream"]["status"], "ok");
    assert_eq!(app.app().core().stream.as_ref().unwrap().dead_letters(), 0);
    app.stop().await;
}

#[actix_web::test]
async fn refused_records_go_to_the_dead_letters_alone() {
    refused_records("transactional").await;
}

#[actix_web::test]
async fn mode_idempotent_refused_records_go_to_the_dead_letters_alone() {
    refused_records("idempotent").await;
}

async fn refused_records(mode: &str) {
    let mock = Mock::start();
    let app = mock.ready(&[("stream.mode", mode)]).await;
    let stream = app.app().core().stream.clone().unwrap();
    let mut faults = BTreeSet::new();
    let mut dead = BTreeMap::new();
    let mut count = 10;
    for (code, word) in [
        (Code::RD_KAFKA_RESP_ERR_INVALID_RECORD, "invalid_record"),
        (Code::RD_KAFKA_RESP_ERR_POLICY_VIOLATION, "policy_violation"),
        (Code::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, "too_large"),
        (Code::RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP, "invalid_timestamp"),
    ] {
        // One event alone: it is the culprit. Its cursor goes out at the same time and may get the answer instead.
        for attempt in 0.. {
            assert!(attempt < 30, "{code:?}: always the cursor's");
            let (offset, letters) = (app.app().core().journal.end(), stream.dead_letters());
            mock.answer(Api::Produce, &[code]);
            post_events(&app, count, count + 1).await;
            count += 1;
            while stream.events().delivered() <= offset {
                faults.extend(stream.events().fault());
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            if stream.dead_letters() > letters {
                dead.insert(offset, String::from(word));
                break;
            }
        }
        // Many at once, refused once as a batch: none of them need be the culprit, and none is lost.
        mock.answer(Api::Produce, &[code]);
        let lines: String = (count..count + 40)
            .map(|n| format!("{}\n", json!({"type": "click", "id": format!("e{n}"), "user_id": "u1"})))
            .collect();
        let answer = app.post(lines).await;
        assert_eq!((answer.status, &answer.json()["data"]["accepted"]), (202, &json!(40)));
        count += 40;
        let end = app.app().core().journal.end();
        while stream.events().delivered() < end {
            faults.extend(stream.events().fault());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    let letters = mock.read("dead-letter.v1").await;
    let found: BTreeMap<u64, String> =
        letters.iter().map(|letter| (letter.offset, letter.reason.clone().unwrap())).collect();
    assert_eq!(found, dead);
    let there = if mode == "idempotent" { mock.ids().await } else { mock.some().await };
    assert_eq!(there.len() + dead.len(), count as usize, "{:?}", first(count).difference(&there));
    // A refused record is no fault of the stream's; a refused cursor is, and is said without librdkafka's echoes.
    assert!(faults.iter().all(|fault| fault.starts_with("the cursor was refused: ")), "{faults:?}");
    assert!(!faults.iter().any(|fault| fault.contains("Purge")), "{faults:?}");
    let health = app.get("/health").await.json();
    assert_eq!((&health["stream"]["status"], &health["stream"]["dead_letters"]), (&json!("ok"), &json!(4)), "{health}");
    let audit = app.data("/api/v1/audit").await;
    assert_eq!((&audit["agree"], &audit["stores"][0]["sites"][0]["store"]["counted"]), (&json!(true), &json!(count)));
    app.stop().await;
}

#[actix_web::test]
async fn mode_idempotent_takes_errors_as_well() {
    let mock = Mock::start();
    let app = mock.ready(&[("stream.mode", "idempotent")]).await;
    let mut count = 10;
    for code in [
        Code::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
        Code::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE,
        Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
        Code::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED,
    ] {
        mock.answer(Api::Produce, &[code]);
        post_events(&app, count, count + 10).await;
        count += 10;
        sent(&app).await;
        assert_eq!(mock.ids().await, first(count), "{code:?}");
    }
    mock.answer(Api::Produce, &[Code::RD_KAFKA_RESP_ERR_INVALID_RECORD]);
    post_events(&app, count, count + 1).await;
    sent(&app).await;
    assert_eq!(mock.ids().await, first(count));
    let letters = mock.read("dead-letter.v1").await;
    assert_eq!(letters.iter().map(|letter| letter.reason.as_deref()).collect::<Vec<_>>(), [Some("invalid_record")]);
    app.stop().await;
}

#[actix_web::test]
async fn a_broker_that_is_slow_or_down_doubles_nothing() {
    let mock = Mock::start();
    let app = mock.ready(&[]).await;
    mock.cluster.broker_round_trip_time(1, Duration::from_millis(300)).unwrap();
    post_events(&app, 10, 40).await;
    sent(&app).await;
    mock.cluster.broker_round_trip_time(1, Duration::ZERO).unwrap();
    assert_eq!(mock.ids().await, first(40));
    let mut count = 40;
    for _ in 0..3 {
        mock.cluster.broker_down(1).unwrap();
        post_events(&app, count, count + 20).await;
        count += 20;
        app.counted().await;
        mock.cluster.broker_up(1).unwrap();
        sent(&app).await;
    }
    assert_eq!(mock.ids().await, first(count));
    app.stop().await;
}

#[actix_web::test]
async fn a_topic_that_cannot_be_written_is_waited_for() {
    let mock = Mock::start();
    let app = mock.ready(&[]).await;
    let events = format!("{}.events.v1", mock.prefix);
    mock.cluster.topic_error(&events, Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED).unwrap();
    mock.answer(Api::Produce, &[Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED; 30]);
    post_events(&app, 10, 30).await;
    let reason = async || app.get("/health").await.json()["stream"]["reason"].as_str().unwrap_or("").to_owned();
    let said = async || reason().await.to_lowercase().contains("authorization");
    within(Duration::from_secs(40), "health says what is refused", said).await;
    post_events(&app, 30, 40).await;
    app.counted().await;
    mock.cluster.topic_error(&events, Code::RD_KAFKA_RESP_ERR_NO_ERROR).unwrap();
    mock.cluster.clear_request_errors(Api::Produce);
    sent(&app).await;
    assert_eq!(mock.some().await, first(40));
    app.stop().await;
}

#[actix_web::test]
async fn topics_that_cannot_be_created_are_said_with_their_commands() {
    // The mock answers no request to create one.
    let cluster = MockCluster::new(1).unwrap();
    let mock = Mock { brokers: brokers(&cluster.bootstrap_servers()), cluster, prefix: prefix() };
    let app = mock.serve(&[]).await;
    post_events(&app, 0, 10).await;
    let health = async || app.get("/health").await.json();
    let said = async || health().await["stream"]["reason"].as_str().unwrap_or("").contains("kafka-topics.sh");
    within(Duration::from_secs(40), "health has the commands", said).await;
    let options = StreamOptions { topic_prefix: mock.prefix.clone(), ..StreamOptions::default() };
    for spec in Spec::all(&options) {
        mock.cluster.create_topic(&spec.name, spec.partitions as i32, 1).unwrap();
    }
    sent(&app).await;
    assert_eq!(mock.ids().await, first(10));
    app.stop().await;
}

#[actix_web::test]
async fn topics_that_are_deleted_are_noticed_and_filled_again() {
    let test = "topics_that_are_deleted_are_noticed_and_filled_again";
    if skipped(test, "has none of Kafka's own tools to delete them with") {
        return;
    }
    let (broker, prefix) = (Broker::shared(), prefix());
    let address = brokers(broker.address());
    let settings = [
        ("stream.brokers", address.as_str()),
        ("stream.topic_prefix", &prefix),
        ("stream.flush_interval", "20ms"),
        ("stream.aggregate_interval", "100ms"),
    ];
    let app = TestApp::with(&settings, Clock::system()).await;
    post_events(&app, 0, 25).await;
    delivered(&app).await;
    let topics = format!("{prefix}.*");
    actix_web::rt::task::spawn_blocking(move || broker.tool("kafka-topics", &["--delete", "--topic", &topics]))
        .await
        .unwrap();
    // Nothing is sent meanwhile.
    let stream = app.app().core().stream.clone().unwrap();
    let noticed = async || stream.events().losses() > 0 && stream.aggregates().losses() > 0;
    within(Duration::from_secs(90), "the losses are noticed", noticed).await;
    delivered(&app).await;
    // A broker deletes one after the other: what was sent before it came to the cursors is there once more.
    let events = read(broker, "confluent-kafka", format!("{prefix}.events.v1")).await;
    let ids: BTreeSet<&str> = events.iter().filter_map(|event| event["headers"]["ce_id"].as_str()).collect();
    assert_eq!(ids.len(), 25);
    let said: Vec<Value> = read(broker, "confluent-kafka", format!("{prefix}.aggregates.v1.latest")).await;
    assert!(!said.is_empty());
    app.stop().await;
}
