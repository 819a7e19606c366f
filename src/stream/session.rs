//! A connection to Kafka that delivers runs of records, each with its cursor, wholly or not at all. Everything in here
//! blocks and is called off the runtime.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};

use super::client::Reports;
use super::error::reason;
use super::outgoing::Outgoing;
use super::{Mode, StreamError, StreamOptions, Topics, topics};
use crate::clock::Stopwatch;

/// How long one call may block.
const CALL: Duration = Duration::from_secs(5);
/// How long it is tried to end a transaction before its outcome is read from Kafka by a new session.
const PATIENCE: Duration = Duration::from_secs(25);
/// How long it is waited for deliveries before it is looked for failures.
const SLICE: Duration = Duration::from_millis(50);
/// The number of the cursor's record.
const CURSOR: usize = usize::MAX >> 8;

/// Why a run was not delivered.
#[derive(Debug)]
pub enum Failure {
    /// Nothing of it is in Kafka (in mode idempotent: what is not among these is). Kafka does not want these records: their
    /// numbers, and why. None of them: the run was only hit by the end of the one before, and can be tried again at once.
    Refused(Vec<(usize, RDKafkaErrorCode)>),
    /// Nothing of it is in Kafka; it may be tried again.
    Aborted(String),
    /// The session is of no use any more, or does not know what became of the run. A new one reads the cursor.
    Lost(String),
}

/// A producer, ready.
pub struct Session {
    producer: ThreadedProducer<Reports>,
    mode: Mode,
    cursors: Arc<str>,
    open: bool,
    /// Whether the last run was hit by the end of the one before it.
    echoed: bool,
    /// Whether topics were missing when it was opened.
    pub made_topics: bool,
}

/// Whether Kafka will never take the record.
fn is_refusal(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::MessageSizeTooLarge
            | RDKafkaErrorCode::InvalidMessageSize
            | RDKafkaErrorCode::MessageBatchTooLarge
            | RDKafkaErrorCode::InvalidTimestamp
            | RDKafkaErrorCode::InvalidRecord
            | RDKafkaErrorCode::InvalidDifferentRecord
            | RDKafkaErrorCode::PolicyViolation
    )
}

impl Session {
    /// Connects, makes sure of the topics, and (in mode transactional) fences off whoever used this id before, whose open
    /// transaction is aborted.
    pub fn open(options: &StreamOptions, topics: &Topics, id: &str) -> Result<Self, StreamError> {
        let config = options.producer(Some(id));
        let reports = Reports::new(options.mode == Mode::Idempotent);
        let producer = ThreadedProducer::from_config_and_context(&config, reports)
            .map_err(|error| StreamError::broker("no producer", &error))?;
        let handle = tokio::runtime::Handle::try_current().map_err(|_| StreamError::Interrupted)?;
        let made_topics = handle.block_on(topics::ensure(options, &producer))?;
        if options.mode == Mode::Transactional {
            let watch = Stopwatch::start();
            while let Err(error) = producer.init_transactions(CALL) {
                let again = matches!(&error, KafkaError::Transaction(error) if error.is_retriable());
                if !again || watch.elapsed() > 2 * CALL {
                    return Err(StreamError::broker("transactions cannot be begun", &error));
                }
            }
        }
        let cursors = Arc::from(topics.cursors.as_str());
        Ok(Self { producer, mode: options.mode, cursors, open: false, echoed: false, made_topics })
    }

    /// A topic that has been deleted since this was opened: while there is nothing to send, nothing else would tell.
    pub fn deleted_topic(&self, options: &StreamOptions) -> Result<Option<StreamError>, StreamError> {
        let missing = topics::missing(options, &self.producer)?;
        Ok(missing.first().map(|spec| StreamError::Topics(format!("the topic {} has been deleted", spec.name))))
    }

    /// Begins a run.
    pub fn begin(&mut self) -> Result<(), Failure> {
        self.producer.context().clear();
        if self.mode == Mode::Transactional {
            self.producer.begin_transaction().map_err(|error| Failure::Lost(reason(&error)))?;
        }
        self.open = true;
        Ok(())
    }

    /// Puts a record into the run.
    pub fn send(&mut self, number: usize, record: &Outgoing) -> Result<(), Failure> {
        let headers = record
            .headers
            .iter()
            .fold(OwnedHeaders::new_with_capacity(record.headers.len()), |headers, (key, value)| {
                headers.insert(Header { key, value: Some(value.as_ref()) })
            });
        let mut outgoing =
            BaseRecord::<[u8], [u8], usize>::with_opaque_to(&record.topic, self.producer.context().tag(number))
                .key(&record.key)
                .headers(headers)
                .timestamp(record.timestamp);
        if let Some(value) = &record.value {
            outgoing = outgoing.payload(value);
        }
        if let Some(partition) = record.partition {
            outgoing = outgoing.partition(partition);
        }
        let mut waiting: Option<Stopwatch> = None;
        loop {
            let Err((error, back)) = self.producer.send(outgoing) else { return Ok(()) };
            outgoing = back;
            let watch = waiting.get_or_insert_with(Stopwatch::start);
            match error.rdkafka_error_code() {
                // The broker is slow, and librdkafka holds as much as it may.
                Some(RDKafkaErrorCode::QueueFull)
                    if watch.elapsed() < PATIENCE && !self.producer.context().any_failed() =>
                {
                    self.producer.poll(Duration::from_millis(20));
                }
                Some(code) if is_refusal(code) && number == CURSOR => {
                    return Err(self.abort(&format!("the cursor's record is refused: {code}")));
                }
                Some(code) if is_refusal(code) => {
                    self.roll_back()?;
                    return Err(Failure::Refused(vec![(number, code)]));
                }
                // A record before it has failed, and with it the transaction: that one is to blame.
                _ if self.producer.context().any_failed() => {
                    return Err(self.flush().err().unwrap_or_else(|| Failure::Lost(reason(&error))));
                }
                _ => return Err(self.abort(&reason(&error))),
            }
        }
    }

    /// Ends the run: after `Ok` all of it is in Kafka with its cursor. `cursor` makes the cursor's record, in mode
    /// idempotent out of the partitions' ends.
    pub fn commit(
        &mut self,
        events: &str,
        key: &str,
        now: crate::clock::UnixMillis,
        cursor: impl FnOnce(BTreeMap<i32, i64>) -> Vec<u8>,
    ) -> Result<(), Failure> {
        if self.mode == Mode::Idempotent {
            // The cursor must not be there before what it stands for.
            self.flush()?;
        }
        let record = Outgoing {
            topic: self.cursors.clone(),
            key: key.as_bytes().to_vec(),
            value: Some(cursor(self.producer.context().ends(events))),
            headers: Vec::new(),
            timestamp: now,
            partition: Some(0),
        };
        self.send(CURSOR, &record)?;
        self.flush()?;
        if self.mode == Mode::Transactional {
            let watch = Stopwatch::start();
            while let Err(error) = self.producer.commit_transaction(CALL) {
                match &error {
                    KafkaError::Transaction(error) if error.txn_requires_abort() => {
                        return Err(self.abort(&error.code().to_string()));
                    }
                    // A time-out: it may be committed or not. The same call asks again.
                    KafkaError::Transaction(error) if error.is_retriable() && watch.elapsed() < PATIENCE => {}
                    _ => return Err(Failure::Lost(reason(&error))),
                }
            }
        }
        self.open = false;
        self.echoed = false;
        Ok(())
    }

    /// Gives the run up.
    pub fn abort(&mut self, why: &str) -> Failure {
        match self.roll_back() {
            Ok(()) if self.mode == Mode::Transactional => Failure::Aborted(why.to_owned()),
            // Some of it may be there.
            Ok(()) => Failure::Lost(why.to_owned()),
            Err(failure) => failure,
        }
    }

    /// Waits until every record is delivered or has failed.
    fn flush(&mut self) -> Result<(), Failure> {
        let watch = Stopwatch::start();
        let flushed = loop {
            match self.producer.flush(SLICE) {
                Ok(()) => break Ok(()),
                // What else is in a transaction that has failed stays in the queue until it is aborted.
                Err(_) if self.mode == Mode::Transactional && self.producer.context().any_failed() => break Ok(()),
                Err(error) if watch.elapsed() > PATIENCE => break Err(error),
                Err(_) => {}
            }
        };
        let mut failed = self.producer.context().failed();
        if flushed.is_ok() && failed.is_empty() {
            return Ok(());
        }
        if self.mode == Mode::Transactional && !failed.is_empty() {
            // An echo may be heard before what it is the echo of. When this is over, everything has been reported.
            self.roll_back()?;
            failed = self.producer.context().failed();
        }
        let is_refused = |(number, code): &&(usize, RDKafkaErrorCode)| *number != CURSOR && is_refusal(*code);
        let refused: Vec<_> = failed.iter().filter(is_refused).copied().collect();
        let other = failed.iter().map(|(_, code)| *code).find(|code| !is_refusal(*code) && !is_echo(*code));
        match (flushed, refused.is_empty(), other) {
            // In mode idempotent, others that failed may be there or not.
            (_, false, Some(code)) if self.mode == Mode::Idempotent => Err(Failure::Lost(code.to_string())),
            (Ok(()), false, _) => Err(Failure::Refused(refused)),
            (Err(error), _, _) => Err(self.abort(&reason(&error))),
            (_, _, Some(code)) => Err(self.abort(&code.to_string())),
            (_, _, None) => {
                let code = failed.iter().map(|(_, code)| *code).find(|code| !is_echo(*code));
                match code {
                    Some(code) => Err(self.abort(&format!("the cursor was refused: {code}"))),
                    // librdkafka empties its queues some time after a transaction is given up, and may take what the next
                    // one has put there.
                    None if self.mode == Mode::Transactional && !std::mem::replace(&mut self.echoed, true) => {
                        Err(Failure::Refused(Vec::new()))
                    }
                    None => Err(self.abort("the transaction was given up")),
                }
            }
        }
    }

    fn roll_back(&mut self) -> Result<(), Failure> {
        if !std::mem::take(&mut self.open) || self.mode == Mode::Idempotent {
            return Ok(());
        }
        let watch = Stopwatch::start();
        while let Err(error) = self.producer.abort_transaction(CALL) {
            let again = matches!(&error, KafkaError::Transaction(error) if error.is_retriable());
            if !again || watch.elapsed() > PATIENCE {
                return Err(Failure::Lost(reason(&error)));
            }
        }
        Ok(())
    }
}

/// What other records of a failed transaction are reported with.
fn is_echo(code: RDKafkaErrorCode) -> bool {
    matches!(code, RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight)
}
