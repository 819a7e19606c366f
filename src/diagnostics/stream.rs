//! How the stream is: its part of health, its metrics, and its side of the audit.

use prometheus::proto::{MetricFamily, MetricType};
use serde::Serialize;
use utoipa::ToSchema;

use super::audit::{Books, StoreBook};
use super::health::Status;
use super::metrics::family;
use crate::journal::Journal;
use crate::stream::{Lane, StreamHandle, known_code};

/// Entries that may wait without anything being wrong: what comes while a transaction is on its way.
const BEHIND: u64 = 200_000;

/// The stream to Kafka.
#[derive(Debug, Serialize, ToSchema)]
pub struct StreamHealth {
    /// The worse of both readers.
    pub status: Status,
    /// Why nothing is delivered, or that it is behind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Events before this number are in Kafka.
    pub delivered_through: u64,
    /// Entries whose events are not yet there.
    pub behind: u64,
    /// The aggregates in Kafka count through this number.
    pub aggregates_through: u64,
    /// Records that went to the dead letters since the start.
    pub dead_letters: u64,
    /// How often Kafka had forgotten what it had confirmed.
    pub losses: u64,
    /// How often an actor was made anew.
    pub restarts: u64,
}

impl StreamHealth {
    /// Reads published numbers only.
    pub fn of(stream: &StreamHandle, journal: &Journal) -> Self {
        let (events, aggregates) = (stream.events(), stream.aggregates());
        let behind = journal.end().saturating_sub(events.delivered());
        let late = (behind > BEHIND).then(|| format!("{behind} entries behind"));
        let reason = events.fault().or_else(|| aggregates.fault()).or(late);
        let (panicked, failed) = stream.restarts_by_cause();
        Self {
            // Ingest does without it, so that the server stays in service whatever Kafka does.
            status: if reason.is_some() { Status::Degraded } else { Status::Ok },
            reason,
            delivered_through: events.delivered(),
            behind,
            aggregates_through: aggregates.delivered(),
            dead_letters: stream.dead_letters(),
            losses: events.losses() + aggregates.losses(),
            restarts: panicked + failed,
        }
    }
}

/// The stream's metrics.
pub fn families(stream: &StreamHandle, end: u64) -> Vec<MetricFamily> {
    type Read = fn(&Lane) -> u64;
    let by_lane: [(&str, &str, MetricType, Read); 6] = [
        ("tidegate_stream_offset", "Offset through which Kafka has it", MetricType::GAUGE, Lane::delivered),
        ("tidegate_stream_transactions_total", "Runs committed since the start", MetricType::COUNTER, Lane::runs),
        ("tidegate_stream_aborts_total", "Runs given up and begun again", MetricType::COUNTER, Lane::aborts),
        ("tidegate_stream_sessions_total", "Sessions with Kafka since the start", MetricType::COUNTER, Lane::sessions),
        ("tidegate_stream_records_total", "Records delivered since the start", MetricType::COUNTER, Lane::records),
        (
            "tidegate_stream_losses_total",
            "How often Kafka had forgotten what it had confirmed",
            MetricType::COUNTER,
            Lane::losses,
        ),
    ];
    let lanes = [("events", stream.events()), ("aggregates", stream.aggregates())];
    let mut families: Vec<MetricFamily> = by_lane
        .iter()
        .map(|(name, help, kind, read)| {
            let values = lanes.map(|(lane, of)| ([("reader", lane)], read(of) as f64));
            let values: Vec<(&[(&str, &str)], f64)> = values.iter().map(|(l, v)| (l.as_slice(), *v)).collect();
            family(name, help, *kind, &values)
        })
        .collect();
    let lag = lanes.map(|(lane, of)| ([("reader", lane)], end.saturating_sub(of.delivered()) as f64));
    let lag: Vec<(&[(&str, &str)], f64)> = lag.iter().map(|(l, v)| (l.as_slice(), *v)).collect();
    families.push(family("tidegate_stream_behind", "Entries not yet in Kafka", MetricType::GAUGE, &lag));
    let dead: [(&[(&str, &str)], f64); 1] = [(&[], stream.dead_letters() as f64)];
    families.push(family(
        "tidegate_stream_dead_letters_total",
        "Records refused and sent to the dead letters since the start",
        MetricType::COUNTER,
        &dead,
    ));
    families
}

/// The stream's books for the audit, and through which entry they go.
pub fn books(stream: &StreamHandle) -> Result<(Books, u64), String> {
    let cursor = stream.books();
    if cursor.journal.is_empty() {
        return Err(stream.events().fault().unwrap_or_else(|| String::from("Kafka has not told yet")));
    }
    let books = cursor.sites.iter().map(|(site, book)| {
        let rejected = book.rejected.iter().filter_map(|(code, count)| Some((known_code(code)?, *count))).collect();
        (site.clone(), StoreBook { counted: book.counted, duplicates: book.duplicates, rejected })
    });
    Ok((books.collect(), cursor.next))
}
