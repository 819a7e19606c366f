//! Whether Redis is asked at all: after a few silences in a row no request waits for it, until a look from the background
//! finds it well again.

use std::time::Duration;

/// Failures in a row that open it.
const PATIENCE: u32 = 3;
/// The first wait for the next look.
const FIRST: Duration = Duration::from_millis(100);
/// The longest wait for the next look.
const LONGEST: Duration = Duration::from_secs(1);

/// Time is what has passed since the cache was made.
#[derive(Debug)]
pub(super) struct Breaker {
    failures: u32,
    wait: Duration,
    /// When it is looked at again; `None` while it is closed.
    look_at: Option<Duration>,
}

impl Breaker {
    /// Open until somebody has seen that it answers.
    pub fn new() -> Self {
        Self { failures: 0, wait: FIRST, look_at: Some(Duration::ZERO) }
    }

    pub fn closed(&self) -> bool {
        self.look_at.is_none()
    }

    /// A request was answered.
    pub fn answered(&mut self) {
        self.failures = 0;
    }

    /// A request was not; whether that opened it.
    pub fn failed(&mut self, now: Duration) -> bool {
        self.failures += 1;
        let opens = self.closed() && self.failures >= PATIENCE;
        if opens {
            self.wait = FIRST;
            self.look_at = Some(now + self.wait);
        }
        opens
    }

    /// Whether it is time to look.
    pub fn due(&self, now: Duration) -> bool {
        self.look_at.is_some_and(|at| now >= at)
    }

    /// What the look found; whether that closed it.
    pub fn looked(&mut self, well: bool, now: Duration) -> bool {
        if self.closed() {
            return false;
        }
        if well {
            self.failures = 0;
            self.look_at = None;
        } else {
            self.wait = (self.wait * 2).min(LONGEST);
            self.look_at = Some(now + self.wait);
        }
        well
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_silences_in_a_row_and_closes_after_a_look() {
        let at = Duration::from_millis;
        let mut breaker = Breaker::new();
        assert!(!breaker.closed() && breaker.due(at(0)), "nothing is known yet");
        assert!(breaker.looked(true, at(0)) && breaker.closed());
        assert!(!breaker.failed(at(1)) && !breaker.failed(at(2)));
        breaker.answered();
        assert!(!breaker.failed(at(3)) && !breaker.failed(at(4)) && breaker.closed(), "not in a row");
        assert!(breaker.failed(at(5)) && !breaker.closed());
        assert!(!breaker.failed(at(6)), "it opens once");
        let mut now = at(5);
        let mut waits = vec![];
        for _ in 0..6 {
            let before = now;
            while !breaker.due(now) {
                now += at(1);
            }
            waits.push((now - before).as_millis());
            assert!(!breaker.looked(false, now));
        }
        assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
        assert!(breaker.looked(true, now) && breaker.closed() && !breaker.due(now + at(9999)));
    }
}
