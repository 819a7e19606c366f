//! Consul: the instances of a service that pass their checks, by blocking queries.
//!
//! A query names the index of the last answer and waits until there is a newer one. What to do with indexes is from Consul's
//! own rules for clients ("Blocking Queries" in its API documentation): one that goes backwards starts over at 0, as after
//! the servers were restored from a snapshot; it is never less than 1; and a client that is answered at once each time must
//! slow down by itself.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use hyper::header::{ACCEPT, HOST, HeaderValue, USER_AGENT};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::keeper::Fault;
use super::node::{Answer, BadNode, MAX_NODES, target};
use super::{Core, SPACING, USER_AGENT_NAME, http};
use crate::gateway::backoff::Dice;
use crate::gateway::connect::Connector;
use crate::gateway::options::Secret;

/// How long a query waits for news. Consul adds up to a sixteenth.
const WAIT: Duration = Duration::from_secs(30);
/// How much later an answer may come.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is asked.
pub(super) struct Question<'a> {
    pub address: &'a str,
    pub service: &'a str,
    pub tag: Option<&'a str>,
    pub token: Option<&'a Secret>,
}

/// The index that the next query names.
#[derive(Debug, Default, PartialEq, Eq)]
struct Index(u64);

impl Index {
    /// Takes that of an answer.
    fn advance(&mut self, header: Option<&HeaderValue>) -> Result<(), Fault> {
        let text = header.and_then(|value| value.to_str().ok()).ok_or(Fault::Malformed)?;
        let new: u64 = text.trim().parse().map_err(|_| Fault::Malformed)?;
        self.0 = if new < self.0 { 0 } else { new.max(1) };
        Ok(())
    }
}

/// Asks for ever; every answer and every fault goes to the core.
pub(super) async fn run(core: &Core, question: &Question<'_>) {
    let (connector, mut dice) = (Connector::plain(), Dice::new());
    let (mut index, mut backoff) = (Index::default(), super::backoff());
    loop {
        let asked = tokio::time::sleep(SPACING);
        match ask(&connector, question, &mut index).await {
            Ok(answer) => {
                core.heard(answer);
                backoff.reset();
                // At most one answer in that time, however often its index moves.
                asked.await;
            }
            Err(fault) => {
                core.failed(fault);
                index = Index::default();
                tokio::time::sleep(backoff.wait(&mut dice)).await;
            }
        }
    }
}

async fn ask(connector: &Connector, question: &Question<'_>, index: &mut Index) -> Result<Answer, Fault> {
    let mut request = Request::get(path(question, index))
        .header(HOST, question.address)
        .header(USER_AGENT, USER_AGENT_NAME)
        .header(ACCEPT, "application/json");
    if let Some(Secret(token)) = question.token {
        request = request.header("X-Consul-Token", token.as_str());
    }
    // Only a token that no header can hold leads here.
    let request = request.body(Full::new(Bytes::new())).map_err(|_| Fault::Refused)?;
    // Without an index it answers at once.
    let patience = if index.0 == 0 { PATIENCE } else { WAIT + WAIT / 16 + PATIENCE };
    let mut reply = http::ask(connector, question.address, request, patience).await?;
    let answer = parse(&reply.whole(PATIENCE).await?)?;
    index.advance(reply.headers.get("x-consul-index"))?;
    Ok(answer)
}

fn path(question: &Question<'_>, index: &Index) -> String {
    let mut path = format!("/v1/health/service/{}?passing=1", escaped(question.service));
    if let Some(tag) = question.tag {
        path.push_str("&tag=");
        path.push_str(&escaped(tag));
    }
    if index.0 > 0 {
        path.push_str(&format!("&index={}&wait={}s", index.0, WAIT.as_secs()));
    }
    path
}

/// Percent-encoded, but for what RFC 3986 calls unreserved.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => escaped.push(char::from(byte)),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry<'a> {
    #[serde(borrow)]
    node: Option<Node<'a>>,
    #[serde(borrow)]
    service: Service<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Node<'a> {
    #[serde(borrow)]
    address: Option<std::borrow::Cow<'a, str>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Service<'a> {
    #[serde(borrow)]
    address: Option<std::borrow::Cow<'a, str>>,
    port: u64,
    weights: Option<Weights>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Weights {
    passing: Option<u64>,
}

fn parse(body: &[u8]) -> Result<Answer, Fault> {
    // Each node by itself, so that one cannot spoil the others. Consul has said null for none.
    let nodes: Option<Vec<&RawValue>> = serde_json::from_slice(body).map_err(|_| Fault::Malformed)?;
    let nodes = nodes.unwrap_or_default();
    if nodes.len() > MAX_NODES {
        return Err(Fault::TooMany);
    }
    Ok(Answer::of(nodes.into_iter().map(|node| {
        let entry: Entry<'_> = serde_json::from_str(node.get()).map_err(|_| BadNode::Form)?;
        // A service without an address of its own is at its node's.
        let own = entry.service.address.filter(|address| !address.is_empty());
        let address = own.or(entry.node.and_then(|node| node.address)).ok_or(BadNode::Host)?;
        let weight = entry.service.weights.and_then(|weights| weights.passing).unwrap_or(1);
        target(&address, entry.service.port, weight)
    })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::options::TargetOptions;

    #[test]
    fn the_index_starts_over_when_it_goes_back() {
        let mut index = Index::default();
        let mut advance = |text: Option<&'static str>| {
            let done = index.advance(text.map(HeaderValue::from_static).as_ref());
            done.map(|()| index.0)
        };
        assert_eq!(advance(Some("7")), Ok(7));
        assert_eq!(advance(Some("7")), Ok(7));
        assert_eq!(advance(Some("9")), Ok(9));
        assert_eq!(advance(Some("8")), Ok(0), "backwards");
        assert_eq!(advance(Some("8")), Ok(8));
        assert_eq!(advance(Some("0")), Ok(0));
        assert_eq!(advance(Some("0")), Ok(1), "never less than 1, or it would not wait");
        for wrong in [None, Some(""), Some("-1"), Some("many")] {
            assert_eq!(advance(wrong), Err(Fault::Malformed));
        }
    }

    #[test]
    fn a_question_is_escaped() {
        let mut question = Question { address: "c:8500", service: "users", tag: None, token: None };
        assert_eq!(path(&question, &Index(0)), "/v1/health/service/users?passing=1");
        question = Question { service: "a/b?c d", tag: Some("x&index=1é"), ..question };
        assert_eq!(
            path(&question, &Index(5)),
            "/v1/health/service/a%2Fb%3Fc%20d?passing=1&tag=x%26index%3D1%C3%A9&index=5&wait=30s"
        );
    }

    #[test]
    fn nodes_are_read_one_by_one() {
        let body = r#"[
            {"Node": {"Node": "n1", "Address": "10.1.0.1"}, "Checks": [],
             "Service": {"ID": "u1", "Address": "10.0.0.1", "Port": 80, "Weights": {"Passing": 10, "Warning": 1}}},
            {"Node": {"Address": "10.1.0.2"}, "Service": {"Address": "", "Port": 81}},
            {"Node": {"Address": "10.1.0.3"}, "Service": {"Port": "82"}},
            {"Node": {"Address": "10.1.0.4"}},
            17,
            {"Node": null, "Service": {"Port": 83}},
            {"Service": {"Address": "fd00::5", "Port": 84, "Weights": null}},
            {"Service": {"Address": "10.0.0.6", "Port": 85, "Weights": {"Passing": 0}}},
            {"Service": {"Address": "10.0.0.7", "Port": 0}}
        ]"#;
        let answer = parse(body.as_bytes()).unwrap();
        let at = |address: &str, weight| TargetOptions { address: String::from(address), weight };
        assert_eq!(answer.targets, [at("10.0.0.1:80", 10), at("10.1.0.2:81", 1), at("[fd00::5]:84", 1)]);
        assert_eq!((answer.nodes, answer.rejected), (9, 6));
        for empty in ["[]", "null", " [ ] "] {
            assert_eq!(parse(empty.as_bytes()).unwrap().nodes, 0);
        }
        for wrong in ["", "[", "{}", "true", "[1,]", "<html>", "\"\""] {
            assert_eq!(parse(wrong.as_bytes()), Err(Fault::Malformed), "{wrong}");
        }
        let many = format!("[{}1]", "1,".repeat(MAX_NODES));
        assert_eq!(parse(many.as_bytes()), Err(Fault::TooMany));
    }
}
