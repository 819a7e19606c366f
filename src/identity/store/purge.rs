//! What has ended is forgotten: a chunk at a time, so that none takes long, holds much, or has to begin anew when it fails.

use crate::clock::UnixMillis;
use crate::database::{Session, Value, Work, list};
use crate::identity::error::IdentityError;

/// Rows of a chunk.
pub(in crate::identity) const CHUNK: u64 = 500;

/// Forgets a chunk of tokens, families and signing keys that have ended; whether there may be more.
pub(in crate::identity) struct Purge;

impl Work for Purge {
    type Done = bool;
    type Error = IdentityError;

    fn writes(&self) -> bool {
        true
    }

    async fn run<S: Session>(&self, s: &mut S, now: UnixMillis) -> Result<bool, IdentityError> {
        // A token ends with its family or before: a family that is deleted has none left that would go with it.
        for (table, key) in [("refresh_tokens", "hash"), ("token_families", "id"), ("signing_keys", "kid")] {
            let sql = format!("SELECT {key} FROM {table} WHERE expires_at < ? ORDER BY expires_at LIMIT ?");
            let mut ended = Vec::new();
            for mut row in s.rows(&sql, vec![Value::Int(now), Value::whole(CHUNK)]).await? {
                ended.push(row.text(0)?);
            }
            if ended.is_empty() {
                continue;
            }
            // What another instance has deleted meanwhile is not there any more, which is as well.
            let (marks, values) = list(&ended);
            s.rows(&format!("DELETE FROM {table} WHERE {key} IN ({marks})"), values).await?;
            if u64::try_from(ended.len()).is_ok_and(|n| n == CHUNK) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
