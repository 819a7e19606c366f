//! Answers out of the cache: what RFC 9211 and RFC 9111 have to say about them.

use std::fmt::Write;
use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::http::header::{self, HeaderName, HeaderValue, IfNoneMatch};
use serde::Serialize;
use utoipa::ToSchema;

use super::error::Envelope;
use crate::cache::{Forward, Found, Freshness, Tier, Why};
use crate::catalog::parts_of;
use crate::clock::UnixMillis;

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
/// Anybody may store it, and asks each time whether it still holds: what is written is seen at once, for the price of a 304.
const CACHE_CONTROL: HeaderValue = HeaderValue::from_static("public, no-cache");

/// The entity tag of an answer, without quotes: its version, and a hash of what else it shows.
fn tag(tag: u64) -> String {
    let (version, hash) = parts_of(tag);
    format!("{version}-{hash:x}")
}

/// The version in an entity tag that was answered.
pub fn version(tag: &str) -> Option<u64> {
    let tag = tag.strip_prefix('"')?.strip_suffix('"')?;
    tag.split('-').next()?.parse().ok()
}

/// An answer whose body is the one that was found; `None` if there is none.
pub fn answer(found: &Found, if_none_match: &IfNoneMatch) -> Option<HttpResponse> {
    let body = found.body.clone()?;
    let own = tag(found.tag);
    let known = match if_none_match {
        IfNoneMatch::Any => true,
        IfNoneMatch::Items(tags) => tags.iter().any(|tag| tag.tag() == own),
    };
    let mut answer = if known { HttpResponse::NotModified() } else { HttpResponse::Ok() };
    answer.insert_header((header::ETAG, format!("\"{own}\""))).insert_header((header::CACHE_CONTROL, CACHE_CONTROL));
    answer.insert_header((CACHE_STATUS, status(found)));
    if found.tier != Tier::L3 {
        answer.insert_header((header::AGE, found.age.as_secs()));
    }
    if known {
        return Some(answer.finish());
    }
    answer.insert_header((header::CONTENT_TYPE, HeaderValue::from_static("application/json")));
    Some(answer.body(body))
}

/// An answer that is made each time.
pub fn fresh<T: Serialize>(data: T, now: UnixMillis) -> HttpResponse {
    HttpResponse::Ok().insert_header((header::CACHE_CONTROL, "no-store")).json(Envelope::new(data, now))
}

/// `Cache-Status` (RFC 9211): `tidegate; hit; ttl=3540; detail=L1`. What is stale has a negative `ttl`.
fn status(found: &Found) -> String {
    let mut text = String::with_capacity(64);
    text.push_str("tidegate");
    match found.forward {
        None => text.push_str("; hit"),
        Some(Forward::Miss) => text.push_str("; fwd=miss"),
        Some(Forward::Stale) => text.push_str("; fwd=stale"),
    }
    let _ = match found.freshness {
        Freshness::Fresh => write!(text, "; ttl={}", found.remaining.as_secs()),
        Freshness::Stale(_) => write!(text, "; ttl=-{}", found.past.as_secs().max(1)),
    };
    if found.forward.is_some() && found.stored {
        text.push_str("; stored");
    }
    if found.collapsed {
        text.push_str("; collapsed");
    }
    let _ = write!(text, "; detail={}", word(found));
    text
}

fn word(found: &Found) -> &'static str {
    match (found.freshness, found.tier) {
        (Freshness::Stale(Why::Revalidating), _) => "stale-while-revalidate",
        (Freshness::Stale(Why::Error), _) => "stale-if-error",
        (Freshness::Fresh, Tier::L1) => "L1",
        (Freshness::Fresh, Tier::L2) => "L2",
        (Freshness::Fresh, Tier::L3) => "L3",
    }
}

/// How a value was found, for people.
#[derive(Debug, Serialize, ToSchema)]
pub struct Marked {
    /// Whether it exists.
    exists: bool,
    /// `L1` is this process, `L2` Redis, `L3` the database.
    #[schema(example = "L1")]
    tier: &'static str,
    /// Whether it is within its lifetime.
    fresh: bool,
    /// Seconds since it was read from the database.
    age: u64,
    /// Seconds it is fresh yet.
    remaining: u64,
    /// As in the header of the same name.
    #[schema(example = "tidegate; hit; ttl=3540; detail=L1")]
    cache_status: String,
}

impl Marked {
    /// Of what was found.
    pub fn of(found: &Found) -> Self {
        let seconds = |duration: Duration| duration.as_secs();
        Self {
            exists: found.body.is_some(),
            tier: match found.tier {
                Tier::L1 => "L1",
                Tier::L2 => "L2",
                Tier::L3 => "L3",
            },
            fresh: found.freshness == Freshness::Fresh,
            age: seconds(found.age),
            remaining: seconds(found.remaining),
            cache_status: status(found),
        }
    }
}
