//! A question for products, its answer, and the cursor from one page to the next.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use xxhash_rust::xxh3::Xxh3;

use super::error::{CatalogError, FieldError};
use super::model::{PRICE_SCALE, Summary, is_product_id, max_price};
use super::words;

/// Most products of one page.
pub const MAX_PER_PAGE: u32 = 100;
/// How deep `page` reaches, in products; beyond it a cursor goes on at the same cost for each page.
pub const MAX_WINDOW: u64 = 10_000;
/// Lower bounds of the price ranges of the facets, in whole units; the first range begins at 0.
pub(super) const PRICE_STEPS: [i64; 5] = [25, 50, 100, 250, 500];

/// What comes first. Ties go by id, byte by byte, so that an order is always the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Sort {
    /// Most words of `q` in the name; without `q`, as `newest`.
    #[default]
    Relevance,
    /// Cheapest.
    Price,
    /// Dearest.
    #[serde(rename = "-price")]
    PriceDesc,
    /// By name, case ignored, otherwise by code point.
    Name,
    /// Newest.
    Newest,
}

impl Sort {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Relevance => "relevance",
            Self::Price => "price",
            Self::PriceDesc => "-price",
            Self::Name => "name",
            Self::Newest => "newest",
        }
    }

    /// From what is written.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Relevance, Self::Price, Self::PriceDesc, Self::Name, Self::Newest]
            .into_iter()
            .find(|sort| sort.as_str() == text)
    }
}

/// A question. Only active products answer it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SearchQuery {
    /// Words that all must be in name, description, brand, category, attributes or id; at most 16 count. Blank is none.
    pub q: Option<String>,
    /// Name of a category.
    pub category: Option<String>,
    /// Name of a brand.
    pub brand: Option<String>,
    /// Least price.
    pub min_price: Option<Decimal>,
    /// Highest price.
    pub max_price: Option<Decimal>,
    /// Only what is in stock, or only what is not.
    pub in_stock: Option<bool>,
    /// The order.
    pub sort: Sort,
    /// From 1; ignored with a cursor.
    pub page: u32,
    /// 1 to [`MAX_PER_PAGE`].
    pub per_page: u32,
    /// Where an earlier page ended: its `next`.
    pub cursor: Option<String>,
    /// Whether facets are counted too.
    pub facets: bool,
}

impl Default for SearchQuery {
    fn default() -> Self {
        Self {
            q: None,
            category: None,
            brand: None,
            min_price: None,
            max_price: None,
            in_stock: None,
            sort: Sort::default(),
            page: 1,
            per_page: 20,
            cursor: None,
            facets: true,
        }
    }
}

/// One value and how many products have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Facet {
    /// The value.
    pub value: String,
    /// Products.
    pub count: u64,
}

/// Prices from (included) to (not included), and how many products have such a one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct PriceRange {
    /// Whole units.
    pub from: i64,
    /// Whole units; none has no end.
    pub to: Option<i64>,
    /// Products.
    pub count: u64,
}

/// What the results are made of. Each facet counts what the question without its own filter finds, so that a visitor sees
/// what there would be instead.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Facets {
    /// The 50 most frequent.
    pub categories: Vec<Facet>,
    /// The 50 most frequent.
    pub brands: Vec<Facet>,
    /// Those with any product.
    pub prices: Vec<PriceRange>,
    /// Products in stock.
    pub in_stock: u64,
    /// Products that are not.
    pub out_of_stock: u64,
}

/// One page of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct SearchPage {
    /// The products, in order.
    pub items: Vec<Summary>,
    /// Products on all pages.
    pub total: u64,
    /// Which page; 0 with a cursor.
    pub page: u32,
    /// Products of a full page.
    pub per_page: u32,
    /// Pages in all.
    pub total_pages: u64,
    /// Cursor of the next page, if there is one.
    pub next: Option<String>,
    /// If they were asked for.
    pub facets: Option<Facets>,
}

/// Where a page ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cursor {
    /// Of the question: another one has another order.
    h: u64,
    /// What its last product is sorted by.
    pub k: String,
    /// That product.
    pub i: String,
}

/// A question that was checked.
pub(super) struct Checked<'a> {
    pub query: &'a SearchQuery,
    pub words: Option<Vec<String>>,
    pub sort: Sort,
    pub after: Option<Cursor>,
}

impl SearchQuery {
    /// Refuses what no database should be asked; every mistake at once.
    pub(super) fn check(&self) -> Result<Checked<'_>, CatalogError> {
        let mut errors = Vec::new();
        let mut bad = |field: &str, message: String| errors.push(FieldError { field: field.into(), message });
        for (name, text) in [("category", &self.category), ("brand", &self.brand)] {
            if text.as_deref().is_some_and(|t| t.is_empty() || t.chars().count() > 128 || t.contains(char::is_control))
            {
                bad(name, String::from("it must have 1 to 128 characters, none of them a control character"));
            }
        }
        for (name, price) in [("min_price", self.min_price), ("max_price", self.max_price)] {
            if price.is_some_and(|p| p.is_sign_negative() || p > max_price() || p.normalize().scale() > PRICE_SCALE) {
                bad(name, format!("it must be 0 to {}, with at most {PRICE_SCALE} decimal places", max_price()));
            }
        }
        if !(1..=MAX_PER_PAGE).contains(&self.per_page) {
            bad("per_page", format!("it must be 1 to {MAX_PER_PAGE}"));
        }
        let words = self.q.as_deref().and_then(words::asked);
        let sort = if self.sort == Sort::Relevance && words.is_none() { Sort::Newest } else { self.sort };
        let after = self.cursor.as_deref().map(|text| self.read_cursor(text, sort));
        match &after {
            Some(None) => bad("cursor", String::from("it must be the `next` of an answer to the same question")),
            None if self.page == 0 => bad("page", String::from("it must be at least 1")),
            None if u64::from(self.page) * u64::from(self.per_page) > MAX_WINDOW => {
                bad("page", format!("it reaches {MAX_WINDOW} products; go on with the cursor in `next`"));
            }
            _ => {}
        }
        if !errors.is_empty() {
            return Err(CatalogError::Invalid(errors));
        }
        Ok(Checked { query: self, words, sort, after: after.flatten() })
    }

    fn fingerprint(&self) -> u64 {
        // Of texts, so that it is the same in every process and version.
        let prices = [self.min_price, self.max_price].map(|p| p.map(|p| p.normalize().to_string()));
        let parts = (&self.q, &self.category, &self.brand, prices, self.in_stock, self.sort.as_str());
        let mut hasher = Xxh3::new();
        hasher.update(&serde_json::to_vec(&parts).unwrap_or_default());
        hasher.digest()
    }

    /// The cursor behind a product.
    pub(super) fn cursor_behind(&self, key: String, id: String) -> String {
        let cursor = Cursor { h: self.fingerprint(), k: key, i: id };
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&cursor).unwrap_or_default())
    }

    fn read_cursor(&self, text: &str, sort: Sort) -> Option<Cursor> {
        if text.len() > 4096 {
            return None;
        }
        let cursor: Cursor = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        let key = match sort {
            Sort::Name => cursor.k.chars().count() <= 255 && !cursor.k.contains(char::is_control),
            Sort::Price | Sort::PriceDesc => super::read_new::price_of(&cursor.k).is_ok(),
            Sort::Relevance | Sort::Newest => cursor.k.parse::<i64>().is_ok(),
        };
        (cursor.h == self.fingerprint() && is_product_id(&cursor.i) && key).then_some(cursor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_belongs_to_its_question() {
        let query = SearchQuery { q: Some(String::from("shoe")), sort: Sort::Price, ..SearchQuery::default() };
        let cursor = query.cursor_behind(String::from("19.90"), String::from("42"));
        let with = |query: &SearchQuery, cursor: &str| {
            let query = SearchQuery { cursor: Some(cursor.to_owned()), ..query.clone() };
            query.check().map(|checked| checked.after.map(|cursor| (cursor.k, cursor.i)))
        };
        assert_eq!(with(&query, &cursor).unwrap(), Some((String::from("19.90"), String::from("42"))));
        let other = SearchQuery { in_stock: Some(true), ..query.clone() };
        assert!(with(&other, &cursor).is_err());
        for rubbish in ["", "x", "====", &"A".repeat(10_000), &URL_SAFE_NO_PAD.encode("{}")] {
            assert!(with(&query, rubbish).is_err(), "{rubbish}");
        }
        let forged = query.cursor_behind(String::from("x'; --"), String::from("42"));
        assert!(with(&query, &forged).is_err());
    }

    #[test]
    fn every_mistake_of_a_question_is_told() {
        let query = SearchQuery {
            per_page: 0,
            page: 0,
            category: Some(String::from("\u{0}")),
            min_price: Some(Decimal::new(-1, 0)),
            max_price: Some(Decimal::new(1, 5)),
            ..SearchQuery::default()
        };
        let Err(CatalogError::Invalid(errors)) = query.check() else { panic!("it was taken") };
        assert_eq!(errors.len(), 5, "{errors:?}");
        let deep = SearchQuery { page: u32::MAX, ..SearchQuery::default() };
        assert!(deep.check().is_err());
        let rubbish = SearchQuery { q: Some("\"' OR 1=1; -- \u{0} 👟 *".repeat(500)), ..SearchQuery::default() };
        assert!(rubbish.check().is_ok());
    }
}
