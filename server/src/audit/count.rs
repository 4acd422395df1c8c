//! Counting what is found.

use std::collections::BTreeMap;

use domicile_proto::disk::v1::Anchor;
use domicile_proto::policy::Kind;
use domicile_proto::v1;
use sha2::{Digest as _, Sha256};

/// The most different reasons that a report names; further ones are counted
/// under the last.
const REASONS_MAX: usize = 100;

/// Where something was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// The state instance.
    State,
    /// The log instance.
    Log,
    /// Rows on their way in.
    Staged,
}

impl Place {
    pub(super) fn name(self) -> &'static str {
        match self {
            Place::State => "state",
            Place::Log => "log",
            Place::Staged => "staged",
        }
    }
}

/// How much of one kind there is.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    records: u64,
    versions: u64,
    bytes: u64,
    fingerprint: u64,
}

/// What was found so far.
#[derive(Debug, Default)]
pub(super) struct Counts {
    counts: BTreeMap<(String, Kind, Place), Count>,
    unread: BTreeMap<(&'static str, String), u64>,
    /// Batches and records, by tag, sender and receiver.
    flows: BTreeMap<(String, String, String), (u64, u64)>,
    rows: u64,
}

impl Counts {
    /// A row was looked at.
    pub(super) fn row(&mut self) {
        self.rows += 1;
    }

    /// Counts an item of a tag; the empty tag stands for one that cannot be
    /// told. `newest`: its version, if that is the newest of a record.
    pub(super) fn item(
        &mut self,
        tag: &str,
        kind: Kind,
        place: Place,
        bytes: usize,
        newest: Option<u64>,
    ) {
        let count = self
            .counts
            .entry((tag.to_owned(), kind, place))
            .or_default();
        count.records += u64::from(newest.is_some());
        count.fingerprint ^= newest.map_or(0, fingerprint);
        count.versions += 1;
        count.bytes += bytes as u64;
    }

    /// Counts a batch of a tag that went from one region to another.
    pub(super) fn flow(&mut self, (tag, from, to): (&str, &str, &str), records: u64) {
        let flow = (tag.to_owned(), from.to_owned(), to.to_owned());
        let (batches, all) = self.flows.entry(flow).or_default();
        *batches += 1;
        *all += records;
    }

    /// Counts something that could not be read.
    pub(super) fn unread(&mut self, place: &'static str, why: String) {
        let known = self.unread.contains_key(&(place, why.clone()));
        let why = match known || self.unread.len() < REASONS_MAX {
            true => why,
            false => "other reasons".to_owned(),
        };
        *self.unread.entry((place, why)).or_default() += 1;
    }

    /// The report of a node.
    pub(super) fn report(self, anchor: &Anchor) -> v1::NodeReport {
        let counts = self.counts.into_iter();
        let unread = self.unread.into_iter();
        let flows = self.flows.into_iter();
        v1::NodeReport {
            region: anchor.region.clone(),
            node: anchor.node,
            counts: counts
                .map(|((tag, kind, place), count)| v1::AuditCount {
                    tag,
                    kind: kind.name().to_owned(),
                    place: place.name().to_owned(),
                    records: count.records,
                    versions: count.versions,
                    bytes: count.bytes,
                    fingerprint: count.fingerprint,
                })
                .collect(),
            unread: unread
                .map(|((place, why), count)| v1::AuditUnread {
                    place: place.to_owned(),
                    why,
                    count,
                })
                .collect(),
            rows: self.rows,
            unapplied: Vec::new(),
            cluster: anchor.cluster.clone(),
            flows: flows
                .map(|((tag, from, to), (batches, records))| v1::AuditFlow {
                    tag,
                    from,
                    to,
                    batches,
                    records,
                })
                .collect(),
        }
    }
}

/// Of one version. Together they are an XOR of hashes, which is the same in any
/// order (Bellare and Micciancio 1997, XHASH): enough against chance. Versions
/// of a tag are never given twice, so they stand for what was written.
fn fingerprint(version: u64) -> u64 {
    let digest = Sha256::digest(version.to_be_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(first)
}
