//! Questions about the past, answered from the store.
//!
//! A few read-only connections, and one read transaction for each answer: its numbers and its `as_of` belong to one state
//! of the store. Answers are remembered until the store has counted on, since dashboards ask the same again and again.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use cached::Cached;
use cached::stores::LruCache;
use deadpool_sqlite::{Config, Hook, HookError, Manager, Pool, PoolConfig, Runtime};
use parking_lot::Mutex;
use rusqlite::Connection;

use super::answers::{AsOf, EventItem, PageItem, ReferrerItem, StoreAudit, Summary, Top};
use super::options::StatsOptions;
use super::range::Range;
use super::store::sqlite_read::{self as read, Dim, Set};
use super::timeseries::{Interval, Metric, Series};
use super::uniques::Unique;
use super::window::{Plan, Tier, plan};
use super::windows::{Rows, Windows};
use super::{OTHER, StatsError, answers};
use crate::clock::{UnixMillis, rfc3339};

/// The most names of a list.
pub const MOST_ITEMS: usize = 1000;
/// Longer series are not remembered.
const MOST_REMEMBERED_POINTS: usize = 2000;

/// Asks the store; cheap to clone.
#[derive(Clone)]
pub struct Queries(Arc<Inner>);

struct Inner {
    pool: Pool,
    options: StatsOptions,
    answers: Mutex<LruCache<Key, Arc<dyn Any + Send + Sync>>>,
}

/// Everything that an answer depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    question: Question,
    site: String,
    from: UnixMillis,
    to: UnixMillis,
    /// Since when minutes and quarters are there.
    kept: [UnixMillis; 2],
    cursor: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Question {
    Summary,
    Timeseries(Metric, Interval, String),
    Top(Dim, usize),
}

/// What became of every journal entry in the store.
#[derive(Clone, Debug, Default)]
pub struct AuditTotals {
    /// By site.
    pub sites: BTreeMap<String, StoreAudit>,
    /// Of which entries.
    pub as_of: AsOf,
}

impl std::fmt::Debug for Queries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queries").field("pool", &self.0.pool.status()).finish_non_exhaustive()
    }
}

impl Queries {
    /// Asks the file at `path`, which the store has opened before.
    ///
    /// # Errors
    /// When the path cannot be written as a URI. Connections are made when they are needed.
    pub fn open(path: &Path, options: StatsOptions) -> Result<Self, StatsError> {
        let pool_error = |error: &dyn std::fmt::Display| StatsError::Pool(error.to_string());
        let cache_kib = -i64::from(options.sqlite_cache_kib / 4);
        let set_up = Hook::async_fn(move |conn, _| {
            Box::pin(async move {
                let done = conn.interact(move |conn| {
                    conn.busy_timeout(std::time::Duration::from_secs(5))?;
                    conn.set_prepared_statement_cache_capacity(32);
                    conn.pragma_update(None, "cache_size", cache_kib)?;
                    conn.pragma_update(None, "query_only", true)
                });
                match done.await {
                    Ok(result) => result.map_err(HookError::Backend),
                    Err(error) => Err(HookError::message(error.to_string())),
                }
            })
        });
        let manager = Manager::from_config(&Config::new(read_only_uri(path)?), Runtime::Tokio1);
        let pool = Pool::builder(manager)
            .config(PoolConfig::new(options.readers.max(1)))
            .runtime(Runtime::Tokio1)
            .post_create(set_up)
            .build()
            .map_err(|error| pool_error(&error))?;
        let answers = Mutex::new(LruCache::new(options.cached_answers.max(1)));
        Ok(Self(Arc::new(Inner { pool, options, answers })))
    }

    /// The sums of a range.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn summary(&self, site: &str, range: Range, now: UnixMillis) -> Result<Arc<Summary>, StatsError> {
        let plan = plan(range.from, range.to, now, &self.0.options.retention);
        let key = self.key(Question::Summary, site, plan.from, plan.to, now);
        let limit = self.0.options.exact_uniques;
        let site = site.to_owned();
        self.answer(Some(key), move |conn, as_of| summary(&Rows::of(conn, &site, limit)?, site, &plan, as_of)).await
    }

    /// A number over time.
    ///
    /// # Errors
    /// [`StatsError::BadQuery`] for an unknown zone, too many points, or a time whose finer windows are gone.
    pub async fn timeseries(
        &self,
        site: &str,
        metric: Metric,
        interval: Interval,
        tz: &str,
        range: Range,
        now: UnixMillis,
    ) -> Result<Arc<answers::Timeseries>, StatsError> {
        let inner = self.0.clone();
        let series = Series::plan(metric, interval, tz, range, now, &inner.options.retention)?;
        let question = Question::Timeseries(metric, interval, tz.to_owned());
        let key = self.key(question, site, Tier::Minute.floor(range.from), Tier::Minute.ceil(range.to), now);
        let key = Some(key).filter(|_| series.len() <= MOST_REMEMBERED_POINTS);
        let site = site.to_owned();
        self.answer(key, move |conn, as_of| {
            series.read(&Rows::of(conn, &site, inner.options.exact_uniques)?, &site, as_of)
        })
        .await
    }

    /// The most viewed pages.
    ///
    /// # Errors
    /// [`StatsError::BadQuery`] when `limit` is not 1 to 1000.
    pub async fn pages(
        &self,
        site: &str,
        range: Range,
        limit: usize,
        now: UnixMillis,
    ) -> Result<Arc<Top<PageItem>>, StatsError> {
        let item = |url, views, share| PageItem { url, views, share };
        self.top(Dim::Page, item, site, range, limit, now).await
    }

    /// The foreign sites that sent the most page views.
    ///
    /// # Errors
    /// As [`Queries::pages`].
    pub async fn referrers(
        &self,
        site: &str,
        range: Range,
        limit: usize,
        now: UnixMillis,
    ) -> Result<Arc<Top<ReferrerItem>>, StatsError> {
        let item = |referrer, views, share| ReferrerItem { referrer, views, share };
        self.top(Dim::Referrer, item, site, range, limit, now).await
    }

    /// The most frequent event types.
    ///
    /// # Errors
    /// As [`Queries::pages`].
    pub async fn events(
        &self,
        site: &str,
        range: Range,
        limit: usize,
        now: UnixMillis,
    ) -> Result<Arc<Top<EventItem>>, StatsError> {
        let item = |event_type, count, share| EventItem { event_type, count, share };
        self.top(Dim::Event, item, site, range, limit, now).await
    }

    /// What became of the journal's entries.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn audit(&self) -> Result<Arc<AuditTotals>, StatsError> {
        self.answer(None, audit_totals).await
    }

    /// Sites with counted events, by name.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn sites(&self) -> Result<Arc<Vec<String>>, StatsError> {
        self.answer(None, |conn, _| read::sites(conn)).await
    }

    /// How the statistics are counted.
    pub(super) fn options(&self) -> &StatsOptions {
        &self.0.options
    }

    /// Closes the connections; questions are refused from now on. To be called within the runtime: connections that are
    /// still open when the last clone is dropped outside of it would panic.
    pub async fn close(&self) {
        self.0.pool.close();
    }

    async fn top<T: Send + Sync + 'static>(
        &self,
        dim: Dim,
        item: impl Fn(String, u64, f64) -> T + Send + 'static,
        site: &str,
        range: Range,
        limit: usize,
        now: UnixMillis,
    ) -> Result<Arc<Top<T>>, StatsError> {
        if !(1..=MOST_ITEMS).contains(&limit) {
            return Err(StatsError::BadQuery(format!("limit must be 1 to {MOST_ITEMS}")));
        }
        let plan = plan(range.from, range.to, now, &self.0.options.retention);
        let key = self.key(Question::Top(dim, limit), site, plan.from, plan.to, now);
        let site = site.to_owned();
        let exact = self.0.options.exact_uniques;
        let names =
            move |conn: &Connection, site: &str, plan: &Plan| Rows::of(conn, site, exact)?.named(dim, &plan.pieces);
        self.answer(Some(key), move |conn, as_of| {
            let names = names(conn, &site, &plan)?;
            Ok(top(names, site, item, &plan, limit, as_of))
        })
        .await
    }

    fn key(&self, question: Question, site: &str, from: UnixMillis, to: UnixMillis, now: UnixMillis) -> Key {
        let retention = &self.0.options.retention;
        let kept = [Tier::Minute, Tier::Quarter].map(|tier| retention.complete_since(tier, now));
        Key { question, site: site.to_owned(), from, to, kept, cursor: 0 }
    }

    /// Runs `compute` in a read transaction, unless its answer is remembered for the store's present cursor.
    pub(super) async fn answer<T: Send + Sync + 'static>(
        &self,
        key: Option<Key>,
        compute: impl FnOnce(&Connection, AsOf) -> Result<T, StatsError> + Send + 'static,
    ) -> Result<Arc<T>, StatsError> {
        let conn = self.0.pool.get().await.map_err(|error| StatsError::Pool(error.to_string()))?;
        let inner = self.0.clone();
        let done = conn.interact(move |conn| {
            let tx = conn.transaction()?;
            // The first read of the transaction: it decides which state all others see.
            let cursor = read::cursor(&tx)?;
            let key = key.map(|key| Key { cursor: cursor.next, ..key });
            if let Some(key) = &key
                && let Some(known) = inner.answers.lock().cache_get(key)
                && let Ok(known) = known.clone().downcast::<T>()
            {
                return Ok(known);
            }
            let answer = Arc::new(compute(&tx, cursor.into())?);
            if let Some(key) = key {
                inner.answers.lock().cache_set(key, answer.clone());
            }
            Ok(answer)
        });
        done.await.map_err(|error| StatsError::Pool(error.to_string()))?
    }
}

/// What became of the journal's entries.
pub(super) fn audit_totals(conn: &Connection, as_of: AsOf) -> Result<AuditTotals, StatsError> {
    let sites = read::audit(conn)?.into_iter().map(|(site, audit)| {
        let rejected = audit.rejected.into_iter().map(|(code, n)| (code.as_str(), n)).collect();
        (site, StoreAudit { counted: audit.counted, duplicates: audit.duplicates, rejected })
    });
    Ok(AuditTotals { sites: sites.collect(), as_of })
}

/// The sums of a range.
pub(super) fn summary(windows: &impl Windows, site: String, plan: &Plan, as_of: AsOf) -> Result<Summary, StatsError> {
    let totals = windows.totals(&plan.pieces)?;
    let visitors = windows.uniques(Set::Visitors, &plan.pieces)?.count();
    let sessions = windows.uniques(Set::Sessions, &plan.pieces)?.count();
    let error_bound = Unique::widest([visitors.error_bound, sessions.error_bound]);
    Ok(Summary {
        from: rfc3339(plan.from),
        to: rfc3339(plan.to),
        page_views: totals.page_views,
        unique_visitors: visitors.count,
        sessions: sessions.count,
        bots: totals.bots,
        bot_reasons: windows.bots(&plan.pieces)?,
        events: windows.named(Dim::Event, &plan.pieces)?.into_iter().collect(),
        exact: error_bound.is_none(),
        error_bound,
        as_of,
        degraded: false,
        site,
    })
}

/// The most frequent of names.
pub(super) fn top<T>(
    mut names: HashMap<String, u64>,
    site: String,
    item: impl Fn(String, u64, f64) -> T,
    plan: &Plan,
    limit: usize,
    as_of: AsOf,
) -> Top<T> {
    let total: u64 = names.values().sum();
    let other = names.remove(OTHER).unwrap_or(0);
    let mut names: Vec<(String, u64)> = names.into_iter().collect();
    let order = |a: &(String, u64), b: &(String, u64)| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0));
    if names.len() > limit {
        names.select_nth_unstable_by(limit, order);
        names.truncate(limit);
    }
    names.sort_unstable_by(order);
    let share = |n: u64| (n as f64 / total as f64 * 1e6).round() / 1e6;
    let items = names.into_iter().map(|(name, n)| item(name, n, share(n))).collect();
    Top { site, from: rfc3339(plan.from), to: rfc3339(plan.to), total, other, items, as_of, degraded: false }
}

/// SQLite opens this read-only, and never makes an empty file of a misspelt path.
fn read_only_uri(path: &Path) -> Result<String, StatsError> {
    let bad = || StatsError::Pool(format!("{} is not UTF-8", path.display()));
    let path = std::path::absolute(path).map_err(|error| StatsError::Pool(error.to_string()))?;
    let mut uri = String::from("file://");
    for byte in path.to_str().ok_or_else(bad)?.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' => uri.push(byte as char),
            _ => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri.push_str("?mode=ro");
    Ok(uri)
}

#[cfg(test)]
#[path = "query_tests.rs"]
mod tests;
