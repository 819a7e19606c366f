//! How the catalogue is: its part of health, and the metrics of pools, cache and popularity.

use std::sync::atomic::Ordering;

use prometheus::proto::{MetricFamily, MetricType};
use serde::Serialize;
use utoipa::ToSchema;

use super::health::Status;
use super::metrics::family;
use crate::cache::TypeStats;
use crate::catalog::CatalogHandle;
use crate::database::PoolStats;

/// The catalogue.
#[derive(Debug, Serialize, ToSchema)]
pub struct CatalogHealth {
    /// The worse of database, second tier and popularity. The server stays in service: what is cached is served.
    pub status: Status,
    /// What is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// `SQLite`, `PostgreSQL` or `MySQL`.
    pub database: &'static str,
    /// Whether Redis is asked, as the cache's second tier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub second_tier: Option<bool>,
    /// Entries of the journal of which popularity does not know yet.
    pub popularity_behind: u64,
    /// Whether scores lack what other instances counted, as Redis is away.
    pub popularity_degraded: bool,
}

impl CatalogHealth {
    /// Reads published numbers only.
    pub fn of(catalog: &CatalogHandle) -> Self {
        let l2 = catalog.cache().stats().l2;
        let second_tier = l2.as_ref().map(|l2| l2.up && l2.listening);
        let away = (second_tier == Some(false)).then(|| String::from("the cache's Redis cannot be used"));
        let popularity = catalog.popularity();
        let unshared = || popularity.shared().and_then(|shared| shared.fault());
        let reason = catalog.fault().or(away).or_else(|| popularity.fault()).or_else(unshared);
        Self {
            status: if reason.is_some() { Status::Degraded } else { Status::Ok },
            reason,
            database: catalog.store().database().name(),
            second_tier,
            popularity_behind: popularity.behind(),
            popularity_degraded: popularity.degraded(),
        }
    }
}

/// The catalogue's metrics.
pub fn families(catalog: &CatalogHandle) -> Vec<MetricFamily> {
    let stats = catalog.cache().stats();
    let one = |name: &str, help: &str, kind, value: f64| family(name, help, kind, &[(&[], value)]);
    let by_type = |name: &str, help: &str, kind, value: fn(&TypeStats) -> u64| {
        let labels: Vec<[(&str, &str); 1]> = stats.types.iter().map(|of| [("type", of.name.as_str())]).collect();
        let values: Vec<(&[(&str, &str)], f64)> =
            labels.iter().zip(&stats.types).map(|(labels, of)| (labels.as_slice(), value(of) as f64)).collect();
        family(name, help, kind, &values)
    };
    let (counter, gauge) = (MetricType::COUNTER, MetricType::GAUGE);
    let mut families = vec![
        by_type("tidegate_cache_entries", "Entries of the first tier", gauge, |of| of.entries),
        by_type("tidegate_cache_bytes", "Bytes of the first tier", gauge, |of| of.bytes),
        by_type("tidegate_cache_l1_hits_total", "Reads the first tier answered", counter, |of| of.l1_hits),
        by_type("tidegate_cache_l1_misses_total", "Reads it did not", counter, |of| of.l1_misses),
        by_type("tidegate_cache_l1_evictions_total", "Entries that made room", counter, |of| of.l1_evictions),
        by_type("tidegate_cache_l2_hits_total", "Values Redis had", counter, |of| of.l2_hits),
        by_type("tidegate_cache_l2_misses_total", "Values it did not have", counter, |of| of.l2_misses),
        by_type("tidegate_cache_coalesced_total", "Reads that waited for another's fill", counter, |of| of.coalesced),
        by_type("tidegate_cache_stale_revalidating_total", "Stale answers while refreshing", counter, |of| {
            of.stale_revalidating
        }),
        by_type("tidegate_cache_stale_on_error_total", "Stale answers for want of fresh ones", counter, |of| {
            of.stale_on_error
        }),
        by_type("tidegate_cache_fills_total", "Reads of the source", counter, |of| of.fills),
        by_type("tidegate_cache_fill_errors_total", "Those that failed", counter, |of| of.fill_errors),
        by_type("tidegate_cache_early_refreshes_total", "Refreshes before the end", counter, |of| of.early_refreshes),
        by_type("tidegate_cache_invalidations_total", "Keys invalidated", counter, |of| of.invalidations),
    ];
    if let Some(l2) = &stats.l2 {
        let up = f64::from(u8::from(l2.up));
        families.push(one("tidegate_cache_l2_up", "Whether Redis is asked, by its breaker", gauge, up));
        let listening = f64::from(u8::from(l2.listening));
        families.push(one("tidegate_cache_l2_listening", "Whether invalidations are heard", gauge, listening));
        families.push(one("tidegate_cache_l2_pending", "Invalidations it has not heard of", gauge, l2.pending as f64));
        families.push(one("tidegate_cache_l2_errors_total", "Questions to it that failed", counter, l2.errors as f64));
    }
    let pools = catalog.store().pools();
    let by_pool = |name: &str, help: &str, kind, value: fn(&PoolStats) -> f64| {
        let labels: Vec<[(&str, &str); 1]> = pools.iter().map(|pool| [("pool", pool.name)]).collect();
        let values: Vec<(&[(&str, &str)], f64)> =
            labels.iter().zip(&pools).map(|(labels, pool)| (labels.as_slice(), value(pool))).collect();
        family(name, help, kind, &values)
    };
    families.extend([
        by_pool("tidegate_catalog_pool_size", "Connections there may be", gauge, |pool| pool.size as f64),
        by_pool("tidegate_catalog_pool_idle", "Connections nobody uses", gauge, |pool| pool.idle as f64),
        by_pool("tidegate_catalog_pool_in_use", "Connections in use", gauge, |pool| pool.in_use as f64),
        by_pool("tidegate_catalog_pool_waiting", "Requests that wait for one", gauge, |pool| pool.waiting as f64),
        by_pool("tidegate_catalog_pool_timeouts_total", "Requests that waited too long", counter, |pool| {
            pool.wait_timeouts as f64
        }),
        by_pool("tidegate_catalog_pool_refused_total", "Requests that found the queue full", counter, |pool| {
            pool.refused as f64
        }),
    ]);
    let queries = catalog.store().queries();
    let seconds = queries.micros as f64 / 1e6;
    let popularity = catalog.popularity();
    let numbers = popularity.numbers();
    let products = numbers.products.load(Ordering::Relaxed) as f64;
    families.extend([
        one("tidegate_catalog_statements_total", "Statements run", counter, queries.statements as f64),
        one("tidegate_catalog_slow_statements_total", "Those in the slow log", counter, queries.slow as f64),
        one("tidegate_catalog_statement_seconds_total", "Time of all of them", counter, seconds),
        one("tidegate_popularity_products", "Products counted singly", gauge, products),
        one("tidegate_popularity_bytes", "Memory of the scores", gauge, numbers.bytes.load(Ordering::Relaxed) as f64),
        one("tidegate_popularity_behind", "Entries not yet counted", gauge, popularity.behind() as f64),
    ]);
    if let Some(shared) = popularity.shared() {
        let read = |n: &std::sync::atomic::AtomicU64| n.load(Ordering::Relaxed) as f64;
        let (numbers, degraded) = (&shared.numbers, f64::from(u8::from(popularity.degraded())));
        families.extend([
            one("tidegate_popularity_degraded", "Whether other instances' counts may be old", gauge, degraded),
            one("tidegate_popularity_shared_total", "Products brought to Redis", counter, read(&numbers.published)),
            one("tidegate_popularity_shared_read_total", "Products of others read", counter, read(&numbers.read)),
            one(
                "tidegate_popularity_shared_failures_total",
                "No answer, or a refusal",
                counter,
                read(&numbers.failures),
            ),
            one("tidegate_popularity_shared_losses_total", "Times Redis had lost them", counter, read(&numbers.losses)),
        ]);
    }
    families
}
