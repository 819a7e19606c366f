//! The handle: changes are made one after the other, and what is in force is published.

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use futures_util::FutureExt;
use tokio::sync::Mutex;

use super::audit::{AuditEntry, AuditLog};
use super::disk::{self, Fresh};
use super::history::{History, How, Version};
use super::judge::Judge;
use super::{Applied, ControlError};
use crate::clock::{Clock, Monotonic, Nanos};
use crate::config::Config;
use crate::config::admin::AdminOptions;
use crate::config::effective::{Change, changes_between};
use crate::config::live::{LiveConfig, follows};
use crate::gateway::Gateway;
use crate::gateway::breaker::{Forced, State as BreakerState};

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
pub struct Control(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub gateway: Option<Gateway>,
    clock: Clock,
    pub ticks: Monotonic,
    pub options: AdminOptions,
    audit: AuditLog,
    /// What the process was started with.
    start: Arc<Config>,
    /// What is in force.
    config: ArcSwap<Config>,
    /// What requests see of it.
    live: LiveConfig,
    /// What is wrong, for health; the log says more.
    pub fault: ArcSwapOption<&'static str>,
    pub state: Mutex<State>,
}

pub(super) struct State {
    pub history: History,
    /// The file's text as it was last dealt with, taken or refused.
    pub seen: Option<String>,
    /// Another text, and since when it is there: it is taken when nobody has written for a while, and so whole.
    pub coming: Option<(Option<String>, Nanos)>,
    pub judge: Judge,
    /// What was in force before the first change that is not yet known to be good: there it goes back to.
    pub good: Option<u64>,
    /// Why it could not go back, or take the file, as it was last told.
    pub told: Option<String>,
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

/// Gives the config file what it is owed, where a server died between putting a version in force and writing the file: true if
/// the config has to be read again. The data folder must be ours.
///
/// # Errors
/// When the history cannot be read.
pub fn make_up(config: &Config) -> Result<bool, ControlError> {
    let folder = config.data.join("config");
    let Some(file) = config.origin.file.as_ref().filter(|_| folder.exists()) else { return Ok(false) };
    let history = History::open(&folder).map_err(disk_error("the history of the config"))?;
    let now = config.origin.text()?;
    let Some((version, text)) = history.owed(now.as_deref()) else { return Ok(false) };
    let written = disk::write(&really(file), text.as_bytes(), mode_of(file));
    match &written {
        Ok(()) => log::warn!("config: the file is at version {version} now, which was in force when the server died"),
        // It may be managed by others.
        Err(error) => log::warn!("config: version {version} was in force, but the file cannot be written: {error}"),
    }
    history.settle().map_err(disk_error("the history of the config"))?;
    Ok(written.is_ok())
}

fn disk_error(what: &'static str) -> impl FnOnce(std::io::Error) -> ControlError {
    move |error| ControlError::Disk { what, error }
}

/// Where the config file really is: a link to it stays a link.
fn really(file: &Path) -> std::path::PathBuf {
    std::fs::canonicalize(file).unwrap_or_else(|_| file.to_owned())
}

fn mode_of(file: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(file).map_or(0o600, |meta| meta.permissions().mode() & 0o777)
}

impl Control {
    /// Begins with the config that the server started with. What requests see of later ones is published to `live`.
    ///
    /// # Errors
    /// When the data folder cannot be written.
    pub fn start(
        config: Arc<Config>,
        live: LiveConfig,
        gateway: Option<Gateway>,
        options: AdminOptions,
        clock: Clock,
    ) -> Result<Self, ControlError> {
        let of_history = || disk_error("the history of the config");
        let mut history = History::open(&config.data.join("config")).map_err(of_history())?;
        history.settle().map_err(of_history())?;
        let audit = AuditLog::open(&config.data.join("audit.log")).map_err(disk_error("the log of changes"))?;
        let text = config.origin.text()?;
        let latest = history.latest().map(|latest| latest.version);
        let known = latest.and_then(|latest| history.text(latest));
        if known != Some(text.clone()) {
            // Made while no server ran: who it was is not known.
            let before = known.flatten().and_then(|text| config.origin.with_foreign("history", text).ok());
            let changes = before.map(|before| before.effective.changes(&config.effective)).unwrap_or_default();
            if !changes.is_empty() {
                let detail = serde_json::json!({ "how": How::Start, "changes": changes });
                let entry = AuditEntry { who: "start", action: "config.apply", target: "config", detail };
                audit.write(clock.now(), &entry).map_err(disk_error("the log of changes"))?;
            }
            let version = Version {
                version: 0,
                at: clock.now(),
                who: String::from("start"),
                how: How::Start,
                reason: None,
                changes,
            };
            history.add(version, text.clone()).map_err(of_history())?;
        }
        let state = State { history, seen: text, coming: None, judge: Judge::default(), good: None, told: None };
        let ticks = gateway.as_ref().map_or_else(Monotonic::system, |gateway| gateway.clock().clone());
        let inner = Inner {
            gateway,
            clock,
            ticks,
            options,
            audit,
            start: config.clone(),
            config: ArcSwap::new(config),
            live,
            fault: ArcSwapOption::empty(),
            state: Mutex::new(state),
        };
        let this = Self(Arc::new(inner));
        let weak = Arc::downgrade(&this.0);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK).await;
                let Some(inner) = weak.upgrade() else { break };
                // Whatever goes wrong with one file must not leave the next one unread, and harm unseen.
                if AssertUnwindSafe(Self(inner).look()).catch_unwind().await.is_err() {
                    log::error!("config: looking after it panicked; it goes on");
                }
            }
        });
        Ok(this)
    }

    /// What is in force.
    pub fn config(&self) -> Arc<Config> {
        self.0.config.load_full()
    }

    /// What is wrong with the config: for whoever may know no more of it.
    pub fn fault(&self) -> Option<&'static str> {
        self.0.fault.load().as_deref().copied()
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
        self.write(entry)?;
        log::info!("{} of {}, by {}", entry.action, entry.target, entry.who);
        Ok(())
    }

    fn write(&self, entry: &AuditEntry<'_>) -> Result<(), ControlError> {
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

    /// Takes this text, which becomes the file's; mistakes in it call it `name`. `expected` is the version that whoever sends it
    /// has read.
    ///
    /// # Errors
    /// With every mistake, or when somebody was faster; then nothing has changed.
    pub async fn put(
        &self,
        text: String,
        name: &str,
        expected: Option<u64>,
        who: &str,
    ) -> Result<Applied, ControlError> {
        let mut state = self.0.state.lock().await;
        let current = state.version();
        if expected.is_some_and(|expected| expected != current) {
            return Err(ControlError::Conflict(current));
        }
        let origin = &self.config().origin;
        let file = origin.file.clone().ok_or(ControlError::NoFile)?;
        let config = origin.with_foreign(name, text.clone())?;
        // Somebody's edit that is not yet in force would be lost without a word.
        if origin.text()? != state.seen {
            return Err(ControlError::FileChanged);
        }
        let coming = Coming { config, text: Some(text.clone()), who: who.to_owned(), how: How::Api, reason: None };
        // Before anything is changed: a file that cannot be written is a change that cannot be made.
        let fresh =
            Fresh::write(&really(&file), text.as_bytes(), mode_of(&file)).map_err(disk_error("the config file"))?;
        let written = self.bring_and_place(&mut state, coming, Some((fresh, text)));
        written.and_then(|(applied, placed)| placed.map(|()| applied).map_err(disk_error("the config file")))
    }

    /// Goes back to a version, or to the one before that in force.
    ///
    /// # Errors
    /// When there is none, or it cannot be put in force any more.
    pub async fn rollback(&self, to: Option<u64>, who: &str) -> Result<Applied, ControlError> {
        let mut state = self.0.state.lock().await;
        let to = match to {
            Some(to) => to,
            None => self.before(&state).ok_or(ControlError::NothingBefore)?,
        };
        self.go_back(&mut state, to, who, How::Rollback, format!("back to version {to}"))
    }

    pub(super) fn go_back(
        &self,
        state: &mut State,
        to: u64,
        who: &str,
        how: How,
        reason: String,
    ) -> Result<Applied, ControlError> {
        let text = state.history.text(to).ok_or(ControlError::NoVersion(to))?;
        let origin = self.config().origin.clone();
        let config = match &text {
            Some(text) => origin.with_foreign(&format!("version {to}"), text.clone())?,
            None => origin.read()?,
        };
        let coming = Coming { config, text: text.clone(), who: who.to_owned(), how, reason: Some(reason) };
        let is_seen = origin.text().is_ok_and(|now| now == state.seen);
        let fresh = match (&origin.file, text) {
            (Some(_), Some(_)) if !is_seen => Err(std::io::Error::other("somebody has changed it meanwhile")),
            (Some(file), Some(text)) => {
                Fresh::write(&really(file), text.as_bytes(), mode_of(file)).map(|fresh| Some((fresh, text)))
            }
            _ => Ok(None),
        };
        let (applied, placed) = match fresh {
            Ok(fresh) => self.bring_and_place(state, coming, fresh)?,
            Err(error) => (self.bring(state, coming)?, Err(error)),
        };
        if let Err(error) = placed {
            // In force it is. A file that others manage may be one that we cannot write.
            log::warn!("config: version {to} is in force, but the file still says something else: {error}");
        }
        Ok(applied)
    }

    /// Brings a config into force, and its text into the file. The history comes first: whoever starts after a crash in between
    /// makes up for it.
    fn bring_and_place(
        &self,
        state: &mut State,
        coming: Coming,
        fresh: Option<(Fresh, String)>,
    ) -> Result<(Applied, std::io::Result<()>), ControlError> {
        let Some((fresh, text)) = fresh else { return Ok((self.bring(state, coming)?, Ok(()))) };
        let promised = match state.history.promise(state.seen.as_deref()) {
            // Harm does not wait for room on a disk.
            Err(error) if coming.how == How::Automatic => {
                fresh.discard();
                return Ok((self.bring(state, coming)?, Err(error)));
            }
            promised => promised.map_err(disk_error("the history of the config")),
        };
        let applied = match promised.and_then(|()| self.bring(state, coming)) {
            Ok(applied) => applied,
            Err(error) => {
                fresh.discard();
                // What is left behind asks for a version that is not there.
                let _ = state.history.settle();
                return Err(error);
            }
        };
        let placed = fresh.place();
        if placed.is_ok() {
            state.seen = Some(text);
            state.coming = None;
        }
        let settled = state.history.settle();
        Ok((applied, placed.and(settled)))
    }

    pub(super) fn take_file(&self, state: &mut State, who: &str, how: How) -> Result<Applied, ControlError> {
        let origin = self.config().origin.clone();
        let text = origin.text()?;
        let config = match &text {
            Some(text) => origin.with_text(text.clone()),
            None => origin.read(),
        };
        let taken = config.map_err(ControlError::from).and_then(|config| {
            self.bring(state, Coming { config, text: text.clone(), who: who.to_owned(), how, reason: None })
        });
        // What only the disk did not take is tried again.
        if !matches!(taken, Err(ControlError::Disk { .. })) {
            state.seen = text;
            state.coming = None;
        }
        taken
    }

    /// Brings a config into force, as far as a running process can.
    fn bring(&self, state: &mut State, coming: Coming) -> Result<Applied, ControlError> {
        let inner = &*self.0;
        let before = inner.config.load_full();
        coming.config.fits(&inner.start)?;
        let changes = changes_between(&before, &coming.config);
        // What is again as the process began with it waits for nothing.
        let of_start = changes_between(&inner.start, &coming.config);
        let pending: Vec<Change> =
            changes.iter().filter(|change| of_start.iter().any(|other| other.key == change.key)).cloned().collect();
        let restart = waits_for_restart(&pending, inner.gateway.is_some());
        let Coming { config, text, who, how, reason } = coming;
        if changes.is_empty() {
            return Ok(Applied { version: state.version(), changes, restart });
        }
        let (outgoing, were) = (state.version(), self.totals());
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
        // Only what a file says that the config names is another: no version to go back to.
        let is_version = before.effective != config.effective;
        let kept = self.write(&entry).and_then(|()| {
            if !is_version {
                return Ok(state.version());
            }
            let added = state.history.add(version, text);
            added.map_err(|error| ControlError::Disk { what: "the history of the config", error })
        });
        let version = match kept {
            Ok(version) => version,
            // But harm does not wait for room on a disk.
            Err(error) if how == How::Automatic => {
                log::error!("config: {error}; what was good is in force again, but not after the next start");
                outgoing
            }
            Err(error) => {
                // What cannot be told of and taken back is not done.
                let undone = AuditEntry { action: "config.undone", ..entry };
                let _ = self.write(&undone);
                if let Some(gateway) = &inner.gateway
                    && let Err(error) = gateway.apply(before.gateway.clone())
                {
                    log::error!("config: what was in force cannot be put back: {error}");
                }
                return Err(error);
            }
        };
        if matches!(how, How::Automatic | How::Rollback) {
            self.forget_failures(&changes);
        }
        // Last, and at once: what requests see never has to be taken back.
        let config = Arc::new(config);
        inner.config.store(config.clone());
        inner.live.publish(config.live.clone());
        if how == How::Automatic {
            state.judge.taken_back();
            state.good = None;
        } else if is_version {
            state.judge.changed(inner.ticks.now(), &were, self.totals());
            state.good.get_or_insert(outgoing);
        }
        log::info!("config: version {version} is in force, by {who}: {} settings changed", changes.len());
        if !restart.is_empty() {
            log::warn!("config: these wait for the next start: {}", restart.join(", "));
        }
        Ok(Applied { version, changes, restart })
    }
}

impl Control {
    /// What failed by a change that is taken back must not be held against what was there before: breakers of upstreams that it
    /// had changed begin anew.
    fn forget_failures(&self, changes: &[Change]) {
        let Some(gateway) = &self.0.gateway else { return };
        let table = gateway.table();
        for (name, service) in &table.services {
            let prefix = format!("gateway.upstreams.{name}.");
            let state = service.upstream().snapshot().breaker.map(|breaker| breaker.state);
            let is_forced = matches!(state, Some(BreakerState::ForcedOpen | BreakerState::ForcedClosed));
            if changes.iter().any(|change| change.key.starts_with(&prefix)) && !is_forced {
                service.upstream().force(Some(Forced::Closed));
                service.upstream().force(None);
            }
        }
    }
}

impl State {
    pub fn version(&self) -> u64 {
        self.history.latest().map_or(0, |latest| latest.version)
    }
}

/// Keys whose change a running process cannot follow.
fn waits_for_restart(changes: &[Change], has_gateway: bool) -> Vec<String> {
    let is_of_the_start = |key: &str| {
        OF_THE_START.iter().any(|start| match start.strip_suffix('.') {
            Some(_) => key.starts_with(start),
            None => key == *start,
        })
    };
    let is_the_gateways = |key: &str| has_gateway && key.starts_with("gateway.") && !is_of_the_start(key);
    let waiting = changes.iter().filter(|change| !follows(&change.key) && !is_the_gateways(&change.key));
    waiting.map(|change| change.key.clone()).collect()
}
