//! etcd: keys below a prefix, read once and then watched, over the HTTP/JSON gateway that each member has.
//!
//! A watch that was quiet for a while is begun again from where it was, on a line of its own: so a line that died without a
//! word is found. After any failure all is read anew: whether a store is the same as before (its cluster's id is made from
//! the addresses of its members) can not be asked.

use std::pin::Pin;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::Full;
use hyper::Request;
use hyper::header::{CONTENT_TYPE, HOST, USER_AGENT};
use tokio::time::{Sleep, sleep, timeout};

use super::http::{self, MAX_ANSWER, Reply};
use super::keeper::Fault;
use super::keys::{self, Keys, Told};
use super::{Core, SPACING, USER_AGENT_NAME};
use crate::gateway::backoff::Dice;
use crate::gateway::connect::Connector;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a watch may be quiet, a tenth more or less.
const QUIET: Duration = Duration::from_secs(30);

/// What is asked.
pub(super) struct Question<'a> {
    pub endpoints: &'a [String],
    pub prefix: &'a str,
}

/// How a watch ended.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Quiet,
    Anew,
}

/// Watches for ever; every answer and every fault goes to the core.
pub(super) async fn run(core: &Core, question: &Question<'_>) {
    let (mut dice, mut backoff) = (Dice::new(), super::backoff());
    let watcher = Watcher { core, connector: Connector::plain(), prefix: question.prefix };
    // A run of failures that has been through all endpoints waits before the next.
    let mut failures: usize = 0;
    // Where instances begin differs, so that not all of them ask the first.
    let mut at = (dice.roll() * question.endpoints.len() as f64) as usize;
    loop {
        let Some(endpoint) = question.endpoints.get(at) else {
            at = 0;
            if question.endpoints.is_empty() {
                core.failed(Fault::Empty);
                sleep(backoff.wait(&mut dice)).await;
            }
            continue;
        };
        let mut begun = false;
        let fault = watcher.attend(endpoint, &mut dice, &mut begun).await;
        core.failed(fault);
        at += 1;
        if begun {
            failures = 0;
            backoff.reset();
        }
        failures += 1;
        if failures >= question.endpoints.len() {
            sleep(backoff.wait(&mut dice)).await;
        }
    }
}

struct Watcher<'a> {
    core: &'a Core,
    connector: Connector,
    prefix: &'a str,
}

impl Watcher<'_> {
    /// Stays with one endpoint until it fails. `begun` says whether a watch ever began there.
    async fn attend(&self, endpoint: &str, dice: &mut Dice, begun: &mut bool) -> Fault {
        loop {
            // However often it is compacted.
            let spacing = sleep(SPACING);
            let mut keys = match self.read(endpoint).await {
                Ok(keys) => keys,
                Err(fault) => return fault,
            };
            self.core.heard(keys.answer());
            loop {
                let mut telling = None;
                let ended = self.watch(endpoint, &mut keys, dice.about(QUIET, 0.1), &mut telling).await;
                *begun |= !matches!(ended, Err((_, false)));
                match ended {
                    Ok(Ended::Quiet) => {}
                    Ok(Ended::Anew) => break,
                    Err((fault, _)) => {
                        // What it said before it went is not forgotten.
                        if telling.is_some() && fault == Fault::Lost {
                            self.core.heard(keys.answer());
                        }
                        return fault;
                    }
                }
            }
            spacing.await;
        }
    }

    async fn read(&self, endpoint: &str) -> Result<Keys, Fault> {
        let mut reply = self.post(endpoint, "/v3/kv/range", keys::range_body(self.prefix)).await?;
        Keys::read(&reply.whole(PATIENCE).await?)
    }

    /// One watch, on one line. A fault comes with whether it had begun. `telling` is there while changes wait to be told.
    async fn watch(
        &self,
        endpoint: &str,
        keys: &mut Keys,
        quiet: Duration,
        telling: &mut Option<Pin<Box<Sleep>>>,
    ) -> Result<Ended, (Fault, bool)> {
        let mut begun = false;
        let asked = self.post(endpoint, "/v3/watch", keys::watch_body(self.prefix, keys.next)).await;
        let mut reply = asked.map_err(|fault| (fault, false))?;
        let mut rest = BytesMut::new();
        loop {
            // The first line must come soon: it says that there is a watch.
            let piece = timeout(if begun { quiet } else { PATIENCE }, reply.piece());
            // Changes are told a while after those before them, together.
            let heard = match telling {
                Some(moment) => tokio::select! {
                    biased;
                    () = moment => None,
                    piece = piece => Some(piece),
                },
                None => Some(piece.await),
            };
            let Some(heard) = heard else {
                *telling = None;
                self.core.heard(keys.answer());
                continue;
            };
            let piece = match heard {
                Ok(piece) => piece.and_then(|piece| piece.ok_or(Fault::Lost)).map_err(|fault| (fault, begun))?,
                Err(_) if begun => return Ok(Ended::Quiet),
                Err(_) => return Err((Fault::Late, false)),
            };
            rest.extend_from_slice(&piece);
            while let Some(end) = memchr::memchr(b'\n', &rest) {
                let line = rest.split_to(end);
                rest.advance(1);
                let told = keys.told(&line).map_err(|fault| (fault, begun))?;
                match told {
                    Told::Anew => return Ok(Ended::Anew),
                    // All that there was is known, as of now.
                    Told::Nothing if !begun => self.core.confirmed(),
                    Told::Nothing => {}
                    Told::Changed if telling.is_none() => *telling = Some(Box::pin(sleep(self.core.until_telling()))),
                    Told::Changed => {}
                }
                begun = true;
            }
            if rest.len() > MAX_ANSWER {
                return Err((Fault::TooLong, begun));
            }
        }
    }

    async fn post(&self, endpoint: &str, path: &str, body: String) -> Result<Reply, Fault> {
        let request = Request::post(path)
            .header(HOST, endpoint)
            .header(USER_AGENT, USER_AGENT_NAME)
            .header(CONTENT_TYPE, "application/json")
            // A member that has lost the others says so, instead of being silent.
            .header("grpc-metadata-hasleader", "true")
            .body(Full::new(Bytes::from(body)))
            // Only an endpoint that no header can hold leads here.
            .map_err(|_| Fault::Connect(crate::gateway::connect::ConnectError::Address))?;
        http::ask(&self.connector, endpoint, request, PATIENCE).await
    }
}
