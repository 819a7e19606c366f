//! What the statistics API says, as it goes into JSON: the field names here are the interface.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use super::store::Cursor;
use crate::clock::{UnixMillis, rfc3339};

/// How far the numbers of an answer count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct AsOf {
    /// Every journal entry before this one is counted, and none after.
    pub offset: u64,
    /// When the last counted event was received, RFC 3339 in UTC; null when none was.
    #[serde(serialize_with = "time")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub time: Option<UnixMillis>,
}

impl From<Cursor> for AsOf {
    fn from(cursor: Cursor) -> Self {
        Self { offset: cursor.next, time: cursor.time }
    }
}

fn time<S: Serializer>(at: &Option<UnixMillis>, s: S) -> Result<S::Ok, S::Error> {
    at.map(rfc3339).serialize(s)
}

/// Sums of a range.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Summary {
    /// The site.
    pub site: String,
    /// Where the range begins, after widening to whole windows; RFC 3339.
    pub from: String,
    /// Where it ends (exclusive).
    pub to: String,
    /// Page views that were no bot's.
    pub page_views: u64,
    /// Different visitors.
    pub unique_visitors: u64,
    /// Different sessions.
    pub sessions: u64,
    /// Events of bots, which count nowhere else.
    pub bots: u64,
    /// Those by reason.
    pub bot_reasons: BTreeMap<&'static str, u64>,
    /// Events that were no bot's, by type.
    pub events: BTreeMap<String, u64>,
    /// Whether visitors and sessions are exact; the other numbers always are.
    pub exact: bool,
    /// If not: how far off they may be, as a part of the number (two standard deviations).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_bound: Option<f64>,
    /// How far this counts.
    pub as_of: AsOf,
    /// Present and true while the shared store cannot be reached: these are this instance's numbers alone.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub degraded: bool,
}

/// A number over time.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Timeseries {
    /// The site.
    pub site: String,
    /// What is counted.
    pub metric: &'static str,
    /// Width of a point.
    pub interval: &'static str,
    /// The zone whose hours and days the points are.
    pub tz: String,
    /// Where the range begins, after widening to whole windows; RFC 3339 with the zone's offset.
    pub from: String,
    /// Where it ends (exclusive).
    pub to: String,
    /// One for each interval, empty ones included. The first and the last count only what lies in the range.
    pub points: Vec<Point>,
    /// Whether every point is exact.
    pub exact: bool,
    /// If not: how far off a point may be, as a part of it (two standard deviations).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_bound: Option<f64>,
    /// Where this is not quite what was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// How far this counts.
    pub as_of: AsOf,
    /// Present and true while the shared store cannot be reached: these are this instance's numbers alone.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub degraded: bool,
}

/// A number of one interval.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Point {
    /// Where the interval begins, RFC 3339 with the zone's offset then.
    pub start: String,
    /// The number.
    pub value: u64,
}

/// The most frequent names.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Top<T> {
    /// The site.
    pub site: String,
    /// Where the range begins, after widening to whole windows; RFC 3339.
    pub from: String,
    /// Where it ends (exclusive).
    pub to: String,
    /// Sum over all names, not only those listed.
    pub total: u64,
    /// Of that, what came after the most names that a window takes; in no item.
    #[serde(skip_serializing_if = "is_zero")]
    pub other: u64,
    /// Most frequent first; equally frequent ones by name.
    pub items: Vec<T>,
    /// How far this counts.
    pub as_of: AsOf,
    /// Present and true while the shared store cannot be reached: these are this instance's numbers alone.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub degraded: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// A page and its views.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct PageItem {
    /// The page: its URL without what only tracks.
    pub url: String,
    /// How often it was viewed.
    pub views: u64,
    /// Part of the total.
    pub share: f64,
}

/// A foreign site and the page views it sent.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct ReferrerItem {
    /// Its host.
    pub referrer: String,
    /// Page views from there.
    pub views: u64,
    /// Part of the total.
    pub share: f64,
}

/// An event type.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct EventItem {
    /// The type.
    #[serde(rename = "type")]
    pub event_type: String,
    /// How often it occurred.
    pub count: u64,
    /// Part of the total.
    pub share: f64,
}

/// What became of a site's journal entries in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct StoreAudit {
    /// Events counted, bots included.
    pub counted: u64,
    /// Events that had been accepted before.
    pub duplicates: u64,
    /// Refused events by code.
    pub rejected: BTreeMap<&'static str, u64>,
}

/// A page and its views, now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct HotPage {
    /// The page.
    #[schema(value_type = String)]
    pub url: Arc<str>,
    /// Views in the window.
    pub views: u64,
}

/// The running minute, hour or day of a site.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Realtime {
    /// The site.
    #[schema(value_type = String)]
    pub site: Arc<str>,
    /// `minute`, `hour` or `day`; all in UTC.
    pub time_window: &'static str,
    /// Where the window begins, in Unix seconds.
    pub window_start: i64,
    /// Page views that were no bot's.
    pub page_views: u64,
    /// Different visitors.
    pub unique_visitors: u64,
    /// Different sessions.
    pub sessions: u64,
    /// Events of bots, which count nowhere else.
    pub bots: u64,
    /// The ten most viewed pages.
    pub hot_pages: Vec<HotPage>,
    /// Events that were no bot's, by type.
    #[serde(serialize_with = "counts")]
    #[schema(value_type = BTreeMap<String, u64>)]
    pub events: Vec<(Arc<str>, u64)>,
    /// Whether visitors and sessions are exact; the other numbers always are.
    pub exact: bool,
    /// If not: how far off they may be, as a part of the number (two standard deviations).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_bound: Option<f64>,
    /// How far this counts.
    pub as_of: AsOf,
    /// Present and true while the shared store cannot be reached: these are this instance's numbers alone.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub degraded: bool,
}

/// Where the live feed begins, and begins again after a gap.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct FeedSnapshot {
    /// The site.
    #[schema(value_type = String)]
    pub site: Arc<str>,
    /// How far this counts.
    pub as_of: AsOf,
    /// Different visitors of the last five minutes.
    pub visitors_now: u64,
    /// The running windows.
    pub windows: Windows<Realtime>,
}

/// What was added since the feed's message before.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct FeedDelta {
    /// How far this counts.
    pub as_of: AsOf,
    /// Different visitors of the last five minutes.
    pub visitors_now: u64,
    /// Page views added.
    pub page_views: u64,
    /// Bots' events added.
    pub bots: u64,
    /// Events added, by type.
    #[serde(serialize_with = "counts")]
    #[schema(value_type = BTreeMap<String, u64>)]
    pub events: Vec<(Arc<str>, u64)>,
    /// Page views added, of the 50 most viewed pages.
    #[serde(serialize_with = "counts")]
    #[schema(value_type = BTreeMap<String, u64>)]
    pub pages: Vec<(Arc<str>, u64)>,
    /// Page views added, of the 50 most frequent referrers.
    #[serde(serialize_with = "counts")]
    #[schema(value_type = BTreeMap<String, u64>)]
    pub referrers: Vec<(Arc<str>, u64)>,
    /// The running windows as they are now, not what was added to them.
    pub windows: Windows<FeedWindow>,
}

/// The three running windows.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Windows<T> {
    /// The minute.
    pub minute: T,
    /// The hour.
    pub hour: T,
    /// The day.
    pub day: T,
}

/// A running window in a feed's delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct FeedWindow {
    /// Where it begins, in Unix seconds.
    pub window_start: i64,
    /// Page views.
    pub page_views: u64,
    /// Different visitors.
    pub unique_visitors: u64,
    /// Different sessions.
    pub sessions: u64,
}

fn counts<S: Serializer>(counts: &[(Arc<str>, u64)], s: S) -> Result<S::Ok, S::Error> {
    let mut map = s.serialize_map(Some(counts.len()))?;
    for (name, n) in counts {
        map.serialize_entry(&**name, n)?;
    }
    map.end()
}
