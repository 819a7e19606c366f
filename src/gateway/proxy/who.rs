//! Who sends a request: by its API key and by its token, and whether they may go along a route.

use std::net::IpAddr;
use std::sync::Arc;

use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, HeaderName, HeaderValue};

use super::error::GatewayError;
use crate::gateway::Gateway;
use crate::gateway::identify::{Asked, Identified, Unidentified, User};
use crate::gateway::limit::Caller;
use crate::gateway::options::{AuthPolicy, RouteOptions};
use crate::gateway::table::{Route, Table};

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const X_INTERNAL_CONSUMER: HeaderName = HeaderName::from_static("x-internal-consumer");
const X_INTERNAL_USER: HeaderName = HeaderName::from_static("x-internal-user");

/// Who sends a request.
pub struct Who {
    key: Key,
    /// Whether an `Authorization` is a key, good or not, and so no business of the upstream's.
    key_as_token: bool,
    user: Identified,
}

/// What an API key says.
enum Key {
    /// None was sent.
    None,
    /// It is one of `[gateway.api_keys]`, of this name.
    Named(Arc<str>),
    /// It is one that whoever knows accounts knows.
    Known {
        /// Whose.
        user: User,
    },
    /// It is nobody's, or that cannot be said right now.
    Bad(Unidentified),
}

impl Who {
    /// By these headers. The user is only looked for where the route depends on it: an upstream may have tokens of its own.
    pub async fn of(gateway: &Gateway, table: &Table, route: &Route, headers: &HeaderMap) -> Self {
        let identify = gateway.identify();
        let user = match identify.filter(|_| route.wants_user).map(|identify| identify.identify(headers)) {
            None => Ok(None),
            Some(Asked::Now(identified)) => identified,
            Some(Asked::Later(asked)) => asked.await,
        };
        let theirs = |sent: &[u8]| identify.and_then(|identify| identify.key(sent));
        let key = match headers.get(&X_API_KEY) {
            Some(sent) => match gateway.api_key(table, sent) {
                Some(name) => Key::Named(name),
                None => match theirs(sent.as_bytes()) {
                    Some(Ok(Some(user))) => Key::Known { user },
                    Some(Err(why)) => Key::Bad(why),
                    Some(Ok(None)) | None => Key::Bad(Unidentified::Invalid),
                },
            },
            None => match alone(headers).and_then(bearer).and_then(theirs) {
                Some(Ok(Some(user))) => Key::Known { user },
                // Where keys are not asked for, it may be something of the upstream's own.
                Some(Err(why)) if route.options.auth == AuthPolicy::ApiKey => Key::Bad(why),
                Some(_) | None => Key::None,
            },
        };
        let is_key = |sent| bearer(sent).is_some_and(|sent| identify.is_some_and(|identify| identify.is_key(sent)));
        Self { key, key_as_token: headers.get_all(AUTHORIZATION).iter().any(is_key), user }
    }

    /// Whether they may go along a route.
    pub fn may(&self, route: &RouteOptions) -> Result<(), GatewayError> {
        const SCOPES: GatewayError =
            GatewayError::Forbidden("the key or token is good, and has not the scopes for this");
        let needed = route.scopes.as_slice();
        match (&self.key, route.auth) {
            (Key::Bad(Unidentified::Invalid), _) => return Err(GatewayError::Unauthorized("the API key is not known")),
            (Key::Bad(Unidentified::Unavailable { retry_after }), _) => {
                return Err(GatewayError::Unverifiable { retry_after: *retry_after });
            }
            (Key::None, AuthPolicy::ApiKey) => {
                return Err(GatewayError::Unauthorized("send an API key in the header X-API-Key"));
            }
            (Key::Named(_), AuthPolicy::ApiKey) if !needed.is_empty() => return Err(SCOPES),
            (Key::Known { user }, AuthPolicy::ApiKey) if !user.may(needed) => return Err(SCOPES),
            (Key::None | Key::Named(_) | Key::Known { .. }, _) => {}
        }
        match &self.user {
            _ if route.auth != AuthPolicy::User => Ok(()),
            Ok(Some(user)) if user.may(needed) => Ok(()),
            Ok(Some(_)) => Err(SCOPES),
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
            Key::Named(name) => Some(name),
            Key::Known { user } => Some(&user.id),
            Key::None | Key::Bad(_) => None,
        }
    }

    /// Tells the upstream whose the request is. A key itself is the client's secret with us.
    pub fn tell(&self, headers: &mut HeaderMap) {
        headers.remove(&X_API_KEY);
        let user = self.user.as_ref().ok().and_then(Option::as_ref);
        if self.key_as_token || user.is_some_and(|user| user.is_key) {
            headers.remove(AUTHORIZATION);
        }
        for (name, value) in [(X_INTERNAL_CONSUMER, self.consumer()), (X_INTERNAL_USER, user.map(|user| &user.id))] {
            if let Some(value) = value.and_then(|value| HeaderValue::from_str(value).ok()) {
                headers.insert(name, value);
            }
        }
    }
}

/// The only `Authorization`.
fn alone(headers: &HeaderMap) -> Option<&HeaderValue> {
    let mut all = headers.get_all(AUTHORIZATION).iter();
    all.next().filter(|_| all.next().is_none())
}

/// What stands behind `Bearer`.
fn bearer(sent: &HeaderValue) -> Option<&[u8]> {
    let (scheme, rest) = sent.as_bytes().split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| rest.trim_ascii())
}
