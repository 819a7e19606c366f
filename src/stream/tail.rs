//! Following a topic for a person: committed records, as they come. Blocks.

use std::time::Duration;

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, Message};
use rdkafka::{Offset, TopicPartitionList};

use super::client::Quiet;
use super::{StreamError, StreamOptions};

/// How long the broker may take to tell of the topic.
const PATIENCE: Duration = Duration::from_secs(10);

/// A record as it lies in Kafka.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Where.
    pub partition: i32,
    /// Where in it.
    pub offset: i64,
    /// Unix milliseconds.
    pub timestamp: Option<i64>,
    /// Its key as text.
    pub key: Option<String>,
    /// Its value as text; `None` is a tombstone.
    pub value: Option<String>,
    /// Its headers as text.
    pub headers: Vec<(String, String)>,
}

/// A place in a topic that moves on.
pub struct Tail {
    consumer: BaseConsumer<Quiet>,
}

impl Tail {
    /// From the end of a topic on, or from its beginning.
    ///
    /// # Errors
    /// When no broker answers within 10 s, or there is no such topic.
    pub fn open(options: &StreamOptions, topic: &str, from_beginning: bool) -> Result<Self, StreamError> {
        let failed = |what, error: KafkaError| StreamError::broker(what, &error);
        let consumer: BaseConsumer<Quiet> =
            BaseConsumer::from_config_and_context(&options.consumer(true), Quiet::default())
                .map_err(|error| failed("no consumer", error))?;
        let listed = consumer.fetch_metadata(None, PATIENCE).map_err(|error| {
            // What librdkafka has to say beside waits in its queue.
            for _ in 0..16 {
                drop(consumer.poll(Duration::ZERO));
            }
            let what = "the brokers of stream.brokers do not answer";
            let trouble = consumer.context().trouble.take();
            trouble.map_or_else(|| failed(what, error), |why| StreamError::Broker { what, why: String::from(why) })
        })?;
        let Some(found) = listed.topics().iter().find(|found| found.name() == topic) else {
            return Err(StreamError::Topics(format!(
                "there is no topic {topic}; a running server with [stream] brokers creates its own, with the prefix `{}`",
                options.topic_prefix
            )));
        };
        let mut places = TopicPartitionList::new();
        let from = if from_beginning { Offset::Beginning } else { Offset::End };
        for partition in found.partitions() {
            places.add_partition_offset(topic, partition.id(), from).map_err(|error| failed("no place", error))?;
        }
        consumer.assign(&places).map_err(|error| failed("the topic cannot be read", error))?;
        Ok(Self { consumer })
    }

    /// The next record, if one comes within a moment.
    ///
    /// # Errors
    /// When the topic cannot be read any more; a broker that is away for a while is none.
    pub fn next(&self, wait: Duration) -> Result<Option<Taken>, StreamError> {
        let message = match self.consumer.poll(wait) {
            None | Some(Err(KafkaError::PartitionEOF(_))) => return Ok(None),
            Some(Err(error @ KafkaError::MessageConsumptionFatal(_))) => {
                return Err(StreamError::broker("the topic cannot be read", &error));
            }
            Some(Err(_)) => return Ok(None),
            Some(Ok(message)) => message,
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let headers = message.headers().map_or_else(Vec::new, |headers| {
            headers.iter().map(|h| (h.key.to_owned(), text(h.value.unwrap_or_default()))).collect()
        });
        Ok(Some(Taken {
            partition: message.partition(),
            offset: message.offset(),
            timestamp: message.timestamp().to_millis(),
            key: message.key().map(text),
            value: message.payload().map(text),
            headers,
        }))
    }
}
