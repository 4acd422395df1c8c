//! A picture of calls over time: one lane per process, one bar per call.
//!
//! Time is drawn by rank of event and not to scale, as Knossos and Porcupine do, because what matters is which calls overlap.
//! The output is plain SVG without scripts; hovering shows the exact label.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// One call in a timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bar {
    /// The lane it is drawn in, usually a process.
    pub lane: String,
    /// What it did.
    pub label: String,
    /// Its invocation in the total order.
    pub from: u64,
    /// Its return; absent when it never returned.
    pub to: Option<u64>,
}

const LANE_HEIGHT: usize = 34;
const STEP_WIDTH: usize = 92;
const MARGIN: usize = 110;

/// Draws bars as one SVG element.
pub fn svg(bars: &[Bar]) -> String {
    let mut ranks: BTreeMap<u64, usize> = BTreeMap::new();
    for bar in bars {
        ranks.insert(bar.from, 0);
        ranks.extend(bar.to.map(|to| (to, 0)));
    }
    for (rank, place) in ranks.values_mut().enumerate() {
        *place = rank;
    }
    let mut lanes: Vec<&str> = Vec::new();
    for bar in bars {
        if !lanes.contains(&bar.lane.as_str()) {
            lanes.push(&bar.lane);
        }
    }
    let width = MARGIN + (ranks.len() + 1) * STEP_WIDTH;
    let height = (lanes.len() + 1) * LANE_HEIGHT;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"timeline\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">"
    );
    for (row, lane) in lanes.iter().enumerate() {
        let y = row * LANE_HEIGHT + LANE_HEIGHT / 2 + 8;
        put(
            &mut out,
            format_args!(
                "<text x=\"4\" y=\"{y}\" fill=\"#555\">{}</text>",
                escape(lane)
            ),
        );
    }
    for bar in bars {
        let row = lanes.iter().position(|lane| *lane == bar.lane).unwrap_or(0);
        draw(&mut out, bar, row, &ranks);
    }
    out.push_str("</svg>");
    out
}

fn draw(out: &mut String, bar: &Bar, row: usize, ranks: &BTreeMap<u64, usize>) {
    let place = |at: u64| MARGIN + ranks.get(&at).copied().unwrap_or(0) * STEP_WIDTH;
    let x = place(bar.from);
    let end = bar
        .to
        .map_or(MARGIN + (ranks.len() + 1) * STEP_WIDTH, place);
    let y = row * LANE_HEIGHT + 8;
    let (fill, dash) = match bar.to {
        Some(_) => ("#cfe8cf", ""),
        None => ("#f6dfb8", " stroke-dasharray=\"4 3\""),
    };
    let label = escape(&bar.label);
    put(
        out,
        format_args!(
            "<g><title>{label} [{}..{}]</title><rect x=\"{x}\" y=\"{y}\" width=\"{}\" height=\"24\" rx=\"3\" fill=\"{fill}\" stroke=\"#777\"{dash}/><text x=\"{}\" y=\"{}\">{label}</text></g>",
            bar.from,
            bar.to
                .map_or_else(|| "unknown".to_owned(), |to| to.to_string()),
            end.saturating_sub(x).max(8),
            x + 5,
            y + 16,
        ),
    );
}

/// A whole page around [`svg`], for one failing key.
pub fn html(title: &str, bars: &[Bar]) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{0}</title><body style=\"font-family:sans-serif\"><h1>{0}</h1><p>Green calls returned; dashed ones never did. Time runs right, not to scale.</p><div style=\"overflow-x:auto\">{1}</div></body></html>\n",
        escape(title),
        svg(bars)
    )
}

/// Makes text safe inside HTML and SVG.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

fn put(out: &mut String, what: std::fmt::Arguments<'_>) {
    out.write_fmt(what)
        .expect("writing to a String cannot fail");
}
