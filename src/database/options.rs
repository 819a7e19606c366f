//! What `[catalog]` says, checked.

use std::path::PathBuf;
use std::time::Duration;

/// Which database, and where. Addresses and passwords are never shown.
#[derive(Clone)]
pub enum Address {
    /// A file.
    Sqlite(PathBuf),
    /// PostgreSQL.
    Postgres(Box<tokio_postgres::Config>),
    /// MySQL or MariaDB.
    MySql(Box<mysql_async::Opts>),
}

impl Address {
    /// Its name, for people.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "SQLite",
            Self::Postgres(_) => "PostgreSQL",
            Self::MySql(_) => "MySQL",
        }
    }
}

impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// How the database is used.
#[derive(Clone, Debug)]
pub struct DatabaseOptions {
    /// Where.
    pub address: Address,
    /// Certificates of the authorities that are trusted, PEM; `None` trusts those of the system.
    pub ca: Option<Vec<u8>>,
    /// Connections; of SQLite, those that read.
    pub pool_size: usize,
    /// Requests that may wait for one; further ones are refused at once.
    pub pool_queue: usize,
    /// How long one may wait for a connection.
    pub pool_timeout: Duration,
    /// How long a request may take in all, waiting included.
    pub query_timeout: Duration,
    /// Statements that take longer are told of in the log.
    pub slow_query: Duration,
}

impl DatabaseOptions {
    /// The defaults, on a SQLite file.
    pub fn sqlite(path: PathBuf) -> Self {
        Self {
            address: Address::Sqlite(path),
            ca: None,
            pool_size: 8,
            pool_queue: 1000,
            pool_timeout: Duration::from_secs(1),
            query_timeout: Duration::from_secs(5),
            slow_query: Duration::from_millis(200),
        }
    }
}

impl Default for DatabaseOptions {
    fn default() -> Self {
        Self::sqlite(PathBuf::from("data/catalog.db"))
    }
}
