//! Hours and days of a time zone as ranges of time, also where its clocks change.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Deserialize;
use utoipa::ToSchema;

use super::StatsError;
use super::window::Tier;
use crate::clock::{DAY, HOUR, MINUTE, UnixMillis};

/// A time zone by its IANA name.
#[derive(Clone, Debug)]
pub(super) struct Zone {
    pub name: String,
    tz: TimeZone,
}

/// What the points of a series are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Interval {
    /// Minutes.
    Minute,
    /// Hours of the zone's clock. Where a clock is changed by half an hour, two of them are half as long.
    Hour,
    /// Days of the zone, of 23 to 25 hours.
    Day,
}

impl Interval {
    /// The word in queries and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Interval::Minute => "minute",
            Interval::Hour => "hour",
            Interval::Day => "day",
        }
    }

    /// The interval of a word.
    pub fn parse(text: &str) -> Option<Self> {
        [Interval::Minute, Interval::Hour, Interval::Day].into_iter().find(|interval| interval.as_str() == text)
    }
}

impl Zone {
    pub fn named(name: &str) -> Result<Self, StatsError> {
        let bad = |_| StatsError::BadQuery(format!("tz must be an IANA time zone such as Europe/Berlin, not {name:?}"));
        if name.len() > 64 {
            return Err(StatsError::BadQuery(String::from("tz must be an IANA time zone such as Europe/Berlin")));
        }
        let tz = TimeZone::get(name).map_err(bad)?;
        Ok(Self { name: tz.iana_name().unwrap_or(name).to_owned(), tz })
    }

    pub fn utc() -> Self {
        Self { name: String::from("UTC"), tz: TimeZone::UTC }
    }

    /// How far its clocks are ahead of UTC.
    pub fn offset(&self, at: UnixMillis) -> UnixMillis {
        i64::from(self.tz.to_offset(timestamp(at)).seconds()) * 1000
    }

    /// `at` on its clocks, RFC 3339.
    pub fn rfc3339(&self, at: UnixMillis) -> String {
        timestamp(at).to_zoned(self.tz.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
    }

    /// The interval that holds `at`.
    pub fn interval(&self, interval: Interval, at: UnixMillis) -> (UnixMillis, UnixMillis) {
        match interval {
            Interval::Minute => (Tier::Minute.floor(at), Tier::Minute.floor(at) + MINUTE),
            Interval::Hour => self.hour(at),
            Interval::Day => self.day(at),
        }
    }

    /// Clocks change at quarters of an hour, so it is enough to look at these.
    fn hour(&self, at: UnixMillis) -> (UnixMillis, UnixMillis) {
        const QUARTER: UnixMillis = Tier::Quarter.width();
        let at = Tier::Quarter.floor(at);
        let offset = self.offset(at);
        let local = (at + offset).div_euclid(HOUR) * HOUR;
        let (first, end) = (local - offset, local + HOUR - offset);
        let same = |at: &UnixMillis| self.offset(*at) == offset;
        let mut from = at;
        while from - QUARTER >= first && same(&(from - QUARTER)) {
            from -= QUARTER;
        }
        let mut to = at + QUARTER;
        while to < end && same(&to) {
            to += QUARTER;
        }
        (from, to)
    }

    fn day(&self, at: UnixMillis) -> (UnixMillis, UnixMillis) {
        let utc = Tier::Day.floor(at);
        let zoned = timestamp(at).to_zoned(self.tz.clone());
        let day = zoned.start_of_day().and_then(|from| {
            let to = zoned.date().tomorrow()?.to_zoned(self.tz.clone())?.start_of_day()?;
            Ok((from.timestamp().as_millisecond(), to.timestamp().as_millisecond()))
        });
        match day {
            Ok((from, to)) if from <= at && at < to => (Tier::Quarter.floor(from), Tier::Quarter.floor(to)),
            // Samoa left out a day: what comes before it ends where the next one begins. Any range that holds `at` does.
            _ => (utc, utc + DAY),
        }
    }
}

fn timestamp(at: UnixMillis) -> Timestamp {
    // Queries are between 1970 and 2200, which always fits.
    Timestamp::from_millisecond(at).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
#[path = "zone_tests.rs"]
mod tests;
