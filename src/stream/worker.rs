//! The publisher's blocking half: a session with its place in the journal, moved on run by run.

use std::collections::{BTreeMap, HashMap, HashSet};

use rdkafka::error::RDKafkaErrorCode;

use super::cursor::{self, Cursor};
use super::outgoing::{Maker, Outgoing};
use super::session::{Failure, Session};
use super::{Mode, StreamError, StreamOptions, Topics, readback};
use crate::clock::Clock;
use crate::event::codec::Entry;
use crate::journal::{Journal, Reader, Totals};

/// Bytes of entries read in one go.
const CHUNK: usize = 1 << 20;
/// Bytes of entries in one run.
const RUN_BYTES: usize = 4 << 20;
/// Records in one run.
const RUN_RECORDS: usize = 20_000;

/// What a run has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ran {
    /// Events that went out.
    pub events: u64,
    /// Those of them that went to the dead letters.
    pub dead: u64,
}

/// A record that Kafka has refused.
#[derive(Clone, Debug)]
struct Refused {
    reason: String,
    /// How often its stand-in was refused as well.
    attempts: u32,
}

/// A session, a reader, and where both stand.
pub struct Worker {
    session: Session,
    maker: Maker,
    topics: Topics,
    journal: Journal,
    clock: Clock,
    reader: Reader,
    cursor: Cursor,
    /// Mode idempotent: entries after the cursor that are in Kafka already.
    already: HashSet<u64>,
    /// Entries that go to the dead letters.
    refused: HashMap<u64, Refused>,
    /// Records in the next run: halved when one of a run is refused, until it stands alone.
    limit: usize,
    known_ends: BTreeMap<i32, i64>,
}

impl Worker {
    /// Connects and finds out how far the journal is delivered. Without a cursor in Kafka it begins with the oldest entry.
    /// `most` is the furthest that a cursor can rightly be, if that is known.
    pub fn open(
        options: &StreamOptions,
        journal: &Journal,
        clock: &Clock,
        most: Option<u64>,
    ) -> Result<Self, StreamError> {
        let topics = Topics::new(&options.topic_prefix);
        let name = journal.name();
        let mut session = Session::open(options, &topics, &format!("{}-{name}", options.topic_prefix))?;
        let stored = readback::last_value(options, &topics, name)?;
        let mut cursor = match &stored {
            Some(bytes) => Cursor::decode(bytes)?,
            None => begin(journal)?,
        };
        if cursor.journal != name {
            return Err(StreamError::Cursor(String::from("it is another journal's")));
        }
        let end = most.unwrap_or_else(|| journal.end());
        if cursor.next > end {
            log::error!(
                "the stream was delivered through {}, and the journal ended at {end}: it has lost its end (to a power \
                 failure, in mode written); what comes now is delivered under numbers that Kafka has seen",
                cursor.next
            );
            cursor.next = end;
        }
        let mut already = HashSet::new();
        let mut known_ends = cursor.ends.clone();
        if options.mode == Mode::Idempotent {
            if stored.is_some() {
                already = readback::delivered(options, &topics, name, cursor.next, &cursor.ends)?;
            } else {
                // Before the first record there is a cursor, so that a start without one need not search.
                known_ends = readback::ends(options, &topics)?;
                cursor.ends = known_ends.clone();
                let begun = session.begin();
                let written =
                    begun.and_then(|()| session.commit(&topics.events, name, clock.now(), |_| cursor.encode()));
                written.map_err(|_| StreamError::Cursor(String::from("the first one cannot be written")))?;
            }
        }
        let reader = journal.reader(cursor.next);
        Ok(Self {
            session,
            maker: Maker::new(name, &topics, options.max_message_bytes),
            topics,
            journal: journal.clone(),
            clock: clock.clone(),
            reader,
            cursor,
            already,
            refused: HashMap::new(),
            limit: RUN_RECORDS,
            known_ends,
        })
    }

    /// How far the journal is delivered.
    pub fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// The connection, to look after it.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The journal's reader, to wait for more.
    pub fn reader(&mut self) -> &mut Reader {
        &mut self.reader
    }

    /// Delivers a run of entries. After an error the reader stands at the cursor again.
    pub fn run(&mut self) -> Result<Ran, Failure> {
        let mut sent = HashSet::new();
        let result = self.try_run(&mut sent);
        match &result {
            Ok(_) => {
                self.limit = (self.limit * 2).min(RUN_RECORDS);
                let next = self.cursor.next;
                self.refused.retain(|seq, _| *seq >= next);
                self.already.retain(|seq| *seq >= next);
            }
            Err(failure) => {
                if let Failure::Refused(refused) = failure {
                    self.note(refused, &sent);
                }
                self.reader = self.journal.reader(self.cursor.next);
            }
        }
        result
    }

    fn try_run(&mut self, sent: &mut HashSet<u64>) -> Result<Ran, Failure> {
        let mut ran = Ran::default();
        let mut totals = Totals::default();
        let mut received = None;
        let mut next = self.cursor.next;
        let mut bytes = 0;
        let idempotent = !self.known_ends.is_empty() || !self.already.is_empty();
        let mut records = 0;
        let mut full = false;
        self.session.begin()?;
        while !full && bytes < RUN_BYTES && !self.reader.caught_up() {
            let chunk = match self.reader.read(CHUNK) {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(error) => return Err(self.session.abort(&error.to_string())),
            };
            for (seq, entry) in chunk.entries() {
                if records >= self.limit {
                    full = true;
                    break;
                }
                next = seq + 1;
                let entry = match entry {
                    Ok(entry) => entry,
                    Err(error) => {
                        log::error!("entry {seq} of the journal: {error}; it is not delivered");
                        continue;
                    }
                };
                received = cursor::count(&mut totals, &entry).or(received);
                let Entry::Event(event) = entry else { continue };
                ran.events += 1;
                if self.already.contains(&seq) {
                    continue;
                }
                let (record, dead) = self.fate(seq, self.maker.event(seq, &event));
                ran.dead += u64::from(dead);
                if let Some(record) = record {
                    self.session.send(seq as usize, &record)?;
                    records += 1;
                    if idempotent {
                        sent.insert(seq);
                    }
                }
            }
            if !full {
                next = chunk.end;
            }
            bytes += chunk.len();
            self.reader.recycle(chunk);
        }
        if next == self.cursor.next {
            // Committed, but not to be read: damage at the very end.
            return Err(self.session.abort("the journal's end cannot be read"));
        }
        let mut cursor = self.cursor.clone();
        cursor.add(&totals);
        cursor.advance(next, received);
        let known = &self.known_ends;
        self.session.commit(&self.topics.events, self.journal.name(), self.clock.now(), |ends| {
            // Partitions that got nothing keep the ends they had.
            let mut all = known.clone();
            all.extend(ends);
            cursor.ends = all;
            cursor.encode()
        })?;
        self.known_ends = cursor.ends.clone();
        self.cursor = cursor;
        if full {
            self.reader = self.journal.reader(next);
        }
        Ok(ran)
    }

    /// What is sent for an event: itself, its stand-in among the dead letters, or nothing when even that is refused.
    fn fate(&self, seq: u64, record: Outgoing) -> (Option<Outgoing>, bool) {
        let now = self.clock.now();
        if let Some(Refused { reason, attempts }) = self.refused.get(&seq) {
            let letter = (*attempts < 4).then(|| self.maker.dead_letter(&record, seq, reason, *attempts, now));
            if letter.is_none() {
                log::error!("entry {seq} of the journal: Kafka takes not even its dead letter; only its count goes on");
            }
            return (letter, true);
        }
        if self.maker.too_large(&record) {
            return (Some(self.maker.dead_letter(&record, seq, "too_large", 0, now)), true);
        }
        (Some(record), false)
    }

    fn note(&mut self, refused: &[(usize, RDKafkaErrorCode)], sent: &HashSet<u64>) {
        // Those that were not refused are there.
        self.already.extend(sent.iter().filter(|seq| !refused.iter().any(|(r, _)| *r as u64 == **seq)));
        if refused.is_empty() {
            return;
        }
        // A batch is refused as a whole: only a record that stands alone, or that the broker names, is the culprit. Where
        // all are named, nobody is: it may have been the batch.
        let named = refused.iter().filter(|(_, code)| *code == RDKafkaErrorCode::InvalidRecord);
        let mut named: Vec<_> = named.copied().collect();
        if named.len() == refused.len() {
            named.clear();
        }
        let culprits = match (refused, named.as_slice()) {
            ([one], _) => vec![*one],
            (_, []) => Vec::new(),
            (_, named) => named.to_vec(),
        };
        if culprits.is_empty() {
            self.limit = (self.limit.min(refused.len()) / 2).max(1);
            return;
        }
        for (seq, code) in culprits {
            let seq = seq as u64;
            let reason = word(code);
            log::warn!("entry {seq} of the journal was refused by Kafka ({reason}); it goes to the dead letters");
            let attempts = self.refused.get(&seq).map_or(0, |refused| refused.attempts + 1);
            self.refused.insert(seq, Refused { reason, attempts });
        }
    }
}

/// The reason in a dead letter.
fn word(code: RDKafkaErrorCode) -> String {
    match code {
        RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::MessageBatchTooLarge => String::from("too_large"),
        RDKafkaErrorCode::InvalidTimestamp => String::from("invalid_timestamp"),
        RDKafkaErrorCode::InvalidRecord => String::from("invalid_record"),
        RDKafkaErrorCode::PolicyViolation => String::from("policy_violation"),
        other => format!("{other:?}"),
    }
}

/// Where a journal begins of which nothing is in Kafka.
fn begin(journal: &Journal) -> Result<Cursor, StreamError> {
    let (end, all) = journal.totals();
    let mut reader = journal.reader(0);
    let mut oldest = None;
    let mut later = Totals::default();
    while reader.next() < end {
        let Some(chunk) = reader.read(CHUNK)? else { break };
        for (seq, entry) in chunk.entries() {
            oldest.get_or_insert(seq);
            if let (true, Ok(entry)) = (seq < end, entry) {
                later.add(&entry);
            }
        }
        reader.recycle(chunk);
    }
    let oldest = oldest.unwrap_or(end);
    Ok(Cursor::begin(journal.name(), oldest, &cursor::before(&all, &later)))
}
