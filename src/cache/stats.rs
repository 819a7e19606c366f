//! What the cache says of itself; counted where it happens, read without asking anybody.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use utoipa::ToSchema;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Of one type.
        #[derive(Debug, Default)]
        pub(super) struct Counters { $(pub $name: AtomicU64,)* }

        /// One type of values.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
        pub struct TypeStats {
            /// Its name.
            pub name: String,
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            pub fn read(&self, name: &str) -> TypeStats {
                TypeStats { name: name.to_owned(), $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Entries in the first tier.
    entries,
    /// Their bytes.
    bytes,
    /// Reads that the first tier answered with something fresh.
    l1_hits,
    /// Reads that it did not.
    l1_misses,
    /// Entries that made room.
    l1_evictions,
    /// Entries that were taken out as they were good for nothing any more.
    l1_expired,
    /// Values not stored because an invalidation came after their reading.
    l1_outdated,
    /// Values not stored because they would take too much of the room.
    l1_too_large,
    /// Values not stored because too many waited for it.
    l1_dropped,
    /// Values that the second tier had fresh.
    l2_hits,
    /// Values that it was asked for and did not have fresh.
    l2_misses,
    /// Reads that waited for another one's fill, or took its value as it landed.
    coalesced,
    /// Fills of others that were waited for, over a lease.
    lease_waits,
    /// Reads answered with something stale while it was refreshed.
    stale_revalidating,
    /// Reads answered with something stale because there was nothing fresh.
    stale_on_error,
    /// Reads answered from a tier with "does not exist".
    negative_hits,
    /// Calls of the source.
    fills,
    /// Values that it was asked for in them.
    filled_values,
    /// Calls that failed.
    fill_errors,
    /// Refreshes begun before the end of a lifetime.
    early_refreshes,
    /// Keys invalidated here or, as others said, elsewhere; a whole type is one.
    invalidations,
}

/// Adds one.
pub(super) fn bump(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// The first tier.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct L1Stats {
    /// Entries.
    pub entries: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How many there may be.
    pub max_entries: u64,
    /// How many bytes they may have.
    pub max_bytes: u64,
    /// How often its owner was made anew.
    pub restarts: u64,
}

/// The second tier.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct L2Stats {
    /// Whether it is asked: else its breaker is open.
    pub up: bool,
    /// Whether invalidations of other instances are heard; else the first tier serves nothing older than a second.
    pub listening: bool,
    /// Invalidations that it has not heard of yet.
    pub pending: u64,
    /// Round trips that read values.
    pub reads: u64,
    /// Questions that failed.
    pub errors: u64,
    /// How often the breaker opened.
    pub opened: u64,
}

/// The whole cache.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct CacheStats {
    /// The first tier.
    pub l1: L1Stats,
    /// The second, if there is one.
    pub l2: Option<L2Stats>,
    /// By type, in the order of the options.
    pub types: Vec<TypeStats>,
}

impl CacheStats {
    /// One type's.
    pub fn of(&self, name: &str) -> Option<&TypeStats> {
        self.types.iter().find(|kind| kind.name == name)
    }
}
