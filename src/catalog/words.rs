//! Words of a text, as all databases understand them alike.
//!
//! Each database has its own idea of what a word is, which words are too short or too common to count, and which letters
//! are the same. So words are made here: runs of letters and digits in lower case, written in plain ASCII letters that
//! every tokenizer leaves whole (`wwtv` for `TV`, `wwzfcxzbel` style for what is not ASCII), never shorter than three.
//! That is what is stored, indexed and asked for.

use xxhash_rust::xxh3::xxh3_128;

/// Words of a question that count; further ones are ignored.
pub const MAX_WORDS: usize = 16;
/// Bytes of a product's words.
const MAX_BYTES: usize = 60_000;
/// Longest word, written; MySQL takes no longer ones than 84.
const LONGEST: usize = 64;

/// One word in letters that no tokenizer splits: different words never become the same.
fn written(word: &str) -> String {
    let mut out = String::from("ww");
    for c in word.chars().flat_map(char::to_lowercase) {
        match c {
            'z' => out.push_str("zz"),
            c if c.is_ascii_alphanumeric() => out.push(c),
            c => out.push_str(&format!("z{:x}z", u32::from(c))),
        }
        if out.len() > LONGEST {
            return format!("wx{:032x}", xxh3_128(word.to_lowercase().as_bytes()));
        }
    }
    out
}

fn each(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(written)
}

/// Words to look for, each once; `None` if there is nothing but blanks.
pub fn asked(q: &str) -> Option<Vec<String>> {
    if q.trim().is_empty() {
        return None;
    }
    let mut words: Vec<String> = Vec::new();
    for word in each(q) {
        if !words.contains(&word) {
            words.push(word);
        }
        if words.len() == MAX_WORDS {
            break;
        }
    }
    Some(words)
}

/// A question in one spelling: asking with it is asking with `q`. `None` if there is nothing but blanks.
pub fn canonical(q: &str) -> Option<String> {
    if q.trim().is_empty() {
        return None;
    }
    let mut words: Vec<String> = Vec::new();
    for word in q.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
        // Of some letters the small form is a letter and a mark, which would split the word.
        let lower = word.to_lowercase();
        let word = if lower.chars().all(char::is_alphanumeric) { lower } else { word.to_owned() };
        if !words.contains(&word) {
            words.push(word);
        }
        if words.len() == MAX_WORDS {
            break;
        }
    }
    // Not blank, and no word: it finds nothing.
    Some(if words.is_empty() { String::from("-") } else { words.join(" ") })
}

/// The words of a name, with a blank on both sides of each.
pub fn of_name(name: &str) -> String {
    let mut out = String::from(" ");
    for word in each(name) {
        out.push_str(&word);
        out.push(' ');
    }
    out
}

/// All words that a product is found by, each once.
pub fn of_all<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    let mut seen = std::collections::HashSet::new();
    let mut out = String::new();
    for word in texts.flat_map(each) {
        if out.len() + word.len() > MAX_BYTES {
            break;
        }
        if seen.insert(word.clone()) {
            out.push_str(&word);
            out.push(' ');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_spelling_asks_for_the_same_words() {
        for q in
            ["Oak  TABLE oak", "\"*+-~", "TV's İstanbul ÉTÉ straße", "a b c d e f g h i j k l m n o p q r", "日本 9"]
        {
            let canonical = canonical(q).unwrap();
            assert_eq!(asked(&canonical), asked(q), "{q} as {canonical}");
            assert_eq!(super::canonical(&canonical).as_ref(), Some(&canonical));
        }
        assert_eq!(canonical(" \t"), None);
        assert_eq!(canonical("Oak, TABLE").as_deref(), Some("oak table"));
    }

    #[test]
    fn words_are_plain_letters_and_never_meet() {
        assert_eq!(asked("  \t"), None);
        assert_eq!(asked("\"*+-~()<>@ \u{0} 👟"), Some(vec![]));
        assert_eq!(asked("TV's tv"), Some(vec![String::from("wwtv"), String::from("wws")]));
        assert_eq!(of_name("USB-C"), " wwusb wwc ");
        let mut seen = std::collections::HashMap::new();
        for word in ["zz", "z", "zfcz", "ü", "Übel", "z7a", "日本", "日", "本", "е", "e", &"x".repeat(500)] {
            let out = written(word);
            assert!(out.len() >= 3 && out.len() <= LONGEST + 8, "{out}");
            assert!(out.bytes().all(|b| b.is_ascii_alphanumeric()), "{out}");
            assert_eq!(seen.insert(out, word), None, "{word}");
        }
        assert_eq!(asked(&"a1 b2 c3 d4 ".repeat(3000)).map(|words| words.len()), Some(4));
        assert_eq!(asked(&(0..5000).map(|n| format!("{n} ")).collect::<String>()).map(|w| w.len()), Some(MAX_WORDS));
    }
}
