//! Health: what works, part by part.

use std::sync::atomic::Ordering;

use serde::Serialize;
use utoipa::ToSchema;

use crate::catalog::CatalogHandle;
use crate::gateway::Gateway;
use crate::identity::Identity;
use crate::journal::Journal;
use crate::lifecycle::{Lifecycle, Phase};
use crate::stats::StatsHandle;
use crate::stream::StreamHandle;

use super::catalog::CatalogHealth;
use super::gateway::GatewayHealth;
use super::identity::IdentityHealth;
use super::stream::StreamHealth;

/// How a part, or the whole, is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Works.
    Ok,
    /// Works, but not as it should.
    Degraded,
    /// Does not work.
    Unavailable,
}

/// The state of the server.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"status": "degraded", "phase": "ready", "version": "0.1.0",
    "journal": {"status": "ok", "next_offset": 120}, "stats": {"status": "ok", "counted_through": 120, "behind": 0},
    "catalog": {"status": "ok", "database": "SQLite", "popularity_behind": 0},
    "identity": {"status": "degraded", "reason": "the keys of identity.issuers.#1 cannot be read; those that are known are used"}}))]
pub struct Health {
    /// The worst of all parts.
    pub status: Status,
    /// `starting`, `ready` or `draining`.
    phase: &'static str,
    version: &'static str,
    /// The config, where something is wrong with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    config: Option<ConfigHealth>,
    journal: JournalHealth,
    stats: StatsHealth,
    /// Where several instances add up, if anywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    shared: Option<SharedHealth>,
    /// What is handed on to Kafka, if anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<StreamHealth>,
    /// The products.
    catalog: CatalogHealth,
    /// Accounts, tokens and keys.
    identity: IdentityHealth,
    /// What is in front of other services, if anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<GatewayHealth>,
}

/// What is wrong with the config of a running server.
#[derive(Debug, Serialize, ToSchema)]
struct ConfigHealth {
    status: Status,
    reason: &'static str,
}

/// The journal.
#[derive(Debug, Serialize, ToSchema)]
struct JournalHealth {
    status: Status,
    /// Why nothing can be written.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    next_offset: u64,
    disk_bytes: u64,
    /// Bytes of a torn tail that were cut at the start.
    cut_bytes: u64,
    /// Entries lost to damage.
    lost: u64,
}

/// The statistics.
#[derive(Debug, Serialize, ToSchema)]
struct StatsHealth {
    status: Status,
    /// Why counting has stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    counted_through: u64,
    /// Entries not yet counted.
    behind: u64,
    restarts: u64,
}

/// The shared store.
#[derive(Debug, Serialize, ToSchema)]
struct SharedHealth {
    status: Status,
    /// What is wrong with it. The journal holds what comes meanwhile, and questions are answered by this instance alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    delivered_through: u64,
    /// Entries not yet there.
    behind: u64,
    /// Times that it had lost what it had confirmed, and was brought up to date again.
    losses: u64,
}

/// The parts of a server whose health is asked for.
pub struct Parts<'a> {
    /// The log.
    pub journal: &'a Journal,
    /// The statistics.
    pub stats: &'a StatsHandle,
    /// Kafka, if there is one.
    pub stream: Option<&'a StreamHandle>,
    /// The products.
    pub catalog: &'a CatalogHandle,
    /// Accounts and tokens.
    pub identity: &'a Identity,
    /// What is in front of other services.
    pub gateway: Option<&'a Gateway>,
    /// What is wrong with the config.
    pub config_fault: Option<&'static str>,
    /// Ready, or draining.
    pub lifecycle: &'a Lifecycle,
}

impl Health {
    /// Of the server's parts. Reads published numbers only, so that it answers when a part does not.
    pub fn of(parts: &Parts<'_>) -> Self {
        let &Parts { journal, stats, stream, catalog, identity, gateway, config_fault, lifecycle } = parts;
        let phase = lifecycle.phase();
        let fault = journal.fault();
        let recovery = journal.recovery();
        let lost = recovery.lost + stats.lost();
        let journal_status = match (&fault, lost) {
            (Some(_), _) => Status::Unavailable,
            (None, 0) => Status::Ok,
            (None, _) => Status::Degraded,
        };
        let counted = stats.counted();
        let behind = journal.end().saturating_sub(counted);
        let reason = stats.fault();
        let stats_status = if reason.is_some() { Status::Degraded } else { Status::Ok };
        let shared = stats.shared_state().map(|shared| {
            let (reason, delivered) = (shared.fault(), shared.delivered());
            SharedHealth {
                status: if reason.is_some() { Status::Degraded } else { Status::Ok },
                reason,
                delivered_through: delivered,
                behind: journal.end().saturating_sub(delivered),
                losses: shared.counters.losses.load(Ordering::Relaxed),
            }
        });
        let shared_status = shared.as_ref().map_or(Status::Ok, |shared| shared.status);
        let stream = stream.map(|stream| StreamHealth::of(stream, journal));
        let stream_status = stream.as_ref().map_or(Status::Ok, |stream| stream.status);
        let catalog = CatalogHealth::of(catalog);
        let identity = IdentityHealth::of(identity);
        let gateway = gateway.map(GatewayHealth::of);
        let gateway_status = gateway.as_ref().map_or(Status::Ok, |gateway| gateway.status);
        let config_status = if config_fault.is_some() { Status::Degraded } else { Status::Ok };
        let config = config_fault.map(|reason| ConfigHealth { status: config_status, reason });
        let phase_status = if phase == Phase::Ready { Status::Ok } else { Status::Unavailable };
        Self {
            status: [
                config_status,
                stats_status,
                shared_status,
                stream_status,
                catalog.status,
                identity.status,
                gateway_status,
                phase_status,
            ]
            .into_iter()
            .fold(journal_status, Status::max),
            phase: match phase {
                Phase::Starting => "starting",
                Phase::Ready => "ready",
                Phase::Draining => "draining",
            },
            version: env!("CARGO_PKG_VERSION"),
            config,
            journal: JournalHealth {
                status: journal_status,
                reason: fault,
                next_offset: journal.end(),
                disk_bytes: journal.stats().disk_bytes.load(Ordering::Relaxed),
                cut_bytes: recovery.cut_bytes,
                lost,
            },
            stats: StatsHealth {
                status: stats_status,
                reason,
                counted_through: counted,
                behind,
                restarts: stats.restarts(),
            },
            shared,
            stream,
            catalog,
            identity,
            gateway,
        }
    }
}
