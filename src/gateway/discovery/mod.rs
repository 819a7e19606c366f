//! Where an upstream's targets come from: the config, Consul or etcd.
//!
//! A [`Watcher`] follows one registry for one upstream, and tells of each change by a callback, at most one in 100 ms. What a
//! registry says may cost a target, but never all of them (see `keeper`); and the last that it said is kept on disk, for a
//! start while it is down. The work is a supervised task: a panic in it is a restart, and what is known stays.

mod consul;
mod disk;
mod etcd;
mod http;
mod keeper;
mod keys;
mod node;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use actix::ArbiterHandle;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

pub use self::keeper::{Counts, Fault, Origin};
use self::keeper::{Keeper, News};
use self::node::Answer;
use super::backoff::Backoff;
use super::options::{Discovery, TargetOptions};
use super::task::Task;
use crate::clock::{Monotonic, Nanos};

/// The least time between two changes that are told.
const SPACING: Duration = Duration::from_millis(100);
/// How long the registry is waited for at a start before the disk is asked. A fault ends the wait.
const GRACE: Duration = Duration::from_secs(1);
/// The first and the longest wait after failures.
const WAITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How long after a failed write the disk is tried again.
const DISK_AGAIN: Duration = Duration::from_secs(5);
/// What registries are told of who asks.
const USER_AGENT_NAME: &str = "tidegate";

fn backoff() -> Backoff {
    Backoff::new(WAITS.0, WAITS.1)
}

/// How one upstream's discovery is.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// `static`, `consul` or `etcd`.
    pub source: &'static str,
    /// Where the targets are from.
    pub origin: Origin,
    /// How long ago the registry answered last, in a way that counts.
    pub age: Option<Duration>,
    /// What is wrong with the registry. Its text names no addresses.
    pub fault: Option<Fault>,
    /// The targets, each address once, in order.
    pub targets: Vec<TargetOptions>,
    /// Nodes of the last answer that could not be used.
    pub rejected: usize,
    /// Whether the disk holds what is known; `false` too where nothing is to be kept.
    pub saved: bool,
    /// Numbers since the start.
    pub counts: Counts,
    /// Restarts after panics.
    pub restarts: u64,
}

/// Follows the registry of one upstream until it is dropped, and its connections with it.
pub struct Watcher {
    core: Arc<Core>,
    task: Option<Task>,
}

type Tell = dyn Fn(&[TargetOptions]) + Send + Sync;

/// What the handle and the work share.
struct Core {
    name: String,
    discovery: Discovery,
    file: PathBuf,
    clock: Monotonic,
    keeper: Mutex<Keeper>,
    tell: Box<Tell>,
    /// The generation that was told last.
    told: AtomicU64,
    told_at: AtomicU64,
    stopped: AtomicBool,
    /// The generation that is on disk.
    saved: AtomicU64,
    /// There is something to save.
    unsaved: Notify,
    /// The first fault.
    trouble: Notify,
    known: watch::Sender<bool>,
}

impl Watcher {
    /// Follows what `discovery` names for the upstream `name`, on an arbiter. `changed` gets all targets, each address once and
    /// in order, at the start and after each change; it runs on the arbiter's thread (for the config's targets, on this one,
    /// before this returns) and is not to wait. A call that is under way when this is dropped still ends. Must be called within
    /// actix's runtime.
    pub fn start(
        name: &str,
        discovery: &Discovery,
        state_dir: &Path,
        clock: Monotonic,
        arbiter: ArbiterHandle,
        changed: impl Fn(&[TargetOptions]) + Send + Sync + 'static,
    ) -> Self {
        let keeper = match discovery {
            Discovery::Static(targets) => Keeper::fixed(targets),
            Discovery::Consul { .. } | Discovery::Etcd { .. } => Keeper::new(),
        };
        let core = Arc::new(Core {
            name: name.to_owned(),
            discovery: discovery.clone(),
            file: disk::path(state_dir, name),
            clock,
            keeper: Mutex::new(keeper),
            tell: Box::new(changed),
            told: AtomicU64::new(0),
            told_at: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            saved: AtomicU64::new(0),
            unsaved: Notify::new(),
            trouble: Notify::new(),
            known: watch::channel(false).0,
        });
        let task = match discovery {
            Discovery::Static(_) => {
                core.publish();
                None
            }
            Discovery::Consul { .. } | Discovery::Etcd { .. } => {
                let core = core.clone();
                Some(Task::start("discovery", arbiter, move || Box::pin(run(core.clone()))))
            }
        };
        Self { core, task }
    }

    /// Waits until there are targets, wherever from. Without a time-out of the caller's that may be for ever.
    pub async fn known(&self) {
        // The sender lives as long as this.
        let _ = self.core.known.subscribe().wait_for(|known| *known).await;
    }

    /// How it is now.
    pub fn snapshot(&self) -> Snapshot {
        let core = &self.core;
        let now = core.clock.now();
        let keeper = core.keeper.lock();
        Snapshot {
            source: core.source(),
            origin: keeper.origin,
            age: keeper.answered_at.map(|at| Duration::from_nanos(now.saturating_sub(at))),
            fault: keeper.fault.clone(),
            targets: keeper.targets.clone(),
            rejected: keeper.rejected,
            saved: self.task.is_some() && core.saved.load(Ordering::Relaxed) == keeper.generation,
            counts: keeper.counts,
            restarts: self.task.as_ref().map_or(0, Task::restarts),
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.core.stopped.store(true, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watcher").field("name", &self.core.name).finish_non_exhaustive()
    }
}

/// The work: runs until it is dropped.
async fn run(core: Arc<Core>) {
    // A panic may have come between a change and its telling.
    core.publish();
    let follow = async {
        match &core.discovery {
            Discovery::Static(_) => std::future::pending().await,
            Discovery::Consul { address, service, tag, token } => {
                let question = consul::Question { address, service, tag: tag.as_deref(), token: token.as_ref() };
                consul::run(&core, &question).await;
            }
            Discovery::Etcd { endpoints, prefix } => {
                etcd::run(&core, &etcd::Question { endpoints, prefix }).await;
            }
        }
    };
    futures_util::join!(follow, remember(&core), save(&core));
}

/// Asks the disk, when the registry has nothing to say at the start.
async fn remember(core: &Core) {
    let _ = tokio::time::timeout(GRACE, core.trouble.notified()).await;
    if core.keeper.lock().origin != Origin::Nowhere {
        return;
    }
    let (file, question) = (core.file.clone(), core.question());
    let read = tokio::task::spawn_blocking(move || disk::read(&file, &question)).await;
    match read.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
        Ok(targets) => {
            let count = targets.len();
            let mut keeper = core.keeper.lock();
            if !keeper.remembered(targets) {
                return;
            }
            core.saved.store(keeper.generation, Ordering::Relaxed);
            drop(keeper);
            log::warn!(
                "discovery of {}: the {count} targets that were known before the start serve for now",
                core.name
            );
            core.publish();
        }
        Err(error) => log::warn!("discovery of {}: what was known before the start cannot be read: {error}", core.name),
    }
}

/// Keeps the disk up to date.
async fn save(core: &Core) {
    let mut told = false;
    loop {
        let (generation, targets, from) = {
            let keeper = core.keeper.lock();
            (keeper.generation, keeper.targets.clone(), keeper.origin)
        };
        if from != Origin::Registry || core.saved.load(Ordering::Relaxed) == generation {
            core.unsaved.notified().await;
            continue;
        }
        let (file, question) = (core.file.clone(), core.question());
        let write = tokio::task::spawn_blocking(move || disk::write(&file, &question, &targets)).await;
        match write.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
            Ok(()) => {
                core.saved.store(generation, Ordering::Relaxed);
                if std::mem::take(&mut told) {
                    log::info!("discovery of {}: its targets are kept on disk again", core.name);
                }
                tokio::time::sleep(SPACING).await;
            }
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    log::warn!("discovery of {}: its targets cannot be kept on disk: {error}", core.name);
                }
                tokio::time::sleep(DISK_AGAIN).await;
            }
        }
    }
}

impl Core {
    fn source(&self) -> &'static str {
        match self.discovery {
            Discovery::Static(_) => "static",
            Discovery::Consul { .. } => "consul",
            Discovery::Etcd { .. } => "etcd",
        }
    }

    /// What is asked, whoever is asked: what is on disk must be an answer to it.
    fn question(&self) -> String {
        match &self.discovery {
            Discovery::Static(_) => String::new(),
            Discovery::Consul { service, tag: None, .. } => format!("consul {service}"),
            Discovery::Consul { service, tag: Some(tag), .. } => format!("consul {service} {tag}"),
            Discovery::Etcd { prefix, .. } => format!("etcd {prefix}"),
        }
    }

    /// The registry answered.
    fn heard(&self, answer: Answer) {
        let (rejected, nodes, why) = (answer.rejected, answer.nodes, answer.why);
        let now = self.clock.now();
        let (news, faulty) = {
            let mut keeper = self.keeper.lock();
            (keeper.heard(answer, now), keeper.fault.is_some())
        };
        self.report(news, || {
            let why = why.map(|why| why.to_string()).unwrap_or_default();
            format!("{rejected} of {nodes} nodes cannot be used; of the first, {why}")
        });
        if faulty {
            self.trouble.notify_one();
        }
        self.told_at.store(now, Ordering::Relaxed);
        self.publish();
    }

    /// The registry said that nothing has changed.
    fn confirmed(&self) {
        self.keeper.lock().confirmed(self.clock.now());
    }

    /// The registry could not be heard.
    fn failed(&self, fault: Fault) {
        let news = self.keeper.lock().failed(fault);
        self.report(news, String::new);
        self.trouble.notify_one();
    }

    fn report(&self, news: Option<News>, rejects: impl Fn() -> String) {
        let name = &self.name;
        match news {
            None => {}
            Some(News::Began(fault)) => {
                log::warn!("discovery of {name}: {} is not well: {fault}; targets stay as they are", self.source());
            }
            Some(News::Ended) => log::info!("discovery of {name}: {} is well again", self.source()),
            Some(News::Rejects) => log::warn!("discovery of {name}: {}", rejects()),
        }
    }

    /// How long the next change must wait.
    fn until_telling(&self) -> Duration {
        let at: Nanos = self.told_at.load(Ordering::Relaxed);
        SPACING.saturating_sub(Duration::from_nanos(self.clock.now().saturating_sub(at)))
    }

    /// Tells what is known, if it was not told yet.
    fn publish(&self) {
        let (generation, targets) = {
            let keeper = self.keeper.lock();
            if self.told.load(Ordering::Relaxed) == keeper.generation || self.stopped.load(Ordering::Relaxed) {
                return;
            }
            (keeper.generation, keeper.targets.clone())
        };
        (self.tell)(&targets);
        self.told.store(generation, Ordering::Relaxed);
        self.known.send_replace(!targets.is_empty());
        self.unsaved.notify_one();
    }
}
