//! Export as EDN, the notation that Knossos and Elle read.
//!
//! Knossos gets one file per key, because Jepsen's independent tuples are not plain vectors.
//! Elle gets the transactions of the whole history in one file.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{F, History, Kind, Op, Process, Value};

/// The register operations of every key, as `cas-register` histories. A delete is a write of nil.
pub fn knossos(history: &History) -> BTreeMap<String, String> {
    let mut per_key: BTreeMap<String, Vec<&Op>> = BTreeMap::new();
    for op in &history.ops {
        if let (F::Read | F::Write | F::Cas | F::Delete, Some(key)) = (&op.f, &op.key) {
            per_key.entry(key.clone()).or_default().push(op);
        }
    }
    per_key
        .into_iter()
        .map(|(key, ops)| (key, lines(&ops)))
        .collect()
}

/// The list-append transactions and the nemesis lines, for Elle and elle-cli.
pub fn elle(history: &History) -> String {
    let ops: Vec<&Op> = history
        .ops
        .iter()
        .filter(|op| op.f == F::Txn || op.process == Process::Nemesis)
        .collect();
    lines(&ops)
}

fn lines(ops: &[&Op]) -> String {
    let mut text = String::new();
    for (index, op) in ops.iter().enumerate() {
        line(&mut text, index, op);
        text.push('\n');
    }
    text
}

fn line(text: &mut String, index: usize, op: &Op) {
    let kind = match op.kind {
        Kind::Invoke => ":invoke",
        Kind::Ok => ":ok",
        Kind::Fail => ":fail",
        Kind::Info => ":info",
    };
    let process = match op.process {
        Process::Client(id) => id.to_string(),
        Process::Nemesis => ":nemesis".to_owned(),
    };
    let (f, value) = match op.f {
        F::Delete => ("write", Value::Null),
        _ => (op.f.name(), op.value.clone()),
    };
    let value = if op.f == F::Txn {
        transaction(&value)
    } else {
        edn(&value)
    };
    // Indices are dense in each file, as both tools prefer; the place in our history is kept beside.
    put(
        text,
        format_args!(
            "{{:index {index} :time {} :type {kind} :process {process} :f :{f} :value {value} :source-index {}",
            op.time_ns, op.index
        ),
    );
    if let Some(error) = &op.error {
        put(text, format_args!(" :error :{}", keyword(error)));
    }
    text.push('}');
}

fn put(text: &mut String, what: std::fmt::Arguments<'_>) {
    text.write_fmt(what)
        .expect("writing to a String cannot fail");
}

/// The function names of micro-operations are keywords in Elle: `[:append 9 4]`.
fn transaction(value: &Value) -> String {
    let Some(steps) = value.as_list() else {
        return edn(value);
    };
    let steps: Vec<String> = steps
        .iter()
        .map(|step| match step.as_list() {
            Some([Value::Text(f), rest @ ..]) => {
                let rest: Vec<String> = rest.iter().map(edn).collect();
                format!("[:{} {}]", keyword(f), rest.join(" "))
            }
            _ => edn(step),
        })
        .collect();
    format!("[{}]", steps.join(" "))
}

/// EDN of one value.
fn edn(value: &Value) -> String {
    match value {
        Value::Null => "nil".to_owned(),
        Value::Bool(b) => b.to_string(),
        Value::Int(n) => n.to_string(),
        Value::Text(text) => string(text),
        Value::List(items) => {
            let items: Vec<String> = items.iter().map(edn).collect();
            format!("[{}]", items.join(" "))
        }
        Value::Map(entries) => {
            let entries: Vec<String> = entries
                .iter()
                .map(|(key, item)| format!("{} {}", string(key), edn(item)))
                .collect();
            format!("{{{}}}", entries.join(", "))
        }
    }
}

fn string(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            // The EDN reader takes \uXXXX, and other control characters would end the line.
            c if c.is_control() => put(&mut out, format_args!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Keywords cannot hold spaces or punctuation that the reader would stop at.
fn keyword(text: &str) -> String {
    let clean: String = text
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "-_.*+!?".contains(c) {
                c
            } else {
                '-'
            }
        })
        .collect();
    if clean.is_empty() {
        "error".to_owned()
    } else {
        clean
    }
}
