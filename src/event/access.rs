//! Who may send events for a site: whoever shows one of its write keys, from its own pages.
//!
//! A page's write key is in the page's source, and an origin is sent by browsers only: neither keeps out somebody who means
//! it. They keep out what others' pages, copies of a page and stray scripts send, which is most of what spoils numbers.
//!
//! | the site has | a request is taken |
//! |---|---|
//! | neither | always |
//! | write keys | with one of them |
//! | origins | from one of them; a request that does not say where it is from is not |
//! | both | with a key, and from one of the origins or, as servers and mail do, without saying where from |
//!
//! An origin is scheme, host and port (RFC 6454), compared as a whole.

use std::fmt;
use std::net::Ipv6Addr;

use sha2::{Digest, Sha256};

use super::RejectCode;

/// Shortest write key.
const MIN_KEY: usize = 8;
/// Longest write key.
const MAX_KEY: usize = 128;
/// Longest origin: a name of 253 characters, and what is around it.
const MAX_ORIGIN: usize = 300;

/// A write key, as its SHA-256. How long comparing hashes takes says nothing about the keys.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct WriteKey([u8; 32]);

impl fmt::Debug for WriteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WriteKey")
    }
}

impl WriteKey {
    /// Of its text: 8 to 128 of the characters that URLs and headers need not escape (RFC 3986, unreserved).
    pub fn parse(text: &str) -> Option<Self> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
        let fine = (MIN_KEY..=MAX_KEY).contains(&text.len()) && text.bytes().all(allowed);
        fine.then(|| Self(Sha256::digest(text.as_bytes()).into()))
    }
}

/// Where a page is from: scheme, host and port, in the form that browsers send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    scheme: String,
    host: String,
    /// `None` is the scheme's own.
    port: Option<u16>,
}

impl Origin {
    /// Of a header `Origin`. `null`, which browsers send for pages that hide theirs, is none.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > MAX_ORIGIN {
            return None;
        }
        let (scheme, rest) = text.split_once("://")?;
        let (host, port) = match rest.strip_prefix('[') {
            Some(rest) => {
                let (address, behind) = rest.split_once(']')?;
                let port = if behind.is_empty() { None } else { Some(behind.strip_prefix(':')?) };
                (format!("[{}]", address.parse::<Ipv6Addr>().ok()?), port)
            }
            None => {
                let (host, port) = rest.split_once(':').map_or((rest, None), |(host, port)| (host, Some(port)));
                (is_name(host).then(|| host.to_ascii_lowercase())?, port)
            }
        };
        let scheme = is_scheme(scheme).then(|| scheme.to_ascii_lowercase())?;
        let port = match port {
            None => None,
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => Some(digits.parse::<u16>().ok()?),
            Some(_) => return None,
        };
        let own = match scheme.as_str() {
            "https" => Some(443),
            "http" => Some(80),
            _ => None,
        };
        Some(Self { scheme, host, port: port.filter(|port| Some(*port) != own) })
    }

    /// Of a URL, as a header `Referer` has it.
    pub fn of_url(url: &str) -> Option<Self> {
        let start = url.find("://")? + "://".len();
        let rest = url.get(start..)?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        Self::parse(url.get(..start + end)?)
    }
}

fn is_scheme(text: &str) -> bool {
    let rest = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'.' | b'-');
    text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic()) && text.bytes().all(rest)
}

/// A name or an IPv4 address. Others than ASCII are sent in their `xn--` form.
fn is_name(text: &str) -> bool {
    let label =
        |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    // A dot at the end makes it another origin, but no wrong one.
    text.strip_suffix('.').unwrap_or(text).split('.').all(label)
}

/// An origin, or with `*.` before the name every one below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginPattern {
    origin: Origin,
    below: bool,
}

impl OriginPattern {
    /// As it is configured: `https://shop.example`, `https://*.shop.example`, `http://localhost:3000`.
    ///
    /// # Errors
    /// With what is wrong.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let (scheme, rest) = text.split_once("://").ok_or("is no origin like https://shop.example")?;
        let (host, below) = rest.strip_prefix("*.").map_or((rest, false), |host| (host, true));
        if !host.is_ascii() {
            return Err("has a name that browsers send in its xn-- form; write it so");
        }
        if host.contains('/') {
            return Err("is no origin: it ends before the path, like https://shop.example");
        }
        if host.contains('*') {
            return Err("may have its * in front of the name only, like https://*.shop.example");
        }
        let origin = Origin::parse(&format!("{scheme}://{host}")).ok_or("is no origin like https://shop.example")?;
        if below && (origin.host.starts_with('[') || origin.host.parse::<std::net::Ipv4Addr>().is_ok()) {
            return Err("is an address, below which there is nothing");
        }
        Ok(Self { origin, below })
    }

    /// Whether a page of this origin is meant.
    pub fn matches(&self, page: &Origin) -> bool {
        let own = &self.origin;
        let host = match self.below {
            false => page.host == own.host,
            // Whole labels: evilshop.example is not below shop.example, and neither is that itself.
            true => page.host.strip_suffix(own.host.as_str()).is_some_and(|sub| sub.len() > 1 && sub.ends_with('.')),
        };
        host && page.scheme == own.scheme && page.port == own.port
    }
}

/// What a request shows of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Shown<T> {
    /// Nothing.
    #[default]
    Nothing,
    /// Something that is none, or two that differ.
    Unclear,
    /// This.
    This(T),
}

impl<T: PartialEq> Shown<T> {
    /// One more, where there may be the same again; `None` is something that is none.
    pub fn and(self, more: Option<T>) -> Self {
        match (self, more) {
            (Self::Nothing, Some(more)) => Self::This(more),
            (Self::This(known), Some(more)) if known == more => Self::This(known),
            _ => Self::Unclear,
        }
    }
}

/// By which a request claims that it may send events for a site.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// Its write key.
    pub key: Shown<WriteKey>,
    /// Where its page is from.
    pub origin: Shown<Origin>,
}

impl Claim {
    /// Of a request that shows nothing, or need not.
    pub const NONE: &'static Self = &Self { key: Shown::Nothing, origin: Shown::Nothing };
}

/// What a site asks of requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// One of these, if there are any.
    pub write_keys: Vec<WriteKey>,
    /// Pages from one of these, if there are any.
    pub origins: Vec<OriginPattern>,
}

impl Access {
    /// Whether it asks for nothing.
    pub fn is_open(&self) -> bool {
        self.write_keys.is_empty() && self.origins.is_empty()
    }

    /// Whether events that a request with this claim brings are taken.
    ///
    /// # Errors
    /// With the reason why not.
    pub fn admit(&self, claim: &Claim) -> Result<(), RejectCode> {
        if !self.write_keys.is_empty() {
            match &claim.key {
                Shown::Nothing => return Err(RejectCode::WriteKeyRequired),
                Shown::This(key) if self.write_keys.contains(key) => {}
                Shown::This(_) | Shown::Unclear => return Err(RejectCode::InvalidWriteKey),
            }
        }
        if self.origins.is_empty() {
            return Ok(());
        }
        match &claim.origin {
            Shown::This(page) if self.origins.iter().any(|origin| origin.matches(page)) => Ok(()),
            // No browser's, or one that says nothing: the key has to do.
            Shown::Nothing if !self.write_keys.is_empty() => Ok(()),
            _ => Err(RejectCode::OriginNotAllowed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(text: &str) -> Origin {
        Origin::parse(text).unwrap_or_else(|| panic!("{text} is an origin"))
    }

    fn pattern(text: &str) -> OriginPattern {
        OriginPattern::parse(text).unwrap_or_else(|error| panic!("{text} {error}"))
    }

    #[test]
    fn origins_are_read_as_browsers_send_them() {
        assert_eq!(origin("https://Shop.Example:443"), origin("HTTPS://shop.example"));
        assert_eq!(origin("http://shop.example:80"), origin("http://shop.example"));
        assert_ne!(origin("https://shop.example:80"), origin("https://shop.example"));
        assert_ne!(origin("https://shop.example."), origin("https://shop.example"), "browsers tell them apart");
        assert_eq!(origin("http://[0:0:0:0:0:0:0:1]:8080"), origin("http://[::1]:8080"));
        assert_eq!(origin("capacitor://localhost").port, None);
        let long = format!("https://{}", "a".repeat(400));
        for none in [
            "",
            "null",
            "*",
            "shop.example",
            "//shop.example",
            "https://",
            "https://a b",
            "https://a/",
            "https://a?x",
            "https://a#x",
            "https://shop.example@evil.example",
            "https://a:",
            "https://a:+443",
            "https://a:99999",
            "https://a:443:443",
            "https://a, https://b",
            "https://.a",
            "https://a..b",
            "https://m\u{fc}ller.example",
            "https://[::1",
            "https://[::1]x",
            "https://[::1]x:443",
            "https://[a]",
            "1https://a",
            "https://a\\b",
            "https://a%2fb",
            long.as_str(),
        ] {
            assert_eq!(Origin::parse(none), None, "{none}");
        }
    }

    #[test]
    fn a_referer_has_an_origin_too() {
        for url in ["https://a.example", "https://a.example/", "https://a.example/x?y#z", "https://a.example?x=://b/"] {
            assert_eq!(Origin::of_url(url), Some(origin("https://a.example")), "{url}");
        }
        for none in ["", "/path", "about:client", "https:///x", "https://u@a.example/x", "://"] {
            assert_eq!(Origin::of_url(none), None, "{none}");
        }
    }

    #[test]
    fn patterns_are_whole_origins() {
        let shop = pattern("https://Shop.example:443");
        assert!(shop.matches(&origin("https://shop.example")));
        for other in [
            "http://shop.example",
            "https://shop.example:8443",
            "https://www.shop.example",
            "https://shop.example.evil",
        ] {
            assert!(!shop.matches(&origin(other)), "{other}");
        }
        let below = pattern("https://*.shop.example:8443");
        for page in ["https://www.shop.example:8443", "https://A.b.SHOP.example:8443"] {
            assert!(below.matches(&origin(page)), "{page}");
        }
        for other in [
            "https://shop.example:8443",
            "https://evilshop.example:8443",
            "https://www.shop.example",
            "http://www.shop.example:8443",
            "https://www.shop.example.evil:8443",
        ] {
            assert!(!below.matches(&origin(other)), "{other}");
        }
        for bad in [
            "",
            "*",
            "null",
            "shop.example",
            "https://shop.example/",
            "https://shop.example/x",
            "https://www.*.example",
            "https://*",
            "https://*.",
            "https://*.127.0.0.1",
            "https://*.[::1]",
            "https://m\u{fc}ller.example",
            "*://shop.example",
        ] {
            assert!(OriginPattern::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_are_tokens() {
        assert!(WriteKey::parse("wk_A-z.0~9").is_some());
        assert_eq!(WriteKey::parse("abcdefgh"), WriteKey::parse("abcdefgh"));
        assert_ne!(WriteKey::parse("abcdefgh"), WriteKey::parse("abcdefgH"));
        let (longest, longer) = ("x".repeat(128), "x".repeat(129));
        assert!(WriteKey::parse(&longest).is_some());
        for bad in ["", "short", "with space", "a,b,c,d,e", "k\u{e9}y-of-ours", "colon:colon", longer.as_str()] {
            assert_eq!(WriteKey::parse(bad), None, "{bad}");
        }
        assert_eq!(format!("{:?}", WriteKey::parse("abcdefgh")), "Some(WriteKey)");
    }

    #[test]
    fn what_is_said_twice_must_be_the_same() {
        assert_eq!(Shown::Nothing.and(Some(1)), Shown::This(1));
        assert_eq!(Shown::This(1).and(Some(1)), Shown::This(1));
        assert_eq!(Shown::This(1).and(Some(2)), Shown::Unclear);
        assert_eq!(Shown::This(1).and(None), Shown::Unclear);
        assert_eq!(Shown::<u8>::Unclear.and(Some(1)), Shown::Unclear);
    }

    /// Every claim against every kind of site.
    #[test]
    fn a_request_shows_a_key_and_comes_from_a_page_of_the_site() {
        use RejectCode::*;
        let keys = |n: &[&str]| n.iter().map(|key| WriteKey::parse(key).unwrap()).collect::<Vec<_>>();
        let origins = || vec![pattern("https://shop.example"), pattern("https://*.shop.example")];
        let open = Access::default();
        let keyed = Access { write_keys: keys(&["key-of-now", "key-before"]), origins: vec![] };
        let paged = Access { write_keys: vec![], origins: origins() };
        let both = Access { origins: origins(), ..keyed.clone() };
        assert!(open.is_open() && !keyed.is_open() && !paged.is_open() && !both.is_open());

        let key = |text: &str| Shown::This(WriteKey::parse(text).unwrap());
        let (good, old, wrong) = (key("key-of-now"), key("key-before"), key("key-of-others"));
        let own = Shown::This(origin("https://www.shop.example"));
        let foreign = Shown::This(origin("https://evil.example"));
        let fine = Ok::<(), RejectCode>(());
        // key and origin shown; what becomes of it where there are keys, origins, both.
        let cases = [
            (Shown::Nothing, Shown::Nothing, Err(WriteKeyRequired), Err(OriginNotAllowed), Err(WriteKeyRequired)),
            (Shown::Nothing, own.clone(), Err(WriteKeyRequired), fine, Err(WriteKeyRequired)),
            (Shown::Nothing, foreign.clone(), Err(WriteKeyRequired), Err(OriginNotAllowed), Err(WriteKeyRequired)),
            (Shown::Nothing, Shown::Unclear, Err(WriteKeyRequired), Err(OriginNotAllowed), Err(WriteKeyRequired)),
            (good.clone(), Shown::Nothing, fine, Err(OriginNotAllowed), fine),
            (good.clone(), own.clone(), fine, fine, fine),
            (good.clone(), foreign.clone(), fine, Err(OriginNotAllowed), Err(OriginNotAllowed)),
            (good, Shown::Unclear, fine, Err(OriginNotAllowed), Err(OriginNotAllowed)),
            (old, own.clone(), fine, fine, fine),
            (wrong.clone(), Shown::Nothing, Err(InvalidWriteKey), Err(OriginNotAllowed), Err(InvalidWriteKey)),
            (wrong.clone(), own.clone(), Err(InvalidWriteKey), fine, Err(InvalidWriteKey)),
            (wrong, foreign, Err(InvalidWriteKey), Err(OriginNotAllowed), Err(InvalidWriteKey)),
            (Shown::Unclear, own, Err(InvalidWriteKey), fine, Err(InvalidWriteKey)),
        ];
        for (key, origin, with_keys, with_origins, with_both) in cases {
            let claim = Claim { key, origin };
            assert_eq!(open.admit(&claim), Ok(()), "{claim:?}");
            assert_eq!(keyed.admit(&claim), with_keys, "{claim:?}");
            assert_eq!(paged.admit(&claim), with_origins, "{claim:?}");
            assert_eq!(both.admit(&claim), with_both, "{claim:?}");
        }
    }
}
