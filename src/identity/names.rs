//! Login names, e-mail addresses and passwords: what is taken, and in which one form it is kept.
//!
//! Names are of ASCII, so that two that look alike are alike; nothing needs Unicode's normal forms. A password is the bytes
//! that were sent.

use super::error::{BadField, IdentityError};

/// Shortest and longest password, in bytes: the shortest of NIST SP 800-63B, and what is still hashed at once.
const PASSWORD: std::ops::RangeInclusive<usize> = 8..=1024;

/// Who wants an account, checked.
#[derive(Clone, PartialEq, Eq)]
pub struct Registration {
    /// In lower case.
    pub(super) login: String,
    /// In lower case.
    pub(super) email: Option<String>,
    pub(super) password: String,
}

impl std::fmt::Debug for Registration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Registration")
    }
}

impl Registration {
    /// The login, in lower case.
    pub fn login(&self) -> &str {
        &self.login
    }

    /// Checks it.
    ///
    /// # Errors
    /// [`IdentityError::Invalid`] with every field that cannot be taken.
    pub fn new(login: &str, email: Option<&str>, password: &str) -> Result<Self, IdentityError> {
        let mut bad = Vec::new();
        let name = normal_login(login);
        if name.is_none() {
            let message = "it must be 3 to 64 of A-Z a-z 0-9 . _ -, and begin and end with a letter or digit";
            bad.push(BadField { field: "login", message });
        }
        let address = email.map(normal_email);
        if address == Some(None) {
            bad.push(BadField { field: "email", message: "it must be an address like jo@shop.example, in ASCII" });
        }
        let address = address.flatten();
        let unfit = unfit_password(password, login.trim(), address.as_deref());
        bad.extend(unfit.map(|message| BadField { field: "password", message }));
        match name {
            Some(login) if bad.is_empty() => Ok(Self { login, email: address, password: password.to_owned() }),
            _ => Err(IdentityError::Invalid(bad)),
        }
    }
}

/// What somebody logs in with: a name, or an address, in the form in which it is kept. `None` if there can be no such account.
pub fn normal(login: &str) -> Option<String> {
    if login.contains('@') { normal_email(login) } else { normal_login(login) }
}

/// Why a password cannot be taken for an account of this name and address, if so.
pub fn unfit_password(password: &str, login: &str, email: Option<&str>) -> Option<&'static str> {
    if !PASSWORD.contains(&password.len()) {
        return Some("it must have 8 to 1024 bytes");
    }
    let same = |name: &str| password.eq_ignore_ascii_case(name);
    (same(login) || email.is_some_and(same)).then_some("it must not be the login or the e-mail address")
}

/// Whether a password may be one. Longer ones are not hashed.
pub fn may_be_password(password: &str) -> bool {
    (1..=*PASSWORD.end()).contains(&password.len())
}

fn normal_login(login: &str) -> Option<String> {
    let login = login.trim();
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let bytes = login.as_bytes();
    let ends =
        bytes.first().zip(bytes.last()).is_some_and(|(a, z)| a.is_ascii_alphanumeric() && z.is_ascii_alphanumeric());
    ((3..=64).contains(&bytes.len()) && ends && bytes.iter().all(|b| inner(*b))).then(|| login.to_ascii_lowercase())
}

/// The part before the `@` could tell cases apart, and nobody's does.
fn normal_email(email: &str) -> Option<String> {
    let email = email.trim();
    let (local, domain) = email.rsplit_once('@')?;
    let fine =
        |b: u8| b.is_ascii_graphic() && !matches!(b, b'@' | b'"' | b'(' | b')' | b'<' | b'>' | b',' | b';' | b'\\');
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let good = email.len() <= 254
        && (1..=64).contains(&local.len())
        && local.bytes().all(fine)
        && domain.contains('.')
        && domain.split('.').all(label);
    good.then(|| email.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(login: &str, email: Option<&str>, password: &str) -> Vec<&'static str> {
        match Registration::new(login, email, password) {
            Ok(_) => vec![],
            Err(IdentityError::Invalid(bad)) => bad.iter().map(|bad| bad.field).collect(),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn names_are_kept_in_one_form() {
        let made = Registration::new(" Jo.Doe ", Some("Jo+shop@Shop.Example"), "correct horse").unwrap();
        assert_eq!((made.login.as_str(), made.email.as_deref()), ("jo.doe", Some("jo+shop@shop.example")));
        assert_eq!(normal("JO.doe").as_deref(), Some("jo.doe"));
        assert_eq!(normal("Jo+Shop@shop.EXAMPLE").as_deref(), Some("jo+shop@shop.example"));
        assert_eq!(normal("jo doe"), None);
        assert!(!format!("{made:?}").contains("horse"));
    }

    #[test]
    fn what_cannot_be_taken_is_told_field_by_field() {
        assert_eq!(fields("jo", Some("nowhere"), "short"), ["login", "email", "password"]);
        for login in ["", "ab", "-jo", "jo.", "j o e", "jöe", "a@b.c", "jo\u{0}e", &"a".repeat(65)] {
            assert_eq!(fields(login, None, "correct horse"), ["login"], "{login:?}");
        }
        let long = format!("{}@shop.example", "a".repeat(65));
        for email in ["@a.b", "a@", "a@b", "a@@b.c", "a b@c.d", "a@b..c", "a@-b.c", "ä@b.c", "<a>@b.c", &long] {
            assert_eq!(fields("joe", Some(email), "correct horse"), ["email"], "{email}");
        }
        for password in ["1234567", "jo.doe.smith", &"x".repeat(1025), "JO@shop.example"] {
            assert_eq!(fields("Jo.Doe.Smith", Some("jo@shop.example"), password), ["password"], "{password}");
        }
        assert_eq!(fields("joe", None, &"ä".repeat(512)), Vec::<&str>::new());
    }
}
