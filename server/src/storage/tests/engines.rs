//! Both engines do what a plain ordered map does.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::storage::rocks::{Instance, Rocks};

#[derive(Clone, Debug)]
enum Step {
    Put(u8, u8),
    Delete(u8),
    DeleteRange(u8, u8),
    Flush,
    Ingest(u8, u8, u8),
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => any::<(u8, u8)>().prop_map(|(key, value)| Step::Put(key % 32, value)),
        2 => any::<u8>().prop_map(|key| Step::Delete(key % 32)),
        1 => any::<(u8, u8)>().prop_map(|(a, b)| Step::DeleteRange(a % 32, b % 32)),
        1 => Just(Step::Flush),
        1 => any::<(u8, u8, u8)>().prop_map(|(a, b, v)| Step::Ingest(a % 32, b % 32, v)),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..24)
}

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

fn check(engine: &dyn Engine, model: &Model) {
    let limit = |rows_max, bytes_max| Limit {
        rows_max,
        bytes_max,
    };
    let pairs = |rows: Vec<Row>| -> Vec<(Vec<u8>, Vec<u8>)> {
        rows.into_iter()
            .map(|row| (row.key.to_vec(), row.value.to_vec()))
            .collect()
    };
    for (start, end) in [(0u8, 32u8), (5, 20), (20, 5), (31, 32)] {
        let range = KeyRange::new(vec![start], vec![end]);
        let expected: Vec<_> = model
            .iter()
            .filter(|(key, _)| range.contains(key))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let all = engine.scan(&range, limit(usize::MAX, usize::MAX)).unwrap();
        assert_eq!(pairs(all), expected);
        let some = engine.scan(&range, limit(3, usize::MAX)).unwrap();
        assert_eq!(pairs(some), expected[..expected.len().min(3)]);
        let first = engine.scan(&range, limit(usize::MAX, 0)).unwrap();
        assert_eq!(pairs(first), expected[..expected.len().min(1)]);
        let last = engine.last(&range).unwrap().into_iter().collect();
        assert_eq!(pairs(last).last(), expected.last());
        let view = engine.view().unwrap();
        assert_eq!(
            pairs(view.scan(&range, limit(usize::MAX, usize::MAX)).unwrap()),
            expected
        );
    }
    for key in 0..32u8 {
        let value = engine.get(&[key]).unwrap().map(|value| value.to_vec());
        assert_eq!(value.as_ref(), model.get(&vec![key]));
    }
}

/// Runs the steps; `reopen` closes and opens the engine.
fn run(
    mut engine: Box<dyn Engine>,
    reopen: impl Fn(Box<dyn Engine>) -> Box<dyn Engine>,
    steps: &[Step],
) {
    let mut model = Model::new();
    for step in steps {
        let mut batch = WriteBatch::new();
        match *step {
            Step::Put(key, value) => {
                // Later changes of a batch win.
                batch.put(vec![key], vec![0]);
                batch.put(vec![key], vec![value]);
                model.insert(vec![key], vec![value]);
            }
            Step::Delete(key) => {
                batch.delete(vec![key]);
                model.remove(&vec![key]);
            }
            Step::DeleteRange(a, b) => {
                batch.delete_range(KeyRange::new(vec![a], vec![b]));
                batch.put(vec![a], vec![1]);
                model.retain(|key, _| !(a..b).contains(&key[0]));
                model.insert(vec![a], vec![1]);
            }
            Step::Flush => engine.flush().unwrap(),
            Step::Ingest(a, b, value) => {
                let (a, b) = (a.min(b), a.max(b));
                let mut stage = engine.stage("snapshot-1").unwrap();
                for key in (a..b).step_by(2) {
                    stage.append(&[key], &[value]).unwrap();
                }
                assert!(b <= a + 1 || stage.append(&[a], &[0]).is_err());
                stage.finish().unwrap();
                let view = engine.view().unwrap();
                let before = view.get(&[a]).unwrap();
                let mut then = WriteBatch::new();
                then.put(vec![33], vec![value]);
                engine
                    .ingest("snapshot-1", &[KeyRange::new(vec![a], vec![b])], then)
                    .unwrap();
                assert_eq!(view.get(&[a]).unwrap(), before, "a view does not move");
                assert!(engine.staged().unwrap().is_empty());
                model.retain(|key, _| !(a..b).contains(&key[0]));
                model.extend((a..b).step_by(2).map(|key| (vec![key], vec![value])));
                model.insert(vec![33], vec![value]);
            }
            Step::Reopen => {
                engine.flush().unwrap();
                engine = reopen(engine);
            }
        }
        engine.write(batch, Durability::Buffered).unwrap();
        check(&*engine, &model);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn memory_is_an_ordered_map(steps in steps()) {
        run(Box::new(Memory::new("state", 1)), |engine| engine, &steps);
    }

    #[test]
    fn rocks_is_an_ordered_map(steps in steps()) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let state = Instance::State {
            cache_bytes: 1 << 20,
            memtable_bytes: 1 << 20,
        };
        let open = || Box::new(Rocks::open(&path, state, true).unwrap()) as Box<dyn Engine>;
        run(open(), |engine| { drop(engine); open() }, &steps);
    }

    /// A crash leaves everything synced and a prefix of the rest.
    #[test]
    fn memory_forgets_only_what_is_not_synced(seed: u64, synced in 0u8..20, more in 0u8..20) {
        for survivors in [Survivors::Nothing, Survivors::Prefix] {
            let engine = Memory::new("state", seed);
            for key in 0..synced + more {
                let mut batch = WriteBatch::new();
                batch.put(vec![key], vec![key]);
                engine.write(batch, Durability::Buffered).unwrap();
                if key + 1 == synced {
                    engine.flush().unwrap();
                }
            }
            engine.crash(survivors);
            let left = (0..=u8::MAX).take_while(|key| engine.get(&[*key]).unwrap().is_some()).count();
            let all = engine.scan(
                &KeyRange::prefix(vec![]), Limit { rows_max: 999, bytes_max: 9999 },
            ).unwrap().len();
            prop_assert_eq!(all, left, "no hole");
            prop_assert!(left >= usize::from(synced) && left <= usize::from(synced + more));
            if survivors == Survivors::Nothing && synced > 0 {
                prop_assert_eq!(left, usize::from(synced));
            }
        }
    }
}

/// A crash behind any step of an ingest leaves all of it or, before its order
/// is written, none of it.
#[test]
fn a_crash_behind_any_step_of_an_ingest_is_repaired() {
    let state = Instance::State {
        cache_bytes: 1 << 20,
        memtable_bytes: 1 << 20,
    };
    for done in 0..=rocks::INGEST.len() {
        let directory = tempfile::tempdir().unwrap();
        let image = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let engine = Rocks::open(&path, state, true).unwrap();
        let mut batch = WriteBatch::new();
        batch.put("a1", "old");
        batch.put("b1", "other");
        engine.write(batch, Durability::Synced).unwrap();
        // Not on disk yet when the ingest begins.
        let mut batch = WriteBatch::new();
        batch.put("a3", "late");
        batch.put("b2", "late");
        engine.write(batch, Durability::Buffered).unwrap();
        let mut stage = engine.stage("s").unwrap();
        stage.append(b"a2", b"new").unwrap();
        stage.finish().unwrap();
        let mut then = WriteBatch::new();
        then.put("m", "done");
        let staging = rocks::stage::Staging::new(path.with_extension("staged"));
        staging
            .commit("s", &[KeyRange::prefix("a")], &then)
            .unwrap();
        for step in &rocks::INGEST[..done] {
            step(&engine, "s").unwrap();
        }
        // What a power cut leaves: the files, without what is in memory.
        copy_at_rest(directory.path(), image.path());
        let after = Rocks::open(&image.path().join("state"), state, false).unwrap();
        let everything = KeyRange::prefix("");
        let limit = Limit {
            rows_max: 99,
            bytes_max: 9999,
        };
        let rows = after.scan(&everything, limit).unwrap();
        let mut keys: Vec<_> = rows.iter().map(|row| row.key.clone()).collect();
        if done == 0 {
            // Before the first step it may be lost with the crash.
            keys.retain(|key| key != "b2");
            assert_eq!(keys, ["a2", "b1", "m"], "after {done} steps");
        } else {
            assert_eq!(keys, ["a2", "b1", "b2", "m"], "after {done} steps");
        }
        assert!(after.staged().unwrap().is_empty(), "after {done} steps");
    }
}

/// An ingest that a crash interrupted is finished by opening the instance.
#[test]
fn an_ingest_that_began_is_finished() {
    let directory = tempfile::tempdir().unwrap();
    let state = Instance::State {
        cache_bytes: 1 << 20,
        memtable_bytes: 1 << 20,
    };
    let path = directory.path().join("state");
    let image = tempfile::tempdir().unwrap();
    {
        let engine = Rocks::open(&path, state, true).unwrap();
        let mut batch = WriteBatch::new();
        batch.put("a1", "old");
        batch.put("b1", "other");
        engine.write(batch, Durability::Synced).unwrap();
        let mut stage = engine.stage("s").unwrap();
        stage.append(b"a2", b"new").unwrap();
        stage.finish().unwrap();
        let mut then = WriteBatch::new();
        then.put("m", "done");
        let staging = rocks::stage::Staging::new(path.with_extension("staged"));
        // Without an order, the stage is only staged.
        copy_at_rest(directory.path(), image.path());
        staging
            .commit("s", &[KeyRange::prefix("a")], &then)
            .unwrap();
    }
    let unordered = Rocks::open(&image.path().join("state"), state, false).unwrap();
    assert_eq!(unordered.get(b"a1").unwrap().unwrap(), "old");
    assert_eq!(unordered.staged().unwrap(), ["s"]);
    let engine = Rocks::open(&path, state, false).unwrap();
    assert_eq!(engine.get(b"a1").unwrap(), None);
    assert_eq!(engine.get(b"a2").unwrap().unwrap(), "new");
    assert_eq!(engine.get(b"b1").unwrap().unwrap(), "other");
    assert_eq!(engine.get(b"m").unwrap().unwrap(), "done");
    assert!(engine.staged().unwrap().is_empty());
}

/// Copying would take as long as the files are large, and the group stands still
/// meanwhile.
#[test]
fn staged_files_are_taken_over_and_not_copied() {
    use std::os::unix::fs::MetadataExt as _;

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    let state = Instance::State {
        cache_bytes: 1 << 20,
        memtable_bytes: 1 << 20,
    };
    let engine = Rocks::open(&path, state, true).unwrap();
    let mut stage = engine.stage("s").unwrap();
    stage.append(b"a", b"new").unwrap();
    stage.finish().unwrap();
    let staging = rocks::stage::Staging::new(path.with_extension("staged"));
    let inode = |path: &Path| std::fs::metadata(path).unwrap().ino();
    let staged = inode(&staging.files("s").unwrap()[0]);
    engine
        .ingest("s", &[KeyRange::prefix("a")], WriteBatch::new())
        .unwrap();
    let taken = std::fs::read_dir(&path).unwrap();
    assert!(taken.flatten().any(|file| inode(&file.path()) == staged));
    assert_eq!(engine.get(b"a").unwrap().unwrap(), "new");
}

/// What is in memory is answered at once, and what is not asks for the disk; the
/// same for writes while flushes are behind.
#[test]
fn what_would_wait_for_the_disk_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let instance = Instance::State {
        cache_bytes: 1024 * 1024,
        memtable_bytes: 64 * 1024,
    };
    let open = |create| Rocks::open(directory.path(), instance, create).unwrap();
    let key = |at: u32| Bytes::from(at.to_be_bytes().to_vec());
    let big = Bytes::from(vec![7; 32 * 1024]);
    let rocks = open(true);
    let (mut written, mut waits) = (0, 0);
    // Faster than any disk flushes it.
    for at in 0..2_000 {
        let mut batch = WriteBatch::new();
        batch.put(key(at), big.clone());
        match rocks.write_at_once(&batch).unwrap() {
            true => written += 1,
            false => {
                waits += 1;
                rocks.write(batch, Durability::Buffered).unwrap();
            }
        }
    }
    assert!(written > 0 && waits > 0, "{written} at once, {waits} not");
    assert_eq!(
        rocks.get_at_once(&key(1_999)).unwrap(),
        Some(Some(big.clone()))
    );
    rocks.flush().unwrap();
    drop(rocks);
    let rocks = open(false);
    assert_eq!(rocks.get_at_once(&key(0)).unwrap(), None);
    let range = KeyRange::one(key(0));
    assert!(rocks.first_at_once(&range).unwrap().is_none());
    assert_eq!(rocks.get(&key(0)).unwrap(), Some(big.clone()));
    assert_eq!(rocks.get_at_once(&key(0)).unwrap(), Some(Some(big)));
    // A range may lie in more files than the key does.
    let first = rocks.first_at_once(&range).unwrap();
    assert!(first.is_none_or(|first| first.is_some()));
}
