//! The part of a shared bucket that this process may spend.
//!
//! # Why no more passes than the limit says
//!
//! Redis keeps for each bucket a *level* of tokens, and for each instance how many it *holds*: tokens that were taken from the
//! level and may still be spent. Level and holds together never exceed `cap`, and grow by `limit / period` at most: a held
//! token has its place in the bucket, so it does not matter when it is spent. What passes in a stretch t is therefore at most
//! `cap + limit * t / period`.
//!
//! What is said to Redis is said so that loss and repetition of it only ever lose tokens. A hold is told as it is ("I have 7"),
//! not as a change, and only lowers what Redis has noted; an answer that does not arrive leaves tokens noted there which nobody
//! has, until the next message or the end of the lease. Messages are numbered, and an old or repeated one does nothing. A lease
//! ends here, counted from before its message was sent and a tenth shorter, before it ends there.
//!
//! So that the first request of a key need not be refused, each instance has a *credit* of its own beyond `cap`: in all not
//! more than `reserve`, and `cap + reserve = burst`. What is spent of it is debited by force with the next message, as a sum that
//! only grows, so that nothing is debited twice; the level may become negative by it. The credit is there again only when
//! Redis has answered that the level is not negative after that debit. Since the level was last not negative, each instance
//! has thus spent at most its credit, so that the level is never below `-reserve`, and what passes in a stretch t is at most
//! `cap + reserve + limit * t / period`.

use super::gcra::{Rate, Refused, Tat};
use super::shard::Kind;
use crate::clock::Nanos;

/// An exhausted bucket is asked for again after so long, in nanoseconds, or when a token is there before: others give back.
const ASK_AGAIN: u64 = 500_000_000;
/// What a request is told to wait that only Redis could let pass, in nanoseconds.
const SECOND: u64 = 1_000_000_000;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    pub hash: u64,
    pub kind: Kind,
    /// Its name in Redis.
    pub name: [u8; 16],
    /// Spent of the credit, ever, and how much of that Redis has debited for sure.
    owed: u64,
    acked: u64,
    /// Number of the latest message.
    seq: u64,
    /// Tokens may be spent up to then.
    until: Nanos,
    /// Redis has forgotten this instance's part by then if nothing is sent.
    free_at: Nanos,
    /// Sooner there is nothing to be had.
    next_at: Nanos,
    /// If nobody tells: when the credit is sure to be there again.
    spoilt: Nanos,
    /// While Redis is away, the bucket of this instance's share.
    local: Tat,
    /// What was spent of that.
    spent: u32,
    tokens: u32,
    /// Spent of the credit since Redis last said that all is well; all of it where it has not.
    used: u32,
    /// What Redis has noted that this instance holds.
    noted: u32,
    /// What Redis last said it still has.
    level: u32,
    /// Asked for since the last message, and a mean over messages.
    demand: u32,
    pace: u32,
    /// Which outage, or time between, it was last used in.
    epoch: u32,
    /// Whether somebody was refused since the last message.
    starved: bool,
    /// Whether it is in its shard's list of those that have something to tell.
    pub dirty: bool,
}

/// What a shared bucket is under at a moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub now: Nanos,
    /// Odd while Redis is away.
    pub epoch: u32,
    /// What an instance may spend unasked.
    pub credit: u32,
    /// Tokens in Redis at most.
    pub cap: u32,
    /// This instance's part while Redis is away.
    pub share: Rate,
    /// From empty to full, in nanoseconds.
    pub fill: u64,
    /// Between two messages, in nanoseconds.
    pub interval: u64,
    /// How long a lease may be spent, in nanoseconds.
    pub lease: u64,
}

impl Terms {
    fn away(&self) -> bool {
        self.epoch % 2 == 1
    }
}

/// What Redis is told of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub hash: u64,
    pub kind: Kind,
    pub name: [u8; 16],
    pub seq: u64,
    pub owed: u64,
    pub acked: u64,
    pub hold: u32,
    pub back: u32,
    pub want: u32,
    pub sent: Nanos,
}

/// What Redis says to that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// What of the hold it has still noted.
    pub hold: u32,
    pub granted: u32,
    /// Whole tokens of the level; negative when credits have overdrawn it.
    pub level: i64,
    /// Until there is one, in nanoseconds.
    pub wait: u64,
}

impl Lease {
    /// Of a key that is not known yet.
    pub fn new(hash: u64, kind: Kind, name: [u8; 16], terms: &Terms) -> Self {
        Self {
            hash,
            kind,
            name,
            owed: 0,
            acked: 0,
            seq: 0,
            until: 0,
            free_at: 0,
            next_at: 0,
            spoilt: 0,
            local: Tat::default(),
            spent: 0,
            tokens: 0,
            used: 0,
            noted: 0,
            level: terms.cap,
            demand: 0,
            pace: 0,
            // As before the outage, if there is one, so that its part begins with the credit.
            epoch: terms.epoch & !1,
            starved: false,
            dirty: false,
        }
    }

    /// It may have had its credit: there is none until Redis says so.
    pub fn spoil(&mut self) {
        self.used = u32::MAX;
        self.level = 0;
    }

    /// Whether it was last used while Redis was away.
    pub fn in_outage(&self) -> bool {
        self.epoch % 2 == 1
    }

    /// Somebody says that what was spent is forgiven. What Redis has to be told of it stays.
    pub fn forgive(&mut self, terms: &Terms) {
        self.used = 0;
        self.next_at = 0;
        self.local = Tat::default();
        self.level = terms.cap;
    }

    fn expire(&mut self, now: Nanos) {
        if now > self.until {
            self.tokens = 0;
        }
    }

    fn available(&self, terms: &Terms) -> u32 {
        let tokens = if terms.now > self.until { 0 } else { self.tokens };
        tokens.saturating_add(terms.credit.saturating_sub(self.used))
    }

    /// Begins or ends an outage for this bucket. Its part begins with what it had, and what it then spent and did not get
    /// again by waiting is debited afterwards.
    pub fn turn(&mut self, terms: &Terms) {
        if self.epoch == terms.epoch {
            return;
        }
        match (self.in_outage(), terms.away()) {
            (false, true) => {
                self.local = terms.share.holding(u64::from(self.available(terms)), terms.now);
                self.spent = 0;
                self.tokens = 0;
                self.used = u32::MAX;
                self.spoilt = terms.now.saturating_add(terms.fill);
            }
            (true, false) => {
                let missing = terms.share.missing(self.local, terms.now);
                self.owed += u64::from(self.spent).min(missing);
                self.spent = 0;
                self.used = u32::MAX;
                self.spoilt = terms.now.saturating_add(terms.fill);
            }
            _ => {}
        }
        self.epoch = terms.epoch;
    }

    /// Whether a request would pass.
    pub fn asks(&self, terms: &Terms, cost: u32) -> Result<(), Refused> {
        if cost > terms.cap {
            return Err(Refused::Never);
        }
        if terms.away() {
            return match terms.share.charge(self.local, terms.now, cost) {
                Ok(_) => Ok(()),
                Err(Refused::Wait(wait)) => Err(Refused::Wait(wait)),
                // More than the share; Redis may be there again.
                Err(Refused::Never) => Err(Refused::Wait(SECOND)),
            };
        }
        if self.available(terms) >= cost {
            return Ok(());
        }
        Err(Refused::Wait(self.next_at.saturating_sub(terms.now).max(terms.interval)))
    }

    /// A request passes.
    pub fn pay(&mut self, terms: &Terms, cost: u32) {
        if terms.away() {
            if let Ok(tat) = terms.share.charge(self.local, terms.now, cost) {
                self.local = tat;
                self.spent = self.spent.saturating_add(cost);
            }
            return;
        }
        self.expire(terms.now);
        self.demand = self.demand.saturating_add(cost);
        let held = self.tokens.min(cost);
        self.tokens -= held;
        let credit = cost - held;
        if credit > 0 {
            self.used = self.used.saturating_add(credit);
            self.owed += u64::from(credit);
            self.spoilt = terms.now.saturating_add(terms.fill);
        }
    }

    /// A request was refused for want of tokens; whether Redis is to be asked.
    pub fn misses(&mut self, terms: &Terms, cost: u32) -> bool {
        if terms.away() {
            return false;
        }
        self.demand = self.demand.saturating_add(cost);
        self.starved = true;
        terms.now >= self.next_at
    }

    /// What would pass now, as far as is known: what is here, and what Redis had when it was last asked. For a request that
    /// was just refused only the former counts.
    pub fn remaining(&self, terms: &Terms, refused: bool) -> u64 {
        if terms.away() {
            return terms.share.remaining(self.local, terms.now);
        }
        u64::from(self.available(terms)) + if refused { 0 } else { u64::from(self.level) }
    }

    /// What is to be told, if anything. What is given back is gone from here at once.
    pub fn message(&mut self, terms: &Terms, seq: u64, all_back: bool) -> Option<Message> {
        self.dirty = false;
        self.turn(terms);
        self.expire(terms.now);
        let demand = std::mem::take(&mut self.demand);
        self.pace = demand.max((self.pace + demand) / 2);
        // For this interval, and half of one that its answer may take. What the credit suffices for needs no lease.
        let by_credit = !std::mem::take(&mut self.starved) && self.pace.saturating_mul(2) <= terms.credit;
        let target =
            if all_back || by_credit { 0 } else { self.pace.saturating_add(self.pace.div_ceil(2)).min(terms.cap) };
        // Too much is given back, but not for every ripple.
        let back = if self.tokens > target.saturating_mul(2) { self.tokens - target } else { 0 };
        self.tokens -= back;
        let want = target.saturating_sub(self.tokens);
        if self.owed == self.acked && self.noted == 0 && want == 0 {
            return None;
        }
        self.seq = seq;
        // Twice the lease, and some seconds for a message on its way.
        self.free_at = terms.now + 2 * terms.lease + 5 * SECOND;
        Some(Message {
            hash: self.hash,
            kind: self.kind,
            name: self.name,
            seq,
            owed: self.owed,
            acked: self.acked,
            hold: self.tokens,
            back,
            want,
            sent: terms.now,
        })
    }

    /// What Redis said; whether there is more to tell it soon.
    pub fn answered(&mut self, message: &Message, answer: &Answer, lease: u64, now: Nanos) -> bool {
        if self.seq != message.seq {
            return true;
        }
        self.acked = self.acked.max(message.owed);
        self.noted = answer.hold.saturating_add(answer.granted);
        if self.in_outage() {
            // An outage began meanwhile: what was held has become part of the share.
            return true;
        }
        self.expire(now);
        self.tokens = self.tokens.min(answer.hold).saturating_add(answer.granted);
        self.until = message.sent + lease / 10 * 9;
        self.level = u32::try_from(answer.level.max(0)).unwrap_or(u32::MAX);
        if answer.level >= 0 {
            self.used = u32::try_from(self.owed - self.acked).unwrap_or(u32::MAX);
        }
        let empty = answer.level <= 0 && self.tokens == 0;
        self.next_at = if empty { now + answer.wait.min(ASK_AGAIN) } else { 0 };
        self.noted > 0 || self.owed > self.acked || self.demand > 0 && now >= self.next_at
    }

    /// No answer came: what was sent may have been done, or may yet be.
    pub fn unanswered(&mut self) {
        self.noted = u32::MAX;
    }

    /// Whether it may be forgotten: nothing is owed or held, and Redis does not know its numbers any more.
    pub fn may_go(&self, now: Nanos) -> bool {
        let away = self.in_outage();
        self.owed == self.acked
            && (self.tokens == 0 || now > self.until)
            && now > self.free_at
            && (!away || self.local.nanos < now)
            && !self.dirty
    }

    /// Until when a key that was forgotten must not have a credit.
    pub fn spoilt_until(&self) -> Option<Nanos> {
        (self.used > 0).then_some(self.spoilt)
    }
}
