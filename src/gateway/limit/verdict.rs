//! What a request is told, and the header fields that say so (draft-ietf-httpapi-ratelimit-headers; `Retry-After` is RFC 9110,
//! section 10.2.3).

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::{HeaderName, HeaderValue, RETRY_AFTER};

use super::limits::{Limit, seconds};
use crate::gateway::options::LimitKey;

/// The limits of a route; see [`super::Limits::resolve`].
#[derive(Clone, Debug)]
pub struct LimitSet(pub(super) Arc<[Arc<Limit>]>);

impl LimitSet {
    /// Whether any of them goes by this.
    pub fn goes_by(&self, key: LimitKey) -> bool {
        self.0.iter().any(|limit| limit.options.by.contains(&key))
    }

    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Why a request does not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// Too many came.
    Exhausted,
    /// It costs more than the limit ever lets through at once: to come again later is of no use.
    CostTooLarge,
    /// Redis is away, and the limit is closed then.
    StoreDown,
}

/// Where a request stands with the tightest of its limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    pub index: u8,
    pub remaining: u64,
    /// Until the bucket is full, in nanoseconds.
    pub full_in: u64,
}

/// Where a request stands with the tightest of its limits: the one with the fewest requests left, or, when it was denied, the
/// one that denies it longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report<'a> {
    /// The limit's name.
    pub name: &'a str,
    /// Requests in a window.
    pub quota: u64,
    /// The window, in seconds.
    pub window: u64,
    /// Requests that would pass at once.
    pub remaining: u64,
    /// Until as many would as ever can.
    pub full_in: Duration,
}

/// Whether a request passes.
#[derive(Clone, Debug)]
pub struct Verdict {
    pub(super) set: LimitSet,
    /// Which limits of the set it paid, or would have; those after the 64th are not told.
    pub(super) applied: u64,
    pub(super) denial: Option<Denial>,
    pub(super) tightest: Option<Standing>,
    pub(super) wait: Option<u64>,
}

impl Verdict {
    /// Whether it does.
    pub fn allowed(&self) -> bool {
        self.denial.is_none()
    }

    /// Why it does not.
    pub fn denial(&self) -> Option<Denial> {
        self.denial
    }

    /// The limit that is reported; none where none applied.
    pub fn tightest(&self) -> Option<Report<'_>> {
        let standing = self.tightest?;
        let limit = self.set.0.get(usize::from(standing.index))?;
        Some(Report {
            name: &limit.name,
            quota: limit.options.limit,
            window: seconds(u64::try_from(limit.options.period.as_nanos()).unwrap_or(u64::MAX)).max(1),
            remaining: standing.remaining,
            full_in: Duration::from_nanos(standing.full_in),
        })
    }

    /// After how long it would pass if nothing else came: exact for limits of this process, a guess for shared ones. `None`
    /// when it passes, or never will.
    pub fn retry_after(&self) -> Option<Duration> {
        self.wait.map(Duration::from_nanos)
    }

    /// `RateLimit-Policy` with all limits that apply, `RateLimit` with the tightest, and `Retry-After` when it is of use.
    /// Limits in shadow are not told.
    pub fn headers(&self) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
        const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
        const LIMIT: HeaderName = HeaderName::from_static("ratelimit");
        let policies = self.policies();
        let standing = self.tightest.and_then(|standing| {
            let limit = self.set.0.get(usize::from(standing.index))?;
            // Denied, what counts is when it may come again.
            let reset = seconds(self.wait.unwrap_or(standing.full_in));
            HeaderValue::try_from(format!(
                "{};r={};t={reset}",
                limit.quoted,
                standing.remaining.min(999_999_999_999_999)
            ))
            .ok()
        });
        let retry = self.wait.map(|wait| (RETRY_AFTER, HeaderValue::from(seconds(wait).max(1))));
        let policies = policies.map(|value| (POLICY, value));
        policies.into_iter().chain(standing.map(|value| (LIMIT, value))).chain(retry)
    }

    fn policies(&self) -> Option<HeaderValue> {
        let mut text = String::new();
        for (index, limit) in self.set.0.iter().enumerate().take(64) {
            if self.applied & 1 << index != 0 && !limit.options.shadow {
                let comma = if text.is_empty() { "" } else { ", " };
                let _ = write!(text, "{comma}{}", limit.policy);
            }
        }
        if text.is_empty() { None } else { HeaderValue::try_from(text).ok() }
    }
}
