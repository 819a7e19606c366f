//! The live feed as server-sent events.

use std::time::Duration;

use actix_web::http::header;
use actix_web::web::{self, Bytes};
use actix_web::{HttpRequest, HttpResponse, get};
use futures_util::stream;
use serde::Deserialize;
use utoipa::IntoParams;

use super::State;
use super::client::site;
use super::error::{ApiError, ErrorEnvelope};
use crate::stats::{FeedEvent, Subscription};

/// Proxies cut connections on which nothing is said for so long, or longer.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Which site to follow.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct LiveQuery {
    /// The site.
    site: Option<String>,
    /// For clients that cannot set the header `Last-Event-ID`.
    last_event_id: Option<String>,
}

/// Follows a site: a `snapshot`, then a `delta` at most every 250 ms; `gap` and a snapshot when something was missed.
/// `Last-Event-ID` resumes.
#[utoipa::path(tag = "out", operation_id = "stats_live", params(LiveQuery), responses(
    (status = 200, description = "Server-sent events", content_type = "text/event-stream", body = String,
        example = "retry: 2000\n\nid: 5f0c2a7be1d4-1\nevent: snapshot\ndata: {\"site\":\"default\"}\n\n"),
    (status = 400, description = "A parameter makes no sense", body = ErrorEnvelope),
))]
#[get("/api/v1/stats/live")]
pub async fn live(
    req: HttpRequest,
    query: web::Query<LiveQuery>,
    state: web::Data<State>,
) -> Result<HttpResponse, ApiError> {
    let site = site(&query.site)?;
    let last = req.headers().get("last-event-id").and_then(|id| id.to_str().ok());
    let subscription = state.stats.feed().subscribe(site, last.or(query.last_event_id.as_deref()));
    let lifecycle = state.lifecycle.clone();
    let first = stream::iter([Ok::<_, actix_web::Error>(Bytes::from_static(b"retry: 2000\n\n"))]);
    let rest = stream::unfold((subscription, lifecycle), |(mut subscription, lifecycle)| async move {
        let piece = tokio::select! {
            event = next(&mut subscription) => event?,
            // A reader that stays would hold up the drain; it reconnects, elsewhere or when we are back.
            () = lifecycle.draining() => return None,
        };
        Some((Ok(piece), (subscription, lifecycle)))
    });
    Ok(HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, "text/event-stream"))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        // nginx would hold events back until its buffer is full.
        .insert_header(("x-accel-buffering", "no"))
        .streaming(futures_util::StreamExt::chain(first, rest)))
}

async fn next(subscription: &mut Subscription) -> Option<Bytes> {
    match tokio::time::timeout(HEARTBEAT, subscription.next()).await {
        Ok(event) => event.map(|event| frame(&event)),
        Err(_) => Some(Bytes::from_static(b": still here\n\n")),
    }
}

/// JSON has no line breaks of its own, so one `data` line is enough.
fn frame(event: &FeedEvent) -> Bytes {
    let mut text = Vec::with_capacity(event.data.len() + 64);
    text.extend_from_slice(format!("id: {}\nevent: {}\ndata: ", event.id, event.kind.as_str()).as_bytes());
    text.extend_from_slice(&event.data);
    text.extend_from_slice(b"\n\n");
    Bytes::from(text)
}
