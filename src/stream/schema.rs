//! The JSON Schemas of what goes out, compiled in.

/// Their names with their texts.
pub const SCHEMAS: [(&str, &str); 3] = [
    ("events.v1.json", include_str!("../../schemas/events.v1.json")),
    ("aggregates.v1.json", include_str!("../../schemas/aggregates.v1.json")),
    ("dead-letter.v1.json", include_str!("../../schemas/dead-letter.v1.json")),
];

/// The text of one.
pub fn schema(name: &str) -> Option<&'static str> {
    SCHEMAS.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas_are_json_and_know_where_they_lie() {
        for (name, text) in SCHEMAS {
            let schema: serde_json::Value = serde_json::from_str(text).unwrap();
            assert_eq!(schema["$id"], serde_json::json!(format!("/schemas/{name}")));
        }
        assert!(schema("nosuch").is_none());
        for uri in [super::super::outgoing::EVENT_SCHEMA, super::super::outgoing::DEAD_LETTER_SCHEMA] {
            assert!(schema(uri.trim_start_matches("/schemas/")).is_some(), "{uri}");
        }
    }
}
