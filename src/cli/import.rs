//! `tidegate import`: an access log, or events, into the journal; twice changes nothing.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use awc::http::{Method, StatusCode};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::EventFormat;
use super::target::{Server, Target, TargetArgs, data_of};
use crate::app::Core;
use crate::clock::{Clock, Stopwatch};
use crate::config::Config;
use crate::event::access::Claim;
use crate::event::decode::{self, Framing};
use crate::event::intake::{Intake, Sender};
use crate::event::{Batch, combined};

/// Lines of one request.
const LINES: usize = 1000;
/// Bytes of one request, more or less.
const BYTES: usize = 1 << 20;
/// How many refused lines are shown one by one.
const SHOWN: usize = 50;
/// How long an overloaded server is asked again.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Files to import; - is standard input; gzip is noticed.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// How they are written.
    #[arg(long, value_enum)]
    format: EventFormat,
    /// Count every line of an access log as a page view: tell no assets, errors and bots apart.
    #[arg(long)]
    raw: bool,
    /// The site to count for, where the events name none.
    #[arg(long, value_name = "SITE")]
    site: Option<String>,
    /// Put this before the paths of an access log, like https://shop.example, so that its own pages are no referrers.
    #[arg(long, value_name = "URL")]
    origin: Option<String>,
    #[command(flatten)]
    pub target: TargetArgs,
}

#[derive(Debug, Default)]
struct Tally {
    lines: u64,
    accepted: u64,
    duplicates: u64,
    refused: u64,
}

enum Sink {
    Server(Server),
    Folder(Box<Core>),
}

/// Lines that wait to be sent, as events, with the numbers of their lines.
#[derive(Default)]
struct Waiting {
    body: Vec<u8>,
    lines: Vec<u64>,
}

pub async fn run(config: Config, args: ImportArgs) -> anyhow::Result<ExitCode> {
    if let Some(site) = &args.site
        && !crate::event::intake::is_site(site)
    {
        bail!("--site: `{site}` is no site: 1 to 64 characters of A-Z a-z 0-9 _ . : -");
    }
    // Look at all files first: half an import because of a typing mistake helps nobody.
    for file in args.files.iter().filter(|file| file.as_os_str() != "-") {
        File::open(file).with_context(|| format!("{}: cannot be opened", file.display()))?;
    }
    let sink = match args.target.resolve_or_create(&config)? {
        Target::Server(server) => Sink::Server(server),
        Target::Folder(lock) => Sink::Folder(Box::new(Core::open(config, Clock::system(), lock).await?)),
    };
    let mut tally = Tally::default();
    let mut imported = Ok(());
    for file in &args.files {
        imported = one(file, &args, &sink, &mut tally).await.with_context(|| file.display().to_string());
        if imported.is_err() {
            break;
        }
    }
    if let Sink::Folder(core) = sink {
        core.close().await?;
    }
    let Tally { lines, accepted, duplicates, refused } = tally;
    println!("{lines} lines: {accepted} imported, {duplicates} known before, {refused} refused");
    imported.map(|()| ExitCode::SUCCESS)
}

async fn one(path: &Path, args: &ImportArgs, sink: &Sink, tally: &mut Tally) -> anyhow::Result<()> {
    let name = path.display().to_string();
    let (mut input, progress) = open(path)?;
    let mut seen: HashMap<u128, u32> = HashMap::new();
    let mut waiting = Waiting::default();
    let mut line = Vec::new();
    let mut number = 0;
    let plain = Stopwatch::start();
    let mut told = 0;
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line).context("cannot be read")? == 0 {
            break;
        }
        number += 1;
        let text = String::from_utf8_lossy(line.trim_ascii());
        if text.is_empty() {
            continue;
        }
        tally.lines += 1;
        // The same line at the same count of its likes has the same id at every import.
        let hash = xxh3_128(text.as_bytes());
        let copies = seen.entry(hash).or_insert(0);
        *copies += 1;
        let id = id_of(args.site.as_deref(), args.raw, hash, *copies);
        match convert(&text, id, args) {
            Ok(event) => {
                waiting.body.extend_from_slice(&event);
                waiting.body.push(b'\n');
                waiting.lines.push(number);
            }
            Err(reason) => refuse(tally, &progress, &name, number, &reason),
        }
        if waiting.lines.len() >= LINES || waiting.body.len() >= BYTES {
            send(sink, &mut waiting, tally, &progress, &name).await?;
        }
        if progress.is_hidden() && plain.elapsed().as_secs() / 5 > told {
            told = plain.elapsed().as_secs() / 5;
            eprintln!("{name}: {number} lines so far");
        }
    }
    send(sink, &mut waiting, tally, &progress, &name).await?;
    progress.finish_and_clear();
    Ok(())
}

/// A file's text, or standard input's for `-`, unpacked if it is gzip; with a bar of how much was read.
pub fn open(path: &Path) -> anyhow::Result<(Box<dyn BufRead>, ProgressBar)> {
    let (input, size): (Box<dyn Read>, u64) = if path.as_os_str() == "-" {
        (Box::new(io::stdin()), 0)
    } else {
        let file = File::open(path)?;
        let size = file.metadata()?.len();
        (Box::new(file), size)
    };
    // indicatif draws on a terminal only; elsewhere `is_hidden` makes us say plain lines instead.
    let progress = ProgressBar::new(size);
    let style =
        if size > 0 { "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}" } else { "{bytes} {bytes_per_sec}" };
    progress.set_style(ProgressStyle::with_template(style)?);
    let mut input = BufReader::new(progress.wrap_read(input));
    let packed = input.fill_buf().context("cannot be read")?.starts_with(&[0x1f, 0x8b]);
    let input: Box<dyn BufRead> =
        if packed { Box::new(BufReader::new(flate2::bufread::MultiGzDecoder::new(input))) } else { Box::new(input) };
    Ok((input, progress))
}

/// Raw and told-apart imports of one log are two different things, as are those for two sites.
fn id_of(site: Option<&str>, raw: bool, line: u128, copy: u32) -> String {
    let mut hasher = Xxh3::new();
    hasher.update(&line.to_le_bytes());
    hasher.update(&[u8::from(raw)]);
    hasher.update(site.unwrap_or_default().as_bytes());
    format!("import-{:032x}-{copy}", hasher.digest128())
}

#[derive(Serialize)]
struct LogEvent<'a> {
    id: String,
    #[serde(rename = "type")]
    kind: &'a str,
    timestamp: i64,
    url: &'a str,
    address: &'a str,
    user_agent: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    referrer: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    site: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    classify: Option<bool>,
}

fn convert(text: &str, id: String, args: &ImportArgs) -> Result<Vec<u8>, String> {
    match args.format {
        EventFormat::Combined => {
            let line = combined::parse(text).map_err(str::to_owned)?;
            let target = line.target.get(..line.target.floor_char_boundary(2000)).unwrap_or_default();
            let url = match &args.origin {
                Some(origin) if target.starts_with('/') => format!("{}{target}", origin.trim_end_matches('/')),
                _ if target.starts_with('/') || target.contains("://") => target.to_owned(),
                // `OPTIONS *` and the like.
                _ => format!("/{target}"),
            };
            let event = LogEvent {
                id,
                kind: if args.raw { crate::event::PAGE_VIEW } else { combined::kind(&line) },
                timestamp: line.time,
                url: &url,
                address: line.address,
                user_agent: &line.agent,
                referrer: line.referrer.as_deref(),
                site: args.site.as_deref(),
                classify: args.raw.then_some(false),
            };
            serde_json::to_vec(&event).map_err(|error| error.to_string())
        }
        EventFormat::Ndjson => {
            let mut event: serde_json::Map<String, serde_json::Value> =
                serde_json::from_str(text).map_err(|error| format!("no JSON object: {error}"))?;
            if let Some(site) = &args.site {
                event.entry("site").or_insert_with(|| site.as_str().into());
            }
            event.entry("id").or_insert_with(|| id.into());
            serde_json::to_vec(&event).map_err(|error| error.to_string())
        }
    }
}

fn refuse(tally: &mut Tally, progress: &ProgressBar, file: &str, line: u64, reason: &str) {
    tally.refused += 1;
    if tally.refused <= SHOWN as u64 {
        progress.suspend(|| eprintln!("{file}: line {line}: {reason}"));
    } else if tally.refused == SHOWN as u64 + 1 {
        progress.suspend(|| eprintln!("{file}: further refused lines are counted, not shown"));
    }
}

async fn send(
    sink: &Sink,
    waiting: &mut Waiting,
    tally: &mut Tally,
    progress: &ProgressBar,
    file: &str,
) -> anyhow::Result<()> {
    if waiting.lines.is_empty() {
        return Ok(());
    }
    let Waiting { body, lines } = std::mem::take(waiting);
    let answer = match sink {
        Sink::Server(server) => post(server, body).await?,
        Sink::Folder(core) => put(core, &body).await?,
    };
    tally.accepted += answer["accepted"].as_u64().unwrap_or(0);
    tally.duplicates += answer["duplicates"].as_u64().unwrap_or(0);
    for reject in answer["rejected"].as_array().into_iter().flatten() {
        let line = reject["index"].as_u64().and_then(|i| lines.get(i as usize)).copied().unwrap_or(0);
        refuse(tally, progress, file, line, reject["message"].as_str().unwrap_or("refused"));
    }
    Ok(())
}

async fn post(server: &Server, body: Vec<u8>) -> anyhow::Result<serde_json::Value> {
    let body = actix_web::web::Bytes::from(body);
    let patience = Stopwatch::start();
    loop {
        let request = server.request(Method::POST, "/api/v1/import").content_type("application/x-ndjson");
        let mut answer = request
            .send_body(body.clone())
            .await
            .map_err(|error| anyhow::anyhow!("{}: no answer: {error}", server.url()))?;
        let text = answer.body().limit(64 << 20).await?;
        match answer.status() {
            StatusCode::SERVICE_UNAVAILABLE if patience.elapsed() < PATIENCE => {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            // None of the lines could be used: the answer has the reasons all the same.
            StatusCode::BAD_REQUEST => {
                let error: serde_json::Value = serde_json::from_slice(&text)?;
                if error["error"]["rejected"].is_array() {
                    return Ok(error["error"].clone());
                }
                return data_of(answer.status(), &text);
            }
            status => return data_of(status, &text),
        }
    }
}

async fn put(core: &Core, body: &[u8]) -> anyhow::Result<serde_json::Value> {
    let sender = Sender {
        address: "",
        agent: "",
        privacy_signal: false,
        received: core.clock.now(),
        import: true,
        claim: Claim::NONE,
    };
    let intake =
        Intake::new(&core.config.live.rules, &core.salts, sender).knows(core.journal.name(), core.journal.end());
    let mut batch = Batch::default();
    decode::body(body, Framing::Lines, |index, raw| intake.take(index, raw, &mut batch));
    let (rejected, known) = (std::mem::take(&mut batch.rejected), batch.known);
    let appended = core.journal.append(batch, core.journal.admit(0)?).await?;
    Ok(serde_json::json!({
        "accepted": appended.accepted, "duplicates": appended.duplicates + known, "rejected": rejected
    }))
}
