//! The settings that a request goes by: those of the moment at which it was first asked for them, for all of its life. A change
//! in the middle of it is for the next one.

use std::future::{Ready, ready};
use std::ops::Deref;
use std::sync::Arc;

use actix_web::dev::Payload;
use actix_web::{FromRequest, HttpMessage, HttpRequest, web};

use super::State;
use super::error::ApiError;
use crate::config::live::Live;

/// The settings of one request. Handlers take them as an argument.
#[derive(Clone, Debug)]
pub struct Settings(Arc<Live>);

impl Settings {
    /// Those of this request; `None` only in an application without a state.
    pub fn of(req: &HttpRequest) -> Option<Self> {
        if let Some(known) = req.extensions().get::<Self>() {
            return Some(known.clone());
        }
        let settings = Self(req.app_data::<web::Data<State>>()?.live.load_full());
        req.extensions_mut().insert(settings.clone());
        Some(settings)
    }
}

impl Deref for Settings {
    type Target = Live;

    fn deref(&self) -> &Live {
        &self.0
    }
}

impl FromRequest for Settings {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(req: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(Self::of(req).ok_or_else(|| ApiError::internal("the application has no state")))
    }
}
