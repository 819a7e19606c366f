//! The database that the catalogue and the accounts are in: one way to ask, and three that answer.
//!
//! What is asked is a [`Work`], written once for a [`Session`]; a database is what makes sessions: SQLite by default,
//! PostgreSQL, or MySQL and MariaDB. A request takes a permit of the gate, then a connection, and has one deadline for all
//! of it. A connection that was left in the middle of something is thrown away.

mod error;
mod gate;
mod meter;
mod mysql;
mod options;
mod postgres;
mod sql;
mod sqlite;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;

pub use error::{DatabaseError, Failure};
pub use gate::PoolStats;
pub use meter::QueryStats;
pub use options::{Address, DatabaseOptions};
pub use sql::{Dialect, Row, SCALE, Session, Sql, Value, end, insert, list};

use crate::clock::{Clock, UnixMillis};
use meter::Meter;
use mysql::MySqlStore;
use postgres::PostgresStore;
use sqlite::SqliteStore;

/// How often a change is tried when others come between.
const TRIES: u32 = 5;
/// Table of the migrations that were applied. Others may use refinery in the same database.
const HISTORY: &str = "tidegate_schema_history";
/// How long to wait before the tables are tried again, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// One request: what it does on a session, whichever database that is of.
pub trait Work: Send + Sync + 'static {
    /// Its answer.
    type Done: Send + 'static;
    /// What may go wrong with it.
    type Error: Failure;

    /// Whether it changes anything. What only reads is asked again when a connection turns out to be dead.
    fn writes(&self) -> bool;

    /// Time that it has in any case; in all, it has this or `[catalog] query_timeout`, whichever is longer.
    fn at_least(&self) -> Duration {
        Duration::ZERO
    }

    /// Does it. It may be run again if it fails with [`DatabaseError::Serialization`].
    fn run<S: Session>(
        &self,
        s: &mut S,
        now: UnixMillis,
    ) -> impl Future<Output = Result<Self::Done, Self::Error>> + Send;
}

/// The database. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Database {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    adapter: Adapter,
    meter: Arc<Meter>,
    clock: Clock,
    timeout: Duration,
    /// Connections that may all have died with the database.
    pool_size: u32,
    /// Whether the tables are up to date.
    ready: watch::Sender<bool>,
    preparing: AtomicBool,
}

#[derive(Debug)]
enum Adapter {
    Sqlite(SqliteStore),
    Postgres(PostgresStore),
    MySql(MySqlStore),
}

impl Database {
    /// What the options name. Nothing is connected yet, so that a server starts while its database is down.
    ///
    /// # Errors
    /// When no client can be made of the options, as with a `ca_file` that holds no certificate.
    pub fn new(options: &DatabaseOptions, clock: Clock) -> Result<Self, DatabaseError> {
        let meter = Meter::new(options.slow_query);
        let adapter = match &options.address {
            Address::Sqlite(path) => Adapter::Sqlite(SqliteStore::new(path, options, meter.clone())?),
            Address::Postgres(to) => Adapter::Postgres(PostgresStore::new(to, options, meter.clone())?),
            Address::MySql(to) => Adapter::MySql(MySqlStore::new(to, options, meter.clone())?),
        };
        let inner = Inner {
            adapter,
            meter,
            clock,
            timeout: options.query_timeout,
            pool_size: u32::try_from(options.pool_size).unwrap_or(u32::MAX),
            ready: watch::Sender::new(false),
            preparing: AtomicBool::new(false),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Brings the tables up to date, alone among all who start at once; the names of what was applied.
    ///
    /// # Errors
    /// When the database cannot be reached, or holds tables that a later version made.
    pub async fn migrate(&self) -> Result<Vec<String>, DatabaseError> {
        self.inner.migrate().await
    }

    /// Begins to bring the tables up to date, again and again until the database lets it; once, whoever asks for it. Must be
    /// called within a runtime.
    pub fn prepare(&self) {
        if self.inner.preparing.swap(true, Ordering::SeqCst) {
            return;
        }
        let weak = Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            let mut wait = RETRY.0;
            loop {
                let Some(inner) = weak.upgrade() else { return };
                match inner.migrate().await {
                    Ok(applied) => {
                        if !applied.is_empty() {
                            log::info!("database: {} migrations applied to {}", applied.len(), inner.name());
                        }
                        inner.ready.send_replace(true);
                        return;
                    }
                    Err(error) => log::warn!("database: it {error}; it is tried again in {} ms", wait.as_millis()),
                }
                drop(inner);
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(RETRY.1);
            }
        });
    }

    /// Whether the tables are up to date, as far as [`Database::prepare`] knows.
    pub fn is_ready(&self) -> bool {
        *self.inner.ready.borrow()
    }

    /// Waits until they are, at most so long; whether they are.
    pub async fn ready(&self, limit: Duration) -> bool {
        let mut ready = self.inner.ready.subscribe();
        tokio::time::timeout(limit, ready.wait_for(|ready| *ready)).await.is_ok_and(|ready| ready.is_ok())
    }

    /// Does a work, within its deadline.
    ///
    /// # Errors
    /// Those of the work; and when the database is busy, slow or away.
    pub async fn run<W: Work>(&self, work: W) -> Result<W::Done, W::Error> {
        let deadline = work.at_least().max(self.inner.timeout);
        let work = Arc::new(work);
        let late = || Err(DatabaseError::Deadline.into());
        tokio::time::timeout(deadline, self.inner.tries(&work)).await.unwrap_or_else(|_| late())
    }

    /// How the pools are: one, or SQLite's two.
    pub fn pools(&self) -> Vec<PoolStats> {
        match &self.inner.adapter {
            Adapter::Sqlite(store) => store.pools(),
            Adapter::Postgres(store) => store.pools(),
            Adapter::MySql(store) => store.pools(),
        }
    }

    /// What the statements were.
    pub fn queries(&self) -> QueryStats {
        self.inner.meter.stats()
    }

    /// Which database it is, for people.
    pub fn name(&self) -> &'static str {
        self.inner.name()
    }

    /// Closes all connections; what runs still ends.
    pub async fn close(&self) {
        match &self.inner.adapter {
            Adapter::Sqlite(store) => store.close().await,
            Adapter::Postgres(store) => store.close().await,
            Adapter::MySql(store) => store.close().await,
        }
    }
}

impl Inner {
    async fn migrate(&self) -> Result<Vec<String>, DatabaseError> {
        match &self.adapter {
            Adapter::Sqlite(store) => store.migrate().await,
            Adapter::Postgres(store) => store.migrate().await,
            Adapter::MySql(store) => store.migrate().await,
        }
    }

    fn name(&self) -> &'static str {
        match &self.adapter {
            Adapter::Sqlite(_) => "SQLite",
            Adapter::Postgres(_) => "PostgreSQL",
            Adapter::MySql(_) => "MySQL",
        }
    }

    async fn tries<W: Work>(&self, work: &Arc<W>) -> Result<W::Done, W::Error> {
        let mut tries = 0;
        loop {
            tries += 1;
            let now = self.clock.now();
            let done = match &self.adapter {
                Adapter::Sqlite(store) => store.run(work, now).await,
                Adapter::Postgres(store) => store.run(work, now).await,
                Adapter::MySql(store) => store.run(work, now).await,
            };
            let Err(error) = done else { return done };
            match error.database() {
                // It was taken back whole.
                Some(DatabaseError::Serialization) if tries < TRIES => {
                    tokio::time::sleep(Duration::from_millis(5 << tries)).await;
                }
                // After a restart of the database each connection of the pool may be dead. What only reads may ask the next.
                Some(DatabaseError::Unavailable(why)) if !work.writes() && tries <= self.pool_size => {
                    log::debug!("database: a connection was lost: it {why}");
                    if tries > 1 {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                }
                _ => return Err(error),
            }
        }
    }
}

/// refinery's own text may hold a statement, which is ours, but also what the database says of it.
fn migration_error(error: refinery::Error) -> DatabaseError {
    DatabaseError::Migration(match error.kind() {
        refinery::error::Kind::Connection(what, _) => what.clone(),
        other => other.to_string(),
    })
}
