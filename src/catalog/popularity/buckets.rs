//! Sliding windows in buckets: what a product has in each, and what of it still counts. Pure.

use crate::clock::{HOUR, MINUTE, UnixMillis};

/// What is counted of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Views of the last 24 hours.
    Views = 0,
    /// Units sold in the last 7 days.
    Units = 1,
}

impl Kind {
    /// Both.
    pub const ALL: [Kind; 2] = [Kind::Views, Kind::Units];

    /// Its window.
    pub const fn window(self) -> Window {
        match self {
            Kind::Views => Window { width: 15 * MINUTE, buckets: 96, coarse: 16 },
            Kind::Units => Window { width: HOUR, buckets: 168, coarse: 24 },
        }
    }
}

/// A sliding window. It moves by a bucket at a time: the running bucket and the full ones before it count, so it is up to
/// one bucket shorter than its name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Of a bucket, in milliseconds.
    pub width: UnixMillis,
    /// How many buckets count.
    pub buckets: u32,
    /// Buckets that the tail keeps as one: four hours of views, a day of units.
    pub coarse: u32,
}

impl Window {
    /// The bucket of a moment.
    pub fn bucket(self, at: UnixMillis) -> u32 {
        u32::try_from(at.max(0) / self.width).unwrap_or(u32::MAX)
    }

    /// The oldest bucket that counts.
    pub fn oldest(self, now: UnixMillis) -> u32 {
        self.bucket(now).saturating_add(1).saturating_sub(self.buckets)
    }

    /// When a bucket counts no more.
    pub fn leaves(self, bucket: u32) -> UnixMillis {
        (i64::from(bucket) + i64::from(self.buckets)) * self.width
    }
}

/// The oldest bucket of each kind that counts.
pub fn edges(now: UnixMillis) -> [u32; 2] {
    Kind::ALL.map(|kind| kind.window().oldest(now))
}

/// What one product has in one window: only the buckets that hold something, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    list: Vec<(u32, u32)>,
    sum: u64,
}

impl Counts {
    /// Adds to a bucket.
    pub fn add(&mut self, bucket: u32, n: u32) {
        if n == 0 {
            return;
        }
        // Mostly the newest.
        let at = match self.list.last_mut() {
            Some((last, _)) if *last == bucket => self.list.len() - 1,
            Some((last, _)) if *last > bucket => self.list.partition_point(|(b, _)| *b < bucket),
            _ => self.list.len(),
        };
        if self.list.get(at).is_none_or(|(b, _)| *b != bucket) {
            if self.list.capacity() == 0 {
                self.list.reserve_exact(1);
            }
            self.list.insert(at, (bucket, 0));
        }
        let held = &mut self.list[at].1;
        let before = *held;
        *held = held.saturating_add(n);
        self.sum += u64::from(*held - before);
    }

    /// Drops buckets outside `oldest..=newest`; true when there were any.
    pub fn keep(&mut self, oldest: u32, newest: u32) -> bool {
        let before = self.list.len();
        if self.list.first().is_none_or(|(b, _)| *b >= oldest) && self.list.last().is_none_or(|(b, _)| *b <= newest) {
            return false;
        }
        self.list.retain(|(bucket, _)| (oldest..=newest).contains(bucket));
        self.sum = self.list.iter().map(|(_, n)| u64::from(*n)).sum();
        if self.list.capacity() > 2 * self.list.len() + 4 {
            self.list.shrink_to_fit();
        }
        self.list.len() != before
    }

    /// The sum of the buckets from `oldest` on.
    pub fn since(&self, oldest: u32) -> u64 {
        let gone = self.list.iter().take_while(|(bucket, _)| *bucket < oldest);
        self.sum - gone.map(|(_, n)| u64::from(*n)).sum::<u64>()
    }

    /// The sum of all buckets.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// Buckets and what they hold, the oldest first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (u32, u32)> + '_ {
        self.list.iter().copied()
    }

    /// Bytes on the heap.
    pub fn bytes(&self) -> usize {
        self.list.capacity() * size_of::<(u32, u32)>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_window_slides_by_buckets() {
        let views = Kind::Views.window();
        let now = 1_700_000_000_000;
        assert_eq!(i64::from(views.buckets) * views.width, 24 * HOUR);
        assert_eq!(i64::from(Kind::Units.window().buckets) * Kind::Units.window().width, 7 * 24 * HOUR);
        let bucket = views.bucket(now);
        let leaves = views.leaves(bucket);
        assert!(views.oldest(leaves - 1) <= bucket && views.oldest(leaves) > bucket);
        assert!((now + 24 * HOUR - views.width..=now + 24 * HOUR).contains(&leaves));
        assert_eq!((views.oldest(0), views.bucket(i64::MIN), views.bucket(i64::MAX)), (0, 0, u32::MAX));
    }

    proptest! {
        #[test]
        fn counts_are_a_map_of_buckets(
            adds in proptest::collection::vec((0u32..50, 0u32..5), 0..100), oldest in 0u32..60, newest in 0u32..60,
        ) {
            let (mut counts, mut model) = (Counts::default(), BTreeMap::<u32, u64>::new());
            for (bucket, n) in adds {
                counts.add(bucket, n);
                if n > 0 {
                    *model.entry(bucket).or_default() += u64::from(n);
                }
            }
            prop_assert_eq!(counts.sum(), model.values().sum::<u64>());
            prop_assert_eq!(counts.since(oldest), model.range(oldest..).map(|(_, n)| n).sum::<u64>());
            counts.keep(oldest, newest);
            model.retain(|bucket, _| (oldest..=newest).contains(bucket));
            prop_assert_eq!(counts.sum(), model.values().sum::<u64>());
            let list: BTreeMap<u32, u64> = counts.iter().map(|(bucket, n)| (bucket, u64::from(n))).collect();
            prop_assert_eq!(list, model);
        }
    }
}
