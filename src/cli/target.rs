//! Where a command works: through a running server, or on a data folder that no server holds.

use std::path::PathBuf;

use anyhow::{Context, bail};
use awc::Client;
use awc::http::header;
use clap::Args;

use crate::app::lock::{DataLock, LockError};
use crate::config::Config;

#[derive(Clone, Debug, Args)]
pub struct TargetArgs {
    /// Work through the running server at this address, like http://127.0.0.1:8080.
    #[arg(long, value_name = "URL", conflicts_with = "data")]
    pub url: Option<String>,
    /// Work straight on this data folder, which no server may hold.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
}

/// What [`TargetArgs`] come down to.
pub enum Target {
    /// A running server.
    Server(Server),
    /// A folder that is ours while we hold the lock.
    Folder(DataLock),
}

impl TargetArgs {
    /// Without either option the configured folder is taken, through its server if one holds it.
    pub fn resolve(&self, config: &Config) -> anyhow::Result<Target> {
        if self.url.is_none() && !config.data.exists() {
            bail!(
                "{}: there is no such data folder; name one with --data, or a server with --url",
                config.data.display()
            );
        }
        self.resolve_or_create(config)
    }

    /// The same, but a folder that is not there is made.
    pub fn resolve_or_create(&self, config: &Config) -> anyhow::Result<Target> {
        let server = |url: &str| Target::Server(Server::new(url, config.live.admin_key.clone()));
        if let Some(url) = &self.url {
            return Ok(server(url));
        }
        match DataLock::acquire(&config.data) {
            Ok(lock) => Ok(Target::Folder(lock)),
            Err(LockError::Held { url: Some(url), .. }) if self.data.is_none() => Ok(server(&url)),
            Err(error) => Err(error.into()),
        }
    }
}

/// A running server, seen from outside.
pub struct Server {
    url: String,
    key: Option<String>,
    client: Client,
}

impl Server {
    /// At this address.
    pub fn new(url: &str, key: Option<String>) -> Self {
        let client = Client::builder().timeout(std::time::Duration::from_secs(60)).finish();
        Self { url: url.trim_end_matches('/').to_owned(), key, client }
    }

    /// A request of this method to a path, with the operator's key.
    pub fn request(&self, method: awc::http::Method, path: &str) -> awc::ClientRequest {
        let request = self.client.request(method, format!("{}{path}", self.url));
        match &self.key {
            Some(key) => request.insert_header((header::AUTHORIZATION, format!("Bearer {key}"))),
            None => request,
        }
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.url
    }
}

/// The `data` of an answer in the envelope, or the server's own words about what is wrong.
pub fn data_of(status: awc::http::StatusCode, body: &[u8]) -> anyhow::Result<serde_json::Value> {
    let mut answer: serde_json::Value =
        serde_json::from_slice(body).with_context(|| format!("the server answered {status} and no JSON"))?;
    if status.is_success() {
        return Ok(answer["data"].take());
    }
    let error = &answer["error"];
    bail!("the server answered {status}: {} ({})", error["message"].as_str().unwrap_or("?"), error["code"]);
}
