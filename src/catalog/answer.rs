//! What the service answers, and how an answer lies in the cache: whole, as it goes out, with a tag.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::popularity::Hot;

/// What stands before an answer's data.
pub(super) const HEAD: &[u8] = b"{\"success\":true,\"data\":";
/// What stands behind it, before the time.
pub(super) const TAIL: &[u8] = b",\"timestamp\":";
/// Bits of a tag that are a hash; the others hold a version, which is about the time in milliseconds, until 2109.
const HASH_BITS: u32 = 22;

/// Why a product is cached for as long as it is.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Explained {
    /// Views of the last 24 hours and ten times the units sold in the last 7 days.
    pub score: u64,
    /// Views of the last 24 hours.
    pub views_24h: u64,
    /// Units sold in the last 7 days.
    pub units_7d: u64,
    /// Whether the counts are exact; else they are an estimate of the long tail.
    pub exact: bool,
    /// Seconds that a product without any score is cached.
    pub base_lifetime: u64,
    /// Seconds that this one would be cached if it was read from the database now.
    pub lifetime: u64,
    /// How many times the base that is.
    pub factor: u32,
    /// Why, in words.
    pub why: String,
}

/// A popular product.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct HotProduct {
    /// Its id, as beacons have it.
    pub product_id: String,
    /// Views of the last 24 hours and ten times the units sold in the last 7 days.
    pub score: u64,
    /// Views of the last 24 hours.
    pub views_24h: u64,
    /// Units sold in the last 7 days.
    pub units_7d: u64,
    /// Whether the counts are exact.
    pub exact: bool,
    /// What it is; none while the database cannot be read.
    pub product: Option<Brief>,
}

/// A product in a list of popular ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Brief {
    /// Its name.
    pub name: String,
    /// Name of its category.
    pub category: Option<String>,
    /// Exact, as a string.
    #[schema(example = "19.90")]
    pub price: String,
    /// ISO 4217.
    pub currency: String,
    /// Units in stock.
    pub stock: u32,
    /// Its first picture.
    #[serde(default, skip_deserializing)]
    pub image: Option<String>,
    #[serde(skip_serializing)]
    images: Vec<Url>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
struct Url {
    url: String,
}

impl Brief {
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        let mut brief: Self = serde_json::from_slice(data(body)).ok()?;
        brief.image = std::mem::take(&mut brief.images).into_iter().next().map(|image| image.url);
        Some(brief)
    }
}

impl HotProduct {
    pub(super) fn of(hot: &Hot, product: Option<Brief>) -> Self {
        Self {
            product_id: hot.product_id.to_string(),
            score: hot.score.score,
            views_24h: hot.score.views_24h,
            units_7d: hot.score.units_7d,
            exact: hot.score.exact,
            product,
        }
    }
}

/// What a warm-up did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Warmed {
    /// Popular products that were looked at.
    pub asked: u64,
    /// Those that were read from the database.
    pub filled: u64,
    /// Those that a tier had.
    pub present: u64,
    /// Those that the catalogue does not have.
    pub missing: u64,
    /// Those that could not be read.
    pub failed: u64,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

/// The data in an answer that the catalogue has cached.
pub fn data(body: &[u8]) -> &[u8] {
    let data = body.strip_prefix(HEAD).unwrap_or(body);
    memchr::memmem::rfind(data, TAIL).map_or(data, |end| &data[..end])
}

/// A version, and what tells apart answers of one version: they show related products, which have their own.
pub(super) fn tagged(version: u64, hash: u64) -> u64 {
    version << HASH_BITS | hash >> (64 - HASH_BITS)
}

/// Version and hash of a tag.
pub fn parts_of(tag: u64) -> (u64, u64) {
    (tag >> HASH_BITS, tag & ((1 << HASH_BITS) - 1))
}
