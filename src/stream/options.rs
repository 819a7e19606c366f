//! How the stream is kept: the settings of `[stream]`, validated, and what librdkafka makes of them.

use std::fmt;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;

use super::StreamError;
use crate::clock::UnixMillis;

/// How events get into Kafka once only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Records and cursor in one transaction.
    #[default]
    Transactional,
    /// For brokers without transactions: the cursor follows the records, and a start looks for what is there already.
    Idempotent,
}

/// How batches are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// Not at all.
    None,
    /// Small and slow.
    Gzip,
    /// Like lz4.
    Snappy,
    /// Fast.
    #[default]
    Lz4,
    /// Smaller than lz4, at more work.
    Zstd,
}

impl Compression {
    fn as_str(self) -> &'static str {
        match self {
            Compression::None => "none",
            Compression::Gzip => "gzip",
            Compression::Snappy => "snappy",
            Compression::Lz4 => "lz4",
            Compression::Zstd => "zstd",
        }
    }
}

/// Something that must not be seen in a log.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "(none)" } else { "(secret)" })
    }
}

/// How the stream is kept. Durations in milliseconds where they are [`UnixMillis`].
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// `host:port` each.
    pub brokers: Vec<String>,
    /// What topic names and transactional ids begin with.
    pub topic_prefix: String,
    /// How exactly-once is reached.
    pub mode: Mode,
    /// Of batches.
    pub compression: Compression,
    /// Of topics that are created; that of the cursors has always one.
    pub partitions: u32,
    /// Of topics that are created.
    pub replication_factor: u32,
    /// Of the topics of events and dead letters; `None` is for ever.
    pub events_retention: Option<UnixMillis>,
    /// Of the topic of updates.
    pub updates_retention: Option<UnixMillis>,
    /// Whether missing topics are created.
    pub create_topics: bool,
    /// How long librdkafka gathers records for a batch.
    pub linger: Duration,
    /// How long events gather for a transaction.
    pub flush_interval: Duration,
    /// How long changes of aggregates gather.
    pub aggregate_interval: Duration,
    /// How much later than its time an event may come and be no late one.
    pub allowed_lateness: UnixMillis,
    /// The largest record, in bytes.
    pub max_message_bytes: usize,
    /// Properties of librdkafka for TLS and SASL, and those the operator set by name.
    pub properties: Vec<(String, Secret)>,
}

impl Default for StreamOptions {
    fn default() -> Self {
        Self {
            brokers: Vec::new(),
            topic_prefix: String::from("tidegate"),
            mode: Mode::Transactional,
            compression: Compression::Lz4,
            partitions: 6,
            replication_factor: 1,
            events_retention: Some(7 * crate::clock::DAY),
            updates_retention: Some(crate::clock::DAY),
            create_topics: true,
            linger: Duration::from_millis(5),
            flush_interval: Duration::from_millis(250),
            aggregate_interval: Duration::from_secs(2),
            allowed_lateness: 5 * crate::clock::MINUTE,
            max_message_bytes: 1_000_000,
            properties: Vec::new(),
        }
    }
}

/// What the house sets itself, because what it promises rests on it; the key of the setting that stands for it.
const OURS: [(&str, &str); 15] = [
    ("bootstrap.servers", "stream.brokers"),
    ("metadata.broker.list", "stream.brokers"),
    ("transactional.id", "stream.topic_prefix"),
    ("enable.idempotence", "stream.mode"),
    ("acks", "stream.mode"),
    ("request.required.acks", "stream.mode"),
    ("isolation.level", "stream.mode"),
    ("partitioner", "stream.mode"),
    ("max.in.flight", "stream.mode"),
    ("max.in.flight.requests.per.connection", "stream.mode"),
    ("compression.type", "stream.compression"),
    ("compression.codec", "stream.compression"),
    ("linger.ms", "stream.linger"),
    ("message.max.bytes", "stream.max_message_bytes"),
    ("enable.auto.commit", "stream.mode"),
];

impl StreamOptions {
    /// Whether there is a stream at all.
    pub fn enabled(&self) -> bool {
        !self.brokers.is_empty()
    }

    /// Checks what librdkafka will be told, without connecting. Each mistake comes with the key of its setting.
    pub fn check(&self) -> Vec<(String, String)> {
        let mut mistakes = Vec::new();
        for (name, _) in &self.properties {
            if let Some((_, instead)) = OURS.iter().find(|(ours, _)| ours == name) {
                mistakes.push((format!("stream.properties.{name}"), format!("it is Tidegate's own: see {instead}")));
            }
        }
        let secure = |name: &'static str, word: &str| {
            let (_, value) = self.properties.iter().find(|(key, _)| key == name)?;
            value.0.to_ascii_lowercase().contains(word).then_some(name)
        };
        let wants = secure("security.protocol", "ssl").or(secure("sasl.mechanism", "scram"));
        let wants = wants.or_else(|| Some(self.properties.iter().find(|(key, _)| key.starts_with("ssl."))?.0.as_str()));
        if let (Some(name), false) = (wants, cfg!(feature = "kafka-tls")) {
            mistakes.push((
                key_of(name),
                String::from(
                    "this build has no TLS and no SCRAM towards Kafka; build it with `cargo build --release --features kafka-tls`",
                ),
            ));
            return mistakes;
        }
        for config in [self.producer(Some("check")), self.consumer(true)] {
            if let Err(KafkaError::ClientConfig(_, why, name, _)) = config.create_native_config() {
                let why = why.split(" for ").next().unwrap_or_default().trim_end_matches(['.', ':']).to_owned();
                let why =
                    if why.starts_with("No such") { String::from("librdkafka knows no such property") } else { why };
                if !mistakes.iter().any(|(key, _)| *key == key_of(&name)) {
                    mistakes.push((key_of(&name), why));
                }
            }
        }
        mistakes
    }

    fn base(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.brokers.join(","));
        config.set("client.id", "tidegate");
        // A broker that comes back should be found within a second or two.
        config.set("reconnect.backoff.max.ms", "2000");
        config.set("socket.connection.setup.timeout.ms", "10000");
        config.set("topic.metadata.refresh.interval.ms", "60000");
        config
    }

    fn with_properties(&self, mut config: ClientConfig, consumer: bool) -> ClientConfig {
        for (name, value) in &self.properties {
            // Those of the other kind of client would only make librdkafka warn.
            let others = if consumer { PRODUCER_ONLY } else { CONSUMER_ONLY };
            if !others.contains(&name.as_str()) {
                config.set(name, &value.0);
            }
        }
        config
    }

    /// The producer's config; with a transactional id in mode transactional.
    pub(super) fn producer(&self, transactional_id: Option<&str>) -> ClientConfig {
        let mut config = self.base();
        let batch = self.max_message_bytes.min(1_000_000);
        config
            .set("acks", "all")
            .set("enable.idempotence", "true")
            // As Java's clients place a key, so that topics of both can be joined.
            .set("partitioner", "murmur2_random")
            .set("compression.type", self.compression.as_str())
            .set("linger.ms", self.linger.as_millis().to_string())
            // The cursor, with books of many sites, may be larger than events are allowed to be.
            .set("message.max.bytes", self.max_message_bytes.max(1_000_000).to_string())
            .set("batch.size", batch.to_string())
            .set("queue.buffering.max.messages", "100000")
            .set("queue.buffering.max.kbytes", "65536")
            // Given up after this: what comes next reads the cursor, and knows.
            .set("message.timeout.ms", "20000");
        if let (Mode::Transactional, Some(id)) = (self.mode, transactional_id) {
            // A dead instance's open transaction holds up readers for no longer than this.
            config.set("transaction.timeout.ms", "30000").set("transactional.id", id);
            // Ends of partitions are not asked for in this mode, and a commit says that all is delivered.
            config.set("delivery.report.only.error", "true");
        }
        self.with_properties(config, false)
    }

    /// A consumer's config.
    pub(super) fn consumer(&self, committed_only: bool) -> ClientConfig {
        let mut config = self.base();
        config
            // Assigning by hand needs a group's name as well; nothing is ever committed under it.
            .set("group.id", format!("{}-reader", self.topic_prefix))
            .set("isolation.level", if committed_only { "read_committed" } else { "read_uncommitted" })
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("allow.auto.create.topics", "false")
            .set("auto.offset.reset", "earliest")
            // What is at the end is asked for, not waited for.
            .set("fetch.wait.max.ms", "50")
            .set("queued.max.messages.kbytes", "8192");
        self.with_properties(config, true)
    }

    /// Makes a producer once, which finds settings that do not go together.
    pub(super) fn probe(&self) -> Result<(), StreamError> {
        self.producer(Some("check"))
            .create_native_config()
            .and_then(|_| {
                let config = self.producer(Some("check"));
                config
                    .create_with_context::<_, rdkafka::producer::BaseProducer<_>>(super::client::Quiet::default())
                    .map(drop)
            })
            .map_err(|error| {
                StreamError::Setting(match error {
                    KafkaError::ClientConfig(_, _, name, _) => {
                        format!("{}: librdkafka does not take it", key_of(&name))
                    }
                    // Of settings only: nothing has been connected yet.
                    KafkaError::ClientCreation(why) => format!("stream.properties: {why}"),
                    other => format!("stream: {}", super::error::reason(&other)),
                })
            })
    }
}

const PRODUCER_ONLY: &[&str] = &[
    "transaction.timeout.ms",
    "message.timeout.ms",
    "delivery.timeout.ms",
    "batch.size",
    "batch.num.messages",
    "queue.buffering.max.messages",
    "queue.buffering.max.kbytes",
    "queue.buffering.max.ms",
    "compression.level",
    "retries",
    "message.send.max.retries",
    "retry.backoff.ms",
    "retry.backoff.max.ms",
    "request.timeout.ms",
    "enable.gapless.guarantee",
    "sticky.partitioning.linger.ms",
];
const CONSUMER_ONLY: &[&str] = &[
    "group.id",
    "session.timeout.ms",
    "max.poll.interval.ms",
    "fetch.wait.max.ms",
    "fetch.min.bytes",
    "fetch.max.bytes",
    "fetch.message.max.bytes",
    "max.partition.fetch.bytes",
    "queued.max.messages.kbytes",
    "queued.min.messages",
    "auto.offset.reset",
    "check.crcs",
    "enable.partition.eof",
    "allow.auto.create.topics",
];

/// The key of the setting that a property of librdkafka comes from.
fn key_of(property: &str) -> String {
    match property {
        "bootstrap.servers" => String::from("stream.brokers"),
        "security.protocol"
        | "sasl.mechanism"
        | "sasl.username"
        | "sasl.password"
        | "ssl.ca.location"
        | "ssl.certificate.location"
        | "ssl.key.location"
        | "ssl.key.password" => {
            format!("stream.{}", property.replace('.', "_"))
        }
        "message.max.bytes" => String::from("stream.max_message_bytes"),
        "linger.ms" => String::from("stream.linger"),
        other => format!("stream.properties.{other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(properties: &[(&str, &str)]) -> Vec<(String, String)> {
        let properties = properties.iter().map(|(k, v)| (String::from(*k), Secret(String::from(*v)))).collect();
        StreamOptions { brokers: vec!["127.0.0.1:1".into()], properties, ..StreamOptions::default() }.check()
    }

    #[test]
    fn mistakes_name_their_key_and_no_secret() {
        assert_eq!(with(&[]), []);
        assert_eq!(with(&[("socket.keepalive.enable", "true")]), []);
        let found = with(&[("no.such", "1")]);
        assert_eq!(found, [("stream.properties.no.such".into(), "librdkafka knows no such property".into())]);
        let found = with(&[("socket.timeout.ms", "soon")]);
        assert!(found[0].0 == "stream.properties.socket.timeout.ms" && !found[0].1.is_empty(), "{found:?}");
        let found = with(&[("acks", "0")]);
        assert_eq!(found[0].0, "stream.properties.acks");
        assert!(found[0].1.contains("stream.mode"), "{found:?}");
        let secret = Secret("hunter2".into());
        assert_eq!(format!("{secret:?}"), "(secret)");
    }

    #[test]
    #[cfg_attr(feature = "kafka-tls", ignore = "of a build without kafka-tls")]
    fn tls_in_a_build_without_it_says_how_to_build() {
        for (name, value, key) in [
            ("security.protocol", "SASL_SSL", "stream.security_protocol"),
            ("sasl.mechanism", "SCRAM-SHA-256", "stream.sasl_mechanism"),
            ("ssl.ca.location", "/etc/ca.pem", "stream.ssl_ca_location"),
        ] {
            let found = with(&[(name, value)]);
            assert_eq!(found[0].0, key);
            assert!(found[0].1.contains("--features kafka-tls"), "{found:?}");
        }
    }
}
