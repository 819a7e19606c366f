//! The gateway: Tidegate in front of the services behind it.
//!
//! A request is read by `proxy`, gets one canonical form of its path, finds its route, pays its limits, passes its breaker, is
//! given a target, and is sent there. Decisions are pure (`route`, `limit`, `upstream`); their owners are actors, and what a
//! request reads of them is published, so that no request waits in a mailbox.

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

pub use handle::{ApiKey, Gateway};
pub use proxy::{Listeners, Own, OwnFactory, server};
pub use table::StartError;
