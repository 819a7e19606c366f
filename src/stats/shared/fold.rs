//! What a run of journal entries adds to the shared keys.
//!
//! The sums are those of [`Delta`]; beside them stand the names that a hash does not tell: the shop's own ids of visitors
//! and sessions, which the sets hold as the older deployment does, and the events themselves where they are kept.

use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use serde::Serialize;
use serde_json::value::RawValue;

use super::keys::{self, site_prefix};
use super::ops::Ops;
use super::{Role, SharedOptions, UniquesMode};
use crate::clock::{DAY, SECOND, UnixMillis};
use crate::event::Event;
use crate::event::codec::Entry;
use crate::event::record::Record;
use crate::stats::delta::{Delta, MinuteDelta, SiteDelta};
use crate::stats::live_site::WindowName;
use crate::stats::window::Tier;

/// Latest events kept of a user.
const USER_EVENTS: usize = 100;
/// Events in one entry of a stream; more begin another.
const STREAM_BATCH: usize = 200;
/// Bytes of one entry; more begin another.
const STREAM_BYTES: usize = 256 << 10;
/// How long a user's events are kept.
const USER_EVENTS_KEPT: UnixMillis = 30 * DAY;
/// How long an event is kept in its stream.
const STREAM_KEPT: UnixMillis = 7 * DAY;

/// Events of one stream entry: how many, and a line of JSON each.
type Lines = (usize, Vec<u8>);

/// A delta, and the names in it.
#[derive(Debug)]
pub(super) struct Fold {
    pub delta: Delta,
    role: Role,
    /// When the last event was received.
    time: Option<UnixMillis>,
    /// Events in it.
    events: u64,
    /// The shop's id of a visitor or session, by its hash.
    visitors: HashMap<u64, Box<str>>,
    sessions: HashMap<u64, Box<str>>,
    /// A user's events, oldest first.
    users: HashMap<(Arc<str>, Box<str>), Vec<String>>,
    /// Events by their stream's name.
    streams: HashMap<String, Vec<Lines>>,
    /// Events by the older deployment's key, of which a second's last one stays.
    singles: HashMap<String, (UnixMillis, String)>,
    bytes: usize,
}

/// Of which windows and totals a replayed entry tells nothing new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// Entries before this one are in what was put down at once.
    pub base: u64,
    /// Of these, windows that begin before this are, and totals.
    pub since: UnixMillis,
}

impl Fold {
    pub fn new(role: Role, from: u64) -> Self {
        Self {
            delta: Delta::new(from),
            role,
            time: None,
            events: 0,
            visitors: HashMap::new(),
            sessions: HashMap::new(),
            users: HashMap::new(),
            streams: HashMap::new(),
            singles: HashMap::new(),
            bytes: 0,
        }
    }

    /// About how many bytes it will send.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Events in it.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// When the last of them was received.
    pub fn time(&self) -> Option<UnixMillis> {
        self.time
    }

    /// About how many commands it takes.
    pub fn commands(&self) -> u64 {
        let pages = |minute: &MinuteDelta| minute.pages.len() + minute.other_types.len();
        let counters: usize = self.delta.sites.iter().flat_map(|site| &site.minutes).map(pages).sum();
        (3 * counters + self.users.len()) as u64
    }

    /// Adds the entry `seq`.
    pub fn apply(&mut self, seq: u64, entry: &Entry<'_>, journal: &str, options: &SharedOptions) {
        match self.role {
            Role::Counts => self.delta.apply(seq, entry),
            Role::Events => self.delta.advance(seq + 1),
        }
        let Entry::Event(event) = entry else { return };
        self.time = Some(event.received);
        self.events += 1;
        if event.bot.is_some() {
            return;
        }
        match self.role {
            Role::Counts => self.count(event, options),
            Role::Events => self.keep(seq, event, journal, options),
        }
    }

    fn count(&mut self, event: &Event<'_>, options: &SharedOptions) {
        if let Some(user) = event.user_id {
            self.visitors.entry(event.visitor).or_insert_with(|| user.into());
        }
        if let Some(session) = event.session_id {
            self.sessions.entry(event.session).or_insert_with(|| session.into());
        }
        if options.user_events
            && let Some(user) = event.user_id
        {
            let events = self.users.entry((self.delta.last_site(), user.into())).or_default();
            let text = user_event(event, None);
            self.bytes += text.len() + size_of::<String>();
            events.push(text);
            // Only so many stay; twice as many at most are carried along.
            if events.len() >= 2 * USER_EVENTS {
                let gone: usize = events.drain(..events.len() - USER_EVENTS).map(|text| text.len()).sum();
                self.bytes -= gone + USER_EVENTS * size_of::<String>();
            }
        }
    }

    fn keep(&mut self, seq: u64, event: &Event<'_>, journal: &str, options: &SharedOptions) {
        let prefix = site_prefix(event.site);
        if options.event_streams {
            let stream = format!("{prefix}events:{}", event.event_type);
            let entries = self.streams.entry(stream).or_default();
            if entries.last().is_none_or(|(count, lines)| *count >= STREAM_BATCH || lines.len() >= STREAM_BYTES) {
                entries.push((0, Vec::new()));
            }
            if let Some((count, lines)) = entries.last_mut() {
                let before = lines.len();
                Record::new(event, seq, journal).put_ndjson(lines);
                self.bytes += lines.len() - before;
                *count += 1;
            }
        }
        if options.event_keys {
            let key = format!("{prefix}events:{}:{}", event.event_type, event.timestamp / SECOND);
            let text = user_event(event, event.user_id);
            self.bytes += text.len() + key.len();
            self.singles.insert(key, (event.timestamp, text));
        }
    }

    /// What is to be done to counters and sets, on top of what is `known`.
    pub fn counts(&self, ops: &mut Ops<'_>, options: &SharedOptions, instance: &str, known: Option<Known>) {
        let known = known.filter(|known| self.delta.from < known.base);
        for site in &self.delta.sites {
            self.site(ops, site, options, known);
            if known.is_none() {
                audit(ops, site, instance);
            }
        }
    }

    /// What is to be done to lists and streams. Gives their texts away, as they are long.
    pub fn texts(&mut self, ops: &mut Ops<'_>, options: &SharedOptions, now: UnixMillis) {
        // By the day, so that it is set again while there are events.
        let expires = |kept: UnixMillis| Some((Tier::Day.floor(now) + DAY + kept) / SECOND);
        for ((site, user), mut events) in std::mem::take(&mut self.users) {
            let name = format!("{}user_events:{user}", site_prefix(&site));
            let old = events.len().saturating_sub(USER_EVENTS);
            let most = USER_EVENTS.to_string().into_bytes();
            let latest = events.drain(old..).map(String::into_bytes);
            ops.put("push", &name, expires(USER_EVENTS_KEPT), std::iter::once(most).chain(latest));
        }
        let oldest = (now - STREAM_KEPT).max(0).to_string().into_bytes();
        for (name, entries) in std::mem::take(&mut self.streams) {
            let most = options.stream_entries.to_string().into_bytes();
            let mut left = entries.len();
            for (count, lines) in entries {
                left -= 1;
                let oldest = if left == 0 { oldest.clone() } else { Vec::new() };
                let fields = [b"count".to_vec(), count.to_string().into_bytes(), b"events".to_vec(), lines];
                ops.put("stream", &name, expires(STREAM_KEPT), [most.clone(), oldest].into_iter().chain(fields));
            }
        }
        for (name, (at, text)) in std::mem::take(&mut self.singles) {
            ops.put("set", &name, Some((at + STREAM_KEPT) / SECOND), [text.into_bytes()]);
        }
    }

    fn site(&self, ops: &mut Ops<'_>, site: &SiteDelta, options: &SharedOptions, known: Option<Known>) {
        let prefix = site_prefix(&site.name);
        if known.is_none() {
            let mut views = 0;
            let mut pages: HashMap<&Arc<str>, u64> = HashMap::new();
            for minute in &site.minutes {
                views += minute.page_views;
                minute.pages.iter().for_each(|(page, tally)| *pages.entry(page).or_default() += tally.n);
            }
            let pages =
                pages.into_iter().map(|(page, n)| (format!("{prefix}pv:page:{}:total", keys::page_hash(page)), n));
            let total = (views > 0).then(|| (format!("{prefix}pv:total"), views));
            ops.counts(None, total.into_iter().chain(pages));
        }
        let mut minutes: Vec<&MinuteDelta> = site.minutes.iter().collect();
        minutes.sort_unstable_by_key(|minute| minute.start);
        for window in WindowName::ALL {
            for minutes in minutes.chunk_by(|a, b| window.start(a.start) == window.start(b.start)) {
                let start = window.start(minutes[0].start);
                if known.is_none_or(|known| start >= known.since) {
                    self.window(ops, &prefix, window, start, minutes, options);
                }
            }
        }
    }

    fn window(
        &self,
        ops: &mut Ops<'_>,
        prefix: &str,
        window: WindowName,
        start: UnixMillis,
        minutes: &[&MinuteDelta],
        options: &SharedOptions,
    ) {
        let mut sums = WindowSums::default();
        let (mut visitors, mut sessions): (HashSet<u64>, HashSet<u64>) = Default::default();
        for minute in minutes {
            sums.page_views += minute.page_views;
            minute.pages.iter().for_each(|(page, tally)| *sums.pages.entry(page).or_default() += tally.n);
            minute.other_types.iter().for_each(|(name, tally)| *sums.types.entry(name).or_default() += tally.n);
            visitors.extend(&minute.visitors);
            sessions.extend(&minute.sessions);
        }
        sums.visitors = visitors.into_iter().map(|hash| member(hash, &self.visitors)).collect();
        sums.sessions = sessions.into_iter().map(|hash| member(hash, &self.sessions)).collect();
        sums.put(ops, prefix, window, start, options);
    }
}

/// A window's numbers on the way to its keys.
#[derive(Debug, Default)]
pub(super) struct WindowSums<'a> {
    pub page_views: u64,
    pub pages: HashMap<&'a str, u64>,
    /// Of other types than page views.
    pub types: HashMap<&'a str, u64>,
    pub visitors: Vec<String>,
    pub sessions: Vec<String>,
}

impl WindowSums<'_> {
    /// Adds them to the window's keys.
    pub fn put(&self, ops: &mut Ops<'_>, prefix: &str, window: WindowName, start: UnixMillis, options: &SharedOptions) {
        let (word, seconds) = (window.as_str(), start / SECOND);
        let expires = Some(keys::expires(window, start, keys::kept(window)));
        let views = (self.page_views > 0).then(|| (format!("{prefix}pv:{word}:{seconds}"), self.page_views));
        let types = self.types.iter().map(|(name, n)| (format!("{prefix}event_count:{name}:{word}:{seconds}"), *n));
        let pages = self
            .pages
            .iter()
            .map(|(page, n)| (format!("{prefix}pv:page:{}:{word}:{seconds}", keys::page_hash(page)), *n));
        ops.counts(expires, views.into_iter().chain(types).chain(pages));
        let (op, suffix) = match options.uniques {
            UniquesMode::Set => ("sadd", ""),
            // Another name: a set and a sketch cannot be one key, and the older deployment knows sets only.
            UniquesMode::Hll => ("pfadd", "_hll"),
        };
        for (name, members) in [("uv", &self.visitors), ("sessions", &self.sessions)] {
            if !members.is_empty() {
                let members = members.iter().map(|member| member.clone().into_bytes());
                ops.put(op, &format!("{prefix}{name}{suffix}:{word}:{seconds}"), expires, members);
            }
        }
        if !self.pages.is_empty() {
            let expires = keys::expires(window, start, keys::hot_pages_kept(window));
            let pairs = self.pages.iter().flat_map(|(page, n)| [page.as_bytes().to_vec(), n.to_string().into_bytes()]);
            ops.put("zincr", &keys::hot_pages(prefix, window, seconds), Some(expires), pairs);
        }
    }
}

/// How a visitor or session stands in a set: by the shop's own id where it has one.
fn member(hash: u64, names: &HashMap<u64, Box<str>>) -> String {
    names.get(&hash).map_or_else(|| hash_member(hash), |name| String::from(&**name))
}

/// How one without stands there.
pub(super) fn hash_member(hash: u64) -> String {
    format!("{hash:016x}")
}

/// Adds what became of a site's entries to the instance's books.
fn audit(ops: &mut Ops<'_>, site: &SiteDelta, instance: &str) {
    let audit = &site.audit;
    let rejected = audit.rejected.iter().map(|(code, n)| (code.as_str(), *n));
    let all = [("counted", audit.counted), ("duplicate", audit.duplicates)].into_iter().chain(rejected);
    let pairs = all.filter(|(_, n)| *n > 0).flat_map(|(code, n)| [format!("{code}:{}", site.name), n.to_string()]);
    let pairs: Vec<Vec<u8>> = pairs.map(String::into_bytes).collect();
    if !pairs.is_empty() {
        ops.put("hincr", &audit_key(instance), None, pairs);
    }
}

/// The instance's books.
pub(super) fn audit_key(instance: &str) -> String {
    format!("tg:audit:{instance}")
}

/// An event as the older deployment writes it into a user's list, and what is useful besides.
#[derive(Serialize)]
struct UserEvent<'a> {
    #[serde(rename = "type")]
    event_type: &'a str,
    /// Unix seconds.
    timestamp: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<&'a str>,
    /// Where the key does not name it.
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<&'a str>,
}

fn user_event(event: &Event<'_>, user_id: Option<&str>) -> String {
    let event = UserEvent {
        event_type: event.event_type,
        timestamp: event.timestamp / SECOND,
        data: event.data.and_then(|data| serde_json::from_str(data).ok()),
        url: event.url,
        user_id,
    };
    serde_json::to_string(&event).unwrap_or_default()
}
