//! Peak EWMA: how long a target takes to answer, as Finagle estimates it: a longer time counts at once, a shorter one bit by
//! bit, and what was long ago does not count.

use crate::clock::Nanos;

/// The time in which what was seen loses its weight but for 1/e.
const TAU: f64 = 10e9;
/// What a failure counts as, at least: a target that fails at once is not fast.
const PENALTY: f64 = 1e9;

/// An estimate, in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PeakEwma {
    estimate: f64,
    at: Nanos,
}

impl PeakEwma {
    /// What there is of it now; 0 is unknown.
    pub fn get(&self, now: Nanos) -> f64 {
        self.estimate * (-(now.saturating_sub(self.at) as f64) / TAU).exp()
    }

    /// It answered after this long.
    pub fn answered(&mut self, now: Nanos, took: Nanos) {
        let weight = (-(now.saturating_sub(self.at) as f64) / TAU).exp();
        let took = took as f64;
        self.estimate = if took > self.estimate { took } else { self.estimate * weight + took * (1.0 - weight) };
        self.at = now.max(self.at);
    }

    /// It failed.
    pub fn failed(&mut self, now: Nanos) {
        self.estimate = (self.get(now) * 2.0).clamp(PENALTY, PENALTY * 60.0);
        self.at = now.max(self.at);
    }

    /// What a further request costs: the time that those under way and this one take. A target of which nothing is known
    /// gets one request to find out.
    pub fn cost(&self, now: Nanos, in_flight: u32) -> f64 {
        let estimate = self.get(now);
        let unknown = estimate < 1.0 && in_flight > 0;
        (if unknown { PENALTY } else { estimate.max(1.0) }) * (f64::from(in_flight) + 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Nanos = 1_000_000;

    #[test]
    fn peaks_count_at_once_and_fade() {
        let mut ewma = PeakEwma::default();
        let now = 86_400_000 * MS;
        ewma.answered(now, 10 * MS);
        ewma.answered(now, 100 * MS);
        assert_eq!(ewma.get(now), 100e6);
        ewma.answered(now + 1000 * MS, 10 * MS);
        let after = ewma.get(now + 1000 * MS);
        assert!((after - (100e6 * (-0.1f64).exp() + 10e6 * (1.0 - (-0.1f64).exp()))).abs() < 1.0, "{after}");
        for second in 2..60 {
            ewma.answered(now + second * 1000 * MS, 10 * MS);
        }
        let late = ewma.get(now + 59_000 * MS);
        assert!((10e6..11e6).contains(&late), "{late}");
        assert!(ewma.get(now + 100_000 * MS) < 0.02 * late, "what is not asked is forgiven");
    }

    #[test]
    fn a_failure_is_not_fast_and_the_unknown_is_asked_once() {
        let (mut ewma, now) = (PeakEwma::default(), 86_400_000 * MS);
        assert!(ewma.cost(now, 0) < 2.0 && ewma.cost(now, 1) > 1e9);
        ewma.failed(now);
        assert_eq!(ewma.get(now), 1e9);
        (0..20).for_each(|_| ewma.failed(now));
        assert_eq!(ewma.get(now), 60e9);
        ewma.estimate = 5e6;
        assert_eq!(ewma.cost(now, 3), 20e6);
    }
}
