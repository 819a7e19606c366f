//! What a token says, and whether it says it now and to us.

use serde::{Deserialize, Serialize, Serializer};

use crate::clock::UnixMillis;

/// One text, or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Several {
    One(String),
    Many(Vec<String>),
}

impl Several {
    pub fn into_vec(self) -> Vec<String> {
        match self {
            // Scopes are one text with spaces (RFC 8693, section 4.2).
            Self::One(text) => text.split_ascii_whitespace().map(str::to_owned).collect(),
            Self::Many(list) => list,
        }
    }
}

/// The claims of an access token (RFC 7519, RFC 9068); times are in Unix seconds, and may have fractions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Claims {
    pub iss: String,
    pub aud: Several,
    pub sub: String,
    #[serde(serialize_with = "whole")]
    pub exp: f64,
    #[serde(skip_serializing)]
    pub nbf: Option<f64>,
    #[serde(serialize_with = "whole_or_none", skip_serializing_if = "Option::is_none")]
    pub iat: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub roles: Option<Several>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<Several>,
    /// The family of refresh tokens that it came with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sid: Option<String>,
}

/// Ours are whole seconds, and nobody should have to read them as anything else.
fn whole<S: Serializer>(seconds: &f64, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_i64(*seconds as i64)
}

fn whole_or_none<S: Serializer>(seconds: &Option<f64>, out: S) -> Result<S::Ok, S::Error> {
    match seconds {
        Some(seconds) => whole(seconds, out),
        None => out.serialize_none(),
    }
}

impl Claims {
    /// Whether they hold now, with so many seconds by which clocks may differ.
    pub fn check_time(&self, now: UnixMillis, leeway: f64) -> Result<(), &'static str> {
        let now = now as f64 / 1000.0;
        if !self.exp.is_finite() || now >= self.exp + leeway {
            return Err("expired");
        }
        let ahead = |at: Option<f64>| at.is_some_and(|at| !at.is_finite() || now < at - leeway);
        if ahead(self.nbf) || ahead(self.iat) {
            return Err("not_yet_valid");
        }
        Ok(())
    }

    /// Whether they are for this audience.
    pub fn is_for(&self, audience: &str) -> bool {
        match &self.aud {
            Several::One(one) => one == audience,
            Several::Many(many) => many.iter().any(|one| one == audience),
        }
    }

    /// When they end.
    pub fn expires_at(&self) -> UnixMillis {
        (self.exp * 1000.0) as UnixMillis
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(json: serde_json::Value) -> Result<Claims, serde_json::Error> {
        serde_json::from_value(json)
    }

    #[test]
    fn times_hold_with_a_leeway() {
        let with = |exp: f64, nbf: Option<f64>, iat: Option<f64>| Claims {
            iss: String::from("i"),
            aud: Several::One(String::from("a")),
            sub: String::from("s"),
            exp,
            nbf,
            iat,
            name: None,
            roles: None,
            scope: None,
            sid: None,
        };
        let check = |exp, nbf, iat| with(exp, nbf, iat).check_time(1_000_000, 30.0);
        assert_eq!(check(1001.0, None, None), Ok(()));
        assert_eq!(check(970.5, Some(1029.5), Some(1029.5)), Ok(()));
        assert_eq!(check(970.0, None, None), Err("expired"));
        assert_eq!(check(f64::INFINITY, None, None), Err("expired"));
        assert_eq!(check(2000.0, Some(1030.5), None), Err("not_yet_valid"));
        assert_eq!(check(2000.0, None, Some(1031.0)), Err("not_yet_valid"));
    }

    #[test]
    fn what_is_needed_is_demanded() {
        let whole =
            serde_json::json!({"iss": "i", "aud": ["x", "a"], "sub": "s", "exp": 1, "roles": ["user"], "more": {}});
        let read = claims(whole.clone()).unwrap();
        assert!(read.is_for("a") && !read.is_for("b"));
        for name in ["iss", "aud", "sub", "exp"] {
            let mut part = whole.clone();
            part.as_object_mut().unwrap().remove(name);
            assert!(claims(part).is_err(), "{name}");
        }
        for (name, value) in
            [("exp", "\"1\""), ("exp", "null"), ("iss", "[\"i\"]"), ("sub", "1"), ("aud", "{}"), ("nbf", "\"1\"")]
        {
            let mut bad = whole.clone();
            bad[name] = serde_json::from_str(value).unwrap();
            assert!(claims(bad).is_err(), "{name}: {value}");
        }
    }
}
