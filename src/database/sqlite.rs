//! A SQLite file: one connection that writes, several that read, in WAL mode.
//!
//! SQLite works on the blocking pool and never waits for a future, so the shared code runs there to its end in one go. What
//! is given up is interrupted, as nothing else would stop it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use deadpool_sqlite::rusqlite::{self, Connection, ErrorCode, InterruptHandle, types::ValueRef};
use deadpool_sqlite::{Config, Hook, HookError, Manager, Object, Pool, Runtime};
use futures_util::FutureExt;
use parking_lot::Mutex;
use rust_decimal::prelude::ToPrimitive;
use tokio::runtime::Handle;

use super::gate::{Gate, PoolStats};
use super::meter::Meter;
use super::sql::{Dialect, Row, Session, Value};
use super::{DatabaseError, DatabaseOptions, HISTORY, SCALE, Work};
use crate::clock::UnixMillis;

mod embedded {
    refinery::embed_migrations!("migrations/sqlite/main");
}

/// How long another process may hold the file while tables are made.
const BUSY: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct SqliteStore {
    path: PathBuf,
    meter: Arc<Meter>,
    readers: Side,
    writer: Side,
    /// Where connections are closed, whoever drops them last.
    runtime: Option<Handle>,
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        // They end on the blocking pool, which a thread outside of a runtime has none of, and must not miss.
        let _entered = self.runtime.as_ref().map(Handle::enter);
        self.readers.pool.close();
        self.writer.pool.close();
    }
}

#[derive(Debug)]
struct Side {
    gate: Gate,
    pool: Pool,
}

/// A connection that goes back in its runtime's context, which it needs, also when that ends with it in the middle of something.
struct Held(Option<Object>, Handle);

impl Drop for Held {
    fn drop(&mut self) {
        let _entered = self.1.enter();
        drop(self.0.take());
    }
}

/// How to stop what a connection does now, while it does something for us.
#[derive(Clone, Default)]
struct Stop(Arc<Mutex<Option<InterruptHandle>>>);

impl Drop for Stop {
    fn drop(&mut self) {
        // The side that works drops its own only when it is done, and has emptied it.
        if let Some(handle) = &*self.0.lock() {
            handle.interrupt();
        }
    }
}

impl SqliteStore {
    pub fn new(path: &Path, options: &DatabaseOptions, meter: Arc<Meter>) -> Result<Self, DatabaseError> {
        // Waiting for another process cannot be interrupted, so it ends soon after nobody wants it any more.
        let busy = options.query_timeout + Duration::from_millis(500);
        let side = |name, size, write: bool| {
            let gate = Gate::new(name, size, options.pool_queue, options.pool_timeout);
            let prepare = Hook::async_fn(move |conn, _| {
                Box::pin(async move {
                    let prepared = conn.interact(move |conn| prepare(conn, write, busy)).await;
                    prepared.map_err(|_| HookError::message("it panicked"))?.map_err(HookError::Backend)
                })
            });
            let manager = Manager::from_config(&Config::new(path), Runtime::Tokio1);
            let pool = Pool::builder(manager).max_size(size).post_create(prepare).build();
            pool.map(|pool| Side { gate, pool })
                .map_err(|_| DatabaseError::Refused(String::from("no pool can be made")))
        };
        Ok(Self {
            path: path.to_owned(),
            meter,
            readers: side("read", options.pool_size, false)?,
            writer: side("write", 1, true)?,
            runtime: Handle::try_current().ok(),
        })
    }

    pub async fn migrate(&self) -> Result<Vec<String>, DatabaseError> {
        let path = self.path.clone();
        let migrated = tokio::task::spawn_blocking(move || migrate(&path)).await;
        migrated.map_err(|_| DatabaseError::Migration(String::from("it was interrupted")))?
    }

    pub async fn run<W: Work>(&self, work: &Arc<W>, now: UnixMillis) -> Result<W::Done, W::Error> {
        let side = if work.writes() { &self.writer } else { &self.readers };
        let permit = side.gate.enter().await?;
        let (pool, work, meter) = (side.pool.clone(), work.clone(), self.meter.clone());
        let stop = Stop::default();
        let theirs = stop.0.clone();
        // Whoever asks may go away; permit and connection stay with the work until it ends.
        let done = tokio::spawn(async move {
            let held = Held(Some(pool.get().await.map_err(pool_error)?), Handle::current());
            let Some(conn) = &held.0 else { return Err(DatabaseError::Corrupt("no connection").into()) };
            let done = conn
                .interact(move |conn| {
                    *theirs.lock() = Some(conn.get_interrupt_handle());
                    let mut session = SqliteSession { conn, meter: &meter };
                    let done = session.clean().map_err(W::Error::from).and_then(|()| {
                        let done = work.run(&mut session, now).now_or_never();
                        done.unwrap_or_else(|| Err(DatabaseError::Corrupt("a statement that waits").into()))
                    });
                    *theirs.lock() = None;
                    done
                })
                .await;
            drop(held);
            drop(permit);
            done.map_err(|_| DatabaseError::Query(String::from("it was interrupted")))?
        });
        let done = done.await.map_err(|_| DatabaseError::Query(String::from("it was interrupted")))?;
        drop(stop);
        done
    }

    pub fn pools(&self) -> Vec<PoolStats> {
        [&self.readers, &self.writer].map(|side| side.gate.stats(side.pool.status().size)).to_vec()
    }

    pub async fn close(&self) {
        for side in [&self.readers, &self.writer] {
            side.gate.close();
            side.pool.close();
        }
    }
}

fn prepare(conn: &mut Connection, write: bool, busy: Duration) -> Result<(), rusqlite::Error> {
    conn.busy_timeout(busy)?;
    conn.set_prepared_statement_cache_capacity(256);
    conn.pragma_update(None, "foreign_keys", true)?;
    conn.pragma_update(None, "synchronous", "NORMAL")?;
    conn.pragma_update(None, "query_only", !write)
}

fn migrate(path: &Path) -> Result<Vec<String>, DatabaseError> {
    let io = |error: std::io::Error| DatabaseError::Unavailable(format!("file cannot be opened: {}", error.kind()));
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(io)?;
    }
    // refinery looks first and applies then; two at once would both apply.
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let lock = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(name).map_err(io)?;
    lock.lock().map_err(io)?;
    let mut conn = Connection::open(path).map_err(error)?;
    conn.busy_timeout(BUSY).map_err(error)?;
    conn.pragma_update(None, "journal_mode", "WAL").map_err(error)?;
    let mut runner = embedded::migrations::runner();
    runner.set_migration_table_name(HISTORY);
    let report = runner.run(&mut conn).map_err(super::migration_error)?;
    Ok(report.applied_migrations().iter().map(ToString::to_string).collect())
}

struct SqliteSession<'a> {
    conn: &'a mut Connection,
    meter: &'a Meter,
}

impl SqliteSession<'_> {
    /// What was interrupted before may have left a transaction.
    fn clean(&mut self) -> Result<(), DatabaseError> {
        if self.conn.is_autocommit() { Ok(()) } else { self.conn.execute_batch("ROLLBACK").map_err(error) }
    }

    fn now(&mut self, sql: &str, values: Vec<Value>) -> Result<Vec<Row>, DatabaseError> {
        let _running = self.meter.run(sql);
        let mut statement = self.conn.prepare_cached(sql).map_err(error)?;
        for (at, value) in values.into_iter().enumerate() {
            let bound = match value {
                Value::Null => statement.raw_bind_parameter(at + 1, rusqlite::types::Null),
                Value::Int(n) => statement.raw_bind_parameter(at + 1, n),
                Value::Text(text) => statement.raw_bind_parameter(at + 1, text),
                Value::Decimal(mut decimal) => {
                    decimal.rescale(SCALE);
                    let n = decimal.mantissa().to_i64().ok_or(DatabaseError::Corrupt("a decimal is out of range"))?;
                    statement.raw_bind_parameter(at + 1, n)
                }
            };
            bound.map_err(error)?;
        }
        let width = statement.column_count();
        let mut found = Vec::new();
        let mut rows = statement.raw_query();
        while let Some(row) = rows.next().map_err(error)? {
            let mut values = Vec::with_capacity(width);
            for at in 0..width {
                values.push(match row.get_ref(at).map_err(error)? {
                    ValueRef::Null => Value::Null,
                    ValueRef::Integer(n) => Value::Int(n),
                    ValueRef::Text(text) => Value::Text(String::from_utf8_lossy(text).into_owned()),
                    ValueRef::Real(_) | ValueRef::Blob(_) => return Err(DatabaseError::Corrupt("a column's type")),
                });
            }
            found.push(Row(values));
        }
        Ok(found)
    }

    fn plain(&mut self, sql: &str) -> std::future::Ready<Result<(), DatabaseError>> {
        std::future::ready(self.now(sql, Vec::new()).map(drop))
    }
}

impl Session for SqliteSession<'_> {
    const DIALECT: Dialect = Dialect::Sqlite;

    fn rows<'a>(
        &'a mut self,
        sql: &'a str,
        values: Vec<Value>,
    ) -> impl Future<Output = Result<Vec<Row>, DatabaseError>> + Send + 'a {
        std::future::ready(self.now(sql, values))
    }

    fn begin(&mut self) -> impl Future<Output = Result<(), DatabaseError>> + Send {
        self.plain("BEGIN IMMEDIATE")
    }

    fn commit(&mut self) -> impl Future<Output = Result<(), DatabaseError>> + Send {
        self.plain("COMMIT")
    }

    fn rollback(&mut self) -> impl Future<Output = Result<(), DatabaseError>> + Send {
        // Some errors have taken it back already.
        std::future::ready(self.clean())
    }
}

fn pool_error(error: deadpool_sqlite::PoolError) -> DatabaseError {
    match error {
        deadpool_sqlite::PoolError::Backend(inner) => self::error(inner),
        deadpool_sqlite::PoolError::PostCreateHook(HookError::Backend(inner)) => self::error(inner),
        _ => DatabaseError::Unavailable(String::from("is closed")),
    }
}

/// SQLite's own text may hold values and paths.
fn error(error: rusqlite::Error) -> DatabaseError {
    let rusqlite::Error::SqliteFailure(failure, _) = &error else {
        return DatabaseError::Query(String::from("SQLite could not use it"));
    };
    match failure.code {
        ErrorCode::OperationInterrupted => DatabaseError::Deadline,
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => DatabaseError::Busy("another process holds the file"),
        ErrorCode::ConstraintViolation => match failure.extended_code {
            rusqlite::ffi::SQLITE_CONSTRAINT_UNIQUE | rusqlite::ffi::SQLITE_CONSTRAINT_PRIMARYKEY => {
                DatabaseError::Exists
            }
            code => DatabaseError::Query(format!("a constraint is violated (SQLite {code})")),
        },
        ErrorCode::CannotOpen | ErrorCode::SystemIoFailure | ErrorCode::PermissionDenied => {
            DatabaseError::Unavailable(format!("file cannot be used (SQLite {})", failure.extended_code))
        }
        ErrorCode::DiskFull => DatabaseError::Unavailable(String::from("file cannot grow: the disk is full")),
        ErrorCode::NotADatabase => DatabaseError::Refused(String::from("the file is no SQLite database")),
        _ => DatabaseError::Query(format!("SQLite {}", failure.extended_code)),
    }
}
