//! Where the catalogue is kept: one way to ask, and three databases that answer.
//!
//! What is asked ([`read`], [`find`], [`write`]) is written once, for a [`sql::Session`]; a database is what makes sessions:
//! [`sqlite`], [`postgres`], [`mysql`]. A request takes a permit of the [`gate`], then a connection, and has one deadline for
//! all of it. A connection that was left in the middle of something is thrown away.

mod find;
mod gate;
mod meter;
mod mysql;
mod postgres;
mod read;
mod sql;
mod sqlite;
mod write;

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

pub use gate::PoolStats;
pub use meter::QueryStats;

use super::model::{NewProduct, Product, ProductPatch};
use super::{CatalogError, CatalogOptions, Database, SearchPage, SearchQuery};
use crate::clock::{Clock, UnixMillis};
use meter::Meter;
use mysql::MySqlStore;
use postgres::PostgresStore;
use sql::Session;
use sqlite::SqliteStore;

/// How long an import's batch may take.
const IMPORT: Duration = Duration::from_secs(120);
/// How often a change is tried when others come between.
const TRIES: u32 = 5;
/// Table of the migrations that were applied. Others may use refinery in the same database.
const HISTORY: &str = "tidegate_schema_history";

/// What an import did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// Products that are new.
    pub created: u64,
    /// Products that changed.
    pub updated: u64,
    /// Products that were the same already, and keep their version.
    pub unchanged: u64,
}

/// The catalogue's database. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    adapter: Arc<Adapter>,
    meter: Arc<Meter>,
    clock: Clock,
    timeout: Duration,
    /// Connections that may all have died with the database.
    pool_size: u32,
}

#[derive(Debug)]
enum Adapter {
    Sqlite(SqliteStore),
    Postgres(PostgresStore),
    MySql(MySqlStore),
}

/// One request.
#[derive(Debug)]
enum Ask {
    Ping,
    Products(Vec<String>),
    Search(Box<SearchQuery>),
    Create(Box<NewProduct>),
    Replace(Box<NewProduct>, Option<u64>),
    Patch(String, Box<ProductPatch>, Option<u64>),
    Delete(String, Option<u64>),
    Referrers(String, usize),
    Import(Vec<NewProduct>),
}

/// Its answer.
#[derive(Debug)]
enum Told {
    Done,
    Products(Vec<Product>),
    Page(Box<SearchPage>),
    Product(Box<Product>),
    Imported(Imported),
    Ids(Vec<String>),
}

impl Ask {
    fn writes(&self) -> bool {
        !matches!(self, Self::Ping | Self::Products(_) | Self::Search(_) | Self::Referrers(..))
    }
}

/// Answers a request on a session.
async fn serve<S: Session>(s: &mut S, ask: &Ask, now: UnixMillis) -> Result<Told, CatalogError> {
    let product = |product| Told::Product(Box::new(product));
    Ok(match ask {
        Ask::Ping => {
            s.rows("SELECT 1", Vec::new()).await?;
            Told::Done
        }
        Ask::Products(ids) => Told::Products(read::products(s, ids).await?),
        Ask::Search(query) => Told::Page(Box::new(find::search(s, query).await?)),
        Ask::Create(new) => product(write::create(s, new, now).await?),
        Ask::Replace(new, expected) => product(write::replace(s, new, *expected, now).await?),
        Ask::Patch(id, patch, expected) => product(write::patch(s, id, patch, *expected, now).await?),
        Ask::Delete(id, expected) => {
            write::delete(s, id, *expected).await?;
            Told::Done
        }
        Ask::Referrers(id, most) => Told::Ids(read::referrers(s, id, *most).await?),
        Ask::Import(batch) => Told::Imported(write::import(s, batch, now).await?),
    })
}

impl Store {
    /// A store of what the options name. Nothing is connected yet, so that a server starts while its database is down.
    ///
    /// # Errors
    /// When no client can be made of the options, as with a `ca_file` that holds no certificate.
    pub fn new(options: &CatalogOptions, clock: Clock) -> Result<Self, CatalogError> {
        let meter = Meter::new(options.slow_query);
        let adapter = match &options.database {
            Database::Sqlite(path) => Adapter::Sqlite(SqliteStore::new(path, options, meter.clone())?),
            Database::Postgres(to) => Adapter::Postgres(PostgresStore::new(to, options, meter.clone())?),
            Database::MySql(to) => Adapter::MySql(MySqlStore::new(to, options, meter.clone())?),
        };
        let pool_size = u32::try_from(options.pool_size).unwrap_or(u32::MAX);
        Ok(Self { adapter: Arc::new(adapter), meter, clock, timeout: options.query_timeout, pool_size })
    }

    /// Brings the tables up to date, alone among all who start at once; the names of what was applied.
    ///
    /// # Errors
    /// When the database cannot be reached, or holds tables that a later version made.
    pub async fn migrate(&self) -> Result<Vec<String>, CatalogError> {
        match &*self.adapter {
            Adapter::Sqlite(store) => store.migrate().await,
            Adapter::Postgres(store) => store.migrate().await,
            Adapter::MySql(store) => store.migrate().await,
        }
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ping(&self) -> Result<(), CatalogError> {
        self.ask(Ask::Ping).await.map(drop)
    }

    /// Products, whole, in the order of `ids`; those that are not there are left out. Inactive ones are among them. Four
    /// round trips for up to 200 ids.
    ///
    /// # Errors
    /// When the database is busy, slow or away.
    pub async fn products(&self, ids: &[&str]) -> Result<Vec<Product>, CatalogError> {
        match self.ask(Ask::Products(ids.iter().map(|id| (*id).to_owned()).collect())).await? {
            Told::Products(products) => Ok(products),
            _ => Err(MIXED_UP),
        }
    }

    /// Finds active products.
    ///
    /// # Errors
    /// [`CatalogError::Invalid`] for a question that cannot be asked; or when the database is busy, slow or away.
    pub async fn search(&self, query: &SearchQuery) -> Result<SearchPage, CatalogError> {
        match self.ask(Ask::Search(Box::new(query.clone()))).await? {
            Told::Page(page) => Ok(*page),
            _ => Err(MIXED_UP),
        }
    }

    /// Stores a product that is not there yet.
    ///
    /// # Errors
    /// [`CatalogError::Exists`] if it is; or when the database is busy, slow or away.
    pub async fn create(&self, new: NewProduct) -> Result<Product, CatalogError> {
        self.product(Ask::Create(Box::new(new))).await
    }

    /// Replaces a product, if it is at the expected version.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`], [`CatalogError::Conflict`]; or when the database is busy, slow or away.
    pub async fn replace(&self, new: NewProduct, expected: Option<u64>) -> Result<Product, CatalogError> {
        self.product(Ask::Replace(Box::new(new), expected)).await
    }

    /// Changes a product, if it is at the expected version.
    ///
    /// # Errors
    /// As [`Store::replace`].
    pub async fn patch(&self, id: &str, patch: ProductPatch, expected: Option<u64>) -> Result<Product, CatalogError> {
        self.product(Ask::Patch(id.to_owned(), Box::new(patch), expected)).await
    }

    /// Deletes a product, if it is at the expected version.
    ///
    /// # Errors
    /// As [`Store::replace`].
    pub async fn delete(&self, id: &str, expected: Option<u64>) -> Result<(), CatalogError> {
        self.ask(Ask::Delete(id.to_owned(), expected)).await.map(drop)
    }

    /// Ids of products that show this one as related, at most so many.
    ///
    /// # Errors
    /// When the database is busy, slow or away.
    pub async fn referrers(&self, id: &str, most: usize) -> Result<Vec<String>, CatalogError> {
        match self.ask(Ask::Referrers(id.to_owned(), most)).await? {
            Told::Ids(ids) => Ok(ids),
            _ => Err(MIXED_UP),
        }
    }

    /// Creates and replaces products, in one transaction; categories and brands are made by their names. Twice is once.
    ///
    /// # Errors
    /// When the database is busy, slow or away: then none of them was stored.
    pub async fn import_batch(&self, batch: Vec<NewProduct>) -> Result<Imported, CatalogError> {
        match self.ask(Ask::Import(batch)).await? {
            Told::Imported(imported) => Ok(imported),
            _ => Err(MIXED_UP),
        }
    }

    /// How the pools are: one, or SQLite's two.
    pub fn pools(&self) -> Vec<PoolStats> {
        match &*self.adapter {
            Adapter::Sqlite(store) => store.pools(),
            Adapter::Postgres(store) => store.pools(),
            Adapter::MySql(store) => store.pools(),
        }
    }

    /// What the statements were.
    pub fn queries(&self) -> QueryStats {
        self.meter.stats()
    }

    /// Which database it is, for people.
    pub fn database(&self) -> &'static str {
        match &*self.adapter {
            Adapter::Sqlite(_) => "SQLite",
            Adapter::Postgres(_) => "PostgreSQL",
            Adapter::MySql(_) => "MySQL",
        }
    }

    /// Closes all connections; what runs still ends.
    pub async fn close(&self) {
        match &*self.adapter {
            Adapter::Sqlite(store) => store.close().await,
            Adapter::Postgres(store) => store.close().await,
            Adapter::MySql(store) => store.close().await,
        }
    }

    async fn product(&self, ask: Ask) -> Result<Product, CatalogError> {
        match self.ask(ask).await? {
            Told::Product(product) => Ok(*product),
            _ => Err(MIXED_UP),
        }
    }

    async fn ask(&self, ask: Ask) -> Result<Told, CatalogError> {
        let deadline = if matches!(ask, Ask::Import(_)) { IMPORT.max(self.timeout) } else { self.timeout };
        let ask = Arc::new(ask);
        tokio::time::timeout(deadline, self.tries(&ask)).await.unwrap_or(Err(CatalogError::Deadline))
    }

    async fn tries(&self, ask: &Arc<Ask>) -> Result<Told, CatalogError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let now = self.clock.now();
            let told = match &*self.adapter {
                Adapter::Sqlite(store) => store.ask(ask, now).await,
                Adapter::Postgres(store) => store.ask(ask, now).await,
                Adapter::MySql(store) => store.ask(ask, now).await,
            };
            match told {
                // It was taken back whole.
                Err(CatalogError::Serialization) if tries < TRIES => {
                    tokio::time::sleep(Duration::from_millis(5 << tries)).await;
                }
                // After a restart of the database each connection of the pool may be dead. What only reads may ask the next.
                Err(CatalogError::Unavailable(why)) if !ask.writes() && tries <= self.pool_size => {
                    log::debug!("catalogue: a connection was lost: the database {why}");
                    if tries > 1 {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                }
                told => return told,
            }
        }
    }
}

/// A request and its answer are of one kind; this would be a mistake of ours.
const MIXED_UP: CatalogError = CatalogError::Corrupt("an answer to another request");

/// refinery's own text may hold a statement, which is ours, but also what the database says of it.
fn migration_error(error: refinery::Error) -> CatalogError {
    CatalogError::Migration(match error.kind() {
        refinery::error::Kind::Connection(what, _) => what.clone(),
        other => other.to_string(),
    })
}
