//! Access tokens: signed, and verified against keys that are known before the token is read.
//!
//! A token chooses among our keys by its `kid` and among the issuers by its `iss`; the algorithm is the key's, never the
//! token's (RFC 8725, section 3.1). Times are checked against the caller's clock.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::Deserialize;

use super::claims::Claims;
use crate::clock::UnixMillis;

/// The longest token that is read, in bytes.
pub(super) const MAX_TOKEN: usize = 8 << 10;
/// By how many seconds clocks may differ.
pub(super) const LEEWAY: u32 = 30;
/// What our own tokens are (RFC 9068).
const TYPE: &str = "at+jwt";

/// A key that verifies.
#[derive(Clone, Debug)]
pub(super) struct VerifyingKey {
    pub algorithm: Algorithm,
    pub key: DecodingKey,
}

/// What is read of a token before it is verified, to find the key; nothing else is done with it.
#[derive(Debug)]
pub(super) struct Outline {
    pub issuer: String,
    pub kid: Option<String>,
}

#[derive(Deserialize)]
struct IssuerOnly {
    iss: String,
}

/// What a request's `Authorization` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent<'a> {
    /// Nothing, or in a way that is not ours.
    Nothing,
    Bearer(&'a str),
    Bad(&'static str),
}

/// Reads all `Authorization` headers of a request.
pub(super) fn sent<'a>(mut headers: impl Iterator<Item = &'a [u8]>) -> Sent<'a> {
    let Some(header) = headers.next() else { return Sent::Nothing };
    if headers.next().is_some() {
        return Sent::Bad("doubled_header");
    }
    let Some((scheme, token)) = header.iter().position(|b| *b == b' ').map(|at| header.split_at(at)) else {
        return if header.eq_ignore_ascii_case(b"bearer") { Sent::Bad("malformed") } else { Sent::Nothing };
    };
    if !scheme.eq_ignore_ascii_case(b"bearer") {
        return Sent::Nothing;
    }
    let token = token.trim_ascii();
    if token.len() > MAX_TOKEN {
        return Sent::Bad("too_long");
    }
    let inner = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~' | b'+' | b'/' | b'=');
    match std::str::from_utf8(token) {
        Ok(text) if !token.is_empty() && token.iter().all(inner) => Sent::Bearer(text),
        _ => Sent::Bad("malformed"),
    }
}

/// Reads the outline of a token that is no longer than [`MAX_TOKEN`].
pub(super) fn outline(token: &str) -> Result<Outline, &'static str> {
    let header = jsonwebtoken::decode_header(token).map_err(|_| "malformed")?;
    // What must be understood is not (RFC 7515, section 4.1.11).
    if header.crit.is_some() {
        return Err("critical_header");
    }
    if let Some(kind) = &header.typ {
        let kind = kind.to_ascii_lowercase();
        if !matches!(kind.trim_start_matches("application/"), "jwt" | TYPE) {
            return Err("wrong_type");
        }
    }
    let mut parts = token.split('.');
    let payload = parts.nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok()).ok_or("malformed")?;
    let IssuerOnly { iss } = serde_json::from_slice(&payload).map_err(|_| "malformed")?;
    Ok(Outline { issuer: iss, kid: header.kid })
}

/// Verifies a token of an issuer for an audience; what it says is true if it is returned.
pub(super) fn verify(
    token: &str,
    key: &VerifyingKey,
    issuer: &str,
    audience: &str,
    now: UnixMillis,
) -> Result<Claims, &'static str> {
    let mut validation = Validation::new(key.algorithm);
    // That would be by the system's clock; it is done below by ours.
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.set_issuer(&[issuer]);
    validation.set_audience(&[audience]);
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    let claims = jsonwebtoken::decode::<Claims>(token, &key.key, &validation).map_err(|error| {
        use jsonwebtoken::errors::ErrorKind;
        match error.kind() {
            ErrorKind::InvalidAlgorithm => "wrong_algorithm",
            ErrorKind::InvalidSignature => "wrong_signature",
            ErrorKind::InvalidIssuer => "wrong_issuer",
            ErrorKind::InvalidAudience => "wrong_audience",
            _ => "malformed",
        }
    })?;
    let claims = claims.claims;
    if claims.iss != issuer {
        return Err("wrong_issuer");
    }
    if !claims.is_for(audience) {
        return Err("wrong_audience");
    }
    claims.check_time(now, f64::from(LEEWAY))?;
    Ok(claims)
}

/// Signs with one of our keys.
pub(super) fn sign(claims: &Claims, kid: &str, key: &EncodingKey) -> Option<String> {
    let mut header = Header::new(Algorithm::EdDSA);
    header.typ = Some(String::from(TYPE));
    header.kid = Some(kid.to_owned());
    jsonwebtoken::encode(&header, claims, key).ok()
}

#[cfg(test)]
mod tests {
    use super::super::claims::Several;
    use super::super::ring::SigningKey;
    use super::*;
    use serde_json::{Value, json};

    const NOW: UnixMillis = 1_795_435_200_000;

    fn part(json: &Value) -> String {
        URL_SAFE_NO_PAD.encode(json.to_string())
    }

    fn good() -> Value {
        json!({"iss": "tidegate", "aud": "shop", "sub": "u1", "exp": NOW / 1000 + 600, "iat": NOW / 1000})
    }

    fn signed(header: &Value, claims: &Value, key: &SigningKey) -> String {
        let message = format!("{}.{}", part(header), part(claims));
        let signature = URL_SAFE_NO_PAD.encode(key.sign(message.as_bytes()));
        format!("{message}.{signature}")
    }

    #[test]
    fn what_is_signed_is_verified_and_nothing_else() {
        let (key, stranger) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        let ours = key.verifying();
        let check = |token: &str| {
            outline(token).and_then(|_| verify(token, &ours, "tidegate", "shop", NOW)).map(|claims| claims.sub)
        };
        let claims: Claims = serde_json::from_value(good()).unwrap();
        assert_eq!(claims.aud, Several::One(String::from("shop")));
        let token = sign(&claims, &key.kid, &key.encoding()).unwrap();
        assert_eq!(check(&token), Ok(String::from("u1")));
        assert_eq!(outline(&token).unwrap().kid.as_deref(), Some(key.kid.as_str()));

        let header = json!({"alg": "EdDSA", "typ": "JWT"});
        assert_eq!(check(&signed(&header, &good(), &key)), Ok(String::from("u1")));
        assert_eq!(check(&signed(&header, &good(), &stranger)), Err("wrong_signature"));
        let with = |name: &str, value: Value| {
            let mut claims = good();
            claims[name] = value;
            check(&signed(&header, &claims, &key))
        };
        assert_eq!(with("iss", json!("evil")), Err("wrong_issuer"));
        assert_eq!(with("aud", json!("other")), Err("wrong_audience"));
        assert_eq!(with("aud", json!(["other", "shop"])), Ok(String::from("u1")));
        assert_eq!(with("exp", json!(NOW / 1000 - 31)), Err("expired"));
        assert_eq!(with("exp", json!(NOW / 1000 - 29)), Ok(String::from("u1")), "clocks differ");
        assert_eq!(with("nbf", json!(NOW / 1000 + 31)), Err("not_yet_valid"));
        assert_eq!(with("iat", json!(NOW / 1000 + 31)), Err("not_yet_valid"));
        for name in ["iss", "aud", "sub", "exp"] {
            assert!(with(name, Value::Null).is_err(), "{name}");
        }

        // Algorithms: none, and the public key taken for a secret.
        for alg in ["none", "None", "NONE", ""] {
            let header = json!({"alg": alg, "typ": "JWT"});
            assert!(check(&format!("{}.{}.", part(&header), part(&good()))).is_err(), "{alg}");
            assert!(check(&signed(&header, &good(), &key)).is_err(), "{alg}");
        }
        let secret = EncodingKey::from_secret(&key.public());
        let confused = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &good(), &secret).unwrap();
        assert_eq!(check(&confused), Err("wrong_algorithm"));
        for alg in ["RS256", "ES256", "PS256", "HS512"] {
            assert_eq!(check(&signed(&json!({"alg": alg}), &good(), &key)), Err("wrong_algorithm"), "{alg}");
        }
        assert_eq!(check(&signed(&json!({"alg": "EdDSA", "crit": ["exp"]}), &good(), &key)), Err("critical_header"));
        assert_eq!(check(&signed(&json!({"alg": "EdDSA", "typ": "logout+jwt"}), &good(), &key)), Err("wrong_type"));

        // Every prefix, and every changed byte.
        for end in 0..token.len() {
            assert!(check(&token[..end]).is_err(), "{end} bytes of {}", token.len());
        }
        for at in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'Q' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            assert!(check(&changed).is_err(), "byte {at}");
        }
        assert!(check(&format!("{token}.x")).is_err());
        assert!(check(&format!("{token}=")).is_err());
    }

    #[test]
    fn one_header_with_one_short_token() {
        let of = |lines: &[&'static str]| match sent(lines.iter().map(|line| line.as_bytes())) {
            Sent::Bearer(token) => token,
            Sent::Bad(why) => why,
            Sent::Nothing => "nothing",
        };
        assert_eq!(of(&[]), "nothing");
        assert_eq!(of(&["Bearer abc.d-_f.g"]), "abc.d-_f.g");
        assert_eq!(of(&["bEARER   abc "]), "abc");
        assert_eq!(of(&["Basic am86eA=="]), "nothing");
        assert_eq!(of(&["Bearer abc", "Bearer abc"]), "doubled_header");
        assert_eq!(of(&["Basic x", "Bearer abc"]), "doubled_header");
        for bad in ["Bearer", "Bearer ", "Bearer a b", "Bearer abc, Bearer def", "Bearer ä"] {
            assert_eq!(of(&[bad]), "malformed", "{bad}");
        }
        let giant = format!("Bearer {}", "a".repeat(MAX_TOKEN + 1));
        assert_eq!(sent(std::iter::once(giant.as_bytes())), Sent::Bad("too_long"));
    }
}
