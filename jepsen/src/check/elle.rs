//! List-append transactions: anomalies of isolation, after Kingsbury and Alvaro, "Elle: Inferring Isolation Anomalies from Experimental Observations" (VLDB 2021).
//!
//! A list is the history of its own versions, so the longest read of a key names the order of its versions (§4.2 of the paper, "traceability"), and ww, wr and rw dependencies follow (Adya, "Weak Consistency", 1999, §3.1).
//! Process and real-time order are added on request; a cycle is an anomaly, named by the edges it needs.
//!
//! | name | meaning |
//! |---|---|
//! | `G0` | cycle of ww |
//! | `G1a` | read of an aborted append |
//! | `G1b` | read of an append its own transaction had not finished with |
//! | `G1c` | cycle of ww and wr |
//! | `G-single` | cycle with exactly one rw (read skew, lost update) |
//! | `G2` | cycle with more than one rw (write skew) |
//! | `…-process`, `…-realtime` | the same, only with session or real-time order |
//! | `incompatible-order` | two reads of a key of which neither is a prefix of the other |
//! | `duplicate-elements` | an element twice in one read |
//! | `internal` | a transaction disagrees with itself |
//! | `garbage-read` | an element nobody appended |
//! | `lost-append` | an acknowledged append missing from a later transaction and never seen |

mod graph;

use std::collections::{BTreeMap, BTreeSet};

use super::order::Checked;
use super::{Finding, Verdict};
use crate::history::{F, History, Operation, Outcome, Process, Value};
use graph::{Edge, Graph, Reason};

/// Which orders beside the data must be respected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Model {
    /// Some serial order.
    Serializable,
    /// Some serial order that keeps each process's own.
    StrongSession,
    /// Some serial order that keeps real time.
    Strict,
}

/// Acknowledged appends nobody read that are ordered after the last version of a key; more would make the graph quadratic.
const UNSEEN_MAX: usize = 16;

/// One step of a transaction.
#[derive(Clone, Debug)]
enum Step<'a> {
    Append(&'a Value, &'a Value),
    /// Absent while the transaction has no answer.
    Read(&'a Value, Option<&'a [Value]>),
}

/// A transaction of a history.
#[derive(Debug)]
struct Transaction<'a> {
    operation: Operation<'a>,
    outcome: Outcome,
    steps: Vec<Step<'a>>,
}

/// What one transaction read of a key from outside itself.
struct Outside<'a> {
    reader: usize,
    key: &'a Value,
    seen: &'a [Value],
}

/// Judges the transactions of a history.
pub fn check(history: &History, model: Model) -> Checked {
    let mut transactions = Vec::new();
    for operation in history
        .operations()
        .into_iter()
        .filter(|o| *o.f() == F::Txn)
    {
        match parse(operation) {
            Ok(transaction) => transactions.push(transaction),
            Err(reason) => return (Verdict::Unknown(format!("harness: {reason}")), 0),
        }
    }
    let checked = transactions.len() as u64;
    let book = match Book::new(&transactions) {
        Ok(book) => book,
        Err(reason) => return (Verdict::Unknown(format!("harness: {reason}")), 0),
    };
    let mut findings = Vec::new();
    for transaction in transactions.iter().filter(|t| t.outcome == Outcome::Ok) {
        findings.extend(internal(transaction));
    }
    findings.extend(book.elements());
    findings.extend(book.orders_agree());
    findings.extend(book.lost());
    findings.extend(cycles(&book.graph(model), &transactions));
    (Verdict::of(findings), checked)
}

fn parse(operation: Operation<'_>) -> Result<Transaction<'_>, String> {
    let malformed = || {
        format!(
            "op {} is no list of [\"append\", k, v] and [\"r\", k, list]",
            operation.called()
        )
    };
    let mut steps = Vec::new();
    for step in operation.value().as_list().ok_or_else(malformed)? {
        steps.push(match step.as_list() {
            Some([Value::Text(f), key, value]) if f == "append" => Step::Append(key, value),
            Some([Value::Text(f), key, Value::List(seen)]) if f == "r" => {
                Step::Read(key, Some(seen))
            }
            // An absent list is an empty one once the transaction is answered.
            Some([Value::Text(f), key, Value::Null]) if f == "r" => {
                Step::Read(key, operation.is_ok().then_some(&[]))
            }
            _ => return Err(malformed()),
        });
    }
    Ok(Transaction {
        operation,
        outcome: operation.outcome(),
        steps,
    })
}

/// A transaction must see its own appends, and its reads of a key must differ by nothing else.
fn internal(transaction: &Transaction<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    // What the next read must end with, and whether that is all it may hold.
    let mut expected: BTreeMap<&Value, (Vec<&Value>, bool)> = BTreeMap::new();
    for step in &transaction.steps {
        match step {
            Step::Append(key, value) => expected.entry(key).or_default().0.push(value),
            Step::Read(key, Some(seen)) => {
                if let Some((tail, whole)) = expected.get(key) {
                    let fits = if *whole {
                        seen.len() == tail.len()
                    } else {
                        seen.len() >= tail.len()
                    };
                    let from = seen.len().saturating_sub(tail.len());
                    if !fits || !seen[from..].iter().eq(tail.iter().copied()) {
                        let what = format!(
                            "{} reads {key} as {}, which contradicts its own earlier steps",
                            show(transaction),
                            Value::List(seen.to_vec())
                        );
                        findings.push(
                            Finding::new("internal", what)
                                .key(&key.to_string())
                                .of(&transaction.operation),
                        );
                    }
                }
                expected.insert(key, (seen.iter().collect(), true));
            }
            Step::Read(_, None) => {}
        }
    }
    findings
}

/// Everything inferred from all transactions together.
struct Book<'a, 't> {
    transactions: &'t [Transaction<'a>],
    /// Who appended what.
    writers: BTreeMap<(&'a Value, &'a Value), usize>,
    /// The last append of each transaction to each key.
    final_appends: BTreeMap<(usize, &'a Value), &'a Value>,
    /// The order of versions: the longest read of each key.
    orders: BTreeMap<&'a Value, &'a [Value]>,
    /// All reads of completed transactions, whole.
    reads: Vec<Outside<'a>>,
    /// All reads of completed transactions, own appends taken off.
    outside: Vec<Outside<'a>>,
}

impl<'a, 't> Book<'a, 't> {
    fn new(transactions: &'t [Transaction<'a>]) -> Result<Book<'a, 't>, String> {
        let mut book = Book {
            transactions,
            writers: BTreeMap::new(),
            final_appends: BTreeMap::new(),
            orders: BTreeMap::new(),
            reads: Vec::new(),
            outside: Vec::new(),
        };
        for (at, transaction) in transactions.iter().enumerate() {
            let mut own: BTreeMap<&Value, usize> = BTreeMap::new();
            for step in &transaction.steps {
                match *step {
                    Step::Append(key, value) => {
                        if book.writers.insert((key, value), at).is_some() {
                            return Err(format!(
                                "{value} was appended to {key} twice; values must be unique"
                            ));
                        }
                        book.final_appends.insert((at, key), value);
                        *own.entry(key).or_default() += 1;
                    }
                    Step::Read(key, Some(seen)) if transaction.outcome == Outcome::Ok => {
                        let mine = own.get(key).copied().unwrap_or(0);
                        let others = &seen[..seen.len().saturating_sub(mine)];
                        book.reads.push(Outside {
                            reader: at,
                            key,
                            seen,
                        });
                        book.outside.push(Outside {
                            reader: at,
                            key,
                            seen: others,
                        });
                        let order = book.orders.entry(key).or_insert(&[]);
                        if seen.len() > order.len() {
                            *order = seen;
                        }
                    }
                    Step::Read(..) => {}
                }
            }
        }
        Ok(book)
    }

    /// The elements of reads taken one by one: garbage, G1a, G1b and duplicates.
    fn elements(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut told: BTreeSet<(&str, &Value, &Value)> = BTreeSet::new();
        for Outside { reader, key, seen } in &self.reads {
            let reader = &self.transactions[*reader];
            let mut unique = BTreeSet::new();
            for value in *seen {
                let (anomaly, what, writer) = match self.writers.get(&(*key, value)) {
                    _ if !unique.insert(value) => {
                        ("duplicate-elements", format!("{value} twice"), None)
                    }
                    None => (
                        "garbage-read",
                        format!("{value}, which nobody appended"),
                        None,
                    ),
                    Some(writer) if self.transactions[*writer].outcome == Outcome::Fail => (
                        "G1a",
                        format!("{value}, whose transaction aborted"),
                        Some(*writer),
                    ),
                    Some(_) => continue,
                };
                if !told.insert((anomaly, *key, value)) {
                    continue;
                }
                let what = format!("{} sees {what}", show(reader));
                let mut finding = Finding::new(anomaly, what)
                    .key(&key.to_string())
                    .of(&reader.operation);
                if let Some(writer) = writer {
                    finding = finding.of(&self.transactions[writer].operation);
                }
                findings.push(finding);
            }
        }
        findings.extend(
            self.outside
                .iter()
                .filter_map(|read| self.intermediate(read)),
        );
        findings
    }

    /// G1b: the newest element seen is not the last its transaction appended to this key.
    fn intermediate(&self, read: &Outside<'a>) -> Option<Finding> {
        let last = read.seen.last()?;
        let writer = *self.writers.get(&(read.key, last))?;
        let finished = self.final_appends.get(&(writer, read.key)).copied()?;
        if writer == read.reader || finished == last {
            return None;
        }
        let (reader, writer) = (&self.transactions[read.reader], &self.transactions[writer]);
        let what = format!(
            "{} sees {last} as the newest of {}, but {} went on to append {finished}",
            show(reader),
            read.key,
            show(writer)
        );
        Some(
            Finding::new("G1b", what)
                .key(&read.key.to_string())
                .pair(&writer.operation, &reader.operation),
        )
    }

    /// Every read of a key is a prefix of the longest.
    fn orders_agree(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for Outside { reader, key, seen } in &self.reads {
            let order = self.orders[key];
            if order.starts_with(seen) {
                continue;
            }
            let reader = &self.transactions[*reader];
            let what = format!(
                "{} sees {key} as {}, another as {}",
                show(reader),
                Value::List(seen.to_vec()),
                Value::List(order.to_vec())
            );
            findings.push(
                Finding::new("incompatible-order", what)
                    .key(&key.to_string())
                    .of(&reader.operation),
            );
        }
        findings
    }

    /// Acknowledged appends that no read ever shows.
    fn unseen(&self) -> BTreeMap<&'a Value, Vec<(&'a Value, usize)>> {
        let mut shown: BTreeSet<(&Value, &Value)> = BTreeSet::new();
        for read in &self.reads {
            shown.extend(read.seen.iter().map(|value| (read.key, value)));
        }
        let mut unseen: BTreeMap<&Value, Vec<(&Value, usize)>> = BTreeMap::new();
        for ((key, value), writer) in &self.writers {
            if self.transactions[*writer].outcome == Outcome::Ok && !shown.contains(&(*key, *value))
            {
                unseen.entry(key).or_default().push((value, *writer));
            }
        }
        unseen
    }

    /// Unseen appends that some transaction invoked after their acknowledgement should have shown.
    fn lost(&self) -> Vec<Finding> {
        let unseen = self.unseen();
        let mut latest: BTreeMap<&Value, usize> = BTreeMap::new();
        for read in &self.reads {
            let called = |at: usize| self.transactions[at].operation.called();
            let entry = latest.entry(read.key).or_insert(read.reader);
            if called(read.reader) > called(*entry) {
                *entry = read.reader;
            }
        }
        let mut findings = Vec::new();
        for (key, lost) in unseen {
            let Some(reader) = latest.get(key).map(|at| &self.transactions[*at]) else {
                continue;
            };
            for (value, writer) in lost {
                let writer = &self.transactions[writer];
                if writer.operation.returned() < reader.operation.called() {
                    let what = format!(
                        "{value} was acknowledged, but no read shows it, not even {}",
                        show(reader)
                    );
                    findings.push(
                        Finding::new("lost-append", what)
                            .key(&key.to_string())
                            .pair(&writer.operation, &reader.operation),
                    );
                }
            }
        }
        findings
    }

    fn graph(&self, model: Model) -> Graph<'a> {
        let mut graph = Graph::new(self.transactions.len());
        for (key, order) in &self.orders {
            for pair in order.windows(2) {
                let ends = (self.committed(key, &pair[0]), self.committed(key, &pair[1]));
                if let (Some(first), Some(second)) = ends {
                    graph.add(
                        first,
                        second,
                        Reason::Ww {
                            key,
                            first: &pair[0],
                            second: &pair[1],
                        },
                    );
                }
            }
        }
        let unseen = self.unseen();
        for read in &self.outside {
            self.read_edges(read, &unseen, &mut graph);
        }
        if model >= Model::StrongSession {
            self.process_edges(&mut graph);
        }
        if model >= Model::Strict {
            self.real_time_edges(&mut graph);
        }
        graph
    }

    /// The transaction that appended a value, unless it aborted (which is reported as G1a).
    fn committed(&self, key: &'a Value, value: &'a Value) -> Option<usize> {
        let writer = *self.writers.get(&(key, value))?;
        (self.transactions[writer].outcome != Outcome::Fail).then_some(writer)
    }

    fn read_edges(
        &self,
        read: &Outside<'a>,
        unseen: &BTreeMap<&'a Value, Vec<(&'a Value, usize)>>,
        graph: &mut Graph<'a>,
    ) {
        let Outside { reader, key, seen } = *read;
        if let Some(value) = seen.last()
            && let Some(writer) = self.committed(key, value)
        {
            graph.add(writer, reader, Reason::Wr { key, value });
        }
        let order = self.orders[key];
        if !order.starts_with(seen) {
            return;
        }
        if let Some(next) = order.get(seen.len()) {
            if let Some(writer) = self.committed(key, next) {
                graph.add(reader, writer, Reason::Rw { key, next });
            }
            return;
        }
        // An append that is acknowledged and in no read comes after every version that was read.
        for (next, writer) in unseen.get(key).into_iter().flatten().take(UNSEEN_MAX) {
            graph.add(reader, *writer, Reason::Rw { key, next });
        }
    }

    fn process_edges(&self, graph: &mut Graph<'a>) {
        let mut last: BTreeMap<Process, usize> = BTreeMap::new();
        for (at, transaction) in self.transactions.iter().enumerate() {
            if transaction.outcome == Outcome::Fail {
                continue;
            }
            let process = transaction.operation.process();
            if let Some(before) = last.insert(process, at) {
                graph.add(before, at, Reason::Process(process));
            }
        }
    }

    /// The transitive reduction of real-time order, by a sweep that remembers the completed transactions no other completed one follows.
    fn real_time_edges(&self, graph: &mut Graph<'a>) {
        let mut events = Vec::new();
        for (at, transaction) in self.transactions.iter().enumerate() {
            if transaction.outcome == Outcome::Fail {
                continue;
            }
            events.push((transaction.operation.called(), false, at));
            if transaction.outcome == Outcome::Ok {
                events.push((transaction.operation.returned(), true, at));
            }
        }
        events.sort_unstable();
        let mut frontier: Vec<usize> = Vec::new();
        let mut before: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (_, returned, at) in events {
            if !returned {
                for first in &frontier {
                    graph.add(*first, at, Reason::RealTime);
                }
                before.insert(at, frontier.clone());
                continue;
            }
            let followed = before.remove(&at).unwrap_or_default();
            frontier.retain(|first| !followed.contains(first));
            frontier.push(at);
        }
    }
}

/// Finds cycles, most specific first, with as few kinds of edges as possible.
fn cycles(graph: &Graph<'_>, transactions: &[Transaction<'_>]) -> Vec<Finding> {
    let mut told: Vec<BTreeSet<usize>> = Vec::new();
    let mut findings = Vec::new();
    for extra in 0..=2 {
        for class in ["G0", "G1c", "G-single", "G2"] {
            let fits = |edge: &Edge<'_>| match edge.reason {
                Reason::Ww { .. } => true,
                Reason::Wr { .. } => class != "G0",
                Reason::Rw { .. } => class == "G-single" || class == "G2",
                Reason::Process(_) => extra >= 1,
                Reason::RealTime => extra >= 2,
            };
            for component in graph.components(&fits) {
                if told.iter().any(|cycle| cycle.is_subset(&component)) {
                    continue;
                }
                let Some(cycle) = graph.cycle(class, &component, &fits) else {
                    continue;
                };
                told.push(cycle.iter().map(|(from, _)| *from).collect());
                findings.push(explain(class, &cycle, transactions));
            }
        }
    }
    findings
}

fn explain(class: &str, cycle: &[(usize, Edge<'_>)], transactions: &[Transaction<'_>]) -> Finding {
    let any = |wanted: fn(&Reason<'_>) -> bool| cycle.iter().any(|(_, edge)| wanted(&edge.reason));
    let suffix = if any(|r| matches!(r, Reason::RealTime)) {
        "-realtime"
    } else if any(|r| matches!(r, Reason::Process(_))) {
        "-process"
    } else {
        ""
    };
    let names: BTreeMap<usize, String> = cycle
        .iter()
        .enumerate()
        .map(|(n, (at, _))| (*at, format!("T{}", n + 1)))
        .collect();
    let mut text = String::from("let");
    for (at, _) in cycle {
        text.push_str(&format!(" {} = {};", names[at], show(&transactions[*at])));
    }
    text.push_str(" then");
    for (n, (from, edge)) in cycle.iter().enumerate() {
        let (first, second) = (&names[from], &names[&edge.to]);
        let why = match &edge.reason {
            Reason::Ww {
                key,
                first: a,
                second: b,
            } => {
                format!("{second} appended {b} after {first} appended {a} to {key}")
            }
            Reason::Wr { key, value } => {
                format!("{second} saw {first}'s append of {value} to {key}")
            }
            Reason::Rw { key, next } => {
                format!("{first} did not see {second}'s append of {next} to {key}")
            }
            Reason::Process(process) => format!("process {process} ran {first} before {second}"),
            Reason::RealTime => format!("{first} returned before {second} was invoked"),
        };
        let closing = if n + 1 == cycle.len() {
            ": a contradiction"
        } else {
            ";"
        };
        text.push_str(&format!(" {first} < {second}, because {why}{closing}"));
    }
    let mut finding = Finding::new(&format!("{class}{suffix}"), text);
    for (at, _) in cycle {
        finding = finding.of(&transactions[*at].operation);
    }
    finding
}

/// A transaction as people write it down.
fn show(transaction: &Transaction<'_>) -> String {
    let steps: Vec<String> = transaction
        .steps
        .iter()
        .map(|step| match step {
            Step::Append(key, value) => format!("append({key}, {value})"),
            Step::Read(key, Some(seen)) => format!("read({key}) = {}", Value::List(seen.to_vec())),
            Step::Read(key, None) => format!("read({key})"),
        })
        .collect();
    format!(
        "#{} {{{}}}",
        transaction.operation.called(),
        steps.join(", ")
    )
}
