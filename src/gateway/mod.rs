//! The gateway: Tidegate in front of the services behind it.
//!
//! A request is read by `proxy`, gets one canonical form of its path, finds its route, pays its limits, passes its breaker, is
//! given a target, and is sent there. Decisions are pure (`route`, `limit`, `upstream`); their owners are actors, and what a
//! request reads of them is published, so that no request waits in a mailbox.

pub mod options;
