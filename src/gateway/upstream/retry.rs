//! The retry budget: retries are a part of the requests, and a few more, so that an outage is not multiplied by them.
//!
//! After Finagle's `RetryBudget`: a request pays in a part of a retry, a retry takes one out, and all of that is forgotten
//! after ten seconds. Pure with `now`; paying in is one atomic exchange.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::clock::Nanos;

/// Seconds that credits live, the present one among them.
const LIFE: u64 = 10;
/// Parts of a retry.
const ONE: i64 = 1000;
const SECOND: Nanos = 1_000_000_000;

/// A second, and what was paid in less what was taken out in it.
#[derive(Clone, Copy)]
struct Slot(u64);

impl Slot {
    fn new(second: u64, balance: i64) -> Self {
        let balance = balance.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32;
        Self((second << 32) | u64::from(balance as u32))
    }

    fn second(self) -> u64 {
        self.0 >> 32
    }

    fn balance(self) -> i64 {
        i64::from(self.0 as u32 as i32)
    }
}

/// A budget.
pub(super) struct RetryBudget {
    slots: [AtomicU64; LIFE as usize],
    /// What a request pays in.
    part: AtomicI64,
    /// What there is in any case, for the whole life of credits.
    floor: AtomicI64,
    /// Taking out is looking and taking, by one at a time.
    taking: Mutex<()>,
}

impl RetryBudget {
    pub fn new(part: f64, floor: u32) -> Self {
        let budget = Self {
            slots: Default::default(),
            part: AtomicI64::new(0),
            floor: AtomicI64::new(0),
            taking: Mutex::new(()),
        };
        budget.apply(part, floor);
        budget
    }

    /// Other settings; what is there stays.
    pub fn apply(&self, part: f64, floor: u32) {
        self.part.store((part.clamp(0.0, 1000.0) * ONE as f64).round() as i64, Ordering::Relaxed);
        self.floor.store(i64::from(floor) * LIFE as i64 * ONE, Ordering::Relaxed);
    }

    /// A request was made.
    pub fn pay(&self, now: Nanos) {
        let part = self.part.load(Ordering::Relaxed);
        if part > 0 {
            self.add(now, part);
        }
    }

    fn add(&self, now: Nanos, amount: i64) {
        let second = (now / SECOND) & u64::from(u32::MAX);
        let Some(place) = self.slots.get((second % LIFE) as usize) else { return };
        let mut seen = place.load(Ordering::Relaxed);
        loop {
            let slot = Slot(seen);
            // Who read the clock before the second turned adds to the one that has begun.
            let next = if slot.second() < second {
                Slot::new(second, amount)
            } else {
                Slot::new(slot.second(), slot.balance() + amount)
            };
            match place.compare_exchange_weak(seen, next.0, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return,
                Err(other) => seen = other,
            }
        }
    }

    fn balance(&self, now: Nanos) -> i64 {
        let second = now / SECOND;
        let alive = self.slots.iter().map(|place| Slot(place.load(Ordering::Relaxed)));
        let sum: i64 = alive.filter(|slot| slot.second() + LIFE > second).map(Slot::balance).sum();
        sum + self.floor.load(Ordering::Relaxed)
    }

    /// Takes one retry out, if there is one.
    pub fn take(&self, now: Nanos) -> bool {
        let _taking = self.taking.lock();
        let enough = self.balance(now) >= ONE;
        if enough {
            self.add(now, -ONE);
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Barrier;
    use std::sync::atomic::AtomicUsize;

    const START: Nanos = 86_400 * SECOND;

    #[test]
    fn retries_are_a_part_of_requests_and_a_floor() {
        let budget = RetryBudget::new(0.2, 1);
        let granted = |now| (0..1000).filter(|_| budget.take(now)).count();
        assert_eq!(granted(START), 10, "a floor for ten seconds");
        assert_eq!(granted(START + 9 * SECOND), 0);
        (0..100).for_each(|_| budget.pay(START + 9 * SECOND));
        assert_eq!(granted(START + 9 * SECOND), 20);
        assert_eq!(granted(START + 10 * SECOND), 10, "those of the first second are forgotten");
        (0..100).for_each(|_| budget.pay(START + 30 * SECOND));
        assert_eq!(granted(START + 40 * SECOND), 10, "so are credits");
        budget.apply(0.0, 0);
        (0..100).for_each(|_| budget.pay(START + 60 * SECOND));
        assert_eq!(granted(START + 60 * SECOND), 0);
    }

    #[test]
    fn threads_do_not_overdraw() {
        let budget = RetryBudget::new(0.1, 0);
        let (granted, barrier) = (AtomicUsize::new(0), Barrier::new(4));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    barrier.wait();
                    for n in 0..25_000 {
                        budget.pay(START);
                        if n % 3 == 0 && budget.take(START) {
                            granted.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                });
            }
        });
        while budget.take(START) {
            granted.fetch_add(1, Ordering::SeqCst);
        }
        assert_eq!(granted.load(Ordering::SeqCst), 10_000);
    }

    proptest! {
        #[test]
        fn in_no_ten_seconds_are_there_more(steps in prop::collection::vec((0u64..1500, 0usize..20, 0usize..20), 1..80)) {
            let budget = RetryBudget::new(0.2, 2);
            let mut now = START;
            let mut seconds = std::collections::BTreeMap::<u64, (usize, usize)>::new();
            for (wait, requests, retries) in steps {
                now += wait * 1_000_000;
                (0..requests).for_each(|_| budget.pay(now));
                let granted = (0..retries).filter(|_| budget.take(now)).count();
                let second = seconds.entry(now / SECOND).or_default();
                *second = (second.0 + requests, second.1 + granted);
                let of: Vec<_> = seconds.range(now / SECOND - 9..).map(|(_, counts)| *counts).collect();
                let (paid, taken) = of.iter().fold((0, 0), |sum, counts| (sum.0 + counts.0, sum.1 + counts.1));
                // As one is granted; afterwards the credit it was paid by may be forgotten before it is.
                prop_assert!(granted == 0 || taken as f64 <= 0.2 * paid as f64 + 20.0 + 1e-9);
                prop_assert!(granted == retries || taken as f64 > 0.2 * paid as f64 + 19.0 - 1e-9, "none is denied early");
            }
        }
    }
}
