//! The cache: tiers of opaque bodies, L1 in the process, L2 in Redis, filled by whoever asks.
//!
//! It knows types, ids and bytes, and nothing of what they mean. A read that finds its value in L1 is a look into a
//! concurrent map ([`published`]) that only the owner fills ([`actor`], after the rules of [`policy`]). What is not there is
//! filled once: [`flight`] brings together who wants the same in this process, a lease in Redis ([`l2`]) who wants it in
//! others, and [`drive`] does it apart from all of them. An invalidation acts at once where it is made, and moves an epoch,
//! so that what was read before it is not stored after it; [`link`] brings it to the other instances.

mod actor;
mod breaker;
mod core;
mod drive;
mod entry;
mod flight;
mod handle;
mod key;
mod l1;
mod l2;
mod link;
mod options;
mod pending;
mod policy;
mod published;
mod stats;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod trace_tests;
mod value;
mod wire;

pub use handle::{CacheHandle, start};
pub use options::{CacheOptions, L2Options, TypeOptions};
pub use stats::{CacheStats, L1Stats, L2Stats, TypeStats};
pub use value::{CacheError, FillError, Filled, Forward, Found, Freshness, Tier, Why};

/// A type of cached values, by its place in the options.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kind(u16);

impl Kind {
    fn index(self) -> usize {
        usize::from(self.0)
    }
}
