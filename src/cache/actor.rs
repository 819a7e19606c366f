//! The owner of the first tier: the only one that puts something in, and that decides what goes. And the keeper of the link.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use actix::{Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, Message, WrapFuture};
use tokio::sync::watch;

use super::core::Core;
use super::l1::{Inserted, L1};
use super::stats::bump;
use crate::actor::supervisor::{Exit, Life};

/// How often expired entries are looked for.
const TICK: Duration = Duration::from_millis(100);
/// Shards looked at in a tick: all of them in 1.6 s.
const SHARDS: usize = 4;

/// Something waits to be stored.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Wake;

pub(super) struct Owner {
    pub life: Life,
    pub core: Arc<Core>,
    pub l1: L1,
    pub stop: watch::Receiver<bool>,
    pub ticks: u64,
}

impl Owner {
    pub fn new(life: Life, core: Arc<Core>, stop: watch::Receiver<bool>) -> Self {
        let options = &core.options;
        let l1 = L1::new(core.published.clone(), core.kinds.len(), options.l1_bytes, options.l1_entries);
        Self { life, core, l1, stop, ticks: 0 }
    }

    fn work(&mut self) {
        self.l1.reap();
        let now = self.core.clock.now();
        for insertion in self.core.inbox.take() {
            let counters = &self.core.kind(insertion.entry.kind).counters;
            match self.l1.insert(&insertion.entry, now) {
                Inserted::Stored | Inserted::Expired => {}
                Inserted::Outdated => bump(&counters.l1_outdated),
                Inserted::TooLarge => bump(&counters.l1_too_large),
            }
        }
        self.tell();
    }

    /// Publishes the numbers.
    fn tell(&self) {
        let inbox = &self.core.inbox;
        inbox.entries.store(self.l1.entries() as u64, Ordering::Relaxed);
        inbox.bytes.store(self.l1.bytes(), Ordering::Relaxed);
        for (held, kind) in self.l1.kinds().iter().zip(&self.core.kinds) {
            let counters = &kind.counters;
            counters.entries.store(held.entries, Ordering::Relaxed);
            counters.bytes.store(held.bytes, Ordering::Relaxed);
            counters.l1_evictions.store(held.evicted, Ordering::Relaxed);
            counters.l1_expired.store(held.expired, Ordering::Relaxed);
        }
    }
}

impl Actor for Owner {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        // What came while there was no owner.
        self.work();
        ctx.run_interval(TICK, |this, ctx| {
            if *this.stop.borrow() {
                this.life.ends(Exit::Stopped);
                ctx.stop();
                return;
            }
            this.work();
            let now = this.core.clock.now();
            this.l1.sweep(SHARDS, now);
            this.ticks += 1;
            if this.ticks.is_multiple_of(10) {
                this.core.flights.sweep(now);
            }
            this.tell();
        });
    }
}

impl Handler<Wake> for Owner {
    type Result = ();

    fn handle(&mut self, _: Wake, _: &mut Context<Self>) {
        self.work();
    }
}

/// Keeps the link running.
pub(super) struct Keeper {
    pub life: Life,
    pub core: Arc<Core>,
    pub stop: watch::Receiver<bool>,
}

impl Actor for Keeper {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        let (core, mut stop) = (self.core.clone(), self.stop.clone());
        let run = async move {
            tokio::select! {
                () = super::link::run(core) => {}
                _ = stop.wait_for(|stop| *stop) => {}
            }
        };
        let ended = run.into_actor(self).map(|(), this, ctx| {
            this.life.ends(Exit::Stopped);
            ctx.stop();
        });
        ctx.spawn(ended);
    }
}
