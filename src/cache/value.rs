//! What goes into the cache, what comes out, and what can go wrong.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

/// What a fill found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filled {
    /// The body; `None` is known not to exist.
    pub body: Option<Bytes>,
    /// Its version, for an `ETag`.
    pub tag: u64,
    /// How long it is fresh, if not as long as its type says.
    pub lifetime: Option<Duration>,
}

impl Filled {
    /// A body with its version.
    pub fn new(body: impl Into<Bytes>, tag: u64) -> Self {
        Self { body: Some(body.into()), tag, lifetime: None }
    }

    /// Known not to exist.
    pub fn missing() -> Self {
        Self { body: None, tag: 0, lifetime: None }
    }
}

/// Why a fill failed. All who wait for it get the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FillError {
    /// The source is down, full or slow: 503 with `Retry-After`.
    #[error("{what}")]
    Unavailable {
        /// What is, for the log and the caller.
        what: Arc<str>,
        /// When to come again.
        retry_after: Duration,
    },
    /// Something is wrong that trying again does not mend.
    #[error("{0}")]
    Failed(Arc<str>),
}

/// What goes wrong in the cache.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CacheError {
    /// The value is nowhere, and filling it failed.
    #[error(transparent)]
    Fill(#[from] FillError),
    /// The value is nowhere, and filling it took too long. It may come yet.
    #[error("it was not there within {} ms; try again in a second", .0.as_millis())]
    TimedOut(Duration),
    /// A setting makes no sense.
    #[error("the cache cannot be made: {0}")]
    Options(String),
    /// The second tier's addresses make no sense.
    #[error("the cache's {0}")]
    Redis(#[from] crate::redis::StoreError),
    /// No thread could be started for it.
    #[error("the cache's thread cannot be started: {0}")]
    Thread(Arc<std::io::Error>),
}

impl CacheError {
    /// When to come again, if that can help.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Fill(FillError::Unavailable { retry_after, .. }) => Some(*retry_after),
            Self::TimedOut(_) => Some(Duration::from_secs(1)),
            _ => None,
        }
    }
}

/// Where a value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// This process.
    L1,
    /// Redis.
    L2,
    /// The source.
    L3,
}

/// Why something stale is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// A fresh one is being fetched.
    Revalidating,
    /// A fresh one could not be had.
    Error,
}

/// Whether a value is within its lifetime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// It is.
    Fresh,
    /// It is not.
    Stale(Why),
}

/// Why the source was asked, as `fwd` of RFC 9211 has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forward {
    /// No tier had it.
    Miss,
    /// What was there was too old.
    Stale,
}

/// What a read found; all that `Age` and `Cache-Status` need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The body; `None` is known not to exist.
    pub body: Option<Bytes>,
    /// Its version.
    pub tag: u64,
    /// Where it came from.
    pub tier: Tier,
    /// Whether it is fresh.
    pub freshness: Freshness,
    /// How long ago it was filled.
    pub age: Duration,
    /// How long it is fresh yet; zero where it is not.
    pub remaining: Duration,
    /// How long it has not been fresh any more; zero where it is.
    pub past: Duration,
    /// Whether another one's fill was waited for.
    pub collapsed: bool,
    /// Whether a tier keeps it.
    pub stored: bool,
    /// Why the source was asked, if it was.
    pub forward: Option<Forward>,
}
