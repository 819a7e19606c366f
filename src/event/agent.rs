//! Tells people from programs by the `User-Agent`.
//!
//! The patterns are those of the crawler-user-agents list (`data/agents.tsv`); most are plain text and go into one
//! Aho-Corasick automaton, the rest into one `RegexSet`. Answers are remembered by agent, because a site sees few
//! different ones and the automaton costs microseconds.

use std::borrow::Cow;
use std::sync::LazyLock;

use aho_corasick::AhoCorasick;
use cached::{Cached, stores::LruCache};
use parking_lot::Mutex;
use regex::{Regex, RegexSet};
use serde::{Serialize, Serializer};

macro_rules! reasons {
    ($($name:ident = $byte:literal, $text:literal, $doc:literal;)*) => {
        /// Why an event is counted as a bot's.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum BotReason { $(#[doc = $doc] $name = $byte,)* }

        impl BotReason {
            /// Every reason with what it means.
            pub const ALL: &[(BotReason, &str)] = &[$((BotReason::$name, $doc),)*];

            /// The word in answers.
            pub fn as_str(self) -> &'static str {
                match self { $(BotReason::$name => $text,)* }
            }

            /// The reason of a journal byte.
            pub fn from_byte(byte: u8) -> Option<Self> {
                match byte { $($byte => Some(BotReason::$name),)* _ => None }
            }

            /// The reason of a word.
            pub fn from_text(text: &str) -> Option<Self> {
                match text { $($text => Some(BotReason::$name),)* _ => None }
            }
        }
    };
}

reasons! {
    Crawler = 1, "crawler", "A search engine, archiver, SEO tool or other crawler.";
    AiCrawler = 2, "ai_crawler", "Collects text for a language model.";
    Monitoring = 3, "monitoring", "Checks that the site is up.";
    FeedReader = 4, "feed_reader", "Fetches feeds.";
    SocialPreview = 5, "social_preview", "Makes the preview of a shared link.";
    Scanner = 6, "scanner", "Looks for weaknesses.";
    HttpLibrary = 7, "http_library", "A programming library or command line client.";
    BrowserAutomation = 8, "browser_automation", "A browser that a program drives.";
    NoAgent = 9, "no_agent", "Names no agent at all.";
}

impl Serialize for BotReason {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.as_str())
    }
}

/// Which programs count as bots, by where the event comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentPolicy {
    /// A beacon was sent on purpose: servers that report events (libraries, no agent) and driven browsers are taken at
    /// their word; crawlers that run the tracker are not.
    Beacon,
    /// A line of an access log: whatever is no person is a bot.
    AccessLog,
}

impl AgentPolicy {
    /// The reason, where this policy minds it.
    pub fn apply(self, reason: Option<BotReason>) -> Option<BotReason> {
        let deliberate =
            matches!(reason, Some(BotReason::HttpLibrary | BotReason::BrowserAutomation | BotReason::NoAgent));
        if self == AgentPolicy::Beacon && deliberate { None } else { reason }
    }
}

/// How many different agents are remembered.
const REMEMBERED: usize = 4096;
/// Longer agents are cut before they are looked at.
const LONGEST: usize = 512;

static SHARED: LazyLock<Agents> = LazyLock::new(Agents::new);

/// The reason why this agent is no person, if it is none.
pub fn classify(user_agent: &str) -> Option<BotReason> {
    SHARED.classify(user_agent)
}

struct Agents {
    plain: AhoCorasick,
    plain_reasons: Vec<BotReason>,
    patterns: RegexSet,
    pattern_reasons: Vec<BotReason>,
    /// What calls itself a bot, and is not on the list.
    declared: Regex,
    remembered: Mutex<LruCache<String, Option<BotReason>>>,
}

impl Agents {
    fn new() -> Self {
        let (mut plain, mut plain_reasons, mut patterns, mut pattern_reasons) = (vec![], vec![], vec![], vec![]);
        for line in include_str!("data/agents.tsv").lines().filter(|l| !l.starts_with('#')) {
            let Some((reason, pattern)) = line.split_once('\t') else { continue };
            let Some(reason) = BotReason::from_text(reason) else { continue };
            match plain_text(pattern) {
                Some(text) => {
                    plain.push(text.into_owned());
                    plain_reasons.push(reason);
                }
                None => {
                    patterns.push(pattern);
                    pattern_reasons.push(reason);
                }
            }
        }
        Self {
            plain: AhoCorasick::new(&plain).expect("the compiled-in list is checked by a test"),
            plain_reasons,
            patterns: RegexSet::new(&patterns).expect("the compiled-in list is checked by a test"),
            pattern_reasons,
            declared: Regex::new(r"(?i)(?:^|[^u])bot\b|crawler|spider|\+https?://").expect("a constant"),
            remembered: Mutex::new(LruCache::new(REMEMBERED)),
        }
    }

    fn classify(&self, user_agent: &str) -> Option<BotReason> {
        let agent = cut(user_agent.trim(), LONGEST);
        if agent.is_empty() || agent == "-" {
            return Some(BotReason::NoAgent);
        }
        if let Some(known) = self.remembered.lock().cache_get(agent) {
            return *known;
        }
        let reason = self.look(agent);
        self.remembered.lock().cache_set(agent.to_owned(), reason);
        reason
    }

    fn look(&self, agent: &str) -> Option<BotReason> {
        if let Some(found) = self.plain.find(agent) {
            return Some(self.plain_reasons[found.pattern().as_usize()]);
        }
        if let Some(first) = self.patterns.matches(agent).iter().next() {
            return Some(self.pattern_reasons[first]);
        }
        self.declared.is_match(agent).then_some(BotReason::Crawler)
    }
}

/// The text that a pattern stands for, if it is nothing but (escaped) text.
fn plain_text(pattern: &str) -> Option<Cow<'_, str>> {
    let mut text = String::with_capacity(pattern.len());
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(escaped) if !escaped.is_ascii_alphanumeric() => text.push(escaped),
                _ => return None,
            },
            '^' | '$' | '.' | '|' | '?' | '*' | '+' | '(' | ')' | '[' | ']' | '{' | '}' => return None,
            other => text.push(other),
        }
    }
    Some(if text == pattern { Cow::Borrowed(pattern) } else { Cow::Owned(text) })
}

/// At most `max` bytes of `text`, cut at a character.
pub(crate) fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_and_programs_are_told_apart() {
        let chrome = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_9_1) AppleWebKit/537.36 (KHTML, like Gecko) \
                      Chrome/32.0.1700.77 Safari/537.36";
        assert_eq!(classify(chrome), None);
        assert_eq!(classify("Mozilla/5.0 (Linux; Android 9; CUBOT X19) AppleWebKit/537.36"), None);
        assert_eq!(
            classify("Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"),
            Some(BotReason::Crawler)
        );
        assert_eq!(classify("curl/8.5.0"), Some(BotReason::HttpLibrary));
        assert_eq!(classify("Somebot (nobody knows it)"), Some(BotReason::Crawler));
        assert_eq!(classify("-"), Some(BotReason::NoAgent));
        assert_eq!(AgentPolicy::Beacon.apply(classify("curl/8.5.0")), None);
        assert_eq!(AgentPolicy::AccessLog.apply(classify("curl/8.5.0")), Some(BotReason::HttpLibrary));
    }

    #[test]
    fn every_pattern_of_the_list_is_used() {
        let agents = Agents::new();
        let lines = include_str!("data/agents.tsv").lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(agents.plain_reasons.len() + agents.pattern_reasons.len(), lines);
        for (reason, _) in BotReason::ALL {
            assert_eq!(BotReason::from_byte(*reason as u8), Some(*reason));
        }
    }

    #[test]
    fn long_agents_are_cut_at_a_character() {
        assert_eq!(cut("aé", 2), "a");
        assert_eq!(classify(&"é".repeat(5000)), None);
    }
}
