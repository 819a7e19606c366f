//! What can go wrong in the catalogue. No message holds an address, a password or a value of a product.

use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

use crate::database::{DatabaseError, Failure};

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
    /// The database cannot be used, or did not take it.
    #[error("the catalogue's database {0}")]
    Database(DatabaseError),
    /// What is stored is not as we write it.
    #[error("the catalogue holds something that cannot be read: {0}")]
    Corrupt(&'static str),
}

impl From<DatabaseError> for CatalogError {
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::Exists => Self::Exists,
            error => Self::Database(error),
        }
    }
}

impl Failure for CatalogError {
    fn database(&self) -> Option<&DatabaseError> {
        match self {
            Self::Database(error) => Some(error),
            _ => None,
        }
    }
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
        self.database().and_then(DatabaseError::retry_after)
    }
}
