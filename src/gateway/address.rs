//! Who sends a request: the client's address behind proxies that are trusted.
//!
//! Each proxy appends the address that it was called from, so the chain is read from the right, and only as far as the
//! proxies that wrote it are ours: what stands left of the first untrusted address was written by the client.
//!
//! `X-Forwarded-For` is read, and where there is none, `Forwarded` (RFC 7239). A proxy that writes the latter must not hand
//! on a client's `X-Forwarded-For`.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

/// Hops that are looked at; nobody has so many proxies of his own.
const MAX_HOPS: usize = 32;

/// The way a request came, as far as it can be believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The client: the first address from the right that is no trusted proxy, or the last that could be read.
    pub client: IpAddr,
    /// Proxies between it and us, the nearest last.
    pub proxies: Vec<IpAddr>,
}

impl Chain {
    /// Whether the peer is a proxy whose word is taken.
    pub fn is_proxied(&self) -> bool {
        !self.proxies.is_empty()
    }
}

/// As in `X-Forwarded-For`.
impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.client)?;
        self.proxies.iter().try_for_each(|proxy| write!(f, ", {proxy}"))
    }
}

/// Reads the chain of a request from `peer`. `forwarded_for` are all lines of `X-Forwarded-For`, `forwarded` those of
/// `Forwarded`, as bytes: a line that is no text must not make an earlier one count.
pub fn chain<'a>(
    peer: IpAddr,
    trusted: &[IpNet],
    forwarded_for: impl IntoIterator<Item = &'a [u8]>,
    forwarded: impl IntoIterator<Item = &'a [u8]>,
) -> Chain {
    let peer = peer.to_canonical();
    let is_trusted = |ip: &IpAddr| trusted.iter().any(|range| range.contains(ip));
    let mut found = Chain { client: peer, proxies: Vec::new() };
    if trusted.is_empty() || !is_trusted(&peer) {
        return found;
    }
    let lines: Vec<&[u8]> = forwarded_for.into_iter().collect();
    if !lines.is_empty() {
        let hops = lines.iter().rev().flat_map(|line| line.rsplit(|byte| *byte == b','));
        found.follow(hops.map(|hop| parse_hop(hop.trim_ascii())), is_trusted);
        return found;
    }
    let lines: Vec<&[u8]> = forwarded.into_iter().collect();
    // A line that breaks the grammar hides where its elements end: nothing of it is believed.
    let hops = lines.iter().rev().flat_map(|line| elements(line).unwrap_or_else(|| vec![None]).into_iter().rev());
    found.follow(hops, is_trusted);
    found
}

impl Chain {
    /// Goes from the right as long as proxies are trusted. What cannot be read was not written by one of ours: stop at the
    /// last that was.
    fn follow(&mut self, hops: impl Iterator<Item = Option<IpAddr>>, is_trusted: impl Fn(&IpAddr) -> bool) {
        let mut proxies = Vec::new();
        for hop in hops.take(MAX_HOPS) {
            let Some(ip) = hop else { break };
            proxies.push(self.client);
            self.client = ip;
            if !is_trusted(&ip) {
                break;
            }
        }
        proxies.reverse();
        self.proxies = proxies;
    }
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]` or `[2001:db8::1]:80`. A zone means something on one link
/// only, so an address with one is none.
fn parse_hop(hop: &[u8]) -> Option<IpAddr> {
    let hop = std::str::from_utf8(hop).ok()?;
    if let Ok(ip) = hop.parse::<IpAddr>() {
        return Some(ip.to_canonical());
    }
    parse_node(hop, is_port)
}

/// An IPv4 address, or an IPv6 address in brackets, and a port if there is one.
fn parse_node(node: &str, is_port: impl Fn(&str) -> bool) -> Option<IpAddr> {
    let (address, port): (IpAddr, &str) = match node.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            (address.parse::<Ipv6Addr>().ok()?.into(), port)
        }
        None => {
            let (address, port) = node.split_at(node.find(':').unwrap_or(node.len()));
            (address.parse::<std::net::Ipv4Addr>().ok()?.into(), port)
        }
    };
    (port.is_empty() || port.strip_prefix(':').is_some_and(is_port)).then(|| address.to_canonical())
}

fn is_port(port: &str) -> bool {
    (1..=5).contains(&port.len()) && port.bytes().all(|byte| byte.is_ascii_digit())
}

/// RFC 7239, 6.3: digits, or `_` and a name of the proxy's own.
fn is_node_port(port: &str) -> bool {
    let obfuscated = |name: &str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    is_port(port) || port.strip_prefix('_').is_some_and(obfuscated)
}

/// The `for` of each element of a line of `Forwarded`, `None` where there is none that is an address; `None` for a line
/// that breaks the grammar (RFC 7239, 4).
fn elements(line: &[u8]) -> Option<Vec<Option<IpAddr>>> {
    let mut found = Vec::new();
    let mut hop: Option<Option<IpAddr>> = None;
    let mut rest = line;
    loop {
        rest = rest.trim_ascii_start();
        let end = rest.iter().position(|byte| !is_token(*byte)).unwrap_or(rest.len());
        let (name, behind) = rest.split_at(end);
        // Pairs may be empty, and so may elements; but an element that does not say for whom ends the chain.
        if !name.is_empty() {
            let (value, behind) = value(behind.strip_prefix(b"=")?)?;
            if name.eq_ignore_ascii_case(b"for") {
                let address = std::str::from_utf8(&value).ok().and_then(|node| parse_node(node, is_node_port));
                if hop.replace(address).is_some() {
                    return None;
                }
            }
            rest = behind.trim_ascii_start();
        } else {
            rest = behind;
        }
        match rest.split_first() {
            Some((b';', behind)) => rest = behind,
            Some((b',', behind)) => {
                found.push(hop.take().flatten());
                rest = behind;
            }
            None => {
                found.push(hop.take().flatten());
                return Some(found);
            }
            Some(_) => return None,
        }
    }
}

/// A token or a quoted string, and what is behind it.
fn value(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let Some(quoted) = text.strip_prefix(b"\"") else {
        let end = text.iter().position(|byte| !is_token(*byte)).unwrap_or(text.len());
        let (value, behind) = text.split_at(end);
        return (!value.is_empty()).then(|| (value.to_vec(), behind));
    };
    let mut value = Vec::new();
    let mut bytes = quoted.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => return Some((value, bytes.as_slice())),
            b'\\' => value.push(*bytes.next()?),
            byte => value.push(*byte),
        }
    }
    None
}

/// RFC 9110, 5.6.2. Colons are not in it, but some leave the quotes out around an address with a port.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: [&str; 3] = ["10.0.0.0/8", "fd00::/8", "192.168.1.1/32"];

    fn read(peer: &str, forwarded_for: &[&[u8]], forwarded: &[&[u8]]) -> String {
        let trusted: Vec<IpNet> = OURS.iter().map(|range| range.parse().unwrap()).collect();
        let (a, b) = (forwarded_for.iter().copied(), forwarded.iter().copied());
        chain(peer.parse().unwrap(), &trusted, a, b).to_string()
    }

    #[test]
    fn nobody_can_pretend_to_be_another() {
        let long = vec!["6.6.6.6"; 1500].join(", ");
        let long_of_ours = vec!["10.0.0.9"; 1500].join(",");
        let as_far_as_looked = format!("{}10.0.0.1", "10.0.0.9, ".repeat(MAX_HOPS));
        let cases: &[(&str, &[&str], &str)] = &[
            // A peer that is not ours is the client, whatever it says.
            ("203.0.113.9", &["1.1.1.1"], "203.0.113.9"),
            ("203.0.113.9", &["10.0.0.1"], "203.0.113.9"),
            ("::ffff:203.0.113.9", &["1.1.1.1"], "203.0.113.9"),
            ("192.168.1.2", &["1.1.1.1"], "192.168.1.2"),
            ("2001:db8::9", &["1.1.1.1"], "2001:db8::9"),
            // One that is ours is believed up to the first that is not.
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["1.1.1.1"], "1.1.1.1, 10.0.0.1"),
            ("::ffff:10.0.0.1", &["1.1.1.1"], "1.1.1.1, 10.0.0.1"),
            ("fd00::1", &["1.1.1.1"], "1.1.1.1, fd00::1"),
            ("10.0.0.1", &["6.6.6.6, 1.1.1.1"], "1.1.1.1, 10.0.0.1"),
            ("10.0.0.1", &["10.0.0.5, 1.1.1.1"], "1.1.1.1, 10.0.0.1"),
            ("10.0.0.1", &["6.6.6.6, 1.1.1.1, 10.0.0.2"], "1.1.1.1, 10.0.0.2, 10.0.0.1"),
            ("10.0.0.1", &["6.6.6.6", "1.1.1.1"], "1.1.1.1, 10.0.0.1"),
            ("10.0.0.1", &["6.6.6.6", "1.1.1.1, 10.0.0.3", "10.0.0.2"], "1.1.1.1, 10.0.0.3, 10.0.0.2, 10.0.0.1"),
            ("10.0.0.1", &["10.0.0.3,10.0.0.2"], "10.0.0.3, 10.0.0.2, 10.0.0.1"),
            // What cannot be read ends it.
            ("10.0.0.1", &["1.1.1.1, rubbish"], "10.0.0.1"),
            ("10.0.0.1", &["1.1.1.1, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["1.1.1.1, unknown, 10.0.0.2"], "10.0.0.2, 10.0.0.1"),
            ("10.0.0.1", &["1.1.1.1,"], "10.0.0.1"),
            ("10.0.0.1", &["1.1.1.1", ""], "10.0.0.1"),
            ("10.0.0.1", &["1.1.1.1 6.6.6.6"], "10.0.0.1"),
            ("10.0.0.1", &["1.1.1.1;6.6.6.6"], "10.0.0.1"),
            ("10.0.0.1", &["01.1.1.1"], "10.0.0.1"),
            ("10.0.0.1", &["1.1.1"], "10.0.0.1"),
            ("10.0.0.1", &["0x1.1.1.1"], "10.0.0.1"),
            ("10.0.0.1", &["localhost"], "10.0.0.1"),
            ("10.0.0.1", &["\"1.1.1.1\""], "10.0.0.1"),
            // Ways to write an address.
            ("10.0.0.1", &["  1.1.1.1\t"], "1.1.1.1, 10.0.0.1"),
            ("10.0.0.1", &["1.1.1.1:4711"], "1.1.1.1, 10.0.0.1"),
            ("10.0.0.1", &["1.1.1.1:"], "10.0.0.1"),
            ("10.0.0.1", &["1.1.1.1:80:80"], "10.0.0.1"),
            ("10.0.0.1", &["1.1.1.1:_x"], "10.0.0.1"),
            ("10.0.0.1", &["2001:db8::1"], "2001:db8::1, 10.0.0.1"),
            ("10.0.0.1", &["2001:DB8:0:0::1"], "2001:db8::1, 10.0.0.1"),
            ("10.0.0.1", &["[2001:db8::1]"], "2001:db8::1, 10.0.0.1"),
            ("10.0.0.1", &["[2001:db8::1]:443"], "2001:db8::1, 10.0.0.1"),
            ("10.0.0.1", &["[2001:db8::1]443"], "10.0.0.1"),
            ("10.0.0.1", &["[2001:db8::1"], "10.0.0.1"),
            ("10.0.0.1", &["[1.1.1.1]"], "10.0.0.1"),
            ("10.0.0.1", &["::ffff:1.1.1.1"], "1.1.1.1, 10.0.0.1"),
            ("10.0.0.1", &["[::ffff:1.1.1.1]:9"], "1.1.1.1, 10.0.0.1"),
            ("10.0.0.1", &["6.6.6.6, ::ffff:10.0.0.7"], "6.6.6.6, 10.0.0.7, 10.0.0.1"),
            ("10.0.0.1", &["fe80::1%eth0"], "10.0.0.1"),
            ("10.0.0.1", &["[fe80::1%1]:80"], "10.0.0.1"),
            // Long chains.
            ("10.0.0.1", &[&format!("{long}, 1.1.1.1")], "1.1.1.1, 10.0.0.1"),
            ("10.0.0.1", &[&format!("6.6.6.6,{long_of_ours}")], &as_far_as_looked),
        ];
        for (peer, lines, expected) in cases {
            let lines: Vec<&[u8]> = lines.iter().map(|line| line.as_bytes()).collect();
            assert_eq!(read(peer, &lines, &[b"for=9.9.9.9"]), unless(lines.is_empty(), expected, "9.9.9.9, 10.0.0.1"));
        }
        assert!(cases.len() >= 40);
        // A proxy appended to a line that is no text: that is no reason to believe the line before.
        assert_eq!(read("10.0.0.1", &[b"6.6.6.6", b"\xff, 1.1.1.1"], &[]), "1.1.1.1, 10.0.0.1");
        assert_eq!(read("10.0.0.1", &[b"6.6.6.6", b"\xff"], &[]), "10.0.0.1");
    }

    fn unless<'a>(other: bool, expected: &'a str, otherwise: &'a str) -> &'a str {
        if other { otherwise } else { expected }
    }

    #[test]
    fn forwarded_is_read_as_its_grammar_says() {
        let cases: &[(&[&str], &str)] = &[
            (&["for=1.1.1.1"], "1.1.1.1, 10.0.0.1"),
            (&["For=\"1.1.1.1:80\";proto=https;by=203.0.113.43"], "1.1.1.1, 10.0.0.1"),
            (&["proto=http ; for=1.1.1.1:4711"], "1.1.1.1, 10.0.0.1"),
            (&["for=6.6.6.6, for=1.1.1.1, for=10.0.0.2"], "1.1.1.1, 10.0.0.2, 10.0.0.1"),
            (&["for=6.6.6.6", "for=1.1.1.1"], "1.1.1.1, 10.0.0.1"),
            (&["for=\"[2001:db8:cafe::17]:4711\""], "2001:db8:cafe::17, 10.0.0.1"),
            (&["for=\"[2001:db8:cafe::17]\""], "2001:db8:cafe::17, 10.0.0.1"),
            (&["for=\"[::ffff:1.1.1.1]\""], "1.1.1.1, 10.0.0.1"),
            (&["for=\"1.1.1\\.1\""], "1.1.1.1, 10.0.0.1"),
            (&["for=\"1.1.1.1:_port\""], "1.1.1.1, 10.0.0.1"),
            (&["for=unknown"], "10.0.0.1"),
            (&["for=6.6.6.6, for=_hidden"], "10.0.0.1"),
            (&["for=6.6.6.6, for=\"_SEVKISEK\", for=10.0.0.2"], "10.0.0.2, 10.0.0.1"),
            (&["for=6.6.6.6, proto=https"], "10.0.0.1"),
            (&["for=6.6.6.6,"], "10.0.0.1"),
            (&["for=2001:db8::1"], "10.0.0.1"),
            (&["for=\"[fe80::1%1]\""], "10.0.0.1"),
            (&["for=1.1.1.1;for=6.6.6.6"], "10.0.0.1"),
            (&["for = 1.1.1.1"], "10.0.0.1"),
            (&["for=1.1.1.1 6.6.6.6"], "10.0.0.1"),
            (&["for"], "10.0.0.1"),
            (&[""], "10.0.0.1"),
            // Quotes that the client opened, and the proxy's own inside them.
            (&["for=\"6.6.6.6, for=1.1.1.1"], "10.0.0.1"),
            (&["for=6.6.6.6;x=\", for=\"[2001:db8::1]\""], "10.0.0.1"),
            (&["for=6.6.6.6;x=\", for=1.1.1.1", "for=10.0.0.2"], "10.0.0.2, 10.0.0.1"),
            (&["x=\"a, for=6.6.6.6\";for=1.1.1.1"], "1.1.1.1, 10.0.0.1"),
        ];
        for (lines, expected) in cases {
            let lines: Vec<&[u8]> = lines.iter().map(|line| line.as_bytes()).collect();
            assert_eq!(read("10.0.0.1", &[], &lines), *expected, "{lines:?}");
            assert_eq!(read("203.0.113.9", &[], &lines), "203.0.113.9");
        }
    }
}
