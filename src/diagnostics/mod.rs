//! How the server is doing: health, the audit of its books, metrics.

pub mod audit;
pub mod catalog;
pub mod gateway;
pub mod health;
mod identity;
pub mod metrics;
pub mod stream;
