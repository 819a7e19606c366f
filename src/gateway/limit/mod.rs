//! Limits: how many requests may come, by address, API key, user, route and combinations of them.
//!
//! A limit is a GCRA ([`gcra`]) over buckets ([`shard`]); a request pays all of its limits together or none of them
//! ([`check`]). A check takes short locks and no mailbox. Memory is bounded, and what had to be forgotten is remembered as
//! spent ([`sketch`]). Limits of several instances with one Redis are shared by leases ([`lease`], [`exchange`]): a check never
//! asks Redis.
//!
//! # What a shared limit promises
//!
//! Over all instances at most `burst + limit * t / period` in any stretch of time t, whatever happens to messages and
//! instances, but for these:
//!
//! - Redis loses its keys (`FLUSHALL`, a restart without persistence, a replica that had not everything): buckets are full
//!   again, which is at most one more burst.
//! - Redis' clock jumps ahead: as if that time had passed, which is at most one more burst. When it jumps back nothing is
//!   gained: up to 10 s are waited for, a longer jump is believed and the time since the last exchange is lost.
//! - Redis is away for longer than 750 ms: then `store_down` says what happens. With `LocalShare` each instance lets through
//!   its part of `limit`, beginning with what it held, which is together not more than the limit as long as no instance
//!   starts meanwhile; what was spent is debited when Redis is back. `Open` counts nothing.
//! - A process that is killed takes along what it had not yet told, at most one interval's share of its credit. It counts among
//!   the instances until a bucket would have been filled again, so this is within the burst up to then.
//!
//! A burst that is less than twice the number of instances (3 for a single one), and one more, leaves none a credit: the first
//! request of a key is then denied, and passes an interval later.

mod actor;
mod check;
mod exchange;
mod gcra;
mod handle;
mod key;
mod lease;
#[cfg(test)]
mod lease_tests;
mod limits;
mod shard;
mod sketch;
#[cfg(test)]
mod tests;
mod verdict;

pub use limits::most_at_once;

pub use handle::{BucketState, LimitStats, LimiterStats, Limits};
pub use key::Caller;
pub use verdict::{Denial, LimitSet, Report, Verdict};
