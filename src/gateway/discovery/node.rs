//! What a registry says of nodes, and which of it can be believed.

use std::net::IpAddr;

use crate::gateway::connect::split;
use crate::gateway::options::TargetOptions;

/// Nodes that an answer may name.
pub(super) const MAX_NODES: usize = 10_000;
/// The greatest share of a target.
const MAX_WEIGHT: u64 = 1000;

/// Why a node is left out. It costs only itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadNode {
    #[error("it is not in the form that is expected")]
    Form,
    #[error("its address is no host")]
    Host,
    #[error("its port is no port")]
    Port,
    #[error("its weight is no number from 1")]
    Weight,
}

/// One answer of a registry, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// Those that can be used, each address once, in order.
    pub targets: Vec<TargetOptions>,
    /// How many there were.
    pub nodes: usize,
    /// How many of them cannot be used.
    pub rejected: usize,
    /// Why the first of them cannot.
    pub why: Option<BadNode>,
}

impl Answer {
    pub fn of(nodes: impl IntoIterator<Item = Result<TargetOptions, BadNode>>) -> Self {
        let mut answer = Self { targets: vec![], nodes: 0, rejected: 0, why: None };
        for node in nodes {
            answer.nodes += 1;
            match node {
                Ok(target) => answer.targets.push(target),
                Err(why) => {
                    answer.rejected += 1;
                    answer.why.get_or_insert(why);
                }
            }
        }
        // The order of registries means nothing, and would look like a change. An address that was registered twice is one
        // target: the greater weight is meant, not both.
        answer.targets.sort_by(|a, b| a.address.cmp(&b.address).then(b.weight.cmp(&a.weight)));
        answer.targets.dedup_by(|later, first| later.address == first.address);
        answer
    }
}

/// A target from its parts. A weight of more than 1000 is 1000.
pub(super) fn target(host: &str, port: u64, weight: u64) -> Result<TargetOptions, BadNode> {
    let port = u16::try_from(port).ok().filter(|port| *port > 0).ok_or(BadNode::Port)?;
    let host = match host.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() || ip.is_multicast() => return Err(BadNode::Host),
        Ok(IpAddr::V6(ip)) => format!("[{ip}]"),
        Ok(IpAddr::V4(ip)) => ip.to_string(),
        Err(_) if is_name(host) => host.to_ascii_lowercase(),
        Err(_) => return Err(BadNode::Host),
    };
    let weight = u32::try_from(weight.min(MAX_WEIGHT)).ok().filter(|weight| *weight > 0).ok_or(BadNode::Weight)?;
    Ok(TargetOptions { address: format!("{host}:{port}"), weight })
}

/// A target from `host:port`.
pub(super) fn target_at(address: &str, weight: u64) -> Result<TargetOptions, BadNode> {
    let (host, port) = split(address).ok_or(BadNode::Form)?;
    target(host, u64::from(port), weight)
}

/// Labels of letters, digits, `-` and `_` (which DNS itself allows), and not all digits, which would be half an address.
fn is_name(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let label = |label: &str| {
        let inner = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
        (1..=63).contains(&label.len()) && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    let last = host.rsplit('.').next().unwrap_or_default();
    host.len() <= 253 && host.split('.').all(label) && !last.bytes().all(|c| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: &str, weight: u32) -> TargetOptions {
        TargetOptions { address: String::from(address), weight }
    }

    #[test]
    fn nodes_are_checked_one_by_one() {
        assert_eq!(target_at("10.0.0.1:80", 1), Ok(at("10.0.0.1:80", 1)));
        assert_eq!(target_at("Users.Internal:8080", 7), Ok(at("users.internal:8080", 7)));
        assert_eq!(target_at("[2001:DB8::0:1]:80", 5000), Ok(at("[2001:db8::1]:80", 1000)));
        assert_eq!(target("fe80::1", 1, 1), Ok(at("[fe80::1]:1", 1)));
        for form in ["", "10.0.0.1", "http://a:80", "a:80/", "a b:", ":80", "a:0", "a:99999"] {
            assert_eq!(target_at(form, 1), Err(BadNode::Form), "{form}");
        }
        for host in
            ["0.0.0.0:1", "[::]:1", "224.0.0.1:1", "10.0.0:1", "10:1", "a..b:1", "-a:1", "u@a:1", "a b:1", "a/b:1"]
        {
            assert_eq!(target_at(host, 1), Err(BadNode::Host), "{host}");
        }
        assert_eq!(target("a", 0, 1), Err(BadNode::Port));
        assert_eq!(target("a", 65_536, 1), Err(BadNode::Port));
        assert_eq!(target("a", 1, 0), Err(BadNode::Weight));
    }

    #[test]
    fn an_answer_is_the_same_in_any_order_and_with_repetitions() {
        let nodes = [Ok(at("b:1", 1)), Err(BadNode::Port), Ok(at("a:1", 2)), Ok(at("b:1", 3)), Err(BadNode::Form)];
        let answer = Answer::of(nodes.clone());
        assert_eq!(answer.targets, [at("a:1", 2), at("b:1", 3)]);
        assert_eq!((answer.nodes, answer.rejected, answer.why), (5, 2, Some(BadNode::Port)));
        let turned = Answer::of(nodes.into_iter().rev());
        assert_eq!((turned.targets, turned.nodes, turned.rejected), (answer.targets, 5, 2));
    }
}
