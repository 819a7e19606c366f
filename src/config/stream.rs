//! `[stream]`: the settings of Kafka as they are written, and what becomes of them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use super::raw::section;
use super::units::{Bytes, Span, Urls};
use crate::stream::{Compression, Mode, Secret, StreamOptions};

section! {
    /// `[stream]`
    Stream {
        /// Addresses.
        brokers: Urls = Urls::default(),
        /// Begin of names.
        topic_prefix: String = String::from("tidegate"),
        /// How exactly-once is reached.
        mode: Mode = Mode::Transactional,
        /// Of batches.
        compression: Compression = Compression::Lz4,
        /// Whether missing topics are created.
        create_topics: bool = true,
        /// Of new topics.
        partitions: u32 = 6,
        /// Of new topics.
        replication_factor: u32 = 1,
        /// Of new topics.
        events_retention: Span = Span::secs(7 * 86_400),
        /// Of new topics.
        updates_retention: Span = Span::secs(86_400),
        /// For a batch.
        linger: Span = Span::millis(5),
        /// For a transaction of events.
        flush_interval: Span = Span::millis(250),
        /// For a transaction of aggregates.
        aggregate_interval: Span = Span::secs(2),
        /// When a window is final.
        allowed_lateness: Span = Span::secs(300),
        /// The largest record.
        max_message_bytes: Bytes = Bytes(1_000_000),
        /// For TLS and SASL.
        security_protocol: String = String::new(),
        /// For SASL.
        sasl_mechanism: String = String::new(),
        /// For SASL.
        sasl_username: String = String::new(),
        /// For SASL.
        sasl_password: String = String::new(),
        /// File with it.
        sasl_password_file: String = String::new(),
        /// For TLS.
        ssl_ca_location: String = String::new(),
        /// For TLS.
        ssl_certificate_location: String = String::new(),
        /// For TLS.
        ssl_key_location: String = String::new(),
        /// For TLS.
        ssl_key_password: String = String::new(),
        /// Of librdkafka.
        properties: BTreeMap<String, toml::Value> = BTreeMap::new(),
    }
}

/// Checks what the types cannot; every mistake goes to `bad` with its key.
pub(super) fn validate(raw: &Stream, bad: &mut impl FnMut(&str, String)) -> StreamOptions {
    let mut finite = |key: &str, span: Span, least: u64| match span.0 {
        Some(span) if span >= Duration::from_millis(least) => span,
        _ => {
            bad(key, format!("it must be at least {least}ms, and not forever"));
            Duration::from_millis(least)
        }
    };
    let linger = finite("stream.linger", raw.linger, 0);
    let flush_interval = finite("stream.flush_interval", raw.flush_interval, 1);
    let aggregate_interval = finite("stream.aggregate_interval", raw.aggregate_interval, 10);
    let lateness = finite("stream.allowed_lateness", raw.allowed_lateness, 0);
    for broker in &raw.brokers.0 {
        let port =
            broker.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then(|| port.parse::<u16>().ok())?);
        if port.is_none() || broker.contains([',', ' ', '/']) {
            bad("stream.brokers", format!("`{broker}` is no address like kafka-1.shop.example:9092"));
        }
    }
    let prefix = &raw.topic_prefix;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if prefix.is_empty() || prefix.len() > 100 || !prefix.chars().all(fits) {
        bad(
            "stream.topic_prefix",
            format!("`{prefix}` cannot begin a topic: 1 to 100 characters of A-Z a-z 0-9 . _ -"),
        );
    }
    for (key, value) in [("stream.partitions", raw.partitions), ("stream.replication_factor", raw.replication_factor)] {
        if !(1..=10_000).contains(&value) {
            bad(key, String::from("it must be 1 to 10000"));
        }
    }
    if !(16_384..=100_000_000).contains(&raw.max_message_bytes.0) {
        bad("stream.max_message_bytes", String::from("it must be 16KiB to 100MB"));
    }
    if !["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"].contains(&raw.sasl_mechanism.to_ascii_uppercase().as_str()) {
        bad("stream.sasl_mechanism", String::from("it must be PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"));
    }
    let mut password = raw.sasl_password.clone();
    if !raw.sasl_password_file.is_empty() {
        match std::fs::read_to_string(&raw.sasl_password_file) {
            Ok(text) => password = text.trim_end_matches(['\n', '\r']).to_owned(),
            Err(error) => bad("stream.sasl_password_file", format!("cannot be read: {error}")),
        }
    }
    let named = [
        ("security.protocol", &raw.security_protocol),
        ("sasl.mechanism", &raw.sasl_mechanism),
        ("sasl.username", &raw.sasl_username),
        ("sasl.password", &password),
        ("ssl.ca.location", &raw.ssl_ca_location),
        ("ssl.certificate.location", &raw.ssl_certificate_location),
        ("ssl.key.location", &raw.ssl_key_location),
        ("ssl.key.password", &raw.ssl_key_password),
    ];
    let named = named.into_iter().filter(|(_, value)| !value.is_empty());
    let mut properties: Vec<(String, Secret)> =
        named.map(|(name, value)| (name.to_owned(), Secret(value.clone()))).collect();
    for (name, value) in &raw.properties {
        flatten(name, value, &mut properties, bad);
    }
    let options = StreamOptions {
        brokers: raw.brokers.0.clone(),
        topic_prefix: prefix.clone(),
        mode: raw.mode,
        compression: raw.compression,
        partitions: raw.partitions,
        replication_factor: raw.replication_factor,
        events_retention: raw.events_retention.as_millis(),
        updates_retention: raw.updates_retention.as_millis(),
        create_topics: raw.create_topics,
        linger,
        flush_interval,
        aggregate_interval,
        allowed_lateness: i64::try_from(lateness.as_millis()).unwrap_or(i64::MAX / 4),
        max_message_bytes: usize::try_from(raw.max_message_bytes.0).unwrap_or(usize::MAX),
        properties,
    };
    for (key, message) in options.check() {
        bad(&key, message);
    }
    options
}

/// A property by its name, or those of a table: who leaves the quotes out of `"socket.timeout.ms" = 1` writes tables.
fn flatten(
    name: &str,
    value: &toml::Value,
    properties: &mut Vec<(String, Secret)>,
    bad: &mut impl FnMut(&str, String),
) {
    match value {
        toml::Value::String(text) => properties.push((name.to_owned(), Secret(text.clone()))),
        toml::Value::Integer(_) | toml::Value::Boolean(_) | toml::Value::Float(_) => {
            properties.push((name.to_owned(), Secret(value.to_string())));
        }
        toml::Value::Table(table) => {
            for (key, value) in table {
                flatten(&format!("{name}.{key}"), value, properties, bad);
            }
        }
        _ => bad(&format!("stream.properties.{name}"), String::from("it must be a text, a number, true or false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(text: &str) -> Vec<(String, String)> {
        let raw: Stream = toml::from_str(text).unwrap();
        let mut found = Vec::new();
        validate(&raw, &mut |key, message| found.push((key.to_owned(), message)));
        found
    }

    #[test]
    fn mistakes_name_the_key_and_never_a_secret() {
        assert_eq!(mistakes(""), []);
        assert_eq!(mistakes("brokers = [\"kafka-1:9092\", \"[::1]:9092\"]"), []);
        for (text, key) in [
            ("brokers = [\"kafka\"]", "stream.brokers"),
            ("brokers = [\"http://kafka:9092\"]", "stream.brokers"),
            ("topic_prefix = \"a b\"", "stream.topic_prefix"),
            ("partitions = 0", "stream.partitions"),
            ("max_message_bytes = 100", "stream.max_message_bytes"),
            ("sasl_password_file = \"/no/such/file\"", "stream.sasl_password_file"),
            ("properties = { \"no.such\" = 1 }", "stream.properties.no.such"),
            ("properties = { \"acks\" = 0 }", "stream.properties.acks"),
            ("properties = { \"client.rack\" = [1] }", "stream.properties.client.rack"),
            ("sasl_mechanism = \"hunter2\"\nsasl_password = \"hunter2\"", "stream.sasl_mechanism"),
        ] {
            let found = mistakes(text);
            assert!(found.iter().any(|(at, _)| at == key), "{text}: {found:?}");
            assert!(found.iter().all(|(_, message)| !message.contains("hunter2")), "{found:?}");
        }
        let raw: Stream = toml::from_str("brokers = [\"a:1\"]\nsasl_password = \"hunter2\"").unwrap();
        let options = validate(&raw, &mut |key, message| panic!("{key}: {message}"));
        assert!(options.enabled() && !format!("{options:?}").contains("hunter2"));
    }
}
