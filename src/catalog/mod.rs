//! The catalogue: the products of the shop, what they look like, how they are found, and where they are kept.
//!
//! [`Store`] is the port to the database: SQLite by default, PostgreSQL, or MySQL and MariaDB, all with the same answers
//! to the last byte. [`demo`] makes up a shop, [`import`] reads one from a file. [`popularity`] counts views and sales of
//! products from the journal, and says from them how long each may be cached. [`CatalogHandle`] is what others see: reads
//! through the cache, writes that invalidate it.

mod answer;
pub mod demo;
mod error;
pub mod import;
mod model;
pub mod popularity;
mod read_new;
mod search;
mod service;
pub mod store;
mod words;

pub use answer::{Brief, Explained, HotProduct, Warmed, data, parts_of};
pub use error::{CatalogError, FieldError};
pub use model::{Attribute, Image, NewProduct, Product, ProductPatch, Status, Summary, is_product_id};
pub use search::{Facet, Facets, MAX_PER_PAGE, MAX_WINDOW, PriceRange, SearchPage, SearchQuery, Sort};
pub use service::CatalogHandle;
pub use store::{Imported, Store};
