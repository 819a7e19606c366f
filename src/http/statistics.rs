//! The way out: the statistics API.

use actix_web::http::header::{self, ETag, EntityTag, IfNoneMatch};
use actix_web::web::{self, Bytes};
use actix_web::{HttpResponse, get};
use serde::{Deserialize, Serialize};
use utoipa::IntoParams;
use xxhash_rust::xxh3::xxh3_64;

use super::State;
use super::client::site;
use super::error::{ApiError, Envelope, ErrorEnvelope};
use crate::clock::UnixMillis;
use crate::stats::answers::{EventItem, PageItem, Realtime, ReferrerItem, Summary, Timeseries, Top};
use crate::stats::timeseries::{Interval, Metric};
use crate::stats::{Range, WindowName};

/// Lists are at most so long.
const MOST: usize = 1000;

/// Which running window.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct RealtimeQuery {
    /// `minute`, `hour` (the default) or `day`.
    #[param(example = "hour")]
    window: Option<String>,
    /// The site.
    site: Option<String>,
}

/// Which part of the past.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct RangeQuery {
    /// The site.
    site: Option<String>,
    /// RFC 3339, Unix milliseconds, or relative like -24h (the default).
    #[param(example = "-24h")]
    from: Option<String>,
    /// The same; now by default.
    to: Option<String>,
}

/// Which list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct TopQuery {
    /// The site.
    site: Option<String>,
    /// RFC 3339, Unix milliseconds, or relative like -24h (the default).
    #[param(example = "-24h")]
    from: Option<String>,
    /// The same; now by default.
    to: Option<String>,
    /// At most this many, 1 to 1000; 10 by default.
    #[param(example = 10)]
    limit: Option<usize>,
}

/// Which series.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct SeriesQuery {
    /// The site.
    site: Option<String>,
    /// `page_views` (the default), `unique_visitors`, `sessions` or `events`.
    #[param(example = "page_views")]
    metric: Option<String>,
    /// `minute`, `hour` (the default) or `day`.
    #[param(example = "hour")]
    interval: Option<String>,
    /// IANA zone whose hours and days are meant; UTC by default.
    #[param(example = "Europe/Berlin")]
    tz: Option<String>,
    /// RFC 3339, Unix milliseconds, or relative like -24h (the default).
    #[param(example = "-24h")]
    from: Option<String>,
    /// The same; now by default.
    to: Option<String>,
}

fn range(from: &Option<String>, to: &Option<String>, now: UnixMillis) -> Result<Range, ApiError> {
    Ok(Range::parse(from.as_deref(), to.as_deref(), now)?)
}

/// The answer, or 304 when the client has it. The tag is of the data alone, as the envelope's timestamp always moves.
fn answer<T: Serialize>(data: &T, etag: &IfNoneMatch, now: UnixMillis) -> Result<HttpResponse, ApiError> {
    let data = serde_json::to_vec(data).map_err(ApiError::internal)?;
    let tag = xxh3_64(&data);
    Ok(tagged(&data, tag, etag, now))
}

fn tagged(data: &[u8], tag: u64, if_none_match: &IfNoneMatch, now: UnixMillis) -> HttpResponse {
    let known = match if_none_match {
        IfNoneMatch::Items(tags) if tags.is_empty() => false,
        IfNoneMatch::Items(tags) => {
            let tag = EntityTag::new_weak(format!("{tag:x}"));
            tags.iter().any(|known| known.weak_eq(&tag))
        }
        IfNoneMatch::Any => true,
    };
    let mut answer = if known { HttpResponse::NotModified() } else { HttpResponse::Ok() };
    answer.insert_header(ETag(EntityTag::new_weak(format!("{tag:x}"))));
    // Numbers move at any moment; asking again costs a 304.
    answer.insert_header((header::CACHE_CONTROL, "private, no-cache"));
    if known {
        return answer.finish();
    }
    let mut body = Vec::with_capacity(data.len() + 64);
    body.extend_from_slice(b"{\"success\":true,\"data\":");
    body.extend_from_slice(data);
    body.extend_from_slice(format!(",\"timestamp\":{}}}", now.div_euclid(1000)).as_bytes());
    answer.insert_header((header::CONTENT_TYPE, "application/json"));
    answer.body(Bytes::from(body))
}

/// The running minute, hour or day.
#[utoipa::path(tag = "out", params(RealtimeQuery), responses(
    (status = 200, body = Envelope<Realtime>, example = json!({"success": true, "data": {"site": "default", "time_window": "hour", "window_start": 1795420800, "page_views": 1, "unique_visitors": 1,
        "sessions": 1, "bots": 0, "hot_pages": [{"url": "https://shop.example/a", "views": 1}],
        "events": {"click": 1, "page_view": 1}, "exact": true, "as_of": {"offset": 5, "time": "2026-11-23T08:28:14.693Z"}}, "timestamp": 1795422495})),
    (status = 304, description = "As the client has it"),
    (status = 400, description = "A parameter makes no sense", body = ErrorEnvelope),
))]
#[get("/api/v1/stats/realtime")]
pub async fn realtime(
    query: web::Query<RealtimeQuery>,
    etag: web::Header<IfNoneMatch>,
    state: web::Data<State>,
) -> Result<HttpResponse, ApiError> {
    let window = WindowName::parse(query.window.as_deref().unwrap_or("hour"))
        .ok_or_else(|| ApiError::BadRequest(String::from("window must be minute, hour or day")))?;
    let now = state.clock.now();
    let realtime = state.stats.realtime(site(&query.site)?, window, now).await;
    Ok(tagged(&realtime.data, realtime.version, &etag, now))
}

/// Totals over a range; visitors are those of the whole range, each once.
#[utoipa::path(path = "/api/v1/stats/summary", tag = "out", params(RangeQuery), responses(
    (status = 200, body = Envelope<Summary>, example = json!({"success": true, "data": {"site": "default", "from": "2026-11-22T08:28:00.000Z", "to": "2026-11-23T08:29:00.000Z",
        "page_views": 1, "unique_visitors": 1, "sessions": 1, "bots": 0, "bot_reasons": {},
        "events": {"click": 1, "page_view": 1}, "exact": true, "as_of": {"offset": 5, "time": "2026-11-23T08:28:14.693Z"}}, "timestamp": 1795422495})),
    (status = 304, description = "As the client has it"),
    (status = 400, description = "A parameter makes no sense", body = ErrorEnvelope),
))]
#[get("/summary")]
pub async fn summary(
    query: web::Query<RangeQuery>,
    etag: web::Header<IfNoneMatch>,
    state: web::Data<State>,
) -> Result<HttpResponse, ApiError> {
    let now = state.clock.now();
    let range = range(&query.from, &query.to, now)?;
    let summary = state.stats.summary(site(&query.site)?, range, now).await?;
    answer(&*summary, &etag, now)
}

/// A number over time, one point a bucket, empty ones included.
#[utoipa::path(path = "/api/v1/stats/timeseries", tag = "out", params(SeriesQuery), responses(
    (status = 200, body = Envelope<Timeseries>, example = json!({"success": true, "data": {"site": "default", "metric": "page_views", "interval": "hour", "tz": "Asia/Kathmandu",
        "from": "2026-11-23T13:00:00+05:45", "to": "2026-11-23T14:14:00+05:45",
        "points": [{"start": "2026-11-23T13:00:00+05:45", "value": 0}, {"start": "2026-11-23T14:00:00+05:45", "value": 1}],
        "exact": true, "as_of": {"offset": 5, "time": "2026-11-23T08:28:14.693Z"}}, "timestamp": 1795422495})),
    (status = 304, description = "As the client has it"),
    (status = 400, description = "A parameter makes no sense", body = ErrorEnvelope),
))]
#[get("/timeseries")]
pub async fn timeseries(
    query: web::Query<SeriesQuery>,
    etag: web::Header<IfNoneMatch>,
    state: web::Data<State>,
) -> Result<HttpResponse, ApiError> {
    let now = state.clock.now();
    let range = range(&query.from, &query.to, now)?;
    let metric = Metric::parse(query.metric.as_deref().unwrap_or("page_views")).ok_or_else(|| {
        ApiError::BadRequest(String::from("metric must be page_views, unique_visitors, sessions or events"))
    })?;
    let interval = Interval::parse(query.interval.as_deref().unwrap_or("hour"))
        .ok_or_else(|| ApiError::BadRequest(String::from("interval must be minute, hour or day")))?;
    let tz = query.tz.as_deref().unwrap_or("UTC");
    let series = state.stats.timeseries(site(&query.site)?, metric, interval, tz, range, now).await?;
    answer(&*series, &etag, now)
}

impl TopQuery {
    /// Site, range and limit.
    fn parts(&self, now: UnixMillis) -> Result<(&str, Range, usize), ApiError> {
        let range = range(&self.from, &self.to, now)?;
        match self.limit.unwrap_or(10) {
            limit @ 1..=MOST => Ok((site(&self.site)?, range, limit)),
            _ => Err(ApiError::BadRequest(format!("limit must be 1 to {MOST}"))),
        }
    }
}

/// The most viewed pages.
#[utoipa::path(path = "/api/v1/stats/pages", tag = "out", params(TopQuery), responses(
    (status = 200, body = Envelope<Top<PageItem>>, example = json!({"success": true, "data": {"site": "default", "from": "2026-11-22T08:28:00.000Z", "to": "2026-11-23T08:29:00.000Z",
        "total": 1, "items": [{"url": "https://shop.example/a", "views": 1, "share": 1.0}], "as_of": {"offset": 5, "time": "2026-11-23T08:28:14.693Z"}}, "timestamp": 1795422495})),
    (status = 304, description = "As the client has it"),
    (status = 400, description = "A parameter makes no sense", body = ErrorEnvelope),
))]
#[get("/pages")]
pub async fn pages(
    query: web::Query<TopQuery>,
    etag: web::Header<IfNoneMatch>,
    state: web::Data<State>,
) -> Result<HttpResponse, ApiError> {
    let now = state.clock.now();
    let (site, range, limit) = query.parts(now)?;
    let top = state.stats.pages(site, range, limit, now).await?;
    answer(&*top, &etag, now)
}

/// The foreign sites that sent most visitors.
#[utoipa::path(path = "/api/v1/stats/referrers", tag = "out", params(TopQuery), responses(
    (status = 200, body = Envelope<Top<ReferrerItem>>, example = json!({"success": true, "data": {"site": "default", "from": "2026-11-22T08:28:00.000Z", "to": "2026-11-23T08:29:00.000Z",
        "total": 1, "items": [{"referrer": "news.example", "views": 1, "share": 1.0}], "as_of": {"offset": 5, "time": "2026-11-23T08:28:14.693Z"}}, "timestamp": 1795422495})),
    (status = 304, description = "As the client has it"),
    (status = 400, description = "A parameter makes no sense", body = ErrorEnvelope),
))]
#[get("/referrers")]
pub async fn referrers(
    query: web::Query<TopQuery>,
    etag: web::Header<IfNoneMatch>,
    state: web::Data<State>,
) -> Result<HttpResponse, ApiError> {
    let now = state.clock.now();
    let (site, range, limit) = query.parts(now)?;
    let top = state.stats.referrers(site, range, limit, now).await?;
    answer(&*top, &etag, now)
}

/// The most frequent event types.
#[utoipa::path(path = "/api/v1/stats/events", operation_id = "stats_events", tag = "out", params(TopQuery), responses(
    (status = 200, body = Envelope<Top<EventItem>>, example = json!({"success": true, "data": {"site": "default", "from": "2026-11-22T08:28:00.000Z", "to": "2026-11-23T08:29:00.000Z",
        "total": 1, "items": [{"type": "click", "count": 1, "share": 1.0}], "as_of": {"offset": 5, "time": "2026-11-23T08:28:14.693Z"}}, "timestamp": 1795422495})),
    (status = 304, description = "As the client has it"),
    (status = 400, description = "A parameter makes no sense", body = ErrorEnvelope),
))]
#[get("/events")]
pub async fn events(
    query: web::Query<TopQuery>,
    etag: web::Header<IfNoneMatch>,
    state: web::Data<State>,
) -> Result<HttpResponse, ApiError> {
    let now = state.clock.now();
    let (site, range, limit) = query.parts(now)?;
    let top = state.stats.events(site, range, limit, now).await?;
    answer(&*top, &etag, now)
}
