//! Who sends a request: by its API key and by its token, and whether they may go along a route.

use std::net::IpAddr;
use std::sync::Arc;

use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};

use super::error::GatewayError;
use crate::gateway::identify::{Asked, Identified, Unidentified};
use crate::gateway::limit::Caller;
use crate::gateway::options::AuthPolicy;
use crate::gateway::table::{Route, Table};
use crate::gateway::{ApiKey, Gateway};

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const X_INTERNAL_CONSUMER: HeaderName = HeaderName::from_static("x-internal-consumer");
const X_INTERNAL_USER: HeaderName = HeaderName::from_static("x-internal-user");

/// Who sends a request.
pub struct Who {
    key: ApiKey,
    user: Identified,
}

impl Who {
    /// By these headers. The user is only looked for where the route depends on it: an upstream may have tokens of its own.
    pub async fn of(gateway: &Gateway, table: &Table, route: &Route, headers: &HeaderMap) -> Self {
        let key = gateway.api_key(table, headers.get(&X_API_KEY));
        let user = match gateway.identify().filter(|_| route.wants_user).map(|identify| identify.identify(headers)) {
            None => Ok(None),
            Some(Asked::Now(identified)) => identified,
            Some(Asked::Later(asked)) => asked.await,
        };
        Self { key, user }
    }

    /// Whether they may go along a route with this policy.
    pub fn may(&self, policy: AuthPolicy) -> Result<(), GatewayError> {
        match (&self.key, policy) {
            (ApiKey::Unknown, _) => return Err(GatewayError::Unauthorized("the key in X-API-Key is not known")),
            (ApiKey::None, AuthPolicy::ApiKey) => {
                return Err(GatewayError::Unauthorized("send an API key in the header X-API-Key"));
            }
            (ApiKey::None, AuthPolicy::Public | AuthPolicy::User) | (ApiKey::Of(_), _) => {}
        }
        match &self.user {
            _ if policy != AuthPolicy::User => Ok(()),
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(GatewayError::Unauthenticated("send an access token as Authorization: Bearer")),
            Err(Unidentified::Invalid) => Err(GatewayError::Unauthenticated("the token is not good, or not any more")),
            Err(Unidentified::Unavailable { retry_after }) => {
                Err(GatewayError::Unverifiable { retry_after: *retry_after })
            }
        }
    }

    /// As limits and canaries know them.
    pub fn caller<'a>(&'a self, route: &'a Route, address: IpAddr) -> Caller<'a> {
        let user = self.user.as_ref().ok().and_then(Option::as_ref);
        Caller {
            address,
            api_key: self.consumer().map(|name| &**name),
            user: user.map(|user| &*user.id),
            route: &route.options.name,
        }
    }

    fn consumer(&self) -> Option<&Arc<str>> {
        match &self.key {
            ApiKey::Of(name) => Some(name),
            ApiKey::None | ApiKey::Unknown => None,
        }
    }

    /// Tells the upstream whose the request is. The key itself is the client's secret with us.
    pub fn tell(&self, headers: &mut HeaderMap) {
        headers.remove(&X_API_KEY);
        let user = self.user.as_ref().ok().and_then(Option::as_ref).map(|user| &user.id);
        for (name, value) in [(X_INTERNAL_CONSUMER, self.consumer()), (X_INTERNAL_USER, user)] {
            if let Some(value) = value.and_then(|value| HeaderValue::from_str(value).ok()) {
                headers.insert(name, value);
            }
        }
    }
}
