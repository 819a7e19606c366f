//! An upstream: the targets of a service, which of them a request goes to, and whether it may go at all.
//!
//! [`Upstream`] is the handle. [`Upstream::admit`] passes the breaker and takes a place under way, or waits for one ([`queue`]);
//! [`Upstream::pick`] chooses a target after [`balance`] among those that are well ([`passive`] health by requests, active
//! health by checks); [`Upstream::may_retry`] asks the [`retry`] budget. All of that reads what is published: a list of
//! targets that is replaced as a whole, and atomics in each target, which outlives the list. So counts and health stay with
//! an address over changes of settings and of discovery.

mod balance;
#[cfg(test)]
mod balance_tests;
mod counters;
mod ewma;
mod handle;
mod passive;
mod queue;
mod retry;
mod ring;
mod snapshot;
mod target;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use handle::{Admission, CallOutcome, Upstream};
pub use snapshot::{TargetSnapshot, UpstreamSnapshot};
pub use target::{Picked, Target, TargetId, TargetOutcome, Targets};

/// A request may not go to the upstream now. Over HTTP this is 503 with `Retry-After`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The breaker is open.
    #[error("the upstream is not asked for {} ms", retry_after.as_millis())]
    Open {
        /// When to try again.
        retry_after: Duration,
    },
    /// As many are under way, and wait, as may.
    #[error("too many requests wait for the upstream")]
    Full,
    /// It waited for as long as it may.
    #[error("the request waited too long for the upstream")]
    QueueTimeout,
}

/// There is no target to go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoTarget {
    /// None is known.
    #[error("the upstream has no targets")]
    Unknown,
    /// None of those that are known is well.
    #[error("no target of the upstream is healthy")]
    Unhealthy,
    /// Those that are well were tried.
    #[error("all targets of the upstream were tried")]
    Tried,
}
