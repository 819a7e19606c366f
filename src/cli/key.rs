//! `tidegate key`: API keys, on the database; a running server sees them within seconds.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use super::changes::{Changes, open};
use crate::clock::{Clock, rfc3339};
use crate::config::Config;
use crate::config::units::Span;
use crate::database::Database;
use crate::identity::{ApiKey, find_key, list_keys, revoke_key, store_key};

#[derive(Debug, Args)]
pub struct KeyArgs {
    /// Folder of the server's data, where `catalog.url` names no other database.
    #[arg(long, global = true, value_name = "DIR")]
    pub data: Option<PathBuf>,
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Make a key and print it; it is shown this once.
    Create {
        /// What it is for.
        #[arg(long)]
        name: String,
        /// What it may do, like orders:read; may be repeated. `operator` may operate the server.
        #[arg(long = "scope", value_name = "SCOPE")]
        scopes: Vec<String>,
        /// How long it holds, like 90d.
        #[arg(long, value_name = "SPAN", default_value = "forever", value_parser = Span::parse)]
        expires: Span,
    },
    /// Show all keys, without what is secret of them.
    List,
    /// End a key.
    Revoke {
        /// What is shown of it, like tg_1a2b3c4d5e6f.
        key: String,
    },
}

pub async fn run(config: Config, args: KeyArgs) -> anyhow::Result<ExitCode> {
    let database = open(&config).await?;
    let done = keys(&database, &Changes::of(&config), args.command).await;
    database.close().await;
    done.map(|()| ExitCode::SUCCESS)
}

async fn keys(database: &Database, changes: &Changes, command: KeyCommand) -> anyhow::Result<()> {
    let now = Clock::system().now();
    match command {
        KeyCommand::Create { name, scopes, expires } => {
            let expires_at = expires.as_millis().map(|span| now.saturating_add(span));
            let (key, text) = ApiKey::make(&name, &scopes, expires_at, now)?;
            let expires = expires_at.map(rfc3339);
            let detail = json!({ "name": key.name, "scopes": key.scopes, "expires_at": expires });
            changes.note("key.create", &key.prefix(), detail);
            store_key(database, &key).await?;
            // The key alone, so that it can be read by what calls this.
            println!("{text}");
            eprintln!("{} is made; it is not shown again", key.prefix());
        }
        KeyCommand::List => {
            for key in list_keys(database).await? {
                let state = match (key.revoked_at, key.expires_at) {
                    (Some(at), _) => format!("revoked {}", rfc3339(at)),
                    (None, Some(at)) if at <= now => format!("expired {}", rfc3339(at)),
                    (None, Some(at)) => format!("until {}", rfc3339(at)),
                    (None, None) => String::from("until it is revoked"),
                };
                let scopes = if key.scopes.is_empty() { String::from("-") } else { key.scopes.join(",") };
                println!("{}\t{}\t{scopes}\tmade {}\t{state}", key.prefix(), key.name, rfc3339(key.created_at));
            }
        }
        KeyCommand::Revoke { key } => {
            let key = find_key(database, &key).await?;
            changes.note("key.revoke", &key.prefix(), json!({ "name": key.name }));
            revoke_key(database, &key).await?;
            println!("revoked");
        }
    }
    Ok(())
}
