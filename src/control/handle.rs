//! The handle: changes are made one after the other, and what is in force is published.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Mutex;

use super::audit::{AuditEntry, AuditLog};
use super::history::{self, History, How, Version};
use super::judge::{Judge, Totals, Verdict};
use super::{Applied, ControlError};
use crate::clock::{Clock, Monotonic};
use crate::config::Config;
use crate::config::admin::AdminOptions;
use crate::config::effective::Change;
use crate::gateway::Gateway;

/// How often totals are looked at, and whether the file is another one. Its contents decide: files that are links into a folder
/// that is swapped, and editors that write another file in its place, say nothing by their times.
const LOOK: Duration = Duration::from_millis(250);

/// Keys of `[gateway]` that are of the process' start.
const OF_THE_START: &[&str] = &[
    "gateway.listen",
    "gateway.tls_listen",
    "gateway.tls_cert_file",
    "gateway.tls_key_file",
    "gateway.workers",
    "gateway.max_connections",
    "gateway.access_log",
    "gateway.limiter.",
    "gateway.canaries.",
];

/// Steers a running server. Cheap to clone.
#[derive(Clone)]
pub struct Control(Arc<Inner>);

struct Inner {
    gateway: Option<Gateway>,
    clock: Clock,
    ticks: Monotonic,
    options: AdminOptions,
    audit: AuditLog,
    /// What is in force.
    config: ArcSwap<Config>,
    state: Mutex<State>,
}

struct State {
    history: History,
    /// The file's text as it was last dealt with, taken or refused.
    seen: Option<String>,
    /// A text that was there at the last look: it is taken when it is there at the next one too, and so whole.
    coming: Option<String>,
    judge: Judge,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Control")
    }
}

/// What is brought into force, and how it came.
struct Coming {
    config: Config,
    text: Option<String>,
    who: String,
    how: How,
    reason: Option<String>,
}

impl Control {
    /// Begins with the config that the server started with.
    ///
    /// # Errors
    /// When the data folder cannot be written.
    pub fn start(
        config: Arc<Config>,
        gateway: Option<Gateway>,
        options: AdminOptions,
        clock: Clock,
    ) -> Result<Self, ControlError> {
        let disk = |what| move |error| ControlError::Disk { what, error };
        let mut history = History::open(&config.data.join("config")).map_err(disk("the history of the config"))?;
        let audit = AuditLog::open(&config.data.join("audit.log")).map_err(disk("the log of changes"))?;
        let text = config.origin.text()?;
        let latest = history.latest().map(|latest| latest.version);
        if latest.and_then(|latest| history.text(latest)) != Some(text.clone()) {
            let version = Version {
                version: 0,
                at: clock.now(),
                who: String::from("start"),
                how: How::Start,
                reason: None,
                changes: Vec::new(),
            };
            history.add(version, text.clone()).map_err(disk("the history of the config"))?;
        }
        let state = State { history, seen: text, coming: None, judge: Judge::default() };
        let ticks = gateway.as_ref().map_or_else(Monotonic::system, |gateway| gateway.clock().clone());
        let inner =
            Inner { gateway, clock, ticks, options, audit, config: ArcSwap::new(config), state: Mutex::new(state) };
        let this = Self(Arc::new(inner));
        let weak = Arc::downgrade(&this.0);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK).await;
                let Some(inner) = weak.upgrade() else { break };
                Self(inner).look().await;
            }
        });
        Ok(this)
    }

    /// What is in force.
    pub fn config(&self) -> Arc<Config> {
        self.0.config.load_full()
    }

    /// The version in force, and all that are kept, the latest first.
    pub async fn history(&self) -> (u64, Vec<Version>) {
        let state = self.0.state.lock().await;
        (state.version(), state.history.versions().iter().rev().cloned().collect())
    }

    /// Notes a change that somebody made to something else.
    ///
    /// # Errors
    /// When it cannot be written; then it must not be made.
    pub fn note(&self, entry: &AuditEntry<'_>) -> Result<(), ControlError> {
        let written = self.0.audit.write(self.0.clock.now(), entry);
        written.map_err(|error| ControlError::Disk { what: "the log of changes", error })
    }

    /// Reads the file again.
    ///
    /// # Errors
    /// With every mistake; then nothing has changed.
    pub async fn reload(&self, who: &str) -> Result<Applied, ControlError> {
        let mut state = self.0.state.lock().await;
        self.take_file(&mut state, who, How::Signal)
    }

    /// Takes this text, which becomes the file's. `expected` is the version that whoever sends it has read.
    ///
    /// # Errors
    /// With every mistake, or when somebody was faster; then nothing has changed.
    pub async fn put(&self, text: String, expected: Option<u64>, who: &str) -> Result<Applied, ControlError> {
        let mut state = self.0.state.lock().await;
        let current = state.version();
        if expected.is_some_and(|expected| expected != current) {
            return Err(ControlError::Conflict(current));
        }
        let origin = &self.config().origin;
        let file = origin.file.clone().ok_or(ControlError::NoFile)?;
        let config = origin.with_text(text.clone())?;
        let coming = Coming { config, text: Some(text.clone()), who: who.to_owned(), how: How::Api, reason: None };
        let applied = self.bring(&mut state, coming)?;
        // After the history: whoever starts after a crash in between starts with what was good.
        write_file(&mut state, &file, text)?;
        Ok(applied)
    }

    /// Goes back to a version, or to the one before that in force.
    ///
    /// # Errors
    /// When there is none, or it cannot be put in force any more.
    pub async fn rollback(&self, to: Option<u64>, who: &str) -> Result<Applied, ControlError> {
        let mut state = self.0.state.lock().await;
        self.go_back(&mut state, to, who, How::Rollback, None)
    }

    fn go_back(
        &self,
        state: &mut State,
        to: Option<u64>,
        who: &str,
        how: How,
        reason: Option<String>,
    ) -> Result<Applied, ControlError> {
        let to = match to {
            Some(to) => to,
            None => state.before().ok_or(ControlError::NothingBefore)?,
        };
        let text = state.history.text(to).ok_or(ControlError::NoVersion(to))?;
        let origin = self.config().origin.clone();
        let config = match &text {
            Some(text) => origin.with_text(text.clone())?,
            None => origin.read()?,
        };
        let reason = Some(reason.unwrap_or_else(|| format!("back to version {to}")));
        let coming = Coming { config, text: text.clone(), who: who.to_owned(), how, reason };
        let applied = self.bring(state, coming)?;
        if let (Some(file), Some(text)) = (&origin.file, text)
            && let Err(error) = write_file(state, file, text)
        {
            // In force it is. A file that others manage may be one that we cannot write.
            log::warn!("config: version {to} is in force, but the file still says something else: {error}");
        }
        Ok(applied)
    }

    fn take_file(&self, state: &mut State, who: &str, how: How) -> Result<Applied, ControlError> {
        let origin = self.config().origin.clone();
        let text = origin.text()?;
        state.seen.clone_from(&text);
        state.coming = None;
        let config = match &text {
            Some(text) => origin.with_text(text.clone())?,
            None => origin.read()?,
        };
        self.bring(state, Coming { config, text, who: who.to_owned(), how, reason: None })
    }

    /// Brings a config into force, as far as a running process can.
    fn bring(&self, state: &mut State, coming: Coming) -> Result<Applied, ControlError> {
        let inner = &*self.0;
        let before = inner.config.load_full();
        let changes = before.effective.changes(&coming.config.effective);
        let restart = waits_for_restart(&changes, inner.gateway.is_some());
        let Coming { config, text, who, how, reason } = coming;
        if changes.is_empty() {
            return Ok(Applied { version: state.version(), changes, restart });
        }
        if let Some(gateway) = &inner.gateway {
            gateway.apply(config.gateway.clone()).map_err(|error| ControlError::Start(error.to_string()))?;
        }
        let entry = AuditEntry {
            who: &who,
            action: "config.apply",
            target: "config",
            detail: serde_json::json!({ "how": how, "reason": reason, "changes": changes, "restart": restart }),
        };
        let version =
            Version { version: 0, at: inner.clock.now(), who: who.clone(), how, reason, changes: changes.clone() };
        let kept = self.note(&entry).and_then(|()| {
            let added = state.history.add(version, text);
            added.map_err(|error| ControlError::Disk { what: "the history of the config", error })
        });
        let version = match kept {
            Ok(version) => version,
            Err(error) => {
                // What cannot be told of and taken back is not done.
                if let Some(gateway) = &inner.gateway
                    && let Err(error) = gateway.apply(before.gateway.clone())
                {
                    log::error!("config: what was in force cannot be put back: {error}");
                }
                return Err(error);
            }
        };
        inner.config.store(Arc::new(config));
        if how != How::Automatic {
            state.judge.changed(inner.ticks.now(), self.totals());
        }
        log::info!("config: version {version} is in force, by {who}: {} settings changed", changes.len());
        if !restart.is_empty() {
            log::warn!("config: these wait for the next start: {}", restart.join(", "));
        }
        Ok(Applied { version, changes, restart })
    }

    fn totals(&self) -> Totals {
        let (requests, failed) = self.0.gateway.as_ref().map_or((0, 0), Gateway::totals);
        Totals { requests, failed }
    }

    /// Looks at the file and at errors.
    async fn look(&self) {
        let mut state = self.0.state.lock().await;
        let verdict = state.judge.look(self.0.ticks.now(), self.totals(), &self.0.options);
        if let Verdict::Harmful { before, after } = verdict {
            let reason = format!(
                "{:.1} % of requests failed after version {}, {:.1} % before",
                100.0 * after,
                state.version(),
                100.0 * before
            );
            log::error!("config: {reason}; it is taken back");
            if let Err(error) = self.go_back(&mut state, None, "the server", How::Automatic, Some(reason)) {
                log::error!("config: it cannot be taken back: {error}");
            }
            return;
        }
        if !self.0.options.watch_file || self.config().origin.file.is_none() {
            return;
        }
        // A file that is not there is about to be replaced, or will be missed at the next start.
        let Ok(text) = self.config().origin.text() else { return };
        if text == state.seen {
            state.coming = None;
        } else if text != state.coming {
            state.coming = text;
        } else if let Err(error) = self.take_file(&mut state, "the file", How::File) {
            log::error!("config: the file was changed and is not taken:\n{error}");
        }
    }
}

impl State {
    fn version(&self) -> u64 {
        self.history.latest().map_or(0, |latest| latest.version)
    }

    /// The latest version before the one in force that says something else.
    fn before(&self) -> Option<u64> {
        let current = self.history.text(self.version());
        let earlier = self.history.versions().iter().rev().skip(1);
        earlier.map(|version| version.version).find(|version| self.history.text(*version) != current)
    }
}

fn write_file(state: &mut State, file: &PathBuf, text: String) -> Result<(), ControlError> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(file).map_or(0o600, |meta| meta.permissions().mode() & 0o777);
    history::write(file, text.as_bytes(), mode)
        .map_err(|error| ControlError::Disk { what: "the config file", error })?;
    state.seen = Some(text);
    state.coming = None;
    Ok(())
}

/// Keys whose change a running process cannot follow.
fn waits_for_restart(changes: &[Change], has_gateway: bool) -> Vec<String> {
    let of_the_start = |key: &str| {
        !has_gateway
            || !key.starts_with("gateway.")
            || OF_THE_START.iter().any(|start| match start.strip_suffix('.') {
                Some(_) => key.starts_with(start),
                None => key == *start,
            })
    };
    changes.iter().filter(|change| of_the_start(&change.key)).map(|change| change.key.clone()).collect()
}
