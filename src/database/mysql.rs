//! MySQL or MariaDB.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Opts, OptsBuilder, Params, Pool, PoolConstraints, PoolOpts, SslOpts};
use tokio::sync::OwnedSemaphorePermit;

use super::gate::{Gate, PoolStats};
use super::meter::Meter;
use super::sql::{Dialect, Row, Session, Value};
use super::{DatabaseError, DatabaseOptions, Failure, HISTORY, Work};
use crate::clock::UnixMillis;

mod embedded {
    refinery::embed_migrations!("migrations/mysql");
}

/// Seconds that one who starts waits for another's migrations.
const LOCK_SECONDS: u32 = 600;
/// For a connection that is thrown away to say so.
const GOODBYE: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(super) struct MySqlStore {
    gate: Gate,
    pool: Pool,
    meter: Arc<Meter>,
    opts: Opts,
    /// Connections of the pool that may have died with the server.
    suspects: AtomicUsize,
    size: usize,
}

impl MySqlStore {
    pub fn new(to: &Opts, options: &DatabaseOptions, meter: Arc<Meter>) -> Result<Self, DatabaseError> {
        let mut builder = OptsBuilder::from_opts(to.clone());
        if to.ssl_opts().is_some() || options.ca.is_some() {
            // Once a process; another room may have done it before.
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
            if let Some(ca) = &options.ca {
                let ssl: SslOpts = to.ssl_opts().cloned().unwrap_or_default();
                builder =
                    builder.ssl_opts(ssl.with_root_certs(vec![ca.clone().into()]).with_disable_built_in_roots(true));
            }
        }
        let limit = options.query_timeout + Duration::from_millis(500);
        // Either server takes its own part for a statement and the other's for a comment.
        let setup = format!(
            "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION' /*M!100101 , max_statement_time = {} */ \
             /*!50708 , max_execution_time = {} */",
            limit.as_secs_f64(),
            limit.as_millis()
        );
        let isolation = String::from("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED");
        // All that come back stay. A reset would forget what is prepared; nothing comes back in a transaction.
        let pool = |size: usize| {
            let constraints = PoolConstraints::new(size, size)?;
            Some(PoolOpts::new().with_constraints(constraints).with_reset_connection(false))
        };
        let none = || DatabaseError::Refused(String::from("no pool can be made"));
        let opts: Opts = builder.clone().pool_opts(pool(2).ok_or_else(none)?).into();
        let all = builder
            .pool_opts(pool(options.pool_size).ok_or_else(none)?)
            .stmt_cache_size(256)
            .setup(vec![setup, isolation]);
        Ok(Self {
            gate: Gate::new("main", options.pool_size, options.pool_queue, options.pool_timeout),
            pool: Pool::new(all),
            meter,
            opts,
            suspects: AtomicUsize::new(0),
            size: options.pool_size,
        })
    }

    pub async fn migrate(&self) -> Result<Vec<String>, DatabaseError> {
        // Two connections of its own: one holds the lock, refinery takes the other.
        let mut pool = Pool::new(self.opts.clone());
        let migrated = async {
            let mut holder = pool.get_conn().await.map_err(error)?;
            // Locks are the server's, so the database's name is in this one's.
            let name = "LEFT(CONCAT('tidegate:', DATABASE()), 64)";
            let got: Option<Option<i64>> =
                holder.query_first(format!("SELECT GET_LOCK({name}, {LOCK_SECONDS})")).await.map_err(error)?;
            if got.flatten() != Some(1) {
                return Err(DatabaseError::Migration(String::from("another instance holds their lock")));
            }
            let mut runner = embedded::migrations::runner();
            runner.set_migration_table_name(HISTORY);
            let report = runner.run_async(&mut pool).await.map_err(super::migration_error)?;
            holder.query_drop(format!("DO RELEASE_LOCK({name})")).await.map_err(error)?;
            Ok(report.applied_migrations().iter().map(ToString::to_string).collect())
        }
        .await;
        let _ = pool.disconnect().await;
        migrated
    }

    pub async fn run<W: Work>(&self, work: &Arc<W>, now: UnixMillis) -> Result<W::Done, W::Error> {
        let permit = self.gate.enter().await?;
        let conn = self.pool.get_conn().await.map_err(error)?;
        let mut session = MySqlSession { conn: Some(conn), meter: &self.meter, sound: false, permit: Some(permit) };
        // The pool does not look whether a connection still is one.
        if self.suspects.load(Ordering::Relaxed) > 0 {
            session.conn()?.ping().await.map_err(error)?;
            self.trust_one();
        }
        let done = work.run(&mut session, now).await;
        let fault = done.as_ref().err().and_then(Failure::database);
        session.sound = !fault.is_some_and(DatabaseError::spoils);
        if matches!(fault, Some(DatabaseError::Unavailable(_))) {
            self.suspects.store(self.size, Ordering::Relaxed);
        }
        done
    }

    fn trust_one(&self) {
        let less = |n: usize| n.checked_sub(1);
        let _ = self.suspects.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    pub fn pools(&self) -> Vec<PoolStats> {
        vec![self.gate.stats(self.pool.metrics().connection_count.load(Ordering::Relaxed))]
    }

    pub async fn close(&self) {
        self.gate.close();
        let _ = self.pool.clone().disconnect().await;
    }
}

struct MySqlSession<'a> {
    conn: Option<Conn>,
    meter: &'a Meter,
    /// Whether the connection may be used by others.
    sound: bool,
    permit: Option<OwnedSemaphorePermit>,
}

impl Drop for MySqlSession<'_> {
    fn drop(&mut self) {
        let permit = self.permit.take();
        let Some(conn) = self.conn.take().filter(|_| !self.sound) else { return };
        // It may be in the middle of a statement or a transaction: the pool must not have it back.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let _ = tokio::time::timeout(GOODBYE, conn.disconnect()).await;
                drop(permit);
            });
        }
    }
}

impl MySqlSession<'_> {
    fn conn(&mut self) -> Result<&mut Conn, DatabaseError> {
        self.conn.as_mut().ok_or(DatabaseError::Corrupt("a session without a connection"))
    }

    async fn plain(&mut self, sql: &str) -> Result<(), DatabaseError> {
        let _running = self.meter.run(sql);
        self.conn()?.query_drop(sql).await.map_err(error)
    }
}

impl Session for MySqlSession<'_> {
    const DIALECT: Dialect = Dialect::MySql;

    async fn rows<'a>(&'a mut self, sql: &'a str, values: Vec<Value>) -> Result<Vec<Row>, DatabaseError> {
        let _running = self.meter.run(sql);
        let values: Vec<mysql_async::Value> = values.into_iter().map(given).collect();
        let values = if values.is_empty() { Params::Empty } else { Params::Positional(values) };
        let rows: Vec<mysql_async::Row> = self.conn()?.exec(sql, values).await.map_err(error)?;
        // A row can be unwrapped as long as no value was taken out of it, and none was.
        rows.into_iter().map(|row| row.unwrap().into_iter().map(found).collect::<Result<_, _>>().map(Row)).collect()
    }

    async fn begin(&mut self) -> Result<(), DatabaseError> {
        self.plain("START TRANSACTION").await
    }

    async fn commit(&mut self) -> Result<(), DatabaseError> {
        self.plain("COMMIT").await
    }

    async fn rollback(&mut self) -> Result<(), DatabaseError> {
        self.plain("ROLLBACK").await
    }
}

fn given(value: Value) -> mysql_async::Value {
    match value {
        Value::Null => mysql_async::Value::NULL,
        Value::Int(n) => mysql_async::Value::Int(n),
        Value::Text(text) => mysql_async::Value::Bytes(text.into_bytes()),
        // Text becomes a DECIMAL exactly.
        Value::Decimal(decimal) => mysql_async::Value::Bytes(decimal.to_string().into_bytes()),
    }
}

fn found(value: mysql_async::Value) -> Result<Value, DatabaseError> {
    match value {
        mysql_async::Value::NULL => Ok(Value::Null),
        mysql_async::Value::Int(n) => Ok(Value::Int(n)),
        mysql_async::Value::UInt(n) => Ok(Value::whole(n)),
        mysql_async::Value::Bytes(text) => {
            String::from_utf8(text).map(Value::Text).map_err(|_| DatabaseError::Corrupt("a text is no UTF-8"))
        }
        _ => Err(DatabaseError::Corrupt("a column's type")),
    }
}

/// The server's own text may hold values; its number does not.
fn error(error: mysql_async::Error) -> DatabaseError {
    match &error {
        mysql_async::Error::Server(refusal) => match refusal.code {
            1062 => DatabaseError::Exists,
            1205 | 1213 => DatabaseError::Serialization,
            1317 | 1969 | 3024 => DatabaseError::Deadline,
            1044 | 1045 => DatabaseError::Refused(String::from("user or password is wrong")),
            1049 => DatabaseError::Refused(String::from("there is no such database")),
            1142 | 1227 | 1370 => {
                DatabaseError::Refused(format!("the user may not do what is needed ({})", refusal.code))
            }
            1146 => DatabaseError::Refused(String::from("its tables are not there; run tidegate migrate")),
            1290 => DatabaseError::Refused(String::from("it is read-only")),
            code @ (1040 | 1053 | 1077 | 1152 | 1203 | 1226 | 1927) => {
                DatabaseError::Unavailable(format!("takes nobody now ({code})"))
            }
            code => DatabaseError::Query(format!("MySQL {code}")),
        },
        mysql_async::Error::Io(mysql_async::IoError::Tls(_)) => {
            DatabaseError::Refused(String::from("TLS fails: see require_ssl in url, and ca_file"))
        }
        mysql_async::Error::Io(mysql_async::IoError::Io(io)) if io.kind() == std::io::ErrorKind::InvalidData => {
            DatabaseError::Refused(String::from("its certificate is not trusted: see ca_file"))
        }
        mysql_async::Error::Io(mysql_async::IoError::Io(io)) => {
            DatabaseError::Unavailable(format!("cannot be reached ({})", io.kind()))
        }
        mysql_async::Error::Driver(mysql_async::DriverError::ConnectionClosed) => {
            DatabaseError::Unavailable(String::from("closed the connection"))
        }
        mysql_async::Error::Driver(_) => DatabaseError::Unavailable(String::from("does not speak as MySQL does")),
        _ => DatabaseError::Query(String::from("MySQL could not use it")),
    }
}
