//! Files that survive a kill at any moment: each is written whole or not at all, or grows by whole lines.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Where the process may die; in tests it does.
macro_rules! may_die {
    () => {
        #[cfg(test)]
        death::may_come();
    };
}

/// A file that is written, but not yet in its place.
#[derive(Debug)]
pub(super) struct Fresh {
    path: PathBuf,
    fresh: PathBuf,
}

impl Fresh {
    /// Writes it beside its place, and waits for the disk.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<Self> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let this = Self { path: path.to_owned(), fresh: folder_of(path).join(name) };
        may_die!();
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&this.fresh)?;
        put(&mut file, bytes)?;
        file.sync_all()?;
        Ok(this)
    }

    /// Puts it in its place: whoever looks, and whoever starts after a crash, finds the old one or this one.
    ///
    /// # Errors
    /// When the disk does not take it; then the old one is there.
    pub fn place(self) -> io::Result<()> {
        may_die!();
        fs::rename(&self.fresh, &self.path)?;
        may_die!();
        // The name is safe only when the folder is.
        File::open(folder_of(&self.path))?.sync_all()?;
        may_die!();
        Ok(())
    }

    /// Leaves it.
    pub fn discard(self) {
        let _ = fs::remove_file(&self.fresh);
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes a file whole or not at all.
///
/// # Errors
/// When the disk does not take it; then the old one is there.
pub(super) fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    Fresh::write(path, bytes, mode)?.place()
}

/// Removes a file, if it is there.
///
/// # Errors
/// When it cannot be removed.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    may_die!();
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

fn put(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    may_die!();
    #[cfg(test)]
    if death::is_now() {
        file.write_all(&bytes[..bytes.len() / 2])?;
        death::die();
    }
    file.write_all(bytes)?;
    may_die!();
    Ok(())
}

/// A process that dies at the n-th moment at which it can: by a panic, after which nothing of it may touch the disk.
#[cfg(test)]
pub(super) mod death {
    use std::cell::Cell;

    thread_local! {
        static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
    }

    /// What a dying process panics with.
    pub struct Death;

    /// It dies at the moment after so many more; never, without a number.
    pub fn after(moments: Option<u32>) {
        LEFT.set(moments);
    }

    /// Whether this moment is the one.
    pub fn is_now() -> bool {
        let left = LEFT.get();
        LEFT.set(left.and_then(|left| left.checked_sub(1)));
        left == Some(0)
    }

    pub fn die() -> ! {
        std::panic::resume_unwind(Box::new(Death))
    }

    pub fn may_come() {
        if is_now() {
            die();
        }
    }
}
