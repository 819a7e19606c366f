//! What the control room writes: files that are whole or not at all, and files that grow by whole lines. They survive a kill at
//! any moment.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

#[cfg(test)]
pub(super) use crate::durable::death;
pub(super) use crate::durable::{Fresh, write};
use crate::durable::{may_die, put};

/// Removes a file, if it is there.
///
/// # Errors
/// When it cannot be removed.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    may_die();
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Opens a file of lines at its end. Half a line, as a crash leaves it, is ended, so that it does not spoil the next.
///
/// # Errors
/// When it cannot be opened.
pub(super) fn lines(path: &Path) -> io::Result<File> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
    if file.seek(SeekFrom::End(0))? > 0 {
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
        }
    }
    Ok(file)
}

/// Writes a line with its end, and waits for the disk.
///
/// # Errors
/// When the disk does not take it.
pub(super) fn add_line(file: &mut File, line: &[u8]) -> io::Result<()> {
    put(file, line)?;
    file.sync_data()
}
