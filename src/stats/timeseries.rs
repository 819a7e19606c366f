//! A number over time, in the hours and days of a time zone.
//!
//! The range is cut at the zone's hours or days, each piece is counted from the fewest stored windows, and pieces without
//! events are there too. So the points always add up to the summary of the same range.

use serde::Deserialize;
use utoipa::ToSchema;

use super::answers::{AsOf, Point, Timeseries};
use super::range::Range;
use super::store::sqlite_read::Set;
use super::uniques::Unique;
use super::window::{Piece, Retention, Tier, effective, reach, split};
use super::windows::Windows;
use super::zone::Zone;
use super::{StatsError, zone};
use crate::clock::{DAY, UnixMillis, rfc3339};

pub use zone::Interval;

/// The most points of a series.
pub const MOST_POINTS: usize = 10_000;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Page views.
    PageViews,
    /// Different visitors.
    UniqueVisitors,
    /// Different sessions.
    Sessions,
    /// All events that are no bot's.
    Events,
}

impl Metric {
    /// The word in queries and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Metric::PageViews => "page_views",
            Metric::UniqueVisitors => "unique_visitors",
            Metric::Sessions => "sessions",
            Metric::Events => "events",
        }
    }

    /// The metric of a word.
    pub fn parse(text: &str) -> Option<Self> {
        [Metric::PageViews, Metric::UniqueVisitors, Metric::Sessions, Metric::Events]
            .into_iter()
            .find(|metric| metric.as_str() == text)
    }
}

/// A question, ready to be answered from the store.
#[derive(Debug)]
pub(super) struct Series {
    metric: Metric,
    interval: Interval,
    zone: Zone,
    from: UnixMillis,
    to: UnixMillis,
    reach: UnixMillis,
    buckets: Vec<Bucket>,
    note: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bucket {
    /// Where its interval begins.
    start: UnixMillis,
    /// What of it is counted.
    from: UnixMillis,
    to: UnixMillis,
    /// A day of UTC in a series of the zone's days.
    utc: bool,
}

impl Series {
    /// Cuts the range.
    pub fn plan(
        metric: Metric,
        interval: Interval,
        tz: &str,
        range: Range,
        now: UnixMillis,
        retention: &Retention,
    ) -> Result<Self, StatsError> {
        let zone = Zone::named(tz)?;
        let (mut from, to) = effective(range.from, range.to, now, retention);
        let mut note = None;
        let finest = match interval {
            Interval::Minute => Tier::Minute,
            Interval::Hour | Interval::Day => Tier::Quarter,
        };
        let kept = retention.complete_since(finest, now);
        if interval != Interval::Day && from < kept {
            let unit = interval.as_str();
            if to <= kept {
                let message = format!("{unit}s are kept since {} only; ask for a coarser interval", rfc3339(kept));
                return Err(StatsError::BadQuery(message));
            }
            from = kept;
            note = Some(format!("{unit}s are kept since {} only: the range begins there", rfc3339(kept)));
        }

        // Days of the zone are put together from quarters; before those there are only whole days of UTC.
        let only_days = from..kept.min(to);
        let utc = only_days.clone().step_by(DAY as usize).chain([only_days.end]).any(|day| zone.offset(day) != 0);
        if utc && !only_days.is_empty() {
            let until = rfc3339(only_days.end);
            note = Some(format!("hours before {until} are gone: until there, days are those of UTC"));
        }
        let mut buckets = Vec::new();
        let mut at = from;
        while at < to {
            if buckets.len() == MOST_POINTS {
                let message = format!("more than {MOST_POINTS} points: ask for a coarser interval or a shorter range");
                return Err(StatsError::BadQuery(message));
            }
            let old = only_days.contains(&at);
            let (start, end) = if old { (at, at + DAY) } else { zone.interval(interval, at) };
            let end = end.min(to);
            buckets.push(Bucket { start, from: at, to: end, utc: utc && old });
            at = end;
        }
        Ok(Self { metric, interval, zone, from, to, reach: reach(to, now), buckets, note })
    }

    /// How many points it has.
    pub fn len(&self) -> usize {
        self.buckets.len()
    }

    /// What of the published windows it needs.
    pub(super) fn part(&self) -> super::shared::Part {
        match self.metric {
            Metric::PageViews | Metric::Events => super::shared::Part::Sums,
            Metric::UniqueVisitors => super::shared::Part::Visitors,
            Metric::Sessions => super::shared::Part::Sessions,
        }
    }

    /// Every window it is made of.
    pub fn pieces(&self) -> Vec<Piece> {
        self.buckets.iter().flat_map(|bucket| self.pieces_of(bucket)).collect()
    }

    fn pieces_of(&self, bucket: &Bucket) -> Vec<Piece> {
        split(bucket.from, if bucket.to == self.to { self.reach } else { bucket.to })
    }

    /// Counts.
    pub fn read(self, windows: &impl Windows, site: &str, as_of: AsOf) -> Result<Timeseries, StatsError> {
        let utc = Zone::utc();
        let mut points = Vec::with_capacity(self.buckets.len());
        let mut error_bound: Option<f64> = None;
        for bucket in &self.buckets {
            let Unique { count, error_bound: off } = self.value(windows, &self.pieces_of(bucket))?;
            error_bound = Unique::widest([error_bound, off]);
            let zone = if bucket.utc { &utc } else { &self.zone };
            points.push(Point { start: zone.rfc3339(bucket.start), value: count });
        }
        Ok(Timeseries {
            site: site.to_owned(),
            metric: self.metric.as_str(),
            interval: self.interval.as_str(),
            from: self.zone.rfc3339(self.from),
            to: self.zone.rfc3339(self.to),
            tz: self.zone.name,
            points,
            exact: error_bound.is_none(),
            error_bound,
            note: self.note,
            as_of,
            degraded: false,
        })
    }

    fn value(&self, windows: &impl Windows, pieces: &[Piece]) -> Result<Unique, StatsError> {
        let set = match self.metric {
            Metric::PageViews | Metric::Events => {
                let totals = windows.totals(pieces)?;
                let count = if self.metric == Metric::Events { totals.events } else { totals.page_views };
                return Ok(Unique { count, error_bound: None });
            }
            Metric::UniqueVisitors => Set::Visitors,
            Metric::Sessions => Set::Sessions,
        };
        Ok(windows.uniques(set, pieces)?.count())
    }
}
