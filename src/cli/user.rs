//! `tidegate user`: accounts, on the database; a running server goes by it at once, but for access tokens that are out.

use std::io::{BufRead, IsTerminal, Read};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde_json::json;

use super::changes::{Changes, open};
use crate::clock::Clock;
use crate::config::Config;
use crate::database::Database;
use crate::identity::{
    Registration, Role, check_password, create_account, delete_account, end_sessions, find_account, list_accounts,
    set_password, set_roles,
};

/// Accounts that are read at once.
const PAGE: u64 = 1000;

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
    /// Show all accounts.
    List,
    /// Make an account, with the password that is read from standard input; also where nobody may register.
    Create {
        /// Its login.
        login: String,
        /// Its e-mail address, which may be logged in with too.
        #[arg(long)]
        email: Option<String>,
    },
    /// Give an account its roles; they are in its tokens from the next refresh on.
    Roles {
        /// The account's login or e-mail.
        login: String,
        /// user, operator or admin; several are allowed.
        #[arg(required = true, value_name = "ROLE")]
        roles: Vec<String>,
    },
    /// Give an account the password that is read from standard input, and end all its sessions.
    Password {
        /// The account's login or e-mail.
        login: String,
    },
    /// End all sessions of an account.
    Logout {
        /// The account's login or e-mail.
        login: String,
    },
    /// Delete an account, with all that is known of it.
    Delete {
        /// The account's login or e-mail.
        login: String,
    },
}

pub async fn run(config: Config, args: UserArgs) -> anyhow::Result<ExitCode> {
    let database = open(&config).await?;
    let done = users(&database, &config, args.command).await;
    database.close().await;
    done.map(|()| ExitCode::SUCCESS)
}

async fn users(database: &Database, config: &Config, command: UserCommand) -> anyhow::Result<()> {
    let changes = Changes::of(config);
    let find = async |login: &str| find_account(database, login).await.with_context(|| login.to_owned());
    match command {
        UserCommand::List => list(database).await?,
        UserCommand::Create { login, email } => {
            let new = Registration::new(&login, email.as_deref(), &read_password()?)?;
            changes.note("user.create", new.login(), json!({}));
            let account = create_account(database, config.identity.argon2, new, Clock::system().now()).await?;
            println!("{} is made, with the role user", account.login);
        }
        UserCommand::Roles { login, roles } => {
            let known: Vec<Role> = roles.iter().filter_map(|role| Role::parse(role)).collect();
            if known.len() != roles.len() {
                bail!("a role is user, operator or admin");
            }
            let account = find(&login).await?;
            let detail = json!({ "id": account.id, "before": account.roles, "after": known });
            changes.note("user.roles", &account.login, detail);
            set_roles(database, &account, &known).await?;
            println!("{} is {} now", account.login, roles.join(", "));
        }
        UserCommand::Password { login } => {
            let account = find(&login).await?;
            let password = read_password()?;
            check_password(&account, &password)?;
            changes.note("user.password", &account.login, json!({ "id": account.id }));
            set_password(database, config.identity.argon2, &account, &password).await?;
            println!("{} has a new password, and its sessions are ended", account.login);
        }
        UserCommand::Logout { login } => {
            let account = find(&login).await?;
            changes.note("user.logout", &account.login, json!({ "id": account.id }));
            end_sessions(database, &account).await?;
            println!("the sessions of {} are ended", account.login);
        }
        UserCommand::Delete { login } => {
            let account = find(&login).await?;
            changes.note("user.delete", &account.login, json!({ "id": account.id }));
            delete_account(database, &account).await?;
            println!("{} is deleted", account.login);
        }
    }
    Ok(())
}

async fn list(database: &Database) -> anyhow::Result<()> {
    let mut after = String::new();
    loop {
        let page = list_accounts(database, &after, PAGE).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after.clone_from(&last.login);
        for account in page {
            let roles: Vec<&str> = account.roles.iter().map(|role| role.name()).collect();
            let (email, made) = (account.email.as_deref().unwrap_or("-"), account.created_at.unwrap_or_default());
            println!("{}\t{}\t{email}\t{}\tmade {made}", account.login, account.id, roles.join(","));
        }
    }
}

/// A line of standard input. Not an option: those are seen by everybody on the machine, and kept by shells.
fn read_password() -> anyhow::Result<String> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        eprintln!("the password (it is shown as you type; a pipe or a file is not):");
    }
    let mut line = String::new();
    // Far more than a password may have.
    stdin.lock().take(1 << 16).read_line(&mut line).context("the password cannot be read from standard input")?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
