//! Who a request is, over all services: its request id, and its trace by W3C Trace Context
//! (<https://www.w3.org/TR/trace-context/>).

use std::cell::RefCell;
use std::hash::Hasher;
use std::ops::Range;

use hyper::header::{HeaderMap, HeaderValue};
use siphasher::sip128::{Hasher128, SipHasher13};

/// Longest `tracestate` that is handed on, and its most members.
const MAX_STATE: (usize, usize) = (8192, 32);

/// Where the trace's id stands in a `traceparent`.
const ID: Range<usize> = 3..35;

thread_local! {
    /// A key and a count: ids that nobody can foretell, without a call of the system for each.
    static IDS: RefCell<(SipHasher13, u64)> = RefCell::new((SipHasher13::new_with_key(uuid::Uuid::new_v4().as_bytes()), 0));
}

fn random() -> u128 {
    IDS.with_borrow_mut(|(key, count)| {
        *count = count.wrapping_add(1);
        let mut hasher = *key;
        hasher.write_u64(*count);
        hasher.finish128().as_u128()
    })
}

/// Whether an id that came with a request is taken over: 1 to 128 of `A-Z a-z 0-9 - _ . :`.
pub fn is_request_id(id: &[u8]) -> bool {
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':');
    (1..=128).contains(&id.len()) && id.iter().all(allowed)
}

/// A new request id.
pub fn new_request_id() -> String {
    uuid::Builder::from_random_bytes(random().to_be_bytes()).into_uuid().to_string()
}

/// The id of a request with these headers, and ours if it has none that is well formed.
pub fn request_id(headers: &HeaderMap) -> HeaderValue {
    let mut sent = headers.get_all("x-request-id").iter();
    match (sent.next(), sent.next()) {
        (Some(id), None) if is_request_id(id.as_bytes()) => id.clone(),
        _ => HeaderValue::try_from(new_request_id()).unwrap_or(HeaderValue::from_static("-")),
    }
}

/// Where a request stands in a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// Of the whole trace; never zero.
    pub trace_id: u128,
    /// Of our part of it, which is the parent of the upstream's; never zero.
    pub span_id: u64,
    /// Whether the caller may have recorded it.
    pub sampled: bool,
    /// What others wrote along the way.
    pub state: Option<HeaderValue>,
}

impl TraceContext {
    /// Goes on with the trace that came with a request, or starts one: where there is none, where it cannot be read, and
    /// where there are two.
    pub fn of_request(headers: &HeaderMap) -> Self {
        let mut sent = headers.get_all("traceparent").iter();
        let parent = match (sent.next(), sent.next()) {
            (Some(parent), None) => parse(parent.as_bytes()),
            _ => None,
        };
        let fresh = random();
        // Half of it would do for a span, and is as random.
        let span_id = ((fresh >> 64) as u64).max(1);
        match parent {
            Some((trace_id, sampled)) => Self { trace_id, span_id, sampled, state: state(headers) },
            None => Self { trace_id: random().max(1), span_id, sampled: true, state: None },
        }
    }

    /// As a header.
    pub fn traceparent(&self) -> HeaderValue {
        HeaderValue::from_bytes(&self.text()).unwrap_or(HeaderValue::from_static("-"))
    }

    /// The trace's id as a header: 32 hexadecimal digits.
    pub fn trace_id(&self) -> HeaderValue {
        HeaderValue::from_bytes(&self.text()[ID]).unwrap_or(HeaderValue::from_static("-"))
    }

    /// The trace's id, 32 hexadecimal digits.
    pub fn trace_id_text(&self) -> String {
        self.text()[ID].iter().copied().map(char::from).collect()
    }

    /// Version, ids and flags. By hand, as it is done several times for each request and `format!` is slow.
    fn text(&self) -> [u8; 55] {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [b'-'; 55];
        let mut write = |from: usize, bytes: &[u8]| {
            for (at, byte) in bytes.iter().enumerate() {
                text[from + 2 * at] = DIGITS[usize::from(byte >> 4)];
                text[from + 2 * at + 1] = DIGITS[usize::from(byte & 15)];
            }
        };
        write(0, &[0]);
        write(ID.start, &self.trace_id.to_be_bytes());
        write(ID.end + 1, &self.span_id.to_be_bytes());
        write(53, &[u8::from(self.sampled)]);
        text
    }
}

/// Trace id and sampled flag of a `traceparent`.
fn parse(value: &[u8]) -> Option<(u128, bool)> {
    let value = value.trim_ascii();
    let (version, trace, parent, flags) = (value.get(..2)?, value.get(3..35)?, value.get(36..52)?, value.get(53..55)?);
    let dashes = [2, 35, 52].iter().all(|at| value.get(*at) == Some(&b'-'));
    let version = hex(version)?;
    // Later versions may have more behind another dash.
    let end = match value.get(55) {
        None => true,
        Some(b'-') => version > 0,
        Some(_) => false,
    };
    let (trace, parent, flags) = (hex(trace)?, hex(parent)?, hex(flags)?);
    (dashes && end && version != 0xFF && trace != 0 && parent != 0).then_some((trace, flags & 1 == 1))
}

/// Lower case only.
fn hex(text: &[u8]) -> Option<u128> {
    let digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let text = std::str::from_utf8(text).ok().filter(|text| text.as_bytes().iter().all(digit))?;
    u128::from_str_radix(text, 16).ok()
}

/// All lines of `tracestate` as one, if they are what they should be.
fn state(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut members: Vec<&[u8]> = Vec::new();
    let mut length = 0;
    for line in headers.get_all("tracestate") {
        for member in line.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if member.is_empty() {
                continue;
            }
            length += member.len() + 1;
            if !is_member(member) || length > MAX_STATE.0 || members.len() >= MAX_STATE.1 {
                return None;
            }
            members.push(member);
        }
    }
    let text = members.join(&b","[..]);
    (!text.is_empty()).then(|| HeaderValue::from_bytes(&text).ok()).flatten()
}

/// `key=value`, 3.3.1.3: the key may be `tenant@system`.
fn is_member(member: &[u8]) -> bool {
    let Some(equals) = member.iter().position(|byte| *byte == b'=') else { return false };
    let (key, value) = member.split_at(equals);
    let value = value.get(1..).unwrap_or_default();
    let plain = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/');
    let name = |text: &[u8], most: usize, digit_first: bool| {
        let first =
            text.first().is_some_and(|byte| byte.is_ascii_lowercase() || (digit_first && byte.is_ascii_digit()));
        first && text.len() <= most && text.iter().all(plain)
    };
    let key_is_fine = match key.iter().position(|byte| *byte == b'@') {
        Some(at) => name(&key[..at], 241, true) && name(key.get(at + 1..).unwrap_or_default(), 14, false),
        None => name(key, 256, true),
    };
    let shown = |byte: &u8| matches!(byte, 0x20..=0x7E) && *byte != b',' && *byte != b'=';
    key_is_fine && (1..=256).contains(&value.len()) && value.iter().all(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "12345678901234567890123456789012";

    fn context(lines: &[(&'static str, &str)]) -> TraceContext {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        TraceContext::of_request(&headers)
    }

    fn is_kept(parent: &str) -> bool {
        let found = context(&[("traceparent", parent), ("tracestate", "foo=1")]);
        let kept = found.trace_id_text() == TRACE;
        assert_eq!(found.state.is_some(), kept, "the state goes with its parent: {parent}");
        assert!(!found.traceparent().to_str().unwrap().contains("1234567890123456-"), "a parent of our own: {parent}");
        kept
    }

    /// Those of the W3C's test-suite (`trace-context/test/test.py`) that are about `traceparent`.
    #[test]
    fn a_trace_is_kept_or_restarted_as_the_standard_says() {
        let long = format!("{TRACE}3");
        let (short, upper) = (&TRACE[1..], TRACE.replace('1', "A"));
        let cases = [
            (format!("00-{TRACE}-1234567890123456-01"), true),
            (format!("00-{TRACE}-1234567890123456-00"), true),
            (format!("00-{TRACE}-1234567890123456-ff"), true),
            (format!("  00-{TRACE}-1234567890123456-01\t"), true),
            (format!("cc-{TRACE}-1234567890123456-01"), true),
            (format!("cc-{TRACE}-1234567890123456-01-what-the-future-will-be-like"), true),
            (format!("00-{TRACE}-1234567890123456-01."), false),
            (format!("00-{TRACE}-1234567890123456-01-what-the-future-will-be-like"), false),
            (format!("cc-{TRACE}-1234567890123456-01.what-the-future-will-be-like"), false),
            (format!("ff-{TRACE}-1234567890123456-01"), false),
            (format!(".0-{TRACE}-1234567890123456-01"), false),
            (format!("0.-{TRACE}-1234567890123456-01"), false),
            (format!("000-{TRACE}-1234567890123456-01"), false),
            (format!("0000-{TRACE}-1234567890123456-01"), false),
            (format!("0-{TRACE}-1234567890123456-01"), false),
            (format!("CC-{TRACE}-1234567890123456-01"), false),
            (String::from("00-00000000000000000000000000000000-1234567890123456-01"), false),
            (format!("00-.{short}-1234567890123456-01"), false),
            (format!("00-{short}.-1234567890123456-01"), false),
            (format!("00-{long}-1234567890123456-01"), false),
            (format!("00-{short}-1234567890123456-01"), false),
            (format!("00-{upper}-1234567890123456-01"), false),
            (format!("00-{TRACE}-0000000000000000-01"), false),
            (format!("00-{TRACE}-.234567890123456-01"), false),
            (format!("00-{TRACE}-123456789012345.-01"), false),
            (format!("00-{TRACE}-12345678901234567-01"), false),
            (format!("00-{TRACE}-123456789012345-01"), false),
            (format!("00-{TRACE}-ABCDEF7890123456-01"), false),
            (format!("00-{TRACE}-1234567890123456-.0"), false),
            (format!("00-{TRACE}-1234567890123456-0."), false),
            (format!("00-{TRACE}-1234567890123456-001"), false),
            (format!("00-{TRACE}-1234567890123456-1"), false),
            (format!("00-{TRACE}-1234567890123456"), false),
            (format!("00 {TRACE} 1234567890123456 01"), false),
            (format!("00_{TRACE}_1234567890123456_01"), false),
            (String::new(), false),
        ];
        for (parent, kept) in &cases {
            assert_eq!(is_kept(parent), *kept, "{parent}");
        }
        let good = format!("00-{TRACE}-1234567890123456-01");
        let twice = context(&[("traceparent", &good), ("traceparent", &good), ("tracestate", "foo=1")]);
        assert!(twice.trace_id_text() != TRACE && twice.state.is_none());
        let none = context(&[("tracestate", "foo=1"), ("trace-parent", &good), ("trace.parent", &good)]);
        assert!(none.trace_id_text() != TRACE && none.state.is_none());
        let flags =
            |flags: &str| context(&[("traceparent", &format!("00-{TRACE}-1234567890123456-{flags}"))]).traceparent();
        assert!(flags("ff").to_str().unwrap().ends_with("-01"), "only bits that are known are handed on");
        assert!(flags("00").to_str().unwrap().ends_with("-00") && flags("fe").to_str().unwrap().ends_with("-00"));
    }

    /// Those about `tracestate`.
    #[test]
    fn a_state_is_handed_on_whole_or_not_at_all() {
        let parent = format!("00-{TRACE}-1234567890123456-01");
        let state = |lines: &[&str]| {
            let mut all = vec![("traceparent", parent.as_str())];
            all.extend(lines.iter().map(|line| ("tracestate", *line)));
            let found = context(&all);
            assert_eq!(found.trace_id_text(), TRACE, "a bad state does not end the trace");
            found.state.map(|state| state.to_str().unwrap().to_owned())
        };
        let (key, tenant, value) = ("z".repeat(256), "t".repeat(241), "v".repeat(256));
        let many = |count: usize| (0..count).map(|n| format!("bar{n}=1")).collect::<Vec<_>>().join(",");
        for (lines, expected) in [
            (vec!["foo=1,bar=2"], "foo=1,bar=2"),
            (vec!["foo=1", "bar=2"], "foo=1,bar=2"),
            (vec!["foo=1 \t , \t bar=2"], "foo=1,bar=2"),
            (vec!["", "foo=1,", ",,bar=2"], "foo=1,bar=2"),
            (vec!["foo=1,foo=1"], "foo=1,foo=1"),
            (
                vec!["abcdefghijklmnopqrstuvwxyz0123456789_-*/= !\"#$%&'()*+-./0123456789:;<>?@A[\\]^_`a{|}~"],
                "abcdefghijklmnopqrstuvwxyz0123456789_-*/= !\"#$%&'()*+-./0123456789:;<>?@A[\\]^_`a{|}~",
            ),
            (vec!["0t-*/@a-*/=1"], "0t-*/@a-*/=1"),
        ] {
            assert_eq!(state(&lines).as_deref(), Some(expected), "{lines:?}");
        }
        for good in [format!("{key}=1"), format!("{tenant}@{}=1", "v".repeat(14)), format!("foo={value}"), many(32)] {
            assert_eq!(state(&[&good]).as_deref(), Some(good.as_str()));
        }
        for bad in [
            "foo",
            "foo=",
            "=1",
            "foo =1",
            "FOO=1",
            "foo.bar=1",
            "foo@=1,bar=2",
            "@foo=1,bar=2",
            "foo@@bar=1",
            "foo@bar@baz=1",
            "foo=1=2",
            "foo=\u{e4}",
            "a@0=1",
            "foo=1;bar=2=3",
        ] {
            assert_eq!(state(&[bad]), None, "{bad}");
        }
        for bad in [
            format!("{key}z=1"),
            format!("{tenant}t@v=1"),
            format!("t@{}=1", "v".repeat(15)),
            format!("foo={value}v"),
            many(33),
        ] {
            assert_eq!(state(&[&bad]), None);
        }
        assert_eq!(state(&[]), None);
        assert_eq!(state(&[""]), None);
    }

    #[test]
    fn ids_are_new_each_time_and_kept_when_well_formed() {
        let ids: std::collections::HashSet<String> = (0..10_000).map(|_| new_request_id()).collect();
        assert_eq!(ids.len(), 10_000);
        assert!(ids.iter().all(|id| is_request_id(id.as_bytes()) && uuid::Uuid::parse_str(id).is_ok()));
        let there = std::thread::spawn(|| TraceContext::of_request(&HeaderMap::new())).join().unwrap();
        let here = TraceContext::of_request(&HeaderMap::new());
        assert!(there.trace_id != here.trace_id && there.span_id != here.span_id && here.sampled);
        let id = |ids: &[&str]| {
            let mut headers = HeaderMap::new();
            for id in ids {
                headers.append("x-request-id", HeaderValue::from_bytes(id.as_bytes()).unwrap());
            }
            request_id(&headers).to_str().unwrap().to_owned()
        };
        let long = "a".repeat(128);
        for good in ["a", "A-z_0.9:", &long] {
            assert_eq!(id(&[good]), good);
        }
        for bad in ["", "a b", "a\"", "ä", &format!("{long}a")] {
            assert_ne!(id(&[bad]), bad);
            assert!(is_request_id(id(&[bad]).as_bytes()));
        }
        assert_ne!(id(&["a", "a"]), "a");
    }
}
