//! The composition root: config -> stores -> actors -> HTTP, and the drain in reverse.

mod catalog;
mod gateway;
mod identity;
pub mod lock;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::ServerHandle;
use anyhow::Context;
use tokio::task::JoinHandle;

use crate::catalog::CatalogHandle;
use crate::catalog::popularity::{self, PopularityHandle};
use crate::clock::{Clock, Stopwatch};
use crate::config::Config;
use crate::config::live::LiveConfig;
use crate::control::{self, Control};
use crate::database::Database;
use crate::event::visitor::Salts;
use crate::http;
use crate::identity::Identity;
use crate::journal::{self, Journal};
use crate::lifecycle::{Lifecycle, Phase, on_hangup, stop_signal};
use crate::stats::{self, StatsHandle};
use crate::stream::{self, StreamHandle};
use gateway::Front;
use lock::DataLock;

/// Everything but HTTP: what a server and a command on a folder share.
pub struct Core {
    /// The config that it was started with.
    pub config: Arc<Config>,
    /// The time.
    pub clock: Clock,
    /// Salts of anonymous visitors.
    pub salts: Arc<Salts>,
    /// The log.
    pub journal: Journal,
    /// What counts it.
    pub stats: StatsHandle,
    /// What scores products by it.
    pub popularity: PopularityHandle,
    /// What hands it on, if anything does.
    pub stream: Option<StreamHandle>,
    lock: DataLock,
}

impl Core {
    /// Opens the stores of a folder that is ours, and starts the readers.
    pub async fn open(config: Config, clock: Clock, lock: DataLock) -> anyhow::Result<Self> {
        let config = Arc::new(config);
        let opened = {
            let (config, clock) = (config.clone(), clock.clone());
            // Opening reads the disk, for seconds after a crash of a busy server.
            tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
                let salts =
                    Salts::open(&config.data.join("keys"), clock.now()).context("cannot open the visitor salts")?;
                let store = stats::open_store(&config.data.join("stats.db"), config.stats.clone())
                    .context("cannot open the statistics")?;
                let products =
                    popularity::open_store(&config.data.join("popularity.db"), config.popularity.max_products)
                        .context("cannot open the popularity of products")?;
                let folder = config.data.join("journal");
                // Where it cannot be read, opening it says so.
                let name = journal::name_in(&folder).unwrap_or_default();
                let at_least = store.cursor().max(products.cursor_in(&name));
                let journal = Journal::open(&folder, config.journal.clone(), clock, at_least)?;
                Ok((salts, store, products, journal))
            })
            .await??
        };
        let (salts, store, products, journal) = opened;
        let salts = Arc::new(salts);
        let recovery = journal.recovery();
        if recovery.replayed > 0 || recovery.cut_bytes > 0 {
            log::info!(
                "journal: read {} entries after the last checkpoint, cut {} torn bytes, in {} ms",
                recovery.replayed,
                recovery.cut_bytes,
                recovery.took.as_millis()
            );
        }
        let shared = config.shared.clone().map(|options| (options, salts.clone()));
        // Before any reader lets go of an entry.
        let pin = config.stream.enabled().then(|| journal.pin(0));
        let unread = journal.pin(0);
        let stats = stats::start(store, &journal, clock.clone(), &config.stats, config.flush_interval, shared)?;
        let popularity = popularity::start(products, &journal, clock.clone(), config.popularity.clone())?;
        unread.set(u64::MAX);
        let stream = match pin {
            Some(pin) => {
                Some(stream::start(config.stream.clone(), &journal, pin, (&stats, config.stats.retention), &clock)?)
            }
            None => None,
        };
        Ok(Self { config, clock, salts, journal, stats, popularity, stream, lock })
    }

    /// Whether a server of this config hands its events on to stores that it shares with others.
    pub fn shares(config: &Config) -> bool {
        config.shared.is_some() || config.stream.enabled()
    }

    /// Waits until everything before `seq` is counted here and in every store that is shared.
    pub async fn delivered_through(&self, seq: u64) {
        self.stats.delivered_through(seq).await;
        self.popularity.delivered_through(seq).await;
        if let Some(shared) = self.popularity.shared() {
            shared.delivered_through(seq).await;
        }
        if let Some(stream) = &self.stream {
            stream.delivered_through(seq).await;
            stream.aggregated_through(seq).await;
        }
    }

    /// Every entry before this is counted here and in every store that is shared.
    pub fn delivered(&self) -> u64 {
        let shared = self.stats.shared_state().map(|shared| shared.delivered());
        let popularity = self.popularity.shared().map(|shared| shared.through());
        let stream =
            self.stream.iter().flat_map(|stream| [stream.events().delivered(), stream.aggregates().delivered()]);
        shared.into_iter().chain(popularity).chain(stream).fold(self.stats.counted(), u64::min)
    }

    /// Why a shared store is not fed, while it is not.
    pub fn delivery_fault(&self) -> Option<String> {
        let shared = self.stats.shared_state().and_then(|shared| shared.fault());
        let popularity = || self.popularity.shared().and_then(|shared| shared.fault());
        let shared = shared.or_else(popularity);
        shared.or_else(|| self.stream.as_ref()?.events().fault()).or_else(|| self.stream.as_ref()?.aggregates().fault())
    }

    /// Closes in the direction of the flow: the journal takes nothing more, the readers finish, the stores are synced.
    pub async fn close(self) -> anyhow::Result<()> {
        let deadline = self.config.drain_timeout;
        self.close_within(deadline).await
    }

    async fn close_within(self, deadline: Duration) -> anyhow::Result<()> {
        let whole = Stopwatch::start();
        let phase = Stopwatch::start();
        self.journal.stop().await;
        log::info!("drain: the journal is closed after {} ms", phase.elapsed().as_millis());
        let phase = Stopwatch::start();
        self.stats.stop(deadline.saturating_sub(phase.elapsed())).await;
        let behind = self.journal.end().saturating_sub(self.stats.counted());
        log::info!("drain: counting ended after {} ms, {behind} entries left", phase.elapsed().as_millis());
        let phase = Stopwatch::start();
        self.popularity.stop(deadline.saturating_sub(whole.elapsed())).await;
        let behind = self.popularity.behind();
        log::info!("drain: scoring ended after {} ms, {behind} entries left", phase.elapsed().as_millis());
        if let Some(stream) = &self.stream {
            let phase = Stopwatch::start();
            stream.stop(deadline.saturating_sub(whole.elapsed())).await;
            let behind = self.journal.end().saturating_sub(stream.events().delivered());
            log::info!("drain: the stream ended after {} ms, {behind} entries left", phase.elapsed().as_millis());
        }
        // The stream asks the statistics to the end.
        self.stats.close().await;
        drop(self.lock);
        Ok(())
    }
}

/// How long workers have, in a drain, to begin the connections they were handed.
const TAKE_UP: Duration = Duration::from_millis(100);

/// A running server.
pub struct App {
    core: Core,
    catalog: CatalogHandle,
    identity: Identity,
    lifecycle: Lifecycle,
    address: SocketAddr,
    server: ServerHandle,
    serving: JoinHandle<std::io::Result<()>>,
    front: Option<Front>,
    live: LiveConfig,
    control: Control,
    admin: Option<Admin>,
}

/// The admin API while it is served.
struct Admin {
    address: SocketAddr,
    server: ServerHandle,
}

impl Admin {
    fn serve(application: &http::Application, listener: TcpListener) -> anyhow::Result<Self> {
        let address = listener.local_addr()?;
        let server = application.admin(listener)?;
        let handle = server.handle();
        actix_web::rt::spawn(server);
        Ok(Self { address, server: handle })
    }
}

impl App {
    /// Opens everything and serves.
    pub async fn start(config: Config, clock: Clock) -> anyhow::Result<Self> {
        // First the address: a typing mistake there should not cost the reading of a journal.
        let listener = TcpListener::bind(config.listen)
            .with_context(|| format!("server.listen: cannot listen on {}", config.listen))?;
        let address = listener.local_addr()?;
        let front = gateway::listen(&config.gateway)?;
        let admin = match config.admin.listen {
            Some(at) => Some(TcpListener::bind(at).with_context(|| {
                format!("admin.listen: cannot listen on {at}; set another address, or none (\"\") for no admin API")
            })?),
            None => None,
        };
        let mut lock = DataLock::acquire(&config.data)?;
        if control::make_up(&config)? {
            // It may listen elsewhere.
            drop((listener, front, admin, lock));
            return Box::pin(Self::start(config.origin.read()?, clock)).await;
        }
        lock.describe(&format!("process {} at http://{address}", std::process::id()))?;
        let core = Core::open(config, clock, lock).await?;
        let database = Database::new(&core.config.catalog, core.clock.clone())
            .map_err(|error| anyhow::anyhow!("catalog.url: the database {error}"))?;
        let catalog = catalog::start(&core, database.clone()).await?;
        let identity = identity::start(&core, database).await?;
        let lifecycle = Lifecycle::default();
        let registry = prometheus::Registry::new();
        let gateway = gateway::start(&core, front.is_some(), &registry, &identity)?;
        let live = LiveConfig::new(core.config.live.clone());
        let control =
            Control::start(core.config.clone(), live.clone(), gateway.clone(), core.config.admin, core.clock.clone())?;
        let state = http::State {
            live: live.clone(),
            client_timeout: core.config.client_timeout,
            clock: core.clock.clone(),
            salts: core.salts.clone(),
            journal: core.journal.clone(),
            stats: core.stats.clone(),
            stream: core.stream.clone(),
            catalog: catalog.clone(),
            identity: identity.clone(),
            gateway: gateway.clone(),
            control: control.clone(),
            lifecycle: lifecycle.clone(),
        };
        let application = http::Application::new(state, core.config.clone(), registry)?;
        let admin = match admin {
            Some(listener) => Some(Admin::serve(&application, listener)?),
            None => None,
        };
        let server = application.server(listener)?;
        let handle = server.handle();
        let serving = actix_web::rt::spawn(server);
        let front = match (gateway, front) {
            (Some(gateway), Some(listeners)) => Some(Front::serve(gateway, listeners, application.own()).await?),
            _ => None,
        };
        lifecycle.enter(Phase::Ready);
        Ok(Self { core, catalog, identity, lifecycle, address, server: handle, serving, front, live, control, admin })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the gateway takes plain HTTP, if it does.
    pub fn gateway_address(&self) -> Option<SocketAddr> {
        self.front.as_ref()?.plain
    }

    /// Where the gateway takes HTTPS, if it does.
    pub fn gateway_tls_address(&self) -> Option<SocketAddr> {
        self.front.as_ref()?.tls
    }

    /// Where the admin API is, if it is anywhere.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(|admin| admin.address)
    }

    /// The settings that it follows.
    pub fn live(&self) -> &LiveConfig {
        &self.live
    }

    /// What steers it.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// The gateway, if there is one.
    pub fn gateway(&self) -> Option<&crate::gateway::Gateway> {
        self.front.as_ref().map(|front| &front.gateway)
    }

    /// What it is made of, for the tests.
    pub fn core(&self) -> &Core {
        &self.core
    }

    /// Tells whoever started it what to do next.
    pub fn announce(&self) {
        let host = match self.address {
            SocketAddr::V4(a) if a.ip().is_unspecified() => format!("localhost:{}", a.port()),
            SocketAddr::V6(a) if a.ip().is_unspecified() => format!("localhost:{}", a.port()),
            address => address.to_string(),
        };
        println!(
            "Tidegate {} listens on http://{host}, data in {}",
            env!("CARGO_PKG_VERSION"),
            self.core.config.data.display()
        );
        for (scheme, at) in [("http", self.gateway_address()), ("https", self.gateway_tls_address())] {
            if let Some(at) = at {
                println!("  gateway    {scheme}://{at}");
            }
        }
        if let Some(at) = self.admin_address() {
            println!("  admin      http://{at}");
        }
        println!("  dashboard  http://{host}/dashboard");
        println!("  tracker    <script defer src=\"http://{host}/tracker.js\"></script>");
        println!("  API        http://{host}/docs/");
    }

    /// Serves until SIGTERM or SIGINT, then drains.
    pub async fn run_until_signal(mut self) -> anyhow::Result<()> {
        let (gateway, control) = (self.gateway().cloned(), self.control.clone());
        on_hangup(move || {
            if let Some(log) = gateway.as_ref().and_then(|gateway| gateway.access_log()) {
                log.reopen();
                log::info!("SIGHUP: the access log is opened anew");
            }
            let control = control.clone();
            tokio::spawn(async move {
                match control.reload("SIGHUP").await {
                    Ok(applied) if applied.changes.is_empty() => log::info!("SIGHUP: the config is as it was"),
                    Ok(_) => {}
                    Err(error) => log::error!("SIGHUP: the config is not taken:\n{error}"),
                }
            });
        })?;
        let signal = tokio::select! {
            signal = stop_signal() => signal?,
            ended = &mut self.serving => {
                ended??;
                "the end of the HTTP server"
            }
        };
        log::info!("drain: begun by {signal}");
        tokio::select! {
            stopped = self.stop() => stopped,
            // Whoever asks twice does not want to wait. Nothing acknowledged is lost: the journal has it.
            signal = stop_signal() => anyhow::bail!("the drain was cut short by {}", signal?),
        }
    }

    /// Drains: says so, finishes what it has, and closes.
    pub async fn stop(self) -> anyhow::Result<()> {
        let whole = Stopwatch::start();
        let deadline = self.core.config.drain_timeout;
        let for_requests = http::share_of_drain(deadline);
        self.lifecycle.enter(Phase::Draining);
        let phase = Stopwatch::start();
        // A worker that is told to stop drops the connections it was handed and has not begun. So nothing more is
        // accepted first, and what was is taken up.
        self.server.pause().await;
        if let Some(front) = &self.front {
            front.pause().await;
        }
        tokio::time::sleep(TAKE_UP).await;
        // The server's own shutdown time-out cuts what is left a little before this.
        let within = for_requests + Duration::from_secs(1);
        let server = async {
            if tokio::time::timeout(within, self.server.stop(true)).await.is_err() {
                log::warn!("drain: requests were still running after {} s", for_requests.as_secs());
                self.server.stop(false).await;
            }
        };
        let front = async {
            if let Some(front) = &self.front {
                front.stop(within).await;
            }
        };
        tokio::join!(server, front);
        if let Some(admin) = &self.admin {
            admin.server.stop(true).await;
        }
        log::info!("drain: requests are finished after {} ms", phase.elapsed().as_millis());
        let phase = Stopwatch::start();
        self.identity.stop(deadline.saturating_sub(whole.elapsed())).await;
        catalog::stop(&self.catalog, deadline.saturating_sub(whole.elapsed())).await;
        log::info!("drain: the catalogue is closed after {} ms", phase.elapsed().as_millis());
        self.core.close_within(deadline.saturating_sub(whole.elapsed())).await?;
        log::info!("drain: done in {} ms", whole.elapsed().as_millis());
        Ok(())
    }
}
