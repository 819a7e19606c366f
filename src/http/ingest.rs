//! The way in: beacons, the pixel, and the operator's import.

use std::time::Duration;

use actix_web::http::header;
use actix_web::web::{self, Bytes, Payload};
use actix_web::{HttpRequest, HttpResponse, get, post};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use utoipa::ToSchema;

use super::State;
use super::body::{self, INLINE, Limits};
use super::claim::claim;
use super::client::{self, Operator};
use super::error::{ApiError, Envelope, ErrorEnvelope};
use super::settings::Settings;
use crate::actor::admission::Permit;
use crate::clock::{Stopwatch, UnixMillis};
use crate::event::decode::{self, Framing};
use crate::event::intake::{Intake, Sender};
use crate::event::wire::RawEvent;
use crate::event::{Batch, EntryMeta, MAX_LISTED, Reject, RejectCode};
use crate::journal::{Appended, Gatherer};

/// Events of a long body that are appended at once.
const SLICE_EVENTS: usize = 1024;
/// Bytes of events of a long body that are appended at once.
const SLICE_BYTES: usize = 128 << 10;
/// What the slices of one long body take from the budget: one is decoded, one waits, one is being appended.
const SLICES_COST: usize = 3 * (SLICE_BYTES + SLICE_EVENTS * size_of::<EntryMeta>() + (16 << 10));
/// How long a body that is half taken waits for room.
const PATIENCE: Duration = Duration::from_secs(30);

/// A transparent image of one pixel.
const PIXEL: [u8; 43] = [
    0x47, 0x49, 0x46, 0x38, 0x39, 0x61, 0x01, 0x00, 0x01, 0x00, 0x80, 0x00, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff,
    0x21, 0xf9, 0x04, 0x01, 0x00, 0x00, 0x00, 0x00, 0x2c, 0x00, 0x00, 0x00, 0x00, 0x01, 0x00, 0x01, 0x00, 0x00, 0x02,
    0x02, 0x44, 0x01, 0x00, 0x3b,
];

/// What became of the events of a request.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"accepted": 2, "duplicates": 0, "rejected": [], "durability": "written"}))]
pub struct Accepted {
    /// Events that will be counted, each once.
    accepted: u32,
    /// Events whose id was accepted before.
    duplicates: u32,
    /// Events that were refused: `index`, `code`, `message`.
    #[schema(value_type = Vec<Object>)]
    rejected: Vec<Reject>,
    /// How many were refused, where that is more than are listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    rejected_total: Option<u64>,
    /// How safe the accepted ones are: `received`, `written` or `synced`.
    durability: &'static str,
}

/// Takes events.
#[utoipa::path(
    post,
    path = "/api/v1/events",
    operation_id = "post_events",
    tag = "in",
    params(
        ("write_key" = Option<String>, Query, description = "For sites that have write keys, where no header can be set"),
        ("X-Write-Key" = Option<String>, Header, description = "The same"),
    ),
    request_body(
        description = "One JSON event, an array, or NDJSON lines; gzip, deflate, br or zstd.",
        content((Object = "application/json", example = json!({
            "url": "https://shop.example/products/17", "id": "0b0c7c58-6d2f-4f59-a7cb-2a5cf6c1b7a9",
            "product_id": "17", "user_id": "u42"
        })), (String = "text/plain"), (String = "application/x-ndjson"))
    ),
    responses(
        (status = 202, description = "At least one event could be used", body = Envelope<Accepted>),
        (status = 400, description = "No event could be used", body = ErrorEnvelope),
        (status = 403, description = "No event is taken: write keys or origins of their sites", body = ErrorEnvelope),
        (status = 413, description = "Too long", body = ErrorEnvelope),
        (status = 415, description = "Unknown encoding", body = ErrorEnvelope),
        (status = 503, description = "Try again after Retry-After", body = ErrorEnvelope),
    )
)]
pub async fn events(
    req: HttpRequest,
    payload: Payload,
    settings: Settings,
    state: web::Data<State>,
) -> Result<HttpResponse, ApiError> {
    take(req, payload, settings, state, false).await
}

/// Takes events that name their own `address` and `user_agent`, as `tidegate import` sends them. Their ids are
/// remembered for ever. For the operator only.
#[utoipa::path(
    tag = "operate",
    security((), ("operator" = [])),
    request_body(content((String = "application/x-ndjson", example =
        "{\"url\":\"/a\",\"id\":\"1\",\"timestamp\":1431857103000,\"address\":\"192.0.2.1\",\"user_agent\":\"Firefox\"}"))),
    responses(
        (status = 202, description = "At least one event could be used", body = Envelope<Accepted>),
        (status = 400, description = "No event could be used", body = ErrorEnvelope),
        (status = 401, description = "Not the operator", body = ErrorEnvelope),
        (status = 503, description = "Try again after Retry-After", body = ErrorEnvelope),
    )
)]
#[post("/api/v1/import")]
pub async fn import(
    _operator: Operator,
    req: HttpRequest,
    payload: Payload,
    settings: Settings,
    state: web::Data<State>,
) -> Result<HttpResponse, ApiError> {
    take(req, payload, settings, state, true).await
}

async fn take(
    req: HttpRequest,
    payload: Payload,
    settings: Settings,
    state: web::Data<State>,
    imported: bool,
) -> Result<HttpResponse, ApiError> {
    let mut permit = state.journal.begin();
    let limits = Limits { bytes: settings.max_body, pause: state.client_timeout };
    let body = body::read(&req, payload, limits, &mut permit).await?;
    let received = state.clock.now();
    let framing = framing(&req);
    let mut outcome = RequestOutcome::default();
    if body.len() <= INLINE {
        let (address, claim) = (address(&req, &settings), claim(&req, &settings.rules));
        let sender = Sender {
            address: &address,
            agent: client::agent(req.headers()),
            privacy_signal: client::privacy_signal(req.headers()),
            received,
            import: imported,
            claim: &claim,
        };
        let mut batch = Batch::default();
        batch.bytes.reserve(body.len());
        decode_body(&state, &settings, &body, framing, sender, |index, raw, intake| {
            intake.take(index, raw, &mut batch)
        });
        permit.grow(batch.cost())?;
        append(&req, &state, batch, permit, &mut outcome).await?;
    } else {
        // Before anything is taken: a body that is half taken must not wait for others that are, too.
        permit.grow(SLICES_COST)?;
        // Boxed, like all that is rare: a future is moved about, and the usual one should be small.
        Box::pin(in_slices(&req, &state, settings, body, framing, received, imported, &mut outcome)).await?;
    }
    outcome.answer(&state, received)
}

/// Decodes a long body off the HTTP thread, and appends it piece by piece: neither its events nor its block may be as
/// large as a client likes.
#[expect(clippy::too_many_arguments, reason = "what a request is made of; a struct would be unpacked at once")]
async fn in_slices(
    req: &HttpRequest,
    state: &web::Data<State>,
    settings: Settings,
    body: Bytes,
    framing: Framing,
    received: UnixMillis,
    imported: bool,
    outcome: &mut RequestOutcome,
) -> Result<(), ApiError> {
    // The request cannot leave its thread; what is needed of it can.
    let (address, agent) = (address(req, &settings), client::agent(req.headers()).to_owned());
    let claim = claim(req, &settings.rules);
    let privacy_signal = client::privacy_signal(req.headers());
    let (tx, mut slices) = mpsc::channel::<Batch>(1);
    let shared = state.clone();
    let decoding = tokio::task::spawn_blocking(move || {
        let (address, agent, claim) = (&address, &agent, &claim);
        let sender = Sender { address, agent, privacy_signal, received, import: imported, claim };
        let mut batch = Batch::default();
        decode_body(&shared, &settings, &body, framing, sender, |index, raw, intake| {
            intake.take(index, raw, &mut batch);
            if batch.entries.len() >= SLICE_EVENTS || batch.bytes.len() >= SLICE_BYTES {
                // Nobody takes it when the client has gone.
                let _ = tx.blocking_send(std::mem::take(&mut batch));
            }
        });
        let _ = tx.blocking_send(batch);
    });
    let patience = Stopwatch::start();
    while let Some(slice) = slices.recv().await {
        let mut permit = state.journal.begin();
        // What is half taken is finished, as the client would send all of it again; and places come free by themselves.
        while outcome.taken() > 0 && permit.queue().is_err() && patience.elapsed() < PATIENCE {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if outcome.failed {
            outcome.leave(slice);
            continue;
        }
        let indexes: Vec<u32> = slice.entries.iter().map(|entry| entry.index).collect();
        if let Err(error) = append(req, state, slice, permit, outcome).await {
            if outcome.taken() == 0 {
                return Err(error);
            }
            outcome.failed = true;
            outcome.leave_events(indexes);
        }
    }
    decoding.await.map_err(ApiError::internal)
}

/// What became of a request's events so far.
#[derive(Default)]
struct RequestOutcome {
    appended: Appended,
    rejected: Vec<Reject>,
    refused: u64,
    /// Some were refused for the visitor's sake, which is no mistake of the page that sent the beacon.
    private: bool,
    /// Of those that were refused, how many for the sake of who sent them.
    not_allowed: u64,
    /// The journal stopped taking events in the middle of it.
    failed: bool,
}

impl RequestOutcome {
    fn taken(&self) -> u64 {
        u64::from(self.appended.accepted) + u64::from(self.appended.duplicates)
    }

    fn refuse(&mut self, rejected: impl IntoIterator<Item = Reject>, count: u64) {
        let room = MAX_LISTED.saturating_sub(self.rejected.len());
        self.rejected.extend(rejected.into_iter().take(room));
        self.refused += count;
    }

    fn leave(&mut self, slice: Batch) {
        self.refuse(slice.rejected, slice.refused);
        self.leave_events(slice.entries.iter().map(|entry| entry.index).collect());
    }

    fn leave_events(&mut self, indexes: Vec<u32>) {
        let message = "the journal stopped taking events; send this one again";
        let count = indexes.len() as u64;
        self.refuse(indexes.into_iter().map(|index| Reject::new(index, RejectCode::Unavailable, message)), count);
    }

    fn answer(mut self, state: &State, received: UnixMillis) -> Result<HttpResponse, ApiError> {
        let taken = self.taken();
        if taken == 0 && self.refused == 0 {
            let message = "the body has no event: send a JSON object, an array or lines";
            return Err(ApiError::BadRequest(String::from(message)));
        }
        self.rejected.sort_by_key(|reject| reject.index);
        if taken == 0 && !self.private {
            // Who may not send is told so only where nothing else is wrong: what else there is can be mended.
            let usable = self.not_allowed < self.refused;
            return Err(if usable { ApiError::NothingUsable } else { ApiError::NothingAllowed }(self.rejected));
        }
        let listed = self.rejected.len() as u64;
        let accepted = Accepted {
            accepted: self.appended.accepted,
            duplicates: self.appended.duplicates,
            rejected: self.rejected,
            rejected_total: (self.refused > listed).then_some(self.refused),
            durability: state.journal.options().durability.as_str(),
        };
        Ok(HttpResponse::Accepted().json(Envelope::new(accepted, received)))
    }
}

fn framing(req: &HttpRequest) -> Framing {
    let kind = req.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let lines = ["application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"];
    if lines.iter().any(|lines| kind.get(..lines.len()).is_some_and(|kind| kind.eq_ignore_ascii_case(lines))) {
        Framing::Lines
    } else {
        Framing::Guess
    }
}

fn address(req: &HttpRequest, settings: &Settings) -> String {
    client::address(req, &settings.trusted_proxies).map_or_else(String::new, |ip| ip.to_string())
}

/// Calls `each` with every event of a body. Bytes that are no UTF-8 become U+FFFD: inside an array they would take the
/// events behind them along.
fn decode_body(
    state: &State,
    settings: &Settings,
    body: &[u8],
    framing: Framing,
    sender: Sender<'_>,
    mut each: impl FnMut(u32, Result<RawEvent<'_>, Reject>, &Intake<'_>),
) {
    let mended;
    let body = match std::str::from_utf8(body) {
        Ok(_) => body,
        Err(_) => {
            mended = String::from_utf8_lossy(body);
            mended.as_bytes()
        }
    };
    let mut intake = Intake::new(&settings.rules, &state.salts, sender);
    if sender.import {
        intake = intake.knows(state.journal.name(), state.journal.end());
    }
    decode::body(body, framing, |index, raw| each(index, raw, &intake));
}

/// Appends a batch that is paid for, and notes what became of it.
async fn append(
    req: &HttpRequest,
    state: &State,
    mut batch: Batch,
    mut permit: Permit,
    outcome: &mut RequestOutcome,
) -> Result<(), ApiError> {
    if batch.is_empty() {
        return Ok(());
    }
    permit.queue()?;
    let (rejected, refused, known) = (std::mem::take(&mut batch.rejected), batch.refused, batch.known);
    let private = batch.outcomes.iter().any(|outcome| outcome.code == RejectCode::PrivacySignal);
    let of_sender = batch.outcomes.iter().filter(|outcome| outcome.code.is_of_sender());
    let not_allowed: u64 = of_sender.map(|outcome| outcome.count).sum();
    let appended = match req.app_data::<Gatherer>() {
        Some(gatherer) => gatherer.append(batch, permit).await?,
        None => state.journal.append(batch, permit).await?,
    };
    outcome.appended.accepted += appended.accepted;
    outcome.appended.duplicates += appended.duplicates + known;
    outcome.private |= private;
    outcome.not_allowed += not_allowed;
    outcome.refuse(rejected, refused);
    let message = "the server counts no further site; see ingest.max_sites";
    let sites = appended.too_many_sites.into_iter();
    let count = sites.len() as u64;
    outcome.refuse(sites.map(|index| Reject::new(index, RejectCode::TooManySites, message)), count);
    Ok(())
}

/// Takes one event from the query string, for pages without scripts and for mail.
#[utoipa::path(
    tag = "in",
    params(
        ("url" = Option<String>, Query, example = "https://shop.example/"),
        ("type" = Option<String>, Query), ("id" = Option<String>, Query), ("site" = Option<String>, Query),
        ("timestamp" = Option<String>, Query), ("sent_at" = Option<String>, Query),
        ("referrer" = Option<String>, Query), ("title" = Option<String>, Query),
        ("user_id" = Option<String>, Query), ("session_id" = Option<String>, Query),
        ("product_id" = Option<String>, Query), ("data" = Option<String>, Query, description = "A JSON object"),
        ("write_key" = Option<String>, Query, description = "For sites that have write keys"),
    ),
    responses(
        (status = 200, description = "An image of 43 bytes", content_type = "image/gif"),
        (status = 400, description = "The event could not be used", body = ErrorEnvelope),
        (status = 403, description = "The event is not taken: write keys or origins of its site", body = ErrorEnvelope),
        (status = 503, description = "Try again after Retry-After", body = ErrorEnvelope),
    )
)]
#[get("/api/v1/pixel.gif")]
pub async fn pixel(req: HttpRequest, settings: Settings, state: web::Data<State>) -> Result<HttpResponse, ApiError> {
    let received = state.clock.now();
    let (address, claim) = (address(&req, &settings), claim(&req, &settings.rules));
    let sender = Sender {
        address: &address,
        agent: client::agent(req.headers()),
        privacy_signal: client::privacy_signal(req.headers()),
        received,
        import: false,
        claim: &claim,
    };
    let query = req.query_string();
    let mut event = decode::query(query);
    // An image in a page knows where it is embedded even when nobody wrote it into the link.
    let embedded = req.headers().get(header::REFERER).and_then(|v| v.to_str().ok());
    if event.url.is_none() && event.event_type.is_none() {
        event.url = embedded.map(|url| crate::event::wire::Text(url.into()));
    }
    let data = decode::query_data(query);
    let parsed = data.as_deref().map(serde_json::from_str::<&RawValue>).transpose();
    let raw = match parsed {
        Ok(data) => {
            event.data = data;
            Ok(event)
        }
        Err(error) => Err(Reject::new(0, RejectCode::InvalidData, format!("data must be a JSON object: {error}"))),
    };
    let mut batch = Batch::default();
    Intake::new(&settings.rules, &state.salts, sender).take(0, raw, &mut batch);
    let mut outcome = RequestOutcome::default();
    let mut permit = state.journal.begin();
    permit.grow(batch.cost())?;
    append(&req, &state, batch, permit, &mut outcome).await?;
    outcome.answer(&state, received)?;
    Ok(HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, "image/gif"))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .body(&PIXEL[..]))
}
