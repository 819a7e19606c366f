//! Popularity: what visitors look at and buy, from the journal, as a score a product.
//!
//! One more reader of the journal folds views of the last 24 hours and units sold in the last 7 days into [`Scores`]:
//! exact for as many products as the settings allow, a sketch with a stated error for the long tail ([`Tail`]). Its
//! snapshot lies with its cursor in one SQLite transaction (`popularity.db`), so a crash neither loses nor doubles
//! anything. The ranking is published: [`PopularityHandle`] answers without a mailbox. Scores are those of the whole shop:
//! all sites of an instance add up, and over Redis ([`shared`]) all instances.
//!
//! The state is a function of the journal alone, its time included (when entries were received); the clock's time is used
//! only to look at it. So whoever reads the same entries, in one run or in many, ends with the same numbers.

mod actor;
mod buckets;
mod error;
mod handle;
mod lifetime;
mod options;
mod ranking;
mod reading;
mod scores;
mod shared;
mod store;
mod tail;

pub use actor::start;
pub use buckets::{Kind, Window};
pub use error::PopularityError;
pub use handle::{Hot, PopularityHandle, Score};
pub use lifetime::{Lifetime, Step, Steps};
pub use options::PopularityOptions;
pub use reading::{MAX_ID, MAX_ITEMS, MAX_QUANTITY, Reading};
pub use scores::Scores;
pub use shared::{ShareOptions, SharedNumbers, SharedPopularity};
pub use store::{OpenStore, open_store};
pub use tail::{Tail, TailError};

/// What a unit sold weighs against a view.
pub const UNIT_WEIGHT: u64 = 10;

/// Views and ten times units.
pub fn score(views: u64, units: u64) -> u64 {
    views.saturating_add(units.saturating_mul(UNIT_WEIGHT))
}
