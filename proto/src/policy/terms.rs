//! The values that fields of a policy take.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::address::RegionName;

macro_rules! choices {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $text:literal, $meaning:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $(#[doc = $meaning] $variant,)*
        }

        impl $name {
            /// Every choice, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The choice as it stands in the document.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        impl Choice for $name {
            const ALL: &'static [Self] = Self::ALL;
            fn name(self) -> &'static str {
                self.name()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }
    };
}

/// A field with a fixed list of words.
pub(super) trait Choice: Copy + 'static {
    /// The words.
    const ALL: &'static [Self];
    /// A word as it stands in the document.
    fn name(self) -> &'static str;
}

choices! {
    /// What kind of data a tag is for. It feeds the defaults.
    Class {
        Personal = "personal", "Data about a person.";
        Special = "special", "Data about a person that the law protects more, such as health.";
        Account = "account", "Data about a customer that is not about a person.";
        Derived = "derived", "Data that can be made again from other data.";
        Public = "public", "Data that anyone may see.";
    }
}

impl Class {
    /// What a mirror does when its policy lease has lapsed, unless the tag
    /// says otherwise.
    pub const fn on_isolation(self) -> Isolation {
        match self {
            Self::Personal | Self::Special => Isolation::Stop,
            Self::Account | Self::Derived | Self::Public => Isolation::Serve,
        }
    }
}

choices! {
    /// What a mirror does when its policy lease has lapsed.
    Isolation {
        Stop = "stop", "It stops serving.";
        Serve = "serve", "It goes on serving.";
    }
}

choices! {
    /// Whether a home that is cut off goes on writing.
    Failover {
        Fenced = "fenced", "It acknowledges under a quorum lease and stops when isolated.";
        Sovereign = "sovereign", "It goes on writing.";
    }
}

choices! {
    /// How keys stand on disk.
    KeyNames {
        Plain = "plain", "As they are.";
        SegmentPrf = "segment-prf", "Each segment under a keyed pseudorandom function.";
    }
}

choices! {
    /// What an exception allows.
    Mode {
        Read = "read", "Plaintext may be read from the other region.";
        Copy = "copy", "The other region may store it.";
    }
}

/// A jurisdiction or a group of them: `DE`, `US-CA`, `EEA`. One to 16 of
/// `A-Z0-9-`, beginning with a letter.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Jurisdiction(Arc<str>);

impl Jurisdiction {
    /// The code as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The longest code of a jurisdiction, in bytes.
const JURISDICTION_BYTES_MAX: usize = 16;

impl FromStr for Jurisdiction {
    type Err = TermError;
    fn from_str(code: &str) -> Result<Self, TermError> {
        let allowed = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '-';
        let begins = code.starts_with(|c: char| c.is_ascii_uppercase());
        if begins && code.len() <= JURISDICTION_BYTES_MAX && code.chars().all(allowed) {
            return Ok(Self(code.into()));
        }
        Err(TermError(
            "a jurisdiction is 1 to 16 of A-Z, 0-9 and -, and begins with a letter",
        ))
    }
}

impl fmt::Display for Jurisdiction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Jurisdiction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// One entry of `access_from`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// `region:X`: callers of this region.
    Region(RegionName),
    /// `jurisdiction:Y`: callers under this jurisdiction, or under one that
    /// lies within it.
    Jurisdiction(Jurisdiction),
}

impl FromStr for Access {
    type Err = TermError;
    fn from_str(entry: &str) -> Result<Self, TermError> {
        let wrong = TermError("an entry is `region:NAME` or `jurisdiction:CODE`");
        match entry.split_once(':') {
            Some(("region", name)) => RegionName::new(name)
                .map(Self::Region)
                .map_err(|_| TermError("a region is a-z, then a-z, 0-9 and -, at most 63")),
            Some(("jurisdiction", code)) => code.parse().map(Self::Jurisdiction),
            _ => Err(wrong),
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Region(name) => write!(f, "region:{name}"),
            Self::Jurisdiction(code) => write!(f, "jurisdiction:{code}"),
        }
    }
}

/// A length of time in whole seconds: `90s`, `10m`, `72h`, `30d`, `6y`. A year
/// has 365 days.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// The length, in seconds.
    pub seconds: u64,
}

impl Span {
    /// A length of so many seconds.
    pub const fn from_seconds(seconds: u64) -> Self {
        Self { seconds }
    }
}

/// The longest [`Span`], in years: beyond it a unit was probably mistaken.
const SPAN_YEARS_MAX: u64 = 1000;

const YEAR_SECONDS: u64 = 365 * 24 * 3600;

impl FromStr for Span {
    type Err = TermError;
    fn from_str(text: &str) -> Result<Self, TermError> {
        let wrong = TermError("a length of time is a number and s, m, h, d or y, such as `72h`");
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match &text[digits.len()..] {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 24 * 3600,
            "y" => YEAR_SECONDS,
            _ => return Err(wrong),
        };
        // `u64::from_str` would also take a sign.
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong);
        }
        let seconds = digits
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(unit));
        match seconds {
            Some(seconds) if seconds <= SPAN_YEARS_MAX * YEAR_SECONDS => Ok(Self { seconds }),
            Some(_) | None => Err(TermError("a length of time is at most 1000y")),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}s", self.seconds)
    }
}

/// A day of the calendar: `2026-12-01`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Date {
    /// The year.
    pub year: u16,
    /// The month, from 1.
    pub month: u8,
    /// The day of the month, from 1.
    pub day: u8,
}

impl FromStr for Date {
    type Err = TermError;
    fn from_str(text: &str) -> Result<Self, TermError> {
        let wrong = TermError("a date is a day that exists, as `2026-12-01`");
        let parsed: toml::value::Datetime = text.parse().map_err(|_| wrong)?;
        match (parsed.date, parsed.time, parsed.offset) {
            (Some(date), None, None) => Ok(Self {
                year: date.year,
                month: date.month,
                day: date.day,
            }),
            _ => Err(wrong),
        }
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

/// Checks a moment in RFC 3339 with whole seconds in UTC, the only form that
/// has one spelling for each moment.
pub(super) fn check_moment(text: &str) -> Result<(), TermError> {
    let wrong = TermError("a moment is in UTC with whole seconds, as `2026-12-01T00:00:00Z`");
    let parsed: toml::value::Datetime = text.parse().map_err(|_| wrong)?;
    let whole = parsed.date.is_some()
        && parsed.offset == Some(toml::value::Offset::Z)
        && parsed
            .time
            .is_some_and(|time| time.nanosecond.unwrap_or(0) == 0);
    // The length leaves one spelling: no fraction, no missing seconds.
    let spelled = text.len() == "2026-12-01T00:00:00Z".len()
        && text.as_bytes()[10] == b'T'
        && text.ends_with('Z');
    if whole && spelled { Ok(()) } else { Err(wrong) }
}

/// What a value must look like, when it does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TermError(pub(super) &'static str);

impl fmt::Display for TermError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for TermError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_units() {
        let seconds = |text: &str| text.parse::<Span>().map(|span| span.seconds);
        assert_eq!(seconds("10m"), Ok(600));
        assert_eq!(seconds("72h"), Ok(259_200));
        assert_eq!(seconds("30d"), Ok(2_592_000));
        assert_eq!(seconds("6y"), Ok(189_216_000));
        assert_eq!(seconds("0s"), Ok(0));
        for wrong in [
            "",
            "m",
            "10",
            "10 m",
            "-1m",
            "+1m",
            "1.5h",
            "10M",
            "1w",
            "1001y",
            "9999999999999999999s",
            "é",
        ] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn dates_and_moments_exist_and_have_one_spelling() {
        assert_eq!(
            "2028-02-29".parse(),
            Ok(Date {
                year: 2028,
                month: 2,
                day: 29
            })
        );
        for wrong in [
            "2027-02-29",
            "2026-13-01",
            "2026-1-1",
            "2026-12-01T00:00:00Z",
            "soon",
        ] {
            assert!(wrong.parse::<Date>().is_err(), "{wrong}");
        }
        assert!(check_moment("2026-12-01T00:00:00Z").is_ok());
        for wrong in [
            "2026-12-01",
            "2026-12-01 00:00:00Z",
            "2026-12-01T00:00:00z",
            "2026-12-01T00:00:00+00:00",
            "2026-12-01T00:00:00.5Z",
            "2026-12-01T25:00:00Z",
        ] {
            assert!(check_moment(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn jurisdictions_are_codes() {
        for code in ["DE", "US-CA", "EEA", "A1"] {
            assert!(code.parse::<Jurisdiction>().is_ok(), "{code}");
        }
        for wrong in ["", "de", "-DE", "1A", "D E", "ABCDEFGHIJKLMNOPQ"] {
            assert!(wrong.parse::<Jurisdiction>().is_err(), "{wrong}");
        }
    }
}
