//! Questions, answered by the shared store where there is one, and else (or while it is away) by the embedded one.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::answers::{EventItem, PageItem, ReferrerItem, Summary, Timeseries, Top};
use super::handle::StatsHandle;
use super::live::RealtimeAnswer;
use super::query::MOST_ITEMS;
use super::range::Range;
use super::shared::{SharedReads, StoreError};
use super::store::sqlite_read::Dim;
use super::timeseries::{Interval, Metric, Series};
use super::window::plan;
use super::{StatsError, WindowName};
use crate::clock::UnixMillis;

/// Marks an answer of the embedded store that the shared one should have given.
trait Degrade: Clone {
    fn degrade(&mut self);
}

impl Degrade for Summary {
    fn degrade(&mut self) {
        self.degraded = true;
    }
}

impl Degrade for Timeseries {
    fn degrade(&mut self) {
        self.degraded = true;
    }
}

impl<T: Clone> Degrade for Top<T> {
    fn degrade(&mut self) {
        self.degraded = true;
    }
}

impl StatsHandle {
    /// The running window of a site.
    pub async fn realtime(&self, site: &str, window: WindowName, now: UnixMillis) -> RealtimeAnswer {
        let Some(reads) = self.reads() else { return self.live().realtime_json(site, window, now) };
        match reads.realtime(site, window, now).await {
            Ok(realtime) => RealtimeAnswer::of(&realtime),
            Err(error) => {
                self.note(&error);
                let own = self.live().realtime_json(site, window, now).data;
                let object = own.strip_suffix(b"}").unwrap_or(&own);
                RealtimeAnswer::new(Bytes::from([object, br#","degraded":true}"#].concat()))
            }
        }
    }

    /// The sums of a range.
    ///
    /// # Errors
    /// When no store can be read.
    pub async fn summary(&self, site: &str, range: Range, now: UnixMillis) -> Result<Arc<Summary>, StatsError> {
        let own = self.queries().summary(site, range, now);
        let Some(reads) = self.reads() else { return own.await };
        let plan = plan(range.from, range.to, now, &self.queries().options().retention);
        self.or_own(reads.summary(site, plan).await, own).await
    }

    /// A number over time.
    ///
    /// # Errors
    /// As [`super::Queries::timeseries`].
    pub async fn timeseries(
        &self,
        site: &str,
        metric: Metric,
        interval: Interval,
        tz: &str,
        range: Range,
        now: UnixMillis,
    ) -> Result<Arc<Timeseries>, StatsError> {
        let own = self.queries().timeseries(site, metric, interval, tz, range, now);
        let Some(reads) = self.reads() else { return own.await };
        let series = Series::plan(metric, interval, tz, range, now, &self.queries().options().retention)?;
        let key = format!("{metric:?} {interval:?} {tz} {series:?}");
        self.or_own(reads.timeseries(site, key, series).await, own).await
    }

    /// The most viewed pages.
    ///
    /// # Errors
    /// As [`super::Queries::pages`].
    pub async fn pages(
        &self,
        site: &str,
        range: Range,
        limit: usize,
        now: UnixMillis,
    ) -> Result<Arc<Top<PageItem>>, StatsError> {
        let own = self.queries().pages(site, range, limit, now);
        self.top(Dim::Page, |url, views, share| PageItem { url, views, share }, site, range, limit, now, own).await
    }

    /// The foreign sites that sent the most page views.
    ///
    /// # Errors
    /// As [`super::Queries::pages`].
    pub async fn referrers(
        &self,
        site: &str,
        range: Range,
        limit: usize,
        now: UnixMillis,
    ) -> Result<Arc<Top<ReferrerItem>>, StatsError> {
        let own = self.queries().referrers(site, range, limit, now);
        let item = |referrer, views, share| ReferrerItem { referrer, views, share };
        self.top(Dim::Referrer, item, site, range, limit, now, own).await
    }

    /// The most frequent event types.
    ///
    /// # Errors
    /// As [`super::Queries::pages`].
    pub async fn events(
        &self,
        site: &str,
        range: Range,
        limit: usize,
        now: UnixMillis,
    ) -> Result<Arc<Top<EventItem>>, StatsError> {
        let own = self.queries().events(site, range, limit, now);
        let item = |event_type, count, share| EventItem { event_type, count, share };
        self.top(Dim::Event, item, site, range, limit, now, own).await
    }

    /// The latest events of a user in the shared store, newest first; `None` when that does not know the user, is away, or
    /// is not there.
    pub async fn user_events(&self, site: &str, user: &str, limit: usize) -> Option<Arc<Vec<Box<RawValue>>>> {
        match self.reads()?.user_events(site, user, limit).await {
            Ok(events) => Some(events).filter(|events| !events.is_empty()),
            Err(error) => {
                self.note(&error);
                None
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the question's six parts, and who else can answer it")]
    async fn top<T: Clone + Send + Sync + 'static>(
        &self,
        dim: Dim,
        item: impl Fn(String, u64, f64) -> T + Send + Sync + 'static,
        site: &str,
        range: Range,
        limit: usize,
        now: UnixMillis,
        own: impl Future<Output = Result<Arc<Top<T>>, StatsError>>,
    ) -> Result<Arc<Top<T>>, StatsError> {
        let Some(reads) = self.reads().filter(|_| (1..=MOST_ITEMS).contains(&limit)) else { return own.await };
        let plan = plan(range.from, range.to, now, &self.queries().options().retention);
        self.or_own(reads.top(site, dim, item, plan, limit).await, own).await
    }

    async fn or_own<T: Degrade>(
        &self,
        shared: Result<Arc<T>, StoreError>,
        own: impl Future<Output = Result<Arc<T>, StatsError>>,
    ) -> Result<Arc<T>, StatsError> {
        match shared {
            Ok(answer) => Ok(answer),
            Err(error) => {
                self.note(&error);
                let mut answer = own.await?;
                Arc::make_mut(&mut answer).degrade();
                Ok(answer)
            }
        }
    }

    fn reads(&self) -> Option<&SharedReads> {
        self.shared_store.as_ref().map(|shared| &shared.reads)
    }

    fn note(&self, error: &StoreError) {
        if let Some(reads) = self.reads() {
            reads.state().counters.degraded.fetch_add(1, Ordering::Relaxed);
            log::debug!("{error}; the embedded store answers");
        }
    }
}
