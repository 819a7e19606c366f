//! What the aggregates' reader knows besides its place in the journal: how far windows are final, which are not yet, how
//! many events came late, and what has been dropped. Pure; what has to survive goes into its cursor in Kafka.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::window::{Size, Window};
use crate::clock::UnixMillis;
use crate::stats::Retention;
use crate::stream::StreamError;

/// Windows whose late events are remembered: the latest ones.
const LATE_WINDOWS: usize = 1_000;
/// How long before the store drops a window its tombstones are sent.
const AHEAD: UnixMillis = 10 * crate::clock::MINUTE;
/// How long an event may be on its way from its receipt into the journal.
const UNDERWAY: UnixMillis = 2 * crate::clock::SECOND;

/// The aggregates' record in the topic of cursors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AggregateCursor {
    /// Whose journal.
    pub journal: String,
    /// The number of the first entry whose changes are not delivered.
    pub next: u64,
    /// Whether everything the store had when the stream began is there.
    pub complete: bool,
    /// Windows that end here or earlier are final; Unix milliseconds.
    pub watermark: UnixMillis,
    /// Windows of each size (minute, hour, day) that start before this have been dropped; Unix milliseconds.
    pub dropped: [UnixMillis; 3],
    /// What is added to the store's offset for a revision: how much of its end the journal has ever lost.
    #[serde(default)]
    pub shift: u64,
    /// Late events, by window.
    #[serde(default)]
    pub late: Vec<(String, Size, UnixMillis, u64)>,
}

impl AggregateCursor {
    /// Of a journal nothing of which is in Kafka.
    pub fn begin(journal: &str, next: u64) -> Self {
        Self {
            journal: journal.to_owned(),
            next,
            complete: false,
            watermark: UnixMillis::MIN,
            dropped: [UnixMillis::MIN; 3],
            shift: 0,
            late: Vec::new(),
        }
    }

    /// As a record's value.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads what [`AggregateCursor::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, StreamError> {
        serde_json::from_slice(bytes).map_err(|error| StreamError::Cursor(error.to_string()))
    }
}

/// The state.
#[derive(Clone, Debug)]
pub struct State {
    cursor: AggregateCursor,
    late: BTreeMap<Window, u64>,
    /// Windows that are not final, by their end.
    open: BTreeSet<(UnixMillis, Window)>,
}

impl State {
    /// Goes on from a cursor; the windows that are not final are to be [`State::reopen`]ed.
    pub fn new(cursor: AggregateCursor) -> Self {
        let late = cursor.late.iter().map(|(site, size, start, count)| {
            (Window { site: site.as_str().into(), size: *size, start: *start }, *count)
        });
        Self { late: late.collect(), open: BTreeSet::new(), cursor }
    }

    /// The cursor with everything that has to survive.
    pub fn cursor(&self) -> AggregateCursor {
        let late = self.late.iter().map(|(w, count)| (w.site.to_string(), w.size, w.start, *count));
        AggregateCursor { late: late.collect(), ..self.cursor.clone() }
    }

    /// How far windows are final.
    pub fn watermark(&self) -> UnixMillis {
        self.cursor.watermark
    }

    /// Where the reader stands.
    pub fn next(&self) -> u64 {
        self.cursor.next
    }

    /// Moves on, once what lies before has been put into the same transaction.
    pub fn advance(&mut self, next: u64) {
        self.cursor.next = next;
        self.cursor.complete = true;
    }

    /// The revision of a number that the store had counted through `offset`: it grows with the store, and once more
    /// when it becomes final, whoever sends it and how often.
    pub fn revision(&self, offset: u64, last: bool) -> u64 {
        (offset + self.cursor.shift) * 2 + u64::from(last)
    }

    /// The journal has lost its end: revisions go on from where they were.
    pub fn journal_lost(&mut self, end: u64) {
        self.cursor.shift += self.cursor.next.saturating_sub(end);
        self.cursor.next = end;
    }

    /// Whether a window is final.
    pub fn is_final(&self, window: &Window) -> bool {
        window.end() <= self.cursor.watermark
    }

    /// Whether a window has been dropped, and is not to be spoken of any more.
    pub fn is_dropped(&self, window: &Window) -> bool {
        window.start < self.cursor.dropped[window.size.index()]
    }

    /// Notes a window with events.
    pub fn reopen(&mut self, window: Window) {
        if !self.is_final(&window) {
            self.open.insert((window.end(), window));
        }
    }

    /// Late events of a window.
    pub fn late(&self, window: &Window) -> u64 {
        self.late.get(window).copied().unwrap_or(0)
    }

    /// Adds late events of a window. The windows that lie furthest back are forgotten first.
    pub fn add_late(&mut self, window: &Window, count: u64) {
        if count == 0 {
            return;
        }
        *self.late.entry(window.clone()).or_default() += count;
        if self.late.len() > LATE_WINDOWS {
            let oldest = self.late.keys().min_by_key(|window| window.start).cloned();
            oldest.map(|window| self.late.remove(&window));
        }
    }

    /// How far windows are final when everything received before `now` is counted (`caught_up`), or what was received
    /// at `time`. Never goes back.
    pub fn watermark_at(
        &self,
        time: Option<UnixMillis>,
        caught_up: bool,
        now: UnixMillis,
        lateness: UnixMillis,
    ) -> UnixMillis {
        let seen = if caught_up { Some(now - UNDERWAY) } else { time };
        seen.map_or(self.cursor.watermark, |seen| self.cursor.watermark.max(seen - lateness))
    }

    /// Sets the watermark and takes out the windows that are final now, the earliest first.
    pub fn finalize(&mut self, watermark: UnixMillis) -> Vec<Window> {
        self.cursor.watermark = self.cursor.watermark.max(watermark);
        let mut closed = Vec::new();
        while let Some((end, _)) = self.open.first() {
            if *end > self.cursor.watermark {
                break;
            }
            closed.extend(self.open.pop_first().map(|(_, window)| window));
        }
        closed
    }

    /// Windows of each size that the store will drop soon, as `[from, to)` of their starts; empty ones left out.
    pub fn dropping(&self, retention: &Retention, now: UnixMillis) -> Vec<(Size, UnixMillis, UnixMillis)> {
        let sizes = Size::ALL.into_iter().filter_map(|size| {
            let edge = retention.deleted_before(size.tier(), now + AHEAD);
            let from = self.cursor.dropped[size.index()];
            (edge > from).then_some((size, from, edge))
        });
        sizes.collect()
    }

    /// Whether the store may have dropped windows that had no tombstones yet: nobody ran when it was time.
    pub fn missed_drops(&self, retention: &Retention, now: UnixMillis) -> bool {
        Size::ALL.into_iter().any(|size| {
            let dropped = self.cursor.dropped[size.index()];
            dropped != UnixMillis::MIN && retention.deleted_before(size.tier(), now) > dropped
        })
    }

    /// Notes that the windows of a size that start before `edge` are dropped.
    pub fn drop_before(&mut self, size: Size, edge: UnixMillis) {
        self.cursor.dropped[size.index()] = edge;
        self.late.retain(|window, _| window.size != size || window.start >= edge);
        self.open.retain(|(_, window)| window.size != size || window.start >= edge);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{DAY, HOUR, MINUTE};

    const NOW: UnixMillis = 20_000 * DAY + 13 * HOUR;

    fn window(size: Size, start: UnixMillis) -> Window {
        Window { site: "a".into(), size, start }
    }

    fn state() -> State {
        State::new(AggregateCursor::begin("j", 0))
    }

    #[test]
    fn windows_become_final_once_in_order_and_stay_so() {
        let mut state = state();
        for size in [Size::Day, Size::Hour, Size::Minute] {
            state.reopen(window(size, size.floor(NOW)));
        }
        assert!(state.finalize(NOW).is_empty());
        let final_ones = state.finalize(NOW + HOUR);
        assert_eq!(final_ones, [window(Size::Minute, NOW), window(Size::Hour, NOW)]);
        assert!(state.finalize(NOW + HOUR).is_empty());
        assert!(state.finalize(NOW).is_empty() && state.watermark() == NOW + HOUR, "it never goes back");
        state.reopen(window(Size::Minute, NOW));
        assert_eq!(state.finalize(NOW + DAY), [window(Size::Day, Size::Day.floor(NOW))], "what is final stays so");
        assert!(state.revision(7, true) > state.revision(7, false));
        assert!(state.revision(8, false) > state.revision(7, true));
    }

    #[test]
    fn the_watermark_follows_what_is_counted() {
        let state = state();
        let lateness = 5 * MINUTE;
        assert_eq!(state.watermark_at(None, false, NOW, lateness), UnixMillis::MIN);
        assert_eq!(state.watermark_at(Some(NOW - HOUR), false, NOW, lateness), NOW - HOUR - lateness);
        assert_eq!(state.watermark_at(None, true, NOW, lateness), NOW - lateness - UNDERWAY);
    }

    #[test]
    fn what_must_survive_survives() {
        let mut state = state();
        state.finalize(NOW);
        for n in 0..LATE_WINDOWS as i64 + 10 {
            state.add_late(&window(Size::Minute, NOW - n * MINUTE), 2);
        }
        state.add_late(&window(Size::Minute, NOW), 3);
        state.advance(77);
        state.drop_before(Size::Minute, NOW - 10 * MINUTE);
        let again = State::new(AggregateCursor::decode(&state.cursor().encode()).unwrap());
        assert_eq!((again.next(), again.watermark(), again.late(&window(Size::Minute, NOW))), (77, NOW, 5));
        assert!(again.is_dropped(&window(Size::Minute, NOW - HOUR)) && !again.is_dropped(&window(Size::Hour, 0)));
        assert_eq!(again.late.len(), 11);
        assert!(again.late.len() <= LATE_WINDOWS);
        let mut lost = again;
        lost.journal_lost(70);
        assert_eq!(lost.revision(70, false), 154, "as if nothing was lost");
    }

    #[test]
    fn tombstones_come_before_the_store_drops() {
        let retention = Retention { minutes: Some(HOUR), quarters: Some(2 * DAY), days: None };
        let mut state = state();
        let dropping = state.dropping(&retention, NOW);
        assert_eq!(dropping.iter().map(|(size, ..)| *size).collect::<Vec<_>>(), [Size::Minute, Size::Hour]);
        for (size, _, edge) in dropping {
            assert!(edge >= retention.deleted_before(size.tier(), NOW));
            state.drop_before(size, edge);
        }
        assert!(!state.missed_drops(&retention, NOW));
        assert!(state.missed_drops(&retention, NOW + HOUR));
        assert!(state.dropping(&retention, NOW + 4 * MINUTE).is_empty());
        assert_eq!(state.dropping(&retention, NOW + 20 * MINUTE).len(), 1);
    }
}
