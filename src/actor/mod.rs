//! What every actor shares: admission and supervision.

pub mod admission;
pub mod supervisor;
