//! Which version of a route's service a request goes to, what that one hashes, and what the answer says of it.

use std::net::IpAddr;

use hyper::{HeaderMap, StatusCode, Uri};
use xxhash_rust::xxh3::xxh3_64;

use super::error::GatewayError;
use crate::gateway::canary::Trial;
use crate::gateway::limit::Caller;
use crate::gateway::options::HashOn;
use crate::gateway::table::{Route, Service};

/// Where a request goes.
pub struct Chosen<'a> {
    /// To this one.
    pub service: &'a Service,
    /// What its outcome is to be told to, where there are two versions.
    pub trial: Option<Trial<'a>>,
    /// An id that the client is to keep.
    pub new_id: Option<String>,
}

/// Chooses between the stable version and the canary.
pub fn choose<'a>(route: &'a Route, stable: &'a Service, headers: &HeaderMap, caller: &Caller<'_>) -> Chosen<'a> {
    let Some((canary, service)) = &route.canary else { return Chosen { service: stable, trial: None, new_id: None } };
    let choice = canary.choose(headers, caller);
    let trial = Some(canary.begin(&choice));
    Chosen { service: if choice.canary { service } else { stable }, trial, new_id: choice.new_id }
}

/// The head of the answer has come, or why there is none is known. What the client did wrong is nobody's failure.
pub fn judge(trial: Trial<'_>, answered: Result<StatusCode, &GatewayError>) {
    match answered {
        Ok(status) => trial.finish(status.is_server_error()),
        Err(GatewayError::CircuitOpen { .. } | GatewayError::Overloaded | GatewayError::NoTarget) => trial.refused(),
        Err(error) if error.is_of_upstream() => trial.finish(true),
        Err(_) => trial.discard(),
    }
}

/// What an upstream that chooses by hash hashes.
pub fn hash_of(service: &Service, client: IpAddr, uri: &Uri, headers: &HeaderMap) -> u64 {
    let address = || match client {
        IpAddr::V4(ip) => xxh3_64(&ip.octets()),
        IpAddr::V6(ip) => xxh3_64(&ip.octets()),
    };
    match &service.options().hash_on {
        HashOn::Address => address(),
        HashOn::Path => xxh3_64(uri.path().as_bytes()),
        HashOn::Header(name) => headers.get(name.as_str()).map_or_else(address, |value| xxh3_64(value.as_bytes())),
    }
}
