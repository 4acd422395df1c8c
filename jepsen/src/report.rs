//! One self-contained HTML page per run: what was done, what was broken meanwhile, what was promised and kept.
//!
//! [`html`] takes a history and what the checkers said of it, and returns the page: plain HTML with inline SVG, no script and nothing fetched, so that a page can be kept with its history for years.
//!
//! Not done here: judging (see [`crate::check`]), writing files.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::check::timeline::{self, escape};
use crate::check::{Summary, Verdict};
use crate::history::{History, Kind, Op, Operation, Outcome, Value};

/// Findings shown per property.
const FINDINGS_SHOWN_MAX: usize = 50;
/// Points drawn in the latency picture; more are thinned evenly.
const POINTS_MAX: usize = 4000;
/// Columns of the throughput picture.
const COLUMNS: u64 = 120;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 60.0;
const BOTTOM: f64 = 24.0;

const STYLE: &str = "body{font:15px/1.5 sans-serif;max-width:1040px;margin:2em auto;padding:0 1em;color:#222}\
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.25em .75em;border-bottom:1px solid #ddd;vertical-align:top}\
.pass{color:#1a7f37}.fail{color:#b42318;font-weight:600}.none{color:#888}code{font-size:13px;white-space:pre-wrap;overflow-wrap:anywhere}\
.scroll{overflow-x:auto}svg text{font-family:sans-serif;font-size:11px;fill:#555}";

/// Draws a run.
pub fn html(title: &str, history: &History, summary: &Summary) -> String {
    let mut page = String::new();
    let class = if summary.outcome() == crate::check::RunOutcome::Pass {
        "pass"
    } else {
        "fail"
    };
    put(
        &mut page,
        format_args!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{0}</title><style>{STYLE}</style></head><body>\n<h1>{0}</h1>\n<p class=\"{class}\">{1}</p>\n",
            escape(title),
            summary.outcome().name()
        ),
    );
    header(&mut page, history, summary);
    verdicts(&mut page, summary);
    let operations = history.operations();
    let axis = Axis::of(history);
    page.push_str("<h2>Latency</h2>\n");
    latency(&mut page, &operations, history, &axis);
    page.push_str("<h2>Throughput</h2>\n");
    throughput(&mut page, &operations, history, &axis);
    page.push_str("<p>Green: ok. Grey: failed. Red: unknown. Bands: faults, from the line that starts one to the line that ends it.</p>\n");
    counts(&mut page, &operations);
    faults(&mut page, history);
    for example in &summary.counterexamples {
        put(
            &mut page,
            format_args!(
                "<h2>Counterexample: key {}</h2>\n<div class=\"scroll\">{}</div>\n",
                escape(&example.key),
                timeline::svg(&example.bars)
            ),
        );
    }
    page.push_str("</body></html>\n");
    page
}

fn header(page: &mut String, history: &History, summary: &Summary) {
    let coverage = &summary.coverage;
    if let Some(run) = history.run() {
        put(page, format_args!("<p>Workload {}", escape(&run.workload)));
        if let Some(seed) = run.seed {
            put(page, format_args!(", seed {seed}"));
        }
        if let Some(replay) = &run.replay {
            put(
                page,
                format_args!(", replay with <code>{}</code>", escape(replay)),
            );
        }
        page.push_str("</p>\n");
    }
    put(
        page,
        format_args!(
            "<p>{} operations: {} ok, {} failed, {} unknown. {} leader changes, {} home changes.</p>\n",
            coverage.operations,
            coverage.ok,
            coverage.failed,
            coverage.unknown,
            coverage.leader_changes,
            coverage.epoch_changes
        ),
    );
    for (what, lines) in [
        ("Coverage", &coverage.missing),
        ("Harness", &summary.harness),
    ] {
        for line in lines {
            put(
                page,
                format_args!("<p class=\"fail\">{what}: {}</p>\n", escape(line)),
            );
        }
    }
}

fn verdicts(page: &mut String, summary: &Summary) {
    page.push_str(
        "<h2>Verdicts</h2>\n<table><tr><th>Property</th><th>Verdict</th><th>Checked</th></tr>\n",
    );
    for property in &summary.properties {
        let (class, word) = match &property.verdict {
            Verdict::Pass if property.checked == 0 => ("none", "not exercised".to_owned()),
            Verdict::Pass => ("pass", "pass".to_owned()),
            other => ("fail", other.to_string()),
        };
        put(
            page,
            format_args!(
                "<tr><td>{}</td><td class=\"{class}\">{}</td><td>{}</td></tr>\n",
                property.name,
                escape(&word),
                property.checked
            ),
        );
        for finding in property.verdict.findings().iter().take(FINDINGS_SHOWN_MAX) {
            put(
                page,
                format_args!(
                    "<tr><td colspan=\"3\"><code>{}</code></td></tr>\n",
                    escape(&finding.to_string())
                ),
            );
        }
    }
    page.push_str("</table>\n");
}

/// The time axis of both pictures.
struct Axis {
    end_ns: u64,
}

impl Axis {
    fn of(history: &History) -> Axis {
        Axis {
            end_ns: history.ops.last().map_or(1, |op| op.time_ns.max(1)),
        }
    }

    fn x(&self, time_ns: u64) -> f64 {
        LEFT + (WIDTH - LEFT) * (time_ns.min(self.end_ns) as f64 / self.end_ns as f64)
    }

    fn open(&self, page: &mut String, history: &History) {
        put(
            page,
            format_args!(
                "<div class=\"scroll\"><svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\">"
            ),
        );
        for (name, from, to) in bands(history, self.end_ns) {
            let (x, end) = (self.x(from), self.x(to));
            put(
                page,
                format_args!(
                    "<rect x=\"{x:.1}\" y=\"0\" width=\"{:.1}\" height=\"{:.1}\" fill=\"#e8a33d\" fill-opacity=\"0.18\"><title>{}</title></rect>",
                    (end - x).max(1.0),
                    HEIGHT - BOTTOM,
                    escape(&name)
                ),
            );
        }
        for tick in 0..=4u64 {
            let at = self.end_ns / 4 * tick;
            put(
                page,
                format_args!(
                    "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{}\">{:.1} s</text>",
                    self.x(at),
                    HEIGHT - 6.0,
                    if tick == 4 { "end" } else { "start" },
                    at as f64 / 1e9
                ),
            );
        }
    }
}

/// A fault lasts from its line to the next line whose name ends it: `heal`, `stop-…`, `end-…`, `resume-…` or the value `{"until": ns}`.
fn bands(history: &History, end_ns: u64) -> Vec<(String, u64, u64)> {
    let faults: Vec<&Op> = history.faults().collect();
    let ends = |name: &str| {
        ["heal", "stop", "end", "resume", "restart", "recover"]
            .iter()
            .any(|w| name.starts_with(w))
    };
    let mut bands = Vec::new();
    for (at, op) in faults.iter().enumerate() {
        let name = op.f.name();
        if ends(name) {
            continue;
        }
        let until = op
            .value
            .as_map()
            .and_then(|map| map.get("until"))
            .and_then(Value::as_int);
        let subject = name.rsplit_once('-').map_or(name, |(_, rest)| rest);
        let later = faults[at + 1..].iter().find(|later| {
            let end = later.f.name();
            ends(end) && (!end.contains('-') || end.ends_with(subject) || end.ends_with(name))
        });
        let until = until
            .map(|ns| ns.max(0) as u64)
            .or(later.map(|op| op.time_ns))
            .unwrap_or(end_ns);
        let title = match &op.value {
            Value::Null => name.to_owned(),
            value => format!("{name} {value}"),
        };
        bands.push((title, op.time_ns, until));
    }
    bands
}

fn colour(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Ok => "#1a7f37",
        Outcome::Fail => "#999",
        Outcome::Info => "#b42318",
    }
}

fn latency(page: &mut String, operations: &[Operation<'_>], history: &History, axis: &Axis) {
    axis.open(page, history);
    // Logarithmic from 10 µs to 100 s: seven decades.
    let y = |ns: f64| (HEIGHT - BOTTOM) * (1.0 - ((ns.max(1e4).log10() - 4.0) / 7.0).min(1.0));
    for (ns, name) in [
        (1e5, "0.1 ms"),
        (1e6, "1 ms"),
        (1e7, "10 ms"),
        (1e8, "0.1 s"),
        (1e9, "1 s"),
        (1e10, "10 s"),
    ] {
        put(
            page,
            format_args!(
                "<text x=\"2\" y=\"{0:.1}\">{name}</text><line x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{0:.1}\" y2=\"{0:.1}\" stroke=\"#eee\"/>",
                y(ns)
            ),
        );
    }
    let step = operations.len().div_ceil(POINTS_MAX).max(1);
    for operation in operations.iter().step_by(step) {
        let Some(complete) = operation.complete else {
            continue;
        };
        let took = complete.time_ns.saturating_sub(operation.invoke.time_ns) as f64;
        put(
            page,
            format_args!(
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"1.5\" fill=\"{}\"/>",
                axis.x(operation.invoke.time_ns),
                y(took),
                colour(operation.outcome())
            ),
        );
    }
    page.push_str("</svg></div>\n");
}

fn throughput(page: &mut String, operations: &[Operation<'_>], history: &History, axis: &Axis) {
    axis.open(page, history);
    let mut columns: BTreeMap<(Outcome, u64), u64> = BTreeMap::new();
    let width_ns = (axis.end_ns / COLUMNS).max(1);
    for operation in operations {
        let Some(complete) = operation.complete else {
            continue;
        };
        *columns
            .entry((operation.outcome(), complete.time_ns / width_ns))
            .or_default() += 1;
    }
    let most = columns.values().copied().max().unwrap_or(1).max(1);
    put(
        page,
        format_args!(
            "<text x=\"2\" y=\"12\">{:.0}/s</text>",
            most as f64 * 1e9 / width_ns as f64
        ),
    );
    for outcome in [Outcome::Ok, Outcome::Fail, Outcome::Info] {
        let mut points = String::new();
        for column in 0..=COLUMNS {
            let count = columns.get(&(outcome, column)).copied().unwrap_or(0);
            let y = (HEIGHT - BOTTOM) * (1.0 - count as f64 / most as f64 * 0.95);
            put(
                &mut points,
                format_args!("{:.1},{y:.1} ", axis.x(column * width_ns)),
            );
        }
        put(
            page,
            format_args!(
                "<polyline points=\"{points}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.5\"/>",
                colour(outcome)
            ),
        );
    }
    page.push_str("</svg></div>\n");
}

fn counts(page: &mut String, operations: &[Operation<'_>]) {
    let mut rows: BTreeMap<&str, ([u64; 3], Vec<u64>)> = BTreeMap::new();
    for operation in operations {
        let (counts, times) = rows.entry(operation.f().name()).or_default();
        counts[operation.outcome() as usize] += 1;
        if let Some(ok) = operation.ok() {
            times.push(ok.time_ns.saturating_sub(operation.invoke.time_ns));
        }
    }
    page.push_str("<h2>Operations</h2>\n<table><tr><th>f</th><th>ok</th><th>failed</th><th>unknown</th><th>p50</th><th>p99</th></tr>\n");
    for (name, ([ok, failed, unknown], mut times)) in rows {
        times.sort_unstable();
        let at = |percent: usize| {
            times.get((times.len() * percent / 100).min(times.len().saturating_sub(1)))
        };
        let ms = |percent| {
            at(percent).map_or_else(
                || "-".to_owned(),
                |ns| format!("{:.2} ms", *ns as f64 / 1e6),
            )
        };
        put(
            page,
            format_args!(
                "<tr><td>{}</td><td>{ok}</td><td>{failed}</td><td>{unknown}</td><td>{}</td><td>{}</td></tr>\n",
                escape(name),
                ms(50),
                ms(99)
            ),
        );
    }
    page.push_str("</table>\n");
}

fn faults(page: &mut String, history: &History) {
    page.push_str("<h2>Faults</h2>\n<table><tr><th>time</th><th>fault</th><th>detail</th></tr>\n");
    for op in history.faults().filter(|op| op.kind == Kind::Info) {
        put(
            page,
            format_args!(
                "<tr><td>{:.3} s</td><td>{}</td><td>{}</td></tr>\n",
                op.time_ns as f64 / 1e9,
                escape(op.f.name()),
                escape(&op.value.to_string())
            ),
        );
    }
    page.push_str("</table>\n");
}

fn put(out: &mut String, what: std::fmt::Arguments<'_>) {
    out.write_fmt(what)
        .expect("writing to a String cannot fail");
}
