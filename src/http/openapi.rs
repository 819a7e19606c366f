//! The API's description, made from the handlers, and the page that shows it.

use actix_web::http::header;
use actix_web::web::{self, Bytes};
use actix_web::{HttpResponse, get};
use utoipa::OpenApi;
use utoipa_swagger_ui::SwaggerUi;

use super::admin::{config as admin_config, gateway as admin_gateway};
use super::{assets, auth, caches, catalog, catalog_write, ingest, live, operate, sessions, statistics};

#[derive(OpenApi)]
#[openapi(
    info(title = "Tidegate", description = "Beacons in, exact live numbers out; products from a cache that follows what visitors look at."),
    paths(
        ingest::events, ingest::pixel, ingest::import, assets::tracker, statistics::realtime, statistics::summary,
        statistics::timeseries, statistics::pages, statistics::referrers, statistics::events, live::live,
        assets::dashboard, assets::dashboard_file, catalog::search, catalog::product,
        catalog::batch, catalog::hot, catalog_write::create, catalog_write::replace, catalog_write::change,
        catalog_write::remove, auth::register, auth::login, auth::refresh, auth::logout, auth::me, auth::jwks,
        sessions::password, sessions::delete_me, sessions::sessions, sessions::end, sessions::end_all, caches::stats, caches::warm, caches::invalidate, operate::visitor_events, operate::audit, operate::export, operate::schema,
        operate::live, operate::ready, operate::health,
        admin_config::show, admin_config::replace, admin_config::history, admin_config::rollback, admin_config::reload,
        admin_gateway::all_routes, admin_gateway::all_upstreams, admin_gateway::force_breaker, admin_gateway::all_limits,
        admin_gateway::bucket, admin_gateway::reset_bucket, admin_gateway::steer_canary, metrics, document,
    ),
    modifiers(&Bearer),
    tags(
        (name = "in", description = "Events in"),
        (name = "out", description = "Numbers out"),
        (name = "catalog", description = "Products"),
        (name = "identity", description = "Accounts and tokens"),
        (name = "operate", description = "For whoever operates the server"),
        (name = "admin", description = "Steers the running server; on the listener of `admin.listen`"),
    )
)]
struct Api;

/// What the paths of the admin API begin with.
const ADMIN: &str = "/api/v1/admin/";

/// The description, made once.
pub struct Document {
    json: Bytes,
    /// Paths with their methods, as in `Allow`: those of this listener.
    routes: Vec<(String, String)>,
}

impl Document {
    /// Makes it.
    pub fn new() -> Self {
        Self::of(|path| !path.starts_with(ADMIN))
    }

    /// The one that the admin API's listener goes by.
    pub fn of_admin() -> Self {
        Self::of(|path| path.starts_with(ADMIN))
    }

    fn of(here: impl Fn(&str) -> bool) -> Self {
        let api = Api::openapi();
        let routes = api.paths.paths.iter().filter(|(path, _)| here(path)).map(|(path, item)| {
            let methods = [
                ("GET", item.get.is_some()),
                ("HEAD", item.get.is_some()),
                ("POST", item.post.is_some()),
                ("PUT", item.put.is_some()),
                ("PATCH", item.patch.is_some()),
                ("DELETE", item.delete.is_some()),
            ];
            let methods: Vec<&str> = methods.iter().filter(|(_, is)| *is).map(|(name, _)| *name).collect();
            (path.clone(), methods.join(", "))
        });
        let routes = routes.collect();
        Self { json: api.to_pretty_json().map_or_else(|_| Bytes::from_static(b"{}"), Bytes::from), routes }
    }

    /// The methods that a path takes; empty if there is no such path.
    pub fn methods(&self, path: &str) -> String {
        let matches = |pattern: &str| {
            let (mut pattern, mut path) = (pattern.split('/'), path.split('/'));
            loop {
                match (pattern.next(), path.next()) {
                    (None, None) => return true,
                    (Some(p), Some(segment)) if p == segment || (p.starts_with('{') && !segment.is_empty()) => {}
                    _ => return false,
                }
            }
        };
        let found = self.routes.iter().find(|(pattern, _)| matches(pattern));
        found.map(|(_, methods)| methods.clone()).unwrap_or_default()
    }
}

/// The operator's key, an access token, or an API key.
struct Bearer;

impl utoipa::Modify for Bearer {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        let components = api.components.get_or_insert_default();
        components.add_security_scheme("operator", SecurityScheme::Http(scheme.clone()));
        components.add_security_scheme("bearer", SecurityScheme::Http(scheme));
    }
}

/// Numbers for Prometheus. (actix-web-prom answers this itself.)
#[utoipa::path(
    get, path = "/metrics", tag = "operate",
    responses((status = 200, description = "Prometheus text format", content_type = "text/plain", body = String,
        example = "tidegate_events_total{outcome=\"accepted\"} 120\n"))
)]
#[expect(dead_code, reason = "only its description is used")]
fn metrics() {}

/// This description.
#[utoipa::path(tag = "operate", responses((status = 200, description = "OpenAPI 3.1", content_type = "application/json",
    body = Object, example = json!({"openapi": "3.1.0"}))))]
#[get("/openapi.json")]
pub async fn document(document: web::Data<Document>) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, "application/json"))
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        .body(document.json.clone())
}

/// Swagger UI, with all its files compiled in.
pub fn docs() -> SwaggerUi {
    SwaggerUi::new("/docs/{_:.*}").config(utoipa_swagger_ui::Config::from("/openapi.json").validator_url("none"))
}
