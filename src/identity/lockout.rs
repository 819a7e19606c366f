//! Guessing passwords is slowed down, and nobody is locked out by others who guess.
//!
//! Failures count for an account from one network (an IPv4 address, or an IPv6 /64), whose delay grows to minutes; for the
//! account as a whole, whose delay stays short; and for the network as a whole, which has a wide bucket of them that fills
//! again at a steady rate ([`SPRAY`]), so that one password is not tried on all accounts. The latter two hold only for networks
//! from which nobody has logged into the account before. An attempt counts as a failure before it is decided, and is taken
//! back when it was none, so that many at once are no better than one after another.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use hashlink::LruCache;

use crate::clock::{UnixMillis, millis};

/// Failures without a delay, and the longest delay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// So many are free.
    pub free: u32,
    /// Then it is a second, twice as long each time, up to this.
    pub longest: Duration,
    /// After so long without an attempt all is forgotten.
    pub forget: Duration,
}

/// For an account from one network.
pub const HERE: Rule = Rule { free: 5, longest: Duration::from_secs(300), forget: Duration::from_secs(3600) };
/// For an account from everywhere.
pub const EVERYWHERE: Rule = Rule { free: 20, longest: Duration::from_secs(30), forget: Duration::from_secs(3600) };
/// For new accounts from one network.
pub const REGISTER: Rule = Rule { free: 20, longest: Duration::from_secs(300), forget: Duration::from_secs(3600) };

/// Failures that a network may have: so many at once, and then one each time that one has been given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// At once.
    pub burst: u32,
    /// In which one is given back.
    pub each: Duration,
}

/// For a network, whatever the accounts. Behind one address may be an office or a carrier's customers: a thousand people of
/// whom each tenth mistypes once a morning stay below it, and 120 an hour go on for ever. Who sprays has 2,980 a day.
pub const SPRAY: Quota = Quota { burst: 100, each: Duration::from_secs(30) };

/// Where an attempt came from, as far as it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network(Ipv6Addr);

impl Network {
    /// Of an address: providers give a customer a whole /64.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self(v4.to_ipv6_mapped()),
            IpAddr::V6(v6) => Self(Ipv6Addr::from(u128::from(v6) & !u128::from(u64::MAX))),
        }
    }

    /// Its bytes, to be hashed.
    pub(super) fn bytes(self) -> [u8; 16] {
        self.0.octets()
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    failures: u32,
    last: UnixMillis,
    /// When the next attempt may be.
    next: UnixMillis,
}

impl Count {
    fn wait(&self, now: UnixMillis) -> Option<Duration> {
        let left = u64::try_from(self.next.saturating_sub(now)).unwrap_or(0);
        (left > 0).then(|| Duration::from_millis(left))
    }

    fn fail(&mut self, rule: Rule, now: UnixMillis) {
        if now.saturating_sub(self.last) > millis(rule.forget) {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        self.last = now;
        self.next = now;
        if self.failures > rule.free {
            let doublings = (self.failures - rule.free - 1).min(20);
            self.next = now.saturating_add(millis(rule.longest.min(Duration::from_secs(1 << doublings))));
        }
    }
}

/// A bucket of failures, as the moment when it is full again (GCRA, ITU-T I.371).
#[derive(Clone, Copy, Debug, Default)]
struct Bucket(UnixMillis);

impl Bucket {
    fn wait(self, quota: Quota, now: UnixMillis) -> Option<Duration> {
        let most = millis(quota.each).saturating_mul(i64::from(quota.burst));
        let after = self.0.max(now).saturating_add(millis(quota.each));
        let left = u64::try_from(after.saturating_sub(now).saturating_sub(most)).unwrap_or(0);
        (left > 0).then(|| Duration::from_millis(left))
    }

    /// Takes one out, as far as there is one; how much that was.
    fn fail(&mut self, quota: Quota, now: UnixMillis) -> i64 {
        let most = now.saturating_add(millis(quota.each).saturating_mul(i64::from(quota.burst)));
        let before = self.0.max(now);
        self.0 = before.saturating_add(millis(quota.each)).min(most.max(before));
        self.0.saturating_sub(before)
    }
}

/// An attempt that may be made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt {
    account: u64,
    network: Network,
    /// Whether it counts for the account as a whole.
    counted: bool,
    before: (Count, Count),
    /// What it took out of its network's bucket.
    taken: i64,
    now: UnixMillis,
}

/// What counts. The keys of accounts are hashes of names with a secret.
#[derive(Debug)]
pub(super) struct Lockout {
    here: LruCache<(u64, Network), Count>,
    everywhere: LruCache<u64, Count>,
    networks: LruCache<Network, Bucket>,
    registrations: LruCache<Network, Count>,
}

impl Lockout {
    /// For so many networks of accounts; a hundred bytes each. Those that were quiet longest are forgotten first. What was taken
    /// back is not kept, so to push one out takes as many others that failed, each of which was a password to hash.
    pub fn new(most: usize) -> Self {
        Self {
            here: LruCache::new(most),
            everywhere: LruCache::new(most),
            networks: LruCache::new(most),
            registrations: LruCache::new(most),
        }
    }

    /// How many counts of accounts, here and everywhere, and of networks are kept.
    #[cfg(test)]
    pub fn kept(&self) -> (usize, usize, usize) {
        (self.here.len(), self.everywhere.len(), self.networks.len())
    }

    /// Whether only known networks may try, as the account as a whole is guessed at, or the network had too many failures.
    pub fn guarded(&mut self, account: u64, network: Network, now: UnixMillis) -> bool {
        self.everywhere.peek(&account).is_some_and(|count| count.wait(now).is_some())
            || self.networks.peek(&network).is_some_and(|bucket| bucket.wait(SPRAY, now).is_some())
    }

    /// Begins an attempt, which is a failure until it is [`Lockout::succeeded`]. `known` says that somebody logged into the
    /// account from this network before.
    pub fn begin(&mut self, account: u64, network: Network, known: bool, now: UnixMillis) -> Result<Attempt, Duration> {
        let here = self.here.get(&(account, network)).copied().unwrap_or_default();
        let everywhere = self.everywhere.get(&account).copied().unwrap_or_default();
        let mut bucket = self.networks.get(&network).copied().unwrap_or_default();
        let others = everywhere.wait(now).max(bucket.wait(SPRAY, now));
        if let Some(wait) = here.wait(now).max(others.filter(|_| !known)) {
            return Err(wait);
        }
        let (mut failed_here, mut failed_everywhere) = (here, everywhere);
        failed_here.fail(HERE, now);
        failed_everywhere.fail(EVERYWHERE, now);
        let taken = bucket.fail(SPRAY, now);
        self.here.insert((account, network), failed_here);
        self.networks.insert(network, bucket);
        // A known network's failures are its own affair: they would only hinder others.
        if !known {
            self.everywhere.insert(account, failed_everywhere);
        }
        Ok(Attempt { account, network, counted: !known, before: (here, everywhere), taken, now })
    }

    /// It was no failure: what it counted is taken back, and this network starts anew. What others did meanwhile stays.
    pub fn succeeded(&mut self, attempt: &Attempt) {
        self.here.remove(&(attempt.account, attempt.network));
        self.give_back(attempt);
    }

    /// It was not decided, as when too many waited.
    pub fn undecided(&mut self, attempt: &Attempt) {
        let key = (attempt.account, attempt.network);
        if let Some(count) = self.here.get_mut(&key) {
            count.failures = count.failures.saturating_sub(1);
            count.next = count.next.min(attempt.before.0.next.max(count.last));
            if count.failures == 0 {
                self.here.remove(&key);
            }
        }
        self.give_back(attempt);
    }

    fn give_back(&mut self, attempt: &Attempt) {
        if let Some(count) = self.everywhere.get_mut(&attempt.account).filter(|_| attempt.counted) {
            count.failures = count.failures.saturating_sub(1);
            if count.failures <= EVERYWHERE.free {
                count.next = attempt.before.1.next;
            }
            if count.failures == 0 {
                self.everywhere.remove(&attempt.account);
            }
        }
        if let Some(bucket) = self.networks.get_mut(&attempt.network) {
            bucket.0 = bucket.0.saturating_sub(attempt.taken);
            if bucket.0 <= attempt.now {
                self.networks.remove(&attempt.network);
            }
        }
    }

    /// Counts a new account.
    pub fn register(&mut self, network: Network, now: UnixMillis) -> Result<(), Duration> {
        let mut count = self.registrations.get(&network).copied().unwrap_or_default();
        if let Some(wait) = count.wait(now) {
            return Err(wait);
        }
        count.fail(REGISTER, now);
        self.registrations.insert(network, count);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{HOUR, MINUTE, SECOND};

    fn network(n: u32) -> Network {
        Network::of(IpAddr::from(n.to_be_bytes()))
    }

    const ALICE: u64 = 1;

    #[test]
    fn a_guesser_is_slowed_down_more_and_more() {
        let mut lockout = Lockout::new(1000);
        let (mut now, mut guesses) = (0, 0);
        while now < HOUR {
            match lockout.begin(ALICE, network(1), false, now) {
                Ok(_) => guesses += 1,
                Err(wait) => now += i64::try_from(wait.as_millis()).unwrap(),
            }
        }
        assert!((15..=25).contains(&guesses), "{guesses} guesses in an hour");
    }

    #[test]
    fn many_at_once_are_no_better() {
        let mut lockout = Lockout::new(1000);
        let passed = (0..1000).filter(|_| lockout.begin(ALICE, network(1), false, 0).is_ok()).count();
        assert_eq!(passed, HERE.free as usize + 1);
    }

    #[test]
    fn a_thousand_networks_are_slowed_down_together_and_the_victim_gets_in() {
        let mut lockout = Lockout::new(10_000);
        let victim = network(7_000_000);
        let (mut guesses, mut denied) = (0, 0);
        for now in (0..10 * MINUTE).step_by(100) {
            let guesser = network(u32::try_from(now).unwrap() % 1000);
            guesses += u32::from(lockout.begin(ALICE, guesser, false, now).is_ok());
            if now % (10 * SECOND) == 0 {
                match lockout.begin(ALICE, victim, true, now) {
                    Ok(attempt) => lockout.succeeded(&attempt),
                    Err(_) => denied += 1,
                }
            }
        }
        assert_eq!(denied, 0, "a right password from a known network is never refused for others' guesses");
        assert!(guesses < 60, "{guesses} guesses in ten minutes from a thousand networks");
        assert!(lockout.guarded(ALICE, network(7), 10 * MINUTE - 100));
        assert!(!lockout.guarded(2, network(7), 0), "other accounts are left alone");
    }

    #[test]
    fn success_and_silence_forget() {
        let mut lockout = Lockout::new(1000);
        for _ in 0..100 {
            let attempt = lockout.begin(ALICE, network(1), false, 0).unwrap();
            lockout.succeeded(&attempt);
        }
        for _ in 0..100 {
            let attempt = lockout.begin(ALICE, network(1), false, 0).unwrap();
            lockout.undecided(&attempt);
        }
        while lockout.begin(ALICE, network(1), false, 0).is_ok() {}
        assert!(lockout.begin(ALICE, network(1), false, 2 * HOUR).is_ok());
        assert!(lockout.begin(ALICE, network(1), false, 2 * HOUR).is_ok(), "all was forgotten");
    }

    #[test]
    fn memory_is_bounded_and_a_prefix_is_one_network() {
        let mut lockout = Lockout::new(100);
        for n in 0..10_000 {
            let _ = lockout.begin(u64::from(n), network(n), false, 0);
            let _ = lockout.register(network(n), 0);
        }
        assert_eq!((lockout.kept(), lockout.registrations.len()), ((100, 100, 100), 100));
        let of = |text: &str| Network::of(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.2"), of("10.0.0.1"));
    }

    #[test]
    fn new_accounts_are_slowed_down_too() {
        let mut lockout = Lockout::new(100);
        let made = (0..100).filter(|_| lockout.register(network(1), 0).is_ok()).count();
        assert_eq!(made, REGISTER.free as usize + 1);
        assert!(lockout.register(network(2), 0).is_ok());
    }

    #[test]
    fn what_was_not_decided_pushes_nothing_out() {
        let mut lockout = Lockout::new(100);
        while lockout.begin(ALICE, network(1), false, 0).is_ok() {}
        for n in 0..10_000 {
            let attempt = lockout.begin(1000 + u64::from(n), network(100 + n), false, 0).unwrap();
            lockout.undecided(&attempt);
        }
        assert!(lockout.begin(ALICE, network(1), false, 0).is_err(), "it was forgotten");
        assert_eq!(lockout.kept(), (1, 1, 1));
        // Nor what went well.
        for n in 0..10_000 {
            let attempt = lockout.begin(1000 + u64::from(n), network(100 + n), false, 0).unwrap();
            lockout.succeeded(&attempt);
        }
        assert_eq!(lockout.kept(), (1, 1, 1));
    }

    #[test]
    fn one_password_is_not_tried_on_all_accounts() {
        let mut lockout = Lockout::new(10_000);
        let mut tried = 0;
        for now in (0..HOUR).step_by(100) {
            let account = 1000 + u64::try_from(now).unwrap();
            tried += u32::from(lockout.begin(account, network(1), false, now).is_ok());
        }
        assert_eq!(tried, SPRAY.burst + 119, "the bucket, and one each half minute");
        assert!(lockout.guarded(ALICE, network(1), HOUR - 100), "known networks are asked for");
        assert!(!lockout.guarded(ALICE, network(2), HOUR - 100), "others are left alone");
        let wait = lockout.begin(ALICE, network(1), false, HOUR - 100).unwrap_err();
        assert!(wait <= SPRAY.each, "{wait:?}");
        // Whoever was known there gets in, and that gives others nothing.
        for _ in 0..1000 {
            let attempt = lockout.begin(ALICE, network(1), true, HOUR - 100).unwrap();
            lockout.succeeded(&attempt);
        }
        assert_eq!(lockout.begin(2, network(1), false, HOUR - 100).unwrap_err(), wait);
        // A night later it is as if nothing had been.
        let passed = (0..1000).filter(|n| lockout.begin(50_000 + n, network(1), false, 9 * HOUR).is_ok()).count();
        assert_eq!(passed, SPRAY.burst as usize);
    }

    #[test]
    fn an_office_behind_one_address_lives() {
        let mut lockout = Lockout::new(10_000);
        // A thousand people log in within an hour; each tenth mistypes once.
        for person in 0..1000_u64 {
            let now = i64::try_from(person).unwrap() * HOUR / 1000;
            if person % 10 == 0 {
                lockout.begin(person, network(1), false, now).expect("a mistake is free");
            }
            let attempt = lockout.begin(person, network(1), false, now).expect("and the right one is taken");
            lockout.succeeded(&attempt);
        }
    }
}
