//! The last good answers of routes that may fall back to them: `stale-if-error` (RFC 5861, section 4) at the gateway.
//!
//! Kept is what anybody may be shown: answers 200 to a `GET` without credentials, that are neither private nor set a cookie.
//! What an answer varies by is part of its key; one that varies by anything else is not kept.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hashlink::LruCache;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{HeaderMap, Method, StatusCode};
use parking_lot::Mutex;

use crate::clock::Nanos;

/// Headers of a request that an answer may vary by.
const VARIES: [HeaderName; 4] = [header::ACCEPT, header::ACCEPT_ENCODING, header::ACCEPT_LANGUAGE, header::ORIGIN];
/// All answers together, in bytes.
const MAX_BYTES: usize = 64 << 20;
/// The longest body that is kept.
const MAX_BODY: usize = 1 << 20;
/// What an entry costs beside its key, headers and body.
const OVERHEAD: usize = 256;

/// Last good answers, shared by all threads, the oldest used first to go.
#[derive(Debug)]
pub struct StaleStore(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    kept: LruCache<Key, Arc<Stored>>,
    bytes: usize,
}

/// What an answer is an answer to. Parts go after their lengths, so that no two requests have the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key(Box<[u8]>);

/// An answer.
#[derive(Debug)]
pub struct Stored {
    headers: HeaderMap,
    body: Bytes,
    at: Nanos,
    bytes: usize,
}

impl Default for StaleStore {
    fn default() -> Self {
        Self(Mutex::new(Inner { kept: LruCache::new_unbounded(), bytes: 0 }))
    }
}

impl Key {
    /// Of a request that may be answered from here; `None` for any other.
    pub fn of(route: &str, method: &Method, target: &str, headers: &HeaderMap) -> Option<Self> {
        let private = [header::AUTHORIZATION, header::COOKIE, header::RANGE, HeaderName::from_static("x-api-key")];
        if method != Method::GET || private.iter().any(|name| headers.contains_key(name)) {
            return None;
        }
        let mut key = Vec::with_capacity(128);
        let mut part = |bytes: &[u8]| {
            key.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
            key.extend_from_slice(bytes);
        };
        part(route.as_bytes());
        part(headers.get(header::HOST).map_or(b"", HeaderValue::as_bytes));
        part(target.as_bytes());
        for name in VARIES {
            let lines: Vec<&[u8]> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
            part(&lines.join(&b','));
        }
        Some(Self(key.into()))
    }

    /// The same request, answered by another version of the service.
    pub fn of_canary(self) -> Self {
        let mut key = self.0.into_vec();
        key.extend_from_slice(b"canary");
        Self(key.into())
    }
}

/// Whether an answer may be shown to others, later.
pub fn is_keepable(status: StatusCode, headers: &HeaderMap) -> bool {
    let lines = |name| headers.get_all(name).iter().filter_map(|line| line.to_str().ok());
    let forbidden = |line: &str| {
        let line = line.to_ascii_lowercase();
        line.contains("no-store") || line.contains("private")
    };
    let known = |name: &str| {
        let name = name.trim();
        name.is_empty() || VARIES.iter().any(|v| name.eq_ignore_ascii_case(v.as_str()))
    };
    status == StatusCode::OK
        && !headers.contains_key(header::SET_COOKIE)
        && !lines(header::CACHE_CONTROL).any(forbidden)
        && lines(header::VARY).flat_map(|line| line.split(',')).all(known)
}

/// An answer that is kept when it has come whole.
#[derive(Debug)]
pub struct Keeping {
    key: Key,
    headers: HeaderMap,
    body: BytesMut,
}

impl Keeping {
    /// Of an answer with these headers.
    pub fn new(key: Key, headers: &HeaderMap) -> Self {
        Self { key, headers: headers.clone(), body: BytesMut::new() }
    }

    /// A piece of its body; whether it is still short enough.
    pub fn push(&mut self, piece: &[u8]) -> bool {
        self.body.extend_from_slice(piece);
        self.body.len() <= MAX_BODY
    }
}

impl StaleStore {
    /// Keeps an answer that has come whole.
    pub fn put(&self, answer: Keeping, now: Nanos) {
        let Keeping { key, headers, body } = answer;
        let names: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        let bytes = key.0.len() + names + body.len() + OVERHEAD;
        let stored = Arc::new(Stored { headers, body: body.freeze(), at: now, bytes });
        let mut inner = self.0.lock();
        if let Some(old) = inner.kept.insert(key, stored) {
            inner.bytes -= old.bytes;
        }
        inner.bytes += bytes;
        while inner.bytes > MAX_BYTES
            && let Some((_, old)) = inner.kept.remove_lru()
        {
            inner.bytes -= old.bytes;
        }
    }

    /// An answer that is at most `most` old: its headers, with its age, and its body.
    pub fn get(&self, key: &Key, now: Nanos, most: Duration) -> Option<(HeaderMap, Bytes)> {
        let stored = self.0.lock().kept.get(key).cloned()?;
        let age = Duration::from_nanos(now.saturating_sub(stored.at));
        if age > most {
            return None;
        }
        let mut headers = stored.headers.clone();
        headers.insert(header::AGE, HeaderValue::from(age.as_secs()));
        let status = format!("tidegate; hit; ttl=-{}; detail=stale-if-error", age.as_secs());
        if let Ok(status) = HeaderValue::from_str(&status) {
            headers.insert(HeaderName::from_static("cache-status"), status);
        }
        Some((headers, stored.body.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(headers: &[(&'static str, &'static str)]) -> HeaderMap {
        headers.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn what_is_somebodys_is_neither_kept_nor_shown() {
        let key = |method: Method, headers: &[(&'static str, &'static str)]| Key::of("r", &method, "/a", &map(headers));
        assert!(key(Method::GET, &[("host", "a")]).is_some());
        assert!(key(Method::POST, &[]).is_none());
        for private in ["authorization", "cookie", "x-api-key", "range"] {
            assert!(key(Method::GET, &[(private, "x")]).is_none(), "{private}");
        }
        assert!(is_keepable(StatusCode::OK, &map(&[("vary", "Accept-Encoding, origin")])));
        assert!(!is_keepable(StatusCode::OK, &map(&[("vary", "x-tenant")])));
        assert!(!is_keepable(StatusCode::OK, &map(&[("vary", "*")])));
        assert!(!is_keepable(StatusCode::OK, &map(&[("set-cookie", "a=b")])));
        assert!(!is_keepable(StatusCode::OK, &map(&[("cache-control", "max-age=1, Private")])));
        assert!(!is_keepable(StatusCode::NOT_FOUND, &map(&[])));
    }

    #[test]
    fn keys_cannot_be_crafted_to_meet() {
        let key = |route, target, headers: &[_]| Key::of(route, &Method::GET, target, &map(headers)).unwrap();
        assert_ne!(key("a", "b/c", &[]), key("ab", "/c", &[]));
        assert_ne!(
            key("a", "/", &[("accept", "x"), ("accept-language", "")]),
            key("a", "/", &[("accept-language", "x")])
        );
        assert_eq!(key("a", "/", &[("user-agent", "x")]), key("a", "/", &[]));
    }

    #[test]
    fn an_answer_is_shown_until_it_is_too_old_and_the_store_stays_bounded() {
        let store = StaleStore::default();
        let key = |n: usize| Key::of("r", &Method::GET, &format!("/{n}"), &HeaderMap::new()).unwrap();
        let keep = |n, body: &[u8]| {
            let mut keeping = Keeping::new(key(n), &map(&[("etag", "\"1\"")]));
            assert!(keeping.push(body));
            store.put(keeping, 0);
        };
        keep(0, b"hello");
        let second = 1_000_000_000;
        let (headers, body) = store.get(&key(0), 3 * second, Duration::from_secs(3)).unwrap();
        assert_eq!((headers["age"].clone(), &body[..]), (HeaderValue::from(3u64), &b"hello"[..]));
        assert_eq!(headers["cache-status"], "tidegate; hit; ttl=-3; detail=stale-if-error");
        assert!(store.get(&key(0), 4 * second, Duration::from_secs(3)).is_none());
        for n in 1..=100 {
            keep(n, &vec![0; MAX_BODY]);
        }
        assert!(store.0.lock().bytes <= MAX_BYTES);
        assert!(store.get(&key(0), 0, Duration::MAX).is_none(), "the oldest has made room");
        assert!(store.get(&key(100), 0, Duration::MAX).is_some());
        assert!(!Keeping::new(key(1), &HeaderMap::new()).push(&vec![0; MAX_BODY + 1]));
    }
}
