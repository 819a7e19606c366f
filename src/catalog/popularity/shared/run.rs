//! The loop that shares: takes what changed here, brings it to Redis, reads what changed there.
//!
//! A round has a bound in products, and rounds follow each other at once only while something is left. What a round could
//! not bring is marked as changed again; what it could not read it asks for again, as it does not move on.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use deadpool_redis::redis::{Cmd, FromRedisValue, Value};
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::keys::Keys;
use super::wire::{Part, add, encode};
use super::{ShareOptions, SharedPopularity};
use crate::catalog::popularity::actor::{Work, piece};
use crate::catalog::popularity::buckets::edges;
use crate::catalog::popularity::scores::Mark;
use crate::catalog::popularity::{Kind, MAX_ID, PopularityError};
use crate::clock::{Stopwatch, UnixMillis};
use crate::redis::{Client, Script, StoreError};

/// Products that one script brings, and as many that it tells of.
const MOST: usize = 1_000;
/// Commands in one pipeline.
const PIPELINE: usize = 1_000;
/// How long to wait after a failure, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Products that go to and come from Redis in one interval; for more the next round waits as much longer, at most
/// [`LONGEST`] intervals. Each costs half a dozen commands, whose place is beside those of the statistics.
const PACE: u64 = 100;
/// See [`PACE`].
const LONGEST: u32 = 10;
/// After everything is read anew, how many intervals the others have to bring theirs before what they did not is dropped.
const SETTLE: u32 = 10;

/// What sharing works with.
pub struct Sharing {
    client: Client,
    script: Script,
    keys: Keys,
    instance: String,
    interval: Duration,
    state: Arc<SharedPopularity>,
}

impl Sharing {
    /// Nothing is connected yet.
    pub fn new(options: &ShareOptions, instance: &str, state: Arc<SharedPopularity>) -> Result<Self, StoreError> {
        Ok(Self {
            client: Client::new(&options.redis)?,
            script: Script::new(include_str!("share.lua")),
            keys: Keys::new(&options.prefix, options.redis.cluster),
            instance: instance.to_owned(),
            interval: options.interval,
            state,
        })
    }

    /// Products that were brought or read so far.
    fn moved(&self) -> u64 {
        let numbers = &self.state.numbers;
        numbers.published.load(Ordering::Relaxed) + numbers.read.load(Ordering::Relaxed)
    }
}

/// Shares until all is counted (`done`), and then what is left, if Redis is there.
pub async fn run(sharing: &Sharing, work: &Arc<Mutex<Work>>, mut done: watch::Receiver<bool>) {
    let mut session = Session::new(sharing, work);
    let mut retry = RETRY.0;
    let mut moved = sharing.moved();
    loop {
        let begun = Stopwatch::start();
        let last = *done.borrow();
        let pause = match session.round().await {
            Ok(true) => continue,
            Ok(false) => {
                sharing.state.works();
                retry = RETRY.0;
                let before = std::mem::replace(&mut moved, sharing.moved());
                let more = u32::try_from((moved - before) / PACE).unwrap_or(LONGEST);
                (sharing.interval * more.saturating_add(1).min(LONGEST)).saturating_sub(begun.elapsed())
            }
            Err(error) => {
                sharing.state.fails(&error);
                if !matches!(error, PopularityError::Shared(_)) {
                    // What the piece had taken is not known any more.
                    session = Session::new(sharing, work);
                }
                let pause = retry;
                retry = (retry * 2).min(RETRY.1);
                pause
            }
        };
        if last {
            return;
        }
        let _ = tokio::time::timeout(pause, done.wait_for(|done| *done)).await;
    }
}

/// What is known of one slot group.
#[derive(Default)]
struct Group {
    /// The last change that was read.
    cursor: u64,
    /// The call after which its state was seen last.
    seen: Option<u64>,
    /// Products whose sums are to be made anew.
    due: Vec<Arc<str>>,
}

/// One line of calls, each with its mark.
struct Session<'a> {
    sharing: &'a Sharing,
    work: &'a Arc<Mutex<Work>>,
    /// Tells its marks from those of other sessions of this instance.
    nonce: u64,
    calls: u64,
    groups: Vec<Group>,
    /// Whether all is to be brought and read.
    fresh: bool,
    /// Since when everything that is there has been read again.
    settling: Option<Stopwatch>,
    settled: bool,
    /// In a cluster: plain keys that were set lately, and those that are still to be set.
    set: HashSet<Arc<str>>,
    unset: HashMap<Arc<str>, Total>,
}

/// The sum of all instances.
#[derive(Clone, Copy, Debug)]
struct Total {
    sums: [u64; 2],
    /// How long it may stand, in milliseconds.
    lives: [i64; 2],
}

/// What goes to Redis of one product; of those whose sums are only to be made anew, no slot and nothing.
struct Entry {
    slot: Option<u32>,
    id: Arc<str>,
    packed: Vec<u8>,
}

/// What changed here.
struct Batch {
    groups: Vec<Vec<Entry>>,
    /// Everything before this is in it, or was in those before; `None` while this instance is catching up.
    next: Option<u64>,
    left: bool,
    now: UnixMillis,
}

/// Products with what each instance has of them, packed.
type Read = Vec<(Arc<str>, HashMap<String, Vec<u8>>)>;

/// What a script answered.
struct Answer {
    mark: Option<String>,
    seq: u64,
    /// What others changed, by number; nothing where no product can be meant.
    news: Vec<(Option<Arc<str>>, u64)>,
    due: Vec<Arc<str>>,
    results: Vec<Vec<Vec<u8>>>,
    foreign: u64,
}

/// What is found out in a round, to be taken in at its end.
#[derive(Default)]
struct Found {
    others: Vec<(Arc<str>, Vec<Vec<u8>>)>,
    untaken: Vec<u32>,
    lost: Vec<usize>,
    forget: bool,
}

impl<'a> Session<'a> {
    fn new(sharing: &'a Sharing, work: &'a Arc<Mutex<Work>>) -> Self {
        Self {
            sharing,
            work,
            nonce: RandomState::new().hash_one(&sharing.instance),
            calls: 0,
            groups: (0..sharing.keys.groups()).map(|_| Group::default()).collect(),
            fresh: true,
            settling: None,
            settled: false,
            set: HashSet::new(),
            unset: HashMap::new(),
        }
    }

    /// One round; true when more is left to do.
    async fn round(&mut self) -> Result<bool, PopularityError> {
        let sharing = self.sharing;
        let (keys, fresh) = (sharing.keys.clone(), std::mem::replace(&mut self.fresh, false));
        let mut batch = piece(self.work, move |work| Ok(take(work, &keys, fresh))).await?;
        for (group, entries) in self.groups.iter_mut().zip(&mut batch.groups) {
            let there: HashSet<Arc<str>> = entries.iter().map(|entry| entry.id.clone()).collect();
            let due = std::mem::take(&mut group.due).into_iter().filter(|id| !there.contains(id));
            entries.extend(due.map(|id| Entry { slot: None, id, packed: Vec::new() }));
        }
        self.calls += 1;
        let calls = batch.groups.iter().enumerate().map(|(at, entries)| self.call(at, entries, batch.now));
        let answers = join_all(calls).await;

        let (mut found, mut error, mut more) = (Found::default(), None, batch.left);
        let mut totals = std::mem::take(&mut self.unset);
        let mut asked: Vec<Arc<str>> = Vec::new();
        let mut cursors = vec![None; self.groups.len()];
        for (at, (answer, entries)) in answers.into_iter().zip(batch.groups).enumerate() {
            let answer = match answer {
                Ok(answer) => answer,
                Err(why) => {
                    found.untaken.extend(entries.iter().filter_map(|entry| entry.slot));
                    error = Some(why);
                    continue;
                }
            };
            let own = entries.iter().filter(|entry| entry.slot.is_some()).count();
            let numbers = &sharing.state.numbers;
            numbers.scripts.fetch_add(1, Ordering::Relaxed);
            numbers.published.fetch_add(own as u64, Ordering::Relaxed);
            numbers.foreign.fetch_add(answer.foreign, Ordering::Relaxed);
            let group = &mut self.groups[at];
            // A call that was not heard of may have been made, so any of this session from the last one seen on is right.
            let known = answer.mark.as_deref().and_then(|mark| call_of(self.nonce, mark));
            if group.seen.is_some_and(|seen| known.is_none_or(|known| known < seen)) {
                found.lost.push(at);
            }
            group.seen = Some(self.calls);
            let full = answer.news.len() >= MOST;
            more |= full || !answer.due.is_empty();
            cursors[at] = Some(answer.news.last().map_or(answer.seq, |(_, seq)| if full { *seq } else { answer.seq }));
            group.due = answer.due;
            let mut told = HashSet::new();
            for (entry, mut result) in entries.into_iter().zip(answer.results) {
                let others = result.split_off(result.len().min(5));
                if let Some(total) = total(&result) {
                    totals.insert(entry.id.clone(), total);
                }
                if entry.slot.is_some() {
                    told.insert(entry.id.clone());
                    found.others.push((entry.id, others));
                }
            }
            asked.extend(answer.news.into_iter().filter_map(|(id, _)| id).filter(|id| !told.contains(id)));
        }

        let read = self.read(&asked).await;
        if sharing.keys.plain_beside() {
            totals.clear();
        } else if let Err(why) = self.set_plain(totals, &read, batch.now).await {
            error = Some(why);
        }
        match read {
            Ok(products) => {
                for (group, cursor) in self.groups.iter_mut().zip(cursors) {
                    group.cursor = cursor.unwrap_or(group.cursor);
                }
                for (id, fields) in products {
                    let others = fields.into_iter().filter(|(instance, _)| *instance != sharing.instance);
                    found.others.push((id, others.map(|(_, packed)| packed).collect()));
                }
            }
            Err(why) => error = Some(why),
        }

        let lost = !found.lost.is_empty();
        if lost {
            log::error!("Redis has lost what it had of the popularity of products; it is brought there again");
            sharing.state.numbers.losses.fetch_add(1, Ordering::Relaxed);
            sharing.state.through.send_replace(0);
            self.groups.iter_mut().for_each(|group| group.cursor = 0);
            (self.settling, self.settled, more) = (None, false, true);
        } else if !more && error.is_none() && !self.settled {
            let settling = self.settling.get_or_insert_with(Stopwatch::start);
            found.forget = settling.elapsed() >= sharing.interval * SETTLE;
            self.settled = found.forget;
        }
        sharing.state.numbers.read.fetch_add(asked.len() as u64, Ordering::Relaxed);
        let keys = sharing.keys.clone();
        piece(self.work, move |work| {
            take_in(work, found, &keys);
            Ok(())
        })
        .await?;
        match error {
            Some(error) => Err(error.into()),
            None => {
                if let (false, false, Some(next)) = (batch.left, lost, batch.next) {
                    sharing.state.through.send_replace(next);
                }
                Ok(more)
            }
        }
    }

    /// Calls the script of one group.
    async fn call(&self, at: usize, entries: &[Entry], now: UnixMillis) -> Result<Answer, StoreError> {
        let Sharing { client, script, keys, instance, .. } = self.sharing;
        let [state, changed, due] = keys.of_group(at);
        let plain = keys.plain_beside();
        let mut names = vec![changed, due];
        let mut args = Vec::with_capacity(2 * entries.len());
        for entry in entries {
            names.push(keys.parts(&entry.id));
            if plain {
                names.extend(Kind::ALL.map(|kind| keys.plain(kind, &entry.id)));
            }
            args.push(entry.id.as_bytes().to_vec());
            args.push(entry.packed.clone());
        }
        let head = [
            instance.clone(),
            format!("{:016x}-{}", self.nonce, self.calls),
            self.groups[at].cursor.to_string(),
            now.to_string(),
            MOST.to_string(),
            u8::from(plain).to_string(),
        ];
        let value = client.script(script, &state, &names, &head.map(String::into_bytes), &args).await?;
        Answer::parse(value).ok_or_else(|| StoreError::Refused(String::from("the script answered something else")))
    }

    /// What all instances have of some products.
    async fn read(&self, ids: &[Arc<str>]) -> Result<Read, StoreError> {
        let mut products = Vec::with_capacity(ids.len());
        for some in ids.chunks(PIPELINE) {
            let ask = |id: &Arc<str>| {
                let mut command = Cmd::new();
                command.arg("HGETALL").arg(self.sharing.keys.parts(id));
                command
            };
            let values = self.sharing.client.all(some.iter().map(ask).collect()).await?;
            let fields = values.into_iter().map(|value| FromRedisValue::from_redis_value(value).unwrap_or_default());
            products.extend(some.iter().cloned().zip(fields));
        }
        Ok(products)
    }

    /// In a cluster: sets the plain keys of what the scripts summed up, and again of what somebody else changed since it was
    /// set here, as that one's may have been written over.
    async fn set_plain(
        &mut self,
        mut totals: HashMap<Arc<str>, Total>,
        read: &Result<Read, StoreError>,
        now: UnixMillis,
    ) -> Result<(), StoreError> {
        for (id, fields) in read.iter().flatten().filter(|(id, _)| self.set.contains(id)) {
            let mut part = Part::default();
            fields.values().for_each(|packed| {
                add(&mut part, packed);
            });
            part.slide(now);
            totals.insert(id.clone(), Total { sums: part.sums(edges(now)), lives: part.lives(now) });
        }
        if read.is_ok() {
            self.set.clear();
        }
        self.set.extend(totals.keys().cloned());
        let list: Vec<(Arc<str>, Total)> = totals.into_iter().collect();
        for (nth, some) in list.chunks(PIPELINE / 2).enumerate() {
            let commands = some.iter().flat_map(|(id, total)| {
                Kind::ALL.map(|kind| {
                    let (key, sum) = (self.sharing.keys.plain(kind, id), total.sums[kind as usize]);
                    let mut command = Cmd::new();
                    match total.lives[kind as usize] {
                        lives @ 1.. if sum > 0 => command.arg("SET").arg(key).arg(sum).arg("PX").arg(lives),
                        _ => command.arg("DEL").arg(key),
                    };
                    command
                })
            });
            if let Err(error) = self.sharing.client.all(commands.collect()).await {
                self.unset = list.iter().skip(nth * (PIPELINE / 2)).cloned().collect();
                return Err(error);
            }
        }
        Ok(())
    }
}

/// The number of a session's call, from its mark.
fn call_of(nonce: u64, mark: &str) -> Option<u64> {
    let (of, call) = mark.split_once('-')?;
    (of == format!("{nonce:016x}")).then(|| call.parse().ok())?
}

/// The sum that a script made, if it did.
fn total(result: &[Vec<u8>]) -> Option<Total> {
    let number = |at: usize| std::str::from_utf8(result.get(at)?).ok()?.parse::<u64>().ok();
    let span = |at: usize| number(at).and_then(|n| i64::try_from(n).ok());
    (number(0)? == 1).then_some(())?;
    Some(Total { sums: [number(1)?, number(2)?], lives: [span(3)?, span(4)?] })
}

impl Answer {
    fn parse(value: Value) -> Option<Self> {
        let Value::Array(items) = value else { return None };
        let mut items = items.into_iter();
        let mark = FromRedisValue::from_redis_value(items.next()?).ok()?;
        let seq = FromRedisValue::from_redis_value(items.next()?).ok()?;
        let news = <Vec<Vec<u8>>>::from_redis_value(items.next()?).ok()?;
        let id = |bytes: &[u8]| {
            let id = std::str::from_utf8(bytes).ok().filter(|id| !id.is_empty() && id.len() <= MAX_ID);
            id.map(Arc::<str>::from)
        };
        let change = |pair: &[Vec<u8>]| Some((id(&pair[0]), std::str::from_utf8(&pair[1]).ok()?.parse().ok()?));
        let news = news.chunks_exact(2).map(change).collect::<Option<Vec<_>>>()?;
        let due = <Vec<Vec<u8>>>::from_redis_value(items.next()?).ok()?.iter().filter_map(|bytes| id(bytes)).collect();
        let Value::Array(results) = items.next()? else { return None };
        let results = results.into_iter().map(|result| FromRedisValue::from_redis_value(result).ok());
        let results = results.collect::<Option<_>>()?;
        let foreign = FromRedisValue::from_redis_value(items.next()?).ok()?;
        Some(Self { mark, seq, news, due, results, foreign })
    }
}

/// Takes what changed here.
fn take(work: &mut Work, keys: &Keys, fresh: bool) -> Batch {
    if fresh {
        work.scores.mark_all(Mark::Unshared);
        work.ranking.new_generation();
    }
    let mut groups: Vec<Vec<Entry>> = (0..keys.groups()).map(|_| Vec::new()).collect();
    let now = work.clock.now().max(work.scores.time());
    // What a crash made it count again would for a moment be less than Redis has.
    let caught_up = work.next >= work.sharable;
    if caught_up {
        for slot in work.scores.take(Mark::Unshared, MOST * keys.groups()) {
            if let Some(product) = work.scores.product(slot) {
                let entry = Entry { slot: Some(slot), id: product.id.clone(), packed: encode(product) };
                groups[keys.group(&product.id)].push(entry);
            }
        }
    }
    let left = caught_up && work.scores.marked(Mark::Unshared) > 0;
    Batch { groups, next: caught_up.then_some(work.next), left, now }
}

/// Takes in what the others have, and publishes it.
fn take_in(work: &mut Work, found: Found, keys: &Keys) {
    let now = work.clock.now().max(work.scores.time());
    work.scores.untake(Mark::Unshared, &found.untaken);
    if !found.lost.is_empty() {
        let all = 0..work.scores.slots();
        let lost: Vec<u32> = all
            .filter(|slot| work.scores.product(*slot).is_some_and(|of| found.lost.contains(&keys.group(&of.id))))
            .collect();
        work.scores.untake(Mark::Unshared, &lost);
        work.ranking.new_generation();
    }
    let changed = !found.others.is_empty() || found.forget;
    for (id, packed) in found.others {
        let mut part = Part::default();
        packed.iter().for_each(|packed| {
            add(&mut part, packed);
        });
        part.slide(now);
        work.ranking.set_others(&work.scores, &id, part, now);
    }
    if found.forget {
        work.ranking.forget_others(&work.scores, now);
    }
    if changed {
        work.publish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_says_which_call_of_which_session() {
        assert_eq!(call_of(7, &format!("{:016x}-{}", 7, 12)), Some(12));
        assert_eq!(call_of(8, &format!("{:016x}-{}", 7, 12)), None);
        assert_eq!((call_of(7, ""), call_of(7, "0000000000000007-x")), (None, None));
    }

    #[test]
    fn an_answer_that_is_none_is_none() {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let answer = |seq: &str, news: Vec<Value>| {
            let result = Value::Array(["1", "5", "2", "9", "8", "blob"].map(text).to_vec());
            let items = [Value::Nil, text(seq), Value::Array(news), Value::Array(vec![text("d")])];
            Value::Array(items.into_iter().chain([Value::Array(vec![result]), Value::Int(3)]).collect())
        };
        let right = Answer::parse(answer("17", vec![text("a"), text("16")])).unwrap();
        assert_eq!((right.mark, right.seq, right.foreign), (None, 17, 3));
        assert_eq!((right.news, right.due), (vec![(Some(Arc::from("a")), 16)], vec![Arc::from("d")]));
        let sums = total(&right.results[0]).unwrap();
        assert_eq!((sums.sums, sums.lives, right.results[0].len()), ([5, 2], [9, 8], 6));
        assert!(total(&[b"0".to_vec()]).is_none());
        assert!(Answer::parse(answer("x", Vec::new())).is_none() && Answer::parse(Value::Nil).is_none());
        assert!(Answer::parse(answer("1", vec![text("a"), text("x")])).is_none());
        let foreign = Answer::parse(answer("9", vec![text(&"x".repeat(65)), text("8")])).unwrap();
        assert_eq!(foreign.news, vec![(None, 8)], "passed over, and not stopped at");
    }
}
