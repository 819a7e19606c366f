//! etcd's keys below a prefix, as its HTTP/JSON gateway tells of them: read once, and then changed by what a watch says.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer};

use super::keeper::Fault;
use super::node::{Answer, BadNode, MAX_NODES, target_at};
use crate::gateway::options::TargetOptions;

/// All names of keys together, in bytes.
const MAX_KEY_BYTES: usize = 4 << 20;

/// The keys, and the revision of the store that they are from.
#[derive(Debug)]
pub(super) struct Keys {
    held: BTreeMap<Vec<u8>, Result<TargetOptions, BadNode>>,
    key_bytes: usize,
    /// The first revision that is not known.
    pub next: i64,
}

/// What a line of a watch means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// There is nothing new up to here.
    Nothing,
    /// Keys have changed.
    Changed,
    /// What there was can not be told any more (compacted), or the store is another one: read it anew.
    Anew,
}

#[derive(Deserialize)]
struct Header {
    #[serde(default, deserialize_with = "number")]
    revision: i64,
}

#[derive(Deserialize)]
struct Range {
    header: Header,
    #[serde(default)]
    kvs: Vec<KeyValue>,
    #[serde(default)]
    more: bool,
}

#[derive(Deserialize)]
struct KeyValue {
    key: String,
    #[serde(default)]
    value: String,
    #[serde(default, deserialize_with = "number")]
    mod_revision: i64,
}

#[derive(Deserialize)]
struct Line {
    result: Option<Watch>,
}

#[derive(Deserialize)]
struct Watch {
    header: Header,
    #[serde(default)]
    created: bool,
    #[serde(default)]
    canceled: bool,
    #[serde(default)]
    events: Vec<Event>,
}

#[derive(Deserialize)]
struct Event {
    /// Left out for PUT.
    #[serde(default, rename = "type")]
    kind: Option<String>,
    kv: KeyValue,
}

/// 64-bit numbers are texts in protobuf's JSON.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Number {
        Text(String),
        Plain(i64),
    }
    match Number::deserialize(deserializer)? {
        Number::Text(text) => text.parse().map_err(serde::de::Error::custom),
        Number::Plain(number) => Ok(number),
    }
}

impl Keys {
    /// From the answer to a range.
    pub fn read(body: &[u8]) -> Result<Self, Fault> {
        let range: Range = serde_json::from_slice(body).map_err(|_| Fault::Malformed)?;
        if range.more || range.kvs.len() > MAX_NODES {
            return Err(Fault::TooMany);
        }
        if range.header.revision < 1 {
            return Err(Fault::Malformed);
        }
        let mut keys = Self { held: BTreeMap::new(), key_bytes: 0, next: range.header.revision + 1 };
        for kv in &range.kvs {
            keys.put(kv)?;
        }
        Ok(keys)
    }

    /// Takes a line of a watch.
    pub fn told(&mut self, line: &[u8]) -> Result<Told, Fault> {
        let line: Line = serde_json::from_slice(line).map_err(|_| Fault::Malformed)?;
        // The other kind of line is an error.
        let watch = line.result.ok_or(Fault::Lost)?;
        if watch.canceled {
            return Ok(Told::Anew);
        }
        if watch.created {
            // A store that was set back would keep silent until it has come so far again.
            let behind = watch.header.revision < self.next - 1;
            return Ok(if behind { Told::Anew } else { Told::Nothing });
        }
        for event in &watch.events {
            match event.kind.as_deref() {
                None | Some("PUT") => self.put(&event.kv)?,
                Some("DELETE") => {
                    let key = decoded(&event.kv.key)?;
                    if self.held.remove(&key).is_some() {
                        self.key_bytes -= key.len();
                    }
                }
                Some(_) => return Err(Fault::Malformed),
            }
            self.next = self.next.max(event.kv.mod_revision + 1);
        }
        if watch.events.is_empty() {
            self.next = self.next.max(watch.header.revision + 1);
            return Ok(Told::Nothing);
        }
        Ok(Told::Changed)
    }

    fn put(&mut self, kv: &KeyValue) -> Result<(), Fault> {
        let key = decoded(&kv.key)?;
        let value = node(&decoded(&kv.value)?);
        let length = key.len();
        if self.held.insert(key, value).is_none() {
            self.key_bytes += length;
        }
        match () {
            () if self.held.len() > MAX_NODES => Err(Fault::TooMany),
            () if self.key_bytes > MAX_KEY_BYTES => Err(Fault::TooLong),
            () => Ok(()),
        }
    }

    /// What they say.
    pub fn answer(&self) -> Answer {
        Answer::of(self.held.values().cloned())
    }
}

fn decoded(text: &str) -> Result<Vec<u8>, Fault> {
    STANDARD.decode(text).map_err(|_| Fault::Malformed)
}

/// A value: `host:port`, or JSON with `address` and `weight`.
fn node(value: &[u8]) -> Result<TargetOptions, BadNode> {
    #[derive(Deserialize)]
    struct Node {
        address: String,
        weight: Option<u64>,
    }
    let text = std::str::from_utf8(value).map_err(|_| BadNode::Form)?.trim();
    if !text.starts_with('{') {
        return target_at(text, 1);
    }
    let node: Node = serde_json::from_str(text).map_err(|_| BadNode::Form)?;
    target_at(&node.address, node.weight.unwrap_or(1))
}

/// The key before which all keys with this prefix end, as etcd wants it: the prefix with its last byte counted up; all
/// keys from one on are a byte 0.
pub(super) fn range_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

/// The body of a range: all keys with a prefix.
pub(super) fn range_body(prefix: &str) -> String {
    let (key, end) = bounds(prefix);
    format!(r#"{{"key":"{key}","range_end":"{end}","limit":"{MAX_NODES}"}}"#)
}

/// The body of a watch of the same keys from a revision on.
pub(super) fn watch_body(prefix: &str, from: i64) -> String {
    let (key, end) = bounds(prefix);
    format!(r#"{{"create_request":{{"key":"{key}","range_end":"{end}","start_revision":"{from}"}}}}"#)
}

fn bounds(prefix: &str) -> (String, String) {
    // No key is empty; the first that can be is a byte 0.
    let key = if prefix.is_empty() { &[0] } else { prefix.as_bytes() };
    (STANDARD.encode(key), STANDARD.encode(range_end(prefix.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn b64(text: &str) -> String {
        STANDARD.encode(text)
    }

    fn kv(key: &str, value: &str, revision: i64) -> String {
        format!(r#"{{"key":"{}","value":"{}","mod_revision":"{revision}"}}"#, b64(key), b64(value))
    }

    fn addresses(keys: &Keys) -> Vec<String> {
        keys.answer().targets.into_iter().map(|target| format!("{} {}", target.address, target.weight)).collect()
    }

    #[test]
    fn prefixes_end_where_the_next_begins() {
        assert_eq!(range_end(b"/users/"), b"/users0");
        assert_eq!(range_end(b"a\xff\xff"), b"b");
        assert_eq!(range_end(b"\xff"), [0]);
        assert_eq!(range_end(b""), [0]);
        assert_eq!(range_body(""), r#"{"key":"AA==","range_end":"AA==","limit":"10000"}"#);
    }

    #[test]
    fn a_range_and_what_a_watch_says_after_it() {
        let body = format!(
            r#"{{"header":{{"cluster_id":"1","revision":"7"}},"kvs":[{},{},{}],"count":"3"}}"#,
            kv("/s/a", "10.0.0.1:80", 3),
            kv("/s/b", r#"{"address": "b.internal:81", "weight": 5, "zone": "x"}"#, 4),
            kv("/s/c", "nothing", 5)
        );
        let mut keys = Keys::read(body.as_bytes()).unwrap();
        assert_eq!((keys.next, keys.answer().rejected), (8, 1));
        assert_eq!(addresses(&keys), ["10.0.0.1:80 1", "b.internal:81 5"]);
        // As etcd 3.4 writes them.
        let created = br#"{"result":{"header":{"cluster_id":"1","member_id":"2","revision":"7"},"created":true}}"#;
        assert_eq!(keys.told(created), Ok(Told::Nothing));
        let events = format!(
            r#"{{"result":{{"header":{{"revision":"20"}},"events":[{{"kv":{}}},{{"type":"DELETE","kv":{{"key":"{}","mod_revision":"10"}}}}]}}}}"#,
            kv("/s/c", "10.0.0.3:80", 9),
            b64("/s/a")
        );
        assert_eq!(keys.told(events.as_bytes()), Ok(Told::Changed));
        assert_eq!(addresses(&keys), ["10.0.0.3:80 1", "b.internal:81 5"]);
        assert_eq!((keys.next, keys.answer().rejected), (11, 0), "there may be more from before the header's revision");
        assert_eq!(keys.told(br#"{"result":{"header":{"revision":"30"}}}"#), Ok(Told::Nothing));
        assert_eq!(keys.next, 31, "progress");
        let gone = format!(
            r#"{{"result":{{"header":{{"revision":"31"}},"events":[{{"type":"DELETE","kv":{{"key":"{}"}}}}]}}}}"#,
            b64("/s/never")
        );
        assert_eq!(keys.told(gone.as_bytes()), Ok(Told::Changed));
        assert_eq!(addresses(&keys).len(), 2);
    }

    #[test]
    fn what_cannot_be_continued_is_read_anew() {
        let mut keys = Keys::read(br#"{"header":{"revision":"7"}}"#).unwrap();
        assert_eq!(keys.answer().nodes, 0);
        let compacted =
            br#"{"result":{"header":{"cluster_id":"1","raft_term":"2"},"canceled":true,"compact_revision":"4"}}"#;
        assert_eq!(keys.told(compacted), Ok(Told::Anew));
        assert_eq!(keys.told(br#"{"result":{"header":{"revision":"6"},"created":true}}"#), Ok(Told::Anew));
        assert_eq!(keys.told(br#"{"result":{"header":{"revision":"7"},"created":true}}"#), Ok(Told::Nothing));
        assert_eq!(keys.told(br#"{"error":{"grpc_code":14,"message":"no leader"}}"#), Err(Fault::Lost));
        let odd = format!(r#"{{"result":{{"header":{{}},"events":[{{"type":"ODD","kv":{}}}]}}}}"#, kv("a", "b", 1));
        for wrong in ["", "{", "[]", r#"{"result": 1}"#, r#"{"result":{"header":{"revision":"x"}}}"#, odd.as_str()] {
            assert_eq!(keys.told(wrong.as_bytes()), Err(Fault::Malformed), "{wrong}");
        }
        for wrong in ["", "[]", "{}", r#"{"header":{}}"#, r#"{"header":{"revision":"1"},"kvs":[{"key":"!"}]}"#] {
            assert_eq!(Keys::read(wrong.as_bytes()).err(), Some(Fault::Malformed), "{wrong}");
        }
        let more = br#"{"header":{"revision":"1"},"more":true,"count":"10001"}"#;
        assert_eq!(Keys::read(more).err(), Some(Fault::TooMany));
    }

    #[test]
    fn what_is_held_is_bounded() {
        let mut keys = Keys::read(br#"{"header":{"revision":"7"}}"#).unwrap();
        let put = |key: String, value: &str| {
            format!(r#"{{"result":{{"header":{{"revision":"8"}},"events":[{{"kv":{}}}]}}}}"#, kv(&key, value, 8))
        };
        let long = |n: usize| put(format!("{n}{}", "k".repeat(1 << 20)), "a:1");
        for n in 0..3 {
            assert_eq!(keys.told(long(n).as_bytes()), Ok(Told::Changed));
            assert_eq!(keys.told(long(n).as_bytes()), Ok(Told::Changed), "the same again is no more");
        }
        assert_eq!(keys.told(long(4).as_bytes()), Err(Fault::TooLong));
        let mut keys = Keys::read(br#"{"header":{"revision":"7"}}"#).unwrap();
        for n in 0..MAX_NODES {
            assert_eq!(keys.told(put(n.to_string(), "a:1").as_bytes()), Ok(Told::Changed));
        }
        assert_eq!(keys.told(put(String::from("one more"), "a:1").as_bytes()), Err(Fault::TooMany));
    }
}
