//! The admin API: by which a running Tidegate is looked into and steered. It has a listener of its own, on this machine unless a
//! key is set, and every change is in the log of changes before it is made.

pub mod config;
pub mod gateway;
#[cfg(test)]
mod gateway_tests;

use actix_web::web;

use super::error::ApiError;
use crate::control::ControlError;

/// Puts its routes into an app.
pub fn configure(app: &mut web::ServiceConfig) {
    app.service(config::show)
        .service(config::replace)
        .service(config::history)
        .service(config::rollback)
        .service(config::reload)
        .service(gateway::all_routes)
        .service(gateway::all_upstreams)
        .service(gateway::force_breaker)
        .service(gateway::all_limits)
        .service(gateway::bucket)
        .service(gateway::reset_bucket)
        .service(gateway::steer_canary);
}

impl From<ControlError> for ApiError {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::Invalid(mistakes) => ApiError::InvalidConfig(mistakes.to_string()),
            ControlError::Conflict(_) | ControlError::FileChanged => ApiError::PreconditionFailed(error.to_string()),
            ControlError::NoVersion(_) | ControlError::NothingBefore => ApiError::NotFound(
                "there is no such version in the history; GET /api/v1/admin/config/history lists them",
            ),
            ControlError::NoFile => ApiError::BadRequest(error.to_string()),
            ControlError::Start(_) | ControlError::Disk { .. } => ApiError::Unavailable(error.to_string()),
        }
    }
}
