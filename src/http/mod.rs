//! HTTP: the server, its routes (one page), its middleware (one ordered list), and the handlers, which see handles and
//! types of the other rooms and none of their actors or stores.

mod assets;
mod body;
mod cached;
mod caches;
mod catalog;
mod catalog_write;
mod client;
mod error;
mod ingest;
mod live;
mod middleware;
mod openapi;
mod operate;
mod routes;
mod statistics;

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::Server;
use actix_web::{App, HttpServer, web};
use actix_web_prom::PrometheusMetricsBuilder;

use crate::catalog::CatalogHandle;
use crate::clock::Clock;
use crate::config::Config;
use crate::diagnostics::metrics::Rooms;
use crate::event::visitor::Salts;
use crate::journal::Journal;
use crate::lifecycle::Lifecycle;
use crate::stats::StatsHandle;
use crate::stream::StreamHandle;

/// What handlers work with: handles, all cheap to clone.
#[derive(Clone)]
pub struct State {
    /// The config.
    pub config: Arc<Config>,
    /// The time.
    pub clock: Clock,
    /// Salts of anonymous visitors.
    pub salts: Arc<Salts>,
    /// The log.
    pub journal: Journal,
    /// The statistics.
    pub stats: StatsHandle,
    /// The stream, where there is one.
    pub stream: Option<StreamHandle>,
    /// The products.
    pub catalog: CatalogHandle,
    /// Ready, or draining.
    pub lifecycle: Lifecycle,
}

/// How much of the drain's time requests have; the rest is for counting what they brought.
pub fn share_of_drain(whole: Duration) -> Duration {
    whole * 3 / 5
}

/// The server on a listener; it runs when awaited or spawned.
pub fn server(state: State, listener: TcpListener) -> anyhow::Result<Server> {
    let registry = prometheus::Registry::new();
    registry.register(Box::new(Rooms::new(
        state.journal.clone(),
        state.stats.clone(),
        state.stream.clone(),
        state.catalog.clone(),
    )?))?;
    let metrics = PrometheusMetricsBuilder::new("tidegate")
        .registry(registry)
        .endpoint("/metrics")
        // A stream ends when its reader goes: its duration says nothing about us.
        .exclude("/api/v1/stats/live")
        .mask_unmatched_patterns("unmatched")
        .build()
        .map_err(|error| anyhow::anyhow!("metrics: {error}"))?;
    let config = state.config.clone();
    let state = web::Data::new(state);
    let openapi = web::Data::new(openapi::Document::new());
    let server = HttpServer::new(move || {
        // The order of the middleware, the outermost last: invented methods go no further, metrics see everything else,
        // the envelope sees every error.
        App::new()
            .app_data(state.clone())
            .app_data(openapi.clone())
            // This closure runs once in each worker, and the gatherer is the worker's own.
            .app_data(state.journal.gatherer())
            .app_data(routes::query_errors())
            .app_data(routes::path_errors())
            .app_data(web::PayloadConfig::new(catalog_write::MAX_PRODUCT))
            .configure(|app| routes::configure(app, &state))
            .wrap(actix_web::middleware::from_fn(middleware::envelope))
            .wrap(metrics.clone())
            .wrap(actix_web::middleware::from_fn(middleware::known_methods))
    })
    .workers(config.workers)
    .max_connections(config.max_connections)
    .client_request_timeout(config.client_timeout)
    .keep_alive(config.keep_alive)
    .shutdown_timeout(share_of_drain(config.drain_timeout).as_secs().max(1))
    .disable_signals()
    .listen(listener)?;
    Ok(server.run())
}
