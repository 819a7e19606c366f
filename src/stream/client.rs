//! What librdkafka calls back: its log, its errors, and what became of each record.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::ProducerContext;

/// Why brokers cannot be spoken to, as far as librdkafka says so beside the call that fails: the call itself knows only
/// that nobody answered. Its own words have addresses in them, and are kept at level debug.
#[derive(Debug, Default)]
pub struct Trouble(Mutex<Option<&'static str>>);

impl Trouble {
    fn note(&self, error: &KafkaError, reason: &str) {
        log::debug!(target: "librdkafka", "{error}: {reason}");
        if let Some(words) = error.rdkafka_error_code().and_then(|code| advice(code, reason)) {
            *self.0.lock() = Some(words);
        }
    }

    /// librdkafka's log knows of a connection that ends before the first answer, and its errors do not.
    fn note_log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log::debug!(target: "librdkafka", "{level:?} {facility}: {message}");
        let says = |word: &str| message.contains(word);
        let early = says("state APIVERSION_QUERY") || says("state SSL_HANDSHAKE");
        if facility == "FAIL" && early && (says("Disconnected") || says("PLAINTEXT broker listener")) {
            *self.0.lock() = Some(HANGS_UP);
        }
    }

    /// What was the matter lately, and what to look at. It is told once: a later call has its own troubles.
    pub fn take(&self) -> Option<&'static str> {
        self.0.lock().take()
    }
}

const HANGS_UP: &str = "the broker hangs up at once; see whether stream.security_protocol is what that port speaks";

/// What a broker's refusal means for the settings.
fn advice(code: RDKafkaErrorCode, reason: &str) -> Option<&'static str> {
    let says = |word: &str| reason.contains(word);
    match code {
        RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed => Some(
            "the broker does not let us in; see stream.sasl_username, stream.sasl_password and stream.sasl_mechanism",
        ),
        RDKafkaErrorCode::UnsupportedSASLMechanism => {
            Some("the broker does not know this mechanism; see stream.sasl_mechanism")
        }
        RDKafkaErrorCode::SSL if says("certificate verify failed") => Some(
            "the broker's certificate is not trusted; stream.ssl_ca_location must name the authority that signed it, and \
             stream.brokers the host that it is made out to",
        ),
        RDKafkaErrorCode::SSL | RDKafkaErrorCode::BrokerTransportFailure
            if ["bad certificate", "certificate required", "certificate unknown", "unknown ca"]
                .iter()
                .any(|alert| says(&format!("alert {alert}"))) =>
        {
            Some(
                "the broker wants a certificate of ours that it trusts; see stream.ssl_certificate_location and \
                 stream.ssl_key_location",
            )
        }
        RDKafkaErrorCode::SSL => Some(
            "TLS with the broker fails; see whether stream.security_protocol is what that port speaks, and the \
             certificates of stream.ssl_certificate_location",
        ),
        // librdkafka guesses so when a connection ends before the first answer.
        RDKafkaErrorCode::BrokerTransportFailure if says("security.protocol") || says("SSL handshake") => {
            Some(HANGS_UP)
        }
        _ => None,
    }
}

/// A client that keeps quiet.
#[derive(Debug, Default)]
pub struct Quiet {
    /// Why there is no answer.
    pub trouble: Trouble,
}

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.trouble.note_log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.trouble.note(&error, reason);
    }
}

impl ConsumerContext for Quiet {}

impl ProducerContext for Quiet {
    type DeliveryOpaque = usize;

    fn delivery(&self, _: &DeliveryResult<'_>, _: usize) {}
}

/// What became of the records of one run, as they are reported.
#[derive(Debug, Default)]
pub struct Reports {
    /// The run, in a byte that goes round: what is reported of an earlier one, which was given up, is of no interest.
    run: AtomicU8,
    failed: Mutex<Vec<(usize, RDKafkaErrorCode)>>,
    /// The offset after the last delivered record, by topic and partition.
    ends: Mutex<BTreeMap<(String, i32), i64>>,
    /// Whether ends are wanted.
    track: bool,
    /// Why there is no answer.
    pub trouble: Trouble,
}

impl Reports {
    /// With the ends of partitions, or without.
    pub fn new(track: bool) -> Self {
        Self { track, ..Self::default() }
    }

    /// Begins a run.
    pub fn clear(&self) {
        let mut failed = self.failed.lock();
        self.run.fetch_add(1, Ordering::Relaxed);
        failed.clear();
    }

    /// A record's number, with the run that it is in.
    pub fn tag(&self, number: usize) -> usize {
        (number << 8) | usize::from(self.run.load(Ordering::Relaxed))
    }

    /// Records that were not delivered, by the number they were sent with.
    pub fn failed(&self) -> Vec<(usize, RDKafkaErrorCode)> {
        self.failed.lock().clone()
    }

    /// Whether there are such.
    pub fn any_failed(&self) -> bool {
        !self.failed.lock().is_empty()
    }

    /// The offset after the last delivered record in each partition of a topic.
    pub fn ends(&self, topic: &str) -> BTreeMap<i32, i64> {
        let ends = self.ends.lock();
        ends.iter().filter(|((name, _), _)| name == topic).map(|((_, partition), end)| (*partition, *end)).collect()
    }
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.trouble.note_log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.trouble.note(&error, reason);
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, tag: usize) {
        match result {
            Ok(message) if self.track => {
                let mut ends = self.ends.lock();
                let end = ends.entry((message.topic().to_owned(), message.partition())).or_default();
                *end = (*end).max(message.offset() + 1);
            }
            Ok(_) => {}
            Err((error, _)) => {
                let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
                let mut failed = self.failed.lock();
                if tag & 0xff == usize::from(self.run.load(Ordering::Relaxed)) {
                    failed.push((tag >> 8, code));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn troubles_name_settings_and_neither_addresses_nor_secrets() {
        let trouble = Trouble::default();
        let note = |code, reason: &str| {
            trouble.note(&KafkaError::Global(code), reason);
            trouble.take().unwrap_or_default()
        };
        let at = "sasl_ssl://10.0.0.7:9093/bootstrap";
        for (code, reason, word) in [
            (RDKafkaErrorCode::Authentication, "SASL authentication error: invalid credentials", "sasl_password"),
            (RDKafkaErrorCode::SSL, "SSL handshake failed: certificate verify failed: self-signed", "ssl_ca_location"),
            (RDKafkaErrorCode::SSL, "tlsv13 alert certificate required", "ssl_certificate_location"),
            (RDKafkaErrorCode::SSL, "wrong version number", "security_protocol"),
            (
                RDKafkaErrorCode::BrokerTransportFailure,
                "incorrect security.protocol configuration",
                "security_protocol",
            ),
        ] {
            let said = note(code, &format!("{at}: {reason}"));
            assert!(said.contains(&format!("stream.{word}")) && !said.contains("10.0.0.7"), "{said}");
        }
        assert_eq!(note(RDKafkaErrorCode::BrokerTransportFailure, "Connection refused"), "");
        let log = |message: &str| trouble.note_log(RDKafkaLogLevel::Info, "FAIL", message);
        log("10.0.0.7:9093: Disconnected: connection closed by peer (after 2ms in state APIVERSION_QUERY)");
        assert_eq!(trouble.take(), Some(HANGS_UP));
        log("10.0.0.7:9093: Connect failed: Connection refused (after 0ms in state CONNECT)");
        assert_eq!(trouble.take(), None);
    }
}
