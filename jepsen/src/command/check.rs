//! `jepsen check FILE...`

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use domicile_jepsen::check::{self, RunOutcome, Summary, timeline};
use domicile_jepsen::history::{History, edn};

/// Findings printed per property; the rest are counted.
const FINDINGS_SHOWN_MAX: usize = 10;

/// Judge history files and print a verdict per property.
///
/// Exit status: 0 all promises kept, 1 a promise broken or undecided, 3 too little exercised, 4 the harness broke.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// History files, JSON lines.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Write EDN for Knossos (one file per key) and Elle into this directory.
    #[arg(long, value_name = "DIR")]
    edn: Option<PathBuf>,
    /// Write an HTML timeline of every failing key into this directory.
    #[arg(long, value_name = "DIR")]
    timelines: Option<PathBuf>,
}

impl Check {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let mut worst = RunOutcome::Pass;
        for file in &self.files {
            // A file nobody can read is the harness's failure; the other files are still judged.
            let history = match super::load(file) {
                Ok(history) => history,
                Err(error) => {
                    eprintln!("jepsen: {error:#}");
                    worst = RunOutcome::HarnessFailure;
                    continue;
                }
            };
            let summary = check::run(&history);
            print(file, &summary);
            worst = worst.max(summary.outcome());
            let stem = file
                .file_stem()
                .map_or_else(|| "history".into(), |s| s.to_string_lossy().into_owned());
            if let Some(dir) = &self.edn {
                export(&history, dir, &stem)?;
            }
            if let Some(dir) = &self.timelines {
                draw(&summary, dir, &stem)?;
            }
        }
        Ok(super::status(worst))
    }
}

fn print(file: &Path, summary: &Summary) {
    println!("{}: {}", file.display(), summary.outcome().name());
    let coverage = &summary.coverage;
    println!(
        "  {} operations: {} ok, {} failed, {} unknown; {} leader changes, {} home changes",
        coverage.operations,
        coverage.ok,
        coverage.failed,
        coverage.unknown,
        coverage.leader_changes,
        coverage.epoch_changes
    );
    for property in &summary.properties {
        if property.checked == 0 && property.verdict.is_pass() {
            println!("  {:<24} -", property.name);
            continue;
        }
        println!(
            "  {:<24} {} over {}",
            property.name, property.verdict, property.checked
        );
        let findings = property.verdict.findings();
        for finding in findings.iter().take(FINDINGS_SHOWN_MAX) {
            println!("    {finding}");
        }
        if findings.len() > FINDINGS_SHOWN_MAX {
            println!("    and {} more", findings.len() - FINDINGS_SHOWN_MAX);
        }
    }
    for missing in &coverage.missing {
        println!("  coverage: {missing}");
    }
    for what in &summary.harness {
        println!("  harness: {what}");
    }
}

fn export(history: &History, dir: &Path, stem: &str) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    for (number, (_, text)) in edn::knossos(history).iter().enumerate() {
        // Keys are not file names; the files are numbered in the order of their keys.
        fs::write(dir.join(format!("{stem}-key-{number}.edn")), text)?;
    }
    fs::write(dir.join(format!("{stem}-elle.edn")), edn::elle(history))?;
    Ok(())
}

fn draw(summary: &Summary, dir: &Path, stem: &str) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    for (number, example) in summary.counterexamples.iter().enumerate() {
        let page = timeline::html(&format!("{stem}: key {}", example.key), &example.bars);
        fs::write(dir.join(format!("{stem}-timeline-{number}.html")), page)?;
    }
    Ok(())
}
