//! One cached value, how long it serves for what, and when it is refreshed early.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use bytes::Bytes;

use super::Kind;
use super::options::TypeOptions;
use crate::clock::UnixMillis;

/// What keeping an entry takes besides its body and id: itself, its place in the map, its node in a queue, its ghost.
pub(super) const OVERHEAD: usize = 280;

/// Not in a queue of the owner.
pub(super) const NO_SLOT: u32 = u32::MAX;

/// The moments of a key before and after an invalidation: of its own, and of its whole type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Epoch {
    pub slot: u64,
    pub kind: u64,
}

/// A value in the cache.
#[derive(Debug)]
pub(super) struct Entry {
    pub kind: Kind,
    pub id: Box<str>,
    pub hash: u64,
    /// `None` is known not to exist.
    pub body: Option<Bytes>,
    pub tag: u64,
    /// When the source was read.
    pub stored_at: UnixMillis,
    /// Fresh before this.
    pub fresh_until: UnixMillis,
    /// Served while a fresh one is fetched, before this.
    pub stale_until: UnixMillis,
    /// Served when there is no fresh one, before this.
    pub error_until: UnixMillis,
    /// How long the fill took, in milliseconds.
    pub delta: f64,
    /// Microseconds of the cache's own time at which reading it began; no invalidation before that matters to it.
    pub as_of: u64,
    /// The epoch at that moment.
    pub epoch: Epoch,
    /// How often it was read since its queue looked, up to 3. The only thing that readers write.
    pub freq: AtomicU8,
    /// Its node in the owner's queues. Only the owner writes it.
    pub slot: AtomicU32,
}

/// What an entry is good for at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum State {
    /// For an answer.
    Fresh,
    /// For an answer while a fresh one is fetched.
    Revalidate,
    /// For an answer if there is no fresh one.
    OnError,
    /// For nothing.
    Gone,
}

/// What an entry is made from.
pub(super) struct Seen<'a> {
    pub kind: Kind,
    pub id: &'a str,
    pub hash: u64,
    pub body: Option<Bytes>,
    pub tag: u64,
    pub stored_at: UnixMillis,
    pub lifetime: UnixMillis,
    pub delta: f64,
    pub as_of: u64,
    pub epoch: Epoch,
}

impl Entry {
    /// An entry of a type. What does not exist is never served stale: it may have come to be.
    pub fn new(seen: Seen<'_>, options: &TypeOptions) -> Self {
        let fresh_until = seen.stored_at.saturating_add(seen.lifetime);
        let after = |window| match &seen.body {
            Some(_) => fresh_until.saturating_add(millis(window)),
            None => fresh_until,
        };
        let stale_until = after(options.stale);
        Self {
            kind: seen.kind,
            id: seen.id.into(),
            hash: seen.hash,
            tag: seen.tag,
            stored_at: seen.stored_at,
            fresh_until,
            stale_until,
            error_until: after(options.stale_if_error).max(stale_until),
            delta: seen.delta,
            as_of: seen.as_of,
            epoch: seen.epoch,
            freq: AtomicU8::new(0),
            slot: AtomicU32::new(NO_SLOT),
            body: seen.body,
        }
    }

    pub fn state(&self, now: UnixMillis) -> State {
        match now {
            now if now < self.fresh_until => State::Fresh,
            now if now < self.stale_until => State::Revalidate,
            now if now < self.error_until => State::OnError,
            _ => State::Gone,
        }
    }

    /// What it takes of the tier's bytes.
    pub fn weight(&self) -> u64 {
        (self.body.as_ref().map_or(0, Bytes::len) + self.id.len() + OVERHEAD) as u64
    }

    /// A read. Not exact under contention, which is fine: it is one bit of two.
    pub fn touch(&self) {
        let freq = self.freq.load(Ordering::Relaxed);
        if freq < 3 {
            self.freq.store(freq + 1, Ordering::Relaxed);
        }
    }
}

/// A duration in the unit of the clock.
pub(super) fn millis(duration: std::time::Duration) -> UnixMillis {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 4)
}

/// The probability of an early refresh with `remaining` milliseconds to live of what took `delta` to fill: e^(-t/(beta*delta))
/// (Vattani, Chierichetti, Lowenstein: Optimal Probabilistic Cache Stampede Prevention, VLDB 2015).
pub(super) fn early(remaining: f64, delta: f64, beta: f64) -> f64 {
    let scale = beta * delta;
    if scale > 0.0 { (-remaining.max(0.0) / scale).exp() } else { 0.0 }
}

/// Random numbers, in one order for one seed.
#[derive(Debug)]
pub(super) struct Dice(AtomicU64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// 0 up to 1, without 1 (SplitMix64).
    pub fn roll(&self) -> f64 {
        let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((z ^ (z >> 31)) >> 11) as f64) / ((1_u64 << 53) as f64)
    }

    /// Whether something that far from its end is refreshed now.
    pub fn refreshes(&self, remaining: UnixMillis, delta: f64, beta: f64) -> bool {
        let probability = early(remaining as f64, delta, beta);
        // Far from the end no random number is worth its cost.
        probability > 1e-9 && self.roll() < probability
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn early_refreshes_follow_the_formula() {
        let dice = Dice::new(7);
        for (t, delta, beta) in [(0, 20.0, 1.0), (20, 20.0, 1.0), (40, 20.0, 1.0), (40, 20.0, 2.0), (200, 20.0, 1.0)] {
            let n = 200_000;
            let share = (0..n).filter(|_| dice.refreshes(t, delta, beta)).count() as f64 / f64::from(n);
            let wanted = (-(t as f64) / (beta * delta)).exp();
            // Five standard deviations.
            let slack = 5.0 * (wanted * (1.0 - wanted) / f64::from(n)).sqrt() + 1e-9;
            assert!((share - wanted).abs() <= slack, "t {t}, beta {beta}: {share} instead of {wanted}");
        }
        // 37 % at t = delta, and not the 63 % that one reads.
        assert!((early(20.0, 20.0, 1.0) - 0.3679).abs() < 1e-4);
        assert_eq!((early(5.0, 0.0, 1.0), early(5.0, 5.0, 0.0)), (0.0, 0.0));
    }

    proptest! {
        #[test]
        fn an_early_refresh_is_likelier_the_nearer_the_end_and_the_slower_the_fill(
            t in 0.0..1e6_f64, delta in 0.001..1e5_f64, beta in 0.001..10.0_f64, more in 0.001..1e4_f64,
        ) {
            let p = early(t, delta, beta);
            prop_assert!((0.0..=1.0).contains(&p));
            prop_assert!(early(t + more, delta, beta) <= p);
            prop_assert!(early(t, delta + more, beta) >= p);
        }
    }
}
