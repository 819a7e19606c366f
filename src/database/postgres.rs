//! PostgreSQL.

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{Hook, HookError, Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod};
use rust_decimal::Decimal;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::OwnedSemaphorePermit;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, private::BytesMut, to_sql_checked};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::gate::{Gate, PoolStats};
use super::meter::Meter;
use super::sql::{Dialect, Row, Session, Value};
use super::{DatabaseError, DatabaseOptions, Failure, HISTORY, Work};
use crate::clock::UnixMillis;

mod embedded {
    refinery::embed_migrations!("migrations/postgres");
}

/// Key of the advisory lock of migrations: `tidegate` in ASCII.
const LOCK: i64 = 0x7469_6465_6761_7465;

#[derive(Debug)]
pub(super) struct PostgresStore {
    gate: Gate,
    pool: Pool,
    meter: Arc<Meter>,
    to: Box<tokio_postgres::Config>,
    tls: Tls,
}

#[derive(Clone)]
struct Tls(MakeRustlsConnect);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

impl PostgresStore {
    pub fn new(
        to: &tokio_postgres::Config,
        options: &DatabaseOptions,
        meter: Arc<Meter>,
    ) -> Result<Self, DatabaseError> {
        let mut to = to.clone();
        to.connect_timeout(options.query_timeout).application_name("tidegate");
        // "Prefer" would encrypt for whoever comes between; who asks for TLS wants to know with whom.
        to.ssl_mode(match (to.get_ssl_mode(), &options.ca) {
            (SslMode::Prefer, None) | (SslMode::Disable, _) => SslMode::Disable,
            _ => SslMode::Require,
        });
        let tls = tls(options.ca.as_deref())?;
        let manager =
            Manager::from_config(to.clone(), tls.clone(), ManagerConfig { recycling_method: RecyclingMethod::Fast });
        // What we give up waiting for, the server should give up too.
        let limit =
            format!("SET statement_timeout = {}", (options.query_timeout + Duration::from_millis(500)).as_millis());
        let prepare = Hook::async_fn(move |client: &mut deadpool_postgres::ClientWrapper, _| {
            let limit = limit.clone();
            Box::pin(async move { client.batch_execute(&limit).await.map_err(HookError::Backend) })
        });
        let pool = Pool::builder(manager).max_size(options.pool_size).post_create(prepare).build();
        Ok(Self {
            gate: Gate::new("main", options.pool_size, options.pool_queue, options.pool_timeout),
            pool: pool.map_err(|_| DatabaseError::Refused(String::from("no pool can be made")))?,
            meter,
            to: Box::new(to),
            tls: Tls(tls),
        })
    }

    pub async fn migrate(&self) -> Result<Vec<String>, DatabaseError> {
        // A connection of its own: it may take long, and its end ends the lock.
        let (mut client, line) = self.to.connect(self.tls.0.clone()).await.map_err(error)?;
        let line = tokio::spawn(line);
        let migrated = async {
            client.query("SELECT pg_advisory_lock($1)", &[&LOCK]).await.map_err(error)?;
            let mut runner = embedded::migrations::runner();
            runner.set_migration_table_name(HISTORY);
            let report = runner.run_async(&mut client).await.map_err(super::migration_error)?;
            client.query("SELECT pg_advisory_unlock($1)", &[&LOCK]).await.map_err(error)?;
            Ok(report.applied_migrations().iter().map(ToString::to_string).collect())
        }
        .await;
        drop(client);
        // What it says of its end is told by what failed.
        let _ = line.await;
        migrated
    }

    pub async fn run<W: Work>(&self, work: &Arc<W>, now: UnixMillis) -> Result<W::Done, W::Error> {
        let permit = self.gate.enter().await?;
        let conn = self.pool.get().await.map_err(pool_error)?;
        let mut session = PostgresSession { conn: Some(conn), meter: &self.meter, sound: false, _permit: permit };
        let done = work.run(&mut session, now).await;
        session.sound = !done.as_ref().err().and_then(Failure::database).is_some_and(DatabaseError::spoils);
        done
    }

    pub fn pools(&self) -> Vec<PoolStats> {
        vec![self.gate.stats(self.pool.status().size)]
    }

    pub async fn close(&self) {
        self.gate.close();
        self.pool.close();
    }
}

fn tls(ca: Option<&[u8]>) -> Result<MakeRustlsConnect, DatabaseError> {
    // Once a process; another room may have done it before.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut roots = RootCertStore::empty();
    match ca {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let added = certificate.map(|certificate| roots.add(certificate));
                if !matches!(added, Ok(Ok(()))) {
                    return Err(DatabaseError::Refused(String::from("ca_file holds no certificates in PEM")));
                }
            }
            if roots.is_empty() {
                return Err(DatabaseError::Refused(String::from("ca_file holds no certificates in PEM")));
            }
        }
        None => _ = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs),
    }
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

struct PostgresSession<'a> {
    conn: Option<Object>,
    meter: &'a Meter,
    /// Whether the connection may be used by others.
    sound: bool,
    _permit: OwnedSemaphorePermit,
}

impl Drop for PostgresSession<'_> {
    fn drop(&mut self) {
        if let Some(conn) = self.conn.take().filter(|_| !self.sound) {
            // It may be in the middle of a statement or a transaction.
            drop(Object::take(conn));
        }
    }
}

impl PostgresSession<'_> {
    fn conn(&self) -> Result<&Object, DatabaseError> {
        self.conn.as_ref().ok_or(DatabaseError::Corrupt("a session without a connection"))
    }

    async fn plain(&mut self, sql: &str) -> Result<(), DatabaseError> {
        let _running = self.meter.run(sql);
        self.conn()?.batch_execute(sql).await.map_err(error)
    }
}

impl Session for PostgresSession<'_> {
    const DIALECT: Dialect = Dialect::Postgres;

    async fn rows<'a>(&'a mut self, sql: &'a str, values: Vec<Value>) -> Result<Vec<Row>, DatabaseError> {
        let _running = self.meter.run(sql);
        let conn = self.conn()?;
        let statement = conn.prepare_cached(&numbered(sql)).await.map_err(error)?;
        let values: Vec<&(dyn ToSql + Sync)> = values.iter().map(|value| value as &(dyn ToSql + Sync)).collect();
        let rows = conn.query(&statement, &values).await.map_err(error)?;
        let taken = |row: tokio_postgres::Row| -> Result<Row, tokio_postgres::Error> {
            Ok(Row((0..row.len()).map(|at| row.try_get(at)).collect::<Result<_, _>>()?))
        };
        rows.into_iter().map(taken).collect::<Result<_, _>>().map_err(error)
    }

    async fn begin(&mut self) -> Result<(), DatabaseError> {
        self.plain("BEGIN").await
    }

    async fn commit(&mut self) -> Result<(), DatabaseError> {
        self.plain("COMMIT").await
    }

    async fn rollback(&mut self) -> Result<(), DatabaseError> {
        self.plain("ROLLBACK").await
    }
}

/// `?` as PostgreSQL writes it.
fn numbered(sql: &str) -> String {
    let mut out = String::with_capacity(sql.len() + 32);
    for (at, piece) in sql.split('?').enumerate() {
        if at > 0 {
            out.push_str(&format!("${at}"));
        }
        out.push_str(piece);
    }
    out
}

impl ToSql for Value {
    fn to_sql(&self, kind: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match self {
            Self::Null => Ok(IsNull::Yes),
            Self::Int(n) if *kind == Type::INT4 => i32::try_from(*n)?.to_sql(kind, out),
            Self::Int(n) => n.to_sql(kind, out),
            Self::Text(text) => text.to_sql(kind, out),
            Self::Decimal(decimal) => decimal.to_sql(kind, out),
        }
    }

    fn accepts(_: &Type) -> bool {
        // Each value says so for itself.
        true
    }

    to_sql_checked!();
}

impl<'a> FromSql<'a> for Value {
    fn from_sql(kind: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(match *kind {
            Type::INT8 => Self::Int(i64::from_sql(kind, raw)?),
            Type::INT4 => Self::Int(i32::from_sql(kind, raw)?.into()),
            Type::NUMERIC => Self::Decimal(Decimal::from_sql(kind, raw)?),
            _ => Self::Text(String::from_sql(kind, raw)?),
        })
    }

    fn from_sql_null(_: &Type) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self::Null)
    }

    fn accepts(kind: &Type) -> bool {
        [Type::INT8, Type::INT4, Type::NUMERIC].contains(kind) || <String as FromSql>::accepts(kind)
    }
}

fn pool_error(error: PoolError) -> DatabaseError {
    match error {
        PoolError::Backend(inner) | PoolError::PostCreateHook(HookError::Backend(inner)) => self::error(inner),
        _ => DatabaseError::Unavailable(String::from("is closed")),
    }
}

/// PostgreSQL's own text may hold values; its code does not.
fn error(error: tokio_postgres::Error) -> DatabaseError {
    let Some(state) = error.code() else {
        return if error.is_closed() {
            DatabaseError::Unavailable(String::from("closed the connection"))
        } else if let Some(io) = std::error::Error::source(&error).and_then(|e| e.downcast_ref::<std::io::Error>()) {
            match io.kind() {
                // Of the certificate.
                std::io::ErrorKind::InvalidData => {
                    DatabaseError::Refused(String::from("its certificate is not trusted: see ca_file"))
                }
                kind => DatabaseError::Unavailable(format!("cannot be reached ({kind})")),
            }
        } else {
            let text = error.to_string();
            match text.split(':').next().unwrap_or_default() {
                what if what.contains("TLS") => {
                    DatabaseError::Refused(String::from("TLS fails: see sslmode in url, and ca_file"))
                }
                what if what.contains("authentication") => {
                    DatabaseError::Refused(String::from("the password is missing, or not as it is asked for"))
                }
                what if what.contains("timed out") || what.contains("connecting") => {
                    DatabaseError::Unavailable(String::from("cannot be reached"))
                }
                what => DatabaseError::Query(what.to_owned()),
            }
        };
    };
    match state.code() {
        "57014" => DatabaseError::Deadline,
        "40001" | "40P01" => DatabaseError::Serialization,
        "42P01" => DatabaseError::Refused(String::from("its tables are not there; run tidegate migrate")),
        code if code.starts_with("28") => DatabaseError::Refused(String::from("user or password is wrong")),
        "3D000" => DatabaseError::Refused(String::from("there is no such database")),
        "42501" => DatabaseError::Refused(String::from("the user may not do what is needed (42501)")),
        "25006" => DatabaseError::Refused(String::from("it is a read-only replica")),
        code if code.starts_with("57P") || code.starts_with("08") || code.starts_with("53") => {
            DatabaseError::Unavailable(format!("takes nobody now ({code})"))
        }
        _ if *state == SqlState::UNIQUE_VIOLATION => DatabaseError::Exists,
        code => DatabaseError::Query(format!("PostgreSQL {code}")),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn marks_are_numbered() {
        assert_eq!(super::numbered("a = ? AND b IN (?,?)"), "a = $1 AND b IN ($2,$3)");
    }
}
