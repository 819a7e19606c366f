//! Keys of another issuer, as it publishes them (RFC 7517): those that we may use, each with its one algorithm.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;

use crate::identity::token::VerifyingKey;

/// Keys of an issuer that are read.
const MAX_KEYS: usize = 100;

#[derive(Deserialize)]
struct Document {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    alg: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
}

/// Keys by their names.
#[derive(Clone, Debug, Default)]
pub(super) struct KeySet {
    named: HashMap<String, VerifyingKey>,
    /// Those without a name.
    nameless: Vec<VerifyingKey>,
}

impl KeySet {
    /// Those of a document that can verify one of the algorithms; others are left out. `None` if it is no document of keys.
    pub fn read(text: &[u8], allowed: &[Algorithm]) -> Option<Self> {
        let document: Document = serde_json::from_slice(text).ok()?;
        let mut set = Self::default();
        for json in document.keys.into_iter().take(MAX_KEYS) {
            let Ok(jwk) = serde_json::from_value::<Jwk>(json) else { continue };
            let Some(key) = key(&jwk).filter(|key| allowed.contains(&key.algorithm)) else { continue };
            match jwk.kid {
                Some(kid) => _ = set.named.insert(kid, key),
                None => set.nameless.push(key),
            }
        }
        Some(set)
    }

    /// The key of a token; of one that names none, the only key there is.
    pub fn find(&self, kid: Option<&str>) -> Option<&VerifyingKey> {
        match kid {
            Some(kid) => self.named.get(kid),
            None => {
                let mut all = self.named.values().chain(&self.nameless);
                all.next().filter(|_| all.next().is_none())
            }
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.named.len() + self.nameless.len()
    }
}

fn key(jwk: &Jwk) -> Option<VerifyingKey> {
    if jwk.usage.as_deref().is_some_and(|usage| usage != "sig") {
        return None;
    }
    let bytes = |part: &Option<String>| URL_SAFE_NO_PAD.decode(part.as_deref()?).ok();
    let (algorithm, key) = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
        ("OKP", Some("Ed25519")) => {
            let x = bytes(&jwk.x).filter(|x| x.len() == 32)?;
            (Algorithm::EdDSA, DecodingKey::from_ed_der(&x))
        }
        ("EC", Some("P-256")) => {
            let (x, y) = (bytes(&jwk.x)?, bytes(&jwk.y)?);
            if x.len() != 32 || y.len() != 32 {
                return None;
            }
            let point = [&[4], x.as_slice(), &y].concat();
            (Algorithm::ES256, DecodingKey::from_ec_der(&point))
        }
        ("RSA", _) => {
            let (n, e) = (bytes(&jwk.n)?, bytes(&jwk.e)?);
            // 2048 bits at least (RFC 7518, section 3.3), and no more than takes reasonable time.
            if !(256..=1024).contains(&n.len()) || e.len() > 8 {
                return None;
            }
            (Algorithm::RS256, DecodingKey::from_rsa_raw_components(&n, &e))
        }
        _ => return None,
    };
    let name = match algorithm {
        Algorithm::EdDSA => "EdDSA",
        Algorithm::ES256 => "ES256",
        _ => "RS256",
    };
    // RFC 9864 has a second name for it.
    let same = |alg: &str| alg == name || (name == "EdDSA" && alg == "Ed25519");
    jwk.alg.as_deref().is_none_or(same).then_some(VerifyingKey { algorithm, key })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const ALL: [Algorithm; 3] = [Algorithm::EdDSA, Algorithm::ES256, Algorithm::RS256];

    fn b64(length: usize) -> String {
        URL_SAFE_NO_PAD.encode(vec![0xc1; length])
    }

    #[test]
    fn each_key_has_one_algorithm_and_the_rest_is_left_out() {
        let keys = json!({"keys": [
            {"kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": b64(32), "alg": "EdDSA", "use": "sig"},
            {"kty": "EC", "crv": "P-256", "kid": "ec", "x": b64(32), "y": b64(32)},
            {"kty": "RSA", "kid": "rsa", "n": b64(256), "e": "AQAB", "alg": "RS256"},
            {"kty": "RSA", "kid": "weak", "n": b64(128), "e": "AQAB"},
            {"kty": "RSA", "kid": "pss", "n": b64(256), "e": "AQAB", "alg": "PS256"},
            {"kty": "RSA", "kid": "enc", "n": b64(256), "e": "AQAB", "use": "enc"},
            {"kty": "oct", "kid": "secret", "k": b64(32)},
            {"kty": "EC", "crv": "P-256", "kid": "short", "x": b64(31), "y": b64(32)},
            {"kid": 7}, "rubbish"
        ]});
        let text = keys.to_string();
        let set = KeySet::read(text.as_bytes(), &ALL).unwrap();
        assert_eq!(set.len(), 3);
        for (kid, algorithm) in [("ed", Algorithm::EdDSA), ("ec", Algorithm::ES256), ("rsa", Algorithm::RS256)] {
            assert_eq!(set.find(Some(kid)).map(|key| key.algorithm), Some(algorithm), "{kid}");
        }
        assert!(set.find(None).is_none(), "there are several");
        let set = KeySet::read(text.as_bytes(), &[Algorithm::ES256]).unwrap();
        assert_eq!((set.len(), set.find(None).is_some(), set.find(Some("rsa")).is_some()), (1, true, false));
        for bad in ["", "[]", "{}", "{\"keys\":{}}", "<html>"] {
            assert!(KeySet::read(bad.as_bytes(), &ALL).is_none(), "{bad}");
        }
    }
}
