//! Every route, on one page. What is documented is collected from the same handlers (`openapi`), and a test compares.

use actix_web::http::header;
use actix_web::middleware::from_fn;
use actix_web::web::{self, JsonConfig, PathConfig, QueryConfig, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse, middleware::Compress};

use super::error::ApiError;
use super::{assets, auth, caches, catalog, catalog_write, cors, ingest, live, openapi, operate, sessions, statistics};

/// Puts all routes into an app.
pub fn configure(app: &mut ServiceConfig) {
    app
        // What is asked for most comes first, as each route before it is looked at; what has a name before what has a pattern.
        .service(catalog::hot)
        .service(catalog::batch)
        .service(catalog::product)
        // in
        .service(web::resource("/api/v1/events").wrap(from_fn(cors::beacons)).route(web::post().to(ingest::events)))
        .service(ingest::pixel)
        .service(ingest::import)
        .service(assets::tracker)
        // out
        .service(statistics::realtime)
        .service(live::live)
        .service(
            web::scope("/api/v1/stats")
                .wrap(Compress::default())
                .service(statistics::summary)
                .service(statistics::timeseries)
                .service(statistics::pages)
                .service(statistics::referrers)
                .service(statistics::events),
        )
        .service(assets::front)
        .service(assets::dashboard)
        .service(assets::dashboard_file)
        // catalog
        .service(catalog::search)
        .service(catalog_write::create)
        .service(catalog_write::replace)
        .service(catalog_write::change)
        .service(catalog_write::remove)
        // identity
        .service(auth::register)
        .service(auth::login)
        .service(auth::refresh)
        .service(auth::logout)
        .service(auth::me)
        .service(sessions::password)
        .service(sessions::delete_me)
        .service(sessions::sessions)
        .service(sessions::end_all)
        .service(sessions::end)
        .service(auth::jwks)
        // operate
        .service(caches::stats)
        .service(caches::warm)
        .service(caches::invalidate)
        .service(operate::visitor_events)
        .service(operate::audit)
        .service(operate::export)
        .service(operate::schema)
        .service(operate::live)
        .service(operate::ready)
        .service(operate::health)
        .service(openapi::document)
        .service(openapi::docs())
        .route("/docs", web::get().to(to_docs));
}

async fn to_docs() -> HttpResponse {
    HttpResponse::Found().insert_header((header::LOCATION, "/docs/")).finish()
}

/// Bad query strings are told like every other error.
pub fn query_errors() -> QueryConfig {
    QueryConfig::default().error_handler(|error, _| ApiError::BadRequest(error.to_string()).into())
}

/// Bodies of orders, whatever their type is said to be.
pub fn json_bodies() -> JsonConfig {
    let told = |error: actix_web::error::JsonPayloadError, _: &HttpRequest| {
        let text = match &error {
            actix_web::error::JsonPayloadError::Deserialize(error) => {
                format!("the body is not what it must be: {error}")
            }
            error => error.to_string(),
        };
        ApiError::BadRequest(text).into()
    };
    JsonConfig::default().content_type_required(false).content_type(|_| true).error_handler(told)
}

/// So are bad path segments.
pub fn path_errors() -> PathConfig {
    PathConfig::default().error_handler(|error, _| ApiError::BadRequest(error.to_string()).into())
}
