//! Where the catalogue is kept: what is asked of a [`Database`] ([`read`], [`find`], [`write`]), whichever it is.

mod find;
mod read;
mod write;

use std::time::Duration;

use serde::Serialize;

use super::model::{NewProduct, Product, ProductPatch};
use super::{CatalogError, SearchPage, SearchQuery};
use crate::clock::{Clock, UnixMillis};
use crate::database::{Database, DatabaseOptions, PoolStats, QueryStats, Session, Work};

/// How long an import's batch may take.
const IMPORT: Duration = Duration::from_secs(120);

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

/// The catalogue's part of the database. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    database: Database,
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

impl Work for Ask {
    type Done = Told;
    type Error = CatalogError;

    fn writes(&self) -> bool {
        !matches!(self, Self::Ping | Self::Products(_) | Self::Search(_) | Self::Referrers(..))
    }

    fn at_least(&self) -> Duration {
        if matches!(self, Self::Import(_)) { IMPORT } else { Duration::ZERO }
    }

    async fn run<S: Session>(&self, s: &mut S, now: UnixMillis) -> Result<Told, CatalogError> {
        let product = |product| Told::Product(Box::new(product));
        Ok(match self {
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
}

impl Store {
    /// A store in a database.
    pub fn on(database: Database) -> Self {
        Self { database }
    }

    /// A store with a database of its own. Nothing is connected yet.
    ///
    /// # Errors
    /// When no client can be made of the options, as with a `ca_file` that holds no certificate.
    pub fn new(options: &DatabaseOptions, clock: Clock) -> Result<Self, CatalogError> {
        Ok(Self::on(Database::new(options, clock)?))
    }

    /// The database that it is in.
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// Brings the tables up to date; the names of what was applied.
    ///
    /// # Errors
    /// As [`Database::migrate`].
    pub async fn migrate(&self) -> Result<Vec<String>, CatalogError> {
        Ok(self.database.migrate().await?)
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
        self.database.pools()
    }

    /// What the statements were.
    pub fn queries(&self) -> QueryStats {
        self.database.queries()
    }

    /// Closes all connections; what runs still ends.
    pub async fn close(&self) {
        self.database.close().await;
    }

    async fn product(&self, ask: Ask) -> Result<Product, CatalogError> {
        match self.ask(ask).await? {
            Told::Product(product) => Ok(*product),
            _ => Err(MIXED_UP),
        }
    }

    async fn ask(&self, ask: Ask) -> Result<Told, CatalogError> {
        self.database.run(ask).await
    }
}

/// A request and its answer are of one kind; this would be a mistake of ours.
const MIXED_UP: CatalogError = CatalogError::Corrupt("an answer to another request");
