//! What browsers load: the tracker and the dashboard, compiled into the binary.

use actix_web::http::header::{self, ETag, EntityTag, HeaderValue, IfNoneMatch};
use actix_web::{HttpResponse, get, web};
use std::sync::LazyLock;
use xxhash_rust::xxh3::xxh3_64;

use super::error::ApiError;

struct Asset {
    name: &'static str,
    kind: &'static str,
    text: &'static str,
    etag: String,
}

const JS: &str = "text/javascript; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
/// The dashboard is our own files only; whatever a URL in the statistics says, no script of another place runs.
const CSP: &str = "default-src 'self'; style-src 'self'; img-src 'self' data:; frame-ancestors 'self'; base-uri 'none'; form-action 'self'";

static ASSETS: LazyLock<[Asset; 6]> = LazyLock::new(|| {
    let asset =
        |name, kind, text: &'static str| Asset { name, kind, text, etag: format!("{:016x}", xxh3_64(text.as_bytes())) };
    [
        asset("tracker.js", JS, include_str!("../web/tracker.js")),
        asset("dashboard.html", HTML, include_str!("../web/dashboard.html")),
        asset("dashboard.css", CSS, include_str!("../web/dashboard.css")),
        asset("dashboard.js", JS, include_str!("../web/dashboard.js")),
        asset("live.js", JS, include_str!("../web/live.js")),
        asset("chart.js", JS, include_str!("../web/chart.js")),
    ]
});

fn serve(name: &str, cache: &'static str, if_none_match: &IfNoneMatch) -> Result<HttpResponse, ApiError> {
    let asset = ASSETS.iter().find(|asset| asset.name == name).ok_or(ApiError::NotFound("there is no such file"))?;
    let etag = EntityTag::new_weak(asset.etag.clone());
    let known = match if_none_match {
        IfNoneMatch::Any => true,
        IfNoneMatch::Items(tags) => tags.iter().any(|tag| tag.weak_eq(&etag)),
    };
    let mut answer = if known { HttpResponse::NotModified() } else { HttpResponse::Ok() };
    answer.insert_header(ETag(etag)).insert_header((header::CACHE_CONTROL, cache));
    if known {
        return Ok(answer.finish());
    }
    if asset.kind == HTML {
        answer.insert_header((header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CSP)));
    }
    Ok(answer.content_type(asset.kind).body(asset.text))
}

/// The tracker: page views by itself, other events through `tidegate.track(type, data)`.
#[utoipa::path(tag = "in", responses((status = 200, description = "At most 2 KB gzipped", content_type = "text/javascript")))]
#[get("/tracker.js", wrap = "actix_web::middleware::Compress::default()")]
pub async fn tracker(etag: web::Header<IfNoneMatch>) -> Result<HttpResponse, ApiError> {
    let mut answer = serve("tracker.js", "public, max-age=3600", &etag)?;
    // Pages of other origins load it with `crossorigin`, or under a policy that asks for this.
    answer.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    answer.headers_mut().insert(header::CROSS_ORIGIN_RESOURCE_POLICY, HeaderValue::from_static("cross-origin"));
    Ok(answer)
}

/// The dashboard.
#[utoipa::path(tag = "out", responses((status = 200, description = "A page", content_type = "text/html")))]
#[get("/dashboard")]
pub async fn dashboard(etag: web::Header<IfNoneMatch>) -> Result<HttpResponse, ApiError> {
    serve("dashboard.html", "no-cache", &etag)
}

/// The dashboard's own files.
#[utoipa::path(
    tag = "out",
    params(("file" = String, Path, example = "dashboard.css")),
    responses((status = 200, description = "A script or style sheet"), (status = 404, description = "No such file"))
)]
#[get("/dashboard/{file}")]
pub async fn dashboard_file(file: web::Path<String>, etag: web::Header<IfNoneMatch>) -> Result<HttpResponse, ApiError> {
    let name = file.as_str();
    if name == "tracker.js" || name == "dashboard.html" {
        return Err(ApiError::NotFound("there is no such file"));
    }
    serve(name, "no-cache", &etag)
}

/// The front page is the dashboard.
#[get("/")]
pub async fn front() -> HttpResponse {
    HttpResponse::Found().insert_header((header::LOCATION, "/dashboard")).finish()
}
