//! What librdkafka calls back: its log, its errors, and what became of each record.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::ProducerContext;

/// Keeps librdkafka's own words, which have addresses in them, at level debug: what matters of them is told as the
/// stream's fault.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quiet;

fn log_of_librdkafka(level: RDKafkaLogLevel, facility: &str, message: &str) {
    log::debug!(target: "librdkafka", "{level:?} {facility}: {message}");
}

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_of_librdkafka(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        log::debug!(target: "librdkafka", "{error}: {reason}");
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
    failed: Mutex<Vec<(usize, RDKafkaErrorCode)>>,
    /// The offset after the last delivered record, by topic and partition.
    ends: Mutex<BTreeMap<(String, i32), i64>>,
    /// Whether ends are wanted.
    track: bool,
}

impl Reports {
    /// With the ends of partitions, or without.
    pub fn new(track: bool) -> Self {
        Self { track, ..Self::default() }
    }

    /// Begins a run.
    pub fn clear(&self) {
        self.failed.lock().clear();
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
        log_of_librdkafka(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        log::debug!(target: "librdkafka", "{error}: {reason}");
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        match result {
            Ok(message) if self.track => {
                let mut ends = self.ends.lock();
                let end = ends.entry((message.topic().to_owned(), message.partition())).or_default();
                *end = (*end).max(message.offset() + 1);
            }
            Ok(_) => {}
            Err((error, _)) => {
                let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
                self.failed.lock().push((number, code));
            }
        }
    }
}
