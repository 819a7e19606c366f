//! What can go wrong in the statistics.

/// The room's one error.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// The question cannot be answered; the message is for the one who asked.
    #[error("{0}")]
    BadQuery(String),
    /// The delta does not begin where the store ends: it must not be written.
    #[error("the store has counted up to {store}, so the entries {from}..{to} do not follow")]
    Fence {
        /// The store's cursor.
        store: u64,
        /// Where the delta begins.
        from: u64,
        /// Where it ends.
        to: u64,
    },
    /// SQLite refused: disk full, locked, damaged.
    #[error("statistics store: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// The store's tables could not be brought up to date.
    #[error("statistics store: {0}")]
    Migration(#[from] refinery::Error),
    /// A row holds what nothing writes.
    #[error("statistics store: {0}")]
    Corrupt(&'static str),
    /// A long read is in the way; to be tried again.
    #[error("statistics store: {0}")]
    Busy(&'static str),
    /// No connection to read with.
    #[error("statistics store: {0}")]
    Pool(String),
}

impl From<super::uniques::MalformedSet> for StatsError {
    fn from(_: super::uniques::MalformedSet) -> Self {
        Self::Corrupt("a set of visitors is malformed")
    }
}
