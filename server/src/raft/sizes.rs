//! How many bytes a log has, and up to where it is how large.

use std::collections::VecDeque;

/// The bytes of a log, to say where it is how large. By parts, so that it costs
/// no memory for each entry.
#[derive(Default)]
pub(super) struct Sizes {
    parts: VecDeque<Part>,
}

/// The entries from one up to the next part.
struct Part {
    first: u64,
    entries: u64,
    bytes: u64,
}

/// The bytes of a part, and its entries: the log may be this much larger than
/// its limit.
const PART_BYTES: u64 = 1024 * 1024;
const PART_ENTRIES: u64 = 1024;

impl Sizes {
    /// The log as it was opened. What it is as large as is not known: it was
    /// within its limit, and each entry counts as a byte until it is purged, so that
    /// it is more than nothing.
    pub(super) fn opened(&mut self, first: u64, last: u64) {
        self.parts.push_back(Part {
            first,
            entries: (last + 1).saturating_sub(first),
            bytes: (last + 1).saturating_sub(first),
        });
    }

    /// Counts an entry behind the others.
    pub(super) fn append(&mut self, index: u64, bytes: usize) {
        let bytes = bytes as u64;
        match self.parts.back_mut() {
            Some(part) if part.bytes < PART_BYTES && part.entries < PART_ENTRIES => {
                part.entries += 1;
                part.bytes += bytes;
            }
            _ => self.parts.push_back(Part {
                first: index,
                entries: 1,
                bytes,
            }),
        }
    }

    /// Forgets the entries from one on. Some of a part that stays count until it
    /// is purged.
    pub(super) fn truncate_from(&mut self, index: u64) {
        while self.parts.back().is_some_and(|part| part.first >= index) {
            self.parts.pop_back();
        }
    }

    /// Forgets the entries up to one.
    pub(super) fn purge(&mut self, upto: u64) {
        while self.parts.len() > 1 && self.parts[1].first <= upto + 1 {
            self.parts.pop_front();
        }
    }

    /// The last entry that is above a limit of bytes: what is behind it is not
    /// larger. 0: none is.
    pub(super) fn above(&self, bytes_max: u64) -> u64 {
        let mut bytes = 0;
        for part in self.parts.iter().rev() {
            bytes += part.bytes;
            if bytes > bytes_max {
                return part.first + part.entries - 1;
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_knows_from_where_on_it_is_how_large() {
        let mut sizes = Sizes::default();
        sizes.opened(1, 50);
        for index in 51..=150 {
            sizes.append(index, 600 * 1024);
        }
        // Two entries to a part.
        let mib = |entries: u64| entries * 600 * 1024;
        assert_eq!(sizes.above(mib(100) + 50), 0, "none is above");
        assert_eq!(sizes.above(mib(99)), 52);
        assert_eq!(sizes.above(mib(10)), 140);
        assert_eq!(sizes.above(0), 150);
        sizes.purge(100);
        assert_eq!(sizes.above(mib(50)), 0);
        assert_eq!(sizes.above(mib(49)), 102);
        sizes.truncate_from(149);
        sizes.append(149, 10);
        assert_eq!(sizes.above(mib(48) + 9), 102);
        assert_eq!(sizes.above(mib(48) + 10), 0);
        let mut small = Sizes::default();
        (1..=100_000).for_each(|index| small.append(index, 1));
        assert!(small.parts.len() < 100);
    }
}
