//! Bytes that claim to be journal entries. They lie behind a checksum, so this is about a broken or a newer writer: every
//! entry is read or refused, and what was read is the same when it is written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::event::codec::{self, Entry};

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    while let Ok((entry, after)) = codec::take(rest) {
        let len = codec::entry_len(rest).expect("it was taken");
        assert_eq!(len, rest.len() - after.len());
        if let Entry::Event(event) = entry {
            assert_eq!(codec::site_of(rest), event.site);
            // Times that lie centuries apart are read, but no server writes them.
            if event.timestamp.abs_diff(event.received) < 1 << 60 {
                let mut again = Vec::new();
                codec::put_event(&mut again, &event).expect("what is usual is left out, so it cannot have grown");
                assert_eq!(codec::take(&again), Ok((entry, &[][..])));
            }
        }
        rest = after;
    }
});
