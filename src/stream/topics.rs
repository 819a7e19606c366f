//! The topics: their names, how they are kept, and the command that creates one where Tidegate may not.

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::producer::{Producer, ThreadedProducer};

use super::client::{Quiet, Reports};
use super::error::reason;
use super::{StreamError, StreamOptions};
use crate::clock::UnixMillis;

/// The topics of one prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topics {
    /// Every event.
    pub events: String,
    /// Every revision of every aggregate.
    pub updates: String,
    /// The last revision of every aggregate; compacted.
    pub latest: String,
    /// What was refused.
    pub dead_letter: String,
    /// How far each journal is delivered; compacted, one partition.
    pub cursors: String,
}

impl Topics {
    /// Those of a prefix.
    pub fn new(prefix: &str) -> Self {
        Self {
            events: format!("{prefix}.events.v1"),
            updates: format!("{prefix}.aggregates.v1.updates"),
            latest: format!("{prefix}.aggregates.v1.latest"),
            dead_letter: format!("{prefix}.dead-letter.v1"),
            cursors: format!("{prefix}.cursors"),
        }
    }

    /// The topic that a person means: a short name, or its own.
    pub fn named<'a>(&'a self, name: &'a str) -> &'a str {
        match name {
            "events" => &self.events,
            "updates" => &self.updates,
            "latest" => &self.latest,
            "dead-letter" => &self.dead_letter,
            "cursors" => &self.cursors,
            own => own,
        }
    }
}

/// How a topic is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Its name.
    pub name: String,
    /// How many.
    pub partitions: u32,
    /// How many copies.
    pub replicas: u32,
    /// Its settings.
    pub config: Vec<(&'static str, String)>,
}

impl Spec {
    /// All of them, for these options.
    pub fn all(options: &StreamOptions) -> Vec<Spec> {
        let topics = Topics::new(&options.topic_prefix);
        let spec =
            |name: String, partitions, config| Spec { name, partitions, replicas: options.replication_factor, config };
        let kept = |retention: Option<UnixMillis>| {
            vec![
                ("cleanup.policy", String::from("delete")),
                ("retention.ms", retention.map_or_else(|| String::from("-1"), |ms| ms.to_string())),
                // Batches as large as the producer makes them, with their own overhead.
                ("max.message.bytes", (options.max_message_bytes + 1024).to_string()),
            ]
        };
        let compacted = |segment: &str| {
            vec![
                ("cleanup.policy", String::from("compact")),
                // What is overwritten goes soon, so that whoever joins reads little; tombstones can be seen for a day.
                ("min.cleanable.dirty.ratio", String::from("0.2")),
                ("segment.ms", segment.to_owned()),
                ("delete.retention.ms", String::from("86400000")),
                ("max.message.bytes", (options.max_message_bytes + 1024).to_string()),
            ]
        };
        let mut cursors = compacted("3600000");
        cursors.push(("segment.bytes", String::from("16777216")));
        // Books of many sites take their place.
        cursors.retain(|(key, _)| *key != "max.message.bytes");
        cursors.push(("max.message.bytes", (options.max_message_bytes.max(1_000_000) + 1024).to_string()));
        vec![
            spec(topics.events, options.partitions, kept(options.events_retention)),
            spec(topics.updates, options.partitions, kept(options.updates_retention)),
            spec(topics.latest, options.partitions, compacted("3600000")),
            spec(topics.dead_letter, 1, kept(options.events_retention)),
            spec(topics.cursors, 1, cursors),
        ]
    }

    /// The command that creates it.
    pub fn command(&self) -> String {
        let config: String = self.config.iter().map(|(key, value)| format!(" --config {key}={value}")).collect();
        format!(
            "kafka-topics.sh --bootstrap-server BROKER --create --topic {} --partitions {} --replication-factor {}{config}",
            self.name, self.partitions, self.replicas
        )
    }
}

/// How long one call may take.
const CALL: std::time::Duration = std::time::Duration::from_secs(5);

/// The topics that are not there. Blocks.
pub fn missing(options: &StreamOptions, producer: &ThreadedProducer<Reports>) -> Result<Vec<Spec>, StreamError> {
    const WHAT: &str = "the topics cannot be listed";
    // The list of all topics: to ask for one by name can create it, as the broker likes.
    let listed = producer.client().fetch_metadata(None, CALL).map_err(|error| {
        producer.context().trouble.take().map_or_else(
            || StreamError::broker(WHAT, &error),
            |why| StreamError::Broker { what: WHAT, why: String::from(why) },
        )
    })?;
    // What went wrong on the way here is over.
    producer.context().trouble.take();
    let mut missing = Spec::all(options);
    missing.retain(|spec| !listed.topics().iter().any(|topic| topic.name() == spec.name));
    Ok(missing)
}

/// Makes sure that all topics are there; true when some were not.
///
/// # Errors
/// [`StreamError::Topics`] with the commands when some are missing and are not to be, or cannot be, created here.
pub async fn ensure(options: &StreamOptions, producer: &ThreadedProducer<Reports>) -> Result<bool, StreamError> {
    let missing = missing(options, producer)?;
    if missing.is_empty() {
        return Ok(false);
    }
    let mut refused = Vec::new();
    if options.create_topics {
        let config = options.consumer(true);
        let admin: AdminClient<Quiet> = AdminClient::from_config_and_context(&config, Quiet::default())
            .map_err(|error| StreamError::broker("no admin client", &error))?;
        let new: Vec<NewTopic<'_>> = missing.iter().map(new_topic).collect();
        let how = AdminOptions::new().request_timeout(Some(CALL)).operation_timeout(Some(CALL));
        match admin.create_topics(&new, &how).await {
            Ok(results) => {
                for (spec, result) in missing.iter().zip(results) {
                    match result {
                        Ok(_) => log::info!("the topic {} has been created", spec.name),
                        Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                        Err((_, code)) => refused.push((spec, code.to_string())),
                    }
                }
            }
            // A broker that lets clients list topics but not create them may simply not answer.
            Err(error) => refused.extend(missing.iter().map(|spec| (spec, reason(&error)))),
        }
    } else {
        refused.extend(missing.iter().map(|spec| (spec, String::from("stream.create_topics is false"))));
    }
    let Some((_, why)) = refused.first() else { return Ok(true) };
    let names: Vec<&str> = refused.iter().map(|(spec, _)| spec.name.as_str()).collect();
    let commands: Vec<String> = refused.iter().map(|(spec, _)| spec.command()).collect();
    Err(StreamError::Topics(format!(
        "these topics are missing and were not created ({why}): {}. Create them with: {}",
        names.join(", "),
        commands.join("; ")
    )))
}

fn new_topic(spec: &Spec) -> NewTopic<'_> {
    let replicas = i32::try_from(spec.replicas).unwrap_or(1);
    let partitions = i32::try_from(spec.partitions).unwrap_or(1);
    let topic = NewTopic::new(&spec.name, partitions, TopicReplication::Fixed(replicas));
    spec.config.iter().fold(topic, |topic, (key, value)| topic.set(key, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_says_everything_that_creation_would() {
        let options = StreamOptions { topic_prefix: "shop".into(), partitions: 3, ..StreamOptions::default() };
        let specs = Spec::all(&options);
        assert_eq!(specs.len(), 5);
        let command = specs[2].command();
        assert!(
            command
                .starts_with("kafka-topics.sh --bootstrap-server BROKER --create --topic shop.aggregates.v1.latest ")
        );
        assert!(command.contains("--partitions 3 --replication-factor 1"), "{command}");
        assert!(command.contains("--config cleanup.policy=compact"), "{command}");
        assert_eq!(specs[4].partitions, 1, "a cursor has one place");
    }
}
