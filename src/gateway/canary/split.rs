//! Who goes to the canary: by what the client asks for, else by a hash that is compared with the weight.
//!
//! A key has one of 10,000 slots, and is in when its slot is below the weight. So who is in stays in while the weight grows,
//! instances agree without a word, and nothing is remembered of anybody.

use std::net::IpAddr;

use hyper::HeaderMap;
use hyper::header::{self, HeaderValue};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::options::{CanaryKey, CanaryOptions, Decider, Weight};
use crate::gateway::limit::Caller;

/// The cookie of [`CanaryKey::Cookie`]; all routes read the same, and each hashes it differently.
const ID_COOKIE: &str = "tidegate_canary";
/// Ids are 32 hexadecimal digits; what is much longer is not ours.
const LONGEST_ID: usize = 64;
/// A value that is always against the canary.
const NEVER: &[u8] = b"never";

/// Where a request goes, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// To the canary.
    pub canary: bool,
    /// Because the client asked for it; what comes of that says nothing of chance, and is not judged.
    pub forced: bool,
    /// An id that the client is to have in its cookie from now on.
    pub new_id: Option<String>,
}

/// Chooses for one route.
#[derive(Debug)]
pub(super) struct Split {
    by: CanaryKey,
    header: Option<Decider>,
    cookie: Option<Decider>,
    salt: u64,
}

impl Split {
    /// The salt comes from names alone, so that it is the same in all instances and after a restart; with another canary other
    /// people are the first.
    pub fn new(route: &str, options: &CanaryOptions) -> Self {
        let salt = xxh3_64_with_seed(options.upstream.as_bytes(), xxh3_64_with_seed(route.as_bytes(), 0));
        let (header, cookie) = (options.header.clone(), options.cookie.clone());
        Self { by: options.by, header, cookie, salt }
    }

    /// With a weight in slots.
    pub fn choose(&self, weight: u32, headers: &HeaderMap, caller: &Caller<'_>) -> Choice {
        if let Some(canary) = self.forced(headers) {
            return Choice { canary, forced: true, new_id: None };
        }
        // Nobody has to be told apart.
        if weight == 0 || weight >= Weight::ALL.slots() {
            return Choice { canary: weight > 0, ..Choice::default() };
        }
        let mut new_id = None;
        let slot = match self.by {
            CanaryKey::Cookie => match cookie(headers, ID_COOKIE).filter(|id| (1..=LONGEST_ID).contains(&id.len())) {
                Some(id) => self.slot(id),
                None => {
                    let id = Uuid::new_v4().simple().to_string();
                    let slot = self.slot(id.as_bytes());
                    new_id = Some(id);
                    slot
                }
            },
            CanaryKey::Address => self.of_address(caller.address),
            CanaryKey::ApiKey => self.of_name(caller.api_key, caller.address),
            CanaryKey::User => self.of_name(caller.user, caller.address),
        };
        Choice { canary: slot < weight, forced: false, new_id }
    }

    /// What the client asks for: the header before the cookie.
    fn forced(&self, headers: &HeaderMap) -> Option<bool> {
        let by_header = self.header.as_ref().and_then(|header| {
            let sent = headers.get(header.name.as_str())?;
            header.decides(sent.as_bytes())
        });
        by_header.or_else(|| {
            let decider = self.cookie.as_ref()?;
            decider.decides(cookie(headers, &decider.name)?)
        })
    }

    /// From 0 up to 10,000, without that.
    pub fn slot(&self, key: &[u8]) -> u32 {
        // The high half of a product is the hash scaled to the range (D. Lemire, "Fast random integer generation in an
        // interval", 2019).
        let hash = xxh3_64_with_seed(key, self.salt);
        ((u128::from(hash) * u128::from(Weight::ALL.slots())) >> 64) as u32
    }

    fn of_name(&self, name: Option<&str>, address: IpAddr) -> u32 {
        name.map_or_else(|| self.of_address(address), |name| self.slot(name.as_bytes()))
    }

    /// As limits see addresses: what one customer has.
    fn of_address(&self, address: IpAddr) -> u32 {
        match address.to_canonical() {
            IpAddr::V4(v4) => self.slot(&v4.octets()),
            IpAddr::V6(v6) => self.slot(v6.octets().first_chunk::<8>().map_or(&[], |half| half)),
        }
    }
}

impl Decider {
    /// What a value says, if anything.
    fn decides(&self, sent: &[u8]) -> Option<bool> {
        match &self.value {
            _ if sent == NEVER => Some(false),
            Some(value) => (sent == value.as_bytes()).then_some(true),
            None => Some(true),
        }
    }
}

/// The value of a cookie. HTTP/2 may send them in several lines.
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let lines = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes);
    lines.flat_map(|line| line.split(|byte| *byte == b';')).find_map(|pair| {
        let (sent, value) = pair.trim_ascii().split_at_checked(name.len())?;
        value.strip_prefix(b"=").filter(|_| sent == name.as_bytes())
    })
}

/// The header that gives a client its id: for 30 days, which a release does not outlast.
pub(super) fn set_cookie(id: &str, secure: bool) -> Option<HeaderValue> {
    let secure = if secure { "; Secure" } else { "" };
    let text = format!("{ID_COOKIE}={id}; Path=/; Max-Age=2592000; HttpOnly; SameSite=Lax{secure}");
    HeaderValue::try_from(text).ok()
}
