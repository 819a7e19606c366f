//! Lines of an access log in the common or combined format of nginx and Apache.
//!
//! `address ident user [10/Oct/2000:13:55:36 -0700] "GET /a HTTP/1.1" 200 2326 "referrer" "agent"`

use std::borrow::Cow;

use crate::clock::UnixMillis;

/// A request as the log has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Line<'a> {
    /// Address or host name of the client.
    pub address: &'a str,
    /// When the request came.
    pub time: UnixMillis,
    /// `GET`.
    pub method: &'a str,
    /// Path and query.
    pub target: &'a str,
    /// Status of the answer.
    pub status: u16,
    /// Referrer, if the format has it and it was sent.
    pub referrer: Option<Cow<'a, str>>,
    /// Agent; empty if the format does not have it, or it was not sent.
    pub agent: Cow<'a, str>,
}

/// Reads one line. The error says what is missing.
pub fn parse(line: &str) -> Result<Line<'_>, &'static str> {
    let (address, rest) = line.split_once(' ').ok_or("there is no address")?;
    let bracket = rest.find(" [").ok_or("there is no [time]")?;
    let (time, rest) = rest[bracket + 2..].split_once("] ").ok_or("the [time] does not end")?;
    let time = parse_time(time).ok_or("the time is not like 10/Oct/2000:13:55:36 -0700")?;
    let (request, rest) = quoted(rest).ok_or("the \"request\" is missing or its quote does not end")?;
    // A quoted request with escapes is an attack on a log reader, not a page.
    let Cow::Borrowed(request) = request else { return Err("the request has quotes in it") };
    let mut parts = request.split(' ');
    let (Some(method), Some(target)) = (parts.next(), parts.next()) else { return Err("the request has no path") };
    if target.is_empty() || method.is_empty() || !method.bytes().all(|b| b.is_ascii_uppercase()) {
        return Err("the request is not like GET /path HTTP/1.1");
    }
    let mut fields = rest.trim_start().splitn(3, ' ');
    let status = fields.next().and_then(|s| s.parse().ok()).ok_or("the status is no number")?;
    let size = fields.next().ok_or("there is no size")?;
    if size != "-" && !size.bytes().all(|b| b.is_ascii_digit()) {
        return Err("the size is no number");
    }
    let (mut referrer, mut agent) = (None, Cow::Borrowed(""));
    if let Some(rest) = fields.next().filter(|rest| !rest.trim().is_empty()) {
        let (from, rest) = quoted(rest).ok_or("the \"referrer\" is missing or its quote does not end")?;
        let (by, _) = quoted(rest.trim_start()).ok_or("the \"agent\" is missing or its quote does not end")?;
        referrer = Some(from).filter(|from| !from.is_empty() && from != "-");
        agent = if by == "-" { Cow::Borrowed("") } else { by };
    }
    Ok(Line { address, time, method, target, status, referrer, agent })
}

/// The quoted text at the start of `text`, with `\"` and `\\` undone, and what follows.
fn quoted(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let text = text.strip_prefix('"')?;
    let mut escaped = false;
    let mut any = false;
    for (i, b) in text.bytes().enumerate() {
        match b {
            _ if escaped => escaped = false,
            b'\\' => (escaped, any) = (true, true),
            b'"' => {
                let (inner, rest) = (&text[..i], &text[i + 1..]);
                let plain = if any {
                    Cow::Owned(inner.replace("\\\"", "\"").replace("\\\\", "\\"))
                } else {
                    Cow::Borrowed(inner)
                };
                return Some((plain, rest));
            }
            _ => {}
        }
    }
    None
}

fn parse_time(text: &str) -> Option<UnixMillis> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (clock, zone) = text.split_once(' ')?;
    let mut parts = clock.splitn(3, '/');
    let day = parts.next()?.parse().ok()?;
    let month = parts.next()?;
    let month = MONTHS.iter().position(|m| m.eq_ignore_ascii_case(month))? as i8 + 1;
    let mut parts = parts.next()?.splitn(4, ':');
    let year = parts.next()?.parse().ok()?;
    let mut small = || parts.next()?.parse::<i8>().ok();
    let at = jiff::civil::DateTime::new(year, month, day, small()?, small()?, small()?, 0).ok()?;
    let (sign, digits) = (zone.get(..1)?, zone.get(1..5)?);
    let minutes = digits[..2].parse::<i32>().ok()? * 60 + digits[2..].parse::<i32>().ok()?;
    let seconds = if sign == "-" { -60 * minutes } else { 60 * minutes };
    let offset = jiff::tz::Offset::from_seconds(seconds).ok()?;
    offset.to_timestamp(at).ok().map(|ts| ts.as_millisecond())
}

/// The event type a person would expect: `page_view` for a page that was delivered, else what it was instead.
pub fn kind(line: &Line<'_>) -> &'static str {
    match (line.method, line.status) {
        (_, 400..) => "http_error",
        (_, 300..=303 | 305..=399) => "redirect",
        ("GET", _) if is_asset(line.target) => "asset",
        ("GET", _) => super::PAGE_VIEW,
        _ => "request",
    }
}

fn is_asset(target: &str) -> bool {
    const ENDINGS: &[&str] = &[
        "css",
        "js",
        "mjs",
        "map",
        "json",
        "png",
        "jpg",
        "jpeg",
        "gif",
        "svg",
        "webp",
        "avif",
        "ico",
        "bmp",
        "woff",
        "woff2",
        "ttf",
        "otf",
        "eot",
        "mp3",
        "mp4",
        "webm",
        "ogg",
        "wav",
        "mov",
        "avi",
        "pdf",
        "zip",
        "gz",
        "tgz",
        "bz2",
        "xz",
        "rar",
        "7z",
        "tar",
        "iso",
        "dmg",
        "exe",
        "msi",
        "deb",
        "rpm",
        "jar",
        "swf",
        "txt",
        "xml",
        "rss",
        "atom",
        "webmanifest",
        "wasm",
        "csv",
    ];
    let path = &target[..target.find(['?', '#']).unwrap_or(target.len())];
    let name = path.rsplit('/').next().unwrap_or(path);
    name.rsplit_once('.').is_some_and(|(_, ending)| ENDINGS.iter().any(|e| e.eq_ignore_ascii_case(ending)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = r#"83.149.9.216 - - [17/May/2015:10:05:03 +0200] "GET /a.png?x HTTP/1.1" 200 203023 "http://a/" "Mozilla/5.0 (\"x\")""#;

    #[test]
    fn a_combined_line_is_read_whole() {
        let line = parse(GOOD).unwrap();
        assert_eq!((line.address, line.method, line.target, line.status), ("83.149.9.216", "GET", "/a.png?x", 200));
        assert_eq!(crate::clock::rfc3339(line.time), "2015-05-17T08:05:03.000Z");
        assert_eq!(line.referrer.as_deref(), Some("http://a/"));
        assert_eq!(line.agent, "Mozilla/5.0 (\"x\")");
    }

    #[test]
    fn a_common_line_has_no_agent() {
        let line = parse(r#"::1 - bob [10/Oct/2000:13:55:36 -0700] "GET / HTTP/1.0" 200 -"#).unwrap();
        assert_eq!((line.referrer, line.agent.as_ref()), (None, ""));
        assert_eq!(crate::clock::rfc3339(line.time), "2000-10-10T20:55:36.000Z");
    }

    #[test]
    fn broken_lines_say_why() {
        for (line, why) in [
            ("", "address"),
            ("a b c", "[time]"),
            (r#"a - - [today] "GET / HTTP/1.1" 200 1"#, "the time is not"),
            (r#"a - - [10/Oct/2000:13:55:36 -0700] "GET / HTTP/1.1 200 1"#, "request"),
            (r#"a - - [10/Oct/2000:13:55:36 -0700] "-" 408 0"#, "no path"),
            (r#"a - - [10/Oct/2000:13:55:36 -0700] "GET / HTTP/1.1" x 1"#, "status"),
            (r#"a - - [10/Oct/2000:13:55:36 -0700] "GET / HTTP/1.1" 200 1 "x"#, "referrer"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(why), "{line}: {error}");
        }
    }

    #[test]
    fn pages_are_told_from_the_rest() {
        let kind_of = |method: &str, target: &str, status: u16| {
            let text = format!(r#"a - - [10/Oct/2000:13:55:36 -0700] "{method} {target} HTTP/1.1" {status} 1"#);
            kind(&parse(&text).unwrap())
        };
        assert_eq!(kind_of("GET", "/blog/", 200), "page_view");
        assert_eq!(kind_of("GET", "/blog/v1.2", 304), "page_view");
        assert_eq!(kind_of("GET", "/style.CSS?v=3", 200), "asset");
        assert_eq!(kind_of("GET", "/old", 301), "redirect");
        assert_eq!(kind_of("GET", "/x.png", 404), "http_error");
        assert_eq!(kind_of("POST", "/form", 200), "request");
    }

    proptest! {
        #[test]
        fn no_line_makes_it_panic(line in "\\PC{0,200}", cut in 0usize..140) {
            let _ = parse(&line);
            let _ = parse(&GOOD[..cut.min(GOOD.len())]);
        }
    }
}
