//! What a canary is told to do: the validated settings of `[gateway.routes.canary]`.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;

/// A second version of what is behind a route, and how requests come to it.
#[derive(Clone, Debug, PartialEq)]
pub struct CanaryOptions {
    /// The upstream that is the canary, by name; the route's own is the stable one.
    pub upstream: String,
    /// The part it has at the beginning; with `steps`, the first of them.
    pub weight: Weight,
    /// The parts it goes through, rising; empty leaves it at `weight`.
    pub steps: Vec<Weight>,
    /// How long a step takes at least, and what is looked at together.
    pub interval: Duration,
    /// Requests to the canary without which no step is judged.
    pub min_requests: u64,
    /// By how much the canary's part of failed requests may be above the stable one's, 0 to 1.
    pub max_error_difference: f64,
    /// How many times the stable one's 99th percentile of latency the canary's may be.
    pub max_p99_ratio: f64,
    /// Whether it is aborted by itself; else it only goes no further.
    pub abort: bool,
    /// Who is told apart: all requests of one go the same way.
    pub by: CanaryKey,
    /// A header (lower-case name) that decides.
    pub header: Option<Decider>,
    /// A cookie that decides, where the header does not.
    pub cookie: Option<Decider>,
}

/// A header or cookie by which a client decides: with this value for the canary, with `never` against it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decider {
    /// Its name.
    pub name: String,
    /// Its value for the canary; `None` is any but `never`.
    pub value: Option<String>,
}

/// Who is told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CanaryKey {
    /// Browsers, by a random id in a cookie of ours.
    Cookie,
    /// Addresses; IPv6 by /64.
    Address,
    /// API keys; the address where there is none.
    ApiKey,
    /// Users; the address where there is none.
    User,
}

/// A part of all, in steps of a hundredth of a percent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Weight(u32);

impl Weight {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// All.
    pub const ALL: Self = Self(10_000);

    /// Of 0 to 100 percent, in hundredths; `None` of any other number.
    pub fn percent(percent: f64) -> Option<Self> {
        let hundredths = percent * 100.0;
        let whole = hundredths.round();
        // Decimal fractions are none in binary.
        let is_one = (0.0..=10_000.0).contains(&whole) && (hundredths - whole).abs() < 1e-6;
        is_one.then_some(Self(whole as u32))
    }

    /// Of 10,000.
    pub fn slots(self) -> u32 {
        self.0
    }

    /// From 0 to 1.
    pub fn part(self) -> f64 {
        f64::from(self.0) / 10_000.0
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", f64::from(self.0) / 100.0)
    }
}

impl Serialize for Weight {
    /// In percent.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(f64::from(self.0) / 100.0)
    }
}

impl utoipa::PartialSchema for Weight {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        f64::schema()
    }
}

impl ToSchema for Weight {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_hundredths_of_a_percent() {
        for (percent, slots) in [(0.0, 0), (0.01, 1), (0.29, 29), (5.0, 500), (33.33, 3333), (100.0, 10_000)] {
            assert_eq!(Weight::percent(percent).map(Weight::slots), Some(slots), "{percent}");
        }
        for percent in [-1.0, 0.001, 33.333, 100.01, f64::NAN, f64::INFINITY] {
            assert_eq!(Weight::percent(percent), None, "{percent}");
        }
        assert_eq!(Weight::percent(0.5).unwrap().to_string(), "0.5 %");
        assert_eq!(serde_json::to_string(&Weight::ALL).unwrap(), "100.0");
    }
}
