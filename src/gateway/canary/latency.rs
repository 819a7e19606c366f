//! How long answers took: a log-linear histogram that many threads count in.
//!
//! After HdrHistogram (G. Tene): 16 buckets of equal width to each power of two of microseconds, so that a bucket is at most a
//! sixteenth of its value wide.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets to a power of two, as a power of two.
const BITS: u32 = 4;
const PER_OCTAVE: usize = 1 << BITS;
/// The longest that is told apart, in microseconds: about a day.
const LONGEST: u64 = (1 << 36) - 1;
const BUCKETS: usize = (36 - BITS as usize + 1) * PER_OCTAVE;

/// Counts as they come, since the start.
#[derive(Debug)]
pub(super) struct Histogram(Box<[AtomicU64]>);

/// Counts as of a moment, or of a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Latencies {
    counts: Box<[u64]>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self((0..BUCKETS).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Default for Latencies {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS].into(), total: 0 }
    }
}

fn bucket(micros: u64) -> usize {
    let micros = micros.min(LONGEST);
    if micros < PER_OCTAVE as u64 {
        return micros as usize;
    }
    let octave = micros.ilog2() - BITS;
    octave as usize * PER_OCTAVE + (micros >> octave) as usize
}

/// The least that is in a bucket, in microseconds.
fn least(bucket: usize) -> u64 {
    if bucket < PER_OCTAVE {
        return bucket as u64;
    }
    let octave = bucket / PER_OCTAVE - 1;
    ((bucket % PER_OCTAVE + PER_OCTAVE) as u64) << octave
}

fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}

impl Histogram {
    pub fn record(&self, took: Duration) {
        if let Some(count) = self.0.get(bucket(micros(took))) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn read(&self) -> Latencies {
        let counts: Box<[u64]> = self.0.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        Latencies { total: counts.iter().sum(), counts }
    }
}

impl Latencies {
    #[cfg(test)]
    pub fn record(&mut self, took: Duration) {
        self.counts[bucket(micros(took))] += 1;
        self.total += 1;
    }

    /// What has come since an earlier moment.
    pub fn since(&self, before: &Self) -> Self {
        let counts: Box<[u64]> =
            self.counts.iter().zip(&before.counts).map(|(now, then)| now.saturating_sub(*then)).collect();
        Self { total: counts.iter().sum(), counts }
    }

    pub fn total(&self) -> u64 {
        self.total
    }

    /// The bucket of the one that has this place from the shortest on, counted from 1: from when, up to when.
    fn at(&self, rank: u64) -> Option<(Duration, Duration)> {
        let mut seen = 0;
        let found = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        })?;
        (rank > 0).then(|| (Duration::from_micros(least(found)), Duration::from_micros(least(found + 1))))
    }

    /// The 99th percentile, to a sixteenth; `None` of nothing.
    pub fn p99(&self) -> Option<Duration> {
        self.at(rank(self.total, 0.0)).map(|(_, most)| most)
    }

    /// What the true 99th percentile is hardly below, or above: it lies between two order statistics whose places are those of
    /// the percentile less and more so many standard deviations of a binomial count, whatever the distribution (Conover,
    /// "Practical Nonparametric Statistics", 1999, section 3.2). `None` where there are too few for an end.
    pub fn p99_within(&self, deviations: f64) -> (Option<Duration>, Option<Duration>) {
        let low = self.at(rank(self.total, -deviations)).map(|(least, _)| least);
        let high = self.at(rank(self.total, deviations) + 1).map(|(_, most)| most);
        (low, high)
    }
}

/// The place of the 99th percentile of so many, moved by so many standard deviations.
fn rank(total: u64, deviations: f64) -> u64 {
    let total = total as f64;
    (total * 0.99 + deviations * (total * 0.99 * 0.01).sqrt()).ceil().max(0.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::backoff::Dice;

    #[test]
    fn buckets_follow_one_another_and_are_narrow() {
        for index in 0..BUCKETS {
            assert_eq!(bucket(least(index)), index);
            let next = least(index + 1);
            assert_eq!(bucket(next - 1), index);
            let width = next - least(index);
            assert!(width == 1 || width * 16 <= next, "bucket {index} from {} is {width} wide", least(index));
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn percentiles_are_right_to_a_sixteenth() {
        let histogram = Histogram::default();
        assert_eq!(histogram.read().p99(), None);
        for micros in 1..=100_000 {
            histogram.record(Duration::from_micros(micros));
        }
        let p99 = histogram.read().p99().unwrap().as_secs_f64();
        assert!((0.099..0.099 * 17.0 / 16.0).contains(&p99), "{p99}");
        let before = histogram.read();
        for _ in 0..1000 {
            histogram.record(Duration::from_secs(1));
        }
        let later = histogram.read().since(&before);
        assert_eq!(later.total(), 1000);
        assert!(later.p99().unwrap() >= Duration::from_secs(1));
    }

    #[test]
    fn the_interval_holds_the_true_percentile() {
        let mut dice = Dice::seeded(3);
        let (mut missed, mut wide) = (0, 0.0_f64);
        for _ in 0..2000 {
            let mut sample = Latencies::default();
            for _ in 0..2000 {
                // Exponential with a mean of 10 ms; the percentile is 46.05 ms.
                sample.record(Duration::from_secs_f64(-0.010 * (1.0 - dice.roll()).ln()));
            }
            let (low, high) = sample.p99_within(2.0);
            let (low, high) = (low.unwrap().as_secs_f64(), high.unwrap().as_secs_f64());
            missed += u32::from(!(low..=high).contains(&0.04605));
            wide = wide.max(high / low);
        }
        // Two standard deviations are missed by 4.6 %, less what buckets add.
        assert!(missed < 92, "{missed} of 2,000");
        assert!(wide < 2.5, "{wide}");
        let mut few = Latencies::default();
        assert_eq!(few.p99_within(3.0), (None, None));
        for _ in 0..800 {
            few.record(Duration::from_millis(1));
        }
        assert!(matches!(few.p99_within(3.0), (Some(_), None)), "the longest of 800 may well be below it");
    }
}
