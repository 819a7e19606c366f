//! The stream: the journal's events, and what they add up to, handed on to Kafka.
//!
//! Two readers of the journal, each with its cursor in Kafka, in the same transaction as what it wrote: the
//! [`publisher`] hands on events ([`outgoing`]), the [`aggregate`] room's actor hands on absolute numbers of windows, which
//! it takes from the statistics. A [`session::Session`] delivers a run of records wholly or not at all; what it does not know
//! is read back ([`readback`]), never guessed. A broker that is down is a reader that waits.

mod aggregate;
mod client;
mod cursor;
mod error;
mod handle;
mod options;
mod outgoing;
mod publisher;
mod readback;
pub mod schema;
mod session;
mod tail;
mod topics;
mod worker;

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

pub use cursor::{Book, Books, Cursor, known_code};
pub use error::StreamError;
pub use handle::{Lane, StreamHandle};
pub use options::{Compression, Mode, Secret, StreamOptions};
pub use tail::{Tail, Taken};
pub use topics::{Spec, Topics};

use crate::actor::background;
use crate::actor::supervisor::Supervised;
use crate::clock::Clock;
use crate::journal::{Journal, Pin};
use crate::stats::{Retention, StatsHandle};
use aggregate::Aggregates;
use handle::Shared;
use publisher::{Parts, Publisher};

/// Starts handing on. Whether the broker is there does not matter; whether librdkafka takes the settings does.
///
/// `pin` keeps the journal's entries until Kafka has said how far they are delivered.
///
/// # Errors
/// [`StreamError::Setting`], which names the key.
pub fn start(
    options: StreamOptions,
    journal: &Journal,
    pin: Pin,
    stats: (&StatsHandle, Retention),
    clock: &Clock,
) -> Result<StreamHandle, StreamError> {
    publisher::check(&options)?;
    let shared = Arc::new(Shared {
        options,
        events: Lane::default(),
        aggregates: Lane::default(),
        cursor: ArcSwap::default(),
        dead_letters: std::sync::atomic::AtomicU64::new(0),
        topics_gone: std::sync::atomic::AtomicU64::new(0),
        stop: watch::Sender::new(false),
        opened_at: journal.end(),
    });
    let parts = Parts { journal: journal.clone(), clock: clock.clone(), pin, shared: shared.clone() };
    let arbiter = background().map_err(|_| StreamError::Interrupted)?;
    let publisher = Supervised::start("publisher", arbiter.clone(), move |life| Publisher::new(life, parts.clone()));
    // A pin of its own: either may be ahead of the other.
    let (stats, retention) = (stats.0.clone(), stats.1);
    let parts = Parts { journal: journal.clone(), clock: clock.clone(), pin: journal.pin(0), shared: shared.clone() };
    let aggregates = Supervised::start("aggregates", arbiter, move |life| {
        Aggregates::new(life, parts.clone(), stats.clone(), retention)
    });
    Ok(StreamHandle { shared, publisher, aggregates })
}
