//! The rules an event must meet, and what the server adds to it: time, site, visitor, bot, privacy.
//!
//! Whether a site takes what a request brings is asked first: who may not send hears nothing of what else is wrong.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::access::{Access, Claim};
use super::agent::{AgentPolicy, classify, cut};
use super::codec;
use super::visitor::{self, Salt, Salts};
use super::wire::{RawEvent, Text, Time};
use super::{Batch, BotReason, DEFAULT_SITE, EntryMeta, Event, EventId, PAGE_VIEW, Reject, RejectCode, page};
use crate::clock::{UnixMillis, parse_rfc3339};

const MAX_TYPE: usize = 64;
const MAX_SITE: usize = 64;
const MAX_ID: usize = 128;
const MAX_NAME: usize = 256;
const MAX_URL: usize = 2048;
const MAX_TITLE: usize = 512;
const MAX_DATA: usize = 8 * 1024;
const MAX_DEPTH: usize = 64;
/// 2000-01-01: anything before is a clock that was never set, or seconds sent as milliseconds.
const EARLIEST: UnixMillis = 946_684_800_000;

/// What a site does with events of visitors who send `Sec-GPC: 1` or `DNT: 1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrivacyPolicy {
    /// Count them like all others.
    Ignore,
    /// Count them without `user_id` and `session_id`.
    #[default]
    Anonymous,
    /// Do not count them.
    Drop,
}

/// What becomes of events for sites that have no settings of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownSites {
    /// They are taken, up to `ingest.max_sites`.
    #[default]
    Accept,
    /// They are refused.
    Reject,
}

/// A site's own settings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SiteRules {
    /// What it does with a privacy signal, if not as all do.
    pub privacy: Option<PrivacyPolicy>,
    /// Who may send events for it.
    pub access: Access,
}

/// The sites that have settings of their own.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sites {
    by_name: HashMap<String, SiteRules>,
    guarded: bool,
}

impl Sites {
    /// By their names.
    pub fn new(by_name: HashMap<String, SiteRules>) -> Self {
        let guarded = by_name.values().any(|site| !site.access.is_open());
        Self { by_name, guarded }
    }

    /// Whether any of them asks who sends: else nobody needs to look what a request shows.
    pub fn guarded(&self) -> bool {
        self.guarded
    }

    /// The settings of a site, if it has some.
    pub fn get(&self, site: &str) -> Option<&SiteRules> {
        self.by_name.get(site)
    }
}

/// The configured rules.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// How far after its receipt an event may have happened, in milliseconds. Up to this it is taken as happening now.
    pub max_future: UnixMillis,
    /// How long before its receipt an event may have happened, in milliseconds; `None` for any time since 2000.
    pub max_age: Option<UnixMillis>,
    /// What sites do with a privacy signal unless they have a policy of their own.
    pub privacy: PrivacyPolicy,
    /// What becomes of other sites than these.
    pub unknown_sites: UnknownSites,
    /// Settings of single sites.
    pub sites: Sites,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            max_future: crate::clock::DAY,
            max_age: None,
            privacy: PrivacyPolicy::default(),
            unknown_sites: UnknownSites::default(),
            sites: Sites::default(),
        }
    }
}

/// Who sent a request, and when it came.
#[derive(Clone, Copy, Debug)]
pub struct Sender<'a> {
    /// The visitor's address; hashed at once and never kept.
    pub address: &'a str,
    /// The `User-Agent`.
    pub agent: &'a str,
    /// `Sec-GPC: 1` or `DNT: 1` was sent.
    pub privacy_signal: bool,
    /// When the request came.
    pub received: UnixMillis,
    /// The request is an import: its events name their own address and agent, and it is the operator's.
    pub import: bool,
    /// By which it may send events for sites that ask for that.
    pub claim: &'a Claim,
}

/// Turns raw events of one request into entries of one batch.
pub struct Intake<'a> {
    rules: &'a Rules,
    salts: &'a Salts,
    sender: Sender<'a>,
    bot: Option<BotReason>,
    today: Salt,
    own: Option<(&'a str, u64)>,
}

impl<'a> Intake<'a> {
    /// For one request.
    pub fn new(rules: &'a Rules, salts: &'a Salts, sender: Sender<'a>) -> Self {
        let bot = if sender.import { None } else { AgentPolicy::Beacon.apply(classify(sender.agent)) };
        Self { rules, salts, sender, bot, today: salts.today(sender.received), own: None }
    }

    /// For an import into the journal of this name: events that an export of its own entries before `end` has named are
    /// there already.
    pub fn knows(mut self, journal: &'a str, end: u64) -> Self {
        self.own = Some((journal, end));
        self
    }

    /// Checks one event and puts it, or why it is refused, into `batch`.
    pub fn take(&self, index: u32, raw: Result<RawEvent<'_>, Reject>, batch: &mut Batch) {
        let raw = match raw {
            Ok(raw) => raw,
            Err(Reject { code, message, .. }) => {
                return batch.reject(super::reject::UNKNOWN_SITE, index, code, message);
            }
        };
        // The site is known as soon as it is well formed, whatever else is wrong.
        let site = raw.site.as_deref().filter(|site| !site.is_empty()).unwrap_or(DEFAULT_SITE);
        if !is_token(site, MAX_SITE) {
            let message = "site must be 1 to 64 characters of A-Z a-z 0-9 _ . : -";
            return batch.reject(super::reject::UNKNOWN_SITE, index, RejectCode::InvalidSite, message);
        }
        let own = self.rules.sites.get(site);
        if let Err((code, message)) = self.admit(own) {
            // Whoever makes up names of sites fills no books with them.
            let of = if own.is_none() { super::reject::UNKNOWN_SITE } else { site };
            return batch.reject(of, index, code, message);
        }
        if let Err((code, message)) = self.put(index, site, own, &raw, batch) {
            batch.reject(site, index, code, message);
        }
    }

    /// Whether the sender may send events for a site of these settings.
    fn admit(&self, site: Option<&SiteRules>) -> Result<(), (RejectCode, &'static str)> {
        if self.sender.import {
            return Ok(());
        }
        let code = match site {
            Some(site) => site.access.admit(self.sender.claim),
            None if self.rules.unknown_sites == UnknownSites::Reject => Err(RejectCode::UnknownSite),
            None => Ok(()),
        };
        code.map_err(|code| {
            let message = match code {
                RejectCode::WriteKeyRequired => {
                    "the site wants its write key: as the header X-Write-Key, the parameter write_key, or the tracker's data-write-key"
                }
                RejectCode::InvalidWriteKey => "this is no write key of the site; see sites.NAME.write_keys",
                RejectCode::OriginNotAllowed => {
                    "the site takes events from its own pages, which the header Origin or Referer names; see sites.NAME.origins"
                }
                _ => "the server knows no such site; see ingest.unknown_sites",
            };
            (code, message)
        })
    }

    fn put(
        &self,
        index: u32,
        site: &str,
        own: Option<&SiteRules>,
        raw: &RawEvent<'_>,
        batch: &mut Batch,
    ) -> Result<(), Refusal> {
        let signal = self.sender.privacy_signal;
        let policy = || own.and_then(|site| site.privacy).unwrap_or(self.rules.privacy);
        let policy = if signal { policy() } else { PrivacyPolicy::Ignore };
        if policy == PrivacyPolicy::Drop {
            return Err((RejectCode::PrivacySignal, String::from("the visitor asked not to be tracked")));
        }
        let keep_names = policy != PrivacyPolicy::Anonymous;

        let url = some(&raw.url);
        if let Some(url) = url {
            short("url", url, MAX_URL)?;
            if !page::is_url(url) {
                let message = String::from("url must be an absolute URL or a path that starts with /");
                return Err((RejectCode::InvalidUrl, message));
            }
        }
        let event_type = match some(&raw.event_type) {
            Some(kind) if is_token(kind, MAX_TYPE) => kind,
            Some(_) => {
                let message = String::from("type must be 1 to 64 characters of A-Z a-z 0-9 _ . : -");
                return Err((RejectCode::InvalidType, message));
            }
            None if url.is_some() => PAGE_VIEW,
            None => return Err((RejectCode::MissingType, String::from("type is required when there is no url"))),
        };
        let timestamp = self.timestamp(raw)?;
        let (id, key) = match raw.id.as_deref() {
            None => (EventId::None, None),
            Some(id) if id.is_empty() || id.len() > 4 * MAX_ID || id.chars().count() > MAX_ID => {
                return Err((RejectCode::InvalidId, String::from("id must be 1 to 128 characters")));
            }
            Some(id) if self.is_own(id) => {
                return Err((RejectCode::Duplicate, String::from("it is an event of this journal")));
            }
            Some(id) => (event_id(id), Some(visitor::dedup_key(site, id.as_bytes()))),
        };
        let data = match raw.data.map(|data| data.get()) {
            Some(data) if !data.starts_with('{') => {
                return Err((RejectCode::InvalidData, String::from("data must be a JSON object")));
            }
            Some(data) if depth(data) > MAX_DEPTH => {
                return Err((RejectCode::InvalidData, format!("data is nested deeper than {MAX_DEPTH}")));
            }
            Some(data) if data.len() > MAX_DATA => {
                return Err((RejectCode::DataTooLarge, format!("data has {} bytes; at most 8192 fit", data.len())));
            }
            other => other,
        };
        let user_id = some(&raw.user_id).filter(|_| keep_names);
        let session_id = some(&raw.session_id).filter(|_| keep_names);
        let product_id = some(&raw.product_id);
        for (name, text) in [("user_id", user_id), ("session_id", session_id), ("product_id", product_id)] {
            short(name, text.unwrap_or_default(), MAX_NAME)?;
        }
        let (visitor, bot) = self.visitor(site, raw, user_id, timestamp);
        let restored = if self.sender.import { hash(&raw.session) } else { None };

        let event = Event {
            received: self.sender.received,
            timestamp,
            site,
            event_type,
            id,
            visitor,
            session: restored.unwrap_or(0),
            url,
            referrer: some(&raw.referrer).map(|text| cut(text, MAX_URL)),
            title: some(&raw.title).map(|text| cut(text, MAX_TITLE)),
            user_id,
            session_id,
            product_id,
            data,
            bot,
            imported: self.sender.import,
        };
        let start = batch.bytes.len();
        codec::put_event(&mut batch.bytes, &event).map_err(|e| (RejectCode::FieldTooLong, e.to_string()))?;
        let visit = (session_id.is_none() && restored.is_none() && bot.is_none()).then_some((visitor, timestamp));
        let imported = event.imported;
        batch.entries.push(EntryMeta { start: start as u32, index, key, imported, visit });
        Ok(())
    }

    fn is_own(&self, id: &str) -> bool {
        let number = |(name, end): (&str, u64)| {
            let number: u64 = id.strip_prefix(name)?.strip_prefix('-')?.parse().ok()?;
            Some(number < end)
        };
        self.own.and_then(number).unwrap_or(false)
    }

    /// `received - (sent_at - timestamp)`: what the client's clock is wrong by cancels out.
    fn timestamp(&self, raw: &RawEvent<'_>) -> Result<UnixMillis, Refusal> {
        let received = self.sender.received;
        let Some(timestamp) = raw.timestamp.as_ref().map(|t| millis("timestamp", t)).transpose()? else {
            return Ok(received);
        };
        let at = match raw.sent_at.as_ref().map(|t| millis("sent_at", t)).transpose()? {
            Some(sent_at) => received.saturating_sub(sent_at.saturating_sub(timestamp)),
            None => timestamp,
        };
        let refuse = |message: String| Err((RejectCode::TimestampOutOfRange, message));
        if at < EARLIEST {
            return refuse(format!("timestamp {at} is before 2000; it must be in milliseconds"));
        }
        if at > received.saturating_add(self.rules.max_future) {
            return refuse(String::from("timestamp lies in the future; send sent_at to correct a wrong clock"));
        }
        if self.rules.max_age.is_some_and(|age| at < received - age) {
            return refuse(String::from("timestamp is older than ingest.max_age allows"));
        }
        Ok(at.min(received))
    }

    fn visitor(
        &self,
        site: &str,
        raw: &RawEvent<'_>,
        user_id: Option<&str>,
        at: UnixMillis,
    ) -> (u64, Option<BotReason>) {
        let (address, agent, salt, bot) = if self.sender.import {
            let agent = raw.user_agent.as_deref().unwrap_or_default();
            let bot = match raw.classify {
                Some(false) => None,
                _ => AgentPolicy::AccessLog.apply(classify(agent)),
            };
            // Events without an address (a restored export) are not a log's lines: an absent agent says nothing there.
            let bot = if raw.address.is_none() { None } else { bot };
            // A restored export says itself what it found out the first time.
            let bot = raw.bot.as_deref().and_then(BotReason::from_text).or(bot);
            if let (None, Some(visitor)) = (user_id, hash(&raw.visitor)) {
                return (visitor, bot);
            }
            (raw.address.as_deref().unwrap_or_default(), agent, self.salts.of_import(at), bot)
        } else {
            (self.sender.address, self.sender.agent, self.today, self.bot)
        };
        let visitor = match user_id {
            Some(user) => visitor::known(site, user),
            None => visitor::anonymous(&salt, site, address, agent),
        };
        (visitor, bot)
    }
}

type Refusal = (RejectCode, String);

fn some<'a>(text: &'a Option<Text<'_>>) -> Option<&'a str> {
    text.as_deref().filter(|text| !text.is_empty())
}

/// How deep a JSON text is nested. Readers of exports recurse, so what we hand on is bounded.
fn depth(json: &str) -> usize {
    let (mut depth, mut deepest, mut in_text, mut escaped) = (0usize, 0, false, false);
    for b in json.bytes() {
        match b {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'{' | b'[' if !in_text => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// A hash as exports write it: 16 hex digits.
fn hash(text: &Option<Text<'_>>) -> Option<u64> {
    let text = text.as_deref().filter(|text| text.len() == 16)?;
    u64::from_str_radix(text, 16).ok().filter(|hash| *hash != 0)
}

fn short(name: &str, text: &str, most: usize) -> Result<(), Refusal> {
    if text.len() <= most {
        return Ok(());
    }
    Err((RejectCode::FieldTooLong, format!("{name} has {} bytes; at most {most} fit", text.len())))
}

fn is_token(text: &str, most: usize) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b':' | b'-');
    !text.is_empty() && text.len() <= most && text.bytes().all(allowed)
}

/// A site name that may be asked for.
pub fn is_site(text: &str) -> bool {
    is_token(text, MAX_SITE) || text == super::reject::UNKNOWN_SITE
}

fn millis(name: &str, time: &Time<'_>) -> Result<UnixMillis, Refusal> {
    let parsed = match time {
        Time::Millis(millis) => Some(*millis),
        Time::Text(text) => text.parse().ok().or_else(|| parse_rfc3339(text)),
    };
    parsed.ok_or_else(|| (RejectCode::InvalidTimestamp, format!("{name} must be RFC 3339 or Unix milliseconds")))
}

/// UUIDs in their usual spelling take 16 bytes in the journal; every other text is kept as it is.
fn event_id(id: &str) -> EventId<'_> {
    let usual = id.len() == 36 && id.bytes().all(|b| b == b'-' || b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    match uuid::Uuid::try_parse(id) {
        Ok(uuid) if usual => EventId::Uuid(*uuid.as_bytes()),
        _ => EventId::Text(id),
    }
}

#[cfg(test)]
#[path = "intake_tests.rs"]
mod tests;
