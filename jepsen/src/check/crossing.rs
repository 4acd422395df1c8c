//! Acknowledgements of several regions: such a write has crossed between them.
//!
//! While a region is cut off from every other, nothing crosses its border. So no write that was invoked and acknowledged meanwhile can be in it and in another region.

use super::order::Checked;
use super::{Finding, Verdict};
use crate::history::{History, Isolation, Note, Operation};

const NS_PER_MS: u64 = 1_000_000;

/// Judges every write that was acknowledged in several regions.
pub fn check(history: &History) -> Checked {
    let isolations: Vec<&Isolation> = history
        .notes
        .iter()
        .filter_map(|note| match note {
            Note::Isolation(span) => Some(span),
            _ => None,
        })
        .collect();
    let operations = history.operations();
    let crossed =
        |operation: &&Operation<'_>| operation.ok().is_some_and(|ok| ok.meta.acked_in.len() > 1);
    let (mut findings, mut checked) = (Vec::new(), 0);
    for write in operations.iter().filter(crossed) {
        checked += 1;
        findings.extend(isolations.iter().find_map(|span| impossible(write, span)));
    }
    (Verdict::of(findings), checked)
}

fn impossible(write: &Operation<'_>, span: &Isolation) -> Option<Finding> {
    let ok = write.ok()?;
    let during = span.from_ns <= write.invoke.time_ns && ok.time_ns <= span.to_ns;
    if !during || !ok.meta.acked_in.contains(&span.region) {
        return None;
    }
    let what = format!(
        "a write was acknowledged in {} and elsewhere {} ms after it was invoked, though {} was cut off all the time",
        span.region,
        (ok.time_ns - write.invoke.time_ns) / NS_PER_MS,
        span.region
    );
    Some(
        Finding::new("acked-across-a-cut", what)
            .key(write.key())
            .of(write),
    )
}
