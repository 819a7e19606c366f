//! What a product is.
//!
//! A product's id is the shop's own: 1 to 64 characters of `A-Z a-z 0-9 . _ : -`, case counts. It is the text that beacons
//! carry as `product_id` (a number there is its decimal text), so that what visitors look at meets what is sold.
//!
//! A price is an exact decimal of at most four places. In JSON it is a string with at least two, like `"19.90"`, as a
//! JSON number is a float to most readers; both are taken.

use rust_decimal::Decimal;
use serde::Serialize;
use utoipa::ToSchema;

use crate::clock::UnixMillis;

/// Most related products of one product.
pub const MAX_RELATED: usize = 10;
/// Decimal places of a price.
pub const PRICE_SCALE: u32 = 4;

/// The largest price: what 14 digits hold, four of them decimal places.
pub fn max_price() -> Decimal {
    Decimal::new(99_999_999_999_999, PRICE_SCALE)
}

/// What stands at the place of an id in a path and means something else.
const RESERVED: [&str; 4] = [".", "..", "hot", "batch"];

/// Whether this can be the id of a product.
pub fn is_product_id(text: &str) -> bool {
    !RESERVED.contains(&text)
        && (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._:-".contains(&b))
}

/// A price as it is shown: without needless zeros, but with two places.
pub fn shown(price: Decimal) -> Decimal {
    let mut price = price.normalize();
    if price.scale() < 2 {
        price.rescale(2);
    }
    price
}

/// Whether a product is sold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It is found and shown.
    #[default]
    Active,
    /// It is kept, but neither found nor shown as related.
    Inactive,
}

impl Status {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Inactive => "inactive",
        }
    }

    /// From what is written.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Active, Self::Inactive].into_iter().find(|status| status.as_str() == text)
    }
}

/// A picture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Image {
    /// Where it is: `https://…`, or a path of the shop.
    #[schema(example = "/img/42-1.webp")]
    pub url: String,
    /// What it shows, in words.
    pub alt: String,
}

/// A property.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Attribute {
    /// Like `Colour`.
    #[schema(example = "Colour")]
    pub name: String,
    /// Like `Red`.
    #[schema(example = "Red")]
    pub value: String,
}

/// A product as it is listed: in results, and as related to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Summary {
    /// Its id.
    #[schema(example = "42")]
    pub id: String,
    /// Its name.
    pub name: String,
    /// Name of its category.
    pub category: Option<String>,
    /// Name of its brand.
    pub brand: Option<String>,
    /// Exact, as a string.
    #[serde(with = "rust_decimal::serde::str")]
    #[schema(value_type = String, example = "19.90")]
    pub price: Decimal,
    /// ISO 4217.
    #[schema(example = "EUR")]
    pub currency: String,
    /// Units in stock.
    pub stock: u32,
    /// Its first picture.
    pub image: Option<Image>,
}

/// A product with everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Product {
    /// Its id.
    #[schema(example = "42")]
    pub id: String,
    /// Its name.
    pub name: String,
    /// Plain text.
    pub description: String,
    /// Name of its category.
    pub category: Option<String>,
    /// Name of its brand.
    pub brand: Option<String>,
    /// Exact, as a string.
    #[serde(with = "rust_decimal::serde::str")]
    #[schema(value_type = String, example = "19.90")]
    pub price: Decimal,
    /// ISO 4217.
    #[schema(example = "EUR")]
    pub currency: String,
    /// Units in stock.
    pub stock: u32,
    /// Whether it is sold.
    pub status: Status,
    /// In their order; the first is shown in lists.
    pub images: Vec<Image>,
    /// In their order.
    pub attributes: Vec<Attribute>,
    /// At most 10, active ones only.
    pub related: Vec<Summary>,
    /// Grows with every change, and is no earlier one's if the product is deleted and made again. For `If-Match`.
    pub version: u64,
    /// Unix milliseconds.
    pub created_at: UnixMillis,
    /// Unix milliseconds.
    pub updated_at: UnixMillis,
}

/// A product to be stored. [`NewProduct::read`] makes one of JSON and names everything that is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct NewProduct {
    /// 1 to 64 characters of `A-Z a-z 0-9 . _ : -`.
    #[schema(example = "42")]
    pub id: String,
    /// 1 to 200 characters.
    pub name: String,
    /// At most 20,000 characters.
    pub description: String,
    /// At most 128 characters; made if it is not there.
    pub category: Option<String>,
    /// At most 128 characters; made if it is not there.
    pub brand: Option<String>,
    /// 0 to 9999999999.9999.
    #[serde(with = "rust_decimal::serde::str")]
    #[schema(value_type = String, example = "19.90")]
    pub price: Decimal,
    /// Three capital letters; `EUR` if none is given.
    #[schema(example = "EUR")]
    pub currency: String,
    /// 0 to 1,000,000,000.
    pub stock: u32,
    /// `active` if none is given.
    pub status: Status,
    /// At most 50.
    pub images: Vec<Image>,
    /// At most 100.
    pub attributes: Vec<Attribute>,
    /// Ids of at most 10 others; they may come later.
    pub related: Vec<String>,
    /// When it came into the shop, Unix milliseconds; the time of the write if none is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<UnixMillis>,
}

/// Changes of a product; what is `None` stays. [`ProductPatch::read`] makes one of JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProductPatch {
    /// See [`NewProduct`].
    pub name: Option<String>,
    /// See [`NewProduct`].
    pub description: Option<String>,
    /// `Some(None)` takes it away.
    pub category: Option<Option<String>>,
    /// `Some(None)` takes it away.
    pub brand: Option<Option<String>>,
    /// See [`NewProduct`].
    pub price: Option<Decimal>,
    /// See [`NewProduct`].
    pub currency: Option<String>,
    /// See [`NewProduct`].
    pub stock: Option<u32>,
    /// See [`NewProduct`].
    pub status: Option<Status>,
    /// All of them.
    pub images: Option<Vec<Image>>,
    /// All of them.
    pub attributes: Option<Vec<Attribute>>,
    /// All of them.
    pub related: Option<Vec<String>>,
}

impl ProductPatch {
    /// Changes a product.
    pub fn apply(self, to: &mut NewProduct) {
        fn put<T>(at: &mut T, new: Option<T>) {
            if let Some(new) = new {
                *at = new;
            }
        }
        put(&mut to.name, self.name);
        put(&mut to.description, self.description);
        put(&mut to.category, self.category);
        put(&mut to.brand, self.brand);
        put(&mut to.price, self.price);
        put(&mut to.currency, self.currency);
        put(&mut to.stock, self.stock);
        put(&mut to.status, self.status);
        put(&mut to.images, self.images);
        put(&mut to.attributes, self.attributes);
        put(&mut to.related, self.related);
    }
}
