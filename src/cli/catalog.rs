//! `tidegate catalog` and `tidegate migrate`: the products of a file or of a made-up shop into the catalogue's database.

use std::fs::File;
use std::io::{self, BufRead, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use super::import::open as open_file;
use crate::catalog::import::{Format, Products};
use crate::catalog::{Imported, NewProduct, Store, demo};
use crate::clock::{Clock, Stopwatch};
use crate::config::Config;

/// Products of one transaction.
const BATCH: usize = 200;
/// How many bad lines are shown one by one.
const SHOWN: usize = 50;

#[derive(Debug, Args)]
pub struct CatalogArgs {
    /// Folder of the server's data, where `catalog.url` names no other database.
    #[arg(long, global = true, value_name = "DIR")]
    pub data: Option<PathBuf>,
    #[command(subcommand)]
    command: CatalogCommand,
}

#[derive(Debug, Subcommand)]
enum CatalogCommand {
    /// Take in products; those that are there already are replaced, and twice changes nothing.
    Import {
        /// JSON Lines, or CSV with a head line; - is standard input; gzip is noticed.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Make up a shop, so that there is something to look at.
    Demo {
        /// How many products.
        #[arg(long, default_value_t = demo::PRODUCTS, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
        products: u64,
        /// The same seed makes the same shop.
        #[arg(long, default_value_t = demo::SEED)]
        seed: u64,
        /// Write it here as JSON Lines and leave the database alone; - is standard output.
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

#[derive(Default)]
struct Tally {
    imported: Imported,
    /// Lines that could not be taken.
    bad: Vec<String>,
    bad_lines: u64,
}

pub async fn migrate(config: Config) -> anyhow::Result<ExitCode> {
    let store = Store::new(&config.catalog, Clock::system())?;
    let applied = store.migrate().await?;
    store.close().await;
    for name in &applied {
        println!("applied {name}");
    }
    println!("the tables in {} are up to date", store.database().name());
    Ok(ExitCode::SUCCESS)
}

pub async fn run(config: Config, args: CatalogArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        CatalogCommand::Demo { products, seed, output: Some(path) } => write_demo(products, seed, &path),
        CatalogCommand::Demo { products, seed, output: None } => {
            let store = open(&config).await?;
            let progress = ProgressBar::new(products);
            progress.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} products {eta}")?);
            let mut tally = Tally::default();
            let mut batch = Vec::with_capacity(BATCH);
            let mut done = Ok(());
            for product in demo::shop(products, seed) {
                batch.push(product);
                if batch.len() == BATCH {
                    done = send(&store, &mut batch, &mut tally).await;
                    progress.inc(BATCH as u64);
                }
                if done.is_err() {
                    break;
                }
            }
            if done.is_ok() {
                done = send(&store, &mut batch, &mut tally).await;
            }
            progress.finish_and_clear();
            store.close().await;
            tell(&tally);
            done.map(|()| ExitCode::SUCCESS)
        }
        CatalogCommand::Import { files } => {
            // Look at all files first: half an import because of a typing mistake helps nobody.
            for file in files.iter().filter(|file| file.as_os_str() != "-") {
                File::open(file).with_context(|| format!("{}: cannot be opened", file.display()))?;
            }
            let store = open(&config).await?;
            let mut tally = Tally::default();
            let mut done = Ok(());
            for file in &files {
                done = one(file, &store, &mut tally).await.with_context(|| file.display().to_string());
                if done.is_err() {
                    break;
                }
            }
            store.close().await;
            for line in &tally.bad {
                eprintln!("{line}");
            }
            if tally.bad_lines > tally.bad.len() as u64 {
                eprintln!("and {} further bad lines", tally.bad_lines - tally.bad.len() as u64);
            }
            tell(&tally);
            done.map(|()| if tally.bad_lines == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

async fn open(config: &Config) -> anyhow::Result<Store> {
    let store = Store::new(&config.catalog, Clock::system())?;
    store.migrate().await?;
    Ok(store)
}

fn tell(tally: &Tally) {
    let Imported { created, updated, unchanged } = tally.imported;
    println!("{created} products are new, {updated} changed, {unchanged} were there; {} bad lines", tally.bad_lines);
}

async fn one(path: &Path, store: &Store, tally: &mut Tally) -> anyhow::Result<()> {
    let name = path.display().to_string();
    let (mut input, progress) = open_file(path)?;
    let format = Format::of(path, input.fill_buf().context("cannot be read")?);
    let products = Products::read(input, format).map_err(anyhow::Error::msg)?;
    let mut batch = Vec::with_capacity(BATCH);
    let plain = Stopwatch::start();
    let mut told = 0;
    for line in products {
        let (number, product) = line.context("cannot be read")?;
        match product {
            Ok(product) => batch.push(product),
            Err(why) => {
                tally.bad_lines += 1;
                if tally.bad.len() < SHOWN {
                    tally.bad.push(format!("{name}: line {number}: {why}"));
                }
            }
        }
        if batch.len() == BATCH {
            send(store, &mut batch, tally).await?;
        }
        if progress.is_hidden() && plain.elapsed().as_secs() / 5 > told {
            told = plain.elapsed().as_secs() / 5;
            eprintln!("{name}: {number} lines so far");
        }
    }
    send(store, &mut batch, tally).await?;
    progress.finish_and_clear();
    Ok(())
}

async fn send(store: &Store, batch: &mut Vec<NewProduct>, tally: &mut Tally) -> anyhow::Result<()> {
    if batch.is_empty() {
        return Ok(());
    }
    let done = store.import_batch(std::mem::take(batch)).await?;
    tally.imported.created += done.created;
    tally.imported.updated += done.updated;
    tally.imported.unchanged += done.unchanged;
    Ok(())
}

fn write_demo(products: u64, seed: u64, path: &Path) -> anyhow::Result<ExitCode> {
    let output: Box<dyn Write> = if path.as_os_str() == "-" {
        Box::new(io::stdout().lock())
    } else {
        Box::new(File::create(path).with_context(|| format!("{}: cannot be written", path.display()))?)
    };
    let mut output = BufWriter::new(output);
    let written = demo::shop(products, seed).try_for_each(|product| {
        serde_json::to_writer(&mut output, &product)?;
        output.write_all(b"\n")
    });
    match written.and_then(|()| output.flush()) {
        // Its reader has seen enough, as `head` does.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        written => {
            written.map(|()| ExitCode::SUCCESS).with_context(|| format!("{}: cannot be written", path.display()))
        }
    }
}
