//! Ranges of time as they are asked for.

use super::StatsError;
use crate::clock::{DAY, HOUR, MINUTE, SECOND, UnixMillis, parse_rfc3339};

/// 2200-01-01, after which nobody asks.
const LATEST: UnixMillis = 7_258_118_400_000;

/// A half-open range of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Range {
    /// Where it begins.
    pub from: UnixMillis,
    /// Where it ends (exclusive).
    pub to: UnixMillis,
}

impl Range {
    /// From the texts of a query; the last 24 hours unless they say otherwise.
    ///
    /// # Errors
    /// [`StatsError::BadQuery`] with what is wrong.
    pub fn parse(from: Option<&str>, to: Option<&str>, now: UnixMillis) -> Result<Self, StatsError> {
        let to = to.map_or(Ok(now), |to| parse_time("to", to, now))?;
        let from = from.map_or(Ok(to.min(now) - DAY), |from| parse_time("from", from, now))?;
        if from >= to {
            return Err(StatsError::BadQuery(String::from("from must lie before to")));
        }
        Ok(Self { from, to })
    }
}

/// A moment: `now`, `-24h` (also `s`, `m`, `d`, `w`), RFC 3339 or Unix milliseconds.
///
/// # Errors
/// [`StatsError::BadQuery`] that names the parameter.
pub fn parse_time(parameter: &str, text: &str, now: UnixMillis) -> Result<UnixMillis, StatsError> {
    let text = text.trim();
    // A plus in a query that nobody encoded arrives as a space: 2026-11-23T07:00:00 01:00.
    let at = match text {
        "now" => Some(now),
        _ if text.starts_with('-') => ago(&text[1..]).map(|ago| now.saturating_sub(ago).max(0)),
        _ => text.parse().ok().or_else(|| parse_rfc3339(text)).or_else(|| parse_rfc3339(&text.replace(' ', "+"))),
    };
    at.filter(|at| (0..=LATEST).contains(at)).ok_or_else(|| {
        let forms = "now, -30m, -24h, -7d, -2w, RFC 3339 or Unix milliseconds, from 1970 to 2200";
        StatsError::BadQuery(format!("{parameter} must be one of {forms}"))
    })
}

fn ago(text: &str) -> Option<UnixMillis> {
    let unit = match text.bytes().last()? {
        b's' => SECOND,
        b'm' => MINUTE,
        b'h' => HOUR,
        b'd' => DAY,
        b'w' => 7 * DAY,
        _ => return None,
    };
    let digits = &text[..text.len() - 1];
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<UnixMillis>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = 1_700_000_000_123;

    #[test]
    fn moments_are_understood() {
        let cases = [
            ("now", NOW),
            ("-0s", NOW),
            ("-24h", NOW - DAY),
            ("-30m", NOW - 30 * MINUTE),
            ("-7d", NOW - 7 * DAY),
            ("-2w", NOW - 14 * DAY),
            ("1700000000000", 1_700_000_000_000),
            ("2023-11-14T22:13:20Z", 1_700_000_000_000),
            ("2023-11-14T23:13:20+01:00", 1_700_000_000_000),
            ("2023-11-14T23:13:20 01:00", 1_700_000_000_000),
            ("-999999999w", 0),
        ];
        for (text, at) in cases {
            assert_eq!(parse_time("from", text, NOW).unwrap(), at, "{text}");
        }
        for bad in ["", "-", "-h", "--1h", "-1é", "-1y", "yesterday", "99999999999999999", "-99999999999999999999h"] {
            let error = parse_time("from", bad, NOW).unwrap_err();
            assert!(error.to_string().starts_with("from must be"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_range_ends_now_and_begins_a_day_before() {
        assert_eq!(Range::parse(None, None, NOW).unwrap(), Range { from: NOW - DAY, to: NOW });
        assert_eq!(Range::parse(Some("-1h"), None, NOW).unwrap().from, NOW - HOUR);
        assert_eq!(Range::parse(None, Some("-1h"), NOW).unwrap().from, NOW - HOUR - DAY);
        assert!(Range::parse(Some("now"), Some("-1h"), NOW).is_err());
        assert!(Range::parse(Some("now"), Some("now"), NOW).is_err());
    }
}
