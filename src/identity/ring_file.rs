//! The file of the keys that sign our tokens, and how the next one is taken up.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use super::error::IdentityError;
use super::ring::Ring;
use super::service::{Inner, Signing};
use crate::clock::UnixMillis;
use crate::durable;

impl Inner {
    /// Takes the next key up if it is time to: written first, then published, then used. One at a time.
    pub async fn rotate(&self) -> Result<bool, IdentityError> {
        let now = self.clock.now();
        let held = self.signing.load_full();
        let Some(after) = held.ring.step(now, self.options.key_rotation, self.options.access_lifetime)? else {
            return Ok(false);
        };
        let changed = after.active.kid != held.ring.active.kid;
        let folder = self.options.keys.clone();
        // A disk may take its time, and others run on this thread.
        let written = tokio::task::spawn_blocking(move || write_ring(&folder, &after).map(|()| after));
        let after = written.await.map_err(|_| IdentityError::Internal("the signing keys could not be written"))??;
        self.signing.store(Arc::new(Signing::new(after)));
        Ok(changed)
    }
}

fn keys_error(error: std::io::Error) -> IdentityError {
    IdentityError::Keys(error.to_string())
}

/// Reads the keys, or makes the first.
pub(super) fn open_ring(folder: &Path, now: UnixMillis) -> Result<Ring, IdentityError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(keys_error)?;
    match fs::read(folder.join("keys.json")) {
        Ok(text) => Ring::read(&text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let ring = Ring::new(now)?;
            write_ring(folder, &ring)?;
            Ok(ring)
        }
        Err(error) => Err(keys_error(error)),
    }
}

/// Whole or not at all, and for nobody else to read.
fn write_ring(folder: &Path, ring: &Ring) -> Result<(), IdentityError> {
    durable::write(&folder.join("keys.json"), &ring.write(), 0o600).map_err(keys_error)
}
