//! Files that survive a kill at any moment: each is written beside its place, made safe, and then put in its place, so that
//! whoever looks, and whoever starts after a crash, finds the old one or the new one as a whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Rights of a file that has no secrets; the process' mask takes some away.
const OPEN: u32 = 0o666;

/// A file that is written, but not yet in its place.
#[derive(Debug)]
pub(crate) struct Fresh {
    path: PathBuf,
    fresh: PathBuf,
}

impl Fresh {
    /// Writes it beside its place, with these rights, and waits for the disk.
    ///
    /// # Errors
    /// When the disk does not take it; then nothing of it is left.
    pub fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<Self> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let this = Self { path: path.to_owned(), fresh: folder_of(path).join(name) };
        may_die();
        match this.fill(bytes, mode) {
            Ok(()) => Ok(this),
            Err(error) => {
                // Half a file only takes room of a disk that may be full.
                this.discard();
                Err(error)
            }
        }
    }

    fn fill(&self, bytes: &[u8], mode: u32) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&self.fresh)?;
        put(&mut file, bytes)?;
        file.sync_all()
    }

    /// Puts it in its place.
    ///
    /// # Errors
    /// When the disk does not take it. Then the old one is there; or this one, of which it is only not sure that it is there
    /// after a crash too.
    pub fn place(self) -> io::Result<()> {
        may_die();
        if let Err(error) = fs::rename(&self.fresh, &self.path) {
            self.discard();
            return Err(error);
        }
        may_die();
        // The name is safe only when the folder is.
        sync(folder_of(&self.path))?;
        may_die();
        Ok(())
    }

    /// Leaves it.
    pub fn discard(self) {
        let _ = fs::remove_file(&self.fresh);
    }
}

/// The folder that a file is in: a mere name is one of the present folder.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Waits until the disk has a folder's names.
pub(crate) fn sync(folder: &Path) -> io::Result<()> {
    #[cfg(test)]
    if death::refuses() {
        return Err(io::Error::other("the disk does not take the folder"));
    }
    File::open(folder)?.sync_all()
}

/// Writes a file whole or not at all, with these rights.
///
/// # Errors
/// As [`Fresh::write`] and [`Fresh::place`].
pub(crate) fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    Fresh::write(path, bytes, mode)?.place()
}

/// The same for a file without secrets, whose folder may not be there yet.
///
/// # Errors
/// Likewise, and when the folder cannot be made.
pub(crate) fn write_with_folder(path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::create_dir_all(folder_of(path))?;
    write(path, bytes, OPEN)
}

/// Writes to a file, without waiting for the disk.
///
/// # Errors
/// When it cannot be written; a part may be.
pub(crate) fn put(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    may_die();
    #[cfg(test)]
    if death::is_now() {
        file.write_all(&bytes[..bytes.len() / 2])?;
        death::die();
    }
    file.write_all(bytes)?;
    may_die();
    Ok(())
}

/// Where the process may die; in tests it does.
pub(crate) fn may_die() {
    #[cfg(test)]
    death::may_come();
}

/// A process that dies at the n-th moment at which it can: by a panic, after which nothing of it may touch the disk. And a disk
/// that does not take what folders there are.
#[cfg(test)]
pub(crate) mod death {
    use std::cell::Cell;

    thread_local! {
        static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
        static REFUSES: Cell<bool> = const { Cell::new(false) };
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

    /// Whether the disk takes no names of files from now on.
    pub fn refuse(refuses: bool) {
        REFUSES.set(refuses);
    }

    pub fn refuses() -> bool {
        REFUSES.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made").join("state.json");
        for text in ["a longer one", "one"] {
            write_with_folder(&path, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        let count = || fs::read_dir(folder_of(&path)).unwrap().count();
        assert_eq!(count(), 1);
        // Where it cannot be put in its place.
        let taken = folder_of(&path).join("taken");
        fs::create_dir_all(taken.join("by a folder")).unwrap();
        assert!(write(&taken, b"text", 0o600).is_err());
        assert_eq!(count(), 2);
    }

    #[test]
    fn a_mere_name_is_one_of_the_present_folder() {
        for (path, folder) in [("canaries.json", "."), ("a/b", "a"), ("/a", "/")] {
            assert_eq!(folder_of(Path::new(path)), Path::new(folder), "{path}");
        }
        sync(folder_of(Path::new("canaries.json"))).unwrap();
    }
}
