//! Lines of an access log, with what the import derives from them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::event::{agent, combined, page};

fuzz_target!(|text: &str| {
    for text in text.lines() {
        let Ok(line) = combined::parse(text) else { continue };
        let _ = combined::kind(&line);
        let _ = page::page_of(line.target);
        let _ = line.referrer.as_deref().and_then(|referrer| page::referrer_of(referrer, Some(line.target)));
        let _ = agent::classify(&line.agent);
    }
});
