//! The Fetch standard's CORS protocol for beacons: whose pages may read the answer. (Whose events are taken is another matter:
//! a browser sends a beacon of text without asking.)
//!
//! It follows the running config, in the same state of it as the handler behind.

use actix_web::body::{BoxBody, EitherBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::Method;
use actix_web::http::header::{self, HeaderMap, HeaderValue};
use actix_web::middleware::Next;
use actix_web::{Error, HttpResponse};

use super::error::ApiError;
use super::settings::Settings;
use crate::event::access::{Origin, OriginPattern};

/// How long a browser may remember the answer to a preflight, in seconds.
const MAX_AGE: &str = "86400";
/// What an answer to a preflight depends on, for caches between.
const VARY: &str = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers";

/// Answers preflights, and puts the policy on other answers.
pub async fn beacons<B: MessageBody + 'static>(
    req: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<BoxBody, B>>, Error> {
    if !req.headers().contains_key(header::ORIGIN) {
        return Ok(next.call(req).await?.map_into_right_body());
    }
    let policy = Settings::of(req.request());
    let policy = policy.as_ref().and_then(|settings| settings.cors.as_deref());
    let allowed = allowed(req.headers(), policy);
    let asked = req.headers().get(header::ACCESS_CONTROL_REQUEST_METHOD);
    if req.method() == Method::OPTIONS
        && let Some(asked) = asked
    {
        let is_post = asked.as_bytes() == Method::POST.as_str().as_bytes();
        let answer = match allowed.filter(|_| is_post) {
            Some(origin) => preflight(origin, req.headers().get(header::ACCESS_CONTROL_REQUEST_HEADERS)),
            None => return Ok(req.error_response(refused(is_post)).map_into_left_body()),
        };
        return Ok(req.into_response(answer).map_into_left_body());
    }
    let depends = policy.is_some();
    let mut answer = next.call(req).await?;
    let headers = answer.headers_mut();
    if depends {
        headers.append(header::VARY, HeaderValue::from_static("Origin"));
    }
    if let Some(origin) = allowed {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    }
    Ok(answer.map_into_right_body())
}

/// What is allowed to the page that sends this: its own origin, or all.
fn allowed(headers: &HeaderMap, policy: Option<&[OriginPattern]>) -> Option<HeaderValue> {
    let Some(policy) = policy else { return Some(HeaderValue::from_static("*")) };
    let mut sent = headers.get_all(header::ORIGIN);
    let (origin, None) = (sent.next()?, sent.next()) else { return None };
    let page = Origin::parse(origin.to_str().ok()?)?;
    policy.iter().any(|allowed| allowed.matches(&page)).then(|| origin.clone())
}

/// Clients name their own headers, so all are allowed.
fn preflight(origin: HeaderValue, asked: Option<&HeaderValue>) -> HttpResponse {
    let mut answer = HttpResponse::Ok();
    answer
        .insert_header((header::ACCESS_CONTROL_ALLOW_ORIGIN, origin))
        .insert_header((header::ACCESS_CONTROL_ALLOW_METHODS, "POST"))
        .insert_header((header::ACCESS_CONTROL_MAX_AGE, MAX_AGE))
        .insert_header((header::VARY, VARY));
    if let Some(asked) = asked {
        answer.insert_header((header::ACCESS_CONTROL_ALLOW_HEADERS, asked.clone()));
    }
    answer.finish()
}

fn refused(is_post: bool) -> ApiError {
    ApiError::BadRequest(String::from(if is_post {
        "pages of this origin may not send events here; see ingest.cors_origins and sites.NAME.origins"
    } else {
        "events are sent by POST"
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        lines.iter().for_each(|line| headers.append(header::ORIGIN, HeaderValue::from_static(line)));
        headers
    }

    #[test]
    fn an_origin_is_named_only_where_it_is_listed() {
        let policy = ["https://shop.example", "https://*.blog.example"].map(|text| OriginPattern::parse(text).unwrap());
        let of = |lines: &[&'static str]| allowed(&headers(lines), Some(&policy));
        for fine in ["https://shop.example", "https://a.blog.example"] {
            assert_eq!(of(&[fine]), Some(HeaderValue::from_static(fine)));
        }
        for other in ["null", "https://evil.example", "https://shop.example.evil.example", "http://shop.example"] {
            assert_eq!(of(&[other]), None, "{other}");
        }
        assert_eq!(of(&["https://shop.example", "https://evil.example"]), None);
        assert_eq!(allowed(&headers(&["null"]), None), Some(HeaderValue::from_static("*")));
        assert_eq!(allowed(&headers(&["https://shop.example"]), Some(&[])), None);
    }
}
