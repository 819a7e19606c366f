//! What a canary is told to do: the validated settings of `[gateway.routes.canary]`.

use std::fmt;
use std::time::Duration;

use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize, Serializer};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use crate::gateway::options::Destination;

/// A second version of what is behind a route, and how requests come to it.
#[derive(Clone, Debug, PartialEq)]
pub struct CanaryOptions {
    /// The upstream that is the canary, by name; the route's own is the stable one.
    pub upstream: String,
    /// What it is called, so that the next one is another with the same settings; may be empty.
    pub release: String,
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

impl CanaryOptions {
    /// What a release begins with.
    pub(super) fn first(&self) -> Weight {
        self.steps.first().copied().unwrap_or(self.weight)
    }

    /// By which a release along a route is known again, over restarts and by other instances: 32 hexadecimal digits, of all
    /// settings and of what it is compared with.
    pub(super) fn identity(&self, to: &Destination) -> String {
        // Named one by one, so that none is forgotten. One that is added later must leave the identity as it is where it has its
        // default, or an update would begin every release anew.
        let Self {
            upstream,
            release,
            weight,
            steps,
            interval,
            min_requests,
            max_error_difference,
            max_p99_ratio,
            abort,
            by,
            header,
            cookie,
        } = self;
        let to = match to {
            Destination::Upstream(name) => name.as_str(),
            Destination::Own => "",
        };
        let by = match by {
            CanaryKey::Cookie => "cookie",
            CanaryKey::Address => "address",
            CanaryKey::ApiKey => "api_key",
            CanaryKey::User => "user",
        };
        let steps: Vec<u32> = steps.iter().map(|step| step.slots()).collect();
        let decider = |of: &Option<Decider>| of.as_ref().map(|decider| (decider.name.clone(), decider.value.clone()));
        let settings = serde_json::json!([
            to,
            upstream,
            release,
            weight.slots(),
            steps,
            interval.as_millis() as u64,
            min_requests,
            max_error_difference,
            max_p99_ratio,
            abort,
            by,
            decider(header),
            decider(cookie),
        ]);
        let hash = Sha256::digest(settings.to_string().as_bytes());
        hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }
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

impl<'de> Deserialize<'de> for Weight {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let percent = f64::deserialize(deserializer)?;
        Self::percent(percent).ok_or_else(|| de::Error::custom("a weight is 0 to 100, to a hundredth"))
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
    use crate::gateway::canary::tests::options;

    #[test]
    fn every_setting_makes_another_release() {
        let to = Destination::Upstream(String::from("users"));
        let base = CanaryOptions { weight: Weight(5), ..options(&[1.0, 5.0]) };
        let decider = |name: &str| Some(Decider { name: name.to_owned(), value: None });
        let others = [
            CanaryOptions { upstream: String::from("other"), ..base.clone() },
            CanaryOptions { release: String::from("2.4.1"), ..base.clone() },
            CanaryOptions { weight: Weight(6), ..base.clone() },
            CanaryOptions { steps: vec![Weight(100)], ..base.clone() },
            CanaryOptions { interval: Duration::from_secs(61), ..base.clone() },
            CanaryOptions { min_requests: 501, ..base.clone() },
            CanaryOptions { max_error_difference: 0.006, ..base.clone() },
            CanaryOptions { max_p99_ratio: 1.6, ..base.clone() },
            CanaryOptions { abort: false, ..base.clone() },
            CanaryOptions { by: CanaryKey::Address, ..base.clone() },
            CanaryOptions { header: decider("x"), ..base.clone() },
            CanaryOptions { cookie: decider("x"), ..base.clone() },
        ];
        let mut all: Vec<String> = others.iter().map(|other| other.identity(&to)).collect();
        all.push(base.identity(&Destination::Upstream(String::from("stable"))));
        // It is in files and in Redis: with another hash every release would begin anew.
        assert_eq!(base.identity(&to), "6de3a2d88e4a88a048dc03e93bddfa75");
        all.push(base.identity(&to));
        assert!(all.iter().all(|id| id.len() == 32));
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }

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
        for slots in 0..=10_000 {
            let text = serde_json::to_string(&Weight(slots)).unwrap();
            assert_eq!(serde_json::from_str::<Weight>(&text).unwrap(), Weight(slots), "{text}");
        }
        assert!(serde_json::from_str::<Weight>("100.01").is_err());
    }
}
