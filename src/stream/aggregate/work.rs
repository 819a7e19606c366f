//! One turn of the aggregates' reader: which windows to speak of, and what to say. Reads the statistics; sends nothing.

use std::collections::BTreeMap;

use super::record::{Maker, Run, Standing};
use super::state::State;
use super::touched::{Changed, Touched};
use super::window::{Size, Window};
use crate::clock::UnixMillis;
use crate::stats::rollup::{Rollup, WindowKey};
use crate::stats::{AsOf, Queries, Retention, StatsError};
use crate::stream::outgoing::Outgoing;

/// Windows whose numbers go into one transaction.
const WINDOWS: usize = 60;

/// What is to be said of a window.
#[derive(Clone, Debug)]
pub enum Say {
    /// These numbers of it.
    Numbers(Changed),
    /// That it is gone.
    Gone,
}

/// What is to be said in a turn, and how things stand afterwards.
#[derive(Debug)]
pub struct Plan {
    /// Windows in the order in which they are spoken of.
    pub windows: Vec<(Window, Say)>,
    /// The state once all of it is delivered.
    pub after: State,
}

impl Plan {
    /// Whether there is nothing to say and nothing to note.
    pub fn is_empty(&self, before: &State) -> bool {
        self.windows.is_empty() && self.after.next() == before.next()
    }

    /// In pieces of one transaction each.
    pub fn pieces(&self) -> impl Iterator<Item = &[(Window, Say)]> {
        self.windows.chunks(WINDOWS)
    }
}

/// Plans a turn: what was touched, what has become final by `watermark`, what the store is about to drop.
pub async fn plan(
    queries: &Queries,
    state: &State,
    touched: &Touched,
    watermark: UnixMillis,
    retention: &Retention,
    now: UnixMillis,
) -> Result<Plan, StatsError> {
    let mut after = state.clone();
    let mut windows: Vec<(Window, Say)> = Vec::new();
    for (size, from, edge) in state.dropping(retention, now) {
        // What came before the stream did is looked for from the beginning of time.
        let mut gone: Vec<Window> = queries.windows(size.tier(), from, edge).await?.iter().map(Window::of).collect();
        gone.dedup();
        windows.extend(gone.into_iter().map(|window| (window, Say::Gone)));
        after.drop_before(size, edge);
    }
    let mut changes: BTreeMap<Window, Changed> = BTreeMap::new();
    for (window, (changed, late)) in touched.windows() {
        if after.is_dropped(&window) {
            continue;
        }
        after.add_late(&window, late);
        after.reopen(window.clone());
        changes.insert(window, changed);
    }
    for window in after.finalize(watermark) {
        changes.insert(window, Changed::all());
    }
    windows.extend(changes.into_iter().map(|(window, changed)| (window, Say::Numbers(changed))));
    after.advance(touched.to);
    Ok(Plan { windows, after })
}

/// The records of some windows.
pub async fn records(
    queries: &Queries,
    maker: &Maker,
    instance: &str,
    piece: &[(Window, Say)],
    after: &State,
    now: UnixMillis,
    max_bytes: usize,
) -> Result<Vec<Outgoing>, StatsError> {
    let keys: Vec<WindowKey> = piece.iter().flat_map(|(window, _)| window.parts()).collect();
    let found = queries.rollups(keys).await?;
    let as_of: AsOf = found.as_of;
    let mut rollups: BTreeMap<Window, Rollup> = BTreeMap::new();
    for rollup in found.rollups {
        let window = Window::of(&rollup.key);
        match rollups.get_mut(&window) {
            Some(hour) => hour.merge(&rollup),
            None => drop(rollups.insert(window, rollup)),
        }
    }
    let run = Run { instance, as_of, watermark: after.watermark(), now, max_bytes };
    let mut out = Vec::new();
    for (window, say) in piece {
        // Too old for the store, or of a size that it keeps no more.
        let Some(rollup) = rollups.get(window) else { continue };
        match say {
            Say::Gone => maker.tombstones(&run, window, rollup, &mut out),
            Say::Numbers(changed) => {
                let is_final = after.is_final(window);
                let revision = after.revision(as_of.offset, is_final);
                let standing = Standing { revision, is_final, late: after.late(window) };
                maker.numbers(&run, window, rollup, changed, standing, &mut out);
            }
        }
    }
    Ok(out)
}

/// Everything the store has: what is said when the stream begins.
pub async fn everything(
    queries: &Queries,
    mut after: State,
    watermark: UnixMillis,
    retention: &Retention,
    now: UnixMillis,
) -> Result<Plan, StatsError> {
    for (size, _, edge) in after.dropping(retention, now) {
        after.drop_before(size, edge);
    }
    let mut windows = Vec::new();
    for size in [Size::Day, Size::Hour, Size::Minute] {
        let mut found = existing(queries, size, UnixMillis::MIN).await?;
        found.retain(|window| !after.is_dropped(window));
        windows.extend(found);
    }
    after.finalize(watermark);
    for window in &windows {
        after.reopen(window.clone());
    }
    let next = after.next();
    after.advance(next);
    Ok(Plan { windows: windows.into_iter().map(|window| (window, Say::Numbers(Changed::all()))).collect(), after })
}

/// Finds the windows again that were not final when the cursor was written.
pub async fn reopen(queries: &Queries, state: &mut State) -> Result<(), StatsError> {
    for size in Size::ALL {
        let from = state.watermark().saturating_sub(size.width());
        for window in existing(queries, size, from).await? {
            if !state.is_dropped(&window) {
                state.reopen(window);
            }
        }
    }
    Ok(())
}

async fn existing(queries: &Queries, size: Size, from: UnixMillis) -> Result<Vec<Window>, StatsError> {
    let parts = queries.windows(size.tier(), from, UnixMillis::MAX).await?;
    let mut windows: Vec<Window> = parts.iter().map(Window::of).collect();
    windows.sort();
    windows.dedup();
    Ok(windows)
}
