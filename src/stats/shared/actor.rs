//! The owner of the publisher: starts it on an arbiter of its own, and again when it dies.

use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, ActorContext, ActorFutureExt, AsyncContext, Context, WrapFuture};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::keys::Keys;
use super::ops::Expiring;
use super::publish::{EVENTS, Publisher};
use super::read::{Inner, SharedReads};
use super::{Role, SharedOptions, SharedState, StoreError};
use crate::actor::background;
use crate::actor::supervisor::{Exit, Life, Supervised};
use crate::clock::Clock;
use crate::event::visitor::Salts;
use crate::journal::{Journal, Pin};
use crate::redis::{Client, Script};
use crate::stats::{Queries, StatsOptions};

/// What the rest of the room sees of the shared store.
#[derive(Clone)]
pub struct SharedHandle {
    /// Questions to it.
    pub reads: SharedReads,
    actor: Supervised<Owner>,
    stop: watch::Sender<bool>,
    ended: watch::Receiver<bool>,
}

/// What a publisher is made of, each time anew.
struct Parts {
    client: Arc<Client>,
    keys: Keys,
    options: SharedOptions,
    stats: StatsOptions,
    journal: Journal,
    queries: Queries,
    counted: watch::Receiver<u64>,
    pins: [Pin; 2],
    clock: Clock,
    salts: Arc<Salts>,
    state: Arc<SharedState>,
    opened_at: u64,
    stop: watch::Receiver<bool>,
    ended: watch::Sender<bool>,
}

struct Owner {
    life: Life,
    parts: Arc<Parts>,
}

/// Starts delivering to the shared store. Returns at once: it need not be there.
///
/// # Errors
/// When an address makes no sense.
pub(in crate::stats) fn start(
    options: SharedOptions,
    stats: StatsOptions,
    journal: &Journal,
    queries: Queries,
    counted: watch::Receiver<u64>,
    clock: Clock,
    salts: Arc<Salts>,
) -> Result<SharedHandle, StoreError> {
    let client = Arc::new(Client::new(&options.redis)?);
    let keys = Keys::new(&options.prefix, options.redis.cluster);
    let events = options.event_streams || options.event_keys;
    let state = SharedState::new(events);
    let (stop, asked) = watch::channel(false);
    let (end, ended) = watch::channel(false);
    let reads = SharedReads(Arc::new(Inner {
        // A connection of its own: a long script must not hold up a question more than the server does.
        client: Arc::new(Client::new(&options.redis)?),
        keys: keys.clone(),
        options: options.clone(),
        stats: stats.clone(),
        state: state.clone(),
        instance: journal.name().to_owned(),
        answers: Mutex::default(),
    }));
    // Until the fences are known, everything may still be needed.
    let pins = [journal.pin(0), journal.pin(if events { 0 } else { u64::MAX })];
    let opened_at = journal.end();
    let parts = Arc::new(Parts {
        client,
        keys,
        options,
        stats,
        journal: journal.clone(),
        queries,
        counted,
        pins,
        clock,
        salts,
        state,
        opened_at,
        stop: asked,
        ended: end,
    });
    let background = background().map_err(|error| StoreError::Refused(error.to_string()))?;
    let actor = Supervised::start("shared store", background, move |life| Owner { life, parts: parts.clone() });
    Ok(SharedHandle { reads, actor, stop, ended })
}

impl Parts {
    fn publisher(&self, role: Role) -> Publisher {
        Publisher {
            role,
            client: self.client.clone(),
            keys: self.keys.clone(),
            options: self.options.clone(),
            retention: self.stats.retention,
            journal: self.journal.clone(),
            queries: self.queries.clone(),
            counted: self.counted.clone(),
            pin: self.pins[role as usize].clone(),
            clock: self.clock.clone(),
            salts: self.salts.clone(),
            state: self.state.clone(),
            opened_at: self.opened_at,
            stop: self.stop.clone(),
            script: Script::new(include_str!("apply.lua")),
            expiring: Expiring::default(),
            most_events: EVENTS.1,
        }
    }
}

impl Actor for Owner {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        let parts = self.parts.clone();
        let run = async move {
            let events = parts.options.event_streams || parts.options.event_keys;
            let (mut counts, mut singly) = (parts.publisher(Role::Counts), parts.publisher(Role::Events));
            let run_events = async {
                if events {
                    singly.run().await;
                }
            };
            futures_util::future::join(counts.run(), run_events).await;
            parts.ended.send_replace(true);
        };
        let ended = run.into_actor(self).map(|(), this, ctx| {
            this.life.ends(Exit::Stopped);
            ctx.stop();
        });
        ctx.spawn(ended);
    }
}

impl SharedHandle {
    /// Delivers what the (closed) journal still has, and ends; what is not done in time waits for the next start.
    pub async fn stop(&self, deadline: Duration) {
        self.stop.send_replace(true);
        let mut ended = self.ended.clone();
        if tokio::time::timeout(deadline, ended.wait_for(|ended| *ended)).await.is_err() {
            log::warn!("the shared store was not brought up to date within {} ms", deadline.as_millis());
        }
    }

    /// How often the publisher was made anew.
    pub fn restarts(&self) -> u64 {
        let restarts = self.actor.restarts();
        let read = |n: &std::sync::atomic::AtomicU64| n.load(std::sync::atomic::Ordering::Relaxed);
        read(&restarts.panicked) + read(&restarts.failed)
    }
}
