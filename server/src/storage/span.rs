//! The keys of a tag that a group has.

use bytes::Bytes;
use domicile_proto::disk::v1::KeySpan;

use crate::error::{Error, Result};

/// A span of the keys of a tag. The default one is all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// The first key.
    pub(super) start: Bytes,
    /// The key behind the last; `None`: to the tag's last.
    pub(super) end: Option<Bytes>,
}

impl Span {
    /// Reads a span; one that was not written is that of a group without a tag.
    pub fn from_wire(span: Option<&KeySpan>) -> Result<Span> {
        let Some(KeySpan { start, end }) = span else {
            return Ok(Span::default());
        };
        if end.as_ref().is_some_and(|end| end <= start) {
            return Err(Error::corruption("the span of a group has no keys"));
        }
        Ok(Span {
            start: start.clone(),
            end: end.clone(),
        })
    }

    /// The span as it is stored.
    pub fn to_wire(&self) -> KeySpan {
        KeySpan {
            start: self.start.clone(),
            end: self.end.clone(),
        }
    }

    /// Whether it is all keys of a tag.
    pub fn is_whole(&self) -> bool {
        *self == Span::default()
    }

    /// Whether a key is in it.
    pub fn covers(&self, key: &[u8]) -> bool {
        *key >= *self.start && self.end.as_ref().is_none_or(|end| *key < **end)
    }

    /// The first key.
    pub fn start(&self) -> &[u8] {
        &self.start
    }

    /// The key behind the last; `None`: it goes to the tag's last.
    pub fn end(&self) -> Option<&Bytes> {
        self.end.as_ref()
    }

    /// Whether spans, in their order, have every key of a tag once.
    pub fn are_whole<'s>(spans: impl Iterator<Item = &'s Span>) -> bool {
        let mut reached = Some(Bytes::new());
        for span in spans {
            if reached.as_ref() != Some(&span.start) {
                return false;
            }
            reached.clone_from(&span.end);
        }
        reached.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::keys;

    fn span(start: &'static [u8], end: Option<&'static [u8]>) -> Span {
        let span = KeySpan {
            start: Bytes::from_static(start),
            end: end.map(Bytes::from_static),
        };
        Span::from_wire(Some(&span)).expect("it has keys")
    }

    #[test]
    fn a_span_has_its_first_key_and_not_its_end() {
        let middle = span(b"b", Some(b"d"));
        let covered: Vec<bool> = [b"a", b"b", b"c", b"d"]
            .map(|key| middle.covers(key))
            .into();
        assert_eq!(covered, [false, true, true, false]);
        assert!(span(b"b", None).covers(b"\xff\xff") && !span(b"b", None).covers(b"a"));
        assert!(span(b"", None).is_whole() && !middle.is_whole());
        assert_eq!(Span::from_wire(Some(&middle.to_wire())).unwrap(), middle);
    }

    #[test]
    fn spans_side_by_side_share_no_row() {
        let (left, right) = (span(b"", Some(b"m")), span(b"m", None));
        for key in [&b""[..], b"a", b"l\xff\xff", b"m", b"m\0", b"\xff"] {
            let row = keys::record("eu-only", key);
            let old = keys::history("eu-only", key, 7);
            let within = |span: &Span| {
                let ranges = (span.records("eu-only", b""), span.histories("eu-only"));
                (ranges.0.contains(&row), ranges.1.contains(&old))
            };
            let expected = left.covers(key);
            assert_eq!(within(&left), (expected, expected), "{key:?}");
            assert_eq!(within(&right), (!expected, !expected), "{key:?}");
        }
    }

    #[test]
    fn the_spans_of_a_tag_have_every_key_once() {
        let (left, right) = (span(b"", Some(b"m")), span(b"m", None));
        let whole = |spans: &[&Span]| Span::are_whole(spans.iter().copied());
        assert!(whole(&[&Span::default()]) && whole(&[&left, &right]));
        assert!(!whole(&[]) && !whole(&[&left]) && !whole(&[&right]));
        assert!(!whole(&[&right, &left]) && !whole(&[&left, &Span::default()]));
        assert!(!whole(&[&left, &span(b"n", None)]));
    }

    #[test]
    fn a_span_without_keys_is_damage() {
        let empty = KeySpan {
            start: Bytes::from_static(b"b"),
            end: Some(Bytes::from_static(b"b")),
        };
        assert!(Span::from_wire(Some(&empty)).is_err());
    }
}
