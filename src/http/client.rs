//! Who sends a request, and for which site: its address behind proxies, its agent, its wish for privacy, who it says it is,
//! and whether it is the operator.

use std::borrow::Cow;
use std::future::{Ready, ready};
use std::net::IpAddr;
use std::sync::Arc;

use actix_web::dev::Payload;
use actix_web::http::Version;
use actix_web::http::header::{self, HeaderMap, HeaderValue};
use actix_web::{FromRequest, HttpRequest, web};
use futures_util::future::{Either, LocalBoxFuture};
use ipnet::IpNet;
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_128;

use super::State;
use super::error::ApiError;
use super::settings::Settings;
use crate::control::AuditEntry;
use crate::event::DEFAULT_SITE;
use crate::event::intake::is_site;
use crate::gateway::address::chain;
use crate::identity::{Principal, Recognised, Rejection};

/// The client's address: the peer's, or the first from the right of `X-Forwarded-For` (or `Forwarded`, where there is no
/// such header) that is no trusted proxy.
pub fn address(req: &HttpRequest, trusted: &[IpNet]) -> Option<IpAddr> {
    let peer = req.peer_addr().map(|peer| peer.ip().to_canonical())?;
    Some(forwarded(peer, req.headers(), trusted))
}

fn forwarded(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let lines = |name: &str| headers.get_all(name).map(HeaderValue::as_bytes);
    chain(peer, trusted, lines("x-forwarded-for"), lines("forwarded")).client
}

/// Whether `Sec-GPC: 1` or `DNT: 1` was sent.
pub fn privacy_signal(headers: &HeaderMap) -> bool {
    ["sec-gpc", "dnt"].iter().any(|name| headers.get(*name).is_some_and(|value| value.as_bytes() == b"1"))
}

/// The site that a request asks for.
pub fn site(site: &Option<String>) -> Result<&str, ApiError> {
    let site = site.as_deref().filter(|site| !site.is_empty()).unwrap_or(DEFAULT_SITE);
    if is_site(site) {
        return Ok(site);
    }
    Err(ApiError::BadRequest(String::from("site must be 1 to 64 characters of A-Z a-z 0-9 _ . : -")))
}

/// The `User-Agent`, as far as it is text.
pub fn agent(headers: &HeaderMap) -> &str {
    headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default()
}

/// What is known at once, or must be asked for first.
type Sooner<T> = Either<Ready<Result<T, ApiError>>, LocalBoxFuture<'static, Result<T, ApiError>>>;

/// Whom a request is from, as a token or a key proves. Handlers that need it take it as an argument, so that they cannot
/// forget to ask.
#[derive(Debug)]
pub struct User(Arc<Principal>);

impl std::ops::Deref for User {
    type Target = Principal;

    fn deref(&self) -> &Principal {
        &self.0
    }
}

impl FromRequest for User {
    type Error = ApiError;
    type Future = Sooner<Self>;

    fn from_request(req: &HttpRequest, _: &mut Payload) -> Self::Future {
        let user = |found: Found| found?.map(User).ok_or(NOT_SAID);
        match recognise(req) {
            Either::Left(found) => Either::Left(ready(user(found))),
            Either::Right(asking) => Either::Right(Box::pin(async move { user(asking.await) })),
        }
    }
}

const NOT_SAID: ApiError =
    ApiError::Unauthorized("this needs the header Authorization: Bearer with an access token or a key");

type Found = Result<Option<Arc<Principal>>, ApiError>;

fn recognise(req: &HttpRequest) -> Either<Found, LocalBoxFuture<'static, Found>> {
    let Some(state) = req.app_data::<web::Data<State>>().cloned() else {
        return Either::Left(Err(ApiError::internal("the application has no state")));
    };
    let headers = req.headers().get_all(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    match state.identity.recognise(headers) {
        Recognised::Done(found) => Either::Left(found.map_err(refused)),
        Recognised::Ask(token) => {
            Either::Right(Box::pin(async move { state.identity.ask(token).await.map_err(refused) }))
        }
    }
}

/// Which of the things that can be wrong with a token it was helps only who forges one.
fn refused(rejection: Rejection) -> ApiError {
    match rejection {
        Rejection::Invalid(_) => ApiError::Unauthorized("the access token or key is not valid"),
        Rejection::Unavailable { retry_after } => {
            ApiError::Later { what: String::from("the access token or key cannot be verified right now"), retry_after }
        }
    }
}

/// Proof that the request is the operator's: it has the admin key, or, where none is set, comes from this machine and
/// through no proxy; or it has the token of an operator or admin, or a key with the scope `operator`.
#[derive(Debug)]
pub struct Operator {
    who: Cow<'static, str>,
}

impl Operator {
    /// Notes a change of theirs, before it is made.
    ///
    /// # Errors
    /// When it cannot be written; then it must not be made.
    pub fn note(&self, state: &State, action: &str, target: &str, detail: Value) -> Result<(), ApiError> {
        Ok(state.control.note(&AuditEntry { who: &self.who, action, target, detail })?)
    }

    /// The same, on a thread that may wait for the disk: for handlers that share theirs with visitors.
    ///
    /// # Errors
    /// As above.
    pub async fn note_aside(
        self,
        state: &web::Data<State>,
        action: &'static str,
        target: String,
        detail: Value,
    ) -> Result<(), ApiError> {
        let state = state.clone();
        web::block(move || self.note(&state, action, &target, detail)).await.map_err(ApiError::internal)?
    }

    /// Who they are, for the log of changes: no secret, and no address.
    pub fn who(&self) -> &str {
        &self.who
    }
}

impl FromRequest for Operator {
    type Error = ApiError;
    type Future = Sooner<Self>;

    fn from_request(req: &HttpRequest, _: &mut Payload) -> Self::Future {
        let settings = Settings::of(req);
        let key = settings.as_ref().and_then(|settings| settings.admin_key.as_deref());
        let peer = req.peer_addr().map(|peer| peer.ip().to_canonical());
        // A proxy on this machine that says nothing of its client, as nginx does unless it is told to.
        let is_proxy = req.version() < Version::HTTP_11
            || peer
                .zip(settings.as_ref())
                .is_some_and(|(peer, settings)| settings.trusted_proxies.iter().any(|range| range.contains(&peer)));
        let allowed = allowed(key, peer.filter(|_| key.is_some() || !is_proxy), req.headers());
        if allowed.is_ok() && key.is_some() {
            return Either::Left(ready(Ok(Operator { who: Cow::Borrowed("the admin key") })));
        }
        // Who may as this machine may still say who it is.
        let operator = move |found: Found| match (found, allowed) {
            (Ok(Some(somebody)), _) if somebody.operates() => Ok(Operator { who: Cow::Owned(somebody.who()) }),
            (Ok(None), allowed) => allowed.map(|()| Operator { who: Cow::Borrowed("this machine") }),
            // Who shows something that is not good is not let in for where they sit: they may be finding out what it is good for.
            (Ok(Some(_)), _) => Err(ApiError::Forbidden("this is for operators")),
            (Err(error), _) => Err(error),
        };
        match recognise(req) {
            Either::Left(found) => Either::Left(ready(operator(found))),
            Either::Right(asking) => Either::Right(Box::pin(async move { operator(asking.await) })),
        }
    }
}

fn allowed(key: Option<&str>, peer: Option<IpAddr>, headers: &HeaderMap) -> Result<(), ApiError> {
    match key {
        Some(key) => {
            // Of two, somebody else may have looked at the other one.
            let mut lines = headers.get_all(header::AUTHORIZATION);
            let one = lines.next().filter(|_| lines.next().is_none());
            let sent = one
                .and_then(|value| value.to_str().ok())
                .and_then(|value| value.strip_prefix("Bearer "))
                .unwrap_or_default();
            // Comparing hashes takes the same time wherever the first difference is.
            if xxh3_128(sent.as_bytes()) == xxh3_128(key.as_bytes()) && sent == key {
                return Ok(());
            }
            Err(ApiError::Unauthorized("this needs the header Authorization: Bearer with the server's admin key"))
        }
        None => {
            let local = peer.is_some_and(|ip| ip.to_canonical().is_loopback());
            let proxied = ["x-forwarded-for", "forwarded", "via", "x-real-ip"].iter().any(|h| headers.contains_key(*h));
            if local && !proxied && is_own_page(headers) {
                return Ok(());
            }
            Err(ApiError::Unauthorized("this is open to the server's own machine only, until server.admin_key is set"))
        }
    }
}

/// Whether no page of another site made the operator's browser send this: the address in `Host` must be this machine's
/// (another name may have been pointed here), and `Origin`, where there is one, the same.
fn is_own_page(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let host = text("host").unwrap_or_default();
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((name, _)) => name,
        None => host.split(':').next().unwrap_or_default(),
    };
    let here = name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    let same = text("origin").is_none_or(|origin| origin.split_once("://").is_some_and(|(_, rest)| rest == host));
    here && same && text("sec-fetch-site").is_none_or(|site| matches!(site, "same-origin" | "none"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::http::header::HeaderName;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v))).collect()
    }

    fn client(peer: &str, lines: &[&'static str], trusted: &[&str]) -> String {
        let trusted: Vec<IpNet> = trusted.iter().map(|range| range.parse().unwrap()).collect();
        let pairs: Vec<_> = lines.iter().map(|line| ("x-forwarded-for", *line)).collect();
        let mut map = HeaderMap::new();
        for (name, value) in headers(&pairs) {
            map.append(name, value);
        }
        for line in lines.iter().skip(map.len()) {
            map.append(HeaderName::from_static("x-forwarded-for"), HeaderValue::from_static(line));
        }
        forwarded(peer.parse().unwrap(), &map, &trusted).to_string()
    }

    #[test]
    fn forwarded_addresses_are_believed_from_trusted_proxies_only() {
        assert_eq!(client("203.0.113.9", &["1.1.1.1"], &[]), "203.0.113.9");
        assert_eq!(client("203.0.113.9", &["1.1.1.1"], &["10.0.0.0/8"]), "203.0.113.9");
        assert_eq!(client("10.0.0.1", &["6.6.6.6, 1.1.1.1"], &["10.0.0.0/8"]), "1.1.1.1", "the left is forged");
        assert_eq!(client("10.0.0.1", &["1.1.1.1, 10.0.0.2"], &["10.0.0.0/8"]), "1.1.1.1");
        assert_eq!(client("10.0.0.1", &["1.1.1.1, rubbish"], &["10.0.0.0/8"]), "10.0.0.1");
        assert_eq!(client("10.0.0.1", &["[2001:db8::1]:443"], &["10.0.0.0/8"]), "2001:db8::1");
        assert_eq!(client("10.0.0.1", &["::ffff:1.1.1.1"], &["10.0.0.0/8"]), "1.1.1.1");
        assert_eq!(client("10.0.0.1", &[], &["10.0.0.0/8"]), "10.0.0.1");
    }

    #[test]
    fn the_operator_has_the_key_or_sits_at_the_machine() {
        let local: Option<IpAddr> = Some("127.0.0.1".parse().unwrap());
        let mapped: Option<IpAddr> = Some("::ffff:127.0.0.1".parse().unwrap());
        let far: Option<IpAddr> = Some("192.0.2.1".parse().unwrap());
        let none = headers(&[("host", "127.0.0.1:8080")]);
        assert!(allowed(None, local, &none).is_ok());
        assert!(allowed(None, local, &headers(&[("host", "[::1]:8080")])).is_ok());
        let own = [("host", "localhost:8080"), ("origin", "http://localhost:8080"), ("sec-fetch-site", "same-origin")];
        assert!(allowed(None, local, &headers(&own)).is_ok());
        assert!(allowed(None, local, &headers(&[("host", "evil.example")])).is_err(), "a name pointed here");
        let foreign = [("host", "localhost:8080"), ("origin", "https://evil.example")];
        assert!(allowed(None, local, &headers(&foreign)).is_err(), "a form on another site");
        assert!(allowed(None, mapped, &none).is_ok());
        assert!(allowed(None, far, &none).is_err());
        assert!(allowed(None, None, &none).is_err());
        let proxied = [("host", "localhost"), ("x-forwarded-for", "1.1.1.1")];
        assert!(allowed(None, local, &headers(&proxied)).is_err(), "through a proxy");
        let key = Some("0123456789abcdef");
        assert!(allowed(key, local, &none).is_err());
        assert!(allowed(key, far, &headers(&[("authorization", "Bearer 0123456789abcdef")])).is_ok());
        assert!(allowed(key, far, &headers(&[("authorization", "Bearer 0123456789abcdeX")])).is_err());
        let mut two = headers(&[("authorization", "Bearer 0123456789abcdef")]);
        two.append(header::AUTHORIZATION, HeaderValue::from_static("Bearer other"));
        assert!(allowed(key, far, &two).is_err(), "it is sent once");
    }

    #[test]
    fn only_a_one_is_a_signal() {
        assert!(privacy_signal(&headers(&[("sec-gpc", "1")])));
        assert!(privacy_signal(&headers(&[("dnt", "1")])));
        assert!(!privacy_signal(&headers(&[("dnt", "0")])));
        assert!(!privacy_signal(&HeaderMap::new()));
    }
}
