//! The exchange with Redis: for each release what is there is asked for, and what was done here is put in its place.

use std::time::Duration;

use deadpool_redis::redis::Value;

use super::handle::Canary;
use super::ledger::{Answer, Message};
use super::state::State;
use crate::gateway::options::LimiterOptions;
use crate::redis::{Call, Client, Script, StoreError};

/// Releases of one round trip.
const PIECE: usize = 256;
/// How long an answer may take.
const ANSWER: Duration = Duration::from_millis(400);
/// The longest state that is taken, in bytes.
const LONGEST: usize = 64 << 10;

/// The line to Redis.
pub(super) struct Exchange {
    client: Client,
    script: Script,
    prefix: String,
}

impl Exchange {
    /// Over the Redis of limits, if there is one.
    pub fn new(limiter: &LimiterOptions) -> Result<Option<Self>, StoreError> {
        let Some(redis) = &limiter.redis else { return Ok(None) };
        let mut redis = redis.clone();
        redis.timeout = redis.timeout.min(ANSWER);
        Ok(Some(Self {
            client: Client::new(&redis)?,
            script: Script::new(include_str!("place.lua")),
            prefix: limiter.prefix.clone(),
        }))
    }

    fn key(&self, canary: &Canary) -> String {
        format!("{}gateway:canary:{}:{}", self.prefix, canary.route(), canary.release())
    }

    /// Asks for all, and gives each its answer. What is wrong with single ones is in the outcome.
    pub async fn ask(&self, questions: Vec<(Canary, Message)>) -> Result<Vec<String>, StoreError> {
        let mut faults = Vec::new();
        let mut left = questions.into_iter().peekable();
        while left.peek().is_some() {
            let piece: Vec<(Canary, Message)> = left.by_ref().take(PIECE).collect();
            let make =
                |call| piece.iter().map(|(canary, message)| self.command(call, canary, message)).collect::<Vec<_>>();
            let values = self.client.all_with_scripts(make).await?;
            for ((canary, message), value) in piece.into_iter().zip(values) {
                match answer(&message, value) {
                    Ok(answer) => canary.answered(message, answer),
                    Err(what) => {
                        faults.push(format!("{what} under the key {}; delete it to share anew", self.key(&canary)));
                    }
                }
            }
        }
        Ok(faults)
    }

    fn command(&self, call: Call, canary: &Canary, message: &Message) -> deadpool_redis::redis::Cmd {
        let known = message.known.as_deref().unwrap_or_default();
        // A state of ours can always be written.
        let put = message.put.as_ref().and_then(|state| Some((state, serde_json::to_vec(state).ok()?)));
        let (token, text, phase, weight) = match &put {
            Some((state, text)) => {
                let phase = serde_json::to_value(state.phase).ok();
                let phase = phase.as_ref().and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
                (state.token(), text.as_slice(), phase, state.weight.to_string())
            }
            None => (String::new(), &[][..], String::new(), String::new()),
        };
        let remember = canary.phase().remembered().as_millis().to_string();
        let key = self.key(canary);
        let args = [known.as_bytes(), token.as_bytes(), text, remember.as_bytes(), phase.as_bytes(), weight.as_bytes()];
        self.script.command(call, &[&key], &args)
    }
}

/// What an answer says; or what is wrong with what is there.
fn answer(message: &Message, value: Value) -> Result<Answer, &'static str> {
    const FOREIGN: &str = "there is something else";
    let Value::Array(items) = value else { return Err(FOREIGN) };
    let mut items = items.into_iter().map(|item| match item {
        Value::BulkString(bytes) => Some(bytes),
        _ => None,
    });
    let token = items.next().flatten().ok_or(FOREIGN)?;
    let Some(state) = items.next() else {
        return Ok(if message.put.is_some() { Answer::Put } else { Answer::Same });
    };
    if token.is_empty() {
        return Ok(Answer::Other(None));
    }
    let state = state.filter(|state| state.len() <= LONGEST).ok_or(FOREIGN)?;
    let state: State = serde_json::from_slice(&state).map_err(|_| "there is a state that cannot be read")?;
    if state.fault().is_some() || state.token().as_bytes() != token {
        return Err("there is a state that makes no sense");
    }
    Ok(Answer::Other(Some(state)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::canary::options::Weight;

    #[test]
    fn only_what_makes_sense_is_taken_over() {
        let look = Message { known: None, put: None };
        let bulk = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let two = |token: &str, state: &str| answer(&look, Value::Array(vec![bulk(token), bulk(state)]));
        let state = State::new(7, Weight::percent(5.0).unwrap(), 1);
        let text = serde_json::to_string(&state).unwrap();
        assert!(matches!(two(&state.token(), &text), Ok(Answer::Other(Some(there))) if there == state));
        assert!(matches!(two("", ""), Ok(Answer::Other(None))));
        let put = Message { known: None, put: Some(state.clone()) };
        assert!(matches!(answer(&put, Value::Array(vec![bulk(&state.token())])), Ok(Answer::Put)));
        assert!(matches!(answer(&look, Value::Array(vec![bulk("")])), Ok(Answer::Same)));
        for (token, text) in [
            ("7-0-8", text.as_str()),
            ("7-0-7", "{}"),
            ("7-0-7", ""),
            ("7-0-7", &text.replace("5.0", "500.0")),
            ("7-0-7", &text.replace("running", "aborted")),
            ("7-0-7", &text.replace("running", "walking")),
            ("7-0-7", &" ".repeat(LONGEST + 1)),
        ] {
            assert!(two(token, text).is_err(), "{token} {text:.80}");
        }
        for value in [Value::Nil, Value::Int(1), Value::Array(vec![]), Value::Array(vec![Value::Nil, Value::Nil])] {
            assert!(answer(&look, value).is_err());
        }
    }
}
