//! Why an event was not counted: stable codes, the same in answers, audit and metrics.

use serde::{Serialize, Serializer};

/// Site under which events are accounted that could not be read far enough to know theirs.
pub const UNKNOWN_SITE: &str = "(unknown)";

macro_rules! codes {
    ($($name:ident = $byte:literal, $text:literal, $doc:literal;)*) => {
        /// Stable code of a refused (or duplicate) event.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum RejectCode { $(#[doc = $doc] $name = $byte,)* }

        impl RejectCode {
            /// Every code with what it means, for the documents.
            pub const ALL: &[(RejectCode, &str)] = &[$((RejectCode::$name, $doc),)*];

            /// The word clients see.
            pub fn as_str(self) -> &'static str {
                match self { $(RejectCode::$name => $text,)* }
            }

            /// The code of a journal byte.
            pub fn from_byte(byte: u8) -> Option<Self> {
                match byte { $($byte => Some(RejectCode::$name),)* _ => None }
            }
        }
    };
}

codes! {
    Duplicate = 0, "duplicate", "An event with this id was accepted before.";
    InvalidJson = 1, "invalid_json", "The text is not JSON.";
    NotAnObject = 2, "not_an_object", "An event is a JSON object.";
    InvalidField = 3, "invalid_field", "A field has the wrong JSON type.";
    MissingType = 4, "missing_type", "`type` is required when there is no `url`.";
    InvalidType = 5, "invalid_type", "`type` is 1 to 64 characters of A-Z a-z 0-9 _ . : -";
    InvalidId = 6, "invalid_id", "`id` is 1 to 128 characters.";
    InvalidTimestamp = 7, "invalid_timestamp", "`timestamp` and `sent_at` are RFC 3339 or Unix milliseconds.";
    TimestampOutOfRange = 8, "timestamp_out_of_range", "`timestamp` is too old or in the future.";
    InvalidSite = 9, "invalid_site", "`site` is 1 to 64 characters of A-Z a-z 0-9 _ . : -";
    TooManySites = 10, "too_many_sites", "The server counts no further site (`ingest.max_sites`).";
    InvalidUrl = 11, "invalid_url", "`url` is an absolute URL or a path that starts with `/`.";
    FieldTooLong = 12, "field_too_long", "A text field is longer than its limit.";
    InvalidData = 13, "invalid_data", "`data` is a JSON object.";
    DataTooLarge = 14, "data_too_large", "`data` is at most 8 KiB.";
    Unavailable = 16, "unavailable", "The journal stopped taking events; those before it were taken. Send it again.";
    PrivacySignal = 15, "privacy_signal", "The visitor sent Sec-GPC or DNT, and the site drops such events.";
    WriteKeyRequired = 17, "write_key_required", "The site has write keys, and the request shows none.";
    InvalidWriteKey = 18, "invalid_write_key", "The request's write key is none of the site's, or it shows two.";
    OriginNotAllowed = 19, "origin_not_allowed", "The request is from no page of the site (`sites.NAME.origins`).";
    UnknownSite = 20, "unknown_site", "The server takes events of the sites in its config only (`ingest.unknown_sites`).";
}

impl RejectCode {
    /// Whether it says that the sender may not, rather than that the event is wrong.
    pub fn is_of_sender(self) -> bool {
        matches!(self, Self::WriteKeyRequired | Self::InvalidWriteKey | Self::OriginNotAllowed)
    }
}

impl Serialize for RejectCode {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.as_str())
    }
}

/// One refused event of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reject {
    /// Position in the request, from 0.
    pub index: u32,
    /// Stable code.
    pub code: RejectCode,
    /// What was wrong, for a person.
    pub message: String,
}

impl Reject {
    /// A refusal of the event at `index`.
    pub fn new(index: u32, code: RejectCode, message: impl Into<String>) -> Self {
        Self { index, code, message: message.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_the_journal() {
        for (code, _) in RejectCode::ALL {
            assert_eq!(RejectCode::from_byte(*code as u8), Some(*code));
        }
        assert_eq!(RejectCode::from_byte(200), None);
    }
}
