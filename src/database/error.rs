//! What can go wrong with a database. No message holds an address, a password or a value; each goes on from "the database".

use std::time::Duration;

/// The room's one error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseError {
    /// What must be there once is there already.
    #[error("has it already")]
    Exists,
    /// All connections are in use, and too many wait for one or one was waited for too long. Nothing was done.
    #[error("is busy: {0}")]
    Busy(&'static str),
    /// An answer took longer than `[catalog] query_timeout`.
    #[error("did not answer in time")]
    Deadline,
    /// Two changes met, and the database took neither or one. It may be tried again.
    #[error("was changed by another at the same time; please try again")]
    Serialization,
    /// The database cannot be reached, or went away. What was sent may have been done.
    #[error("{0}")]
    Unavailable(String),
    /// The database refuses us: a wrong password, a missing right, no such database.
    #[error("refuses us: {0}")]
    Refused(String),
    /// The database did not take a statement.
    #[error("did not take a statement: {0}")]
    Query(String),
    /// What is stored is not as we write it.
    #[error("holds something that cannot be read: {0}")]
    Corrupt(&'static str),
    /// The tables cannot be brought up to date.
    #[error("has tables that cannot be brought up to date: {0}")]
    Migration(String),
}

impl DatabaseError {
    /// When it may be tried again; `None` when that would not help.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy(_) | Self::Deadline | Self::Serialization => Some(Duration::from_secs(1)),
            Self::Unavailable(_) | Self::Refused(_) => Some(Duration::from_secs(5)),
            _ => None,
        }
    }

    /// Whether the connection may be in the middle of something, or be none any more.
    pub(super) fn spoils(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Deadline)
    }
}

/// A room's own error, in which one of the database may be.
pub trait Failure: From<DatabaseError> + Send + 'static {
    /// That of the database, if it is one.
    fn database(&self) -> Option<&DatabaseError>;
}

impl Failure for DatabaseError {
    fn database(&self) -> Option<&DatabaseError> {
        Some(self)
    }
}
