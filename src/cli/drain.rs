//! `tidegate drain`: delivers what a dead instance's journal still holds to the stores it shared with others.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use crate::app::Core;
use crate::app::lock::DataLock;
use crate::clock::{Clock, Stopwatch};
use crate::config::Config;
use crate::lifecycle::stop_signal;

#[derive(Clone, Debug, Args)]
pub struct DrainArgs {
    /// The dead instance's data folder.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
}

/// How often plain lines tell how far it is, where there is no terminal.
const LINES: Duration = Duration::from_secs(5);

pub async fn run(config: Config) -> anyhow::Result<ExitCode> {
    if !config.data.exists() {
        anyhow::bail!("{}: there is no such data folder; name one with --data", config.data.display());
    }
    if !Core::shares(&config) {
        anyhow::bail!(
            "there is nowhere to deliver to: neither stats.url nor stream.brokers is set, so this instance shares with none"
        );
    }
    let lock = DataLock::acquire(&config.data)?;
    let core = Core::open(config, Clock::system(), lock).await?;
    let end = core.journal.end();
    let bar = ProgressBar::new(end);
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} entries {eta}")?);
    let told = Stopwatch::start();
    let mut lines = 0;
    let delivered = async {
        let all = core.delivered_through(end);
        tokio::pin!(all);
        loop {
            match tokio::time::timeout(Duration::from_millis(100), &mut all).await {
                Ok(()) => break,
                Err(_) => {
                    bar.set_position(core.delivered());
                    if !std::io::stderr().is_terminal() && told.elapsed() >= LINES * (lines + 1) {
                        lines += 1;
                        let fault = core.delivery_fault().map(|fault| format!(" ({fault})")).unwrap_or_default();
                        eprintln!("{} of {end} entries are delivered{fault}", core.delivered());
                    }
                }
            }
        }
    };
    let done = tokio::select! {
        () = delivered => true,
        signal = stop_signal() => {
            signal?;
            false
        }
    };
    bar.finish_and_clear();
    let delivered = core.delivered();
    let fault = core.delivery_fault();
    core.close().await?;
    if !done {
        let why = fault.map(|fault| format!(" ({fault})")).unwrap_or_default();
        anyhow::bail!(
            "stopped at {delivered} of {end} entries{why}; the rest waits in the journal, and drain goes on there"
        );
    }
    println!("all {end} entries are delivered");
    Ok(ExitCode::SUCCESS)
}
