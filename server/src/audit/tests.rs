//! A row planted where it may not be is found, wherever it is planted.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use domicile_proto::audit::{Copies, Verdict, copies, judge};
use domicile_proto::disk::v1 as disk;
use domicile_proto::policy::{DEMO, Policy};
use domicile_proto::v1::NodeReport;
use prost::Message;

use super::{control, scan};
use crate::storage::{
    CONTROL_GROUP, Contents, Disk, DiskOptions, Durability, GroupId, Index, WriteBatch, keys,
    record,
};

const KEY: &[u8] = b"canary-key";
const VALUE: &[u8] = b"canary-value";

fn open(folder: &std::path::Path) -> Disk {
    let mut options = DiskOptions::new("eu", 1, Arc::new(|| Duration::ZERO));
    options.ballast_bytes = 0;
    options.reserve_bytes = 0;
    Disk::open(folder, options).expect("opens")
}

fn row(tag: &str) -> disk::StoredRecord {
    row_of(tag, 7)
}

fn row_of(tag: &str, version: u64) -> disk::StoredRecord {
    disk::StoredRecord {
        origin: "eu".into(),
        tag: tag.into(),
        version,
        value: Some(disk::Value {
            bytes: Bytes::from_static(VALUE),
            ..disk::Value::default()
        }),
        ..disk::StoredRecord::default()
    }
}

fn put<M: Message>(disk: &Disk, key: Bytes, message: &M) {
    let value = record::seal(&key, message);
    put_bytes(disk, key, value);
}

fn put_bytes(disk: &Disk, key: Bytes, value: Bytes) {
    let mut batch = WriteBatch::new();
    batch.put(key, value);
    disk.state
        .write(batch, Durability::Synced)
        .expect("written");
}

fn add_group(disk: &Disk, group: u64, tag: &str) {
    disk.add_replica(disk::AnchoredReplica {
        group,
        tag: tag.into(),
        incarnation: 1,
        replica: 1,
        ..disk::AnchoredReplica::default()
    })
    .expect("added");
}

/// Writes the first entry of a group's log.
fn log(disk: &Disk, group: u64, command: disk::command::Command) {
    let command = disk::Command {
        fence: None,
        command: Some(command),
    };
    let entry = disk::LogEntry {
        log_id: Some(disk::LogId::default()),
        payload: Some(disk::log_entry::Payload::Command(
            command.encode_to_vec().into(),
        )),
    };
    let (done, synced) = std::sync::mpsc::channel();
    disk.log.append(
        GroupId(group),
        vec![(Index(0), entry.encode_to_vec().into())],
        Box::new(move |result| done.send(result.is_ok()).expect("waited for")),
    );
    assert!(synced.recv().expect("answered"));
}

/// The same from the running node and from its directory.
fn reports(disk: Disk, folder: &std::path::Path) -> [NodeReport; 2] {
    let running = scan(&Contents::of(&disk).expect("read")).expect("scanned");
    disk.close().expect("closes");
    drop(disk);
    let stopped = scan(&Contents::open(folder).expect("read")).expect("scanned");
    [running, stopped]
}

fn verdict(report: &NodeReport) -> (Verdict, String) {
    let policy = Policy::parse(DEMO).expect("valid");
    let expected = [("eu".to_owned(), 1)].into();
    let judged = judge(&policy, &expected, std::slice::from_ref(report));
    (judged.verdict, format!("{judged:?}"))
}

/// Plants something beside a lawful record, and expects to find it in `place`.
fn planted(place: &str, plant: impl FnOnce(&Disk)) {
    let folder = tempfile::tempdir().expect("a folder");
    let disk = open(folder.path());
    put(&disk, keys::record("eu-only", KEY), &row("eu-only"));
    plant(&disk);
    for report in reports(disk, folder.path()) {
        let (verdict, said) = verdict(&report);
        assert_eq!(verdict, Verdict::Fail, "{said}");
        assert!(said.contains("us-only") && said.contains(place), "{said}");
        assert!(!said.contains("canary"), "{said}");
    }
}

#[test]
fn a_lawful_disk_passes() {
    let folder = tempfile::tempdir().expect("a folder");
    let disk = open(folder.path());
    add_group(&disk, 16, "eu-only");
    put(&disk, keys::record("eu-only", KEY), &row("eu-only"));
    put(&disk, keys::history("eu-only", KEY, 3), &row("eu-only"));
    for report in reports(disk, folder.path()) {
        assert_eq!(verdict(&report).0, Verdict::Pass, "{report:?}");
        let values: u64 = report
            .counts
            .iter()
            .filter(|count| count.kind == "value")
            .map(|count| count.versions)
            .sum();
        assert_eq!(values, 2);
    }
}

/// Whether the disks of two regions with these records of a tag, newest version
/// and older one, have equal copies of it.
fn are_equal(home: &[(&[u8], u64, u64)], mirror: &[(&[u8], u64, u64)]) -> bool {
    let reports = [("eu", home), ("us", mirror)].map(|(region, records)| {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = open(folder.path());
        for (key, newest, older) in records {
            put(
                &disk,
                keys::record("global", key),
                &row_of("global", *newest),
            );
            let history = keys::history("global", key, *older);
            put(&disk, history, &row_of("global", *older));
        }
        let [running, stopped] = reports(disk, folder.path());
        assert_eq!(running.counts, stopped.counts);
        NodeReport {
            region: region.to_owned(),
            ..running
        }
    });
    copies(&reports)["global"] == Copies::Equal
}

#[test]
fn copies_are_equal_by_the_newest_versions_alone() {
    let home: [(&[u8], u64, u64); 2] = [(b"a", 5, 1), (b"b", 9, 2)];
    assert!(are_equal(&home, &home));
    // What a mirror never got of the past is no difference.
    assert!(are_equal(&home, &[(b"a", 5, 3), (b"b", 9, 4)]));
    // As many records, and one of them is old.
    assert!(!are_equal(&home, &[(b"a", 5, 1), (b"b", 2, 1)]));
    assert!(!are_equal(&home, &home[..1]));
}

#[test]
fn a_planted_record_is_found() {
    planted("state", |disk| {
        put(disk, keys::record("us-only", KEY), &row("us-only"));
    });
}

/// What writes came to tells what they wrote, to who can guess it.
#[test]
fn planted_outcomes_in_the_log_are_found() {
    planted("log", |disk| {
        add_group(disk, 18, "us-only");
        let digest = Bytes::from_static(&[7; 16]);
        let outcome = disk::StoredOutcome {
            digest,
            ..disk::StoredOutcome::default()
        };
        let row = disk::StoredOutcomes {
            outcomes: vec![outcome],
            ..disk::StoredOutcomes::default()
        };
        let page = disk::Backfill {
            outcomes: vec![disk::CopiedOutcomes {
                row: Some(row),
                ..disk::CopiedOutcomes::default()
            }],
            ..disk::Backfill::default()
        };
        log(disk, 18, disk::command::Command::Backfill(page));
    });
}

#[test]
fn a_planted_old_version_is_found() {
    planted("state", |disk| {
        put(disk, keys::history("us-only", KEY, 3), &row("us-only"));
    });
}

#[test]
fn a_record_that_says_another_tag_than_its_key_is_found() {
    planted("state", |disk| {
        put(disk, keys::record("eu-only", b"other"), &row("us-only"));
    });
}

#[test]
fn a_planted_staged_row_is_found() {
    planted("staged", |disk| {
        let mut stage = disk.state.stage("snapshot-1").expect("staged");
        let key = keys::record("us-only", KEY);
        let framed = record::seal(&key, &row("us-only"));
        stage.append(&key, &framed).expect("appended");
        stage.finish().expect("finished");
    });
}

/// A crash in the middle of a snapshot leaves rows in a file that is none yet.
#[test]
fn a_draft_of_a_stage_is_not_passed_over() {
    let folder = tempfile::tempdir().expect("a folder");
    let disk = open(folder.path());
    let mut stage = disk.state.stage("snapshot-1").expect("staged");
    let key = keys::record("eu-only", KEY);
    stage
        .append(&key, &record::seal(&key, &row("eu-only")))
        .expect("appended");
    stage.finish().expect("finished");
    let unread = || {
        let report = scan(&Contents::of(&disk).expect("contents")).expect("scanned");
        report
            .unread
            .iter()
            .map(|unread| unread.place.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(unread(), Vec::<String>::new());
    let stage = folder.path().join("state.staged/snapshot-1");
    std::fs::write(stage.join("0000000001.sst.draft"), VALUE).expect("written");
    assert_eq!(unread(), ["staged"]);
}

#[test]
fn a_planted_log_entry_is_found() {
    planted("log", |disk| {
        add_group(disk, 17, "us-only");
        let operation = disk::Operation {
            key: Bytes::from_static(KEY),
            version: 1,
            change: Some(disk::operation::Change::Put(disk::Value {
                bytes: Bytes::from_static(VALUE),
                ..disk::Value::default()
            })),
            ..disk::Operation::default()
        };
        log(
            disk,
            17,
            disk::command::Command::Batch(disk::Batch {
                operations: vec![operation],
                request_limits: None,
            }),
        );
    });
}

#[test]
fn what_is_not_known_is_not_passed_over() {
    let folder = tempfile::tempdir().expect("a folder");
    let disk = open(folder.path());
    let odd = Bytes::from_static(b"\xEEodd");
    put_bytes(&disk, odd, Bytes::from_static(b"?"));
    let damaged = Bytes::from_static(b"damaged");
    put_bytes(&disk, keys::record("eu-only", KEY), damaged);
    // Sound, but written for another key.
    let elsewhere = record::seal(&keys::record("eu-only", b"b"), &row("eu-only"));
    put_bytes(&disk, keys::record("eu-only", b"a"), elsewhere);
    std::fs::write(folder.path().join("copy.bin"), VALUE).expect("written");
    for report in reports(disk, folder.path()) {
        assert_eq!(verdict(&report).0, Verdict::Incomplete, "{report:?}");
        let unread: u64 = report.unread.iter().map(|unread| unread.count).sum();
        assert_eq!(unread, 4, "{report:?}");
    }
}

/// A leader that came too late, as the last of three that stop, has only that to say.
#[test]
fn a_copy_is_unapplied_where_its_log_has_more_records() {
    use disk::command::Command::{Batch, RaiseFence};
    let records = Batch(disk::Batch::default());
    let none = RaiseFence(disk::RaiseFence::default());
    for (last, unapplied) in [(records, vec!["eu-only".to_owned()]), (none, vec![])] {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = open(folder.path());
        add_group(&disk, 16, "eu-only");
        log(&disk, 16, last);
        let [_, stopped] = reports(disk, folder.path());
        assert_eq!(stopped.unapplied, unapplied);
    }
}

#[test]
fn a_disk_says_its_cluster_even_if_only_its_log_is_left() {
    let folder = tempfile::tempdir().expect("a folder");
    let known = |folder: &std::path::Path| {
        let contents = Contents::open(folder).expect("read");
        let control = control(&contents).expect("decoded");
        control.map(|control| (control.name, control.policy))
    };
    open(folder.path()).close().expect("closes");
    assert_eq!(known(folder.path()), None);

    let state = |name: &str| disk::Control {
        name: name.into(),
        policy: DEMO.into(),
        ..disk::Control::default()
    };
    let formed = disk::ControlChange {
        change: Some(disk::control_change::Change::Formed(state("logged"))),
    };
    let disk = open(folder.path());
    add_group(&disk, CONTROL_GROUP.0, "");
    log(
        &disk,
        CONTROL_GROUP.0,
        disk::command::Command::Control(formed),
    );
    disk.close().expect("closes");
    drop(disk);
    assert_eq!(known(folder.path()), Some(("logged".into(), DEMO.into())));

    let disk = open(folder.path());
    put(&disk, keys::control(CONTROL_GROUP), &state("applied"));
    disk.close().expect("closes");
    drop(disk);
    assert_eq!(known(folder.path()), Some(("applied".into(), DEMO.into())));
}

/// A store that lost what it acknowledged may have lost a record that must not
/// have been there.
#[test]
fn a_store_behind_its_anchor_is_no_proof() {
    let lose: [fn(&Disk); 2] = [
        |disk| {
            let update = |anchor: &mut disk::Anchor| anchor.replicas[0].log_floor = 99;
            disk.anchor.update(update).expect("written");
        },
        |disk| {
            let update = |anchor: &mut disk::Anchor| anchor.replicas[0].applied_floor = 99;
            disk.anchor.update(update).expect("written");
        },
    ];
    for lose in lose {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = open(folder.path());
        add_group(&disk, 17, "eu-only");
        put(&disk, keys::record("eu-only", KEY), &row("eu-only"));
        lose(&disk);
        let [_, stopped] = reports(disk, folder.path());
        let found = stopped.unread.iter().any(|unread| unread.place == "store");
        assert!(found, "{stopped:?}");
        let (verdict, said) = verdict(&stopped);
        assert_eq!(verdict, Verdict::Incomplete, "{said}");
    }
}

/// A row of the ledger of `group`, of a batch for a region.
fn ledger_row(cluster: &Bytes, group: u64, tag: &str, to: &str) -> disk::LedgerRow {
    disk::LedgerRow {
        cluster: cluster.clone(),
        range: group,
        tag: tag.into(),
        from: "eu".into(),
        to: to.into(),
        incarnation: 1,
        part: Some(disk::ledger_row::Part::Page(disk::LedgerPage::default())),
        transfer: 9,
        records: 2,
        ..disk::LedgerRow::default()
    }
}

/// Puts a row of what was sent.
fn put_sent(disk: &Disk, row: &disk::LedgerRow) {
    let key = keys::LedgerKey {
        group: GroupId(row.range),
        to: &row.to,
        incarnation: row.incarnation,
        is_page: true,
        at: [0; 3],
        transfer: row.transfer,
    };
    put(disk, key.sent(), row);
}

#[test]
fn what_the_ledger_says_was_sent_is_judged() {
    let cluster = Bytes::from_static(&[7; 16]);
    let foreign = Bytes::from_static(&[8; 16]);
    for (row, expected) in [
        (ledger_row(&cluster, 17, "global", "us"), Verdict::Pass),
        (ledger_row(&cluster, 17, "global", "mars"), Verdict::Fail),
        // Of another cluster, and of another tag than its group is.
        (
            ledger_row(&foreign, 17, "global", "us"),
            Verdict::Incomplete,
        ),
        (
            ledger_row(&cluster, 17, "eu-only", "eu"),
            Verdict::Incomplete,
        ),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = open(folder.path());
        let of = |anchor: &mut disk::Anchor| anchor.cluster = cluster.clone();
        disk.anchor.update(of).expect("written");
        add_group(&disk, 17, "global");
        put_sent(&disk, &row);
        for report in reports(disk, folder.path()) {
            assert_eq!(verdict(&report).0, expected, "{report:?}");
        }
    }
}

/// Who has a key of a tag can find out its records by guesses.
#[test]
fn a_key_of_a_tag_that_may_not_be_there_is_found() {
    planted("state", |disk| {
        add_group(disk, 17, "us-only");
        let key = disk::TagKey {
            id: 1,
            commitment: Bytes::from_static(&[7; 32]),
            token: Bytes::from_static(&[8; 32]),
            holders: Vec::new(),
        };
        let stored = disk::StoredTagKeys { keys: vec![key] };
        put(disk, keys::tag_keys(GroupId(17)), &stored);
    });
}

#[test]
fn rows_of_a_group_that_is_not_here_are_told() {
    for key in [keys::group_state(GroupId(17)), keys::tag_keys(GroupId(17))] {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = open(folder.path());
        put(&disk, key, &disk::GroupState::default());
        for report in reports(disk, folder.path()) {
            assert_eq!(verdict(&report).0, Verdict::Incomplete, "{report:?}");
        }
    }
}
