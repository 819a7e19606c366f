//! The gateway's part of the composition: its sockets, its owners, and its end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::ServerHandle;
use anyhow::Context;
use hyper::HeaderMap;
use hyper::header;
use tokio::task::JoinHandle;

use super::Core;
use crate::clock::Monotonic;
use crate::gateway::identify::{Asked, Identified, Identify, Unidentified, User};
use crate::gateway::options::GatewayOptions;
use crate::gateway::{self, Gateway, Listeners, OwnFactory};
use crate::http;
use crate::identity::{Identity, Principal, Proof, Recognised, Rejection};

/// Binds the gateway's sockets, if it has any.
pub fn listen(options: &GatewayOptions) -> anyhow::Result<Option<Listeners>> {
    if options.listen.is_none() && options.tls.is_none() {
        return Ok(None);
    }
    Ok(Some(Listeners::bind(options)?))
}

/// Starts its owners, if there is to be one.
pub fn start(
    core: &Core,
    wanted: bool,
    registry: &prometheus::Registry,
    identity: &Identity,
) -> anyhow::Result<Option<Gateway>> {
    if !wanted {
        return Ok(None);
    }
    let mut options = core.config.gateway.clone();
    // As for the server: the rest is for counting what requests brought.
    options.drain_timeout = http::share_of_drain(options.drain_timeout);
    let started = Gateway::start(
        options,
        registry,
        Some(Arc::new(Accounts(identity.clone()))),
        Monotonic::system(),
        core.clock.clone(),
    );
    Ok(Some(started.context("cannot start the gateway")?))
}

/// How long a start waits to hear from Redis how far canaries are; without an answer they go on where they were here.
const CANARIES: Duration = Duration::from_secs(1);

/// What the gateway asks of identity.
struct Accounts(Identity);

impl Identify for Accounts {
    fn identify(&self, headers: &HeaderMap) -> Asked {
        let sent = headers.get_all(header::AUTHORIZATION);
        match self.0.recognise(sent.iter().map(|value| value.as_bytes())) {
            Recognised::Done(result) => Asked::Now(identified(result)),
            Recognised::Ask(token) => {
                let identity = self.0.clone();
                Asked::Later(Box::pin(async move { identified(identity.ask(token).await) }))
            }
        }
    }

    fn key(&self, sent: &[u8]) -> Option<Identified> {
        self.0.key(sent).map(|result| identified(result.map(Some)))
    }

    fn is_key(&self, sent: &[u8]) -> bool {
        crate::identity::is_key(sent)
    }
}

fn identified(result: Result<Option<Arc<Principal>>, Rejection>) -> Identified {
    match result {
        Ok(principal) => Ok(principal.map(|principal| user(&principal))),
        Err(Rejection::Invalid(_)) => Err(Unidentified::Invalid),
        Err(Rejection::Unavailable { retry_after }) => Err(Unidentified::Unavailable { retry_after }),
    }
}

fn user(principal: &Principal) -> User {
    let scopes = match principal.proof {
        Proof::Account { .. } => None,
        Proof::Issuer(_) | Proof::Key => Some(principal.scopes.clone()),
    };
    User { id: principal.id.as_str().into(), scopes, is_key: principal.proof == Proof::Key }
}

/// The gateway while it is served.
pub struct Front {
    /// Its handle.
    pub gateway: Gateway,
    /// Where it takes plain HTTP.
    pub plain: Option<SocketAddr>,
    /// Where it takes HTTPS.
    pub tls: Option<SocketAddr>,
    server: ServerHandle,
    serving: JoinHandle<std::io::Result<()>>,
}

impl Front {
    /// Serves it.
    pub async fn serve(gateway: Gateway, listeners: Listeners, own: OwnFactory) -> anyhow::Result<Self> {
        gateway.canaries().known(CANARIES).await;
        let (plain, tls) = (listeners.plain(), listeners.tls());
        let server = gateway::server(&gateway, listeners, own).context("cannot serve the gateway")?;
        let handle = server.handle();
        let serving = actix_web::rt::spawn(server);
        Ok(Self { gateway, plain, tls, server: handle, serving })
    }

    /// Takes nothing more.
    pub async fn pause(&self) {
        self.server.pause().await;
    }

    /// Finishes what is under way, and closes.
    pub async fn stop(&self, deadline: Duration) {
        self.gateway.drain();
        if tokio::time::timeout(deadline, self.server.stop(true)).await.is_err() {
            log::warn!("drain: requests through the gateway were still running after {} s", deadline.as_secs());
            self.server.stop(false).await;
        }
        self.serving.abort();
        self.gateway.stop(deadline).await;
    }
}
