//! `tidegate config`: the config of a running server, through its admin API.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use awc::http::{Method, header};
use clap::{Args, Subcommand};

use super::target::{Server, data_of};
use crate::clock::rfc3339;
use crate::config::{Config, ConfigError, ENV_PREFIX};

#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// Where the server's admin API is; else where the config says.
    #[arg(long, global = true, value_name = "URL")]
    admin: Option<String>,
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Show what is in force, with defaults and without secrets.
    Show,
    /// Show what was in force, the latest first.
    History,
    /// Put another file in force, which becomes the server's.
    Apply {
        /// The file.
        file: PathBuf,
    },
    /// Read the server's file again.
    Reload,
    /// Go back to an earlier version.
    Rollback {
        /// Which; else the one before that in force.
        #[arg(long, value_name = "VERSION")]
        to: Option<u64>,
    },
}

/// Runs it. The config that was read may be one that cannot be used: then the server has to be named.
pub async fn run(config: Result<Config, ConfigError>, args: ConfigArgs) -> anyhow::Result<ExitCode> {
    let (listen, key) = match config {
        Ok(config) => (config.admin.listen.map(|at| at.to_string()), config.live.admin_key.clone()),
        // Where its server is nobody knows, and another one might listen where it would by default.
        Err(error) if args.admin.is_none() => {
            bail!("{error}\nto reach its running server all the same, say where its admin API is: --admin URL")
        }
        Err(_) => (None, std::env::var(format!("{ENV_PREFIX}SERVER__ADMIN_KEY")).ok()),
    };
    let url = match (args.admin, listen) {
        (Some(url), _) => url,
        (None, Some(listen)) => format!("http://{listen}"),
        (None, None) => bail!("the config has no admin API (admin.listen is empty); name one with --admin URL"),
    };
    let server = Server::new(&url, key);
    let (method, path, body) = match &args.command {
        ConfigCommand::Show => (Method::GET, "/api/v1/admin/config", String::new()),
        ConfigCommand::History => (Method::GET, "/api/v1/admin/config/history", String::new()),
        ConfigCommand::Apply { file } => {
            let text = std::fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
            (Method::POST, "/api/v1/admin/config", text)
        }
        ConfigCommand::Reload => (Method::POST, "/api/v1/admin/config/reload", String::new()),
        ConfigCommand::Rollback { to } => {
            (Method::POST, "/api/v1/admin/config/rollback", serde_json::json!({ "to": to }).to_string())
        }
    };
    let request = server.request(method, path).insert_header((header::CONTENT_TYPE, "application/octet-stream"));
    // Mistakes are told where they were made.
    let name = match &args.command {
        ConfigCommand::Apply { file } => Some(file.display().to_string()),
        _ => None,
    };
    let request = match name {
        Some(name) => request.query(&[("name", name)]).context("the file's name cannot be sent")?,
        None => request,
    };
    let mut answer = request
        .send_body(body)
        .await
        .map_err(|error| anyhow::anyhow!("there is no admin API at {}: {error}; see admin.listen", server.url()))?;
    let body = answer.body().limit(16 << 20).await.context("the answer broke off")?;
    let data = data_of(answer.status(), &body)?;
    match args.command {
        ConfigCommand::Show => print!("{}", toml::to_string(&data["config"]).context("the answer is no config")?),
        ConfigCommand::History => data.as_array().into_iter().flatten().for_each(tell),
        ConfigCommand::Apply { .. } | ConfigCommand::Reload | ConfigCommand::Rollback { .. } => {
            println!("version {} is in force", data["version"]);
            changes(&data["changes"]);
            for key in data["restart"].as_array().into_iter().flatten().filter_map(serde_json::Value::as_str) {
                println!("  {key} waits for the next start");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn tell(version: &serde_json::Value) {
    let text = |key: &str| version[key].as_str().unwrap_or_default();
    let at = rfc3339(version["at"].as_i64().unwrap_or_default());
    let reason = version["reason"].as_str().map(|reason| format!(": {reason}")).unwrap_or_default();
    println!("{}  {at}  by {} ({}){reason}", version["version"], text("who"), text("how"));
    changes(&version["changes"]);
}

fn changes(changes: &serde_json::Value) {
    for change in changes.as_array().into_iter().flatten() {
        let side = |key: &str| change[key].as_str().unwrap_or("(not set)");
        println!("  {}: {} -> {}", change["key"].as_str().unwrap_or_default(), side("before"), side("after"));
    }
}
