//! The live feed: a snapshot, then what was added, in messages that sum up exactly.
//!
//! Commits are gathered into frames, at most one in 250 ms, which lie in a ring that every subscription reads at its own
//! pace: a slow reader holds up nobody and finds a gap when the ring has moved on. A frame and the published state it
//! leads to are put down together, so a snapshot counts through exactly one frame and the frames after it add to it.
//! Message ids name the process (`EPOCH-SEQ`), so a reader who comes back is carried on where it was, or told that it
//! missed something and given a snapshot.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::Delta;
use super::feed_frame::{Frame, Pending};
use super::live::{LiveReader, Published, json};
use crate::clock::{Clock, UnixMillis};

/// Frames that a reader can be behind.
const RING: usize = 512;
/// Memory of the frames together, which comes first with many sites.
const RING_BYTES: usize = 8 << 20;
/// The shortest time between frames.
const PACE: UnixMillis = 250;
/// The frame before the first, which a snapshot can count through. 0 is the id of gaps: nobody can carry on from it.
const BEFORE_FIRST: u64 = 1;

/// The feed; clones are the same feed. The owner commits and ticks, handlers subscribe.
#[derive(Clone, Debug)]
pub struct Feed(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    epoch: String,
    clock: Clock,
    live: LiveReader,
    gathering: Mutex<Gathering>,
    ring: Mutex<Ring>,
    /// Says that there is a new frame; `None` that there will be none.
    wake: watch::Sender<Option<u64>>,
}

/// The owner's side.
#[derive(Debug)]
struct Gathering {
    pending: Pending,
    /// What was published with the last delta in `pending`.
    published: Arc<Published>,
    last: UnixMillis,
}

#[derive(Debug)]
struct Ring {
    frames: VecDeque<Arc<Frame>>,
    bytes: usize,
    last: u64,
    /// The state that frame `last` leads to.
    published: Arc<Published>,
}

/// A message for one reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedEvent {
    /// To be sent back as `Last-Event-ID`.
    pub id: String,
    /// What it is.
    pub kind: FeedKind,
    /// JSON.
    pub data: Bytes,
}

/// Kinds of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedKind {
    /// All numbers.
    Snapshot,
    /// What was added.
    Delta,
    /// Something was missed; a snapshot follows at once.
    Gap,
}

impl FeedKind {
    /// The name of the server-sent event.
    pub fn as_str(self) -> &'static str {
        match self {
            FeedKind::Snapshot => "snapshot",
            FeedKind::Delta => "delta",
            FeedKind::Gap => "gap",
        }
    }
}

impl Feed {
    /// A feed of what `live` publishes.
    pub fn new(live: LiveReader, clock: Clock) -> Self {
        let published = live.published();
        let ring = Ring { frames: VecDeque::new(), bytes: 0, last: BEFORE_FIRST, published: published.clone() };
        Self(Arc::new(Shared {
            epoch: uuid::Uuid::new_v4().simple().to_string()[..12].to_owned(),
            clock,
            live,
            gathering: Mutex::new(Gathering { pending: Pending::default(), published, last: UnixMillis::MIN }),
            ring: Mutex::new(ring),
            wake: watch::Sender::new(Some(BEFORE_FIRST)),
        }))
    }

    /// Takes in a delta that was committed and that [`super::Live`] has published.
    pub fn commit(&self, delta: &Delta, now: UnixMillis) {
        let mut gathering = self.0.gathering.lock();
        gathering.pending.add(delta);
        gathering.published = self.0.live.published();
        self.0.emit(&mut gathering, now, false);
    }

    /// Sends what is waiting, if it is time; every 250 ms or less.
    pub fn tick(&self, now: UnixMillis) {
        self.0.emit(&mut self.0.gathering.lock(), now, false);
    }

    /// Begins again from what is published: after [`super::Live::reload`]. Readers find a gap.
    pub fn reset(&self) {
        let mut gathering = self.0.gathering.lock();
        gathering.pending = Pending::default();
        gathering.published = self.0.live.published();
        let mut ring = self.0.ring.lock();
        // Two on, so that even a reader who has seen everything finds that something is missing.
        ring.last += 2;
        ring.frames.clear();
        ring.bytes = 0;
        ring.published = gathering.published.clone();
        self.0.wake.send_replace(Some(ring.last));
    }

    /// Ends every subscription, once it has read what there is.
    pub fn close(&self) {
        let mut gathering = self.0.gathering.lock();
        self.0.emit(&mut gathering, self.0.clock.now(), true);
        self.0.wake.send_replace(None);
    }

    /// Follows a site, from the message after `last_event_id` if that can be had.
    pub fn subscribe(&self, site: &str, last_event_id: Option<&str>) -> Subscription {
        let position = match last_event_id {
            None => Position::Snapshot,
            Some(id) => match self.0.seq(id) {
                Some(seq) => Position::After(seq),
                None => Position::Gap,
            },
        };
        Subscription { feed: self.0.clone(), site: Arc::from(site), position, wake: self.0.wake.subscribe() }
    }

    /// How many subscriptions there are.
    pub fn subscribers(&self) -> usize {
        self.0.wake.receiver_count()
    }
}

impl Shared {
    fn emit(&self, gathering: &mut Gathering, now: UnixMillis, at_once: bool) {
        // A clock that was set back must not silence the feed.
        let due = at_once || now < gathering.last || now.saturating_sub(gathering.last) >= PACE;
        if gathering.pending.is_empty() || !due {
            return;
        }
        gathering.last = now;
        let pending = std::mem::take(&mut gathering.pending);
        // Only this side moves `last`, so it cannot move between here and below.
        let seq = self.ring.lock().last + 1;
        let frame = Arc::new(pending.frame(seq, &gathering.published, now));
        let mut ring = self.ring.lock();
        ring.bytes += frame.bytes;
        ring.frames.push_back(frame);
        while ring.frames.len() > RING || (ring.bytes > RING_BYTES && ring.frames.len() > 1) {
            let gone = ring.frames.pop_front().map_or(0, |frame| frame.bytes);
            ring.bytes -= gone;
        }
        ring.last = seq;
        ring.published = gathering.published.clone();
        drop(ring);
        self.wake.send_replace(Some(seq));
    }

    fn id(&self, seq: u64) -> String {
        format!("{}-{seq}", self.epoch)
    }

    /// The frame of an id of this process.
    fn seq(&self, id: &str) -> Option<u64> {
        let (epoch, seq) = id.trim().rsplit_once('-')?;
        let seq = seq.parse().ok()?;
        (epoch == self.epoch && (BEFORE_FIRST..=self.ring.lock().last).contains(&seq)).then_some(seq)
    }
}

impl Ring {
    /// The next frame after `seq` with news of `site`, or the frame up to which there is none.
    fn after(&self, seq: u64, site: &str) -> Result<Next, Missed> {
        let first = self.frames.front().map_or(self.last + 1, |frame| frame.seq);
        let Some(skip) = (seq + 1).checked_sub(first) else { return Err(Missed) };
        let news = self.frames.iter().skip(skip as usize).find(|frame| frame.has(site));
        Ok(news.map_or(Next::Nothing { through: self.last }, |frame| Next::Frame(frame.clone())))
    }
}

enum Next {
    Frame(Arc<Frame>),
    Nothing { through: u64 },
}

struct Missed;

/// One reader's place in the feed.
#[derive(Debug)]
pub struct Subscription {
    feed: Arc<Shared>,
    site: Arc<str>,
    position: Position,
    wake: watch::Receiver<Option<u64>>,
}

#[derive(Clone, Copy, Debug)]
enum Position {
    /// A gap is to be told.
    Gap,
    /// A snapshot is to be given.
    Snapshot,
    /// Everything through this frame was seen.
    After(u64),
}

impl Subscription {
    /// The next message; waits for it. `None` when the feed is closed. May be dropped at any time without a loss.
    pub async fn next(&mut self) -> Option<FeedEvent> {
        loop {
            // Marked as seen before looking, so that a frame that comes while looking wakes again.
            let closed = self.wake.borrow_and_update().is_none();
            if let Some(event) = self.try_next() {
                return Some(event);
            }
            if closed || self.wake.changed().await.is_err() {
                return None;
            }
        }
    }

    /// The next message, if there is one.
    pub fn try_next(&mut self) -> Option<FeedEvent> {
        match self.position {
            Position::Gap => {
                self.position = Position::Snapshot;
                let data = Bytes::from_static(br#"{"missed":true}"#);
                Some(FeedEvent { id: self.feed.id(0), kind: FeedKind::Gap, data })
            }
            Position::Snapshot => {
                let (seq, published) = {
                    let ring = self.feed.ring.lock();
                    (ring.last, ring.published.clone())
                };
                self.position = Position::After(seq);
                let data = Bytes::from(json(&published.snapshot(&self.site, self.feed.clock.now())));
                Some(FeedEvent { id: self.feed.id(seq), kind: FeedKind::Snapshot, data })
            }
            Position::After(seq) => {
                let next = self.feed.ring.lock().after(seq, &self.site);
                match next {
                    Err(Missed) => {
                        self.position = Position::Gap;
                        self.try_next()
                    }
                    Ok(Next::Nothing { through }) => {
                        self.position = Position::After(through);
                        None
                    }
                    Ok(Next::Frame(frame)) => {
                        self.position = Position::After(frame.seq);
                        let data = frame.data(&self.site)?;
                        Some(FeedEvent { id: self.feed.id(frame.seq), kind: FeedKind::Delta, data })
                    }
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "feed_tests.rs"]
mod tests;
