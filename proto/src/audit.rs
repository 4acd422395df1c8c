//! Whether what lies on the disks of a cluster may lie there.
//!
//! [`judge`] holds the reports of all nodes against the policy, by the one
//! predicate that the gates ask. It is pure, so that an auditor can run it far
//! from the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::address::{RegionName, Tag};
use crate::policy::{Kind, Policy, Verdict as Allowed, may_hold};
use crate::v1;

/// The place of a count where a node's records are.
const STATE: &str = "state";

/// A node, as `region/number`.
pub type NodeName = (String, u64);

/// What an audit came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Everything was read, and all of it is allowed.
    Pass,
    /// What was read is allowed, but not everything was read.
    Incomplete,
    /// Something is where it may not be.
    Fail,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Verdict::Pass => "PASS",
            Verdict::Incomplete => "INCOMPLETE",
            Verdict::Fail => "FAIL",
        })
    }
}

/// Something that is where it may not be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The node.
    pub node: NodeName,
    /// `state`, `log` or `staged`; `ledger`: what it says was sent.
    pub place: String,
    /// The residency tag; empty: it cannot be told.
    pub tag: String,
    /// The kind of data.
    pub kind: String,
    /// How many items.
    pub versions: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Why it may not be there.
    pub why: String,
}

/// Something that was not read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gap {
    /// The node.
    pub node: NodeName,
    /// What of it.
    pub place: String,
    /// Why, and what to do.
    pub why: String,
    /// How many.
    pub count: u64,
}

/// What an audit came to, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// What it came to.
    pub verdict: Verdict,
    /// What is where it may not be.
    pub findings: Vec<Finding>,
    /// What was not read.
    pub gaps: Vec<Gap>,
}

/// Holds the reports against the policy. `expected` names every node of the
/// cluster; one without a report is a gap, and so is whatever a report says was
/// not read. A report of a node that is not expected counts as well: its bytes
/// exist.
pub fn judge(
    policy: &Policy,
    expected: &BTreeSet<NodeName>,
    reports: &[v1::NodeReport],
) -> Judgement {
    let mut findings = Vec::new();
    let mut gaps = Vec::new();
    let mut read: BTreeMap<NodeName, u32> = BTreeMap::new();
    for report in reports {
        let node = (report.region.clone(), report.node);
        *read.entry(node.clone()).or_default() += 1;
        for count in &report.counts {
            if let Some(why) = denied(policy, &report.region, count) {
                findings.push(Finding {
                    node: node.clone(),
                    place: count.place.clone(),
                    tag: count.tag.clone(),
                    kind: count.kind.clone(),
                    versions: count.versions,
                    bytes: count.bytes,
                    why,
                });
            }
        }
        for flow in &report.flows {
            if let Some(why) = not_to_be_sent(policy, flow) {
                findings.push(Finding {
                    node: node.clone(),
                    place: "ledger".into(),
                    tag: flow.tag.clone(),
                    kind: Kind::Value.name().into(),
                    versions: flow.records,
                    bytes: 0,
                    why,
                });
            }
        }
        for unread in &report.unread {
            gaps.push(Gap {
                node: node.clone(),
                place: unread.place.clone(),
                why: unread.why.clone(),
                count: unread.count,
            });
        }
    }
    for node in expected {
        if !read.contains_key(node) {
            gaps.push(Gap {
                node: node.clone(),
                place: "node".into(),
                why: "the node was not read; start it, or give its directory with --offline".into(),
                count: 1,
            });
        }
    }
    findings.sort();
    gaps.sort();
    let verdict = match (findings.is_empty(), gaps.is_empty()) {
        (false, _) => Verdict::Fail,
        (true, false) => Verdict::Incomplete,
        (true, true) => Verdict::Pass,
    };
    Judgement {
        verdict,
        findings,
        gaps,
    }
}

/// Whether the copies of a tag hold the same records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copies {
    /// They do.
    Equal,
    /// Those that could be compared do; of others the state ends before the log,
    /// because their nodes were killed.
    Unapplied,
    /// They do not.
    Differ,
}

impl Copies {
    /// The word for people and programs.
    pub fn name(self) -> &'static str {
        match self {
            Copies::Equal => "equal",
            Copies::Unapplied => "unapplied",
            Copies::Differ => "differ",
        }
    }
}

/// Whether the copies of each tag hold the same records, by the reports of the
/// nodes that have anything of it. While there are writes a copy that is behind
/// differs, and so do nodes that were read one after the other.
pub fn copies(reports: &[v1::NodeReport]) -> BTreeMap<&str, Copies> {
    let mut seen: BTreeMap<&str, BTreeSet<(u64, u64)>> = BTreeMap::new();
    let mut unapplied: BTreeSet<&str> = BTreeSet::new();
    for report in reports {
        let mut own: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for count in &report.counts {
            let held = own.entry(&count.tag).or_default();
            if count.kind == Kind::Value.name() && count.place == STATE {
                *held = (count.records, count.fingerprint);
            }
        }
        for (tag, held) in own {
            let seen = seen.entry(tag).or_default();
            match report.unapplied.iter().any(|name| name == tag) {
                true => _ = unapplied.insert(tag),
                false => _ = seen.insert(held),
            }
        }
    }
    let told = |(tag, held): (_, BTreeSet<_>)| match held.len() {
        0 | 1 if unapplied.contains(tag) => (tag, Copies::Unapplied),
        0 | 1 => (tag, Copies::Equal),
        _ => (tag, Copies::Differ),
    };
    seen.into_iter().map(told).collect()
}

/// Why a region may not have what a ledger says it was sent; `None`: it may.
fn not_to_be_sent(policy: &Policy, flow: &v1::AuditFlow) -> Option<String> {
    let counted = v1::AuditCount {
        tag: flow.tag.clone(),
        kind: Kind::Value.name().into(),
        versions: 1,
        ..v1::AuditCount::default()
    };
    let why = denied(policy, &flow.to, &counted)?;
    let v1::AuditFlow { from, to, .. } = flow;
    Some(format!("{from} sent it to {to}, where {why}"))
}

/// Why a region may not hold what was counted; `None`: it may.
fn denied(policy: &Policy, region: &str, count: &v1::AuditCount) -> Option<String> {
    if count.versions == 0 {
        return None;
    }
    let Ok(region) = RegionName::new(region) else {
        return Some("the node's region has no name that a policy could know".into());
    };
    let Ok(tag) = Tag::new(&count.tag) else {
        return Some("the tag cannot be told".into());
    };
    let Ok(kind) = count.kind.parse::<Kind>() else {
        return Some("the kind is not known, and what is not known is denied".into());
    };
    match may_hold(policy, &tag, &region, kind) {
        Allowed::Allowed => None,
        Allowed::Denied(denial) => Some(denial.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::DEMO;
    use proptest::prelude::*;

    fn policy() -> Policy {
        Policy::parse(DEMO).expect("the demo's policy is valid")
    }

    fn count(tag: &str, kind: Kind, versions: u64) -> v1::AuditCount {
        v1::AuditCount {
            tag: tag.into(),
            kind: kind.name().into(),
            place: "state".into(),
            records: 0,
            versions,
            bytes: versions * 7,
            fingerprint: 0,
        }
    }

    fn report(region: &str, node: u64, counts: Vec<v1::AuditCount>) -> v1::NodeReport {
        v1::NodeReport {
            region: region.into(),
            node,
            counts,
            unread: Vec::new(),
            rows: 1,
            ..v1::NodeReport::default()
        }
    }

    /// What was sent may not lie there any more; the ledger of its sender tells.
    #[test]
    fn what_a_ledger_says_was_sent_is_held_against_the_policy() {
        for (to, verdict) in [("us", Verdict::Fail), ("eu", Verdict::Pass)] {
            let mut sender = report("eu", 1, Vec::new());
            sender.flows.push(v1::AuditFlow {
                tag: "eu-only".into(),
                from: "eu".into(),
                to: to.into(),
                batches: 1,
                records: 3,
            });
            let judged = judge(&policy(), &expected(&[("eu", 1)]), &[sender]);
            assert_eq!(judged.verdict, verdict, "{judged:?}");
            let told = judged
                .findings
                .iter()
                .map(|f| (f.place.as_str(), f.versions));
            let told: Vec<_> = told.collect();
            assert_eq!(told.is_empty(), verdict == Verdict::Pass);
            assert!(told.iter().all(|told| *told == ("ledger", 3)));
        }
    }

    fn expected(names: &[(&str, u64)]) -> BTreeSet<NodeName> {
        names.iter().map(|(r, n)| ((*r).to_owned(), *n)).collect()
    }

    #[test]
    fn what_is_at_home_passes() {
        let reports = [report("eu", 1, vec![count("eu-only", Kind::Value, 3)])];
        let judged = judge(&policy(), &expected(&[("eu", 1)]), &reports);
        assert_eq!(judged.verdict, Verdict::Pass);
    }

    #[test]
    fn one_item_in_the_wrong_region_fails_and_is_named() {
        let reports = [
            report("eu", 1, vec![count("eu-only", Kind::Value, 3)]),
            report("us", 2, vec![count("eu-only", Kind::Tombstone, 1)]),
        ];
        let judged = judge(&policy(), &expected(&[("eu", 1), ("us", 2)]), &reports);
        assert_eq!(judged.verdict, Verdict::Fail);
        let [finding] = &judged.findings[..] else {
            panic!("{judged:?}");
        };
        assert_eq!(finding.node, ("us".to_owned(), 2));
        assert_eq!((&*finding.tag, &*finding.kind), ("eu-only", "tombstone"));
    }

    #[test]
    fn a_missing_node_or_an_unread_row_is_incomplete_and_failure_wins() {
        let fine = report("eu", 1, vec![count("eu-only", Kind::Value, 3)]);
        let all = expected(&[("eu", 1), ("eu", 2)]);
        let judged = judge(&policy(), &all, std::slice::from_ref(&fine));
        assert_eq!(judged.verdict, Verdict::Incomplete);

        let mut unread = fine.clone();
        unread.unread.push(v1::AuditUnread {
            place: "state".into(),
            why: "damaged".into(),
            count: 1,
        });
        let judged = judge(&policy(), &expected(&[("eu", 1)]), &[unread]);
        assert_eq!(judged.verdict, Verdict::Incomplete);

        let bad = report("eu", 1, vec![count("us-only", Kind::Value, 1)]);
        assert_eq!(judge(&policy(), &all, &[bad]).verdict, Verdict::Fail);
    }

    #[test]
    fn copies_are_equal_where_every_node_holds_the_same_newest_versions() {
        let values = |fingerprint| v1::AuditCount {
            records: 2,
            fingerprint,
            ..count("global", Kind::Value, 3)
        };
        // What else there is of a tag is a matter of each node.
        let log = v1::AuditCount {
            place: "log".into(),
            ..count("global", Kind::LogEntry, 9)
        };
        let home = report("eu", 1, vec![values(5), log.clone()]);
        let equal = |mirror: Vec<v1::AuditCount>| {
            let reports = [home.clone(), report("us", 1, mirror)];
            copies(&reports)["global"] == Copies::Equal
        };
        assert!(equal(vec![values(5)]));
        assert!(!equal(vec![values(6)]));
        // It has heard of records and holds none.
        assert!(!equal(vec![log]));
        assert!(!equal(vec![v1::AuditCount {
            records: 1,
            ..values(5)
        }]));
    }

    /// A node that was killed has in its log what its state shows after a start.
    #[test]
    fn a_copy_whose_log_is_not_applied_is_not_compared() {
        let values = |fingerprint| v1::AuditCount {
            records: 2,
            fingerprint,
            ..count("global", Kind::Value, 3)
        };
        let home = report("eu", 1, vec![values(5)]);
        let killed = v1::NodeReport {
            unapplied: vec!["global".into()],
            ..report("us", 1, vec![values(6)])
        };
        let told = |reports: &[v1::NodeReport]| copies(reports)["global"];
        assert_eq!(told(&[home.clone(), killed.clone()]), Copies::Unapplied);
        assert_eq!(told(std::slice::from_ref(&killed)), Copies::Unapplied);
        // It hides no difference of others.
        let other = report("us", 2, vec![values(7)]);
        assert_eq!(told(&[home, killed, other]), Copies::Differ);
    }

    #[test]
    fn what_cannot_be_told_is_denied() {
        for (tag, kind) in [("", "value"), ("no-such", "value"), ("eu-only", "rumour")] {
            let mut odd = count(tag, Kind::Value, 1);
            odd.kind = kind.into();
            let judged = judge(
                &policy(),
                &expected(&[("eu", 1)]),
                &[report("eu", 1, vec![odd])],
            );
            assert_eq!(judged.verdict, Verdict::Fail, "{tag} {kind}");
        }
    }

    proptest! {
        /// Against a table written by hand.
        #[test]
        fn findings_are_what_the_table_forbids(
            tag in prop::sample::select(vec!["eu-only", "us-only", "global", "eu-shared"]),
            region in prop::sample::select(vec!["eu", "us", "ap"]),
            kind in prop::sample::select(Kind::ALL.to_vec()),
            versions in 0_u64..3,
        ) {
            let allowed = match tag {
                "eu-only" | "eu-shared" => region == "eu",
                "us-only" => region == "us",
                _ => true,
            };
            let reports = [report(region, 1, vec![count(tag, kind, versions)])];
            let judged = judge(&policy(), &expected(&[(region, 1)]), &reports);
            let passes = allowed || versions == 0;
            prop_assert_eq!(judged.verdict == Verdict::Pass, passes);
        }
    }
}
