//! A request's body: decoded in both framings, checked, enriched and encoded, as a beacon and as an import. Whatever the
//! body is, every event is either taken or refused, and what was taken reads back from the journal's form and can be
//! exported.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tidegate::event::access::Claim;
use tidegate::event::codec::{self, Entry};
use tidegate::event::decode::{self, Framing};
use tidegate::event::intake::{Intake, Rules, Sender};
use tidegate::event::record::Record;
use tidegate::event::visitor::Salts;
use tidegate::event::{Batch, page};

const NOW: i64 = 1_700_000_000_000;

static SALTS: LazyLock<(Salts, tempfile::TempDir)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder");
    (Salts::open(folder.path(), NOW).expect("salts"), folder)
});
static RULES: LazyLock<Rules> = LazyLock::new(Rules::default);

fuzz_target!(|body: &[u8]| {
    for framing in [Framing::Guess, Framing::Lines] {
        for import in [false, true] {
            let batch = take(body, framing, import);
            check(&batch);
        }
    }
});

fn take(body: &[u8], framing: Framing, import: bool) -> Batch {
    let sender = Sender {
        address: "192.0.2.1",
        agent: "Mozilla/5.0",
        privacy_signal: false,
        received: NOW,
        import,
        claim: Claim::NONE,
    };
    let intake = Intake::new(&RULES, &SALTS.0, sender);
    let mut batch = Batch::default();
    let mut seen = 0;
    decode::body(body, framing, |index, raw| {
        assert_eq!(index, seen, "events come in order");
        seen += 1;
        intake.take(index, raw, &mut batch);
    });
    assert_eq!(batch.entries.len() + batch.rejected.len(), seen as usize, "taken or refused");
    assert_eq!(batch.outcomes.iter().map(|o| o.count).sum::<u64>(), batch.rejected.len() as u64);
    batch
}

fn check(batch: &Batch) {
    let mut rest = &batch.bytes[..];
    for (offset, meta) in batch.entries.iter().enumerate() {
        assert_eq!(batch.bytes.len() - rest.len(), meta.start as usize);
        let Ok((Entry::Event(event), after)) = codec::take(rest) else { panic!("what was put reads back") };
        assert_eq!(codec::site_of(rest), event.site);
        if meta.visit.is_some() {
            let mut entry = rest[..rest.len() - after.len()].to_vec();
            codec::set_session(&mut entry, 99);
            let Ok((Entry::Event(visited), _)) = codec::take(&entry) else { panic!("a session fits in") };
            assert_eq!(visited.session, 99);
        }
        let _ = event.url.map(page::page_of);
        let _ = event.referrer.and_then(|referrer| page::referrer_of(referrer, event.url));
        let record = Record::new(&event, offset as u64, "j1");
        let mut line = Vec::new();
        record.put_ndjson(&mut line);
        assert!(serde_json::from_slice::<serde_json::Value>(&line).is_ok(), "an export is JSON");
        assert_eq!(line.iter().position(|b| *b == b'\n'), Some(line.len() - 1), "on one line");
        record.put_csv(&mut line);
        rest = after;
    }
    assert!(rest.is_empty());
}
