//! The breaker of an upstream: it stops asking what does not answer, and tries it again with a few calls.
//!
//! After M. Nygard, "Release It!" (2007), with the two rates, the two windows and the forced states of resilience4j. Its
//! parts: [`gate`] is what a request passes, atomics alone; [`judge`] is what finished calls are weighed by ([`window`]);
//! [`actor`] is the owner that hands the ones to the other. A finished call leaves its outcome in a box and sends nothing
//! while the owner is looking into it anyway, so the owner weighs batches, at most [`actor::PAUSE`] old.
//!
//! Everything but the actor is apart from it and survives its restart: the state, the window, and the outcomes that wait.

mod actor;
mod gate;
mod handle;
mod judge;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;
mod window;

use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

use crate::clock::Nanos;

pub use gate::Ticket;
pub use handle::Breaker;

/// What a breaker does with calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// There is none; all pass.
    Off,
    /// All pass and are weighed.
    Closed,
    /// None passes, until its time is over.
    Open,
    /// As many as there are probes pass.
    HalfOpen,
    /// None passes, by order.
    ForcedOpen,
    /// All pass, by order; none is weighed.
    ForcedClosed,
}

/// What somebody may order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forced {
    /// Let none pass.
    Open,
    /// Let all pass.
    Closed,
}

/// Why a breaker changed its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(tag = "cause", rename_all = "snake_case")]
pub enum Reason {
    /// Too many of the calls in the window had failed.
    FailureRate {
        /// So many.
        failed: u32,
        /// Of so many.
        calls: u32,
    },
    /// Too many of the calls in the window were slow.
    SlowRate {
        /// So many.
        slow: u32,
        /// Of so many.
        calls: u32,
    },
    /// It had been open for its time.
    Waited,
    /// All probes were good.
    ProbesGood,
    /// A probe failed.
    ProbeFailed,
    /// Too many probes were slow.
    ProbesSlow,
    /// Probes were out for so long that others went in their place.
    ProbesStuck,
    /// An order.
    Forced,
    /// The end of an order.
    Released,
    /// Other settings.
    Configured,
}

/// A change of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Transition {
    /// When, on the monotonic clock, in nanoseconds.
    pub at: Nanos,
    /// From which state.
    pub from: State,
    /// To which.
    pub to: State,
    /// Why.
    pub reason: Reason,
}

/// What a breaker says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct BreakerSnapshot {
    /// Its state.
    pub state: State,
    /// Since when, on the monotonic clock, in nanoseconds.
    pub since: Nanos,
    /// Open: when it is tried again. Half-open: when other probes go in the place of those that are out.
    pub until: Option<Nanos>,
    /// Calls in the window.
    pub calls: u32,
    /// Of them, those that failed.
    pub failed: u32,
    /// Of them, those that were slow.
    pub slow: u32,
    /// Results that came too late to count: their calls had passed in an earlier state.
    pub late: u64,
    /// Results that were lost because too many waited for the owner.
    pub lost: u64,
    /// Changes of state so far.
    pub transitions: u64,
    /// The last of them, oldest first.
    pub last: Vec<Transition>,
    /// How often the owner was made anew.
    pub restarts: u64,
}

/// A time in nanoseconds, as far as that goes.
fn nanos(duration: Duration) -> Nanos {
    Nanos::try_from(duration.as_nanos()).unwrap_or(Nanos::MAX)
}
