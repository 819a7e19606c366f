//! The binary form of an entry in the journal.
//!
//! ```text
//! entry   = len u16, kind u8, body                 len counts kind and body
//! event   = flags u16, received u48, [visitor u64], [session u64], then in the order of the flags:
//!           [timestamp zigzag varint, relative to received] [site] [type] [id] [url] ... [bot u8]
//! outcome = code u8, count varint, site
//! text    = length varint, bytes
//! ```
//!
//! What is usual is absent: the default site, `page_view`, a hash that follows from a text which is there anyway.
//! Numbers are little-endian. A typical beacon takes 70 to 110 bytes.

use super::{BotReason, DEFAULT_SITE, Event, EventId, Outcome, PAGE_VIEW, RejectCode, visitor};
use crate::clock::UnixMillis;

const EVENT: u8 = 1;
const OUTCOME: u8 = 2;

const TIMESTAMP: u16 = 1;
const SITE: u16 = 1 << 1;
const TYPE: u16 = 1 << 2;
const ID_UUID: u16 = 1 << 3;
const ID_TEXT: u16 = 1 << 4;
const URL: u16 = 1 << 5;
const REFERRER: u16 = 1 << 6;
const TITLE: u16 = 1 << 7;
const USER_ID: u16 = 1 << 8;
const SESSION_ID: u16 = 1 << 9;
const PRODUCT_ID: u16 = 1 << 10;
const DATA: u16 = 1 << 11;
const BOT: u16 = 1 << 12;
const IMPORTED: u16 = 1 << 13;

/// Where the session of an event without `session_id` stands, from the start of its entry, when it has no `user_id`.
const HEAD: usize = 2 + 1 + 2 + 6;

/// The longest entry there can be.
pub const MAX_ENTRY: usize = u16::MAX as usize + 2;

/// One entry of the journal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Entry<'a> {
    /// An accepted event.
    Event(Event<'a>),
    /// How many events were not accepted, and why.
    Outcome {
        /// Their site.
        site: &'a str,
        /// Why.
        code: RejectCode,
        /// How many.
        count: u64,
    },
}

/// Appends an event. Texts are cut to what an entry can hold by the rules of `intake`, which are stricter.
///
/// # Errors
/// [`TooLong`] when the entry would not fit; `out` is then as before.
pub fn put_event(out: &mut Vec<u8>, event: &Event<'_>) -> Result<(), TooLong> {
    let start = out.len();
    let mut flags = 0;
    out.extend_from_slice(&[0, 0, EVENT, 0, 0]);
    out.extend_from_slice(&event.received.to_le_bytes()[..6]);
    if event.user_id.is_none() {
        out.extend_from_slice(&event.visitor.to_le_bytes());
    }
    if event.session_id.is_none() {
        out.extend_from_slice(&event.session.to_le_bytes());
    }
    if event.timestamp != event.received {
        flags |= TIMESTAMP;
        let delta = event.timestamp - event.received;
        put_varint(out, ((delta << 1) ^ (delta >> 63)) as u64);
    }
    let mut text = |flag: u16, text: Option<&str>| {
        if let Some(text) = text {
            flags |= flag;
            put_text(out, text);
        }
    };
    text(SITE, Some(event.site).filter(|site| *site != DEFAULT_SITE));
    text(TYPE, Some(event.event_type).filter(|kind| *kind != PAGE_VIEW));
    match event.id {
        EventId::None => {}
        EventId::Uuid(bytes) => {
            flags |= ID_UUID;
            out.extend_from_slice(&bytes);
        }
        EventId::Text(id) => {
            flags |= ID_TEXT;
            put_text(out, id);
        }
    }
    let mut text = |flag: u16, text: Option<&str>| {
        if let Some(text) = text {
            flags |= flag;
            put_text(out, text);
        }
    };
    text(URL, event.url);
    text(REFERRER, event.referrer);
    text(TITLE, event.title);
    text(USER_ID, event.user_id);
    text(SESSION_ID, event.session_id);
    text(PRODUCT_ID, event.product_id);
    text(DATA, event.data);
    if let Some(bot) = event.bot {
        flags |= BOT;
        out.push(bot as u8);
    }
    if event.imported {
        flags |= IMPORTED;
    }
    out[start + 3..start + 5].copy_from_slice(&flags.to_le_bytes());
    finish(out, start)
}

/// Appends an outcome.
pub fn put_outcome(out: &mut Vec<u8>, outcome: &Outcome) {
    let start = out.len();
    out.extend_from_slice(&[0, 0, OUTCOME, outcome.code as u8]);
    put_varint(out, outcome.count);
    put_text(out, super::agent::cut(&outcome.site, 256));
    let fits = finish(out, start).is_ok();
    debug_assert!(fits, "a site is short");
}

fn finish(out: &mut Vec<u8>, start: usize) -> Result<(), TooLong> {
    match u16::try_from(out.len() - start - 2) {
        Ok(len) => {
            out[start..start + 2].copy_from_slice(&len.to_le_bytes());
            Ok(())
        }
        Err(_) => {
            out.truncate(start);
            Err(TooLong)
        }
    }
}

/// The entry does not fit into 64 KiB.
#[derive(Debug, thiserror::Error)]
#[error("the event does not fit into a journal entry of 64 KiB")]
pub struct TooLong;

/// Writes the session of an event that came without one; `entry` begins at its length.
pub fn set_session(entry: &mut [u8], session: u64) {
    let flags = u16::from_le_bytes([entry[3], entry[4]]);
    debug_assert_eq!(flags & SESSION_ID, 0);
    let at = if flags & USER_ID == 0 { HEAD + 8 } else { HEAD };
    entry[at..at + 8].copy_from_slice(&session.to_le_bytes());
}

/// Length of the entry that begins at the start of `bytes`, its length field included.
pub fn entry_len(bytes: &[u8]) -> Option<usize> {
    let len = usize::from(u16::from_le_bytes(*bytes.first_chunk()?)) + 2;
    (len <= bytes.len()).then_some(len)
}

/// The site of an encoded event.
pub fn site_of(entry: &[u8]) -> &str {
    let site = || {
        let mut cursor = Cursor(entry.get(3..)?);
        let flags = u16::from_le_bytes(cursor.array().ok()?);
        if flags & SITE == 0 {
            return Some(DEFAULT_SITE);
        }
        let hashes = usize::from(flags & USER_ID == 0) + usize::from(flags & SESSION_ID == 0);
        cursor.0 = cursor.0.get(6 + 8 * hashes..)?;
        if flags & TIMESTAMP != 0 {
            cursor.varint().ok()?;
        }
        cursor.text().ok()
    };
    site().unwrap_or(DEFAULT_SITE)
}

/// Reads the entry at the start of `bytes` and returns it with the rest.
pub fn take(bytes: &[u8]) -> Result<(Entry<'_>, &[u8]), Malformed> {
    let len = entry_len(bytes).ok_or(Malformed)?;
    let (entry, rest) = bytes.split_at(len);
    let mut cursor = Cursor(&entry[2..]);
    let entry = match cursor.byte()? {
        EVENT => Entry::Event(event(&mut cursor)?),
        OUTCOME => {
            let code = RejectCode::from_byte(cursor.byte()?).ok_or(Malformed)?;
            let count = cursor.varint()?;
            Entry::Outcome { site: cursor.text()?, code, count }
        }
        _ => return Err(Malformed),
    };
    Ok((entry, rest))
}

fn event<'a>(cursor: &mut Cursor<'a>) -> Result<Event<'a>, Malformed> {
    let flags = u16::from_le_bytes(cursor.array()?);
    let mut received = [0; 8];
    received[..6].copy_from_slice(&cursor.array::<6>()?);
    let received = UnixMillis::from_le_bytes(received);
    let has = |flag: u16| flags & flag != 0;
    let visitor = if has(USER_ID) { 0 } else { u64::from_le_bytes(cursor.array()?) };
    let session = if has(SESSION_ID) { 0 } else { u64::from_le_bytes(cursor.array()?) };
    let timestamp = if has(TIMESTAMP) {
        let zigzag = cursor.varint()?;
        received.wrapping_add((zigzag >> 1) as i64 ^ -((zigzag & 1) as i64))
    } else {
        received
    };
    let site = if has(SITE) { cursor.text()? } else { DEFAULT_SITE };
    let event_type = if has(TYPE) { cursor.text()? } else { PAGE_VIEW };
    let id = if has(ID_UUID) {
        EventId::Uuid(cursor.array()?)
    } else if has(ID_TEXT) {
        EventId::Text(cursor.text()?)
    } else {
        EventId::None
    };
    let mut text = |flag: u16| if flags & flag != 0 { cursor.text().map(Some) } else { Ok(None) };
    let (url, referrer, title) = (text(URL)?, text(REFERRER)?, text(TITLE)?);
    let (user_id, session_id, product_id, data) = (text(USER_ID)?, text(SESSION_ID)?, text(PRODUCT_ID)?, text(DATA)?);
    let bot = if has(BOT) { Some(BotReason::from_byte(cursor.byte()?).ok_or(Malformed)?) } else { None };
    Ok(Event {
        received,
        timestamp,
        site,
        event_type,
        id,
        visitor: user_id.map_or(visitor, |user| visitor::known(site, user)),
        session: session_id.map_or(session, |id| visitor::session(site, id)),
        url,
        referrer,
        title,
        user_id,
        session_id,
        product_id,
        data,
        bot,
        imported: has(IMPORTED),
    })
}

/// The bytes are no entry. A block's checksum comes first, so this means a newer or a broken writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed journal entry")]
pub struct Malformed;

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (array, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*array)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let (value, rest) = take_varint(self.0).ok_or(Malformed)?;
        self.0 = rest;
        Ok(value)
    }

    fn text(&mut self) -> Result<&'a str, Malformed> {
        let len = usize::try_from(self.varint()?).map_err(|_| Malformed)?;
        let (text, rest) = self.0.split_at_checked(len).ok_or(Malformed)?;
        self.0 = rest;
        std::str::from_utf8(text).map_err(|_| Malformed)
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_varint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

/// LEB128.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(crate) fn take_varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (i, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[i + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn sample() -> Event<'static> {
        Event {
            received: 1_700_000_000_123,
            timestamp: 1_700_000_000_123,
            site: DEFAULT_SITE,
            event_type: PAGE_VIEW,
            id: EventId::None,
            visitor: 7,
            session: 0,
            url: Some("https://shop.example/products/17"),
            referrer: None,
            title: None,
            user_id: None,
            session_id: None,
            product_id: None,
            data: None,
            bot: None,
            imported: false,
        }
    }

    #[test]
    fn a_typical_beacon_is_small() {
        let mut out = Vec::new();
        let event = Event { id: EventId::Uuid([7; 16]), product_id: Some("17"), ..sample() };
        put_event(&mut out, &event).unwrap();
        assert!(out.len() <= 85, "{}", out.len());
        assert_eq!(take(&out), Ok((Entry::Event(event), &[][..])));
    }

    #[test]
    fn the_session_is_set_in_place() {
        for user_id in [None, Some("u1")] {
            let mut out = vec![1, 2, 3];
            put_event(&mut out, &Event { user_id, ..sample() }).unwrap();
            set_session(&mut out[3..], 99);
            let Ok((Entry::Event(event), _)) = take(&out[3..]) else { panic!() };
            assert_eq!(event.session, 99);
            assert_eq!(event.url, sample().url);
        }
    }

    #[test]
    fn an_outcome_round_trips() {
        let mut out = Vec::new();
        put_outcome(&mut out, &Outcome { site: "shop".into(), code: RejectCode::InvalidJson, count: 300 });
        let entry = Entry::Outcome { site: "shop", code: RejectCode::InvalidJson, count: 300 };
        assert_eq!(take(&out), Ok((entry, &[][..])));
    }

    #[test]
    fn what_does_not_fit_leaves_no_trace() {
        let long = "x".repeat(70_000);
        let mut out = vec![5];
        assert!(put_event(&mut out, &Event { data: Some(&long), ..sample() }).is_err());
        assert_eq!(out, [5]);
    }

    proptest! {
        #[test]
        fn every_event_round_trips(
            delta in -(1i64 << 40)..(1i64 << 40),
            site in "[a-z]{1,9}",
            kind in "[a-z]{1,9}",
            id in proptest::option::of("\\PC{1,40}"),
            texts in proptest::collection::vec(proptest::option::of("\\PC{0,60}"), 7),
            bot in proptest::option::of(1u8..=9),
            imported: bool,
        ) {
            let text = |i: usize| texts[i].as_deref();
            let (user, session) = (text(3), text(4));
            let event = Event {
                timestamp: sample().received + delta,
                site: &site,
                event_type: &kind,
                id: id.as_deref().map_or(EventId::None, EventId::Text),
                visitor: user.map_or(5, |user| visitor::known(&site, user)),
                session: session.map_or(6, |id| visitor::session(&site, id)),
                url: text(0), referrer: text(1), title: text(2), user_id: user, session_id: session,
                product_id: text(5), data: text(6),
                bot: bot.and_then(BotReason::from_byte),
                imported,
                ..sample()
            };
            let mut out = Vec::new();
            put_event(&mut out, &event).unwrap();
            prop_assert_eq!(take(&out), Ok((Entry::Event(event), &[][..])));
            prop_assert_eq!(site_of(&out), event.site);
            for cut in 0..out.len() {
                prop_assert!(take(&out[..cut]).is_err());
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = take(&bytes);
        }
    }
}
