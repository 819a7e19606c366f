//! Keys. In the process a key is a pair of type and id, compared as such. Where it must be a text, in Redis, each part goes
//! after its length: whatever is in an id, no two pairs have the same text.

/// `14:product_detail2:42`: lengths in bytes, then the parts.
pub(super) fn encode(name: &str, id: &str) -> String {
    format!("{}:{name}{}:{id}", name.len(), id.len())
}

/// The parts of an encoded key, and nothing else.
pub(super) fn decode(text: &str) -> Option<(&str, &str)> {
    let (name, rest) = part(text)?;
    let (id, rest) = part(rest)?;
    rest.is_empty().then_some((name, id))
}

fn part(text: &str) -> Option<(&str, &str)> {
    let (length, rest) = text.split_once(':')?;
    rest.split_at_checked(length.parse().ok()?)
}

/// The keys of one value in Redis. Braces put both into one slot of a cluster.
pub(super) struct RedisKeys {
    pub value: String,
    pub lease: String,
}

impl RedisKeys {
    /// Of a type's id. A brace in an id must not choose the slot, so what is within ours is a hash.
    pub fn new(prefix: &str, name: &str, id: &str) -> Self {
        let key = encode(name, id);
        let slot = xxhash_rust::xxh3::xxh3_64(key.as_bytes()) & 0xffff;
        Self {
            value: format!("{prefix}cache:value:{{{slot:04x}}}:{key}"),
            lease: format!("{prefix}cache:lease:{{{slot:04x}}}:{key}"),
        }
    }
}

/// The key of a type's generation.
pub(super) fn generation(prefix: &str, name: &str) -> String {
    format!("{prefix}cache:generation:{name}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn crafted_ids_do_not_meet_another_key() {
        let names = ["product", "product_detail", "p", "1:p", ""];
        let ids = ["", "1", "1:1", "2:42", "42", "p1:1", "product2:42", "_detail2:42", "}:{0000}", "\0", "é", "4\n2"];
        let mut seen = HashMap::new();
        for name in names {
            for id in ids {
                assert_eq!(decode(&encode(name, id)), Some((name, id)));
                for key in [RedisKeys::new("x", name, id).value, RedisKeys::new("x", name, id).lease] {
                    assert_eq!(seen.insert(key.clone(), (name, id)), None, "{key}");
                }
            }
        }
        for foreign in ["", ":", "1:", "1:a", "1:a1:bc", "9:a1:b", "1:a-1:b", "x:a1:b", "1:é1:b"] {
            assert_eq!(decode(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn both_keys_of_a_value_are_in_one_slot_that_no_id_chooses() {
        let keys = RedisKeys::new("shop:", "product_detail", "{evil}");
        let tag = |key: &str| key[key.find('{').unwrap() + 1..key.find('}').unwrap()].to_owned();
        assert_eq!(tag(&keys.value), tag(&keys.lease));
        assert_eq!(tag(&keys.value).len(), 4);
        assert!(keys.value.starts_with("shop:cache:value:{") && keys.value.ends_with("}:14:product_detail6:{evil}"));
    }

    proptest! {
        #[test]
        fn keys_can_be_read_back(name in ".{0,12}", id in ".{0,40}") {
            let text = encode(&name, &id);
            prop_assert_eq!(decode(&text), Some((name.as_str(), id.as_str())));
        }
    }
}
