//! `jepsen report FILE`

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use domicile_jepsen::{check, report};

/// Draw a history file as one self-contained HTML page. The exit status is that of `check`.
#[derive(Debug, Args)]
pub(crate) struct Report {
    /// The history file, JSON lines.
    file: PathBuf,
    /// Where to write the page; beside the history if not given.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Report {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let history = super::load(&self.file)?;
        let summary = check::run(&history);
        let output = self
            .output
            .unwrap_or_else(|| self.file.with_extension("html"));
        let title = self.file.display().to_string();
        fs::write(&output, report::html(&title, &history, &summary))
            .with_context(|| format!("cannot write {}", output.display()))?;
        eprintln!("wrote {}", output.display());
        Ok(super::status(summary.outcome()))
    }
}
