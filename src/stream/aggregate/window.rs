//! Windows as consumers see them: minutes, hours and days of UTC. Pure.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::clock::{DAY, HOUR, MINUTE, UnixMillis};
use crate::stats::Tier;
use crate::stats::rollup::WindowKey;

/// How wide a window is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Size {
    /// One minute.
    Minute,
    /// One hour: four quarters of the store.
    Hour,
    /// One day of UTC.
    Day,
}

impl Size {
    /// From the finest to the coarsest; the index is that of [`Size::index`].
    pub const ALL: [Size; 3] = [Size::Minute, Size::Hour, Size::Day];

    /// Its place in [`Size::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// Milliseconds.
    pub fn width(self) -> UnixMillis {
        match self {
            Size::Minute => MINUTE,
            Size::Hour => HOUR,
            Size::Day => DAY,
        }
    }

    /// Start of the window that holds `at`.
    pub fn floor(self, at: UnixMillis) -> UnixMillis {
        at.saturating_sub(at.rem_euclid(self.width()))
    }

    /// The word in keys and records.
    pub fn as_str(self) -> &'static str {
        match self {
            Size::Minute => "minute",
            Size::Hour => "hour",
            Size::Day => "day",
        }
    }

    /// What the store keeps it as.
    pub fn tier(self) -> Tier {
        match self {
            Size::Minute => Tier::Minute,
            Size::Hour => Tier::Quarter,
            Size::Day => Tier::Day,
        }
    }
}

/// A window of a site.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Window {
    /// The site.
    pub site: Arc<str>,
    /// How wide.
    pub size: Size,
    /// Where it starts.
    pub start: UnixMillis,
}

impl Window {
    /// Where it ends (exclusive).
    pub fn end(&self) -> UnixMillis {
        self.start.saturating_add(self.size.width())
    }

    /// The windows of the store that make it up.
    pub fn parts(&self) -> impl Iterator<Item = WindowKey> + '_ {
        let tier = self.size.tier();
        let count = self.size.width() / tier.width();
        (0..count).map(move |n| WindowKey { site: self.site.clone(), tier, start: self.start + n * tier.width() })
    }

    /// The window that a part belongs to.
    pub fn of(part: &WindowKey) -> Self {
        let size = match part.tier {
            Tier::Minute => Size::Minute,
            Tier::Quarter => Size::Hour,
            Tier::Day => Size::Day,
        };
        Self { site: part.site.clone(), size, start: size.floor(part.start) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_is_four_quarters() {
        let hour = Window { site: "a".into(), size: Size::Hour, start: 10 * HOUR };
        let parts: Vec<WindowKey> = hour.parts().collect();
        assert_eq!(parts.len(), 4);
        assert!(parts.iter().all(|part| Window::of(part) == hour));
        assert_eq!(hour.end(), 11 * HOUR);
        assert_eq!(Window { site: "a".into(), size: Size::Day, start: 0 }.parts().count(), 1);
        for (index, size) in Size::ALL.iter().enumerate() {
            assert_eq!(size.index(), index);
        }
    }
}
