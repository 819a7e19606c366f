//! The way of a request through the gateway, and of its answer back.
//!
//! [`front`] takes connections, [`guard`] looks at their framing, hyper parses them, [`worker`] has the order of all that is
//! done, [`send`] finds a target and tries again, [`pool`] keeps each worker's connections, and [`answer`] streams what comes
//! back.

mod answer;
mod body;
mod compress;
mod connection;
mod error;
mod exchange;
mod exec;
mod find;
mod front;
mod guard;
mod guarded;
mod own;
mod pool;
mod send;
mod stream;
mod tls;
mod tunnel;
mod version;
mod watched;
mod who;
mod worker;

pub use front::{Listeners, server};
pub use own::{Own, OwnFactory};
