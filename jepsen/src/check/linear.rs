//! Linearizability of registers with compare-and-set and delete, one key at a time.
//!
//! The search is Wing and Gong's ("Testing and Verifying Concurrent Objects", JPDC 1993) as extended by Lowe ("Testing for Linearizability", 2017, §5: undo by linked list, memoisation of configurations); locality (Herlihy and Wing 1990, §3.3) allows one search per key.
//! Cache keys are exact: the state, the linearized completed calls as an offset and a window, and the linearized unknown calls. No fingerprint can hide a violation.
//! A call without an answer may take effect at any time or never.
//!
//! Two reductions keep it fast, both with a proof in place: reads that are legal now are taken now, and an unknown write that nobody saw is left out.
//!
//! Not done here: reads below `strong`, see [`super::session`] and [`super::staleness`].

mod shrink;

use std::collections::{BTreeMap, BTreeSet, HashSet};

pub use shrink::shrink;

use super::timeline::Bar;
use super::{Finding, Verdict};
use crate::history::{CONDITION_FAILED, F, History, Level, Operation, Outcome, Process, Value};

/// The state of a register: an interned value, [`ABSENT`] when there is none.
pub type State = u32;

/// The state of a register that does not exist.
pub const ABSENT: State = 0;

/// Configurations tried per key before the answer is [`Verdict::Unknown`]; about ten seconds of work.
pub const STEPS_MAX: u64 = 20_000_000;

/// What one call did to the register, or saw of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Saw this state.
    Read(State),
    /// Made this state; a delete makes [`ABSENT`].
    Write(State),
    /// Saw the first and made the second.
    Cas(State, State),
    /// Saw that the state was not this one, and left it: a refused compare.
    Mismatch(State),
}

impl Action {
    /// The state after this action, or nothing if it cannot happen here.
    pub fn apply(self, state: State) -> Option<State> {
        match self {
            Action::Read(seen) => (seen == state).then_some(state),
            Action::Write(made) => Some(made),
            Action::Cas(seen, made) => (seen == state).then_some(made),
            Action::Mismatch(refused) => (refused != state).then_some(state),
        }
    }

    /// Whether the action leaves every state as it is.
    pub fn is_pure(self) -> bool {
        matches!(self, Action::Read(_) | Action::Mismatch(_))
    }

    fn made(self) -> Option<State> {
        match self {
            Action::Write(made) | Action::Cas(_, made) => Some(made),
            _ => None,
        }
    }

    fn seen(self) -> Option<State> {
        match self {
            Action::Read(seen) | Action::Cas(seen, _) => Some(seen),
            _ => None,
        }
    }
}

/// One call on a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// What it did.
    pub action: Action,
    /// When it was invoked, in the total order.
    pub called: u64,
    /// When it returned; `u64::MAX` if it never did.
    pub returned: u64,
    /// The caller's number for it.
    pub id: usize,
}

impl Call {
    fn is_pending(&self) -> bool {
        self.returned == u64::MAX
    }
}

/// Whether calls are linearizable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A linearization exists.
    Yes,
    /// None exists.
    No,
    /// The budget ran out.
    Unknown,
}

/// A key that is not linearizable, with a small subset of its calls that already is not.
#[derive(Clone, Debug)]
pub struct Counterexample {
    /// The key.
    pub key: String,
    /// The calls, in order of invocation, ready for [`super::timeline`].
    pub bars: Vec<Bar>,
    /// The lines of the history involved.
    pub ops: Vec<u64>,
}

/// The verdict and what explains it.
#[derive(Clone, Debug)]
pub struct Report {
    /// The verdict.
    pub verdict: Verdict,
    /// One counterexample per failing key.
    pub counterexamples: Vec<Counterexample>,
    /// How many calls were judged.
    pub checked: u64,
}

/// Judges every register of a history with the default budget.
pub fn check(history: &History) -> Report {
    check_within(history, STEPS_MAX)
}

/// Judges every register of a history, trying at most `steps_max` configurations per key.
pub fn check_within(history: &History, steps_max: u64) -> Report {
    let operations = history.operations();
    let mut keys: BTreeMap<&str, Vec<Operation<'_>>> = BTreeMap::new();
    for operation in operations {
        if matches!(operation.f(), F::Read | F::Write | F::Cas | F::Delete) {
            keys.entry(operation.key()).or_default().push(operation);
        }
    }
    let mut report = Report {
        verdict: Verdict::Pass,
        counterexamples: Vec::new(),
        checked: 0,
    };
    for (key, operations) in keys {
        let calls = match calls(&operations) {
            Ok(calls) => calls,
            Err(reason) => {
                report
                    .verdict
                    .merge(Verdict::Unknown(format!("harness: key {key}: {reason}")));
                continue;
            }
        };
        report.checked += calls.len() as u64;
        match linearizable(&calls, steps_max) {
            Answer::Yes => {}
            Answer::Unknown => report.verdict.merge(Verdict::Unknown(format!(
                "key {key}: no answer within {steps_max} configurations over {} calls",
                calls.len()
            ))),
            Answer::No => {
                let example = explain(key, &operations, &shrink(&calls));
                report.verdict.merge(Verdict::Fail(vec![finding(&example)]));
                report.counterexamples.push(example);
            }
        }
    }
    report
}

/// Turns paired operations of one key into calls; `id` is the place in `operations`.
fn calls(operations: &[Operation<'_>]) -> Result<Vec<Call>, String> {
    let mut states: BTreeMap<&Value, State> = BTreeMap::new();
    let mut calls = Vec::new();
    for (id, operation) in operations.iter().enumerate() {
        let mut state = |value| intern(&mut states, value);
        let refused = operation
            .complete
            .is_some_and(|op| op.error.as_deref() == Some(CONDITION_FAILED));
        let action = match (operation.f(), operation.outcome()) {
            (F::Read, Outcome::Ok) if operation.level() == Level::Strong => {
                Action::Read(state(operation.value()))
            }
            (F::Write, Outcome::Ok | Outcome::Info) => {
                Action::Write(state(&operation.invoke.value))
            }
            (F::Delete, Outcome::Ok | Outcome::Info) => Action::Write(ABSENT),
            (F::Cas, outcome) => {
                let Some([old, new]) = operation.invoke.value.as_list() else {
                    return Err(format!("op {} is no [old new]", operation.called()));
                };
                match outcome {
                    Outcome::Fail if refused => Action::Mismatch(state(old)),
                    Outcome::Fail => continue,
                    _ => Action::Cas(state(old), state(new)),
                }
            }
            _ => continue,
        };
        let (called, returned) = (operation.called(), operation.returned());
        calls.push(Call {
            action,
            called,
            returned,
            id,
        });
    }
    Ok(calls)
}

fn intern<'a>(states: &mut BTreeMap<&'a Value, State>, value: &'a Value) -> State {
    if value.is_null() {
        return ABSENT;
    }
    let next = states.len() as State + 1;
    *states.entry(value).or_insert(next)
}

/// Decides whether calls on one register, absent at first, are linearizable.
pub fn linearizable(calls: &[Call], steps_max: u64) -> Answer {
    Search::new(without_unseen(calls)).run(steps_max)
}

/// Drops pending writes whose value nobody saw.
///
/// Why this is sound: in a linearization that contains such a write, what follows it is a write, or nothing, because a read or compare that succeeded there would have seen it. So it can be taken out. A refused compare would have seen it too, hence none may exist.
fn without_unseen(calls: &[Call]) -> Vec<Call> {
    if calls
        .iter()
        .any(|call| matches!(call.action, Action::Mismatch(_)))
    {
        return calls.to_vec();
    }
    let seen: BTreeSet<State> = calls.iter().filter_map(|call| call.action.seen()).collect();
    let keep = |call: &&Call| {
        !call.is_pending() || call.action.made().is_some_and(|made| seen.contains(&made))
    };
    calls.iter().filter(keep).copied().collect()
}

/// A set of call numbers that knows its full prefix and its highest word, so that cache keys stay short.
#[derive(Default)]
struct Bits {
    words: Vec<u64>,
    /// Every word before this one is full.
    base: usize,
    /// Every word from this one on is empty.
    top: usize,
}

impl Bits {
    fn new(len: usize) -> Bits {
        Bits {
            words: vec![0; len.div_ceil(64)],
            base: 0,
            top: 0,
        }
    }

    fn insert(&mut self, at: usize) {
        self.words[at / 64] |= 1 << (at % 64);
        self.top = self.top.max(at / 64 + 1);
        while self.base < self.words.len() && self.words[self.base] == u64::MAX {
            self.base += 1;
        }
    }

    fn remove(&mut self, at: usize) {
        self.words[at / 64] &= !(1 << (at % 64));
        self.base = self.base.min(at / 64);
        while self.top > 0 && self.words[self.top - 1] == 0 {
            self.top -= 1;
        }
    }

    fn window(&self) -> &[u64] {
        &self.words[self.base..self.top.max(self.base)]
    }
}

/// One linearized call that can be undone.
struct Frame {
    call: usize,
    before: State,
}

/// The state of one search. Node `2i` of the list is the invocation of call `i`, `2i + 1` its return, and the last node is the head.
struct Search {
    calls: Vec<Call>,
    /// The bit of each call, in `done` or in `guessed`.
    bits: Vec<usize>,
    next: Vec<usize>,
    previous: Vec<usize>,
    head: usize,
    /// Completed calls that are linearized.
    done: Bits,
    /// Pending calls that are linearized.
    guessed: Bits,
    /// Completed calls that are not linearized.
    open: usize,
    state: State,
    stack: Vec<Frame>,
    /// Configurations already tried: state and base, guessed words, window of done words.
    seen: HashSet<Box<[u64]>>,
}

impl Search {
    fn new(mut calls: Vec<Call>) -> Search {
        calls.sort_by_key(|call| call.called);
        let (mut completed, mut pending) = (0, 0);
        let mut bits = Vec::with_capacity(calls.len());
        let mut events = Vec::with_capacity(calls.len() * 2);
        for (i, call) in calls.iter().enumerate() {
            events.push((call.called, 2 * i));
            let counter = if call.is_pending() {
                &mut pending
            } else {
                &mut completed
            };
            bits.push(*counter);
            *counter += 1;
            if !call.is_pending() {
                events.push((call.returned, 2 * i + 1));
            }
        }
        events.sort_unstable();
        let head = 2 * calls.len();
        let (mut next, mut previous) = (vec![head; head + 1], vec![head; head + 1]);
        let mut last = head;
        for (_, node) in events {
            next[last] = node;
            previous[node] = last;
            last = node;
        }
        next[last] = head;
        previous[head] = last;
        Search {
            calls,
            bits,
            next,
            previous,
            head,
            done: Bits::new(completed),
            guessed: Bits::new(pending),
            open: completed,
            state: ABSENT,
            stack: Vec::new(),
            seen: HashSet::new(),
        }
    }

    fn run(&mut self, steps_max: u64) -> Answer {
        let mut at = self.settle();
        let mut steps = 0;
        while self.open > 0 {
            steps += 1;
            if steps > steps_max {
                return Answer::Unknown;
            }
            if at % 2 == 1 || at == self.head {
                // Somebody has returned, so what is invoked later cannot come first.
                match self.undo() {
                    Some(node) => at = node,
                    None => return Answer::No,
                }
                continue;
            }
            let (call, action) = (at / 2, self.calls[at / 2].action);
            let after = if action.is_pure() {
                None
            } else {
                action.apply(self.state)
            };
            match after {
                Some(after) if self.enter(call, after) => at = self.settle(),
                _ => at = self.next[at],
            }
        }
        Answer::Yes
    }

    /// Takes every read that is legal now, then starts over at the first invocation left.
    ///
    /// Why this is sound: such a read may come first and changes nothing, so any linearization of the rest in which it comes later stays one when it is moved to the front. For the same reason [`Search::undo`] never tries what follows from leaving it.
    fn settle(&mut self) -> usize {
        let mut at = self.next[self.head];
        while at != self.head && at.is_multiple_of(2) {
            let (call, action) = (at / 2, self.calls[at / 2].action);
            let following = self.next[at];
            if action.is_pure() && action.apply(self.state).is_some() {
                // A read's return may follow at once; it leaves the list together with the read.
                at = if following == at + 1 {
                    self.next[following]
                } else {
                    following
                };
                self.mark(call);
                self.stack.push(Frame {
                    call,
                    before: self.state,
                });
                self.lift(call);
            } else {
                at = following;
            }
        }
        self.next[self.head]
    }

    /// Linearizes a call that changes the state, unless that configuration was tried before.
    fn enter(&mut self, call: usize, after: State) -> bool {
        self.mark(call);
        let window = self.done.window();
        let mut key = Vec::with_capacity(1 + self.guessed.words.len() + window.len());
        key.push((u64::from(after) << 32) | self.done.base as u64);
        key.extend_from_slice(&self.guessed.words);
        key.extend_from_slice(window);
        if !self.seen.insert(key.into_boxed_slice()) {
            self.unmark(call);
            return false;
        }
        self.stack.push(Frame {
            call,
            before: self.state,
        });
        self.lift(call);
        self.state = after;
        true
    }

    /// Undoes back to the last choice and names the node to try instead.
    fn undo(&mut self) -> Option<usize> {
        loop {
            let frame = self.stack.pop()?;
            self.unlift(frame.call);
            self.unmark(frame.call);
            self.state = frame.before;
            if !self.calls[frame.call].action.is_pure() {
                return Some(self.next[2 * frame.call]);
            }
        }
    }

    fn mark(&mut self, call: usize) {
        if self.calls[call].is_pending() {
            self.guessed.insert(self.bits[call]);
        } else {
            self.done.insert(self.bits[call]);
            self.open -= 1;
        }
    }

    fn unmark(&mut self, call: usize) {
        if self.calls[call].is_pending() {
            self.guessed.remove(self.bits[call]);
        } else {
            self.done.remove(self.bits[call]);
            self.open += 1;
        }
    }

    fn lift(&mut self, call: usize) {
        self.unlink(2 * call);
        if !self.calls[call].is_pending() {
            self.unlink(2 * call + 1);
        }
    }

    fn unlift(&mut self, call: usize) {
        // In reverse order of lifting, as Knuth's dancing links demand.
        if !self.calls[call].is_pending() {
            self.relink(2 * call + 1);
        }
        self.relink(2 * call);
    }

    fn unlink(&mut self, node: usize) {
        let (before, after) = (self.previous[node], self.next[node]);
        self.next[before] = after;
        self.previous[after] = before;
    }

    fn relink(&mut self, node: usize) {
        let (before, after) = (self.previous[node], self.next[node]);
        self.next[before] = node;
        self.previous[after] = node;
    }
}

fn explain(key: &str, operations: &[Operation<'_>], calls: &[Call]) -> Counterexample {
    let mut bars = Vec::new();
    let mut ops = BTreeSet::new();
    for call in calls {
        let operation = &operations[call.id];
        let lane = match operation.process() {
            Process::Client(id) => format!("process {id}"),
            Process::Nemesis => "nemesis".to_owned(),
        };
        ops.extend(operation.indices());
        bars.push(Bar {
            lane,
            label: label(operation),
            from: call.called,
            to: (!call.is_pending()).then_some(call.returned),
        });
    }
    Counterexample {
        key: key.to_owned(),
        bars,
        ops: ops.into_iter().collect(),
    }
}

fn label(operation: &Operation<'_>) -> String {
    let value = &operation.invoke.value;
    match operation.f() {
        F::Read => format!("read → {}", operation.value()),
        F::Write => format!("write {value}"),
        F::Delete => "delete".to_owned(),
        _ => match (value.as_list(), operation.outcome()) {
            (Some([old, _]), Outcome::Fail) => format!("cas refused: not {old}"),
            (Some([old, new]), _) => format!("cas {old} → {new}"),
            _ => format!("cas {value}"),
        },
    }
}

fn finding(example: &Counterexample) -> Finding {
    let lines: Vec<String> = example
        .bars
        .iter()
        .map(|bar| match bar.to {
            Some(to) => format!("{} [{}..{to}] {}", bar.lane, bar.from, bar.label),
            None => format!("{} [{}..unknown] {}", bar.lane, bar.from, bar.label),
        })
        .collect();
    Finding::new(
        "non-linearizable",
        format!(
            "no order of these {} calls explains them: {}",
            lines.len(),
            lines.join("; ")
        ),
    )
    .key(&example.key)
    .ops(example.ops.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::shrink::without;
    use super::*;

    fn sequence(actions: &[Action]) -> Vec<Call> {
        let call = |(id, action): (usize, &Action)| Call {
            action: *action,
            called: 2 * id as u64,
            returned: 2 * id as u64 + 1,
            id,
        };
        actions.iter().enumerate().map(call).collect()
    }

    /// What the shrinker may leave out of good calls, whatever it tries, leaves good calls.
    #[test]
    fn leaving_calls_out_never_makes_good_ones_bad() {
        let (read, write, cas) = (Action::Read, Action::Write, Action::Cas);
        let good = [
            // Without the second write, the refused compare could not have been refused.
            sequence(&[write(1), write(2), Action::Mismatch(1), write(3)]),
            // Without the first compare-and-set, the second could not have happened.
            sequence(&[write(1), cas(1, 2), cas(2, 3), read(3), write(4)]),
        ];
        for calls in good {
            assert_eq!(linearizable(&calls, STEPS_MAX), Answer::Yes);
            for from in 0..calls.len() {
                for to in from + 1..=calls.len() {
                    let left = without(&calls, from, to);
                    assert_eq!(linearizable(&left, STEPS_MAX), Answer::Yes, "{left:#?}");
                }
            }
        }
    }
}
