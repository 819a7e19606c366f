//! Bodies into events: one JSON value, an array, or lines. A bad event never takes its neighbours with it.

use std::borrow::Cow;

use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::wire::{RawEvent, Text, Time};
use super::{Reject, RejectCode};

/// How a body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// `application/x-ndjson`: one event a line, whatever a line looks like.
    Lines,
    /// Anything else: one value, an array, or lines if it turns out so.
    Guess,
}

/// Calls `each` with every event of `body`, in order, and its index.
pub fn body<'a>(body: &'a [u8], framing: Framing, mut each: impl FnMut(u32, Result<RawEvent<'a>, Reject>)) {
    // A byte order mark is no JSON, but Windows tools write it.
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    if framing == Framing::Lines {
        return lines(body, &mut each);
    }
    match body.iter().find(|b| !b.is_ascii_whitespace()) {
        Some(b'[') => array(body, &mut each),
        Some(_) => match serde_json::from_slice::<RawEvent<'a>>(body) {
            Ok(event) => each(0, Ok(event)),
            // One broken value stays one refusal even when it was printed over several lines.
            Err(error) if !looks_like_lines(body) => each(0, Err(refusal(0, body, &error))),
            Err(_) => lines(body, &mut each),
        },
        None => {}
    }
}

/// Whether more than one line begins like an object, which a pretty-printed object's own lines hardly do.
fn looks_like_lines(body: &[u8]) -> bool {
    let starts = |line: &&[u8]| line.first() == Some(&b'{');
    body.split(|b| *b == b'\n').filter(starts).nth(1).is_some()
}

fn lines<'a>(body: &'a [u8], each: &mut impl FnMut(u32, Result<RawEvent<'a>, Reject>)) {
    let mut index = 0;
    let mut rest = body;
    while !rest.is_empty() {
        let end = memchr::memchr(b'\n', rest).unwrap_or(rest.len());
        let line = rest[..end].trim_ascii();
        rest = rest.get(end + 1..).unwrap_or_default();
        if !line.is_empty() {
            each(index, one(index, line));
            index += 1;
        }
    }
}

fn one<'a>(index: u32, text: &'a [u8]) -> Result<RawEvent<'a>, Reject> {
    serde_json::from_slice(text).map_err(|error| refusal(index, text, &error))
}

/// Elements are handed on as they are read, so that what stands before a syntax error is kept.
fn array<'a>(body: &'a [u8], each: &mut impl FnMut(u32, Result<RawEvent<'a>, Reject>)) {
    struct Elements<'e, F>(&'e mut F, &'e mut u32);

    impl<'de, F: FnMut(u32, Result<RawEvent<'de>, Reject>)> Visitor<'de> for Elements<'_, F> {
        type Value = ();
        fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
            f.write_str("an array of events")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
            while let Some(raw) = seq.next_element::<&'de RawValue>()? {
                let index = *self.1;
                (self.0)(index, one(index, raw.get().as_bytes()));
                *self.1 += 1;
            }
            Ok(())
        }
    }

    impl<'de, F: FnMut(u32, Result<RawEvent<'de>, Reject>)> DeserializeSeed<'de> for Elements<'_, F> {
        type Value = ();
        fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
            d.deserialize_seq(self)
        }
    }

    let mut index = 0;
    let mut json = serde_json::Deserializer::from_slice(body);
    let read = Elements(each, &mut index).deserialize(&mut json).and_then(|()| json.end());
    if let Err(error) = read {
        each(
            index,
            Err(Reject::new(
                index,
                RejectCode::InvalidJson,
                format!("the array is broken here, and the rest was not read: {error}"),
            )),
        );
    }
}

fn refusal(index: u32, text: &[u8], error: &serde_json::Error) -> Reject {
    let (code, message) = match error.classify() {
        serde_json::error::Category::Data => match text.trim_ascii().first() {
            Some(b'{') => (RejectCode::InvalidField, error.to_string()),
            _ => (RejectCode::NotAnObject, String::from("an event is a JSON object")),
        },
        _ => (RejectCode::InvalidJson, error.to_string()),
    };
    Reject::new(index, code, message)
}

/// The event in a query string, as the pixel sends it, but for its `data`. Unknown parameters are ignored.
pub fn query(query: &str) -> RawEvent<'_> {
    let mut event = RawEvent::default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = unescape(value);
        if value.is_empty() {
            continue;
        }
        match name {
            "type" => event.event_type = Some(Text(value)),
            "id" => event.id = Some(Text(value)),
            "timestamp" => event.timestamp = Some(Time::Text(value)),
            "sent_at" => event.sent_at = Some(Time::Text(value)),
            "site" => event.site = Some(Text(value)),
            "url" => event.url = Some(Text(value)),
            "referrer" => event.referrer = Some(Text(value)),
            "title" => event.title = Some(Text(value)),
            "user_id" => event.user_id = Some(Text(value)),
            "session_id" => event.session_id = Some(Text(value)),
            "product_id" => event.product_id = Some(Text(value)),
            // `data` borrows raw JSON, which a percent-encoded value is not: see `query_data`.
            _ => {}
        }
    }
    event
}

/// The `data` of a pixel's query string, decoded.
pub fn query_data(query: &str) -> Option<Cow<'_, str>> {
    query.split('&').find_map(|pair| pair.strip_prefix("data=")).map(unescape).filter(|data| !data.is_empty())
}

/// Undoes `application/x-www-form-urlencoded`; bytes that are no UTF-8 become U+FFFD.
pub fn unescape(text: &str) -> Cow<'_, str> {
    if !text.bytes().any(|b| b == b'%' || b == b'+') {
        return Cow::Borrowed(text);
    }
    let hex = |b: Option<&u8>| b.and_then(|b| (*b as char).to_digit(16));
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        match (bytes[i], hex(bytes.get(i + 1)), hex(bytes.get(i + 2))) {
            (b'+', ..) => out.push(b' '),
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                i += 2;
            }
            (other, ..) => out.push(other),
        }
        i += 1;
    }
    Cow::Owned(String::from_utf8(out).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str, framing: Framing) -> Vec<Result<String, RejectCode>> {
        let mut out = vec![];
        body(text.as_bytes(), framing, |index, event| {
            assert_eq!(index as usize, out.len());
            out.push(event.map(|e| e.event_type.map_or(String::new(), |t| t.to_string())).map_err(|r| r.code));
        });
        out
    }

    fn ok(types: &[&str]) -> Vec<Result<String, RejectCode>> {
        types.iter().map(|t| Ok(String::from(*t))).collect()
    }

    #[test]
    fn one_an_array_or_lines() {
        let guess = |text| read(text, Framing::Guess);
        assert_eq!(guess(r#"{"type":"a"}"#), ok(&["a"]));
        assert_eq!(guess("\u{feff}{\n \"type\": \"a\"\n}\n"), ok(&["a"]));
        assert_eq!(guess(r#" [{"type":"a"},{"type":"b"}] "#), ok(&["a", "b"]));
        assert_eq!(guess("{\"type\":\"a\"}\n\n{\"type\":\"b\"}\r\n"), ok(&["a", "b"]));
        assert_eq!(read("{\"type\":\"a\"}", Framing::Lines), ok(&["a"]));
        assert_eq!(guess("[]"), []);
        assert_eq!(guess("  "), []);
    }

    #[test]
    fn neighbours_of_bad_events_stay() {
        use RejectCode::*;
        let a = || Ok(String::from("a"));
        let guess = |text| read(text, Framing::Guess);
        assert_eq!(
            guess(r#"[{"type":"a"},5,{"type":[]},{"type":"a"}]"#),
            [a(), Err(NotAnObject), Err(InvalidField), a()]
        );
        assert_eq!(guess(r#"[{"type":"a"},{"type":"a"},{"ty"#), [a(), a(), Err(InvalidJson)]);
        assert_eq!(guess(r#"[{"type":"a"}] trailing"#), [a(), Err(InvalidJson)]);
        assert_eq!(guess("{\"type\":\"a\"}\nrubbish\n{\"type\":\"a\"}"), [a(), Err(InvalidJson), a()]);
        assert_eq!(guess("{\n\"type\": \"a\",\n"), [Err(InvalidJson)]);
        assert_eq!(guess("hello"), [Err(InvalidJson)]);
        assert_eq!(guess("\"hello\""), [Err(NotAnObject)]);
    }

    #[test]
    fn a_pixel_is_an_event() {
        let event = query("url=https%3A%2F%2Fa%2F%3Fx%3D1&type=&title=a+b&rnd=5&user_id=%zz");
        assert_eq!(event.url.as_deref(), Some("https://a/?x=1"));
        assert_eq!(event.title.as_deref(), Some("a b"));
        assert_eq!(event.event_type, None);
        assert_eq!(event.user_id.as_deref(), Some("%zz"));
        assert_eq!(query_data("a=1&data=%7B%22x%22%3A1%7D").as_deref(), Some("{\"x\":1}"));
    }

    proptest! {
        #[test]
        fn no_body_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            body(&bytes, Framing::Guess, |_, _| {});
            body(&bytes, Framing::Lines, |_, _| {});
        }

        #[test]
        fn json_like_bodies_do_not_either(text in r#"[\[\]{}",:a-z0-9\\ \n-]{0,200}"#) {
            body(text.as_bytes(), Framing::Guess, |_, _| {});
        }

        #[test]
        fn no_query_makes_it_panic(text in "\\PC{0,100}") {
            let _ = query(&text);
            let _ = query_data(&text);
        }
    }
}
