//! Questions to the shared store: one round trip each, asked once for all who ask the same within 250 ms.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use deadpool_redis::redis::{Cmd, FromRedisValue, Value};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use parking_lot::Mutex;

use super::blob::{self, Sums};
use super::fold::audit_key;
use super::keys::{Keys, Part, part};
use super::{Role, SharedOptions, SharedState};
use crate::clock::{Stopwatch, UnixMillis};
use crate::event::RejectCode;
use crate::redis::{Client, StoreError};
use crate::stats::answers::{AsOf, StoreAudit, Summary, Timeseries, Top};
use crate::stats::query::{AuditTotals, summary, top};
use crate::stats::store::sqlite_read::{Dim, Set, Totals};
use crate::stats::timeseries::Series;
use crate::stats::uniques::Uniques;
use crate::stats::window::{Piece, Plan, Tier};
use crate::stats::windows::Windows;
use crate::stats::{StatsError, StatsOptions};

/// How long an answer is good.
const FRESH: Duration = Duration::from_millis(250);
/// How long a question may take before the embedded store answers.
const PATIENCE: Duration = Duration::from_secs(2);
/// Answers remembered at once.
const MOST_ANSWERS: usize = 512;

type Answer = Result<Arc<dyn Any + Send + Sync>, StoreError>;

/// When something was asked, and what comes of it.
type Asked = (Stopwatch, Shared<BoxFuture<'static, Answer>>);

/// Asks the shared store; cheap to clone.
#[derive(Clone)]
pub struct SharedReads(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub client: Arc<Client>,
    pub keys: Keys,
    pub options: SharedOptions,
    pub stats: StatsOptions,
    pub state: Arc<SharedState>,
    pub instance: String,
    pub answers: Mutex<HashMap<String, Asked>>,
}

impl SharedReads {
    /// The sums of a range.
    pub(in crate::stats) async fn summary(&self, site: &str, plan: Plan) -> Result<Arc<Summary>, StoreError> {
        let (inner, site) = (self.0.clone(), site.to_owned());
        let parts = [Part::Sums, Part::Visitors, Part::Sessions];
        self.ask(format!("summary {site} {plan:?}"), async move {
            let fetched = inner.fetch(&site, &plan.pieces, &parts).await?;
            let as_of = fetched.as_of;
            summary(&fetched, site, &plan, as_of).map_err(unreadable)
        })
        .await
    }

    /// A number over time.
    pub(in crate::stats) async fn timeseries(
        &self,
        site: &str,
        key: String,
        series: Series,
    ) -> Result<Arc<Timeseries>, StoreError> {
        let (inner, site) = (self.0.clone(), site.to_owned());
        self.ask(format!("timeseries {site} {key}"), async move {
            let fetched = inner.fetch(&site, &series.pieces(), &[series.part()]).await?;
            let as_of = fetched.as_of;
            series.read(&fetched, &site, as_of).map_err(unreadable)
        })
        .await
    }

    /// The most frequent names.
    pub(in crate::stats) async fn top<T: Send + Sync + 'static>(
        &self,
        site: &str,
        dim: Dim,
        item: impl Fn(String, u64, f64) -> T + Send + Sync + 'static,
        plan: Plan,
        limit: usize,
    ) -> Result<Arc<Top<T>>, StoreError> {
        let (inner, site) = (self.0.clone(), site.to_owned());
        let part = match dim {
            Dim::Page => Part::Pages,
            Dim::Referrer => Part::Referrers,
            Dim::Event | Dim::Bot => Part::Sums,
        };
        self.ask(format!("top {dim:?} {limit} {site} {plan:?}"), async move {
            let fetched = inner.fetch(&site, &plan.pieces, &[part]).await?;
            let as_of = fetched.as_of;
            let names = fetched.named(dim, &plan.pieces).map_err(unreadable)?;
            Ok(top(names, site, item, &plan, limit, as_of))
        })
        .await
    }

    /// This instance's books in the shared store.
    pub async fn audit(&self) -> Result<AuditTotals, StoreError> {
        let inner = &self.0;
        let mut books = Cmd::new();
        books.arg("HGETALL").arg(inner.keys.key(&audit_key(&inner.instance)));
        // Not remembered: an audit compares one moment.
        let answers = inner.client.all(vec![inner.as_of_command(), books]).await?;
        let mut answers = answers.into_iter();
        let as_of = parse_as_of(answers.next());
        let fields = answers.next().and_then(|value| <HashMap<String, u64>>::from_redis_value(value).ok());
        let mut sites: BTreeMap<String, StoreAudit> = BTreeMap::new();
        for (field, n) in fields.unwrap_or_default() {
            let Some((code, site)) = field.split_once(':') else { continue };
            let book = sites.entry(site.to_owned()).or_default();
            match code {
                "counted" => book.counted = n,
                "duplicate" => book.duplicates = n,
                code => {
                    let known = (0..=u8::MAX).filter_map(RejectCode::from_byte).map(RejectCode::as_str);
                    if let Some(code) = known.into_iter().find(|known| *known == code) {
                        book.rejected.insert(code, n);
                    }
                }
            }
        }
        Ok(AuditTotals { sites, as_of })
    }

    /// What the publisher says of itself.
    pub fn state(&self) -> &Arc<SharedState> {
        &self.0.state
    }

    /// Asks, unless the same is being asked or was a moment ago. Whoever goes away does not end the asking.
    pub(super) async fn ask<T: Send + Sync + 'static>(
        &self,
        key: String,
        question: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<Arc<T>, StoreError> {
        let counters = &self.0.state.counters;
        if !self.0.state.is_up() {
            return Err(StoreError::Away(String::from("does not answer")));
        }
        let answer = {
            let mut answers = self.0.answers.lock();
            match answers.get(&key).filter(|(asked, _)| asked.elapsed() < FRESH) {
                Some((_, answer)) => {
                    counters.coalesced.fetch_add(1, Ordering::Relaxed);
                    answer.clone()
                }
                None => {
                    counters.questions.fetch_add(1, Ordering::Relaxed);
                    let work = tokio::spawn(tokio::time::timeout(PATIENCE, question));
                    let answer = async move {
                        match work.await {
                            Ok(Ok(answer)) => answer.map(|answer| Arc::new(answer) as Arc<dyn Any + Send + Sync>),
                            Ok(Err(_)) => Err(StoreError::Away(String::from("does not answer in time"))),
                            Err(_) => Err(StoreError::Away(String::from("was not asked to the end"))),
                        }
                    };
                    let answer = answer.boxed().shared();
                    if answers.len() >= MOST_ANSWERS {
                        answers.retain(|_, (asked, _)| asked.elapsed() < FRESH);
                    }
                    if answers.len() < MOST_ANSWERS {
                        answers.insert(key, (Stopwatch::start(), answer.clone()));
                    }
                    answer
                }
            }
        };
        let answer = answer.await?;
        answer.downcast::<T>().map_err(|_| StoreError::Refused(String::from("two questions had the same name")))
    }
}

fn unreadable(error: StatsError) -> StoreError {
    StoreError::Refused(error.to_string())
}

pub(super) fn parse_as_of(value: Option<Value>) -> AsOf {
    let fields = value.and_then(|value| <Vec<Option<i64>>>::from_redis_value(value).ok()).unwrap_or_default();
    let field = |at: usize| fields.get(at).copied().flatten();
    AsOf { offset: field(0).unwrap_or(0) as u64, time: field(1) }
}

impl Inner {
    /// How far the shared store has counted this instance.
    pub fn as_of_command(&self) -> Cmd {
        let mut command = Cmd::new();
        command.arg("HMGET").arg(self.keys.fence(Role::Counts, 0, &self.instance)).arg(&["next", "time"]);
        command
    }

    /// The instances' parts of all windows of `pieces`.
    async fn fetch(&self, site: &str, pieces: &[Piece], parts: &[Part]) -> Result<Fetched, StoreError> {
        let mut commands = vec![self.as_of_command()];
        let mut asked = Vec::new();
        for piece in pieces {
            let mut start = piece.from;
            while start < piece.to {
                for what in parts {
                    let mut command = Cmd::new();
                    command.arg("HVALS").arg(self.keys.key(&part(site, piece.tier, start, *what)));
                    commands.push(command);
                    asked.push((piece.tier, start, *what));
                }
                start += piece.tier.width();
            }
        }
        let mut answers = self.client.all(commands).await?.into_iter();
        let as_of = parse_as_of(answers.next());
        let mut windows: HashMap<(Tier, UnixMillis, Part), Vec<Vec<u8>>> = HashMap::new();
        for (window, answer) in asked.into_iter().zip(answers) {
            let fields = <Vec<Vec<u8>>>::from_redis_value(answer);
            let fields = fields.map_err(|_| StoreError::Refused(String::from("a window is no hash")))?;
            if !fields.is_empty() {
                windows.insert(window, fields);
            }
        }
        Ok(Fetched { windows, as_of, limit: self.stats.exact_uniques })
    }

    /// The sums of all instances over some windows.
    pub fn sums_commands(&self, site: &str, tier: Tier, from: UnixMillis, to: UnixMillis) -> Vec<Cmd> {
        let starts = (from..to).step_by(tier.width() as usize);
        let command = |start| {
            let mut command = Cmd::new();
            command.arg("HVALS").arg(self.keys.key(&part(site, tier, start, Part::Sums)));
            command
        };
        starts.map(command).collect()
    }
}

/// Windows of one site as the instances have published them.
struct Fetched {
    windows: HashMap<(Tier, UnixMillis, Part), Vec<Vec<u8>>>,
    as_of: AsOf,
    limit: usize,
}

impl Fetched {
    fn each(
        &self,
        part: Part,
        pieces: &[Piece],
        mut each: impl FnMut(&[u8]) -> Result<(), blob::Malformed>,
    ) -> Result<(), StatsError> {
        for piece in pieces {
            let mut start = piece.from;
            while start < piece.to {
                for bytes in self.windows.get(&(piece.tier, start, part)).into_iter().flatten() {
                    each(bytes).map_err(|_| StatsError::Corrupt("a published window cannot be read"))?;
                }
                start += piece.tier.width();
            }
        }
        Ok(())
    }

    fn sums(&self, pieces: &[Piece]) -> Result<Sums, StatsError> {
        let mut sums = Sums::default();
        self.each(Part::Sums, pieces, |bytes| blob::add_sums(&mut sums, bytes))?;
        Ok(sums)
    }
}

impl Windows for Fetched {
    fn totals(&self, pieces: &[Piece]) -> Result<Totals, StatsError> {
        let sums = self.sums(pieces)?;
        Ok(Totals { page_views: sums.page_views, events: sums.events, bots: sums.bots.values().sum() })
    }

    fn named(&self, dim: Dim, pieces: &[Piece]) -> Result<HashMap<String, u64>, StatsError> {
        let mut names = HashMap::new();
        match dim {
            Dim::Page => self.each(Part::Pages, pieces, |bytes| blob::add_names(&mut names, bytes))?,
            Dim::Referrer => self.each(Part::Referrers, pieces, |bytes| blob::add_names(&mut names, bytes))?,
            Dim::Event => names.extend(self.sums(pieces)?.types),
            Dim::Bot => names.extend(self.sums(pieces)?.bots),
        }
        Ok(names)
    }

    fn bots(&self, pieces: &[Piece]) -> Result<BTreeMap<&'static str, u64>, StatsError> {
        Ok(blob::bot_reasons(&self.sums(pieces)?.bots))
    }

    fn uniques(&self, set: Set, pieces: &[Piece]) -> Result<Uniques, StatsError> {
        let mut uniques = Uniques::new(self.limit);
        let part = match set {
            Set::Visitors => Part::Visitors,
            Set::Sessions => Part::Sessions,
        };
        self.each(part, pieces, |bytes| blob::add_set(&mut uniques, bytes))?;
        Ok(uniques)
    }
}
