//! What can go wrong with popularity.

use crate::journal::JournalError;
use crate::redis::StoreError;

/// The room's one error.
#[derive(Debug, thiserror::Error)]
pub enum PopularityError {
    /// SQLite refused: disk full, locked, not ours to read.
    #[error("popularity store: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// The file was damaged and could not be put aside.
    #[error("popularity store: {0}")]
    Io(#[from] std::io::Error),
    /// The file holds what nothing writes.
    #[error("popularity store: {0}")]
    Damaged(&'static str),
    /// The journal cannot be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// What is shared cannot be brought to Redis or read there.
    #[error(transparent)]
    Shared(#[from] StoreError),
    /// A task was cut off: its thread panicked, or the runtime ends.
    #[error("the work on popularity was interrupted")]
    Interrupted,
}

impl PopularityError {
    /// Whether the file itself is at fault, so that another has to be made.
    pub(super) fn is_damage(&self) -> bool {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase, Unknown};
        match self {
            Self::Damaged(_) => true,
            Self::Sqlite(rusqlite::Error::SqliteFailure(failure, _)) => {
                // The last is a statement that fits no table: their names are torn.
                matches!(failure.code, DatabaseCorrupt | NotADatabase | Unknown)
            }
            // A column of another type or a table that is not there: nothing of ours looks so.
            Self::Sqlite(
                rusqlite::Error::InvalidColumnType(..)
                | rusqlite::Error::SqlInputError { .. }
                | rusqlite::Error::Utf8Error(..)
                | rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::IntegralValueOutOfRange(..)
                | rusqlite::Error::QueryReturnedNoRows,
            ) => true,
            _ => false,
        }
    }
}
