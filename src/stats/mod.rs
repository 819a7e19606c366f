//! The statistics: what the journal's events add up to.
//!
//! The owner of this room reads the journal from the store's [`Cursor`] on, folds a run of entries into a [`Delta`], and
//! commits it to a [`StatsStore`], which writes the sums and the new cursor in one transaction. After a commit the delta
//! goes to [`Live`], whose published snapshot answers "now" without a mailbox, and to the [`Feed`] that dashboards
//! follow. [`Queries`] answers about the past from the store. Everything but the store, the queries and a feed's waiting
//! is pure and is handed `now`. With a [`shared`] store, several instances add up.

mod actor;
pub mod answers;
mod ask;
pub mod delta;
mod error;
pub mod feed;
mod feed_frame;
mod handle;
pub mod live;
mod live_site;
mod options;
pub mod query;
pub mod range;
pub mod recent;
pub mod rollup;
pub mod shared;
pub mod store;
pub mod timeseries;
pub mod uniques;
pub mod window;
mod windows;
mod zone;

pub use actor::{OpenStore, open_store, start};
pub use answers::AsOf;
pub use delta::Delta;
pub use error::StatsError;
pub use feed::{Feed, FeedEvent, FeedKind, Subscription};
pub use handle::StatsHandle;
pub use live::{Live, LiveReader, RealtimeAnswer};
pub use live_site::WindowName;
pub use options::StatsOptions;
pub use query::{AuditTotals, Queries};
pub use range::Range;
pub use rollup::{Rollup, Rollups, WindowKey};
pub use shared::{SharedOptions, SharedState, StoreError, UniquesMode};
pub use store::{Committed, Cursor, StatsStore, sqlite::SqliteStore};
pub use timeseries::{Interval, Metric};
pub use window::{Retention, Tier};

/// The name under which everything is counted that came after a window's `max_keys` different names.
pub const OTHER: &str = "(other)";

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod test_events;
