//! Durations and sizes as people write them in a config: `"250ms"`, `"7d"`, `"64MiB"`.

use std::fmt;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Visitor};

/// A duration, or `forever`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Option<Duration>);

impl Span {
    /// So many milliseconds.
    pub const fn millis(ms: u64) -> Self {
        Self(Some(Duration::from_millis(ms)))
    }

    /// So many seconds.
    pub const fn secs(s: u64) -> Self {
        Self::millis(s * 1000)
    }

    /// In milliseconds; `None` is for ever.
    pub fn as_millis(self) -> Option<i64> {
        self.0.map(|d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX / 4))
    }

    /// Reads `"30s"` and the like.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == "forever" {
            return Ok(Self(None));
        }
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let unit = match unit.trim() {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => 0,
        };
        match number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)) {
            Some(ms) if unit > 0 => Ok(Self::millis(ms)),
            _ => Err(format!("`{text}` is no duration: write it like \"250ms\", \"30s\", \"10m\", \"24h\" or \"7d\"")),
        }
    }
}

/// A text that may hold a password, and so is not shown.
#[derive(Clone, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(transparent)]
pub struct Hidden(pub String);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "none" } else { "hidden" })
    }
}

/// Addresses of one outside system: a text, several with commas between them, or a list. They may hold passwords, so they
/// are not shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Urls(pub Vec<String>);

impl fmt::Debug for Urls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} addresses", self.0.len())
    }
}

impl<'de> Deserialize<'de> for Urls {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Urls;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address like \"redis://127.0.0.1:6379\", or a list of them")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Urls, E> {
                // A variable is a text, also where it is written like a list.
                if text.trim_start().starts_with('[') {
                    #[derive(serde::Deserialize)]
                    struct List {
                        v: Vec<String>,
                    }
                    let list = toml::from_str::<List>(&format!("v = {text}"));
                    return list.map(|list| Urls(list.v)).map_err(|_| E::custom("it is no list of addresses"));
                }
                Ok(Urls(text.split(',').map(str::trim).filter(|url| !url.is_empty()).map(String::from).collect()))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Urls, A::Error> {
                let mut urls = Vec::new();
                while let Some(url) = list.next_element::<String>()? {
                    urls.push(url);
                }
                Ok(Urls(urls))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl Bytes {
    /// So many MiB.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// Reads `"64MiB"` and the like.
    pub fn parse(text: &str) -> Result<Self, String> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let shift = match unit.trim() {
            "" | "B" => Some(0),
            "KiB" => Some(10),
            "MiB" => Some(20),
            "GiB" => Some(30),
            "TiB" => Some(40),
            _ => None,
        };
        let bytes = number.parse::<u64>().ok().zip(shift).and_then(|(n, shift)| n.checked_mul(1 << shift));
        bytes.map(Self).ok_or_else(|| format!("`{text}` is no size: write it like 4096, \"64MiB\" or \"2GiB\""))
    }
}

struct TextVisitor<T>(fn(&str) -> Result<T, String>, &'static str);

impl<T> Visitor<'_> for TextVisitor<T> {
    type Value = T;
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.1)
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.0)(text).map_err(E::custom)
    }
    fn visit_i64<E: de::Error>(self, n: i64) -> Result<T, E> {
        (self.0)(&n.to_string()).map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(TextVisitor(Span::parse, "a duration like \"30s\""))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(TextVisitor(Bytes::parse, "a size like \"64MiB\""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_are_read_as_written() {
        assert_eq!(Span::parse("250ms"), Ok(Span::millis(250)));
        assert_eq!(Span::parse("7d"), Ok(Span::secs(7 * 86_400)));
        assert_eq!(Span::parse("forever"), Ok(Span(None)));
        assert_eq!(Bytes::parse("4096"), Ok(Bytes(4096)));
        assert_eq!(Bytes::parse("2GiB"), Ok(Bytes(2 << 30)));
        for bad in ["", "5", "s", "5 years", "-1s", "99999999999999999999d"] {
            assert!(Span::parse(bad).is_err(), "{bad}");
        }
        for bad in ["", "MiB", "5MB", "-1", "99999999999999TiB"] {
            assert!(Bytes::parse(bad).is_err(), "{bad}");
        }
    }
}
