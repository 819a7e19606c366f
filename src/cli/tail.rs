//! `tidegate tail`: the records of a topic as they come, for a person at a terminal.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use serde_json::{Value, json};

use crate::clock::rfc3339;
use crate::config::Config;
use crate::lifecycle::stop_signal;
use crate::stream::{Tail, Taken, Topics};

#[derive(Debug, Args)]
pub struct TailArgs {
    /// events, updates, latest, dead-letter, cursors, or a topic's full name.
    #[arg(long, default_value = "events", value_name = "TOPIC")]
    topic: String,
    /// Only records of this site.
    #[arg(long)]
    site: Option<String>,
    /// What is there already, too.
    #[arg(long)]
    from_beginning: bool,
    /// End after so many records.
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// One JSON object a line, with headers and all.
    #[arg(long)]
    json: bool,
}

pub async fn run(config: Config, args: TailArgs) -> anyhow::Result<ExitCode> {
    if !config.stream.enabled() {
        bail!(
            "no Kafka is configured; set `brokers = [\"host:9092\"]` under [stream] in the config, or \
             TIDEGATE__STREAM__BROKERS='[\"host:9092\"]'"
        );
    }
    let stop = Arc::new(AtomicBool::new(false));
    let asked = stop.clone();
    let follow = actix_web::rt::task::spawn_blocking(move || follow(&config, &args, &stop));
    tokio::select! {
        ended = follow => ended??,
        // The thread sees it within a moment, and nothing is half written.
        signal = stop_signal() => {
            signal?;
            asked.store(true, Ordering::Relaxed);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn follow(config: &Config, args: &TailArgs, stop: &AtomicBool) -> anyhow::Result<()> {
    let topics = Topics::new(&config.stream.topic_prefix);
    let topic = topics.named(&args.topic);
    let tail = Tail::open(&config.stream, topic, args.from_beginning)?;
    let out = io::stdout();
    let colour = out.is_terminal() && std::env::var_os("NO_COLOR").is_none();
    if !args.json && io::stderr().is_terminal() {
        eprintln!("following {topic}; Ctrl-C ends");
    }
    let mut left = args.limit.unwrap_or(u64::MAX);
    while left > 0 && !stop.load(Ordering::Relaxed) {
        let Some(taken) = tail.next(Duration::from_millis(100))? else { continue };
        let value = taken.value.as_ref().map(|text| serde_json::from_str(text).unwrap_or_else(|_| json!(text)));
        if args.site.as_ref().is_some_and(|site| !is_of(site, &taken, value.as_ref())) {
            continue;
        }
        let line =
            if args.json { as_json(topic, &taken, value.as_ref()) } else { as_line(&taken, value.as_ref(), colour) };
        left -= 1;
        match writeln!(out.lock(), "{line}") {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Whether a record is of a site: by its value, or by the key of a tombstone.
fn is_of(site: &str, taken: &Taken, value: Option<&Value>) -> bool {
    match value.and_then(|value| value["site"].as_str()) {
        Some(of) => of == site,
        None => {
            let key = taken.key.as_deref().unwrap_or_default();
            key.strip_prefix(site).is_some_and(|rest| rest.starts_with(['|', ':']))
        }
    }
}

fn as_json(topic: &str, taken: &Taken, value: Option<&Value>) -> String {
    let headers: serde_json::Map<String, Value> = taken.headers.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
    json!({
        "topic": topic, "partition": taken.partition, "offset": taken.offset, "timestamp": taken.timestamp.map(rfc3339),
        "key": taken.key, "headers": headers, "value": value,
    })
    .to_string()
}

/// A line with the columns of what it is.
fn as_line(taken: &Taken, value: Option<&Value>, colour: bool) -> String {
    let text = |value: &Value| match value {
        Value::String(text) => plain(text),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    let paint = |code: &str, text: String| if colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text };
    let time = |at: &str| at.replace('T', " ").trim_end_matches('Z').to_owned();
    let key = plain(taken.key.as_deref().unwrap_or("-"));
    let place = format!("{}/{}", taken.partition, taken.offset);
    let Some(value) = value else {
        return format!(
            "{:<23}  {}  {key}",
            taken.timestamp.map(|at| time(&rfc3339(at))).unwrap_or_default(),
            paint("31", String::from("deleted"))
        );
    };
    if value["metric"].is_string() {
        let dimension = match &value["dimension"] {
            Value::Null => String::new(),
            dimension => format!("{}={}", text(&dimension["name"]), text(&dimension["value"])),
        };
        let state = if value["final"] == true {
            paint("32", String::from("final"))
        } else {
            paint("33", String::from("open "))
        };
        return format!(
            "{:<19}  {:<6}  {:<12}  {:<15}  {:>9}  {state}  {}",
            time(&text(&value["window_start"]).replace(".000Z", "")),
            text(&value["window_size"]),
            text(&value["site"]),
            text(&value["metric"]),
            paint("1", format!("{:>9}", text(&value["value"]))),
            paint("2", dimension),
        );
    }
    if value["reason"].is_string() {
        return format!(
            "{:<23}  {:<18}  {}-{}  {}",
            time(&text(&value["failed_at"])),
            paint("31", format!("{:<18}", text(&value["reason"]))),
            text(&value["journal"]),
            text(&value["offset"]),
            text(&value["topic"]),
        );
    }
    if value["visitor"].is_string() {
        let what = ["url", "product_id", "data"].iter().map(|field| text(&value[*field])).find(|text| !text.is_empty());
        return format!(
            "{:<23}  {:<12}  {:<14}  {:<16}  {}",
            time(&text(&value["timestamp"])),
            text(&value["site"]),
            paint("1", format!("{:<14}", text(&value["type"]))),
            paint("2", text(&value["visitor"])),
            what.unwrap_or_default(),
        );
    }
    format!("{place:<12}  {key}  {}", plain(&value.to_string()))
}

/// Without what would move a terminal's cursor: the texts are a client's.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(key: &str, value: Option<Value>) -> (Taken, Option<Value>) {
        let text = value.as_ref().map(Value::to_string);
        let taken = Taken {
            partition: 1,
            offset: 7,
            timestamp: Some(1_700_000_000_000),
            key: Some(key.into()),
            value: text,
            headers: vec![("ce_id".into(), "x".into())],
        };
        (taken, value)
    }

    #[test]
    fn lines_have_columns_and_colour_only_where_asked() {
        let event = json!({"timestamp": "2023-11-14T22:13:20.000Z", "site": "shop", "type": "buy",
            "visitor": "00000000000000ab", "url": "/a\u{1b}[2J"});
        let (record, value) = taken("shop:00000000000000ab", Some(event));
        let line = as_line(&record, value.as_ref(), false);
        assert_eq!(line, "2023-11-14 22:13:20.000  shop          buy             00000000000000ab  /a\u{fffd}[2J");
        assert!(as_line(&record, value.as_ref(), true).contains("\u{1b}[1mbuy"));
        let number = json!({"metric": "page_views", "dimension": {"name": "page", "value": "/a"}, "site": "shop", "value": 5,
            "window_start": "2023-11-14T22:13:00.000Z", "window_size": "minute", "final": true});
        let (record, value) = taken("shop|page_views|page=/a|x|minute|j", Some(number));
        let line = as_line(&record, value.as_ref(), false);
        assert!(line.starts_with("2023-11-14 22:13:00  minute  shop") && line.ends_with("final  page=/a"), "{line}");
        let (gone, none) = taken("shop|x", None);
        assert!(as_line(&gone, none.as_ref(), false).ends_with("deleted  shop|x"));
        assert!(is_of("shop", &gone, None) && !is_of("sho", &gone, None));
        let json: Value = serde_json::from_str(&as_json("t", &record, value.as_ref())).unwrap();
        assert_eq!(
            (&json["offset"], &json["value"]["value"], &json["headers"]["ce_id"]),
            (&json!(7), &json!(5), &json!("x"))
        );
    }
}
