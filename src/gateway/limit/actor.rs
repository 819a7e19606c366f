//! The owners of the buckets: each looks after a part of the shards, takes out in small pieces what is full again, and
//! publishes what there is. And the keeper of the line to Redis.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use actix::{Actor, ActorContext, ActorFutureExt, AsyncContext, Context, WrapFuture};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::check::Store;
use super::exchange::Exchange;
use super::shard::Tally;
use crate::actor::supervisor::{Exit, Life};
use crate::clock::Monotonic;

/// Owners.
pub(super) const OWNERS: usize = 4;
/// How often each sweeps some shards, and in how many steps all of its own.
const TICK: Duration = Duration::from_millis(100);
const STEPS: usize = 16;
/// How often it is asked whether Redis is away.
const WATCH: Duration = Duration::from_millis(50);

/// Whether all is to end, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Not,
    /// What is held goes back.
    InOrder,
    /// Nobody waits for that.
    AtOnce,
}

/// What an owner publishes of its shards, by slot.
#[derive(Default)]
pub(super) struct Gauge(parking_lot::Mutex<Vec<(u32, u64)>>);

impl Gauge {
    pub fn of(&self, slot: u32) -> u64 {
        self.0.lock().iter().filter(|(of, _)| *of == slot).map(|(_, n)| n).sum()
    }
}

pub(super) struct Owner {
    pub life: Life,
    pub number: usize,
    pub store: Arc<Store>,
    pub gauge: Arc<Gauge>,
    pub clock: Monotonic,
    pub stop: watch::Receiver<Ending>,
    step: usize,
    there: Tally,
}

impl Owner {
    pub fn new(
        life: Life,
        number: usize,
        store: Arc<Store>,
        gauge: Arc<Gauge>,
        clock: Monotonic,
        stop: watch::Receiver<Ending>,
    ) -> Self {
        Self { life, number, store, gauge, clock, stop, step: 0, there: Tally::default() }
    }

    fn sweep(&mut self) {
        let own = self.store.shards.iter().skip(self.number).step_by(OWNERS);
        let mut evicted = Tally::default();
        for shard in own.skip(self.step).step_by(STEPS) {
            shard.0.lock().sweep(self.clock.now(), &mut self.there, &mut evicted);
        }
        let registry = self.store.registry.load();
        for (slot, n) in evicted.iter() {
            if let Some(limit) = registry.slot(slot) {
                limit.counters.evicted.fetch_add(n, Ordering::Relaxed);
            }
        }
        self.step += 1;
        if self.step == STEPS {
            self.step = 0;
            *self.gauge.0.lock() = std::mem::take(&mut self.there).iter().collect();
        }
    }
}

impl Actor for Owner {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.run_interval(TICK, |this, ctx| {
            if *this.stop.borrow() != Ending::Not {
                this.life.ends(Exit::Stopped);
                ctx.stop();
                return;
            }
            this.sweep();
        });
    }
}

/// Keeps the exchange running.
pub(super) struct Keeper {
    pub life: Life,
    pub exchange: Arc<Exchange>,
    pub interval: Duration,
    pub stop: watch::Receiver<Ending>,
    pub stopped: watch::Sender<bool>,
}

impl Actor for Keeper {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.run_interval(WATCH, |this, _| this.exchange.watch());
        let (exchange, mut stop, interval) = (self.exchange.clone(), self.stop.clone(), self.interval);
        let run = async move {
            let rounds = async {
                let mut ticks = tokio::time::interval(interval);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
                loop {
                    ticks.tick().await;
                    exchange.round().await;
                }
            };
            let ending = tokio::select! {
                () = rounds => Ending::AtOnce,
                ending = stop.wait_for(|stop| *stop != Ending::Not) => ending.map_or(Ending::AtOnce, |ending| *ending),
            };
            if ending == Ending::InOrder {
                exchange.end().await;
            }
        };
        let ended = run.into_actor(self).map(|(), this, ctx| {
            this.stopped.send_replace(true);
            this.life.ends(Exit::Stopped);
            ctx.stop();
        });
        ctx.spawn(ended);
    }
}
