//! Raw events out of the journal, as lines or CSV.

use super::{JournalError, Reader};
use crate::clock::UnixMillis;
use crate::event::codec::Entry;
use crate::event::record::{COLUMNS, Record};

/// Bytes of entries that become one piece of the export.
const PIECE: usize = 256 << 10;

/// How exported events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    Ndjson,
    /// A head line, then one line an event.
    Csv,
}

/// Which events are exported.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Of this site.
    pub site: Option<String>,
    /// From this time on.
    pub from: Option<UnixMillis>,
    /// Before this time.
    pub to: Option<UnixMillis>,
}

/// Writes all events that are in the journal now, in pieces, until `send` says no; returns how many. Blocks on the disk.
/// `journal` names events that came without an id.
pub fn write_events(
    mut reader: Reader,
    journal: &str,
    format: Format,
    filter: &Filter,
    mut send: impl FnMut(Vec<u8>) -> bool,
) -> Result<u64, JournalError> {
    let mut count = 0;
    let mut out = Vec::new();
    if format == Format::Csv {
        out.extend_from_slice(COLUMNS.join(",").as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    while let Some(chunk) = reader.read(PIECE)? {
        for (offset, entry) in chunk.entries() {
            let Ok(Entry::Event(event)) = entry else { continue };
            let wanted = filter.site.as_deref().is_none_or(|site| site == event.site)
                && filter.from.is_none_or(|from| event.timestamp >= from)
                && filter.to.is_none_or(|to| event.timestamp < to);
            if wanted {
                let record = Record::new(&event, offset, journal);
                match format {
                    Format::Ndjson => record.put_ndjson(&mut out),
                    Format::Csv => record.put_csv(&mut out),
                }
                count += 1;
            }
        }
        reader.recycle(chunk);
        if !out.is_empty() && !send(std::mem::take(&mut out)) {
            return Ok(count);
        }
    }
    if !out.is_empty() {
        send(out);
    }
    Ok(count)
}
