//! The gateway: Tidegate in front of the services behind it.
//!
//! A request is read by [`proxy`], gets one canonical form of its path ([`path`]), finds its route ([`route`]), pays its limits
//! ([`limit`]), may go along ([`identify`]), passes its breaker and is given a target ([`upstream`], [`breaker`]) of the stable
//! version or the new one ([`canary`]), and is sent there. Targets come from [`discovery`] and are looked after by [`check`].
//! Decisions are pure; their owners are actors, and what a request reads of them is published, so that no request waits in a
//! mailbox. All of it as of one moment is a [`table`], which [`Gateway::apply`] swaps as a whole.

pub mod access_log;
pub mod address;
mod backoff;
pub mod breaker;
pub mod canary;
pub mod check;
pub mod connect;
pub mod cors;
pub mod discovery;
mod handle;
pub mod headers;
pub mod identify;
pub mod limit;
pub mod metrics;
pub mod options;
pub mod path;
pub mod proxy;
pub mod route;
mod schedule;
mod socket;
mod stale;
pub mod table;
mod task;
pub mod trace;
pub mod upstream;

pub use handle::Gateway;
pub use proxy::{Listeners, Own, OwnFactory, server};
pub use table::StartError;
