//! Who a bucket is for: the parts of a request that a limit tells apart, hashed.
//!
//! Within the process a key is 64 bits of SipHash under a key of this process, so that nobody outside can aim at somebody's
//! bucket or shard. Each part is written with its length before it: no two combinations of parts are the same bytes. In Redis
//! it is 128 bits of MD5 of the same bytes, which must be the same in all instances; to meet somebody else's key there takes a
//! second preimage, which nobody has for MD5 either.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::IpAddr;

use md5::{Digest, Md5};
use siphasher::sip::SipHasher13;

use crate::gateway::options::LimitKey;

/// What a request is known by.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// The client's address, as told by trusted proxies.
    pub address: IpAddr,
    /// The API key's name, if a good one was sent.
    pub api_key: Option<&'a str>,
    /// The user, if known.
    pub user: Option<&'a str>,
    /// The route's name.
    pub route: &'a str,
}

/// The secret of this process.
#[derive(Clone, Copy)]
pub(super) struct Seed(u64, u64);

impl Seed {
    pub fn random() -> Self {
        // Each state has keys of its own from the system's randomness.
        Self(RandomState::new().hash_one(0), RandomState::new().hash_one(1))
    }
}

/// An address as limits see it: IPv4 also where it comes mapped, IPv6 by its /64, which is what one customer gets.
fn network(address: IpAddr, take: &mut impl FnMut(&[u8])) {
    match address.to_canonical() {
        IpAddr::V4(v4) => take(&v4.octets()),
        IpAddr::V6(v6) => take(v6.octets().first_chunk::<8>().map_or(&[], |half| half)),
    }
}

/// Hands over the parts in turn; whether all of them are there.
fn parts(by: &[LimitKey], caller: &Caller<'_>, mut take: impl FnMut(&[u8])) -> bool {
    for part in by {
        let text = match part {
            LimitKey::Address => {
                network(caller.address, &mut take);
                continue;
            }
            LimitKey::ApiKey => caller.api_key,
            LimitKey::User => caller.user,
            LimitKey::Route => Some(caller.route),
        };
        let Some(text) = text else { return false };
        take(text.as_bytes());
    }
    true
}

/// The key of a bucket in this process; `None` where a part is missing.
pub(super) fn hash(seed: Seed, slot: u32, by: &[LimitKey], caller: &Caller<'_>) -> Option<u64> {
    let mut hasher = SipHasher13::new_with_keys(seed.0, seed.1);
    hasher.write_u32(slot);
    let all = parts(by, caller, |part| {
        hasher.write_u64(part.len() as u64);
        hasher.write(part);
    });
    all.then(|| hasher.finish())
}

/// The key of a bucket in Redis; `None` where a part is missing.
pub(super) fn name(by: &[LimitKey], caller: &Caller<'_>) -> Option<[u8; 16]> {
    let mut digest = Md5::new();
    digest.update(by.iter().map(|part| *part as u8).collect::<Vec<_>>());
    let all = parts(by, caller, |part| {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    });
    all.then(|| digest.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller<'a>(address: &str, api_key: Option<&'a str>, user: Option<&'a str>, route: &'a str) -> Caller<'a> {
        Caller { address: address.parse().unwrap(), api_key, user, route }
    }

    #[test]
    fn crafted_parts_do_not_meet() {
        let seed = Seed::random();
        let by = [LimitKey::ApiKey, LimitKey::User];
        let texts = ["", "a", "ab", "b", "\0", "a\0", "\u{1}\0\0\0\0\0\0\0a", "a\u{1}\0\0\0\0\0\0\0b"];
        let (mut hashes, mut names) = (std::collections::HashSet::new(), std::collections::HashSet::new());
        for key in texts {
            for user in texts {
                let caller = caller("192.0.2.1", Some(key), Some(user), "r");
                assert!(hashes.insert(hash(seed, 1, &by, &caller).unwrap()));
                assert!(hashes.insert(hash(seed, 2, &by, &caller).unwrap()), "limits are apart");
                assert!(names.insert(name(&by, &caller).unwrap()));
            }
        }
        let one = caller("192.0.2.1", Some("x"), None, "x");
        assert_ne!(name(&[LimitKey::ApiKey], &one), name(&[LimitKey::Route], &one));
    }

    #[test]
    fn a_missing_part_is_no_key_and_seeds_differ() {
        let one = caller("192.0.2.1", None, Some("u"), "r");
        assert_eq!(hash(Seed::random(), 1, &[LimitKey::Address, LimitKey::ApiKey], &one), None);
        assert_eq!(name(&[LimitKey::ApiKey], &one), None);
        let by = [LimitKey::User];
        assert_ne!(hash(Seed::random(), 1, &by, &one), hash(Seed::random(), 1, &by, &one));
        assert_eq!(name(&by, &one), name(&by, &caller("192.0.2.2", Some("k"), Some("u"), "other")));
    }

    #[test]
    fn addresses_are_taken_by_what_one_customer_has() {
        let seed = Seed::random();
        let of = |address: &str| hash(seed, 1, &[LimitKey::Address], &caller(address, None, None, "r")).unwrap();
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff:ffff:ffff:ffff"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:192.0.2.7"), of("192.0.2.7"));
        assert_ne!(of("192.0.2.7"), of("192.0.2.8"));
    }
}
