//! HTTP: the server, its routes (one page), its middleware (one ordered list), and the handlers, which see handles and
//! types of the other rooms and none of their actors or stores.

pub mod admin;
mod assets;
mod auth;
mod body;
mod cached;
mod caches;
mod catalog;
mod catalog_write;
mod claim;
mod client;
mod cors;
mod error;
mod ingest;
mod live;
mod middleware;
mod openapi;
mod operate;
mod routes;
mod sessions;
mod settings;
mod statistics;

use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix_service::IntoServiceFactory;
use actix_web::body::MessageBody;
use actix_web::dev::{AppConfig, Server, Service, ServiceFactory, ServiceRequest, ServiceResponse};
use actix_web::{App, HttpServer, web};
use actix_web_prom::{PrometheusMetrics, PrometheusMetricsBuilder};

use crate::catalog::CatalogHandle;
use crate::clock::Clock;
use crate::config::Config;
use crate::config::live::LiveConfig;
use crate::control::Control;
use crate::diagnostics::metrics::Rooms;
use crate::event::visitor::Salts;
use crate::gateway::{Gateway, Own, OwnFactory};
use crate::identity::Identity;
use crate::journal::Journal;
use crate::lifecycle::Lifecycle;
use crate::stats::StatsHandle;
use crate::stream::StreamHandle;

/// What handlers work with: handles, all cheap to clone.
#[derive(Clone)]
pub struct State {
    /// The settings that a running server follows; requests go by `Settings`.
    pub live: LiveConfig,
    /// How long the sender of a body may pause.
    pub client_timeout: Duration,
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
    /// Who somebody is.
    pub identity: Identity,
    /// What is in front of other services, where there is such.
    pub gateway: Option<Gateway>,
    /// What steers it, and keeps the log of changes.
    pub control: Control,
    /// Ready, or draining.
    pub lifecycle: Lifecycle,
}

/// How much of the drain's time requests have; the rest is for counting what they brought.
pub fn share_of_drain(whole: Duration) -> Duration {
    whole * 3 / 5
}

/// The application, as each thread that answers requests makes its own of it.
#[derive(Clone)]
pub struct Application {
    state: web::Data<State>,
    /// Of the start.
    config: Arc<Config>,
    openapi: web::Data<openapi::Document>,
    metrics: PrometheusMetrics,
}

impl Application {
    /// Of these handles; what is told of requests and rooms goes into the registry.
    ///
    /// # Errors
    /// When the registry has such series already.
    pub fn new(state: State, config: Arc<Config>, registry: prometheus::Registry) -> anyhow::Result<Self> {
        registry.register(Box::new(Rooms::new(
            state.journal.clone(),
            state.stats.clone(),
            state.stream.clone(),
            state.catalog.clone(),
            state.identity.clone(),
            state.gateway.clone(),
        )?))?;
        let metrics = PrometheusMetricsBuilder::new("tidegate")
            .registry(registry)
            .endpoint("/metrics")
            // A stream ends when its reader goes: its duration says nothing about us.
            .exclude("/api/v1/stats/live")
            .mask_unmatched_patterns("unmatched")
            .build()
            .map_err(|error| anyhow::anyhow!("metrics: {error}"))?;
        Ok(Self { state: web::Data::new(state), config, openapi: web::Data::new(openapi::Document::new()), metrics })
    }

    /// One for the thread that calls this.
    fn make(
        &self,
    ) -> App<
        impl ServiceFactory<
            ServiceRequest,
            Config = (),
            Response = ServiceResponse<impl MessageBody + use<>>,
            Error = actix_web::Error,
            InitError = (),
        > + use<>,
    > {
        // The order of the middleware, the outermost last: invented methods go no further, metrics see everything else,
        // the envelope sees every error.
        App::new()
            .app_data(self.state.clone())
            .app_data(self.openapi.clone())
            // The gatherer is the thread's own.
            .app_data(self.state.journal.gatherer())
            .app_data(routes::query_errors())
            .app_data(routes::path_errors())
            .app_data(web::PayloadConfig::new(catalog_write::MAX_PRODUCT))
            .configure(routes::configure)
            .wrap(actix_web::middleware::from_fn(middleware::envelope))
            .wrap(self.metrics.clone())
            .wrap(actix_web::middleware::from_fn(middleware::known_methods))
    }

    /// The server on a listener; it runs when awaited or spawned.
    ///
    /// # Errors
    /// When the listener cannot be used.
    pub fn server(&self, listener: TcpListener) -> anyhow::Result<Server> {
        let config = self.config.clone();
        let this = self.clone();
        let server = HttpServer::new(move || this.make())
            .workers(config.workers)
            .max_connections(config.max_connections)
            .client_request_timeout(config.client_timeout)
            .keep_alive(config.keep_alive)
            .shutdown_timeout(share_of_drain(config.drain_timeout).as_secs().max(1))
            .disable_signals()
            .listen(listener)?;
        Ok(server.run())
    }

    /// The admin API on a listener of its own; it runs when awaited or spawned.
    ///
    /// # Errors
    /// When the listener cannot be used.
    pub fn admin(&self, listener: TcpListener) -> anyhow::Result<Server> {
        let state = self.state.clone();
        let openapi = web::Data::new(openapi::Document::of_admin());
        let timeout = self.config.client_timeout;
        let server = HttpServer::new(move || {
            App::new()
                .app_data(state.clone())
                // Whatever curl calls it.
                .app_data(routes::json_bodies())
                .app_data(openapi.clone())
                .app_data(routes::query_errors())
                .app_data(routes::path_errors())
                .app_data(web::PayloadConfig::new(catalog_write::MAX_PRODUCT))
                .configure(admin::configure)
                .wrap(actix_web::middleware::from_fn(middleware::envelope))
                .wrap(actix_web::middleware::from_fn(middleware::known_methods))
        })
        .workers(1)
        .client_request_timeout(timeout)
        .shutdown_timeout(1)
        .disable_signals()
        .listen(listener)?;
        Ok(server.run())
    }

    /// The application behind the gateway: called, not connected to.
    pub fn own(&self) -> OwnFactory {
        let this = self.clone();
        Arc::new(move || {
            let application = this.make().into_factory();
            Box::pin(async move {
                let service = application.new_service(AppConfig::default()).await;
                // Its parts fail at their start by a panic, if at all.
                let service = Rc::new(service.map_err(|()| log::error!("the application cannot be made")).ok());
                let own: Own = Rc::new(move |request| {
                    let service = service.clone();
                    Box::pin(async move {
                        let Some(service) = &*service else {
                            return actix_http::Response::internal_server_error().map_into_boxed_body();
                        };
                        match service.call(request).await {
                            Ok(answer) => actix_http::Response::from(answer.into_parts().1).map_into_boxed_body(),
                            Err(error) => actix_http::Response::from(error.error_response()).map_into_boxed_body(),
                        }
                    })
                });
                own
            })
        })
    }
}
