//! What can be set about the statistics. Values are taken as valid: the configuration checks them.

use super::window::Retention;

/// How statistics are counted and kept.
#[derive(Clone, Debug)]
pub struct StatsOptions {
    /// How long windows are kept.
    pub retention: Retention,
    /// Different pages (referrers, event types) per window; all further ones are counted as [`super::OTHER`].
    pub max_keys: usize,
    /// Up to this many different visitors (or sessions) a window's count is exact.
    pub exact_uniques: usize,
    /// Bytes of memory for open windows and names, so that a commit need not read what earlier ones wrote.
    pub cache_bytes: usize,
    /// Read connections for queries.
    pub readers: usize,
    /// Remembered answers.
    pub cached_answers: usize,
    /// Page cache of the writing SQLite connection, in KiB; each reader has a quarter.
    pub sqlite_cache_kib: u32,
}

impl Default for StatsOptions {
    fn default() -> Self {
        Self {
            retention: Retention::default(),
            max_keys: 10_000,
            exact_uniques: 10_000,
            cache_bytes: 8 << 20,
            readers: 3,
            cached_answers: 64,
            sqlite_cache_kib: 4096,
        }
    }
}
