//! The command line: `serve` (the default), `check`, `import`, `export`, `audit`, `drain`, `tail`, `catalog`, `key`, `user`,
//! `migrate`.

mod catalog;
mod changes;
mod config;
mod drain;
mod export;
mod import;
mod key;
mod log;
mod tail;
mod target;
mod user;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::app;
use crate::clock::Clock;
use crate::config::{Config, ConfigError, ENV_PREFIX};
use crate::lifecycle;

const AFTER_HELP: &str = "\
Settings come from --config, then from variables like TIDEGATE__SERVER__LISTEN=0.0.0.0:8080, then from options.
import, export and audit work on the configured data folder, through its server if one holds it.

  tidegate                                          serve on 127.0.0.1:8080, data in ./data
  tidegate check --config shop.toml
  tidegate import --format combined --origin https://shop.example access.log.gz
  tidegate export --format csv --from -24h > events.csv";

/// Counts the beacons of a web shop live and exactly once.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, about, max_term_width = 100, after_help = AFTER_HELP)]
struct Cli {
    /// Config file; every setting and its default is in config/tidegate.toml.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server (the default).
    Serve(ServeArgs),
    /// Validate the config and say what is wrong with it.
    Check,
    /// Take in an access log or events, through a running server or straight into a data folder.
    Import(import::ImportArgs),
    /// Write out the raw events that the journal still has.
    Export(export::ExportArgs),
    /// Compare what came in with what is counted; exits with 1 if they disagree.
    Audit(target::TargetArgs),
    /// Deliver what a dead instance's journal still holds to the stores it shared with others.
    Drain(drain::DrainArgs),
    /// Fill the catalogue of products.
    Catalog(catalog::CatalogArgs),
    /// Show and change the config of a running server, and go back.
    Config(config::ConfigArgs),
    /// Make, show and end API keys.
    Key(key::KeyArgs),
    /// Show accounts; give them roles and passwords, log them out, delete them.
    User(user::UserArgs),
    /// Bring the database's tables up to date; the server does so too when it starts.
    Migrate,
    /// Show the records of a Kafka topic as they come.
    Tail(tail::TailArgs),
}

#[derive(Clone, Debug, Default, Args)]
struct ServeArgs {
    /// Address and port to listen on.
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Folder of all data.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum EventFormat {
    /// One JSON object a line.
    Ndjson,
    /// nginx's and Apache's combined (or common) access log.
    Combined,
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            // The chain, each on its line, without a backtrace: it is for whoever typed the command.
            eprintln!("tidegate: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let load = |serve: &ServeArgs| -> Result<Config, ConfigError> {
        // Options on the command line win over the environment, which wins over the file.
        let options = [
            ("SERVER__LISTEN", serve.listen.clone()),
            ("DATA__DIR", serve.data.as_ref().map(|dir| dir.display().to_string())),
        ];
        let options = options.into_iter().filter_map(|(k, v)| Some((format!("{ENV_PREFIX}{k}"), v?)));
        let set: Vec<(String, String)> = options.collect();
        let env = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        let env = env.filter(|(key, _)| !set.iter().any(|(k, _)| k == key));
        Config::load(cli.config.as_deref(), env.chain(set.clone())).map_err(|error| {
            // Whoever typed an option should not look for a variable.
            let named = |message: &String| {
                let option = |(key, _): &(String, String)| message.contains(&format!("variable {key}:"));
                match set.iter().find(|set| option(set)) {
                    Some((key, _)) if key.ends_with("LISTEN") => {
                        message.replace(&format!("environment variable {key}"), "--listen")
                    }
                    Some((key, _)) => message.replace(&format!("environment variable {key}"), "--data"),
                    None => message.clone(),
                }
            };
            ConfigError(error.0.iter().map(named).collect())
        })
    };
    let data = |serve: &ServeArgs, dir: &Option<PathBuf>| ServeArgs {
        data: dir.clone().or_else(|| serve.data.clone()),
        ..serve.clone()
    };
    match cli.command {
        None => serve(load(&cli.serve)?),
        Some(Command::Serve(args)) => serve(load(&ServeArgs {
            listen: args.listen.or(cli.serve.listen.clone()),
            data: args.data.or(cli.serve.data.clone()),
        })?),
        Some(Command::Check) => {
            let config = load(&cli.serve)?;
            let source = cli.config.as_ref().map_or_else(|| "the defaults".into(), |path| path.display().to_string());
            println!(
                "{source}: valid; the server would listen on {} and keep its data in {}",
                config.listen,
                config.data.display()
            );
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Import(args)) => {
            let config = load(&data(&cli.serve, &args.target.data))?;
            in_system(&config.clone(), import::run(config, args))
        }
        Some(Command::Export(args)) => {
            let config = load(&data(&cli.serve, &args.target.data))?;
            in_system(&config.clone(), export::run(config, args))
        }
        Some(Command::Tail(args)) => {
            let config = load(&cli.serve)?;
            in_system(&config.clone(), tail::run(config, args))
        }
        Some(Command::Catalog(args)) => {
            let config = load(&data(&cli.serve, &args.data))?;
            in_system(&config.clone(), catalog::run(config, args))
        }
        Some(Command::Config(args)) => {
            log::start("warn")?;
            actix_web::rt::System::new().block_on(config::run(load(&cli.serve), args))
        }
        Some(Command::Key(args)) => {
            let config = load(&data(&cli.serve, &args.data))?;
            in_system(&config.clone(), key::run(config, args))
        }
        Some(Command::User(args)) => {
            let config = load(&data(&cli.serve, &args.data))?;
            in_system(&config.clone(), user::run(config, args))
        }
        Some(Command::Migrate) => {
            let config = load(&cli.serve)?;
            in_system(&config.clone(), catalog::migrate(config))
        }
        Some(Command::Audit(args)) => {
            let config = load(&data(&cli.serve, &args.data))?;
            in_system(&config.clone(), export::audit(config, args))
        }
        Some(Command::Drain(args)) => {
            let config = load(&data(&cli.serve, &args.data))?;
            in_system(&config.clone(), drain::run(config))
        }
    }
}

fn serve(config: Config) -> anyhow::Result<ExitCode> {
    let log = log::start(&config.live.log)?;
    lifecycle::raise_file_limit();
    actix_web::rt::System::new().block_on(async move {
        let app = app::App::start(config, Clock::system()).await?;
        app.live().follow(move |live| log.filter(&live.log));
        app.announce();
        app.run_until_signal().await?;
        Ok(ExitCode::SUCCESS)
    })
}

fn in_system(config: &Config, work: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    // A command's own words are enough; the rooms speak up only when something is wrong.
    let filter = config.live.log.as_str();
    log::start(if filter.starts_with("info") { "warn" } else { filter })?;
    actix_web::rt::System::new().block_on(work)
}
