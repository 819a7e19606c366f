//! The keeper of all canaries of a gateway: it has where they stand on disk, and in Redis where instances share it. Nothing
//! waits for it but orders, which wait for the disk.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use actix::ArbiterHandle;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::disk;
use super::exchange::Exchange;
use super::former::{Former, Gone};
use super::handle::{Beginning, Canary};
use super::ledger::{Kept, Message};
use super::options::CanaryOptions;
use crate::clock::{Clock, Monotonic, Stopwatch};
use crate::durable;
use crate::gateway::options::{Destination, GatewayOptions};
use crate::gateway::task::Task;

/// How often it is looked what other instances did; what this one did is told at once.
const POLL: Duration = Duration::from_secs(1);
/// How long a release of which nothing is known waits for Redis before it begins.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it is looked for those that have waited for so long.
const WATCH: Duration = Duration::from_millis(100);
/// How often others may be there sooner before it is left to the next look.
const ATTEMPTS: usize = 8;
/// How long after a failure the disk is tried again.
const DISK_AGAIN: Duration = Duration::from_secs(5);

/// The canaries of a gateway, as they are kept and shared. Cheap to clone; what looks after them ends with the last.
#[derive(Clone)]
pub struct Canaries(Arc<Handle>);

struct Handle {
    core: Arc<Core>,
    _task: Task,
}

/// What the handle and the work share.
struct Core {
    bell: Arc<Bell>,
    file: PathBuf,
    exchange: Option<Exchange>,
    clock: Monotonic,
    wall: Clock,
    arbiter: ArbiterHandle,
    there: Mutex<There>,
    faults: Mutex<CanaryFaults>,
}

/// What there is to keep. In one lock, so that whoever writes it sees each release in one of both.
#[derive(Default)]
struct There {
    current: Vec<Canary>,
    /// Those that were there before a change of the config, which may be taken back, or before the start.
    former: Former,
}

/// What keeps canaries from being kept or shared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CanaryFaults {
    /// Why their state cannot be written.
    pub disk: Option<String>,
    /// Why it cannot be shared.
    pub redis: Option<String>,
}

impl std::fmt::Debug for Canaries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Canaries")
    }
}

/// By which canaries say that there is something to keep and to tell.
#[derive(Debug)]
pub(super) struct Bell {
    shares: bool,
    seed: u64,
    /// Counts what is to be saved.
    rung: AtomicU64,
    /// As of that, all is saved.
    saved: watch::Sender<u64>,
    disk: Notify,
    redis: Notify,
}

impl Bell {
    pub fn new(shares: bool, seed: u64) -> Self {
        let (disk, redis) = (Notify::new(), Notify::new());
        Self { shares, seed, rung: AtomicU64::new(0), saved: watch::Sender::new(0), disk, redis }
    }

    /// Whether instances share.
    pub fn shares(&self) -> bool {
        self.shares
    }

    /// A number that no other process has.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// There is something to keep and to tell.
    pub fn ring(&self) {
        self.to_disk();
        self.redis.notify_one();
    }

    /// There is something to keep.
    pub fn to_disk(&self) {
        self.rung.fetch_add(1, Ordering::AcqRel);
        self.disk.notify_one();
    }

    pub fn is_saved(&self) -> bool {
        *self.saved.borrow() >= self.rung.load(Ordering::Acquire)
    }

    /// Waits until the disk has all that there is to keep now.
    pub async fn saved(&self) {
        let rung = self.rung.load(Ordering::Acquire);
        // The sender lives as long as this.
        let _ = self.saved.subscribe().wait_for(|saved| *saved >= rung).await;
    }
}

impl Canaries {
    /// Reads what is on disk, and starts to look after them on an arbiter. A file that cannot be read is told, and no more.
    /// Must be called within actix's runtime.
    ///
    /// # Errors
    /// When Redis' address makes no sense.
    pub(in crate::gateway) fn start(
        options: &GatewayOptions,
        clock: Monotonic,
        wall: Clock,
        arbiter: ArbiterHandle,
    ) -> io::Result<Self> {
        let exchange = if options.share_canaries { Exchange::new(&options.limiter) } else { Ok(None) };
        let exchange = exchange.map_err(io::Error::other)?;
        let (seed, _) = uuid::Uuid::new_v4().as_u64_pair();
        let file = options.state_dir.join(disk::NAME);
        let found = disk::read(&file).unwrap_or_else(|error| {
            log::warn!("where canaries stood cannot be read in {}, so they begin anew: {error}", file.display());
            disk::Canaries::default()
        });
        for fault in &found.faults {
            log::warn!("where a canary stood makes no sense in {}, so it begins anew: {fault}", file.display());
        }
        let former = Former::new(found.former, found.kept.into_iter(), wall.now());
        let core = Arc::new(Core {
            bell: Arc::new(Bell::new(exchange.is_some(), seed)),
            file,
            exchange,
            clock,
            wall,
            arbiter: arbiter.clone(),
            there: Mutex::new(There { current: Vec::new(), former }),
            faults: Mutex::default(),
        });
        let work = core.clone();
        let task = Task::start("canaries", arbiter, move || Box::pin(run(work.clone())));
        Ok(Self(Arc::new(Handle { core, _task: task })))
    }

    /// Begins a release along a route, or goes on with it where it was when the process ended or another took its place.
    pub(in crate::gateway) fn begin(&self, route: &str, to: &Destination, options: &CanaryOptions) -> Canary {
        let core = &self.0.core;
        let release = options.identity(to);
        let (kept, known) = {
            let former = &mut core.there.lock().former;
            (former.find(route, &release, core.wall.now()), former.knows(route))
        };
        match &kept {
            Some(Kept { state, .. }) => {
                let (at, weight) = (crate::clock::rfc3339(state.since), state.weight);
                log::info!("the canary of route {route} is where it was: {weight}, {:?}, since {at}", state.phase);
            }
            None if known => log::info!("the canary of route {route} begins anew: it is another than was there"),
            None => {}
        }
        let beginning = Beginning { route, release, options, kept, bell: core.bell.clone() };
        Canary::start(beginning, core.clock.clone(), core.wall.clone(), core.arbiter.clone())
    }

    /// These are there from now on, and no others.
    pub(in crate::gateway) fn set(&self, canaries: Vec<Canary>) {
        let core = &self.0.core;
        let now = core.wall.now();
        let mut there = core.there.lock();
        let before = std::mem::replace(&mut there.current, canaries);
        let There { current, former } = &mut *there;
        for gone in before {
            let (route, kept, handle) = (gone.route().to_owned(), gone.kept(), gone.downgrade());
            former.add(Gone { route, since: now, kept, handle });
        }
        for canary in &*current {
            former.remove(canary.route(), canary.release());
        }
        former.tidy(now);
        drop(there);
        core.bell.ring();
    }

    /// Waits until it is known what instances share; whether it is in time. Where they share nothing, it is.
    pub async fn known(&self, within: Duration) -> bool {
        let waited = Stopwatch::start();
        while !self.0.core.current().iter().all(Canary::is_asked) {
            if waited.elapsed() > within {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        true
    }

    /// What is the matter.
    pub fn faults(&self) -> CanaryFaults {
        self.0.core.faults.lock().clone()
    }

    /// Waits until the disk has them, if it takes them before the deadline.
    pub async fn stop(&self, deadline: Duration) {
        if self.faults().disk.is_none() && tokio::time::timeout(deadline, self.0.core.bell.saved()).await.is_err() {
            log::warn!("where canaries stand was not written within {} ms", deadline.as_millis());
        }
    }
}

impl Core {
    fn current(&self) -> Vec<Canary> {
        self.there.lock().current.clone()
    }

    /// What there is to keep, with all that has left.
    fn text(&self) -> io::Result<Option<Vec<u8>>> {
        let (kept, former) = {
            let there = &mut *self.there.lock();
            let current = there.current.iter();
            let kept: BTreeMap<_, _> = current.map(|canary| (canary.route().to_owned(), canary.kept())).collect();
            there.former.tidy(self.wall.now());
            (kept, there.former.all())
        };
        let text = disk::text(&kept, &former)?;
        // A gateway without canaries needs no file.
        let is_of_use = !kept.is_empty() || !former.is_empty() || self.file.exists();
        Ok(is_of_use.then_some(text))
    }
}

/// The work: runs until it is dropped.
async fn run(core: Arc<Core>) {
    futures_util::join!(save(&core), share(&core), open(&core));
}

/// Keeps the disk up to date.
async fn save(core: &Core) {
    let mut written = None;
    loop {
        let rung = core.bell.rung.load(Ordering::Acquire);
        let saved = async {
            // Before the table is made it is not known who is there.
            let text = if rung == 0 { None } else { core.text()? };
            let Some(text) = text.filter(|text| written.as_ref() != Some(text)) else { return Ok(()) };
            let (file, bytes) = (core.file.clone(), text.clone());
            let write = tokio::task::spawn_blocking(move || durable::write_with_folder(&file, &bytes)).await;
            write.unwrap_or_else(|error| Err(io::Error::other(error)))?;
            written = Some(text);
            Ok::<_, io::Error>(())
        };
        let outcome = saved.await;
        let fault = outcome.as_ref().err().map(io::Error::to_string);
        let before = std::mem::replace(&mut core.faults.lock().disk, fault.clone());
        match (&fault, before) {
            (Some(fault), None) => log::warn!(
                "where canaries stand cannot be kept in {}: {fault}; with a restart they would be where they were before",
                core.file.display()
            ),
            (None, Some(_)) => log::info!("where canaries stand is kept on disk again"),
            _ => {}
        }
        if fault.is_some() {
            let _ = tokio::time::timeout(DISK_AGAIN, core.bell.disk.notified()).await;
            continue;
        }
        core.bell.saved.send_replace(rung);
        core.bell.disk.notified().await;
    }
}

/// Tells other instances, and hears of them.
async fn share(core: &Core) {
    let Some(exchange) = &core.exchange else { return };
    loop {
        let fault = match round(core, exchange).await {
            Ok(faults) => faults.into_iter().next(),
            Err(error) => Some(error.to_string()),
        };
        let before = std::mem::replace(&mut core.faults.lock().redis, fault.clone());
        match (&fault, before) {
            (Some(fault), None) => log::warn!("canaries cannot be shared, so each instance goes on by itself: {fault}"),
            (None, Some(_)) => log::info!("canaries are shared again"),
            _ => {}
        }
        let _ = tokio::time::timeout(POLL, core.bell.redis.notified()).await;
    }
}

async fn round(core: &Core, exchange: &Exchange) -> Result<Vec<String>, crate::redis::StoreError> {
    let canaries = core.current();
    let all = |canaries: &[Canary]| -> Vec<(Canary, Message)> {
        canaries.iter().map(|canary| (canary.clone(), canary.message())).collect()
    };
    let mut faults = exchange.ask(all(&canaries)).await?;
    for _ in 0..ATTEMPTS {
        let more: Vec<_> = all(&canaries).into_iter().filter(|(_, message)| message.put.is_some()).collect();
        // Those of which something is wrong will not get any further.
        if more.is_empty() || !faults.is_empty() {
            break;
        }
        faults = exchange.ask(more).await?;
    }
    Ok(faults)
}

/// Lets begin what has waited for Redis for long enough. It must not depend on a round that hangs.
async fn open(core: &Core) {
    if core.exchange.is_none() {
        return;
    }
    loop {
        tokio::time::sleep(WATCH).await;
        let late = |canary: &&Canary| !canary.is_asked() && canary.age() >= PATIENCE;
        for canary in core.current().iter().filter(late) {
            canary.opens();
        }
    }
}
