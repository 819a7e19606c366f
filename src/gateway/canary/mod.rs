//! A canary: a second version behind a route, that gets a part of its requests, more as it proves well and none if it does not.
//!
//! Its parts: [`split`] is what a request passes, a hash and a comparison; [`stats`] is what its outcome is counted in;
//! [`judge`] decides, by [`evidence`] of failures and by [`latency`], and is a struct without clock; the owner reads the counts
//! several times a second, has them judged, and publishes the weight. Names are those of Argo Rollouts, Flagger and
//! ingress-nginx.
//!
//! Where a release stands ([`state`]) is its judge's [`ledger`]. The [`keeper`] of all canaries has it on [`disk`] and, where
//! instances share it, in Redis ([`exchange`]); with what became of those that have left the config ([`former`]).

mod disk;
mod evidence;
mod exchange;
mod former;
mod handle;
mod judge;
mod keeper;
mod latency;
mod ledger;
#[cfg(test)]
mod ledger_tests;
mod options;
#[cfg(test)]
mod simulation_tests;
mod split;
mod state;
mod stats;
#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clock::UnixMillis;

pub use handle::{Canary, Trial};
pub use keeper::{Canaries, CanaryFaults};
pub use options::{CanaryKey, CanaryOptions, Decider, Weight};
pub use split::Choice;

/// How far a canary has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It has its part, goes on to the next step, and is aborted if it does badly.
    Running,
    /// It keeps its part until somebody says otherwise; it is aborted all the same, unless that is switched off.
    Held,
    /// It has all, and is compared with nothing.
    Promoted,
    /// It has nothing, also of those who ask for it.
    Aborted,
}

impl Phase {
    /// How long a release that stands there is remembered once nobody has it any more. Who begins one with the same settings
    /// later means another, which must not be given what that had; to remember that it was aborted harms nobody.
    fn remembered(self) -> Duration {
        match self {
            Self::Aborted => Duration::from_secs(30 * 86_400),
            Self::Running | Self::Held | Self::Promoted => Duration::from_secs(3600),
        }
    }
}

/// Why a canary changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It was in the config, new or changed.
    Configured,
    /// It did well for a step.
    Step,
    /// It failed more often than the stable version.
    Errors,
    /// It was slower than the stable version.
    Latency,
    /// An order.
    Ordered,
}

/// What a canary's next step waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Waits {
    /// The end of the interval.
    Interval,
    /// More requests.
    Requests,
    /// Fewer failures: there are too many, but they might be chance.
    Errors,
    /// Shorter latencies: they are too long, but that might be chance.
    Latency,
}

/// A change of a canary.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Transition {
    /// When, in Unix milliseconds.
    pub at: UnixMillis,
    /// What it had, in percent.
    pub from: Weight,
    /// What it has, in percent.
    pub to: Weight,
    /// How far it came by that.
    pub phase: Phase,
    /// Why.
    pub reason: Reason,
    /// What was measured, if that was why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured: Option<String>,
    /// Whether this process made it; else another instance did, or this one before its last start.
    pub here: bool,
}

/// What one side has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct SideSnapshot {
    /// Requests whose outcome is known, since the start.
    pub requests: u64,
    /// Of them, those that were answered 5xx or not at all.
    pub failures: u64,
    /// Those that are looked at together at present: without those who asked for the canary or against it.
    pub window_requests: u64,
    /// Of them, those that failed.
    pub window_failures: u64,
    /// The 99th percentile of their latencies to the answer's head, in microseconds.
    pub window_p99_us: Option<u64>,
}

/// What a canary says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct CanarySnapshot {
    /// Name of its upstream.
    pub upstream: String,
    /// How far it has come.
    pub phase: Phase,
    /// What it has, in percent.
    pub weight: Weight,
    /// What it has next, in percent; none after the last step.
    pub next: Option<Weight>,
    /// Since when, in Unix milliseconds.
    pub since: UnixMillis,
    /// Why.
    pub reason: Reason,
    /// What the next step waits for.
    pub waits: Option<Waits>,
    /// The version that was there before.
    pub stable: SideSnapshot,
    /// The new one.
    pub canary: SideSnapshot,
    /// Changes of this release so far, of all instances that share it.
    pub transitions: u64,
    /// Of them, those to [`Phase::Aborted`].
    pub aborts: u64,
    /// The last of them, oldest first.
    pub last: Vec<Transition>,
    /// Whether the disk has this, for the next start.
    pub saved: bool,
    /// Whether the instances that share it were told of this, as of the last look; none where nothing is shared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared: Option<bool>,
    /// How often the owner was made anew.
    pub restarts: u64,
}
