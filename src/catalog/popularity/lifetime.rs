//! From a score to a cache lifetime, by steps, with hysteresis. Pure.

use std::time::Duration;

/// Products with a score above `above` live `factor` times as long in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The score it begins above.
    pub above: u64,
    /// How many times the base.
    pub factor: u32,
}

/// All steps, the lowest first.
#[derive(Clone, Debug, PartialEq)]
pub struct Steps {
    steps: Vec<Step>,
    /// The part of a step's threshold below which a product leaves it.
    hysteresis: f64,
}

/// How long a product may be cached, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// How long.
    pub lifetime: Duration,
    /// How many times the base that is.
    pub factor: u32,
    /// The step it is on; 0 is below the first.
    pub step: usize,
    /// In words.
    pub why: String,
}

impl Steps {
    /// Steps, in any order; `hysteresis` is 0 to 1.
    pub fn new(mut steps: Vec<Step>, hysteresis: f64) -> Self {
        steps.sort_unstable_by_key(|step| step.above);
        steps.truncate(usize::from(u8::MAX));
        Self { steps, hysteresis: hysteresis.clamp(0.0, 1.0) }
    }

    /// The steps, the lowest first.
    pub fn as_slice(&self) -> &[Step] {
        &self.steps
    }

    /// The step of a score when it was on `before`. What has risen above a threshold is above it at once; what falls stays
    /// until it is below the hysteresis' part of it. Where a falling score ends does not depend on its stops.
    pub fn step(&self, before: usize, score: u64) -> usize {
        let reached = self.steps.iter().filter(|step| score > step.above).count();
        let held = self.steps.iter().filter(|step| score > 0 && score as f64 >= self.leaves(step)).count();
        reached.max(before.min(held))
    }

    fn leaves(&self, step: &Step) -> f64 {
        step.above as f64 * self.hysteresis
    }

    /// The lifetime on a step.
    pub fn lifetime(&self, step: usize, score: u64, base: Duration) -> Lifetime {
        let Some(on) = step.checked_sub(1).and_then(|at| self.steps.get(at)) else {
            let why = match self.steps.first() {
                Some(first) => format!("score {score} is not above {}: base lifetime", first.above),
                None => String::from("no steps are configured: base lifetime"),
            };
            return Lifetime { lifetime: base, factor: 1, step: 0, why };
        };
        let Step { above, factor } = *on;
        let why = if score > above {
            format!("score {score} is above {above}: {factor} times the base lifetime")
        } else {
            let leaves = self.leaves(on);
            format!(
                "score {score} was above {above} and is not below {leaves:.0} yet: {factor} times the base lifetime"
            )
        };
        Lifetime { lifetime: base.saturating_mul(factor), factor, step, why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps() -> Steps {
        Steps::new(vec![Step { above: 1000, factor: 4 }, Step { above: 100, factor: 2 }], 0.8)
    }

    #[test]
    fn a_score_rises_at_once_and_falls_late() {
        let steps = steps();
        let mut at = 0;
        let course = [(0, 0), (100, 0), (101, 1), (100, 1), (80, 1), (79, 0), (99, 0), (1001, 2), (800, 2), (799, 1)];
        for (score, expected) in course {
            at = steps.step(at, score);
            assert_eq!(at, expected, "at {score}");
        }
        assert_eq!(steps.step(2, 79), 0, "down two at once");
        assert_eq!(steps.step(0, 5000), 2, "up two at once");
        assert_eq!(Steps::new(vec![Step { above: 10, factor: 2 }], 0.0).step(1, 0), 0, "nothing is left of it");
    }

    #[test]
    fn where_a_falling_score_ends_does_not_depend_on_its_stops() {
        let steps = steps();
        for to in 0..1200 {
            for stop in to..1200 {
                assert_eq!(steps.step(steps.step(2, stop), to), steps.step(2, to), "{stop} {to}");
            }
        }
    }

    #[test]
    fn a_lifetime_says_why() {
        let (steps, hour) = (steps(), Duration::from_secs(3600));
        let at = |step, score| steps.lifetime(step, score, hour);
        assert_eq!((at(0, 7).lifetime, at(0, 7).factor), (hour, 1));
        assert_eq!((at(1, 101).lifetime, at(2, 1001).lifetime), (2 * hour, 4 * hour));
        assert_eq!(at(0, 7).why, "score 7 is not above 100: base lifetime");
        assert_eq!(at(2, 1001).why, "score 1001 is above 1000: 4 times the base lifetime");
        assert!(at(2, 900).why.contains("not below 800 yet"), "{}", at(2, 900).why);
        assert_eq!(steps.lifetime(2, 9999, Duration::MAX).lifetime, Duration::MAX);
        assert_eq!(Steps::new(Vec::new(), 0.8).lifetime(0, 9, hour).factor, 1);
    }
}
