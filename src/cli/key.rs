//! `tidegate key` and `tidegate user`: API keys and roles, on the database; a running server sees them within seconds.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use crate::clock::{Clock, rfc3339};
use crate::config::Config;
use crate::config::units::Span;
use crate::database::Database;
use crate::identity::{Role, create_key, list_keys, revoke_key, set_roles};

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

#[derive(Debug, Args)]
pub struct UserArgs {
    /// Folder of the server's data, where `catalog.url` names no other database.
    #[arg(long, global = true, value_name = "DIR")]
    pub data: Option<PathBuf>,
    #[command(subcommand)]
    command: UserCommand,
}

#[derive(Debug, Subcommand)]
enum UserCommand {
    /// Give an account its roles; they are in its tokens from the next refresh on.
    Roles {
        /// The account.
        login: String,
        /// user, operator or admin; several are allowed.
        #[arg(required = true, value_name = "ROLE")]
        roles: Vec<String>,
    },
}

async fn open(config: &Config) -> anyhow::Result<Database> {
    let say = |error| anyhow::anyhow!("the database {error}");
    let database = Database::new(&config.catalog, Clock::system()).map_err(say)?;
    database.migrate().await.map_err(say)?;
    Ok(database)
}

pub async fn run(config: Config, args: KeyArgs) -> anyhow::Result<ExitCode> {
    let database = open(&config).await?;
    let done = keys(&database, args.command).await;
    database.close().await;
    done.map(|()| ExitCode::SUCCESS)
}

async fn keys(database: &Database, command: KeyCommand) -> anyhow::Result<()> {
    let now = Clock::system().now();
    match command {
        KeyCommand::Create { name, scopes, expires } => {
            let expires_at = expires.as_millis().map(|span| now.saturating_add(span));
            let (key, text) = create_key(database, &name, &scopes, expires_at, now).await?;
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
            revoke_key(database, &key).await?;
            println!("revoked");
        }
    }
    Ok(())
}

pub async fn user(config: Config, args: UserArgs) -> anyhow::Result<ExitCode> {
    let UserCommand::Roles { login, roles } = args.command;
    let known: Vec<Role> = roles.iter().filter_map(|role| Role::parse(role)).collect();
    if known.len() != roles.len() {
        bail!("a role is user, operator or admin");
    }
    let database = open(&config).await?;
    let done = set_roles(&database, &login, &known).await.with_context(|| login.clone());
    database.close().await;
    done?;
    println!("{login} is {} now", roles.join(", "));
    Ok(ExitCode::SUCCESS)
}
