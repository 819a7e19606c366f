//! The way to Redis, for every room that needs it: one server or a cluster, and what its errors mean for us.
//!
//! One multiplexed connection is kept and cloned for each use; a pool would ask with a PING before each. After an error
//! of the line it is dropped, and the next use makes a new one. What is said of an error names no address.

use std::time::Duration;

use deadpool_redis::redis::aio::{ConnectionLike, MultiplexedConnection, PubSubSink, PubSubStream};
use deadpool_redis::redis::cluster::ClusterClient;
use deadpool_redis::redis::cluster_async::ClusterConnection;
use deadpool_redis::redis::{
    AsyncConnectionConfig, Client as OneClient, Cmd, ErrorKind, Pipeline, RedisError, ServerErrorKind, TlsCertificates,
    Value,
};
use futures_util::StreamExt;
use futures_util::future::join_all;
use tokio::sync::Mutex;

use crate::clock::Stopwatch;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(2);

/// Where Redis is.
#[derive(Clone)]
pub struct RedisOptions {
    /// The setting that says so, for messages.
    pub setting: &'static str,
    /// One server, or nodes of a cluster. They may hold a password and are never shown.
    pub urls: Vec<String>,
    /// Whether that is a cluster.
    pub cluster: bool,
    /// Certificates of the authorities that are trusted, PEM; `None` trusts those of the system.
    pub ca: Option<Vec<u8>>,
    /// How long an answer may take.
    pub timeout: Duration,
}

impl std::fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisOptions")
            .field("setting", &self.setting)
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

/// Redis, connected when it is needed.
pub struct Client {
    to: Target,
    /// Each address alone, for what needs a line of its own.
    nodes: Vec<OneClient>,
    timeout: Duration,
    conn: Mutex<Option<Conn>>,
}

enum Target {
    One(Box<OneClient>),
    Cluster(Box<ClusterClient>),
}

#[derive(Clone)]
enum Conn {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

/// What a store's answer or silence means.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached, or did not answer. What was sent may have been done.
    #[error("Redis {0}")]
    Away(String),
    /// It answered, and refused.
    #[error("Redis refused: {0}")]
    Refused(String),
}

impl From<RedisError> for StoreError {
    fn from(error: RedisError) -> Self {
        // The error's own text may name addresses.
        let what = match error.kind() {
            _ if error.is_timeout() => return Self::Away(String::from("does not answer in time")),
            _ if error.is_connection_refusal() => return Self::Away(String::from("refuses connections")),
            ErrorKind::Io | ErrorKind::ClusterConnectionNotFound => {
                return Self::Away(String::from("cannot be reached"));
            }
            ErrorKind::Server(ServerErrorKind::ClusterDown | ServerErrorKind::MasterDown) => {
                return Self::Away(String::from("has no master for some of its slots"));
            }
            ErrorKind::Server(ServerErrorKind::BusyLoading) => {
                return Self::Away(String::from("is still loading its data"));
            }
            ErrorKind::Server(ServerErrorKind::ReadOnly) => String::from("it is a read-only replica"),
            ErrorKind::AuthenticationFailed => String::from("user or password is wrong"),
            _ => match error.code() {
                Some("MOVED") => {
                    String::from("it is a node of a Redis Cluster; set the setting `cluster` beside its address")
                }
                Some("NOPERM") => String::from("the user may not run a command that is needed (NOPERM)"),
                Some("OOM") => String::from("it is out of memory (maxmemory)"),
                Some("NOAUTH" | "WRONGPASS") => String::from("user or password is wrong"),
                Some("MISCONF") => String::from("it cannot write its own data to disk (MISCONF)"),
                Some(code) => format!("{} ({code})", error.category()),
                None => error.category().to_owned(),
            },
        };
        Self::Refused(what)
    }
}

impl Client {
    /// A client of what the options name. Nothing is connected yet.
    pub fn new(options: &RedisOptions) -> Result<Self, StoreError> {
        if options.urls.iter().any(|url| url.starts_with("rediss:")) {
            // Once a process; another room may have done it before.
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        }
        let invalid = |error: RedisError| StoreError::Refused(format!("{}: {}", options.setting, error.category()));
        let certificates = || TlsCertificates { client_tls: None, root_cert: options.ca.clone() };
        let node = |url: &String| match &options.ca {
            Some(_) => OneClient::build_with_tls(url.as_str(), certificates()),
            None => OneClient::open(url.as_str()),
        };
        let nodes = options.urls.iter().map(node).collect::<Result<Vec<_>, _>>().map_err(invalid)?;
        let to = match nodes.as_slice() {
            [one] if !options.cluster => Target::One(Box::new(one.clone())),
            _ => {
                let builder = ClusterClient::builder(options.urls.iter().map(String::as_str))
                    .connection_timeout(CONNECT)
                    .response_timeout(options.timeout)
                    .retries(3);
                let builder = if options.ca.is_some() { builder.certs(certificates()) } else { builder };
                Target::Cluster(Box::new(builder.build().map_err(invalid)?))
            }
        };
        Ok(Self { to, nodes, timeout: options.timeout, conn: Mutex::new(None) })
    }

    async fn conn(&self) -> Result<Conn, StoreError> {
        let mut held = self.conn.lock().await;
        if let Some(conn) = &*held {
            return Ok(conn.clone());
        }
        let made = async {
            Ok::<_, RedisError>(match &self.to {
                Target::One(client) => {
                    let config = AsyncConnectionConfig::new()
                        .set_connection_timeout(Some(CONNECT))
                        .set_response_timeout(Some(self.timeout));
                    Conn::One(client.get_multiplexed_async_connection_with_config(&config).await?)
                }
                Target::Cluster(client) => Conn::Cluster(client.get_async_connection().await?),
            })
        };
        // A cluster client looks for its nodes for longer than it was told to.
        let made = tokio::time::timeout(CONNECT + self.timeout, made).await;
        let conn = made.map_err(|_| StoreError::Away(String::from("does not answer in time")))??;
        *held = Some(conn.clone());
        Ok(conn)
    }

    /// Drops a connection that failed.
    async fn forget(&self, error: StoreError) -> StoreError {
        if let StoreError::Away(_) = error {
            *self.conn.lock().await = None;
        }
        error
    }

    /// Sends a command and waits for its answer.
    pub async fn one(&self, command: &Cmd) -> Result<Value, StoreError> {
        let sent = match self.conn().await? {
            Conn::One(mut conn) => conn.req_packed_command(command).await,
            Conn::Cluster(mut conn) => conn.req_packed_command(command).await,
        };
        match sent.and_then(Value::extract_error) {
            Ok(value) => Ok(value),
            Err(error) => Err(self.forget(error.into()).await),
        }
    }

    /// Sends commands together and waits for all answers: one round trip. In a cluster each goes to its own node, since a
    /// pipeline there may only hold one slot. A key that holds something foreign answers nil. The commands must bear being
    /// sent twice: a connection that has died meanwhile is noticed only by using it.
    pub async fn all(&self, commands: Vec<Cmd>) -> Result<Vec<Value>, StoreError> {
        self.try_all(&commands).await.map_err(|error| match error {
            Failure::Store(error) => error,
            Failure::NoScript => StoreError::Refused(String::from("a script is not known there (NOSCRIPT)")),
        })
    }

    /// The same for commands among which are calls of scripts. `make` makes them with the scripts' names, and once more with
    /// their texts where they are not known yet.
    pub async fn all_with_scripts(&self, make: impl Fn(Call) -> Vec<Cmd>) -> Result<Vec<Value>, StoreError> {
        match self.try_all(&make(Call::ByName)).await {
            Ok(values) => Ok(values),
            Err(Failure::Store(error)) => Err(error),
            Err(Failure::NoScript) => self.all(make(Call::ByText)).await,
        }
    }

    async fn try_all(&self, commands: &[Cmd]) -> Result<Vec<Value>, Failure> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let mut tried = false;
        loop {
            let reused = self.conn.lock().await.is_some();
            let conn = self.conn().await.map_err(Failure::Store)?;
            let error = match Self::send_all(conn, commands).await {
                Ok(values) => return Ok(values),
                Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                    return Err(Failure::NoScript);
                }
                Err(error) => error,
            };
            let dead = !error.is_timeout() && error.kind() == ErrorKind::Io;
            let error = self.forget(error.into()).await;
            if tried || !reused || !dead {
                return Err(Failure::Store(error));
            }
            tried = true;
        }
    }

    /// Listens to a channel over a line of its own, to the first node that answers.
    pub async fn subscribe(&self, channel: &str) -> Result<Subscription, StoreError> {
        let mut failed = StoreError::Away(String::from("cannot be reached"));
        for node in &self.nodes {
            let made = async {
                let (mut sink, stream) = node.get_async_pubsub().await?.split();
                sink.subscribe(channel).await?;
                Ok::<_, RedisError>(Subscription { sink, stream })
            };
            match tokio::time::timeout(CONNECT, made).await {
                Ok(Ok(subscription)) => return Ok(subscription),
                Ok(Err(error)) => failed = error.into(),
                Err(_) => failed = StoreError::Away(String::from("does not answer in time")),
            }
        }
        Err(failed)
    }

    async fn send_all(conn: Conn, commands: &[Cmd]) -> Result<Vec<Value>, RedisError> {
        let values = match conn {
            Conn::One(mut conn) => {
                let mut pipeline = Pipeline::with_capacity(commands.len());
                commands.iter().for_each(|command| {
                    pipeline.add_command(command.clone());
                });
                let values = conn.req_packed_commands(&pipeline, 0, commands.len()).await?;
                values.into_iter().map(Value::extract_error).collect()
            }
            Conn::Cluster(conn) => {
                let one = |command| {
                    let mut conn = conn.clone();
                    async move { conn.req_packed_command(command).await.and_then(Value::extract_error) }
                };
                join_all(commands.iter().map(one)).await
            }
        };
        let foreign_is_nil = |value: Result<Value, RedisError>| match value {
            Err(error) if error.code() == Some("WRONGTYPE") => Ok(Value::Nil),
            value => value,
        };
        let values: Vec<Result<Value, RedisError>> = values;
        values.into_iter().map(foreign_is_nil).collect()
    }

    /// Runs a script, which is sent along only where it is not known yet; its keys are the fence and then the others, its
    /// arguments the head and then the others.
    pub async fn script(
        &self,
        script: &Script,
        fence: &str,
        keys: &[String],
        head: &[Vec<u8>],
        args: &[Vec<u8>],
    ) -> Result<Value, StoreError> {
        let call = |name: &str, what: &str| {
            let bytes: usize = args.iter().map(Vec::len).sum();
            let mut command =
                Cmd::with_capacity(5 + keys.len() + head.len() + args.len(), 1024 + 64 * keys.len() + bytes);
            command.arg(name).arg(what).arg(1 + keys.len()).arg(fence).arg(keys).arg(head).arg(args);
            command
        };
        let conn = self.conn().await?;
        let send = |command: Cmd| {
            let conn = conn.clone();
            async move {
                let sent = match conn {
                    Conn::One(mut conn) => conn.req_packed_command(&command).await,
                    Conn::Cluster(mut conn) => conn.req_packed_command(&command).await,
                };
                sent.and_then(Value::extract_error)
            }
        };
        let mut sent = send(call("EVALSHA", &script.sha)).await;
        if let Err(error) = &sent
            && error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
        {
            sent = send(call("EVAL", script.text)).await;
        }
        match sent {
            Ok(value) => Ok(value),
            Err(error) => Err(self.forget(error.into()).await),
        }
    }
}

/// Why commands sent together failed.
enum Failure {
    Store(StoreError),
    NoScript,
}

/// How a script is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// By its name, where it is known already.
    ByName,
    /// With its whole text.
    ByText,
}

/// A channel that is listened to.
pub struct Subscription {
    sink: PubSubSink,
    stream: PubSubStream,
}

impl Subscription {
    /// Hands on every message until the line is lost, and says why it is. A line can die without a word, so it is asked every
    /// so often, and must answer within `patience`; `alive` gets how long ago an answered question was put.
    pub async fn attend(
        self,
        every: Duration,
        patience: Duration,
        mut alive: impl FnMut(Duration),
        mut message: impl FnMut(&[u8]),
    ) -> StoreError {
        let Self { mut sink, mut stream } = self;
        let asking = async {
            loop {
                let asked = Stopwatch::start();
                match tokio::time::timeout(patience, sink.ping::<Value>()).await {
                    Ok(Ok(_)) => alive(asked.elapsed()),
                    Ok(Err(error)) => return StoreError::from(error),
                    Err(_) => return StoreError::Away(String::from("does not answer in time")),
                }
                tokio::time::sleep(every).await;
            }
        };
        let hearing = async {
            while let Some(heard) = stream.next().await {
                message(heard.get_payload_bytes());
            }
            StoreError::Away(String::from("closed the connection"))
        };
        tokio::select! {
            error = asking => error,
            error = hearing => error,
        }
    }
}

/// A script and the name Redis knows it by.
pub struct Script {
    text: &'static str,
    sha: String,
}

impl Script {
    /// A script, by its text.
    pub fn new(text: &'static str) -> Self {
        Self { text, sha: deadpool_redis::redis::Script::new(text).get_hash().to_owned() }
    }
    /// A command that runs it. In a cluster all keys must be in one slot.
    pub fn command(&self, call: Call, keys: &[&str], args: &[&[u8]]) -> Cmd {
        let (name, what) = match call {
            Call::ByName => ("EVALSHA", self.sha.as_str()),
            Call::ByText => ("EVAL", self.text),
        };
        let mut command = Cmd::new();
        command.arg(name).arg(what).arg(keys.len()).arg(keys).arg(args);
        command
    }
}
