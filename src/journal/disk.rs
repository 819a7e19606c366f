//! Segments on disk: what there is, what may go, and whether there is room.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::block::{self, SEGMENT_HEADER, SegmentHeader};
use crate::clock::UnixMillis;

/// A segment that is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Sequence number of its first entry.
    pub base: u64,
    /// When it was begun.
    pub created: UnixMillis,
    /// Its bytes.
    pub size: u64,
}

/// Creates a segment, header written.
pub fn create(folder: &Path, header: SegmentHeader) -> io::Result<(File, SegmentInfo)> {
    let path = block::path_of(folder, header.base);
    let made: io::Result<File> = (|| {
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        file.write_all(&header.encode())?;
        // What is synced into it is safe only if its name is.
        File::open(folder)?.sync_all()?;
        Ok(file)
    })();
    match made {
        Ok(file) => Ok((file, SegmentInfo { base: header.base, created: header.created, size: SEGMENT_HEADER })),
        Err(error) => {
            // A header that did not fit must not be found at the next start.
            if error.kind() != io::ErrorKind::AlreadyExists {
                let _ = fs::remove_file(&path);
            }
            Err(error)
        }
    }
}

/// Which segments, from the oldest, may be deleted.
///
/// A segment may go when everybody is done with it (`needed` is the least sequence number anyone needs) and it is older
/// than the retention or the journal is larger than it may be. `segments` ends with the one being written.
pub fn deletable(
    segments: &[SegmentInfo],
    needed: u64,
    now: UnixMillis,
    retention: UnixMillis,
    max_bytes: u64,
) -> usize {
    let mut total: u64 = segments.iter().map(|segment| segment.size).sum();
    let mut count = 0;
    for pair in segments.windows(2) {
        let (segment, next) = (pair[0], pair[1]);
        // All its entries were written before the next segment began.
        let old = next.created + retention < now;
        if next.base > needed || !(old || total > max_bytes) {
            break;
        }
        total -= segment.size;
        count += 1;
    }
    count
}

/// Bytes that can still be written to the disk of `folder`.
pub fn free_bytes(folder: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(folder)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Deletes a segment.
pub fn remove(folder: &Path, base: u64) -> io::Result<PathBuf> {
    let path = block::path_of(folder, base);
    fs::remove_file(&path)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_old_or_surplus_segments_that_nobody_needs_go() {
        let segment = |base, created| SegmentInfo { base, created, size: 100 };
        let segments = [segment(0, 0), segment(10, 1000), segment(20, 2000), segment(30, 3000)];
        let count = |needed, now, max| deletable(&segments, needed, now, 500, max);
        assert_eq!(count(100, 1400, 1000), 0);
        assert_eq!(count(100, 1600, 1000), 1);
        assert_eq!(count(100, 9000, 1000), 3, "never the one being written");
        assert_eq!(count(15, 9000, 1000), 1, "the reader is in the second");
        assert_eq!(count(100, 0, 250), 2, "too large");
        assert_eq!(count(5, 0, 0), 0, "needed, however large");
    }
}
