//! What is looked at by itself, several times a second: whether the file is another one, and whether requests fail since the last
//! change that did not before.

use std::sync::Arc;

use super::handle::{Control, State};
use super::history::How;
use super::judge::{Tally, Totals, Verdict};
use crate::clock::Nanos;
use crate::gateway::Gateway;

/// How long nobody must have written to the file before it is taken: some write it in pieces.
const SETTLED: Nanos = 1_000_000_000;

const EMPTY: &str = "empty";
const NOT_TAKEN: &str = "the config file was changed and is not in force: the log and `tidegate check` say why";
const NOT_TAKEN_BACK: &str = "a change after which requests fail cannot be taken back: the log says why";

impl Control {
    pub(super) fn totals(&self) -> Totals {
        let all = self.0.gateway.as_ref().map(Gateway::totals).unwrap_or_default();
        all.into_iter().map(|(name, requests, failed)| (name, Tally { requests, failed })).collect()
    }

    /// Looks at the file and at errors.
    pub(super) async fn look(&self) {
        let mut state = self.0.state.lock().await;
        let now = self.0.ticks.now();
        if state.judge.wants(now) {
            match state.judge.look(now, self.totals(), &self.0.options) {
                Verdict::Wait => {}
                Verdict::Good => state.good = None,
                Verdict::Harmful { route, before, after } => {
                    let of = route.map(|route| format!(" along route {route}")).unwrap_or_default();
                    let (before, after) = (100.0 * before, 100.0 * after);
                    let version = state.version();
                    let reason =
                        format!("{after:.1} % of requests{of} failed after version {version}, {before:.1} % before");
                    return self.take_back(&mut state, &reason);
                }
            }
        }
        let origin = self.config().origin.clone();
        if !self.0.options.watch_file || origin.file.is_none() {
            return;
        }
        // A file that is not there is about to be replaced, or will be missed at the next start.
        let Ok(Ok(text)) = tokio::task::spawn_blocking(move || origin.text()).await else { return };
        if text == state.seen {
            state.coming = None;
            if state.told.as_deref() == Some(EMPTY) {
                self.mended(&mut state);
            }
            return;
        }
        let since = match &state.coming {
            Some((coming, since)) if *coming == text => *since,
            _ => now,
        };
        if now.saturating_sub(since) < SETTLED {
            state.coming = Some((text, since));
        } else if text.as_deref().is_some_and(|text| text.trim().is_empty()) {
            // A server may start without settings; one that runs has lost them.
            self.0.fault.store(Some(Arc::new(NOT_TAKEN)));
            state.tell(EMPTY, "the file is empty now, and is not taken; to run with defaults, start again");
        } else if let Err(error) = self.take_file(&mut state, "the file", How::File) {
            self.0.fault.store(Some(Arc::new(NOT_TAKEN)));
            let error = error.to_string();
            state.tell(&error, &format!("the file was changed and is not taken:\n{error}"));
        } else {
            self.mended(&mut state);
        }
    }

    fn mended(&self, state: &mut State) {
        state.told = None;
        self.0.fault.store(None);
    }

    /// Goes back to what was in force before it became worse, or to what came before that, where it cannot be had any more.
    fn take_back(&self, state: &mut State, reason: &str) {
        let good = state.good.unwrap_or_else(|| state.version());
        let earlier: Vec<u64> = state.history.versions().iter().map(|known| known.version).collect();
        let mut why = String::from("nothing is known of before");
        for to in earlier.into_iter().rev().filter(|known| *known <= good) {
            let reason = format!("{reason}; back to version {to}");
            match self.go_back(state, to, "the server", How::Automatic, reason.clone()) {
                Ok(_) => {
                    self.mended(state);
                    return log::error!("config: {reason}");
                }
                Err(error) => why = format!("version {to}: {error}"),
            }
        }
        self.0.fault.store(Some(Arc::new(NOT_TAKEN_BACK)));
        state.tell(&why, &format!("{reason}; it cannot be taken back: {why}"));
    }

    /// The latest version before the one in force that means something else.
    pub(super) fn before(&self, state: &State) -> Option<u64> {
        let current = self.config();
        let differs = |version: u64| match state.history.text(version).flatten() {
            Some(text) => current.origin.with_text(text).map_or(true, |config| config.effective != current.effective),
            None => true,
        };
        let earlier = state.history.versions().iter().rev().skip(1);
        earlier.map(|version| version.version).find(|version| differs(*version))
    }
}

impl State {
    /// Logs that something does not work, once for as long as it is for the same reason.
    fn tell(&mut self, why: &str, all: &str) {
        if self.told.as_deref() != Some(why) {
            log::error!("config: {all}");
            self.told = Some(why.to_owned());
        }
    }
}
