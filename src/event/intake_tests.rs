use super::*;
use crate::clock::{DAY, HOUR};
use crate::event::Outcome;
use crate::event::access::{Origin, OriginPattern, Shown, WriteKey};
use crate::event::codec::Entry;
use crate::event::decode::{Framing, body};

const NOW: UnixMillis = 1_700_000_000_000;

struct Fixture {
    rules: Rules,
    salts: Salts,
    signal: bool,
    import: bool,
    claim: Claim,
    _folder: tempfile::TempDir,
}

fn fixture() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let salts = Salts::open(folder.path(), NOW).unwrap();
    Fixture { rules: Rules::default(), salts, signal: false, import: false, claim: Claim::default(), _folder: folder }
}

impl Fixture {
    fn batch(&self, text: &str, agent: &str) -> Batch {
        let sender = Sender {
            address: "192.0.2.7",
            agent,
            privacy_signal: self.signal,
            received: NOW,
            import: self.import,
            claim: &self.claim,
        };
        let intake = Intake::new(&self.rules, &self.salts, sender);
        let mut batch = Batch::default();
        body(text.as_bytes(), Framing::Guess, |index, raw| intake.take(index, raw, &mut batch));
        batch
    }

    fn code(&self, text: &str) -> RejectCode {
        let batch = self.batch(text, "Firefox");
        assert!(batch.entries.is_empty(), "{text} was accepted");
        batch.rejected[0].code
    }

    fn event<R>(&self, text: &str, look: impl FnOnce(Event<'_>) -> R) -> R {
        let batch = self.batch(text, "Firefox");
        assert_eq!(batch.rejected, [], "{text}");
        let Ok((Entry::Event(event), _)) = codec::take(&batch.bytes) else { panic!("no event") };
        look(event)
    }
}

#[test]
fn defaults_fill_in() {
    let f = fixture();
    f.event(r#"{"url":"https://a/b"}"#, |event| {
        assert_eq!((event.site, event.event_type), (DEFAULT_SITE, PAGE_VIEW));
        assert_eq!((event.timestamp, event.received), (NOW, NOW));
        assert_eq!(event.id, EventId::None);
        assert_ne!(event.visitor, 0);
    });
    f.event(r#"{"type":"buy","user_id":17,"product_id":"p","data":{"a":[1]},"site":"x"}"#, |event| {
        assert_eq!(event.user_id, Some("17"));
        assert_eq!(event.data, Some(r#"{"a":[1]}"#));
        assert_eq!(event.visitor, visitor::known("x", "17"));
    });
}

#[test]
fn every_rule_has_its_code() {
    use RejectCode::*;
    let f = fixture();
    let long = "x".repeat(3000);
    for (text, code) in [
        (String::from("{}"), MissingType),
        (String::from(r#"{"type":"a b"}"#), InvalidType),
        (format!(r#"{{"type":"{}"}}"#, "x".repeat(65)), InvalidType),
        (format!(r#"{{"type":"a","id":"{}"}}"#, "x".repeat(129)), InvalidId),
        (String::from(r#"{"type":"a","id":""}"#), InvalidId),
        (String::from(r#"{"type":"a","site":"a b"}"#), InvalidSite),
        (String::from(r#"{"url":"nowhere"}"#), InvalidUrl),
        (format!(r#"{{"url":"/{long}"}}"#), FieldTooLong),
        (format!(r#"{{"type":"a","user_id":"{long}"}}"#), FieldTooLong),
        (String::from(r#"{"type":"a","data":[1]}"#), InvalidData),
        (format!(r#"{{"type":"a","data":{{"x":"{}"}}}}"#, "y".repeat(8192)), DataTooLarge),
        (String::from(r#"{"type":"a","timestamp":"noon"}"#), InvalidTimestamp),
        (String::from(r#"{"type":"a","timestamp":1700000000}"#), TimestampOutOfRange),
        (format!(r#"{{"type":"a","timestamp":{}}}"#, NOW + 2 * DAY), TimestampOutOfRange),
        (format!(r#"{{"type":"a","data":{}1{}}}"#, r#"{"a":"#.repeat(65), "}".repeat(65)), InvalidData),
        (String::from(r#"{"type":5.5}"#), InvalidField),
        (String::from("nonsense"), InvalidJson),
    ] {
        assert_eq!(f.code(&text), code, "{text}");
    }
}

#[test]
fn a_wrong_clock_is_corrected() {
    let f = fixture();
    // The client's clock is a day ahead; the event happened an hour before it was sent.
    let (sent, happened) = (NOW + DAY, NOW + DAY - HOUR);
    let text = format!(r#"{{"type":"a","timestamp":{happened},"sent_at":{sent}}}"#);
    assert_eq!(f.event(&text, |event| event.timestamp), NOW - HOUR);
    let text = format!(r#"{{"type":"a","timestamp":"{}"}}"#, crate::clock::rfc3339(NOW - HOUR));
    assert_eq!(f.event(&text, |event| event.timestamp), NOW - HOUR);
    let text = format!(r#"{{"type":"a","timestamp":{}}}"#, NOW + HOUR);
    assert_eq!(f.event(&text, |event| event.timestamp), NOW, "a little ahead counts as now");
}

#[test]
fn the_dedup_key_knows_site_and_id_only() {
    let f = fixture();
    let key = |text: &str| f.batch(text, "Firefox").entries[0].key;
    let first = key(r#"{"type":"a","id":"7"}"#);
    assert_eq!(key(&format!(r#"{{"type":"b","id":"7","timestamp":{},"sent_at":{NOW}}}"#, NOW - 5)), first);
    assert_ne!(key(r#"{"type":"a","id":"7","site":"other"}"#), first);
    assert_eq!(key(r#"{"type":"a"}"#), None);
}

#[test]
fn privacy_signals_follow_the_site() {
    let mut f = fixture();
    f.signal = true;
    let own = |name: &str, privacy| (name.to_owned(), SiteRules { privacy, ..SiteRules::default() });
    f.rules.sites = Sites::new(
        [own("keen", Some(PrivacyPolicy::Ignore)), own("strict", Some(PrivacyPolicy::Drop)), own("plain", None)].into(),
    );
    let named = |site: &str| format!(r#"{{"type":"a","site":"{site}","user_id":"u","session_id":"s"}}"#);
    f.event(&named("keen"), |event| assert_eq!(event.user_id, Some("u")));
    for as_all in ["other", "plain"] {
        f.event(&named(as_all), |event| assert_eq!((event.user_id, event.session_id), (None, None)));
    }
    assert_eq!(f.code(&named("strict")), RejectCode::PrivacySignal);
    f.signal = false;
    f.event(&named("strict"), |event| assert_eq!(event.user_id, Some("u")));
}

fn guarded() -> Sites {
    let origins = vec![OriginPattern::parse("https://shop.example").unwrap()];
    let keyed = Access { write_keys: vec![WriteKey::parse("key-of-shop").unwrap()], origins: vec![] };
    let own = |name: &str, access| (name.to_owned(), SiteRules { access, ..SiteRules::default() });
    Sites::new(
        [own("keyed", keyed), own("paged", Access { write_keys: vec![], origins }), own("open", Access::default())]
            .into(),
    )
}

#[test]
fn each_event_is_judged_by_its_own_site() {
    use RejectCode::*;
    let mut f = fixture();
    f.rules.sites = guarded();
    assert!(f.rules.sites.guarded() && !Sites::default().guarded());
    let text = r#"[{"type":"a","site":"open"},{"type":"a","site":"keyed"},{"type":"a","site":"paged"},{"type":"a"},
        {"type":"a","site":"keyed","timestamp":"bad"},{"type":"a b","site":"open"},{"type":"a","site":"a b"}]"#;
    let refused = |batch: &Batch| batch.rejected.iter().map(|r| (r.index, r.code)).collect::<Vec<_>>();
    let batch = f.batch(text, "Firefox");
    // Who may not send hears nothing else.
    let (key, page) = (WriteKeyRequired, OriginNotAllowed);
    assert_eq!(refused(&batch), [(1, key), (2, page), (4, key), (5, InvalidType), (6, InvalidSite)]);
    assert_eq!(batch.entries.len(), 2);
    let outcome = |site: &str, code, count| Outcome { site: site.into(), code, count };
    let books = [
        outcome("keyed", key, 2),
        outcome("paged", page, 1),
        outcome("open", InvalidType, 1),
        outcome("(unknown)", InvalidSite, 1),
    ];
    assert_eq!(batch.outcomes, books);

    f.claim.key = Shown::This(WriteKey::parse("key-of-shop").unwrap());
    f.claim.origin = Shown::This(Origin::parse("https://shop.example").unwrap());
    assert_eq!(refused(&f.batch(text, "Firefox")), [(4, InvalidTimestamp), (5, InvalidType), (6, InvalidSite)]);
    f.claim.key = Shown::This(WriteKey::parse("key-of-others").unwrap());
    assert_eq!(f.code(r#"{"type":"a","site":"keyed"}"#), InvalidWriteKey);

    // An import is the operator's.
    f.claim = Claim::default();
    f.import = true;
    assert_eq!(refused(&f.batch(text, "Firefox")), [(4, InvalidTimestamp), (5, InvalidType), (6, InvalidSite)]);
}

#[test]
fn made_up_sites_are_taken_or_not() {
    let mut f = fixture();
    f.rules.sites = guarded();
    f.event(r#"{"type":"a","site":"made-up"}"#, |event| assert_eq!(event.site, "made-up"));
    f.rules.unknown_sites = UnknownSites::Reject;
    let batch =
        f.batch(r#"[{"type":"a","site":"x1"},{"type":"a","site":"x2"},{"type":"a"},{"type":"a","site":"open"}]"#, "F");
    assert_eq!(batch.entries.len(), 1);
    let books = Outcome { site: String::from("(unknown)"), code: RejectCode::UnknownSite, count: 3 };
    assert_eq!(batch.outcomes, [books], "made-up names fill no books");
    f.import = true;
    f.event(r#"{"type":"a","site":"made-up"}"#, |event| assert_eq!(event.site, "made-up"));
}

#[test]
fn bots_are_marked_and_have_no_visit() {
    let f = fixture();
    let batch = f.batch(r#"{"url":"/a"}"#, "Mozilla/5.0 (compatible; Googlebot/2.1)");
    let Ok((Entry::Event(event), _)) = codec::take(&batch.bytes) else { panic!() };
    assert_eq!(event.bot, Some(BotReason::Crawler));
    assert!(batch.entries[0].visit.is_none());
    assert!(f.batch(r#"{"url":"/a"}"#, "curl/8").entries[0].visit.is_some());
}

#[test]
fn an_import_names_address_and_agent() {
    let mut f = fixture();
    f.import = true;
    let line = |address: &str, agent: &str| {
        f.event(&format!(r#"{{"url":"/a","address":"{address}","user_agent":"{agent}"}}"#), |e| (e.visitor, e.bot))
    };
    let (first, bot) = line("192.0.2.1", "Firefox");
    assert_eq!(bot, None);
    assert_eq!(line("192.0.2.1", "Firefox").0, first);
    assert_ne!(line("192.0.2.2", "Firefox").0, first);
    assert_eq!(line("192.0.2.1", "curl/8").1, Some(BotReason::HttpLibrary));
    f.event(r#"{"url":"/a","address":"192.0.2.1","user_agent":"curl/8","classify":false}"#, |event| {
        assert_eq!(event.bot, None);
    });
}

#[test]
fn a_batch_refuses_one_by_one() {
    let f = fixture();
    let batch = f.batch(r#"[{"url":"/a"},{"site":"s"},{"url":"/b"},{"site":"s"}]"#, "Firefox");
    assert_eq!(batch.entries.iter().map(|e| e.index).collect::<Vec<_>>(), [0, 2]);
    assert_eq!(batch.rejected.iter().map(|r| r.index).collect::<Vec<_>>(), [1, 3]);
    let outcome = super::super::Outcome { site: "s".into(), code: RejectCode::MissingType, count: 2 };
    assert_eq!(batch.outcomes, [outcome]);
}

#[test]
fn an_import_knows_what_its_own_journal_named() {
    let mut f = fixture();
    f.import = true;
    let sender =
        Sender { address: "", agent: "", privacy_signal: false, received: NOW, import: true, claim: Claim::NONE };
    let intake = Intake::new(&f.rules, &f.salts, sender).knows("j1", 10);
    let mut batch = Batch::default();
    let text = r#"[{"type":"a","id":"j1-9"},{"type":"a","id":"j1-10"},{"type":"a","id":"j2-9"}]"#;
    body(text.as_bytes(), Framing::Guess, |index, raw| intake.take(index, raw, &mut batch));
    assert_eq!((batch.known, batch.entries.len(), batch.refused), (1, 2, 0));
    assert_eq!(batch.outcomes[0].code, RejectCode::Duplicate);
}

#[test]
fn a_small_body_of_many_bad_events_stays_small() {
    let f = fixture();
    let text = format!("[{}0]", "0,".repeat(20_000));
    let batch = f.batch(&text, "Firefox");
    assert_eq!((batch.refused, batch.rejected.len()), (20_001, super::super::MAX_LISTED));
    assert_eq!(batch.outcomes[0].count, 20_001);
}

#[test]
fn a_restored_export_keeps_its_visitors_sessions_and_bots() {
    let mut f = fixture();
    let text = r#"{"url":"/a","visitor":"00000000000000ff","session":"0000000000000abc","bot":"crawler"}"#;
    f.event(text, |event| assert!(event.visitor != 0xff && event.bot.is_none(), "not from strangers"));
    f.import = true;
    f.event(text, |event| {
        assert_eq!((event.visitor, event.session, event.bot), (0xff, 0xabc, Some(BotReason::Crawler)));
    });
}
