//! Products and changes out of JSON, with everything named at once that is wrong.
//!
//! Not serde's derive: that stops at the first mistake, and tells of it in terms of Rust.

use std::collections::HashSet;
use std::str::FromStr;

use rust_decimal::Decimal;
use serde_json::{Map, Value};

use super::error::{CatalogError, FieldError};
use super::model::{
    Attribute, Image, MAX_RELATED, NewProduct, PRICE_SCALE, ProductPatch, Status, is_product_id, max_price, shown,
};
use crate::clock::UnixMillis;

const MAX_STOCK: i64 = 1_000_000_000;
const FIELDS: [&str; 13] = [
    "id",
    "name",
    "description",
    "category",
    "brand",
    "price",
    "currency",
    "stock",
    "status",
    "images",
    "attributes",
    "related",
    "created_at",
];

impl NewProduct {
    /// A product out of a JSON object.
    ///
    /// # Errors
    /// [`CatalogError::Invalid`] with every field that cannot be taken.
    pub fn read(json: &Value) -> Result<Self, CatalogError> {
        let mut fields = Fields::of(json)?;
        let id = fields.id();
        let new = Self {
            name: fields.required("name", |f| f.text("name", 1, 200, false)),
            description: fields.text("description", 0, 20_000, true).unwrap_or_default(),
            category: fields.name_of("category").flatten(),
            brand: fields.name_of("brand").flatten(),
            price: fields.required("price", Fields::price),
            currency: fields.currency().unwrap_or_else(|| String::from("EUR")),
            stock: fields.stock().unwrap_or_default(),
            status: fields.status().unwrap_or_default(),
            images: fields.images().unwrap_or_default(),
            attributes: fields.attributes().unwrap_or_default(),
            related: fields.related(&id).unwrap_or_default(),
            created_at: fields.created_at(),
            id,
        };
        fields.end().map(|()| new)
    }
}

impl ProductPatch {
    /// Changes out of a JSON object: what is there is changed, `null` takes category and brand away.
    ///
    /// # Errors
    /// [`CatalogError::Invalid`] with every field that cannot be taken.
    pub fn read(id: &str, json: &Value) -> Result<Self, CatalogError> {
        let mut fields = Fields::of(json)?;
        for fixed in ["id", "created_at"] {
            // What says the same as before is no change.
            if fields.map.get(fixed).is_some_and(|value| fixed != "id" || value.as_str() != Some(id)) {
                fields.bad(fixed, "it cannot be changed");
            }
        }
        let patch = Self {
            name: fields.not_null("name", |f| f.text("name", 1, 200, false)),
            description: fields.not_null("description", |f| f.text("description", 0, 20_000, true)),
            category: fields.name_of("category"),
            brand: fields.name_of("brand"),
            price: fields.not_null("price", Fields::price),
            currency: fields.not_null("currency", Fields::currency),
            stock: fields.not_null("stock", Fields::stock),
            status: fields.not_null("status", Fields::status),
            images: fields.not_null("images", Fields::images),
            attributes: fields.not_null("attributes", Fields::attributes),
            related: fields.not_null("related", |f| f.related(id)),
        };
        fields.end().map(|()| patch)
    }
}

/// A price out of text: no exponent, at most four places.
pub(super) fn price_of(text: &str) -> Result<Decimal, String> {
    let price = Decimal::from_str_exact(text.trim()).map_err(|_| String::from("it must be a number like \"19.90\""))?;
    let price = price.normalize();
    if price.is_sign_negative() && !price.is_zero() || price > max_price() {
        return Err(format!("it must be 0 to {}", max_price()));
    }
    if price.scale() > PRICE_SCALE {
        return Err(format!("it must have at most {PRICE_SCALE} decimal places"));
    }
    Ok(shown(price.abs()))
}

struct Fields<'a> {
    map: &'a Map<String, Value>,
    errors: Vec<FieldError>,
}

impl<'a> Fields<'a> {
    fn of(json: &'a Value) -> Result<Self, CatalogError> {
        let map = json.as_object().ok_or_else(|| CatalogError::field("", "a product must be a JSON object"))?;
        let mut fields = Self { map, errors: Vec::new() };
        for name in map.keys().filter(|name| !FIELDS.contains(&name.as_str())).take(20) {
            let near = FIELDS.iter().min_by_key(|known| strsim::damerau_levenshtein(name, known));
            let near = near.filter(|known| strsim::damerau_levenshtein(name, known) <= 2);
            let name = name.chars().take(64).collect::<String>();
            match near {
                Some(near) => fields.bad(name, format!("there is no such field; did you mean `{near}`?")),
                None => fields.bad(name, "there is no such field"),
            }
        }
        Ok(fields)
    }

    fn end(self) -> Result<(), CatalogError> {
        if self.errors.is_empty() { Ok(()) } else { Err(CatalogError::Invalid(self.errors)) }
    }

    fn bad(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.errors.push(FieldError { field: field.into(), message: message.into() });
    }

    fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    fn required<T: Default>(&mut self, name: &str, read: impl FnOnce(&mut Self) -> Option<T>) -> T {
        if self.get(name).is_none() {
            self.bad(name, "it is missing");
        }
        read(self).unwrap_or_default()
    }

    fn not_null<T>(&mut self, name: &str, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        if self.map.get(name).is_some_and(Value::is_null) {
            self.bad(name, "it cannot be null; leave it out to keep it as it is");
        }
        read(self)
    }

    fn id(&mut self) -> String {
        let id = match self.get("id") {
            Some(Value::String(id)) => id.clone(),
            // Shops number their products.
            Some(Value::Number(number)) if number.is_u64() => number.to_string(),
            None => {
                self.bad("id", "it is missing");
                return String::new();
            }
            Some(_) => String::new(),
        };
        if !is_product_id(&id) {
            self.bad("id", "it must be 1 to 64 characters of A-Z a-z 0-9 . _ : -");
        }
        id
    }

    fn text(&mut self, name: &str, least: usize, most: usize, lines: bool) -> Option<String> {
        let value = self.get(name)?;
        match checked(value, least, most, lines) {
            Ok(text) => Some(text),
            Err(message) => {
                self.bad(name, message);
                None
            }
        }
    }

    /// Of a category or a brand: `Some(None)` if it is null or empty.
    fn name_of(&mut self, name: &str) -> Option<Option<String>> {
        match self.map.get(name)? {
            Value::Null => Some(None),
            Value::String(text) if text.trim().is_empty() => Some(None),
            _ => self.text(name, 1, 128, false).map(Some),
        }
    }

    fn price(&mut self) -> Option<Decimal> {
        let text = match self.get("price")? {
            Value::String(text) => text.clone(),
            // Its shortest text is what was written, for as many digits as a price may have.
            Value::Number(number) => number.to_string(),
            _ => String::new(),
        };
        price_of(&text).map_err(|message| self.bad("price", message)).ok()
    }

    fn currency(&mut self) -> Option<String> {
        let text = self.get("currency")?.as_str().unwrap_or_default();
        if text.len() == 3 && text.bytes().all(|b| b.is_ascii_uppercase()) {
            return Some(text.to_owned());
        }
        self.bad("currency", "it must be three capital letters like EUR");
        None
    }

    fn whole(&self, name: &str) -> Option<Result<i64, ()>> {
        Some(match self.get(name)? {
            Value::Number(number) => number.as_i64().ok_or(()),
            Value::String(text) => i64::from_str(text.trim()).map_err(drop),
            _ => Err(()),
        })
    }

    fn stock(&mut self) -> Option<u32> {
        let stock = self.whole("stock")?.ok().filter(|n| (0..=MAX_STOCK).contains(n));
        if stock.is_none() {
            self.bad("stock", format!("it must be a whole number from 0 to {MAX_STOCK}"));
        }
        stock.and_then(|n| u32::try_from(n).ok())
    }

    fn created_at(&mut self) -> Option<UnixMillis> {
        let at = match self.get("created_at")? {
            Value::String(text) if text.contains('T') => crate::clock::parse_rfc3339(text),
            _ => self.whole("created_at")?.ok(),
        };
        // Before the year 2286, when milliseconds get another digit.
        let at = at.filter(|at| (0..10_000_000_000_000).contains(at));
        if at.is_none() {
            self.bad("created_at", "it must be a time in Unix milliseconds or RFC 3339");
        }
        at
    }

    fn status(&mut self) -> Option<Status> {
        let status = self.get("status")?.as_str().and_then(Status::parse);
        if status.is_none() {
            self.bad("status", "it must be active or inactive");
        }
        status
    }

    fn list(&mut self, name: &str, most: usize) -> Option<&'a [Value]> {
        match self.get(name)? {
            Value::Array(list) if list.len() <= most => Some(list),
            _ => {
                self.bad(name, format!("it must be a list of at most {most}"));
                None
            }
        }
    }

    fn images(&mut self) -> Option<Vec<Image>> {
        let mut images = Vec::new();
        for (at, value) in self.list("images", 50)?.iter().enumerate() {
            let (url, alt) = match value {
                Value::String(_) => (Some(value), None),
                Value::Object(map) => (map.get("url"), map.get("alt").filter(|alt| !alt.is_null())),
                _ => (None, None),
            };
            let url = url.and_then(|url| checked(url, 1, 2048, false).ok()).filter(|url| {
                !url.contains(char::is_whitespace)
                    && ["https://", "http://", "/"].iter().any(|begin| url.starts_with(begin))
            });
            if url.is_none() {
                let message = "it must be like https://shop.example/a.webp or /a.webp, of at most 2048 characters";
                self.bad(format!("images[{at}].url"), message);
            }
            let alt = alt.map_or(Ok(String::new()), |alt| checked(alt, 0, 255, false));
            let alt = alt.unwrap_or_else(|message| {
                self.bad(format!("images[{at}].alt"), message);
                String::new()
            });
            images.push(Image { url: url.unwrap_or_default(), alt });
        }
        Some(images)
    }

    fn attributes(&mut self) -> Option<Vec<Attribute>> {
        // A map is as good as a list.
        let pairs: Vec<(Value, Value)> = match self.get("attributes")? {
            Value::Object(map) if map.len() <= 100 => {
                map.iter().map(|(name, value)| (Value::String(name.clone()), value.clone())).collect()
            }
            _ => {
                let list = self.list("attributes", 100)?;
                list.iter().map(|pair| (pair["name"].clone(), pair["value"].clone())).collect()
            }
        };
        let mut attributes = Vec::new();
        for (at, (name, value)) in pairs.iter().enumerate() {
            let mut part = |what: &str, value: &Value, most| {
                checked(value, 1, most, false).unwrap_or_else(|message| {
                    self.bad(format!("attributes[{at}].{what}"), message);
                    String::new()
                })
            };
            attributes.push(Attribute { name: part("name", name, 64), value: part("value", value, 1024) });
        }
        Some(attributes)
    }

    fn related(&mut self, own: &str) -> Option<Vec<String>> {
        let mut related: Vec<String> = Vec::new();
        let mut seen = HashSet::new();
        for (at, value) in self.list("related", MAX_RELATED)?.iter().enumerate() {
            let id = match value {
                Value::String(id) => id.clone(),
                Value::Number(number) => number.to_string(),
                _ => String::new(),
            };
            if !is_product_id(&id) || id == own {
                self.bad(format!("related[{at}]"), "it must be the id of another product");
            } else if seen.insert(id.clone()) {
                related.push(id);
            }
        }
        Some(related)
    }
}

/// A text without what no database of ours keeps alike: control characters, and spaces around it.
fn checked(value: &Value, least: usize, most: usize, lines: bool) -> Result<String, String> {
    let text = value.as_str().ok_or("it must be a text")?.trim();
    let length = text.chars().count();
    if !(least..=most).contains(&length) {
        return Err(format!("it must have {least} to {most} characters, and has {length}"));
    }
    if text.chars().any(|c| c.is_control() && !(lines && matches!(c, '\n' | '\r' | '\t'))) {
        return Err(String::from("it must not contain control characters"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_bad_field_is_named_at_once() {
        let bad = json!({"id": "a b", "price": "-1", "stock": 1.5, "status": "sold", "currency": "euro", "nam": "x",
            "images": ["ftp://x", {"url": "/a", "alt": "\u{7}"}], "attributes": [{"name": "", "value": 3}],
            "related": ["a b"], "description": "\u{0}", "category": 7, "created_at": "yesterday"});
        let Err(CatalogError::Invalid(errors)) = NewProduct::read(&bad) else { panic!("it was taken") };
        let fields: Vec<&str> = errors.iter().map(|error| error.field.as_str()).collect();
        for field in [
            "id",
            "name",
            "price",
            "stock",
            "status",
            "currency",
            "nam",
            "images[0].url",
            "images[1].alt",
            "attributes[0].name",
            "attributes[0].value",
            "related[0]",
            "description",
            "category",
            "created_at",
        ] {
            assert!(fields.contains(&field), "{field} is not in {fields:?}");
        }
        assert!(errors.iter().any(|error| error.message.contains("did you mean `name`?")));
        assert!(NewProduct::read(&json!([1])).is_err());
    }

    #[test]
    fn prices_are_exact_as_text_and_as_number() {
        let price = |value: Value| NewProduct::read(&json!({"id": 7, "name": "x", "price": value})).map(|p| p.price);
        assert_eq!(price(json!("0.10")).unwrap() + price(json!(0.2)).unwrap(), price(json!("0.3")).unwrap());
        for (value, text) in [
            (json!("99999999.99"), "99999999.99"),
            (json!(99999999.99), "99999999.99"),
            (json!(5), "5.00"),
            (json!("1.2345"), "1.2345"),
            (json!("9999999999.9999"), "9999999999.9999"),
            (json!("-0"), "0.00"),
        ] {
            assert_eq!(price(value).unwrap().to_string(), text);
        }
        for bad in [json!("1.23456"), json!("1e3"), json!(1e30), json!("10000000000"), json!("NaN"), json!("")] {
            assert!(price(bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_patch_changes_only_what_it_names() {
        let mut product = NewProduct::read(&json!({"id": "7", "name": "x", "price": 1, "brand": "b"})).unwrap();
        let before = product.clone();
        ProductPatch::read("7", &json!({"id": "7"})).unwrap().apply(&mut product);
        assert_eq!(product, before);
        ProductPatch::read("7", &json!({"brand": null, "stock": 3})).unwrap().apply(&mut product);
        assert_eq!(product, NewProduct { brand: None, stock: 3, ..before });
        assert!(ProductPatch::read("7", &json!({"name": null})).is_err());
        assert!(ProductPatch::read("7", &json!({"id": "8"})).is_err());
    }
}
