//! What a request passes: one word that says the state, which generation of it this is, and how many probes may still go.
//!
//! A closed gate costs a load. A probe takes its place, and gives it back, by exchanging the word, so no more go than there
//! are places, whichever threads ask. All changes of state are made under one lock, and each begins a new generation: a
//! ticket of an earlier one can neither give a place back nor be weighed. That an open gate's time is over is found by the
//! request that comes then; nobody need be awake for it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::{Forced, Reason, State, Transition, nanos};
use crate::clock::Nanos;
use crate::gateway::options::BreakerOptions;

/// Changes of state that are remembered.
const REMEMBERED: usize = 16;
/// Probes that are out longer than this, than it was open, and than twice a slow call, are given up.
const STUCK: Duration = Duration::from_secs(10);
/// What is said to who comes while the probes are out, or by whose order it is open: nobody knows better.
const ASK_AGAIN: Duration = Duration::from_secs(1);

const STATE_BITS: u32 = 3;
const PLACE_BITS: u32 = 20;
/// The most probes there can be.
const MAX_PLACES: u64 = (1 << PLACE_BITS) - 1;

/// State in the lowest bits, then free places of probes, then the generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Word(u64);

impl Word {
    fn new(generation: u64, state: State, places: u64) -> Self {
        let state = match state {
            State::Off => 0,
            State::Closed => 1,
            State::Open => 2,
            State::HalfOpen => 3,
            State::ForcedOpen => 4,
            State::ForcedClosed => 5,
        };
        Self((generation << (STATE_BITS + PLACE_BITS)) | (places.min(MAX_PLACES) << STATE_BITS) | state)
    }

    fn state(self) -> State {
        match self.0 & ((1 << STATE_BITS) - 1) {
            0 => State::Off,
            1 => State::Closed,
            2 => State::Open,
            3 => State::HalfOpen,
            4 => State::ForcedOpen,
            _ => State::ForcedClosed,
        }
    }

    fn places(self) -> u64 {
        (self.0 >> STATE_BITS) & MAX_PLACES
    }

    fn generation(self) -> u64 {
        self.0 >> (STATE_BITS + PLACE_BITS)
    }
}

/// What a call carries that has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    pub(super) generation: u64,
    /// Whether it holds the place of a probe.
    pub(super) probe: bool,
    /// Whether its result counts.
    pub(super) weighed: bool,
    /// Whether it changed the state.
    pub(super) moved: bool,
}

impl Ticket {
    /// Whether the call is one of those that try an upstream.
    pub fn is_probe(&self) -> bool {
        self.probe
    }
}

/// A gate, and what it knows of its past.
pub(super) struct Gate {
    word: AtomicU64,
    /// Open: the end of that. Half-open: when probes that are out are given up. Written before the word that it belongs to.
    until: AtomicU64,
    /// Calls that take longer are slow; nanoseconds.
    slow_call: AtomicU64,
    book: Mutex<Book>,
}

struct Book {
    /// `None` without a breaker.
    rules: Option<Rules>,
    since: Nanos,
    transitions: u64,
    last: VecDeque<Transition>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Rules {
    open_for: Nanos,
    probes: u64,
    stuck: Nanos,
}

impl Rules {
    fn of(options: &BreakerOptions) -> Self {
        let open_for = nanos(options.open_for);
        let stuck = nanos(STUCK).max(open_for).max(nanos(options.slow_call).saturating_mul(2));
        Self { open_for, probes: u64::from(options.probes.max(1)).min(MAX_PLACES), stuck }
    }
}

impl Gate {
    /// Closed; without options, off.
    pub fn new(options: Option<&BreakerOptions>, now: Nanos) -> Self {
        let state = if options.is_some() { State::Closed } else { State::Off };
        let book = Book { rules: options.map(Rules::of), since: now, transitions: 0, last: VecDeque::new() };
        Self {
            word: AtomicU64::new(Word::new(1, state, 0).0),
            until: AtomicU64::new(0),
            slow_call: AtomicU64::new(options.map_or(Nanos::MAX, |options| nanos(options.slow_call))),
            book: Mutex::new(book),
        }
    }

    fn word(&self) -> Word {
        Word(self.word.load(Ordering::Acquire))
    }

    /// The generation, and its state.
    pub fn state(&self) -> (u64, State) {
        let word = self.word();
        (word.generation(), word.state())
    }

    /// Whether a call that took so long is slow.
    pub fn is_slow(&self, took: Duration) -> bool {
        nanos(took) > self.slow_call.load(Ordering::Relaxed)
    }

    /// Whether a ticket's result would still count.
    pub fn holds(&self, ticket: Ticket) -> bool {
        self.word().generation() == ticket.generation
    }

    /// Lets a call pass, or says when to ask again.
    pub fn admit(&self, now: Nanos) -> Result<Ticket, Duration> {
        let mut moved = false;
        loop {
            let word = self.word();
            let generation = word.generation();
            let passes = |weighed| Ok(Ticket { generation, probe: false, weighed, moved });
            let reason = match word.state() {
                State::Closed => return passes(true),
                State::Off | State::ForcedClosed => return passes(false),
                State::ForcedOpen => return Err(ASK_AGAIN),
                State::HalfOpen if word.places() > 0 => {
                    let taken = Word::new(generation, State::HalfOpen, word.places() - 1);
                    if self.exchange(word, taken) {
                        return Ok(Ticket { generation, probe: true, weighed: true, moved });
                    }
                    continue;
                }
                State::HalfOpen => Reason::ProbesStuck,
                State::Open => Reason::Waited,
            };
            let left = self.until.load(Ordering::Acquire).saturating_sub(now);
            if left > 0 {
                let left = Duration::from_nanos(left);
                return Err(if reason == Reason::Waited { left } else { left.min(ASK_AGAIN) });
            }
            moved |= self.try_out(generation, now, reason);
        }
    }

    fn exchange(&self, from: Word, to: Word) -> bool {
        self.word.compare_exchange_weak(from.0, to.0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Gives back the place of a probe that tells nothing.
    pub fn give_back(&self, ticket: Ticket) {
        if !ticket.probe {
            return;
        }
        loop {
            let word = self.word();
            if word.generation() != ticket.generation || word.state() != State::HalfOpen {
                return;
            }
            if self.exchange(word, Word::new(word.generation(), State::HalfOpen, word.places() + 1)) {
                return;
            }
        }
    }

    /// Half-open with all places free, if it is time and nobody was faster.
    fn try_out(&self, generation: u64, now: Nanos, reason: Reason) -> bool {
        let mut book = self.book.lock();
        let current = self.word().generation() == generation && now >= self.until.load(Ordering::Acquire);
        if current {
            self.go(&mut book, State::HalfOpen, now, reason);
        }
        current
    }

    /// What the judge found. Nothing happens if that generation is over.
    pub fn turn(&self, generation: u64, to: State, now: Nanos, reason: Reason) {
        let mut book = self.book.lock();
        if self.word().generation() == generation {
            self.go(&mut book, to, now, reason);
        }
    }

    /// An order, or the end of one, after which it is closed.
    pub fn force(&self, forced: Option<Forced>, now: Nanos) {
        let mut book = self.book.lock();
        let under_orders = matches!(self.word().state(), State::ForcedOpen | State::ForcedClosed);
        let idle = if book.rules.is_some() { State::Closed } else { State::Off };
        match forced {
            Some(Forced::Open) => self.go(&mut book, State::ForcedOpen, now, Reason::Forced),
            Some(Forced::Closed) => self.go(&mut book, State::ForcedClosed, now, Reason::Forced),
            None if under_orders => self.go(&mut book, idle, now, Reason::Released),
            None => {}
        }
    }

    /// Other settings. The state stays; what is half-open begins that anew, with as many places as there are now.
    pub fn apply(&self, options: Option<&BreakerOptions>, now: Nanos) {
        let mut book = self.book.lock();
        let rules = options.map(Rules::of);
        self.slow_call.store(options.map_or(Nanos::MAX, |options| nanos(options.slow_call)), Ordering::Relaxed);
        if book.rules == rules {
            return;
        }
        book.rules = rules;
        let to = match (self.word().state(), rules.is_some()) {
            (State::Off, true) => State::Closed,
            (State::Closed | State::Open | State::HalfOpen, false) => State::Off,
            (State::HalfOpen, true) => State::HalfOpen,
            _ => return,
        };
        self.go(&mut book, to, now, Reason::Configured);
    }

    fn go(&self, book: &mut Book, to: State, now: Nanos, reason: Reason) {
        let word = self.word();
        let (places, until) = match (to, book.rules) {
            (State::Open, Some(rules)) => (0, now.saturating_add(rules.open_for)),
            (State::HalfOpen, Some(rules)) => (rules.probes, now.saturating_add(rules.stuck)),
            _ => (0, 0),
        };
        self.until.store(until, Ordering::Release);
        self.word.store(Word::new(word.generation() + 1, to, places).0, Ordering::Release);
        book.since = now;
        book.transitions += 1;
        if book.last.len() == REMEMBERED {
            book.last.pop_front();
        }
        book.last.push_back(Transition { at: now, from: word.state(), to, reason });
    }

    /// State, since when, until when.
    pub fn standing(&self) -> (State, Nanos, Option<Nanos>) {
        let book = self.book.lock();
        let state = self.word().state();
        let until = matches!(state, State::Open | State::HalfOpen).then(|| self.until.load(Ordering::Acquire));
        (state, book.since, until)
    }

    /// How many changes there were, and the last of them.
    pub fn past(&self) -> (u64, Vec<Transition>) {
        let book = self.book.lock();
        (book.transitions, book.last.iter().copied().collect())
    }
}
