//! An event as clients write it: JSON with borrowed strings, and the query string of the pixel.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde_json::value::RawValue;

/// Text that borrows from the body where it can. Numbers are taken as their decimal text, since shops send numeric ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text<'a>(pub Cow<'a, str>);

impl std::ops::Deref for Text<'_> {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string or an integer")
            }
            fn visit_borrowed_str<E: de::Error>(self, v: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(v)))
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(v.to_owned())))
            }
            fn visit_u64<E: de::Error>(self, v: u64) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(v.to_string())))
            }
            fn visit_i64<E: de::Error>(self, v: i64) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(v.to_string())))
            }
        }
        d.deserialize_any(V)
    }
}

/// A point in time as sent: Unix milliseconds, or text that is RFC 3339 or the same digits.
#[derive(Clone, Debug, PartialEq)]
pub enum Time<'a> {
    /// Unix milliseconds.
    Millis(i64),
    /// Not yet parsed.
    Text(Cow<'a, str>),
}

impl<'de: 'a, 'a> Deserialize<'de> for Time<'a> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Time<'de>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("RFC 3339 text or Unix milliseconds")
            }
            fn visit_borrowed_str<E: de::Error>(self, v: &'de str) -> Result<Self::Value, E> {
                Ok(Time::Text(Cow::Borrowed(v)))
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<Self::Value, E> {
                Ok(Time::Text(Cow::Owned(v.to_owned())))
            }
            fn visit_u64<E: de::Error>(self, v: u64) -> Result<Self::Value, E> {
                Ok(Time::Millis(i64::try_from(v).unwrap_or(i64::MAX)))
            }
            fn visit_i64<E: de::Error>(self, v: i64) -> Result<Self::Value, E> {
                Ok(Time::Millis(v))
            }
            fn visit_f64<E: de::Error>(self, v: f64) -> Result<Self::Value, E> {
                // performance.timeOrigin-based clocks send fractions of a millisecond.
                Ok(Time::Millis(v as i64))
            }
        }
        d.deserialize_any(V)
    }
}

/// An event before its rules were checked. Unknown fields are ignored, so that newer trackers work with older servers.
#[derive(Clone, Debug, Default, serde::Deserialize)]
pub struct RawEvent<'a> {
    /// What happened.
    #[serde(borrow, default, rename = "type")]
    pub event_type: Option<Text<'a>>,
    /// Dedup id.
    #[serde(borrow, default)]
    pub id: Option<Text<'a>>,
    /// When it happened, by the client's clock.
    #[serde(borrow, default)]
    pub timestamp: Option<Time<'a>>,
    /// When the client sent it, by the same clock.
    #[serde(borrow, default)]
    pub sent_at: Option<Time<'a>>,
    /// Which site.
    #[serde(borrow, default)]
    pub site: Option<Text<'a>>,
    /// Which page.
    #[serde(borrow, default)]
    pub url: Option<Text<'a>>,
    /// Where the visitor came from.
    #[serde(borrow, default)]
    pub referrer: Option<Text<'a>>,
    /// The page's title.
    #[serde(borrow, default)]
    pub title: Option<Text<'a>>,
    /// The shop's name of the visitor.
    #[serde(borrow, default)]
    pub user_id: Option<Text<'a>>,
    /// The client's session.
    #[serde(borrow, default)]
    pub session_id: Option<Text<'a>>,
    /// The product.
    #[serde(borrow, default)]
    pub product_id: Option<Text<'a>>,
    /// Anything else, a JSON object.
    #[serde(borrow, default)]
    pub data: Option<&'a RawValue>,
    /// The visitor's address; read by the import only.
    #[serde(borrow, default)]
    pub address: Option<Text<'a>>,
    /// The visitor's agent; read by the import only.
    #[serde(borrow, default)]
    pub user_agent: Option<Text<'a>>,
    /// `false` keeps the agent's classification out; read by the import only (`--raw`).
    #[serde(default)]
    pub classify: Option<bool>,
    /// Hash of an anonymous visitor, as exports have it; read by the import only.
    #[serde(borrow, default)]
    pub visitor: Option<Text<'a>>,
    /// Hash of a session, as exports have it; read by the import only.
    #[serde(borrow, default)]
    pub session: Option<Text<'a>>,
    /// Why it was a bot's, as exports have it; read by the import only.
    #[serde(borrow, default)]
    pub bot: Option<Text<'a>>,
}
