//! TLS and SASL towards a real Kafka. These run in a build with the feature `kafka-tls`: `scripts/test` makes one.

use std::time::Duration;

use serde_json::{Value, json};
use tidegate::clock::Clock;

use crate::client;
use crate::kafka::{Broker, prefix, skipped};
use crate::stream::{brokers, delivered, ids, post_events, read};
use crate::support::{Process, TestApp, within};

/// Why not.
const NO_TLS: &str = "speaks no TLS here";

/// A broker that these tests share.
fn broker() -> &'static Broker {
    static SHARED: std::sync::OnceLock<Broker> = std::sync::OnceLock::new();
    SHARED.get_or_init(Broker::secure)
}

type Settings = Vec<(&'static str, String)>;

/// For one of the broker's listeners.
fn settings(listener: &str, prefix: &str) -> Settings {
    let broker = broker();
    let mut settings = vec![
        ("stream.brokers", brokers(&broker.secret(listener).1)),
        ("stream.topic_prefix", prefix.to_owned()),
        ("stream.partitions", String::from("2")),
        ("stream.flush_interval", String::from("20ms")),
        ("stream.aggregate_interval", String::from("100ms")),
        ("stream.security_protocol", String::from(if listener == "sasl" { "sasl_ssl" } else { "ssl" })),
        ("stream.ssl_ca_location", broker.secret("ca.pem").0),
    ];
    if listener == "mutual" {
        settings.push(("stream.ssl_certificate_location", broker.secret("client.pem").0));
        settings.push(("stream.ssl_key_location", broker.secret("client.key").0));
    }
    settings
}

fn sasl(prefix: &str, mechanism: &str, password: &str) -> Settings {
    let mut settings = settings("sasl", prefix);
    settings.push(("stream.sasl_mechanism", mechanism.to_owned()));
    settings.push(("stream.sasl_username", broker().secret("user").1));
    settings.push(("stream.sasl_password", password.to_owned()));
    settings
}

/// One of the settings.
fn of<'a>(settings: &'a Settings, key: &str) -> &'a str {
    &settings.iter().find(|(name, _)| *name == key).expect(key).1
}

fn borrowed(settings: &Settings) -> Vec<(&str, &str)> {
    settings.iter().map(|(key, value)| (*key, value.as_str())).collect()
}

#[actix_web::test]
#[cfg_attr(not(feature = "kafka-tls"), ignore = "needs a build with --features kafka-tls")]
async fn stream_tls_delivers_to_whom_it_can_prove_itself() {
    if skipped("stream_tls_delivers_to_whom_it_can_prove_itself", NO_TLS) {
        return;
    }
    let password = broker().secret("password").1;
    let mut ways = vec![];
    for listener in ["tls", "mutual"] {
        let prefix = prefix();
        ways.push((String::from(listener), settings(listener, &prefix), prefix));
    }
    for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
        let prefix = prefix();
        ways.push((String::from(mechanism), sasl(&prefix, mechanism, &password), prefix));
    }
    // As a secret is usually handed over.
    let prefix = prefix();
    let mut from_file = sasl(&prefix, "SCRAM-SHA-512", "");
    from_file.push(("stream.sasl_password_file", broker().secret("password").0));
    ways.push((String::from("a password in a file"), from_file, prefix));
    for (way, settings, prefix) in ways {
        let app = TestApp::with(&borrowed(&settings), Clock::system()).await;
        post_events(&app, 0, 20).await;
        delivered(&app).await;
        assert_eq!(app.get("/health").await.json()["stream"]["status"], "ok", "{way}");
        assert_eq!(ids(&read(broker(), "confluent-kafka", format!("{prefix}.events.v1")).await).len(), 20, "{way}");
        app.stop().await;
    }
}

#[actix_web::test]
#[cfg_attr(not(feature = "kafka-tls"), ignore = "needs a build with --features kafka-tls")]
async fn stream_tls_says_what_is_wrong_and_ingest_goes_on() {
    if skipped("stream_tls_says_what_is_wrong_and_ingest_goes_on", NO_TLS) {
        return;
    }
    let broker = broker();
    let password = broker.secret("password").1;
    let wrong = "correct-horse-battery";
    let change = |mut settings: Settings, key: &'static str, value: Option<String>| {
        settings.retain(|(name, _)| *name != key);
        settings.extend(value.map(|value| (key, value)));
        settings
    };
    let other = || Some(broker.secret("other-ca.pem").0);
    let plain = |listener| change(settings(listener, &prefix()), "stream.security_protocol", None);
    let bare = |settings| change(settings, "stream.ssl_ca_location", None);
    let no_key = |settings| change(settings, "stream.ssl_key_location", None);
    let cases = [
        ("a wrong password", sasl(&prefix(), "SCRAM-SHA-512", wrong), "stream.sasl_password"),
        ("a wrong password", sasl(&prefix(), "PLAIN", wrong), "stream.sasl_password"),
        (
            "another authority",
            change(settings("tls", &prefix()), "stream.ssl_ca_location", other()),
            "stream.ssl_ca_location",
        ),
        ("plain to a port of TLS", bare(plain("tls")), "stream.security_protocol"),
        (
            "TLS to a plain port",
            change(settings("tls", &prefix()), "stream.brokers", Some(brokers(broker.address()))),
            "stream.security_protocol",
        ),
        (
            "no certificate of ours",
            no_key(change(settings("mutual", &prefix()), "stream.ssl_certificate_location", None)),
            "stream.ssl_certificate_location",
        ),
    ];
    let mut servers = vec![];
    for (case, settings, word) in cases {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let server = Process::start(&data, &borrowed(&settings));
        servers.push((case, settings, word, folder, server));
    }
    for (case, settings, word, folder, server) in servers {
        let health = async || client::get(&format!("{}/health", server.url)).await.json();
        let mut last = Value::Null;
        within(Duration::from_secs(45), case, async || {
            last = health().await;
            last["stream"]["reason"].as_str().is_some_and(|reason| reason.contains(word))
        })
        .await;
        assert_eq!((&last["status"], &last["stream"]["status"]), (&json!("degraded"), &json!("degraded")), "{case}");
        for n in 0..5 {
            let event = json!({"type": "click", "id": format!("e{n}")}).to_string();
            let answer = client::post(&format!("{}/api/v1/events", server.url), &[], event.into_bytes()).await;
            assert_eq!(answer.status, 202, "{case}");
        }
        assert_eq!(client::get(&format!("{}/health/ready", server.url)).await.status, 200, "{case}");
        let health = health().await;
        assert_eq!((&health["stream"]["delivered_through"], &health["stream"]["behind"]), (&json!(0), &json!(5)));
        // Neither there nor in the log stands what nobody should see.
        let log = std::fs::read_to_string(folder.path().join("data.log")).unwrap();
        let address = of(&settings, "stream.brokers").trim_matches(['[', ']', '"']);
        for text in [health.to_string(), log] {
            assert!(!text.contains(wrong) && !text.contains(&password), "{case}: {text}");
            assert!(!text.contains(address), "{case}: {text}");
        }
        server.kill();
        if case != "a wrong password" {
            continue;
        }
        // Put right, what waited goes out.
        let prefix = of(&settings, "stream.topic_prefix").to_owned();
        let right = sasl(&prefix, of(&settings, "stream.sasl_mechanism"), &password);
        let server = Process::start(&folder.path().join("data"), &borrowed(&right));
        let behind = async || client::get(&format!("{}/health", server.url)).await.json()["stream"]["behind"] == 0;
        within(Duration::from_secs(30), "what waited is delivered", behind).await;
        assert_eq!(ids(&read(broker, "confluent-kafka", format!("{prefix}.events.v1")).await).len(), 5);
        server.kill();
    }
    // A person at a terminal is told as well.
    let settings = sasl(&prefix(), "SCRAM-SHA-256", wrong);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"));
    for (key, value) in &settings {
        command.env(format!("TIDEGATE__{}", key.to_uppercase().replace('.', "__")), value);
    }
    command.args(["tail", "--topic", "events"]);
    let output = actix_web::rt::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("stream.sasl_password") && !said.contains(wrong), "{said}");
}
