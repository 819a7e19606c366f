//! Records as they go out: an event in CloudEvents' binary mode, and what stands in for one that Kafka refused. Pure.

use std::borrow::Cow;
use std::sync::Arc;

use serde::Serialize;

use super::Topics;
use crate::clock::{UnixMillis, rfc3339};
use crate::event::Event;
use crate::event::record::Record;

/// The header with the journal's name.
pub const JOURNAL: &str = "tidegate-journal";
/// The header with the number in that journal: together they name an event, whatever its id.
pub const OFFSET: &str = "tidegate-offset";
/// Where the schema of an event lies on every Tidegate.
pub const EVENT_SCHEMA: &str = "/schemas/events.v1.json";
/// That of an aggregate.
pub const AGGREGATE_SCHEMA: &str = "/schemas/aggregates.v1.json";
/// That of a dead letter.
pub const DEAD_LETTER_SCHEMA: &str = "/schemas/dead-letter.v1.json";

/// What a record takes beside its own bytes, generously.
const OVERHEAD: usize = 128;
/// What a header takes beside its own bytes.
const HEADER: usize = 12;

/// A record for Kafka.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Where to.
    pub topic: Arc<str>,
    /// Its key.
    pub key: Vec<u8>,
    /// Its value; `None` is a tombstone.
    pub value: Option<Vec<u8>>,
    /// Its headers.
    pub headers: Vec<(&'static str, Cow<'static, [u8]>)>,
    /// When it happened.
    pub timestamp: UnixMillis,
    /// Where in the topic; `None` is by key.
    pub partition: Option<i32>,
}

impl Outgoing {
    /// Bytes it takes in a batch, at most.
    pub fn size(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + value.len() + HEADER).sum();
        OVERHEAD + self.key.len() + self.value.as_ref().map_or(0, Vec::len) + headers
    }
}

/// A header's value that is always the same.
pub fn fixed(text: &'static str) -> Cow<'static, [u8]> {
    Cow::Borrowed(text.as_bytes())
}

fn own(text: &str) -> Cow<'static, [u8]> {
    Cow::Owned(text.as_bytes().to_vec())
}

/// Makes records out of a journal's entries.
#[derive(Clone, Debug)]
pub struct Maker {
    journal: Arc<str>,
    events: Arc<str>,
    dead_letter: Arc<str>,
    max_bytes: usize,
}

/// A refused record's stand-in.
#[derive(Serialize)]
struct DeadLetter<'a> {
    reason: &'a str,
    topic: &'a str,
    key: &'a str,
    journal: &'a str,
    offset: u64,
    /// The record's value as text, cut to what fits.
    value: &'a str,
    value_bytes: usize,
    truncated: bool,
    failed_at: String,
}

impl Maker {
    /// For a journal, with the largest record in bytes.
    pub fn new(journal: &str, topics: &Topics, max_bytes: usize) -> Self {
        let shared = |text: &str| Arc::from(text);
        Self {
            journal: shared(journal),
            events: shared(&topics.events),
            dead_letter: shared(&topics.dead_letter),
            max_bytes,
        }
    }

    /// An event.
    pub fn event(&self, offset: u64, event: &Event<'_>) -> Outgoing {
        let record = Record::new(event, offset, &self.journal);
        let mut value = Vec::with_capacity(384);
        // Only what is no text or number can fail to be JSON, and there is none of it.
        if serde_json::to_writer(&mut value, &record).is_err() {
            value.clear();
        }
        let source = format!("/tidegate/{}/{}", self.journal, event.site);
        let headers = vec![
            ("ce_specversion", fixed("1.0")),
            ("ce_id", own(record.id.as_ref())),
            ("ce_type", own(event.event_type)),
            ("ce_source", Cow::Owned(source.into_bytes())),
            ("ce_time", own(&record.timestamp)),
            ("ce_dataschema", fixed(EVENT_SCHEMA)),
            ("content-type", fixed("application/json")),
            (JOURNAL, own(&self.journal)),
            (OFFSET, Cow::Owned(offset.to_string().into_bytes())),
        ];
        Outgoing {
            topic: self.events.clone(),
            key: format!("{}:{:016x}", event.site, event.visitor).into_bytes(),
            value: Some(value),
            headers,
            timestamp: event.timestamp,
            partition: None,
        }
    }

    /// Whether a record is too large to be sent at all.
    pub fn too_large(&self, record: &Outgoing) -> bool {
        record.size() > self.max_bytes
    }

    /// What goes to the dead letters instead of `record`. Every further `attempt` leaves more of the value away.
    pub fn dead_letter(&self, record: &Outgoing, offset: u64, reason: &str, attempt: u32, now: UnixMillis) -> Outgoing {
        let text = String::from_utf8_lossy(record.value.as_deref().unwrap_or_default());
        let key = String::from_utf8_lossy(&record.key);
        // Escaped it is longer, by six times at worst.
        let room = (self.max_bytes / 8).saturating_sub(1024) >> attempt.saturating_mul(4).min(60);
        let value = crate::event::agent::cut(&text, room);
        let key = crate::event::agent::cut(&key, 128);
        let letter = DeadLetter {
            reason,
            topic: &record.topic,
            key,
            journal: &self.journal,
            offset,
            value,
            value_bytes: text.len(),
            truncated: value.len() < text.len(),
            failed_at: rfc3339(now),
        };
        let headers = vec![
            ("reason", own(reason)),
            (JOURNAL, own(&self.journal)),
            (OFFSET, Cow::Owned(offset.to_string().into_bytes())),
            ("schema", fixed(DEAD_LETTER_SCHEMA)),
            ("content-type", fixed("application/json")),
        ];
        Outgoing {
            topic: self.dead_letter.clone(),
            key: key.as_bytes().to_vec(),
            value: Some(serde_json::to_vec(&letter).unwrap_or_default()),
            headers,
            timestamp: now,
            partition: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{BotReason, EventId};

    pub fn event<'a>(id: EventId<'a>, data: Option<&'a str>) -> Event<'a> {
        Event {
            received: 1_700_000_000_123,
            timestamp: 1_700_000_000_000,
            site: "shop",
            event_type: "buy",
            id,
            visitor: 0xab,
            session: 8,
            url: Some("https://a/?x=1,2"),
            referrer: None,
            title: None,
            user_id: None,
            session_id: None,
            product_id: None,
            data,
            bot: Some(BotReason::Crawler),
            imported: false,
        }
    }

    fn header(record: &Outgoing, name: &str) -> String {
        let (_, value) = record.headers.iter().find(|(n, _)| *n == name).expect(name);
        String::from_utf8(value.to_vec()).unwrap()
    }

    #[test]
    fn an_event_is_a_cloud_event_in_binary_mode() {
        let maker = Maker::new("0badcafe", &Topics::new("t"), 1000);
        let record = maker.event(42, &event(EventId::None, Some(r#"{"a":1}"#)));
        assert_eq!((&*record.topic, record.timestamp, record.partition), ("t.events.v1", 1_700_000_000_000, None));
        assert_eq!(record.key, b"shop:00000000000000ab");
        for (name, value) in [
            ("ce_specversion", "1.0"),
            ("ce_id", "0badcafe-42"),
            ("ce_type", "buy"),
            ("ce_source", "/tidegate/0badcafe/shop"),
            ("ce_time", "2023-11-14T22:13:20.000Z"),
            ("ce_dataschema", EVENT_SCHEMA),
            ("content-type", "application/json"),
            (JOURNAL, "0badcafe"),
            (OFFSET, "42"),
        ] {
            assert_eq!(header(&record, name), value);
        }
        let value: serde_json::Value = serde_json::from_slice(record.value.as_ref().unwrap()).unwrap();
        assert_eq!((&value["data"]["a"], &value["offset"], &value["bot"]), (&1.into(), &42.into(), &"crawler".into()));
        assert_eq!(header(&maker.event(43, &event(EventId::Text("order-1"), None)), "ce_id"), "order-1");
    }

    #[test]
    fn a_dead_letter_fits_however_large_the_record_was() {
        let maker = Maker::new("j", &Topics::new("t"), 20_000);
        let data = format!(r#"{{"a":"{}"}}"#, "\\u0001\\\"é".repeat(4000));
        let record = maker.event(7, &event(EventId::None, Some(&data)));
        assert!(maker.too_large(&record));
        let mut lengths = vec![];
        for attempt in 0..3 {
            let letter = maker.dead_letter(&record, 7, "too_large", attempt, 1_700_000_000_000);
            assert!(!maker.too_large(&letter), "{}", letter.size());
            assert_eq!(header(&letter, "reason"), "too_large");
            let value: serde_json::Value = serde_json::from_slice(letter.value.as_ref().unwrap()).unwrap();
            assert_eq!((&value["offset"], &value["truncated"]), (&7.into(), &true.into()));
            assert!(
                String::from_utf8_lossy(record.value.as_ref().unwrap()).starts_with(value["value"].as_str().unwrap())
            );
            lengths.push(value["value"].as_str().unwrap().len());
        }
        assert!(lengths[0] > lengths[1] && lengths[1] > lengths[2], "{lengths:?}");
    }
}
