//! Waits that grow, and chance that keeps many instances from doing the same at the same moment.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// Dice: SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014). Not for secrets.
#[derive(Debug)]
pub(super) struct Dice(u64);

impl Dice {
    /// Falls differently in each process.
    pub fn new() -> Self {
        // The standard library's hashers are seeded by the system.
        Self(RandomState::new().hash_one(0_u8))
    }

    #[cfg(test)]
    pub fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    /// From 0 up to 1, without 1.
    pub fn roll(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        (mixed >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A time that is at most this part shorter or longer.
    pub fn about(&mut self, time: Duration, part: f64) -> Duration {
        time.mul_f64(1.0 + part * (2.0 * self.roll() - 1.0))
    }
}

/// A wait that doubles with each failure, of which a random part of up to half is left out.
#[derive(Debug)]
pub(super) struct Backoff {
    shortest: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    pub fn new(shortest: Duration, longest: Duration) -> Self {
        Self { shortest, longest, next: shortest }
    }

    /// After a failure.
    pub fn wait(&mut self, dice: &mut Dice) -> Duration {
        let whole = self.next;
        self.next = (self.next * 2).min(self.longest);
        whole.mul_f64(1.0 - 0.5 * dice.roll())
    }

    /// After a success.
    pub fn reset(&mut self) {
        self.next = self.shortest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_vary() {
        let (mut dice, ms) = (Dice::seeded(7), Duration::from_millis);
        let mut backoff = Backoff::new(ms(100), ms(5000));
        for whole in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            let wait = backoff.wait(&mut dice);
            assert!(wait > ms(whole / 2 - 1) && wait <= ms(whole), "{wait:?} of {whole}");
        }
        backoff.reset();
        assert!(backoff.wait(&mut dice) <= ms(100));
    }

    #[test]
    fn dice_are_fair_enough() {
        let mut dice = Dice::seeded(1);
        let rolls: Vec<f64> = (0..10_000).map(|_| dice.roll()).collect();
        assert!(rolls.iter().all(|roll| (0.0..1.0).contains(roll)));
        for tenth in 0..10 {
            let count = rolls.iter().filter(|roll| (**roll * 10.0) as i32 == tenth).count();
            assert!((850..1150).contains(&count), "{count} of 10,000 in tenth {tenth}");
        }
        assert_ne!(Dice::new().roll(), Dice::new().roll());
        let about = dice.about(Duration::from_secs(10), 0.1);
        assert!(about >= Duration::from_secs(9) && about <= Duration::from_secs(11));
    }
}
