//! For whoever operates the server: health, the audit, raw export, and a visitor's events.

use actix_web::http::header;
use actix_web::web::{self, Bytes};
use actix_web::{HttpResponse, get};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use utoipa::{IntoParams, ToSchema};

use super::State;
use super::client::{Operator, site};
use super::error::{ApiError, Envelope, ErrorEnvelope};
use crate::clock::UnixMillis;
use crate::diagnostics::audit::{Audit, audit as take_audit};
use crate::diagnostics::health::{Health, Parts, Status};
use crate::event::record::Record;
use crate::event::visitor;
use crate::journal::export::{Filter, Format, write_events};
use crate::stats::AsOf;
use crate::stats::range::parse_time;

/// The process runs.
#[utoipa::path(tag = "operate", operation_id = "health_live",
    responses((status = 200, description = "The process runs", body = Object, example = json!({"status": "ok"}))))]
#[get("/health/live")]
pub async fn live() -> HttpResponse {
    HttpResponse::Ok().insert_header((header::CACHE_CONTROL, "no-store")).json(serde_json::json!({"status": "ok"}))
}

/// Whether to send traffic here.
#[utoipa::path(tag = "operate", responses(
    (status = 200, description = "Send traffic", body = Health, example = json!({"status": "ok", "phase": "ready"})),
    (status = 503, description = "Send it elsewhere: starting, draining, or the journal cannot be written", body = Health),
))]
#[get("/health/ready")]
pub async fn ready(state: web::Data<State>) -> HttpResponse {
    health_answer(&state)
}

/// The state of each part.
#[utoipa::path(tag = "operate", responses(
    (status = 200, description = "All is well, or degraded: the parts say why", body = Health, example = json!({"status": "degraded", "phase": "ready",
        "catalog": {"status": "ok", "database": "SQLite"}, "identity": {"status": "degraded", "reason": "the keys of identity.issuers.#1 cannot be read; those that are known are used"}})),
    (status = 503, description = "Something is not", body = Health),
))]
#[get("/health")]
pub async fn health(state: web::Data<State>) -> HttpResponse {
    health_answer(&state)
}

fn health_answer(state: &State) -> HttpResponse {
    let found = Health::of(&Parts {
        journal: &state.journal,
        stats: &state.stats,
        stream: state.stream.as_ref(),
        catalog: &state.catalog,
        identity: &state.identity,
        gateway: state.gateway.as_ref(),
        config_fault: state.control.fault(),
        lifecycle: &state.lifecycle,
    });
    let mut answer = match found.status {
        Status::Ok | Status::Degraded => HttpResponse::Ok(),
        Status::Unavailable => HttpResponse::ServiceUnavailable(),
    };
    answer.insert_header((header::CACHE_CONTROL, "no-store")).json(found)
}

/// Does everything that came in stand where it belongs? Compares the journal's books with the store's, site by site.
#[utoipa::path(tag = "operate", responses((status = 200, description = "Both sides", body = Envelope<Audit>, example = json!({"success": true, "data": {"sites": [{"site": "default",
    "journal": {"received": 4, "accepted": 2, "duplicates": 1, "rejected": {"missing_type": 1}},
    "store": {"counted": 2, "duplicates": 1, "rejected": {"missing_type": 1}},
    "pending": {"counted": 0, "duplicates": 0, "rejected": {}}, "agree": true}], "lost": 0, "agree": true,
    "as_of": {"offset": 4, "time": "2026-11-23T08:28:14.693Z"}}, "timestamp": 1795422495}))))]
#[get("/api/v1/audit")]
pub async fn audit(state: web::Data<State>) -> Result<HttpResponse, ApiError> {
    let audit = take_audit(&state.journal, &state.stats, state.stream.as_ref()).await.map_err(|error| {
        log::error!("audit: {error}");
        ApiError::Unavailable(String::from("the audit cannot be taken right now"))
    })?;
    let answer = Envelope::new(audit, state.clock.now());
    Ok(HttpResponse::Ok().insert_header((header::CACHE_CONTROL, "no-store")).json(answer))
}

/// The JSON Schema of what goes to Kafka: `events.v1.json`, `aggregates.v1.json` or `dead-letter.v1.json`.
#[utoipa::path(tag = "operate", params(("name" = String, Path, example = "events.v1.json")), responses(
    (status = 200, description = "JSON Schema 2020-12", content_type = "application/schema+json", body = Object,
        example = json!({"$id": "/schemas/events.v1.json", "type": "object"})),
    (status = 404, description = "There is no such schema", body = ErrorEnvelope),
))]
#[get("/schemas/{name}")]
pub async fn schema(name: web::Path<String>) -> Result<HttpResponse, ApiError> {
    let text = crate::stream::schema::schema(&name).ok_or(ApiError::NotFound("there is no such schema"))?;
    Ok(HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, "application/schema+json"))
        .insert_header((header::CACHE_CONTROL, "public, max-age=3600"))
        .body(text))
}

/// What to export.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct ExportQuery {
    /// `ndjson` or `csv`.
    #[param(example = "ndjson")]
    format: Option<String>,
    /// Only this site.
    site: Option<String>,
    /// Only events from this time on.
    #[param(example = "-24h")]
    from: Option<String>,
    /// Only events before this time.
    to: Option<String>,
}

/// Streams the raw events that the journal still has. For the operator only.
#[utoipa::path(tag = "operate", params(ExportQuery), security((), ("operator" = [])), responses(
    (status = 200, description = "One event a line", content((String = "application/x-ndjson"), (String = "text/csv"))),
    (status = 400, description = "A parameter makes no sense", body = ErrorEnvelope),
    (status = 401, description = "Not the operator", body = ErrorEnvelope),
))]
#[get("/api/v1/export")]
pub async fn export(
    _operator: Operator,
    query: web::Query<ExportQuery>,
    state: web::Data<State>,
) -> Result<HttpResponse, ApiError> {
    let format = match query.format.as_deref() {
        None | Some("ndjson") => Format::Ndjson,
        Some("csv") => Format::Csv,
        Some(_) => return Err(ApiError::BadRequest(String::from("format must be ndjson or csv"))),
    };
    let now = state.clock.now();
    let time = |name: &str, text: &Option<String>| text.as_deref().map(|text| parse_time(name, text, now)).transpose();
    let filter = Filter { site: query.site.clone(), from: time("from", &query.from)?, to: time("to", &query.to)? };
    let reader = state.journal.reader(0);
    let name = state.journal.name().to_owned();
    // A few pieces ahead, so that a slow client holds up the reading and not the memory.
    let (tx, rx) = mpsc::channel::<Result<Bytes, std::io::Error>>(4);
    tokio::task::spawn_blocking(move || {
        let send = |piece: Vec<u8>| tx.blocking_send(Ok(Bytes::from(piece))).is_ok();
        if let Err(error) = write_events(reader, &name, format, &filter, send) {
            log::error!("export: {error}");
            // An error in the stream cuts the connection, so that the client does not take half for all.
            let _ = tx.blocking_send(Err(std::io::Error::other("the export was cut short")));
        }
    });
    let kind = match format {
        Format::Ndjson => "application/x-ndjson",
        Format::Csv => "text/csv; charset=utf-8",
    };
    Ok(HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, kind))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .streaming(ReceiverStream::new(rx)))
}

/// Whose events, and how many.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct VisitorQuery {
    /// At most this many, 1 to 100.
    #[param(example = 50)]
    limit: Option<usize>,
    /// The site.
    site: Option<String>,
}

/// A visitor's latest events.
#[derive(Serialize, ToSchema)]
pub struct VisitorEvents {
    user_id: String,
    site: String,
    /// Newest first.
    #[schema(value_type = Vec<Record>)]
    events: Vec<Box<serde_json::value::RawValue>>,
    as_of: AsOf,
}

/// A visitor's latest events, newest first; with a shared store, those that all instances took in. `id` is a `user_id`, or an anonymous visitor's hash as exports show it. For
/// the operator only.
#[utoipa::path(
    tag = "operate",
    params(("id" = String, Path, example = "u42"), VisitorQuery),
    security((), ("operator" = [])),
    responses(
        (status = 200, description = "At most 100 events", body = Envelope<VisitorEvents>),
        (status = 400, description = "A parameter makes no sense", body = ErrorEnvelope),
        (status = 401, description = "Not the operator", body = ErrorEnvelope),
    )
)]
#[get("/api/v1/users/{id}/events")]
pub async fn visitor_events(
    _operator: Operator,
    id: web::Path<String>,
    query: web::Query<VisitorQuery>,
    state: web::Data<State>,
) -> Result<HttpResponse, ApiError> {
    let limit = query.limit.unwrap_or(100);
    if !(1..=100).contains(&limit) {
        return Err(ApiError::BadRequest(String::from("limit must be 1 to 100")));
    }
    let user_id = id.into_inner();
    let site = site(&query.site)?.to_owned();
    if let Some(events) = state.stats.user_events(&site, &user_id, limit).await {
        let now = state.clock.now();
        let as_of = AsOf { offset: state.stats.counted(), time: Some(now) };
        let events = VisitorEvents { user_id, site, events: events.to_vec(), as_of };
        let answer = Envelope::new(events, now);
        return Ok(HttpResponse::Ok().insert_header((header::CACHE_CONTROL, "no-store")).json(answer));
    }
    let visitors = visitor_hashes(&site, &user_id);
    let journal = state.journal.clone();
    let (site, events) = web::block(move || {
        let mut events: Vec<(UnixMillis, Box<serde_json::value::RawValue>)> = Vec::new();
        for visitor in visitors {
            journal.latest(visitor, limit, |offset, event| {
                if event.site == site {
                    let record = Record::new(event, offset, journal.name());
                    events.extend(serde_json::value::to_raw_value(&record).map(|json| (event.timestamp, json)));
                }
            })?;
            if !events.is_empty() {
                break;
            }
        }
        // The journal has them as they came; what was delayed on its way belongs further down.
        events.sort_by_key(|(timestamp, _)| std::cmp::Reverse(*timestamp));
        Ok::<_, crate::journal::JournalError>((site, events.into_iter().map(|(_, json)| json).collect()))
    })
    .await
    .map_err(ApiError::internal)?
    .map_err(ApiError::internal)?;
    let now = state.clock.now();
    let as_of = AsOf { offset: state.journal.end(), time: Some(now) };
    let answer = Envelope::new(VisitorEvents { user_id, site, events, as_of }, now);
    Ok(HttpResponse::Ok().insert_header((header::CACHE_CONTROL, "no-store")).json(answer))
}

fn visitor_hashes(site: &str, id: &str) -> Vec<u64> {
    let anonymous = (id.len() == 16).then(|| u64::from_str_radix(id, 16).ok()).flatten();
    std::iter::once(visitor::known(site, id)).chain(anonymous).collect()
}
