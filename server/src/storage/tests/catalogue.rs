//! Every key parses back to its parts, and keys sort as their parts do.

use proptest::prelude::*;

use crate::storage::keys::*;
use crate::storage::{GroupId, Index, Span};

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    // Zeros and 0xff are where escaping goes wrong.
    prop::collection::vec(
        prop_oneof![Just(0u8), Just(0xff), Just(1), any::<u8>()],
        0..8,
    )
}

fn tag() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("a".to_owned()),
        Just("a-b".to_owned()),
        Just("ab".to_owned())
    ]
}

proptest! {
    #[test]
    fn keys_parse_back(
        group: u64, index: u64, epoch: u64, version: u64,
        key in bytes(), tag in tag(),
    ) {
        let (group, index) = (GroupId(group), Index(index));
        prop_assert_eq!(parse_group_state(&group_state(group)).unwrap(), group);
        prop_assert_eq!(parse_catalog(&catalog(group)).unwrap(), group);
        let at = (group, epoch, index);
        prop_assert_eq!(parse_outcomes(&outcomes(group, epoch, index)).unwrap(), at);
        prop_assert_eq!(parse_audit_leaf(&audit_leaf(group, index)).unwrap(), (group, index));
        prop_assert_eq!(parse_change(&change(group, epoch, index)).unwrap(), at);
        let row = record(&tag, &key);
        prop_assert_eq!(parse_record(&row).unwrap(), (&*tag, &*key));
        let row = history(&tag, &key, version);
        prop_assert_eq!(parse_history(&row).unwrap(), (&*tag, key, version));
        prop_assert_eq!(parse_log_entry(&log_entry(group, index)).unwrap(), (group, index));
    }

    #[test]
    fn keys_sort_as_their_parts(
        a in (tag(), bytes(), any::<u64>()), b in (tag(), bytes(), any::<u64>()),
    ) {
        // Between tags only "apart" is promised; within one, keys ascend and
        // versions descend.
        if a.0 == b.0 {
            prop_assert_eq!(record(&a.0, &a.1).cmp(&record(&b.0, &b.1)), a.1.cmp(&b.1));
            let parts = a.1.cmp(&b.1).then(b.2.cmp(&a.2));
            prop_assert_eq!(history(&a.0, &a.1, a.2).cmp(&history(&b.0, &b.1, b.2)), parts);
        }
        prop_assert_eq!(records(&a.0, &[], None).contains(&record(&b.0, &b.1)), a.0 == b.0);
        prop_assert_eq!(
            histories(&a.0, &[], None).contains(&history(&b.0, &b.1, b.2)), a.0 == b.0
        );
        prop_assert_eq!(
            versions(&a.0, &a.1, a.2).contains(&history(&b.0, &b.1, b.2)),
            a.0 == b.0 && a.1 == b.1 && b.2 <= a.2
        );
        let end = Some(&b.1[..]);
        if a.0 == b.0 {
            prop_assert_eq!(records(&a.0, &[], end).contains(&record(&a.0, &a.1)), a.1 < b.1);
            prop_assert_eq!(
                histories(&a.0, &[], end).contains(&history(&a.0, &a.1, a.2)), a.1 < b.1
            );
        }
    }

    /// A group's ranges hold all its keys and none of another group or tag.
    #[test]
    fn everything_is_the_groups_own(group in 0u64..4, other in 0u64..4, index: u64, key in bytes()) {
        let (own, group, other) = (group == other, GroupId(group), GroupId(other));
        let ranges = everything(group, "a", &Span::default(), ("us", 1));
        let holds = |row: &[u8]| ranges.iter().any(|range| range.contains(row));
        for row in [
            group_state(other), catalog(other), outcomes(other, 1, Index(index)),
            audit_leaf(other, Index(index)), change(other, 3, Index(index)),
        ] {
            prop_assert_eq!(holds(&row), own);
        }
        prop_assert!(holds(&record("a", &key)) && holds(&history("a", &key, index)));
        prop_assert!(!holds(&record("ab", &key)) && !holds(&history("a-", &key, index)));
        prop_assert_eq!(log_everything(group).contains(&log_entry(other, Index(index))), own);
        prop_assert!(ranges.is_sorted());
    }

    /// Truncated and foreign keys are errors, never another key or a panic.
    #[test]
    fn other_bytes_are_no_keys(row in prop::collection::vec(any::<u8>(), 0..24)) {
        let parsed = [
            parse_group_state(&row).is_ok_and(|group| group_state(group) != row),
            parse_change(&row).is_ok_and(|(group, epoch, at)| change(group, epoch, at) != row),
            parse_record(&row).is_ok_and(|(tag, key)| record(tag, key) != row),
            parse_history(&row).is_ok_and(|(tag, key, at)| history(tag, &key, at) != row),
            parse_log_entry(&row).is_ok_and(|(group, index)| log_entry(group, index) != row),
        ];
        prop_assert_eq!(parsed, [false; 5]);
    }
}

/// A snapshot has every row of its group: whoever adds a table says here what a row
/// of it is called, and it must be in [`everything`], once.
#[test]
fn everything_of_a_group_is_everything() {
    const TAG: &str = "eu-only";
    let group = GroupId(17);
    let ledger = LedgerKey {
        group,
        to: "us",
        incarnation: 1,
        is_page: false,
        at: [1, 2, 3],
        transfer: 9,
    };
    let rows_of = |table: Table| match table {
        Table::GroupState => vec![group_state(group)],
        Table::Record => vec![record(TAG, b"\0"), record(TAG, b"\xff\xff")],
        Table::History => vec![history(TAG, b"\0", 7), history(TAG, b"\xff", 0)],
        Table::Change => vec![change(group, 1, Index(2))],
        Table::Outcomes => vec![outcomes(group, 1, Index(2))],
        Table::AuditLeaf => vec![audit_leaf(group, Index(0))],
        Table::Catalog => vec![catalog(group)],
        Table::Control => vec![control(group)],
        Table::Ledger => vec![ledger.received(), ledger.sent()],
        Table::TagKeys => vec![tag_keys(group)],
    };
    let ranges = everything(group, TAG, &Span::default(), ("us", 1));
    let mut sorted = ranges.clone();
    sorted.sort();
    assert_eq!(ranges, sorted, "a snapshot's rows must ascend");
    let mut prefixes = std::collections::BTreeSet::new();
    for first in 0..=u8::MAX {
        let Ok(table) = table_of(&[first]) else {
            continue;
        };
        for row in rows_of(table) {
            assert_eq!(table_of(&row).unwrap(), table);
            let within = ranges.iter().filter(|range| range.contains(&row));
            assert_eq!(within.count(), 1, "{table:?}");
            prefixes.insert(row[0]);
            // Of another group, or of another tag: none of it.
            let other = everything(GroupId(18), "us-only", &Span::default(), ("us", 1));
            assert!(!other.iter().any(|range| range.contains(&row)), "{table:?}");
        }
    }
    // What was received before stays, and is of no snapshot.
    let before = LedgerKey {
        incarnation: 0,
        ..ledger
    };
    assert!(
        !ranges
            .iter()
            .any(|range| range.contains(&before.received()))
    );
    let kept = removable(group, TAG, &Span::default());
    assert!(!kept.iter().any(|range| range.contains(&ledger.received())));
    let known = (0..=u8::MAX).filter(|first| table_of(&[*first]).is_ok());
    assert!(known.eq(prefixes), "a prefix has no row here");
}
