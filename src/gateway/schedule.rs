//! Which target is checked when, and what its checks add up to.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::backoff::Dice;
use super::options::HealthOptions;
use crate::clock::Nanos;

/// Part of the interval by which a check may be earlier or later, so that many instances do not ask together.
const JITTER: f64 = 0.1;
/// How long the verdict on a target that went away is remembered, in case it comes back.
const MEMORY: Duration = Duration::from_secs(600);
/// Targets that went away and are remembered.
const MAX_GONE: usize = 10_000;

/// What a target's checks add up to: results in a row that turn it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Threshold {
    /// `None` before anything is known.
    verdict: Option<bool>,
    /// Results in a row against the verdict.
    against: u32,
}

impl Threshold {
    /// Takes a result; the verdict, if it is new. The first success is believed at once: a target that nothing is known of is
    /// in use, and should not wait to be called healthy.
    pub fn seen(&mut self, ok: bool, options: &HealthOptions) -> Option<bool> {
        if self.verdict == Some(ok) || (self.verdict.is_none() && ok) {
            self.against = 0;
            return self.verdict.replace(ok).is_none().then_some(ok);
        }
        self.against += 1;
        let needed = if ok { options.healthy_after } else { options.unhealthy_after };
        if self.against < needed.max(1) {
            return None;
        }
        self.against = 0;
        self.verdict = Some(ok);
        Some(ok)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Due(Nanos),
    Running,
    Gone(Nanos),
}

#[derive(Debug)]
struct Entry {
    threshold: Threshold,
    phase: Phase,
}

/// All targets of an upstream.
#[derive(Debug)]
pub(super) struct Schedule {
    options: HealthOptions,
    entries: HashMap<Arc<str>, Entry>,
    queue: BTreeSet<(Nanos, Arc<str>)>,
}

impl Schedule {
    pub fn new(options: &HealthOptions) -> Self {
        Self { options: options.clone(), entries: HashMap::new(), queue: BTreeSet::new() }
    }

    /// Checks these from now on and no others. New ones soon; what is known of old ones stays.
    pub fn set<'a>(&mut self, addresses: impl Iterator<Item = &'a str>, now: Nanos, dice: &mut Dice) {
        let wanted: HashSet<&str> = addresses.collect();
        for (address, entry) in &mut self.entries {
            if wanted.contains(&**address) || matches!(entry.phase, Phase::Gone(_)) {
                continue;
            }
            if let Phase::Due(at) = entry.phase {
                self.queue.remove(&(at, address.clone()));
            }
            entry.phase = Phase::Gone(now);
        }
        // What went away long ago is forgotten; and all of it, when it is too much.
        let gone = self.entries.values().filter(|entry| matches!(entry.phase, Phase::Gone(_))).count();
        let memory = nanos(if gone > MAX_GONE { Duration::ZERO } else { MEMORY });
        self.entries.retain(|_, entry| !matches!(entry.phase, Phase::Gone(at) if now.saturating_sub(at) >= memory));
        for address in wanted {
            if self.entries.get(address).is_some_and(|entry| !matches!(entry.phase, Phase::Gone(_))) {
                continue;
            }
            let at = now + nanos(self.options.interval.mul_f64(JITTER * dice.roll()));
            let address: Arc<str> = Arc::from(address);
            let entry = self.entries.entry(address.clone());
            entry.or_insert_with(|| Entry { threshold: Threshold::default(), phase: Phase::Due(at) }).phase =
                Phase::Due(at);
            self.queue.insert((at, address));
        }
    }

    /// A target whose check is due; it runs until [`Schedule::ended`].
    pub fn begin(&mut self, now: Nanos) -> Option<Arc<str>> {
        if self.next()? > now {
            return None;
        }
        let (_, address) = self.queue.pop_first()?;
        if let Some(entry) = self.entries.get_mut(&address) {
            entry.phase = Phase::Running;
        }
        Some(address)
    }

    /// When the next check is due.
    pub fn next(&self) -> Option<Nanos> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// A check ended; the target's verdict, if it is new.
    pub fn ended(&mut self, address: &Arc<str>, ok: bool, now: Nanos, dice: &mut Dice) -> Option<bool> {
        let entry = self.entries.get_mut(address)?;
        // It may have gone away meanwhile.
        if entry.phase != Phase::Running {
            return None;
        }
        let at = now + nanos(dice.about(self.options.interval, JITTER));
        entry.phase = Phase::Due(at);
        self.queue.insert((at, address.clone()));
        entry.threshold.seen(ok, &self.options)
    }

    /// Checks that were running are lost: they are due again.
    pub fn recover(&mut self, now: Nanos) {
        for (address, entry) in &mut self.entries {
            if entry.phase == Phase::Running {
                entry.phase = Phase::Due(now);
                self.queue.insert((now, address.clone()));
            }
        }
    }

    /// What is known of a target that is checked.
    pub fn verdict(&self, address: &str) -> Option<bool> {
        let entry = self.entries.get(address)?;
        entry.threshold.verdict.filter(|_| !matches!(entry.phase, Phase::Gone(_)))
    }

    /// All that is known of targets that are checked.
    pub fn verdicts(&self) -> Vec<(Arc<str>, bool)> {
        let known = |(address, _): (&Arc<str>, &Entry)| Some((address.clone(), self.verdict(address)?));
        self.entries.iter().filter_map(known).collect()
    }
}

fn nanos(time: Duration) -> Nanos {
    Nanos::try_from(time.as_nanos()).unwrap_or(Nanos::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Nanos = 1_000_000_000;

    fn options() -> HealthOptions {
        HealthOptions {
            path: String::from("/health"),
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(1),
            healthy_after: 2,
            unhealthy_after: 3,
        }
    }

    #[test]
    fn results_in_a_row_turn_a_target() {
        let (options, mut threshold) = (options(), Threshold::default());
        let mut seen = |results: &str| -> Vec<Option<bool>> {
            results.chars().map(|c| threshold.seen(c == '+', &options)).collect()
        };
        assert_eq!(seen("+"), [Some(true)], "the first success is believed");
        assert_eq!(seen("--+--+"), [None; 6], "never three in a row");
        assert_eq!(seen("---"), [None, None, Some(false)]);
        assert_eq!(seen("--+-+-"), [None; 6], "never two in a row");
        assert_eq!(seen("++"), [None, Some(true)]);
        let mut unknown = Threshold::default();
        let mut seen = |ok| unknown.seen(ok, &options);
        assert_eq!([seen(false), seen(false), seen(false), seen(false)], [None, None, Some(false), None]);
        let at_once = HealthOptions { healthy_after: 0, unhealthy_after: 1, ..options };
        let mut hasty = Threshold::default();
        assert_eq!(hasty.seen(false, &at_once), Some(false));
        assert_eq!(hasty.seen(true, &at_once), Some(true));
    }

    #[test]
    fn each_target_is_checked_about_once_an_interval() {
        let (mut schedule, mut dice) = (Schedule::new(&options()), Dice::seeded(3));
        let addresses: Vec<String> = (0..50).map(|n| format!("t{n}:1")).collect();
        schedule.set(addresses.iter().map(String::as_str), 0, &mut dice);
        let mut begun: HashMap<Arc<str>, Vec<Nanos>> = HashMap::new();
        let mut now = 0;
        while now < 100 * SECOND {
            while let Some(address) = schedule.begin(now) {
                begun.entry(address.clone()).or_default().push(now);
                schedule.ended(&address, true, now, &mut dice);
            }
            now = schedule.next().unwrap();
        }
        assert_eq!(begun.len(), 50);
        for times in begun.values() {
            assert!(times[0] <= SECOND, "the first soon: {times:?}");
            assert!((10..=12).contains(&times.len()), "{times:?}");
            for pair in times.windows(2) {
                assert!((9 * SECOND..=11 * SECOND).contains(&(pair[1] - pair[0])));
            }
        }
        assert!(begun.values().flatten().collect::<HashSet<_>>().len() > 400, "they are spread");
    }

    #[test]
    fn what_is_known_survives_changes_and_running_checks_do_not_confuse() {
        let (mut schedule, mut dice) = (Schedule::new(&options()), Dice::seeded(3));
        let set = |schedule: &mut Schedule, addresses: &[&str], now| {
            schedule.set(addresses.iter().copied(), now, &mut Dice::seeded(9));
        };
        set(&mut schedule, &["a:1", "b:1"], 0);
        let mut all = vec![];
        while let Some(address) = schedule.begin(SECOND) {
            assert_eq!(schedule.ended(&address, true, SECOND, &mut dice), Some(true));
            all.push(address);
        }
        assert_eq!(all.len(), 2);
        let a: Arc<str> = Arc::from("a:1");
        for round in 2..5 {
            let now = round * 20 * SECOND;
            while let Some(address) = schedule.begin(now) {
                let verdict = schedule.ended(&address, *address != *a, now, &mut dice);
                assert_eq!(verdict, (round == 4 && address == a).then_some(false));
            }
        }
        set(&mut schedule, &["b:1", "c:1"], 100 * SECOND);
        assert_eq!(
            (schedule.verdict("a:1"), schedule.verdict("b:1"), schedule.verdict("c:1")),
            (None, Some(true), None)
        );
        assert_eq!(schedule.verdicts(), [(Arc::from("b:1"), true)]);
        set(&mut schedule, &["a:1", "b:1"], 200 * SECOND);
        assert_eq!(schedule.verdict("a:1"), Some(false), "it is back, and still ill");
        // One goes away while its check runs, and comes back.
        let running = schedule.begin(300 * SECOND).unwrap();
        set(&mut schedule, &[], 300 * SECOND);
        assert_eq!(schedule.ended(&running, false, 300 * SECOND, &mut dice), None);
        assert_eq!(schedule.next(), None);
        set(&mut schedule, &["a:1", "b:1"], 300 * SECOND);
        assert_eq!(schedule.queue.len(), 2);
        // What was running when the work died is due again.
        let lost = schedule.begin(400 * SECOND).unwrap();
        schedule.recover(400 * SECOND);
        assert_eq!(schedule.queue.len(), 2);
        assert!(schedule.begin(400 * SECOND).is_some_and(|first| first == lost || schedule.queue.len() == 1));
        // In the end it is forgotten.
        set(&mut schedule, &[], 500 * SECOND);
        set(&mut schedule, &["a:1"], 1200 * SECOND);
        assert_eq!((schedule.verdict("a:1"), schedule.entries.len()), (None, 1));
        let many: Vec<String> = (0..=MAX_GONE).map(|n| format!("t{n}:1")).collect();
        schedule.set(many.iter().map(String::as_str), 1200 * SECOND, &mut dice);
        set(&mut schedule, &["a:1"], 1201 * SECOND);
        assert_eq!((schedule.entries.len(), schedule.queue.len()), (1, 1));
    }
}
