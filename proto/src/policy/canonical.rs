//! The one text of a policy's meaning, and its digest.
//!
//! The text is TOML with every table and list sorted and every default written
//! out, so two documents that mean the same have the same digest, and the text
//! reads back as the same policy. It must never change for a given meaning:
//! signatures are over it.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use super::{Policy, SCHEMA, TagRules, Transfer};

impl Policy {
    /// The canonical text.
    pub fn canonical(&self) -> String {
        let mut text = Text(String::new());
        text.string("schema", SCHEMA);
        text.bare("version", &self.version);
        if let Some(digest) = self.supersedes {
            text.string("supersedes", &digest.to_string());
        }
        if let Some(moment) = &self.effective_at {
            text.string("effective_at", moment);
        }
        for (name, region) in &self.regions {
            text.table(&format!("[regions.{name}]"));
            text.string("jurisdiction", region.jurisdiction.as_str());
            text.list("within", &region.within);
        }
        for (name, rules) in &self.tags {
            text.table(&format!("[tags.{name}]"));
            text.rules(rules);
        }
        for transfer in &self.transfers {
            text.table("[[transfers]]");
            text.transfer(transfer);
        }
        text.0
    }

    /// The SHA-256 of the canonical text.
    pub fn digest(&self) -> Digest {
        Digest(Sha256::digest(self.canonical().as_bytes()).into())
    }
}

/// The canonical text while it is written.
struct Text(String);

impl Text {
    fn table(&mut self, head: &str) {
        self.0.push('\n');
        self.0.push_str(head);
        self.0.push('\n');
    }

    fn bare(&mut self, field: &str, value: &dyn fmt::Display) {
        self.0.push_str(&format!("{field} = {value}\n"));
    }

    fn string(&mut self, field: &str, value: &str) {
        let value = quoted(value);
        self.bare(field, &value);
    }

    fn list<'i, T: fmt::Display + 'i>(
        &mut self,
        field: &str,
        items: impl IntoIterator<Item = &'i T>,
    ) {
        let items: Vec<_> = items
            .into_iter()
            .map(|item| quoted(&item.to_string()))
            .collect();
        self.bare(field, &format!("[{}]", items.join(", ")));
    }

    fn rules(&mut self, rules: &TagRules) {
        self.string("class", rules.class.name());
        self.string("home", rules.home.as_str());
        self.list("store", &rules.store);
        self.list("replicate_to", &rules.replicate_to);
        self.list("serve", &rules.serve);
        self.list("access_from", &rules.access_from);
        self.string("on_isolation", rules.on_isolation.name());
        self.string("failover", rules.failover.name());
        self.string("key_names", rules.key_names.name());
        self.string("history", &rules.history.to_string());
        if let Some(retention) = rules.retention {
            let min = retention.min.map(|min| format!("min = \"{min}\""));
            let max = retention.max.map(|max| format!("max = \"{max}\""));
            let both: Vec<_> = min.into_iter().chain(max).collect();
            self.bare("retention", &format!("{{ {} }}", both.join(", ")));
        }
        if let Some(within) = rules.purge_within {
            self.bare("on_tighten", &format!("{{ purge_within = \"{within}\" }}"));
        }
    }

    fn transfer(&mut self, transfer: &Transfer) {
        self.string("tag", transfer.tag.as_str());
        self.string("from", transfer.from.as_str());
        self.string("to", transfer.to.as_str());
        self.string("mode", transfer.mode.name());
        self.string("mechanism", &transfer.mechanism);
        self.string("assessment", &transfer.assessment);
        self.list("valid", &[transfer.valid_from, transfer.valid_until]);
    }
}

/// A TOML basic string, in the one spelling used here.
fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            control if control.is_control() => {
                quoted.push_str(&format!("\\u{:04X}", u32::from(control)));
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

/// The SHA-256 of a policy's canonical text: `sha256:` and 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest itself.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

const PREFIX: &str = "sha256:";

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;
    fn from_str(text: &str) -> Result<Self, DigestError> {
        let digits = text.strip_prefix(PREFIX).ok_or(DigestError)?.as_bytes();
        let mut digest = [0; 32];
        if digits.len() != 2 * digest.len() {
            return Err(DigestError);
        }
        for (byte, pair) in digest.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Ok(Self(digest))
    }
}

/// One lower-case hex digit; upper case would be a second spelling.
fn nibble(digit: u8) -> Result<u8, DigestError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(DigestError),
    }
}

/// Text that is no [`Digest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DigestError;

impl fmt::Display for DigestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a digest is `sha256:` and 64 lower-case hex digits")
    }
}

impl std::error::Error for DigestError {}
