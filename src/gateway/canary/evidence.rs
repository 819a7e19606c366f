//! Whether the canary fails more often than the stable version: a test that may be looked at all the time.
//!
//! Requests are taken in slices of time. If both fail equally often, then of the failures in a slice each is the canary's with
//! the part of the requests that it had in it. The likelihood ratio of "the canary fails r times as often" to that, multiplied
//! over the slices and averaged over several r, is a test martingale: with equal rates it has a mean of at most 1 at any time,
//! and ever reaches 1/a with a probability of at most a (J. Ville, 1939). That holds however often one looks, whatever the
//! split, and though rates change from slice to slice, as nothing is compared across them.
//!
//! See R. Turner, A. Ly, P. Grünwald, "Generic E-variables for exact sequential k-sample tests that allow for optional stopping"
//! (2024), and R. Turner, P. Grünwald, "Safe sequential testing and effect estimation in stratified count data" (2023). The
//! failures of a slice are drawn without replacement, for which the ratio of draws with replacement has no greater mean, as it
//! is convex in the count (W. Hoeffding, "Probability inequalities for sums of bounded random variables", 1963, theorem 4).

/// How many times as often the canary may fail, and how much is put on each. Most is on what takes longest to tell at a half and
/// half split: who fails 3 times as often is found there by a ratio below 3, which loses less where there are few failures.
const RATIOS: [(f64, f64); 4] = [(1.5, 0.1), (2.0, 0.3), (2.7, 0.5), (8.0, 0.1)];

/// Requests whose outcome is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// That went well.
    pub good: u64,
    /// That did not.
    pub failed: u64,
}

impl Tally {
    pub fn total(self) -> u64 {
        self.good + self.failed
    }

    /// What has come since.
    pub fn since(self, before: Self) -> Self {
        Self { good: self.good.saturating_sub(before.good), failed: self.failed.saturating_sub(before.failed) }
    }

    /// Part of failures, 0 to 1; 0 of nothing.
    pub fn rate(self) -> f64 {
        if self.total() == 0 { 0.0 } else { self.failed as f64 / self.total() as f64 }
    }
}

/// What slices add up to.
#[derive(Clone, Debug, Default)]
pub(super) struct Evidence {
    /// Logarithms of the likelihood ratios.
    ratios: [f64; RATIOS.len()],
    /// Of the Mantel-Haenszel estimate of the difference of rates: the numerator, and what it is divided by.
    difference: f64,
    weight: f64,
}

impl Evidence {
    /// Adds a slice. It may end by how many requests there were, but not by how they went.
    pub fn add(&mut self, canary: Tally, stable: Tally) {
        let (ours, theirs) = (canary.total() as f64, stable.total() as f64);
        // Without one of them there is nothing to compare with.
        if ours == 0.0 || theirs == 0.0 {
            return;
        }
        let part = ours / (ours + theirs);
        let failures = (canary.failed + stable.failed) as f64;
        for (sum, (ratio, _)) in self.ratios.iter_mut().zip(RATIOS) {
            *sum += canary.failed as f64 * ratio.ln() - failures * (1.0 + (ratio - 1.0) * part).ln();
        }
        let weight = ours * theirs / (ours + theirs);
        self.difference += weight * (canary.rate() - stable.rate());
        self.weight += weight;
    }

    /// The logarithm of the martingale.
    pub fn log(&self) -> f64 {
        let greatest = self.ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = self.ratios.iter().zip(RATIOS).map(|(sum, (_, put))| put * (sum - greatest).exp()).sum();
        greatest + sum.ln()
    }

    /// The canary's part of failures less the stable one's, within slices (S. Greenland, J. Robins, "Estimation of a common
    /// effect parameter from sparse follow-up data", 1985); `None` where nothing could be compared.
    pub fn difference(&self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.difference / self.weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(good: u64, failed: u64) -> Tally {
        Tally { good, failed }
    }

    #[test]
    fn the_mean_is_at_most_one_when_both_are_equal() {
        // Every way in which the failures of a slice can fall, by its probability.
        for (canary, stable, failures) in [(5, 20, 4), (10, 10, 6), (30, 2, 5), (1, 50, 3)] {
            let mut mean = 0.0;
            for ours in 0..=failures.min(canary) {
                let theirs = failures - ours;
                if theirs > stable {
                    continue;
                }
                let ways = choose(canary, ours) * choose(stable, theirs) / choose(canary + stable, failures);
                let mut evidence = Evidence::default();
                evidence.add(tally(canary - ours, ours), tally(stable - theirs, theirs));
                mean += ways * evidence.log().exp();
            }
            assert!(mean <= 1.0 + 1e-12 && mean > 0.3, "{mean}");
        }
    }

    fn choose(of: u64, some: u64) -> f64 {
        (0..some).map(|n| (of - n) as f64 / (n + 1) as f64).product()
    }

    #[test]
    fn it_grows_with_the_canarys_failures_alone() {
        let mut worse = Evidence::default();
        worse.add(tally(97, 3), tally(891, 9));
        let after = worse.log();
        worse.add(tally(90, 10), tally(891, 9));
        assert!(worse.log() > after + 3.0);
        let mut better = Evidence::default();
        better.add(tally(100, 0), tally(800, 100));
        assert!(better.log() < -1.0);
        let mut alone = Evidence::default();
        alone.add(tally(0, 100), tally(0, 0));
        assert!(alone.log().abs() < 1e-12 && alone.difference().is_none());
    }

    #[test]
    fn the_difference_is_one_within_slices() {
        // While all is well the canary has few requests, and many when both fail: together it would look much worse.
        let mut evidence = Evidence::default();
        evidence.add(tally(100, 0), tally(10_000, 0));
        evidence.add(tally(4500, 500), tally(4500, 500));
        assert!(evidence.difference().unwrap().abs() < 1e-12);
        assert!(evidence.log() < 0.0);
    }
}
