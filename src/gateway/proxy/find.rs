//! Which route a request takes: the one form of its path, its host, and what it is rewritten to.

use std::sync::Arc;

use hyper::header::{self, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Uri};

use super::error::GatewayError;
use super::exchange::Exchange;
use crate::gateway::route::{self, Match};
use crate::gateway::table::{Route, Table};
use crate::gateway::{cors, path};

/// Where a request goes.
pub struct Found {
    /// Along this route.
    pub route: Arc<Route>,
    /// Path and query, rewritten.
    pub uri: Uri,
}

/// The route of a request. Its `Host` is what counts as that afterwards; the exchange hears of the route, and of the path if it
/// `keeps_path`.
///
/// # Errors
/// With what the client is to be told, if there is none.
pub fn find(
    table: &Table,
    parts: &mut Parts,
    exchange: &mut Exchange,
    keeps_path: bool,
) -> Result<Found, GatewayError> {
    if parts.method == Method::CONNECT {
        return Err(GatewayError::MethodNotAllowed(String::from("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")));
    }
    // The authority of the target outranks the header (RFC 9112, section 3.2.2).
    if let Some(authority) = parts.uri.authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        parts.headers.insert(header::HOST, host);
    }
    let raw = parts.uri.path_and_query().map_or("/", |raw| raw.as_str());
    let target = path::target(raw).map_err(GatewayError::BadPath)?;
    if keeps_path {
        exchange.path = Some(target.path.as_str().to_owned());
    }
    let host = match parts.headers.get(header::HOST) {
        None => None,
        Some(host) => {
            let host = host.to_str().ok().filter(|host| route::host(host).is_some());
            Some(host.ok_or(GatewayError::BadRequest("the Host is none"))?)
        }
    };
    let find = |method: &Method| table.router.find(host, &target.path, method, &parts.headers);
    let asked = cors::is_preflight(&parts.method, &parts.headers).then(|| cors::requested_method(&parts.headers));
    let mut found = None;
    if let Some(method) = asked.flatten()
        && let Match::Found(preflight) = find(&method)
        && table.routes.get(preflight.route).is_some_and(|route| route.cors.is_some())
    {
        found = Some(preflight);
    }
    let found = match found.map_or_else(|| find(&parts.method), Match::Found) {
        Match::Found(found) => found,
        Match::NotFound => return Err(GatewayError::NoRoute),
        Match::MethodNotAllowed(methods) => {
            let methods: Vec<&str> = methods.iter().map(Method::as_str).collect();
            return Err(GatewayError::MethodNotAllowed(methods.join(", ")));
        }
    };
    let route = table.routes.get(found.route).cloned().ok_or(GatewayError::NoRoute)?;
    exchange.route = Some(route.clone());
    // What has one form already and is not rewritten goes on as it came.
    let rewritten = found.path.as_str();
    let same = parts.uri.scheme().is_none() && parts.uri.path() == rewritten;
    let uri = if same {
        parts.uri.clone()
    } else {
        let text = match target.query {
            Some(query) => format!("{rewritten}?{query}"),
            None => rewritten.to_owned(),
        };
        Uri::try_from(text).map_err(|_| GatewayError::BadRequest("the path cannot be sent on"))?
    };
    Ok(Found { route, uri })
}
