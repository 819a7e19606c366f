//! What an event says of products. Pure, and unimpressed by what `data` holds: it comes from browsers.
//!
//! A view is an event of a view type with a `product_id`. A purchase is an event of a purchase type with
//! `data.items: [{product_id, quantity}]`, or with a `product_id` and perhaps `data.quantity`; where both are there, the
//! items are taken. Bots' events say nothing. Ids are at most [`MAX_ID`] bytes, items at most [`MAX_ITEMS`]; a quantity
//! is 1 where there is none, is cut to [`MAX_QUANTITY`], and an item with any other (0, negative, an object) is left out.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::Kind;
use crate::event::Event;

/// Bytes of a product's id; longer ones are nobody's.
pub const MAX_ID: usize = 64;
/// Items of one purchase that are looked at.
pub const MAX_ITEMS: usize = 1_000;
/// Units of one item.
pub const MAX_QUANTITY: u32 = 10_000;

/// Which events are looked at.
#[derive(Clone, Debug)]
pub struct Reading {
    views: Vec<String>,
    purchases: Vec<String>,
}

#[derive(serde::Deserialize)]
struct Data<'a> {
    #[serde(borrow)]
    items: Option<&'a RawValue>,
    #[serde(borrow)]
    quantity: Option<&'a RawValue>,
}

#[derive(serde::Deserialize)]
struct Item<'a> {
    #[serde(borrow)]
    product_id: Option<&'a RawValue>,
    #[serde(borrow)]
    quantity: Option<&'a RawValue>,
}

/// The first elements of an array, unread.
struct First<'a>(Vec<&'a RawValue>);

impl<'de> Deserialize<'de> for First<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements;
        impl<'de> Visitor<'de> for Elements {
            type Value = First<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<First<'de>, A::Error> {
                let mut first = Vec::new();
                while first.len() < MAX_ITEMS {
                    let Some(element) = list.next_element()? else { return Ok(First(first)) };
                    first.push(element);
                }
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(First(first))
            }
        }
        deserializer.deserialize_seq(Elements)
    }
}

impl Reading {
    /// Of events of these types.
    pub fn new(views: &[String], purchases: &[String]) -> Self {
        Self { views: views.to_vec(), purchases: purchases.to_vec() }
    }

    /// Calls `each` with what an event says: kind, product and number.
    pub fn read(&self, event: &Event<'_>, mut each: impl FnMut(Kind, &str, u32)) {
        if event.bot.is_some() {
            return;
        }
        let product = event.product_id.filter(|id| is_product(id));
        if self.views.iter().any(|kind| kind == event.event_type) {
            if let Some(product) = product {
                each(Kind::Views, product, 1);
            }
        } else if self.purchases.iter().any(|kind| kind == event.event_type) {
            purchase(product, event.data, |product, n| each(Kind::Units, product, n));
        }
    }
}

fn is_product(id: &str) -> bool {
    !id.is_empty() && id.len() <= MAX_ID && !id.chars().any(char::is_control)
}

fn purchase(product: Option<&str>, data: Option<&str>, mut each: impl FnMut(&str, u32)) {
    let data = data.and_then(|data| serde_json::from_str::<Data<'_>>(data).ok());
    let (items, bought) = data.map_or((None, None), |data| (data.items, data.quantity));
    let items = items.and_then(|items| serde_json::from_str::<First<'_>>(items.get()).ok());
    let mut any = false;
    for item in items.map(|items| items.0).unwrap_or_default() {
        let Ok(item) = serde_json::from_str::<Item<'_>>(item.get()) else { continue };
        let Some(id) = item.product_id.and_then(text).filter(|id| is_product(id)) else { continue };
        any = true;
        if let Some(n) = quantity(item.quantity) {
            each(&id, n);
        }
    }
    if let (false, Some(product), Some(n)) = (any, product, quantity(bought)) {
        each(product, n);
    }
}

/// A text, or an integer as text: shops number their products, and write the numbers either way.
fn text(raw: &RawValue) -> Option<Cow<'_, str>> {
    let raw = raw.get();
    if raw.starts_with('"') {
        // `Cow` alone would always copy.
        let owned = |_| serde_json::from_str::<String>(raw).map(Cow::Owned);
        return serde_json::from_str::<&str>(raw).map(Cow::Borrowed).or_else(owned).ok();
    }
    (raw.len() <= MAX_ID && raw.bytes().all(|b| b.is_ascii_digit())).then_some(Cow::Borrowed(raw))
}

fn quantity(raw: Option<&RawValue>) -> Option<u32> {
    let Some(raw) = raw.map(RawValue::get).filter(|raw| *raw != "null") else { return Some(1) };
    let number = match raw.strip_prefix('"').and_then(|raw| raw.strip_suffix('"')) {
        Some(digits) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => digits,
        Some(_) => return None,
        None => raw,
    };
    let number: f64 = number.parse().ok()?;
    (number >= 1.0).then(|| number.min(f64::from(MAX_QUANTITY)) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{BotReason, EventId};
    use proptest::prelude::*;

    fn event<'a>(kind: &'a str, product: Option<&'a str>, data: Option<&'a str>) -> Event<'a> {
        Event {
            received: 1,
            timestamp: 1,
            site: "default",
            event_type: kind,
            id: EventId::None,
            visitor: 1,
            session: 1,
            url: None,
            referrer: None,
            title: None,
            user_id: None,
            session_id: None,
            product_id: product,
            data,
            bot: None,
            imported: false,
        }
    }

    fn read(event: &Event<'_>) -> Vec<(Kind, String, u32)> {
        let mut said = Vec::new();
        let reading = Reading::new(&["page_view".into(), "product_view".into()], &["purchase".into()]);
        reading.read(event, |kind, id, n| said.push((kind, id.to_owned(), n)));
        said
    }

    fn bought(product: Option<&str>, data: &str) -> Vec<(String, u32)> {
        read(&event("purchase", product, Some(data))).into_iter().map(|(_, id, n)| (id, n)).collect()
    }

    #[test]
    fn views_and_purchases() {
        assert_eq!(read(&event("page_view", Some("a"), None)), [(Kind::Views, "a".into(), 1)]);
        assert_eq!(read(&event("product_view", Some("a"), None)), [(Kind::Views, "a".into(), 1)]);
        assert_eq!(read(&event("page_view", None, None)), []);
        assert_eq!(read(&event("view_item", Some("a"), None)), []);
        assert_eq!(read(&event("purchase", Some("a"), None)), [(Kind::Units, "a".into(), 1)]);
        let bot = Event { bot: Some(BotReason::Crawler), ..event("page_view", Some("a"), None) };
        assert_eq!(read(&bot), []);
        assert_eq!(bought(Some("a"), r#"{"quantity": 3}"#), [("a".into(), 3)]);
        let items = r#"{"items": [{"product_id": "b", "quantity": 2}, {"product_id": 17}, {"product_id": "\u0063"}]}"#;
        assert_eq!(bought(Some("a"), items), [("b".into(), 2), ("17".into(), 1), ("c".into(), 1)]);
        assert_eq!(bought(None, r#"{"items": [{"product_id": "b", "quantity": "2"}]}"#), [("b".into(), 2)]);
    }

    #[test]
    fn rubbish_is_bounded() {
        for quantity in ["-1", "0", "0.5", "-1e300", "\"x\"", "\"\"", "\"inf\"", "[]", "{}", "true", "\"-3\""] {
            assert_eq!(bought(Some("a"), &format!(r#"{{"quantity": {quantity}}}"#)), [], "{quantity}");
            let items =
                format!(r#"{{"items": [{{"product_id": "b", "quantity": {quantity}}}, {{"product_id": "c"}}]}}"#);
            assert_eq!(bought(None, &items), [("c".into(), 1)], "{quantity}");
        }
        for (quantity, n) in
            [("1e300", 10_000), ("1e999", 10_000), ("2.9", 2), ("null", 1), ("99999999999999999999", 10_000)]
        {
            assert_eq!(bought(Some("a"), &format!(r#"{{"quantity": {quantity}}}"#)), [("a".into(), n)], "{quantity}");
        }
        for items in
            ["5", "{}", "\"x\"", "[]", "[5, null, [], \"b\"]", r#"[{"product_id": null}]"#, r#"[{"product_id": -5}]"#]
        {
            assert_eq!(bought(Some("a"), &format!(r#"{{"items": {items}}}"#)), [("a".into(), 1)], "{items}");
        }
        assert_eq!(bought(Some("a"), "no JSON"), [("a".into(), 1)]);
        let long = "x".repeat(65);
        assert_eq!(read(&event("page_view", Some(&long), None)), []);
        assert_eq!(read(&event("page_view", Some("a\nb"), None)), []);
        assert_eq!(bought(None, &format!(r#"{{"items": [{{"product_id": "{long}"}}]}}"#)), []);

        let many = format!(r#"{{"items": [{}{{"product_id": "z"}}]}}"#, r#"{"product_id": "b"},"#.repeat(1_000_000));
        assert_eq!(bought(None, &many).len(), MAX_ITEMS);
        let deep = format!(r#"{{"x": {}{}, "quantity": 2}}"#, "[".repeat(5_000_000), "]".repeat(5_000_000));
        assert!(bought(Some("a"), &deep).len() <= 1, "10 MB of brackets");
        let deep = format!(r#"{{"items": [{{"product_id": {}{}}}]}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert!(bought(None, &deep).is_empty());
    }

    proptest! {
        #[test]
        fn no_data_makes_it_panic(text in r#"\{"(items|quantity)": [\[\]{}",:a-z0-9eE.\\ +-]{0,100}\}?"#) {
            for (_, n) in bought(Some("a"), &text) {
                prop_assert!((1..=MAX_QUANTITY).contains(&n));
            }
        }
    }
}
