//! What a cache is made with.

use std::time::Duration;

use crate::redis::RedisOptions;

/// One type of values.
#[derive(Clone, Debug, PartialEq)]
pub struct TypeOptions {
    /// Its name, in keys and statistics.
    pub name: String,
    /// How long a value is fresh.
    pub lifetime: Duration,
    /// How long after that it is still served while a fresh one is fetched.
    pub stale: Duration,
    /// How long after its lifetime it is still served when a fresh one cannot be had.
    pub stale_if_error: Duration,
    /// How long it is remembered that something does not exist; zero forgets it at once.
    pub negative: Duration,
    /// Whether it is kept in the process.
    pub l1: bool,
    /// Whether it is kept in Redis, if there is one.
    pub l2: bool,
    /// The part of a lifetime, 0 to 1, by which it may be shortened at random, so that what was filled together does not
    /// expire together.
    pub jitter: f64,
}

/// The second tier.
#[derive(Clone, Debug)]
pub struct L2Options {
    /// Where it is. Its time-out is what a request may lose to it.
    pub redis: RedisOptions,
    /// Stands before every key and channel.
    pub prefix: String,
    /// How long a lease lasts when its holder dies; who lives prolongs it.
    pub lease: Duration,
}

/// A cache.
#[derive(Clone, Debug)]
pub struct CacheOptions {
    /// Its types.
    pub types: Vec<TypeOptions>,
    /// Bytes of the first tier: bodies, ids and what it takes to keep them.
    pub l1_bytes: u64,
    /// Entries of the first tier.
    pub l1_entries: usize,
    /// Eagerness of early refreshes: 1 is the theory's optimum, 0 none.
    pub xfetch_beta: f64,
    /// How long a fill may take, and a caller waits for one.
    pub fill_timeout: Duration,
    /// How long a failed fill is answered without trying again.
    pub error_memory: Duration,
    /// What random numbers begin from; `None` is different each time.
    pub seed: Option<u64>,
    /// The second tier, if there is one.
    pub l2: Option<L2Options>,
}
