//! What can go wrong in the stream.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::journal::JournalError;
use crate::stats::StatsError;

/// The room's one error.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// A setting that librdkafka does not take; the message names its key and never its value.
    #[error("{0}")]
    Setting(String),
    /// Topics that are missing and may not be created here; the message has the commands that create them.
    #[error("{0}")]
    Topics(String),
    /// The broker, or the way to it.
    #[error("{what}: {why}")]
    Broker {
        /// What was tried.
        what: &'static str,
        /// The error's name and description, without addresses.
        why: String,
    },
    /// A record of ours that is not as we write them.
    #[error("the cursor in Kafka cannot be read: {0}")]
    Cursor(String),
    /// The journal cannot be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The statistics cannot be read.
    #[error(transparent)]
    Stats(#[from] StatsError),
    /// The process stops.
    #[error("the work was interrupted")]
    Interrupted,
}

impl StreamError {
    /// An error of the client while it did `what`.
    pub fn broker(what: &'static str, error: &KafkaError) -> Self {
        Self::Broker { what, why: reason(error) }
    }
}

/// The error in words that hold neither addresses nor settings: librdkafka's own text can have both.
pub fn reason(error: &KafkaError) -> String {
    match error {
        KafkaError::ClientConfig(_, _, key, _) => format!("the setting {key} is not taken"),
        KafkaError::Transaction(error) => error.code().to_string(),
        other => match other.rdkafka_error_code() {
            Some(RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::AllBrokersDown) => {
                String::from("no broker can be reached")
            }
            Some(code) => code.to_string(),
            None => match other {
                KafkaError::Subscription(why) => why.clone(),
                other => format!("{other:?}").split(['(', ' ']).next().unwrap_or_default().to_owned(),
            },
        },
    }
}
