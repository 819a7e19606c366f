//! How many different visitors the last five minutes had: a sliding window, for "now on the site".
//!
//! Each visitor stands in the minute it was last seen in, so an event costs one lookup and a count costs five additions.
//! Beyond a limit only every second, fourth, ... visitor is followed (adaptive sampling, Flajolet 1990) and weighs as
//! many.

use hashbrown::HashMap;

use crate::clock::{MINUTE, UnixMillis};

/// Visitors by the minute they were last seen in, for [`visitors_now`].
pub type Minutes = [(i64, u64); 8];

const NONE: Minutes = [(i64::MIN, 0); 8];

/// How many minutes count, the running one included.
const RECENT_MINUTES: i64 = 5;

/// The visitors of the last five minutes.
#[derive(Debug)]
pub struct Recent {
    most: usize,
    level: u8,
    seen: HashMap<u64, (i64, u8)>,
    minutes: Minutes,
}

impl Recent {
    /// Follows at most `most` visitors.
    pub fn new(most: usize) -> Self {
        Self { most: most.max(16), level: 0, seen: HashMap::new(), minutes: NONE }
    }

    /// Notes that `visitor` was there in the minute that starts at `start`; `now` is the minute that runs.
    pub fn see(&mut self, visitor: u64, start: UnixMillis, now: UnixMillis) {
        let (minute, now) = (start / MINUTE, now / MINUTE);
        let sampled = |visitor: u64, level: u8| visitor.trailing_zeros() >= u32::from(level);
        if minute <= now - RECENT_MINUTES || minute > now + 1 || !sampled(visitor, self.level) {
            return;
        }
        let level = self.level;
        let entry = self.seen.entry(visitor).or_insert((i64::MIN, level));
        if entry.0 < minute {
            let (old, weight) = (entry.0, 1 << entry.1);
            entry.0 = minute;
            self.add(old, weight, false);
            self.add(minute, weight, true);
        }
        if self.seen.len() > self.most {
            self.expire(now);
            while self.seen.len() > self.most {
                self.level += 1;
                let level = self.level;
                self.seen.retain(|visitor, entry| {
                    entry.1 = entry.1.max(level);
                    sampled(*visitor, level)
                });
                self.minutes = NONE;
                let kept: Vec<(i64, u8)> = self.seen.values().copied().collect();
                kept.into_iter().for_each(|(minute, level)| self.add(minute, 1 << level, true));
            }
        }
    }

    /// Forgets who was last seen before the window; once a minute.
    pub fn roll(&mut self, now: UnixMillis) {
        self.expire(now / MINUTE);
        if self.level > 0 && self.seen.len() < self.most / 8 {
            self.level -= 1;
        }
    }

    fn expire(&mut self, now: i64) {
        self.seen.retain(|_, entry| entry.0 > now - RECENT_MINUTES);
        if self.seen.capacity() > 4 * self.seen.len().max(64) {
            self.seen.shrink_to_fit();
        }
    }

    /// Visitors by the minute they were last seen in.
    pub fn minutes(&self) -> Minutes {
        self.minutes
    }

    fn add(&mut self, minute: i64, weight: u64, more: bool) {
        if minute == i64::MIN {
            return;
        }
        let bucket = &mut self.minutes[(minute.rem_euclid(8)) as usize];
        if bucket.0 != minute {
            if !more || bucket.0 > minute {
                return;
            }
            *bucket = (minute, 0);
        }
        bucket.1 = if more { bucket.1 + weight } else { bucket.1.saturating_sub(weight) };
    }
}

/// The visitors of the last five minutes before `now`, from [`Recent::minutes`].
pub fn visitors_now(minutes: &Minutes, now: UnixMillis) -> u64 {
    let now = now / MINUTE;
    minutes.iter().filter(|(minute, _)| *minute > now - RECENT_MINUTES && *minute <= now + 1).map(|(_, n)| n).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visitors_count_for_five_minutes_and_once() {
        let mut recent = Recent::new(1000);
        let at = 1_000 * MINUTE;
        for visitor in 0..10 {
            recent.see(visitor, at, at);
            recent.see(visitor, at, at);
        }
        recent.see(3, at + 2 * MINUTE, at + 2 * MINUTE);
        recent.see(4, at - 3 * MINUTE, at + 2 * MINUTE);
        recent.see(99, at - 3 * MINUTE, at + 2 * MINUTE);
        assert_eq!(visitors_now(&recent.minutes(), at + 2 * MINUTE), 10, "99 was there too early");
        assert_eq!(visitors_now(&recent.minutes(), at + 4 * MINUTE), 10);
        assert_eq!(visitors_now(&recent.minutes(), at + 5 * MINUTE), 1, "only 3 came back");
        recent.roll(at + 5 * MINUTE);
        assert_eq!(recent.seen.len(), 1);
        assert_eq!(visitors_now(&recent.minutes(), at + 7 * MINUTE), 0);
    }

    #[test]
    fn crowds_are_sampled_within_bounds() {
        let mut recent = Recent::new(10_000);
        let at = 1_000 * MINUTE;
        for i in 0..200_000u64 {
            recent.see(
                xxhash_rust::xxh3::xxh3_64(&i.to_le_bytes()),
                at + (i as i64 / 40_000) * MINUTE,
                at + 4 * MINUTE,
            );
            assert!(recent.seen.len() <= 10_000);
        }
        let now = visitors_now(&recent.minutes(), at + 4 * MINUTE) as f64;
        assert!((now / 200_000.0 - 1.0).abs() < 0.06, "{now}");
        let later = visitors_now(&recent.minutes(), at + 6 * MINUTE) as f64;
        assert!((later / 120_000.0 - 1.0).abs() < 0.08, "{later}");
        for minute in 5..20 {
            recent.roll(at + minute * MINUTE);
        }
        assert_eq!((recent.level, recent.seen.len()), (0, 0));
    }
}
