//! One form of a path, for routing, authentication, limits, cache keys and the upstream request.
//!
//! Gateways were broken where these read a path each in its own way: `/public/..%2fadmin` was public to the one and the
//! administration to the other. So a path is brought into its canonical form once, and nobody sees another. What servers
//! are known to read in two ways (an encoded slash, a backslash, `..;`) has none and is refused.
//!
//! The form is that of RFC 3986, 6.2.2, with repeated slashes collapsed: escapes of unreserved characters decoded, the
//! others in upper case, characters that need one escaped, dot segments removed after that.

use std::borrow::Cow;
use std::fmt;

/// Why a path has no canonical form. All of them are the client's mistake (400).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It does not begin with a slash.
    #[error("the path must begin with a slash")]
    Relative,
    /// A percent sign without two hexadecimal digits.
    #[error("the path has a percent sign that is no escape")]
    Escape,
    /// A control character, escaped or not.
    #[error("the path has a control character")]
    Control,
    /// A slash or backslash where it may or may not separate segments.
    #[error("the path has an escaped slash, or a backslash")]
    Separator,
    /// A byte that cannot stand in a URL: a space, or one beyond ASCII.
    #[error("the path has a character that must be escaped")]
    Byte,
    /// A `#`, or a `?` where none belongs.
    #[error("the path has a fragment")]
    Fragment,
    /// More `..` than there are segments.
    #[error("the path leads above the root")]
    AboveRoot,
    /// A dot segment with parameters, like `..;a`: some servers cut them off, others do not.
    #[error("the path has a dot segment with parameters")]
    DotParameters,
}

/// A path in its canonical form; borrowed from the request where that had it already.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CanonicalPath<'a>(Cow<'a, str>);

impl<'a> CanonicalPath<'a> {
    /// As text, from the first slash on.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Without the request it came from.
    pub fn into_owned(self) -> CanonicalPath<'static> {
        CanonicalPath(Cow::Owned(self.0.into_owned()))
    }

    /// What the caller has put together of canonical parts.
    pub(super) fn of_parts(text: Cow<'a, str>) -> Self {
        debug_assert!(is_canonical(text.as_bytes()), "{text}");
        Self(text)
    }
}

impl fmt::Display for CanonicalPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Path and query of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// In its canonical form.
    pub path: CanonicalPath<'a>,
    /// As it was sent, without the question mark.
    pub query: Option<&'a str>,
}

/// Reads a path and query as they stand in a request.
pub fn target(raw: &str) -> Result<Target<'_>, PathError> {
    let (path, query) = match raw.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (raw, None),
    };
    if let Some(query) = query {
        check_query(query)?;
    }
    Ok(Target { path: canonical(path)?, query })
}

/// A query is the upstream's business, but for bytes that no URL has.
fn check_query(query: &str) -> Result<(), PathError> {
    for byte in query.bytes() {
        match byte {
            0..=0x1F | 0x7F => return Err(PathError::Control),
            b' ' | 0x80.. => return Err(PathError::Byte),
            b'#' => return Err(PathError::Fragment),
            _ => {}
        }
    }
    Ok(())
}

/// The canonical form of a path, which is without query.
pub fn canonical(raw: &str) -> Result<CanonicalPath<'_>, PathError> {
    if is_canonical(raw.as_bytes()) {
        return Ok(CanonicalPath(Cow::Borrowed(raw)));
    }
    let Some(inner) = raw.strip_prefix('/') else { return Err(PathError::Relative) };
    let mut out = String::with_capacity(raw.len() + 16);
    let mut ends_in_slash = true;
    for segment in inner.split('/') {
        let start = out.len();
        out.push('/');
        append(&mut out, segment)?;
        ends_in_slash = true;
        match &out[start + 1..] {
            "" | "." => out.truncate(start),
            ".." => {
                out.truncate(start);
                out.truncate(out.rfind('/').ok_or(PathError::AboveRoot)?);
            }
            other if has_dot_parameters(other) => return Err(PathError::DotParameters),
            _ => ends_in_slash = false,
        }
    }
    if ends_in_slash {
        out.push('/');
    }
    Ok(CanonicalPath(Cow::Owned(out)))
}

/// Appends a segment: unescaped what needs no escape, escaped what does.
fn append(out: &mut String, segment: &str) -> Result<(), PathError> {
    let bytes = segment.as_bytes();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        match CLASS[usize::from(byte)] {
            Class::Unreserved | Class::Delimiter => out.push(char::from(byte)),
            Class::Escaped => escape(out, byte),
            Class::Control => return Err(PathError::Control),
            Class::Separator => return Err(PathError::Separator),
            Class::Outside => {
                return Err(if matches!(byte, b'#' | b'?') { PathError::Fragment } else { PathError::Byte });
            }
            Class::Percent => {
                let digits = bytes.get(at).copied().and_then(digit).zip(bytes.get(at + 1).copied().and_then(digit));
                let (high, low) = digits.ok_or(PathError::Escape)?;
                at += 2;
                let byte = high << 4 | low;
                match CLASS[usize::from(byte)] {
                    Class::Unreserved => out.push(char::from(byte)),
                    Class::Control => return Err(PathError::Control),
                    Class::Separator => return Err(PathError::Separator),
                    _ => escape(out, byte),
                }
            }
        }
    }
    Ok(())
}

fn escape(out: &mut String, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.push('%');
    out.push(char::from(DIGITS[usize::from(byte >> 4)]));
    out.push(char::from(DIGITS[usize::from(byte & 15)]));
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}

fn has_dot_parameters(segment: &str) -> bool {
    let rest = segment.strip_prefix("..").or_else(|| segment.strip_prefix('.'));
    rest.is_some_and(|rest| rest.starts_with(';') || rest.starts_with("%3B"))
}

/// Whether a path is in its canonical form already, in one pass; it is where most are.
fn is_canonical(bytes: &[u8]) -> bool {
    if bytes.first() != Some(&b'/') {
        return false;
    }
    let mut at = 1;
    // Whether a segment begins here.
    let mut fresh = true;
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        match CLASS[usize::from(byte)] {
            // It may be a dot segment, or just a name like `.well-known`.
            Class::Unreserved if fresh && byte == b'.' => {
                let end = bytes[at..].iter().position(|byte| *byte == b'/').map_or(bytes.len(), |len| at + len);
                let Ok(segment) = std::str::from_utf8(&bytes[at - 1..end]) else { return false };
                if matches!(segment, "." | "..") || has_dot_parameters(segment) {
                    return false;
                }
                fresh = false;
            }
            Class::Unreserved | Class::Delimiter => fresh = false,
            Class::Percent => {
                let (Some(high), Some(low)) = (bytes.get(at).copied(), bytes.get(at + 1).copied()) else {
                    return false;
                };
                let (Some(h), Some(l)) = (digit(high), digit(low)) else { return false };
                let needed = matches!(
                    CLASS[usize::from(h << 4 | l)],
                    Class::Delimiter | Class::Escaped | Class::Outside | Class::Percent
                );
                if high.is_ascii_lowercase() || low.is_ascii_lowercase() || !needed {
                    return false;
                }
                at += 2;
                fresh = false;
            }
            Class::Separator if byte == b'/' && !fresh => fresh = true,
            _ => return false,
        }
    }
    true
}

/// What a byte is in a path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// RFC 3986, 2.3: the same with and without escape.
    Unreserved,
    /// Allowed as it is, and something else when escaped.
    Delimiter,
    /// Not allowed as it is, but sent all the same by some: the same as its escape.
    Escaped,
    Percent,
    Separator,
    Control,
    /// Beyond what a path may have; escaped, it may.
    Outside,
}

const CLASS: [Class; 256] = {
    let mut table = [Class::Outside; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = match byte as u8 {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => Class::Unreserved,
            b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':' | b'@' => {
                Class::Delimiter
            }
            b'"' | b'<' | b'>' | b'[' | b']' | b'^' | b'`' | b'{' | b'|' | b'}' => Class::Escaped,
            b'%' => Class::Percent,
            b'/' | b'\\' => Class::Separator,
            0..=0x1F | 0x7F => Class::Control,
            _ => Class::Outside,
        };
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn form(raw: &str) -> Result<String, PathError> {
        canonical(raw).map(|path| path.as_str().to_owned())
    }

    #[test]
    fn one_form_of_each() {
        for (raw, expected) in [
            ("/", "/"),
            ("//", "/"),
            ("/a/b", "/a/b"),
            ("/a//b///c/", "/a/b/c/"),
            ("/%61%2D%2e%5F%7Eb", "/a-._~b"),
            ("/a%3ab", "/a%3Ab"),
            ("/a:b", "/a:b"),
            ("/a%20b%c3%a4", "/a%20b%C3%A4"),
            ("/a/./b/.", "/a/b/"),
            ("/a/b/..", "/a/"),
            ("/a/b/../", "/a/"),
            ("/a/%2e%2e/b", "/b"),
            ("/a/%2E./b", "/b"),
            ("/a/%2e/b", "/a/b"),
            ("/a//../b", "/b"),
            ("/a/..", "/"),
            ("/%2561", "/%2561"),
            ("/{id}|x", "/%7Bid%7D%7Cx"),
            ("/%7Bid%7D", "/%7Bid%7D"),
            ("/.well-known/x", "/.well-known/x"),
            ("/...", "/..."),
            ("/a;b=c", "/a;b=c"),
            ("/a.;b", "/a.;b"),
        ] {
            assert_eq!(form(raw).as_deref(), Ok(expected), "{raw}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for (raw, error) in [
            ("", PathError::Relative),
            ("a", PathError::Relative),
            ("*", PathError::Relative),
            ("http://a/", PathError::Relative),
            ("/%", PathError::Escape),
            ("/%2", PathError::Escape),
            ("/%zz", PathError::Escape),
            ("/%%32", PathError::Escape),
            ("/%+1", PathError::Escape),
            ("/%00", PathError::Control),
            ("/a%0d%0aX-Internal-Token:1", PathError::Control),
            ("/%7f", PathError::Control),
            ("/\u{7f}", PathError::Control),
            ("/a\tb", PathError::Control),
            ("/public/..%2fadmin", PathError::Separator),
            ("/a%2Fb", PathError::Separator),
            ("/a%5cb", PathError::Separator),
            ("/a\\b", PathError::Separator),
            ("/a b", PathError::Byte),
            ("/ä", PathError::Byte),
            ("/a#b", PathError::Fragment),
            ("/a?b", PathError::Fragment),
            ("/..", PathError::AboveRoot),
            ("/../a", PathError::AboveRoot),
            ("/a/../../b", PathError::AboveRoot),
            ("/%2e%2e", PathError::AboveRoot),
            ("/a/..;/b", PathError::DotParameters),
            ("/a/..%3bx/b", PathError::DotParameters),
            ("/a/.;x", PathError::DotParameters),
            ("/a/%2e%2E;", PathError::DotParameters),
        ] {
            assert_eq!(form(raw), Err(error), "{raw}");
        }
    }

    #[test]
    fn a_canonical_path_is_not_copied() {
        for raw in ["/", "/api/v1/users/17", "/a/.well-known/b.c/", "/a%20b/%C3%A4"] {
            assert!(matches!(canonical(raw).unwrap().0, Cow::Borrowed(_)), "{raw}");
        }
        assert!(matches!(canonical("/a//b").unwrap().0, Cow::Owned(_)));
    }

    #[test]
    fn a_query_stays_as_it_is() {
        let found = target("/a//b?x=%2f&y=../?").unwrap();
        assert_eq!((found.path.as_str(), found.query), ("/a/b", Some("x=%2f&y=../?")));
        assert_eq!(target("/a").unwrap().query, None);
        assert_eq!(target("/a?").unwrap().query, Some(""));
        assert_eq!(target("/a?b\u{0}"), Err(PathError::Control));
        assert_eq!(target("/a?b c"), Err(PathError::Byte));
        assert_eq!(target("/a?ä"), Err(PathError::Byte));
        assert_eq!(target("/a?b#c"), Err(PathError::Fragment));
    }

    /// Paths of the parts that matter here, and now and then of anything.
    fn paths() -> impl Strategy<Value = String> {
        let part = prop_oneof![
            6 => prop::sample::select(vec![
                "/", "/", ".", "..", "a", "B", "%2e", "%2E", "%61", "%3a", "%3A", "%20", "%25", "%2f", "%5C", "%c3%a4",
                ";", "%3b", "{", "%7b", ":", "~", "%7E", "%", "\\", "%00",
            ]).prop_map(String::from),
            1 => any::<char>().prop_map(String::from),
        ];
        prop::collection::vec(part, 0..12).prop_map(|parts| format!("/{}", parts.concat()))
    }

    /// What the path means, in the plainest way: its segments, decoded.
    fn meaning(path: &str) -> Vec<Vec<u8>> {
        let mut segments: Vec<Vec<u8>> = Vec::new();
        let mut open = true;
        for segment in path.split('/').skip(1) {
            let mut decoded = Vec::new();
            let mut bytes = segment.bytes();
            while let Some(byte) = bytes.next() {
                let mut hex = || bytes.next().and_then(|byte| char::from(byte).to_digit(16)).unwrap() as u8;
                decoded.push(if byte == b'%' { hex() << 4 | hex() } else { byte });
            }
            open = matches!(decoded.as_slice(), b"" | b"." | b"..");
            match decoded.as_slice() {
                b"" | b"." => {}
                b".." => {
                    segments.pop().unwrap();
                }
                _ => segments.push(decoded),
            }
        }
        if open {
            segments.push(Vec::new());
        }
        segments
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn the_form_is_one_and_means_the_same(raw in paths()) {
            if let Ok(path) = canonical(&raw) {
                let text = path.as_str();
                let again = canonical(text).unwrap();
                prop_assert_eq!(&again, &path);
                prop_assert!(matches!(again.0, Cow::Borrowed(_)), "{}", text);
                prop_assert!(text.starts_with('/') && !text.contains("//") && text.is_ascii());
                prop_assert!(!text.split('/').any(|segment| segment == "." || segment == ".."));
                for (at, _) in text.match_indices('%') {
                    let digits = &text[at + 1..at + 3];
                    prop_assert!(!digits.bytes().any(|byte| byte.is_ascii_lowercase()), "{}", text);
                    let byte = u8::from_str_radix(digits, 16).unwrap();
                    prop_assert!(!byte.is_ascii_alphanumeric() && !b"-._~/\\".contains(&byte), "{}", text);
                    prop_assert!(!byte.is_ascii_control(), "{}", text);
                }
                prop_assert_eq!(meaning(text), meaning(&raw));
            }
        }

        #[test]
        fn what_is_canonical_is_taken_as_it_is_and_so_are_its_spellings(raw in paths(), upper in any::<bool>()) {
            if let Ok(path) = canonical(&raw) {
                // Every byte of the segments escaped: the same path, but for delimiters, which mean something else then.
                let mut spelled = String::new();
                for byte in path.as_str().bytes() {
                    match CLASS[usize::from(byte)] {
                        Class::Unreserved if upper => spelled.push_str(&format!("%{byte:02X}")),
                        Class::Unreserved => spelled.push_str(&format!("%{byte:02x}")),
                        _ => spelled.push(char::from(byte)),
                    }
                    if byte == b'/' {
                        spelled.push_str("/./");
                    }
                }
                // The two digits of an escape are no characters of the path.
                if !path.as_str().contains('%') {
                    prop_assert_eq!(form(&spelled), Ok(path.as_str().to_owned()));
                }
            }
        }
    }
}
