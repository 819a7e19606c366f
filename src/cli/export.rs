//! `tidegate export` and `tidegate audit`.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use awc::http::Method;
use clap::{Args, ValueEnum};
use futures_util::StreamExt;

use super::target::{Target, TargetArgs, data_of};
use crate::app::Core;
use crate::clock::Clock;
use crate::config::Config;
use crate::diagnostics::audit;
use crate::journal::Reader;
use crate::journal::export::{Filter, Format, write_events};
use crate::stats::range::parse_time;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ExportFormat {
    /// One JSON object a line.
    Ndjson,
    /// With a head line.
    Csv,
}

#[derive(Debug, Args)]
pub struct ExportArgs {
    /// How to write them.
    #[arg(long, value_enum, default_value = "ndjson")]
    format: ExportFormat,
    /// Only this site.
    #[arg(long)]
    site: Option<String>,
    /// Only events from this time on: RFC 3339, or like -24h.
    #[arg(long, allow_hyphen_values = true)]
    from: Option<String>,
    /// Only events before this time.
    #[arg(long, allow_hyphen_values = true)]
    to: Option<String>,
    #[command(flatten)]
    pub target: TargetArgs,
}

pub async fn run(config: Config, args: ExportArgs) -> anyhow::Result<ExitCode> {
    match args.target.resolve(&config)? {
        Target::Server(server) => {
            let mut query = vec![("format", if matches!(args.format, ExportFormat::Csv) { "csv" } else { "ndjson" })];
            let options = [("site", &args.site), ("from", &args.from), ("to", &args.to)];
            query.extend(options.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?))));
            let request = server.request(Method::GET, "/api/v1/export").query(&query)?;
            let mut answer =
                request.send().await.map_err(|error| anyhow::anyhow!("{}: no answer: {error}", server.url()))?;
            if !answer.status().is_success() {
                let text = answer.body().await?;
                data_of(answer.status(), &text)?;
            }
            while let Some(piece) = answer.next().await {
                let piece = piece.map_err(|error| anyhow::anyhow!("the export was cut short: {error}"))?;
                if !put(&piece)? {
                    break;
                }
            }
        }
        Target::Folder(_lock) => {
            let now = Clock::system().now();
            let time =
                |name: &str, text: &Option<String>| text.as_deref().map(|text| parse_time(name, text, now)).transpose();
            let (from, to) = (time("--from", &args.from)?, time("--to", &args.to)?);
            let filter = Filter { site: args.site.clone(), from, to };
            let format = if matches!(args.format, ExportFormat::Csv) { Format::Csv } else { Format::Ndjson };
            let folder = config.data.join("journal");
            let name = crate::journal::name_in(&folder)?;
            let mut failed = None;
            write_events(Reader::offline(folder, 0), &name, format, &filter, |piece| match put(&piece) {
                Ok(go_on) => go_on,
                Err(error) => {
                    failed = Some(error);
                    false
                }
            })?;
            if let Some(error) = failed {
                return Err(error.into());
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes to standard output; false when its reader has gone, as `head` does.
fn put(piece: &[u8]) -> io::Result<bool> {
    match io::stdout().lock().write_all(piece) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

pub async fn audit(config: Config, args: TargetArgs) -> anyhow::Result<ExitCode> {
    let audit = match args.resolve(&config)? {
        Target::Server(server) => {
            let request = server.request(Method::GET, "/api/v1/audit");
            let mut answer =
                request.send().await.map_err(|error| anyhow::anyhow!("{}: no answer: {error}", server.url()))?;
            let text = answer.body().limit(16 << 20).await?;
            data_of(answer.status(), &text)?
        }
        Target::Folder(lock) => {
            let core = Core::open(config, Clock::system(), lock).await?;
            if let Some(stream) = &core.stream {
                // Without an answer the audit says so.
                stream.known(Duration::from_secs(15)).await;
            }
            let audit = audit::audit(&core.journal, &core.stats, core.stream.as_ref()).await;
            core.close().await?;
            serde_json::to_value(audit?)?
        }
    };
    println!("{}", serde_json::to_string_pretty(&audit)?);
    Ok(if audit["agree"] == true { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
