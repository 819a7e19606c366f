//! Windows of time, in three tiers, and which of them make up a range.
//!
//! Everything is counted per minute, per quarter of an hour and per UTC day. The middle tier is a quarter and not an hour
//! because every IANA zone lies a multiple of 15 minutes off UTC: from quarters, the hours and days of all of them can be
//! put together exactly. Minutes and quarters are kept for a while only ([`Retention`]); a range that begins where they
//! are gone is widened to the next coarser tier, and the answer says so.

use crate::clock::{DAY, MINUTE, UnixMillis};

/// A width of windows. All are aligned to UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Tier {
    /// One minute.
    Minute = 1,
    /// 15 minutes.
    Quarter = 2,
    /// One UTC day.
    Day = 3,
}

impl Tier {
    /// From the finest to the coarsest.
    pub const ALL: [Tier; 3] = [Tier::Minute, Tier::Quarter, Tier::Day];

    /// How long a window of this tier is.
    pub const fn width(self) -> UnixMillis {
        match self {
            Tier::Minute => MINUTE,
            Tier::Quarter => 15 * MINUTE,
            Tier::Day => DAY,
        }
    }

    /// Start of the window that holds `at`.
    pub const fn floor(self, at: UnixMillis) -> UnixMillis {
        at.saturating_sub(at.rem_euclid(self.width()))
    }

    /// Start of the first window that begins at `at` or later.
    pub const fn ceil(self, at: UnixMillis) -> UnixMillis {
        match at.rem_euclid(self.width()) {
            0 => at,
            past => at.saturating_add(self.width() - past),
        }
    }

    /// The tier whose windows this one's are swept by.
    const fn coarser(self) -> Tier {
        match self {
            Tier::Minute => Tier::Quarter,
            Tier::Quarter | Tier::Day => Tier::Day,
        }
    }
}

/// How long the windows of each tier are kept; `None` is for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Of minutes.
    pub minutes: Option<UnixMillis>,
    /// Of quarters; at least as long as minutes.
    pub quarters: Option<UnixMillis>,
    /// Of days; at least as long as quarters.
    pub days: Option<UnixMillis>,
}

impl Default for Retention {
    fn default() -> Self {
        Self { minutes: Some(2 * DAY), quarters: Some(90 * DAY), days: None }
    }
}

impl Retention {
    /// How long `tier` is kept. A coarser tier is never kept for less than a finer one.
    pub fn of(&self, tier: Tier) -> Option<UnixMillis> {
        let longer = |a: Option<UnixMillis>, b: Option<UnixMillis>| Some(a?.max(b?));
        match tier {
            Tier::Minute => self.minutes,
            Tier::Quarter => longer(self.minutes, self.quarters),
            Tier::Day => longer(longer(self.minutes, self.quarters), self.days),
        }
    }

    /// Windows of `tier` that start before this are deleted, and not written any more.
    pub fn deleted_before(&self, tier: Tier, now: UnixMillis) -> UnixMillis {
        self.of(tier).map_or(UnixMillis::MIN, |kept| tier.coarser().floor(now.saturating_sub(kept)))
    }

    /// Windows of `tier` that start here or later are still there for as long as a query may take: between this and
    /// [`Retention::deleted_before`] lies up to one window of the coarser tier.
    pub fn complete_since(&self, tier: Tier, now: UnixMillis) -> UnixMillis {
        self.of(tier).map_or(UnixMillis::MIN, |kept| tier.coarser().ceil(now.saturating_sub(kept)))
    }
}

/// A run of neighbouring windows of one tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Their tier.
    pub tier: Tier,
    /// Start of the first.
    pub from: UnixMillis,
    /// End of the last.
    pub to: UnixMillis,
}

/// A range put together from windows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Where the range really begins.
    pub from: UnixMillis,
    /// Where it really ends (exclusive).
    pub to: UnixMillis,
    /// What it is made of: in order, without gap or overlap, never two of one tier side by side; at most five. The last one
    /// may end later than the range when that ends after now.
    pub pieces: Vec<Piece>,
}

/// The windows that make up `[from, to)`, as few as possible of those still there at `now`.
pub fn plan(from: UnixMillis, to: UnixMillis, now: UnixMillis, retention: &Retention) -> Plan {
    let (from, to) = effective(from, to, now, retention);
    Plan { from, to, pieces: split(from, reach(to, now)) }
}

/// Where the windows may end for a range that ends at `to`: what ends after `now` may as well end with the day, since there
/// is nothing in between. It makes one window of today's many.
pub(super) fn reach(to: UnixMillis, now: UnixMillis) -> UnixMillis {
    if to > now { Tier::Day.ceil(to) } else { to }
}

/// `[from, to)` in whole minutes, and widened at each end to the windows that are still there.
pub fn effective(from: UnixMillis, to: UnixMillis, now: UnixMillis, retention: &Retention) -> (UnixMillis, UnixMillis) {
    let (mut from, mut to) = (Tier::Minute.floor(from), Tier::Minute.ceil(to));
    for tier in [Tier::Minute, Tier::Quarter] {
        let (coarser, complete) = (tier.coarser(), retention.complete_since(tier, now));
        if from < complete {
            from = coarser.floor(from);
        }
        // The windows of this tier that would be needed at the end begin at the coarser window's start.
        if coarser.floor(to) < complete {
            to = coarser.ceil(to);
        }
    }
    from = from.max(retention.complete_since(Tier::Day, now));
    (from, to.max(from))
}

/// The fewest runs that make up `[from, to)`, whose ends are whole minutes.
pub(super) fn split(from: UnixMillis, to: UnixMillis) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::with_capacity(5);
    let mut at = from;
    while at < to {
        let fits = |tier: Tier| tier.floor(at) == at && at + tier.width() <= to;
        let (tier, end) = if fits(Tier::Day) {
            (Tier::Day, Tier::Day.floor(to))
        } else if fits(Tier::Quarter) {
            (Tier::Quarter, Tier::Quarter.floor(to).min(Tier::Day.floor(at) + DAY))
        } else {
            (Tier::Minute, to.min(Tier::Quarter.floor(at) + Tier::Quarter.width()))
        };
        match pieces.last_mut() {
            Some(last) if last.tier == tier => last.to = end,
            _ => pieces.push(Piece { tier, from: at, to: end }),
        }
        at = end;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::HOUR;

    const Q: UnixMillis = 15 * MINUTE;
    const NOW: UnixMillis = 20_000 * DAY + 13 * HOUR + 7 * MINUTE + 31_000;

    fn pieces(from: UnixMillis, to: UnixMillis) -> Vec<(Tier, UnixMillis, UnixMillis)> {
        plan(from, to, NOW, &Retention::default()).pieces.into_iter().map(|p| (p.tier, p.from, p.to)).collect()
    }

    #[test]
    fn a_range_takes_the_fewest_windows() {
        let day = 19_999 * DAY;
        assert_eq!(pieces(day, day + DAY), [(Tier::Day, day, day + DAY)]);
        assert_eq!(pieces(day + MINUTE, day + 2 * MINUTE), [(Tier::Minute, day + MINUTE, day + 2 * MINUTE)]);
        assert_eq!(
            pieces(day - Q - MINUTE, day + DAY + Q + 1),
            [
                (Tier::Minute, day - Q - MINUTE, day - Q),
                (Tier::Quarter, day - Q, day),
                (Tier::Day, day, day + DAY),
                (Tier::Quarter, day + DAY, day + DAY + Q),
                (Tier::Minute, day + DAY + Q, day + DAY + Q + MINUTE),
            ]
        );
        assert_eq!(pieces(day + Q, day + 5 * Q), [(Tier::Quarter, day + Q, day + 5 * Q)]);
        assert_eq!(pieces(day - Q, day + Q), [(Tier::Quarter, day - Q, day + Q)]);
        assert_eq!(pieces(day, day), []);
        assert_eq!(pieces(day + 5, day + 6), [(Tier::Minute, day, day + MINUTE)]);
    }

    #[test]
    fn today_is_one_window_when_the_range_ends_now() {
        let today = 20_000 * DAY;
        let piece = |tier, from, to| (tier, from, to);
        assert_eq!(
            pieces(NOW - DAY + 53 * MINUTE, NOW),
            [piece(Tier::Quarter, today - 10 * HOUR, today), piece(Tier::Day, today, today + DAY)]
        );
        let plan = plan(NOW - HOUR, NOW, NOW, &Retention::default());
        assert_eq!(plan.to, Tier::Minute.ceil(NOW), "what is said of the range does not change");
        assert_eq!(pieces(today, NOW - 31_000).len(), 2);
    }

    #[test]
    fn where_minutes_are_gone_quarters_stand_in() {
        let edge = Retention::default().complete_since(Tier::Minute, NOW);
        assert_eq!(edge, 19_998 * DAY + 13 * HOUR + Q);
        let at = edge - MINUTE;
        assert_eq!(pieces(at, at + MINUTE), [(Tier::Quarter, edge - Q, edge)]);
        assert_eq!(pieces(at, edge + MINUTE), [(Tier::Quarter, edge - Q, edge), (Tier::Minute, edge, edge + MINUTE)]);
        assert_eq!(pieces(edge, edge + MINUTE), [(Tier::Minute, edge, edge + MINUTE)]);
    }

    #[test]
    fn where_quarters_are_gone_days_stand_in() {
        let edge = Retention::default().complete_since(Tier::Quarter, NOW);
        assert_eq!(edge, 19_911 * DAY);
        assert_eq!(pieces(edge - HOUR, edge - Q), [(Tier::Day, edge - DAY, edge)]);
        assert_eq!(pieces(edge - 1, edge + 1), [(Tier::Day, edge - DAY, edge), (Tier::Quarter, edge, edge + Q)]);
    }

    #[test]
    fn a_coarser_tier_outlives_a_finer_one() {
        let odd = Retention { minutes: None, quarters: Some(DAY), days: Some(HOUR) };
        for tier in Tier::ALL {
            assert_eq!(odd.of(tier), None);
        }
        let days = Retention { minutes: Some(HOUR), quarters: Some(DAY), days: Some(3 * DAY) };
        let plan = plan(NOW - 20 * DAY, NOW, NOW, &days);
        assert_eq!(plan.from, 19_998 * DAY, "what is deleted is not promised");
    }

    #[test]
    fn what_may_be_deleted_is_never_planned() {
        let retention = Retention::default();
        for tier in [Tier::Minute, Tier::Quarter] {
            for minute in 0..3_000 {
                let now = NOW + minute * MINUTE;
                let later = now + tier.coarser().width() - 1;
                assert!(retention.deleted_before(tier, now) <= retention.complete_since(tier, now));
                assert!(
                    retention.deleted_before(tier, later.min(now + 60_000)) <= retention.complete_since(tier, now),
                    "a query may take a minute"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn pieces_tile_the_range(back in 0i64..200 * DAY, length in 1i64..40 * DAY) {
            let retention = Retention::default();
            let (from, to) = (NOW - back, NOW - back + length);
            let plan = plan(from, to, NOW, &retention);
            prop_assert!(plan.from <= from && plan.to >= to);
            prop_assert!(from - plan.from < DAY && plan.to - to < DAY);
            prop_assert!(plan.pieces.len() <= 5);
            let mut at = plan.from;
            for piece in &plan.pieces {
                prop_assert_eq!(piece.from, at);
                prop_assert!(piece.to > piece.from);
                prop_assert_eq!(piece.tier.floor(piece.from), piece.from);
                prop_assert_eq!(piece.tier.floor(piece.to), piece.to);
                prop_assert!(piece.from >= retention.complete_since(piece.tier, NOW));
                at = piece.to;
            }
            prop_assert_eq!(at, reach(plan.to, NOW));
            prop_assert!(at == plan.to || plan.to > NOW);
        }
    }
}
