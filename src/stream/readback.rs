//! Reading back what is in Kafka: the cursor, and in mode idempotent what was delivered after it. Blocks.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};

use super::client::Quiet;
use super::outgoing::{JOURNAL, OFFSET};
use super::{StreamError, StreamOptions, Topics};
use crate::clock::Stopwatch;

/// How long one call may block.
const CALL: Duration = Duration::from_secs(5);
/// How long another writer's open transaction may hide what lies after its start. Longer than a transaction may be open.
const HIDDEN: Duration = Duration::from_secs(40);
/// How long reading may stand still.
const STALL: Duration = Duration::from_secs(20);
/// A cursor is looked for among so many of the latest records first.
const TAIL: i64 = 2_000;

fn consumer(options: &StreamOptions, committed_only: bool) -> Result<BaseConsumer<Quiet>, StreamError> {
    BaseConsumer::from_config_and_context(&options.consumer(committed_only), Quiet::default())
        .map_err(|error| StreamError::broker("no consumer", &error))
}

/// Opens a consumer of committed records that stands where it can see all that was written before now. The end of the
/// partition comes with it, and where the partition begins.
fn at_end(
    options: &StreamOptions,
    topic: &str,
    partition: i32,
) -> Result<(BaseConsumer<Quiet>, i64, i64), StreamError> {
    let failed = |error: KafkaError| StreamError::broker("the cursors cannot be read", &error);
    let (low, high) = consumer(options, false)?.fetch_watermarks(topic, partition, CALL).map_err(failed)?;
    let committed = consumer(options, true)?;
    let watch = Stopwatch::start();
    loop {
        // Of a client that wants committed records only, this is the end of what it can see.
        let (_, visible) = committed.fetch_watermarks(topic, partition, CALL).map_err(failed)?;
        if visible >= high {
            return Ok((committed, low, visible));
        }
        if watch.elapsed() > HIDDEN {
            return Err(StreamError::Cursor(String::from("another writer's transaction stays open")));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Hands over the records of a partition from `from` to the end as it was when this began.
fn scan(
    consumer: &BaseConsumer<Quiet>,
    topic: &str,
    partition: i32,
    from: i64,
    mut each: impl FnMut(&BorrowedMessage<'_>),
) -> Result<(), StreamError> {
    let failed = |error: KafkaError| StreamError::broker("the cursors cannot be read", &error);
    let mut place = TopicPartitionList::new();
    place.add_partition_offset(topic, partition, Offset::Offset(from)).map_err(failed)?;
    consumer.assign(&place).map_err(failed)?;
    let mut still = Stopwatch::start();
    loop {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                each(&message);
                still = Stopwatch::start();
            }
            // Whoever reads committed records is told so after the last of them, markers of transactions included: to
            // count messages up to an offset would wait for ever for one that is no message.
            Some(Err(KafkaError::PartitionEOF(_))) => return Ok(()),
            Some(Err(error)) if still.elapsed() > STALL => return Err(failed(error)),
            None if still.elapsed() > STALL => return Err(StreamError::Cursor(String::from("no answer in time"))),
            Some(Err(_)) | None => {}
        }
    }
}

/// The last committed value of a key in the topic of cursors.
pub fn last_value(options: &StreamOptions, topics: &Topics, key: &str) -> Result<Option<Vec<u8>>, StreamError> {
    let (consumer, low, end) = at_end(options, &topics.cursors, 0)?;
    if low >= end {
        return Ok(None);
    }
    let mut from = (end - TAIL).max(low);
    loop {
        let mut found = None;
        scan(&consumer, &topics.cursors, 0, from, |message| {
            if message.key() == Some(key.as_bytes()) {
                found = Some(message.payload().map(<[u8]>::to_vec));
            }
        })?;
        match found {
            // A value of nothing is a deleted cursor.
            Some(value) => return Ok(value),
            None if from <= low => return Ok(None),
            None => from = low,
        }
    }
}

/// The ends of all partitions of the topic of events.
pub fn ends(options: &StreamOptions, topics: &Topics) -> Result<BTreeMap<i32, i64>, StreamError> {
    let failed = |error: KafkaError| StreamError::broker("the topic of events cannot be read", &error);
    let consumer = consumer(options, true)?;
    let metadata = consumer.fetch_metadata(Some(&topics.events), CALL).map_err(failed)?;
    let partitions = metadata.topics().first().map_or(&[][..], |topic| topic.partitions());
    let mut ends = BTreeMap::new();
    for partition in partitions {
        let (_, end) = consumer.fetch_watermarks(&topics.events, partition.id(), CALL).map_err(failed)?;
        ends.insert(partition.id(), end);
    }
    Ok(ends)
}

/// Which entries of a journal from `next` on are in the topic of events already, looked for behind `known` ends.
pub fn delivered(
    options: &StreamOptions,
    topics: &Topics,
    journal: &str,
    next: u64,
    known: &BTreeMap<i32, i64>,
) -> Result<HashSet<u64>, StreamError> {
    let mut found = HashSet::new();
    for (partition, end) in ends(options, topics)? {
        let from = known.get(&partition).copied().unwrap_or(0);
        if from >= end {
            continue;
        }
        let (consumer, low, _) = at_end(options, &topics.events, partition)?;
        scan(&consumer, &topics.events, partition, from.max(low), |message| {
            let Some(headers) = message.headers() else { return };
            let header = |name: &str| headers.iter().find(|header| header.key == name).and_then(|header| header.value);
            if header(JOURNAL) != Some(journal.as_bytes()) {
                return;
            }
            let offset = header(OFFSET).and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
            found.extend(offset.filter(|offset: &u64| *offset >= next));
        })?;
    }
    Ok(found)
}

/// The keys of a compacted topic that have a value and that `wanted` asks for.
pub fn live_keys(
    options: &StreamOptions,
    topic: &str,
    wanted: impl Fn(&str) -> bool,
) -> Result<HashSet<String>, StreamError> {
    let failed = |error: KafkaError| StreamError::broker("a topic cannot be read", &error);
    let mut live = HashSet::new();
    let metadata = consumer(options, true)?.fetch_metadata(Some(topic), CALL).map_err(failed)?;
    for partition in metadata.topics().first().map_or(&[][..], |topic| topic.partitions()) {
        let (consumer, low, end) = at_end(options, topic, partition.id())?;
        if low >= end {
            continue;
        }
        scan(&consumer, topic, partition.id(), low, |message| {
            let Some(key) = message.key().and_then(|key| std::str::from_utf8(key).ok()) else { return };
            if message.payload().is_none() {
                live.remove(key);
            } else if wanted(key) {
                live.insert(key.to_owned());
            }
        })?;
    }
    Ok(live)
}
