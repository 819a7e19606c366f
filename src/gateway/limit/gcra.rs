//! The generic cell rate algorithm, in whole numbers that do not drift.
//!
//! A bucket is one moment, its TAT (theoretical arrival time): when it is full again. A request moves it on by the emission
//! interval times its cost, and passes if it then lies at most `burst` intervals ahead (ITU-T I.371, ATM Forum TM 4.0; the same
//! as a token bucket that holds `burst` tokens). An interval is `period / limit`, which is no whole number of nanoseconds for
//! most limits; so time is counted in units of 1/`per_nano` nanosecond, in which it is one.

use std::time::Duration;

use crate::clock::Nanos;

/// The longest time from empty to full, 146 years: a moment plus this never overflows.
const LONGEST: u128 = 1 << 62;
const LONGEST_PERIOD: u128 = 1 << 61;

/// How fast tokens come, and how many there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rate {
    /// Units that one token takes to come.
    token: u64,
    /// Units in a nanosecond.
    per_nano: u32,
    burst: u64,
    /// Units from empty to full.
    cap: u128,
}

/// When a bucket is full again: `nanos`, and `part` units of its [`Rate`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tat {
    pub nanos: Nanos,
    pub part: u32,
}

/// Why a request does not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// It would pass after so many nanoseconds, if nothing else came, and not one earlier.
    Wait(u64),
    /// It costs more than there can ever be at once.
    Never,
}

impl Rate {
    /// `limit` a `period`, `burst` at once. Limits beyond 4 billion that share no factor with their period are rounded down
    /// by less than a billionth.
    pub fn new(limit: u64, period: Duration, burst: u64) -> Self {
        let limit = limit.max(1);
        let period = period.as_nanos().clamp(1, LONGEST_PERIOD) as u64;
        let common = gcd(limit, period);
        let (mut per_nano, mut token) = (limit / common, period / common);
        while per_nano > u64::from(u32::MAX) {
            (per_nano, token) = (per_nano / 2, token.div_ceil(2));
        }
        let most = (LONGEST * u128::from(per_nano) / u128::from(token)).max(1);
        let burst = u128::from(burst.max(1)).min(most) as u64;
        Self { token, per_nano: per_nano as u32, burst, cap: u128::from(burst) * u128::from(token) }
    }

    pub fn burst(&self) -> u64 {
        self.burst
    }

    /// From empty to full, rounded up.
    pub fn fill(&self) -> u64 {
        self.nanos_up(self.cap)
    }

    /// How long some tokens take to come, rounded up.
    pub fn time_of(&self, tokens: u64) -> u64 {
        self.nanos_up(u128::from(tokens.min(self.burst)) * u128::from(self.token))
    }

    fn nanos_up(&self, units: u128) -> u64 {
        if self.per_nano == 1 { units as u64 } else { units.div_ceil(u128::from(self.per_nano)) as u64 }
    }

    fn units(&self, tat: Tat) -> u128 {
        u128::from(tat.nanos) * u128::from(self.per_nano) + u128::from(tat.part)
    }

    fn moment(&self, units: u128) -> Tat {
        if self.per_nano == 1 {
            return Tat { nanos: units as u64, part: 0 };
        }
        let per_nano = u128::from(self.per_nano);
        Tat { nanos: (units / per_nano) as u64, part: (units % per_nano) as u32 }
    }

    /// What a bucket's TAT becomes by a request, if it passes.
    pub fn charge(&self, tat: Tat, now: Nanos, cost: u32) -> Result<Tat, Refused> {
        if u64::from(cost) > self.burst {
            return Err(Refused::Never);
        }
        let now = u128::from(now) * u128::from(self.per_nano);
        let then = self.units(tat).max(now) + u128::from(cost) * u128::from(self.token);
        match then.checked_sub(now + self.cap) {
            None | Some(0) => Ok(self.moment(then)),
            Some(early) => Err(Refused::Wait(self.nanos_up(early))),
        }
    }

    /// Whole tokens in a bucket.
    pub fn remaining(&self, tat: Tat, now: Nanos) -> u64 {
        let left = self.cap - self.used(tat, now);
        match u64::try_from(left) {
            Ok(left) => left / self.token,
            Err(_) => (left / u128::from(self.token)) as u64,
        }
    }

    fn used(&self, tat: Tat, now: Nanos) -> u128 {
        let now = u128::from(now) * u128::from(self.per_nano);
        self.units(tat).saturating_sub(now).min(self.cap)
    }

    /// Tokens that are missing in a bucket, rounded up.
    pub fn missing(&self, tat: Tat, now: Nanos) -> u64 {
        self.used(tat, now).div_ceil(u128::from(self.token)) as u64
    }

    /// A bucket that holds so many tokens.
    pub fn holding(&self, tokens: u64, now: Nanos) -> Tat {
        let missing = u128::from(self.burst - tokens.min(self.burst)) * u128::from(self.token);
        self.moment(u128::from(now) * u128::from(self.per_nano) + missing)
    }

    /// The earliest moment that is not before `tat`, and not further ahead than an empty bucket's.
    pub fn at_most_empty(&self, nanos: Nanos, now: Nanos) -> Tat {
        Tat { nanos: nanos.min(now.saturating_add(self.fill())), part: 0 }
    }

    /// A bucket of `old` under this rate: as many tokens are missing, but not more than there are.
    pub fn taken_over(&self, old: &Self, tat: Tat, now: Nanos) -> Tat {
        let used = old.used(tat, now).checked_mul(u128::from(self.token));
        let used = used.map_or(self.cap, |used| used.div_ceil(u128::from(old.token)).min(self.cap));
        self.moment(u128::from(now) * u128::from(self.per_nano) + used)
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Nanos = 86_400_000_000_000;

    #[test]
    fn limits_that_do_not_divide_their_period_are_exact() {
        for (limit, period, burst) in [(3, 1_000_000_000, 2), (7, 60_000_000_000, 4), (1_000_003, 1_000_000_000, 9)] {
            let rate = Rate::new(limit, Duration::from_nanos(period), burst);
            let mut tat = Tat::default();
            let mut now = DAY;
            for _ in 0..burst {
                tat = rate.charge(tat, now, 1).unwrap();
            }
            // Each as early as it can: n of them take n emission intervals, rounded up once and not n times. (With a burst of
            // one the bucket would be full for the rest of each nanosecond, and that is lost.)
            for n in 1..=10_000_u64 {
                let Err(Refused::Wait(wait)) = rate.charge(tat, now, 1) else { panic!("one too many") };
                assert!(rate.charge(tat, now + wait - 1, 1).is_err());
                now += wait;
                tat = rate.charge(tat, now, 1).unwrap();
                let exact = (u128::from(n) * u128::from(period)).div_ceil(u128::from(limit));
                assert_eq!(u128::from(now - DAY), exact, "{limit} a {period} ns, number {n}");
            }
        }
    }

    #[test]
    fn a_million_a_second_is_a_million_a_second() {
        let rate = Rate::new(1_000_000, Duration::from_secs(1), 1);
        let (mut tat, mut passed) = (Tat::default(), 0);
        for step in 0..=4_000_000_u64 {
            if let Ok(next) = rate.charge(tat, DAY + step * 250, 1) {
                (tat, passed) = (next, passed + 1);
            }
        }
        assert_eq!(passed, 1_000_001);
    }

    #[test]
    fn extremes_neither_overflow_nor_divide_by_zero() {
        let all = [0, 1, 2, 3, u64::from(u32::MAX), u64::MAX - 58, u64::MAX];
        for limit in all {
            for period in [Duration::ZERO, Duration::from_nanos(1), Duration::from_secs(86_400), Duration::MAX] {
                for burst in all {
                    let rate = Rate::new(limit, period, burst);
                    let tat = rate.charge(Tat::default(), DAY, 1).unwrap();
                    assert!(rate.remaining(tat, DAY) < rate.burst() || rate.burst() == 0 || limit > 1 << 32);
                    assert_eq!(rate.remaining(Tat::default(), DAY), rate.burst());
                    let empty = rate.holding(0, DAY);
                    assert_eq!(rate.remaining(empty, DAY), 0);
                    assert!(empty.nanos <= DAY + rate.fill());
                    assert_eq!(rate.missing(empty, DAY), rate.burst());
                }
            }
        }
    }

    #[test]
    fn what_is_missing_stays_missing_when_the_rate_changes() {
        let old = Rate::new(100, Duration::from_secs(60), 20);
        let new = Rate::new(7, Duration::from_secs(1), 50);
        let tat = old.charge(Tat::default(), DAY, 13).unwrap();
        assert_eq!(new.missing(new.taken_over(&old, tat, DAY), DAY), 13);
        let small = Rate::new(7, Duration::from_secs(1), 5);
        assert_eq!(small.remaining(small.taken_over(&old, tat, DAY), DAY), 0);
    }
}
