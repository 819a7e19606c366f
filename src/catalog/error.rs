//! What can go wrong in the catalogue. No message holds an address, a password or a value of a product.

use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

/// One field that cannot be taken, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldError {
    /// Its name, like `price` or `images[2].url`.
    pub field: String,
    /// What is wrong with it and what is allowed.
    pub message: String,
}

/// The room's one error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    /// There is no such product.
    #[error("there is no such product")]
    NotFound,
    /// A product of this id is there already.
    #[error("a product with this id is there already")]
    Exists,
    /// The product is not at the version that was expected.
    #[error("the product has changed: it is at version {current}")]
    Conflict {
        /// The version that it is at.
        current: u64,
    },
    /// Fields that cannot be taken; all of them.
    #[error("{}", .0.iter().map(|bad| format!("{}: {}", bad.field, bad.message)).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<FieldError>),
    /// All connections are in use, and too many wait for one or one was waited for too long. Nothing was done.
    #[error("the catalogue's database is busy: {0}")]
    Busy(&'static str),
    /// An answer took longer than `[catalog] query_timeout`.
    #[error("the catalogue's database did not answer in time")]
    Deadline,
    /// Two changes met, and the database took neither or one. It may be tried again.
    #[error("another change came between; please try again")]
    Serialization,
    /// The database cannot be reached, or went away. What was sent may have been done.
    #[error("the catalogue's database {0}")]
    Unavailable(String),
    /// The database refuses us: a wrong password, a missing right, no such database.
    #[error("the catalogue's database refuses us: {0}")]
    Refused(String),
    /// The database did not take a statement.
    #[error("the catalogue's database did not take a statement: {0}")]
    Query(String),
    /// What is stored is not as we write it.
    #[error("the catalogue holds something that cannot be read: {0}")]
    Corrupt(&'static str),
    /// The tables cannot be brought up to date.
    #[error("the catalogue's tables cannot be brought up to date: {0}")]
    Migration(String),
}

impl CatalogError {
    /// One field that is wrong.
    pub fn field(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid(vec![FieldError { field: field.into(), message: message.into() }])
    }

    /// Whether the same may go well a little later: over HTTP that is 503 with `Retry-After`.
    pub fn is_passing(&self) -> bool {
        self.retry_after().is_some()
    }

    /// When it may be tried again; `None` when that would not help.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy(_) | Self::Deadline | Self::Serialization => Some(Duration::from_secs(1)),
            Self::Unavailable(_) | Self::Refused(_) => Some(Duration::from_secs(5)),
            _ => None,
        }
    }
}
