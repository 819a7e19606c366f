//! An event as it leaves Tidegate: in exports, and in a visitor's list.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{BotReason, Event, EventId};
use crate::clock::rfc3339;

/// Columns of the CSV form, which are the fields of [`Record`] in order.
pub const COLUMNS: [&str; 16] = [
    "id",
    "type",
    "timestamp",
    "received_at",
    "site",
    "url",
    "referrer",
    "title",
    "user_id",
    "session_id",
    "product_id",
    "data",
    "bot",
    "visitor",
    "session",
    "offset",
];

/// An event with its names. What came without an id is named by the journal.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Record<'a> {
    /// The client's id, or the journal's name of the event.
    pub id: Cow<'a, str>,
    /// `page_view` or the client's word.
    #[serde(rename = "type")]
    pub event_type: &'a str,
    /// RFC 3339, corrected.
    pub timestamp: String,
    /// RFC 3339.
    pub received_at: String,
    /// The site.
    pub site: &'a str,
    /// As sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<&'a str>,
    /// As sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub referrer: Option<&'a str>,
    /// As sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<&'a str>,
    /// As sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<&'a str>,
    /// As sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_id: Option<&'a str>,
    /// As sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub product_id: Option<&'a str>,
    /// As sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub data: Option<&'a RawValue>,
    /// Why it counts as a bot's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub bot: Option<BotReason>,
    /// Hash of the visitor, 16 hex digits.
    pub visitor: String,
    /// Hash of the session, 16 hex digits.
    pub session: String,
    /// Its number in the journal.
    pub offset: u64,
}

impl<'a> Record<'a> {
    /// Of the event with this number in the journal named `journal`.
    pub fn new(event: &Event<'a>, offset: u64, journal: &str) -> Self {
        let id = match event.id {
            EventId::None => Cow::Owned(format!("{journal}-{offset}")),
            EventId::Uuid(bytes) => Cow::Owned(uuid::Uuid::from_bytes(bytes).to_string()),
            EventId::Text(text) => Cow::Borrowed(text),
        };
        Self {
            id,
            event_type: event.event_type,
            timestamp: rfc3339(event.timestamp),
            received_at: rfc3339(event.received),
            site: event.site,
            url: event.url,
            referrer: event.referrer,
            title: event.title,
            user_id: event.user_id,
            session_id: event.session_id,
            product_id: event.product_id,
            data: event.data.and_then(|data| serde_json::from_str(data).ok()),
            bot: event.bot,
            visitor: format!("{:016x}", event.visitor),
            session: format!("{:016x}", event.session),
            offset,
        }
    }

    /// Appends it as a line of CSV (RFC 4180).
    pub fn put_csv(&self, out: &mut Vec<u8>) {
        let offset = self.offset.to_string();
        let fields = [
            self.id.as_ref(),
            self.event_type,
            &self.timestamp,
            &self.received_at,
            self.site,
            self.url.unwrap_or_default(),
            self.referrer.unwrap_or_default(),
            self.title.unwrap_or_default(),
            self.user_id.unwrap_or_default(),
            self.session_id.unwrap_or_default(),
            self.product_id.unwrap_or_default(),
            self.data.map_or("", |data| data.get()),
            self.bot.map_or("", |bot| bot.as_str()),
            &self.visitor,
            &self.session,
            &offset,
        ];
        for (i, field) in fields.into_iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            if field.bytes().any(|b| matches!(b, b',' | b'"' | b'\n' | b'\r')) {
                out.push(b'"');
                out.extend_from_slice(field.replace('"', "\"\"").as_bytes());
                out.push(b'"');
            } else {
                out.extend_from_slice(field.as_bytes());
            }
        }
        out.extend_from_slice(b"\r\n");
    }

    /// Appends it as a line of JSON.
    pub fn put_ndjson(&self, out: &mut Vec<u8>) {
        let start = out.len();
        if serde_json::to_writer(&mut *out, self).is_ok() {
            // `data` is as it was sent, line breaks included; in JSON these stand only where any white space may.
            out[start..].iter_mut().filter(|b| matches!(b, b'\n' | b'\r')).for_each(|b| *b = b' ');
            out.push(b'\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(data: &'static str) -> Event<'static> {
        Event {
            received: 1_700_000_000_123,
            timestamp: 1_700_000_000_000,
            site: "shop",
            event_type: "buy",
            id: EventId::None,
            visitor: 7,
            session: 8,
            url: Some("https://a/?x=1,2"),
            referrer: None,
            title: Some("a \"b\""),
            user_id: None,
            session_id: None,
            product_id: None,
            data: Some(data),
            bot: Some(BotReason::Crawler),
            imported: false,
        }
    }

    #[test]
    fn data_over_several_lines_stays_one_line() {
        let event = event("{\n  \"a\":\r\n 1}");
        let mut out = Vec::new();
        Record::new(&event, 1, "j").put_ndjson(&mut out);
        assert_eq!(out.iter().filter(|b| matches!(b, b'\n' | b'\r')).count(), 1);
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(value["data"]["a"], 1);
    }

    #[test]
    fn a_record_is_json_and_csv() {
        let event = event(r#"{"a": "x"}"#);
        let record = Record::new(&event, 42, "j1");
        let mut json = Vec::new();
        record.put_ndjson(&mut json);
        let value: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(value["id"], "j1-42");
        assert_eq!(value["data"]["a"], "x");
        assert_eq!(value["timestamp"], "2023-11-14T22:13:20.000Z");
        assert!(value.get("referrer").is_none());
        let mut csv = Vec::new();
        record.put_csv(&mut csv);
        let line = String::from_utf8(csv).unwrap();
        assert!(line.contains(r#""https://a/?x=1,2",,"a ""b""","#), "{line}");
        assert!(line.contains(r#""{""a"": ""x""}",crawler,0000000000000007"#), "{line}");
    }
}
