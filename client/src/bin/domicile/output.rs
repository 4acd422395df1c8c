//! What is written, and how: data to stdout, messages to stderr.

use std::io::{self, IsTerminal, Write};

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::{Value, json};

use crate::failure::Failure;

/// How data is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// A table for people. It may change; do not parse it.
    #[default]
    Table,
    /// One JSON document. Its schema only grows.
    Json,
    /// One JSON document a line.
    Jsonl,
    /// The bytes alone.
    Raw,
}

/// Writes data and messages.
#[derive(Debug)]
pub(crate) struct Output {
    format: Format,
    colour: bool,
}

/// A colour with a meaning; the text says the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Colour {
    /// It works.
    Green,
    /// It works, but look at it.
    Yellow,
    /// It does not work.
    Red,
}

impl Output {
    /// Colours go to a terminal only, and not where `NO_COLOR` is set.
    pub(crate) fn new(format: Format) -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Output {
            format,
            colour: !refused && io::stdout().is_terminal(),
        }
    }

    /// The format asked for.
    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// Colours a word.
    pub(crate) fn paint(&self, colour: Colour, text: &str) -> String {
        if !self.colour {
            return text.to_owned();
        }
        let code = match colour {
            Colour::Green => 32,
            Colour::Yellow => 33,
            Colour::Red => 31,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// Writes one thing in the format asked for.
    pub(crate) fn document(
        &self,
        json: &Value,
        table: impl FnOnce() -> String,
        raw: &[u8],
    ) -> Result<(), Failure> {
        match self.format {
            Format::Table => self.bytes(table().as_bytes()),
            Format::Json => self.bytes(format!("{json:#}\n").as_bytes()),
            Format::Jsonl => self.bytes(format!("{json}\n").as_bytes()),
            Format::Raw => self.bytes(raw),
        }
    }

    /// Writes bytes as they are.
    pub(crate) fn bytes(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
        written.map_err(Failure::from_stdout)
    }

    /// Says something to the user.
    pub(crate) fn message(&self, text: &str) {
        // Nobody to tell if stderr is closed.
        writeln!(io::stderr(), "{text}").ok();
    }

    /// Says why the command failed.
    pub(crate) fn failure(&self, failure: &Failure) {
        if matches!(failure, Failure::ReaderGone | Failure::Interrupted) {
            return;
        }
        let (reason, message, next) = (failure.reason(), failure.message(), failure.next());
        if matches!(self.format, Format::Json | Format::Jsonl) {
            let facts = failure.facts();
            let json =
                json!({ "reason": reason, "message": message, "next": next, "facts": facts });
            self.message(&json.to_string());
            return;
        }
        match reason {
            "" => self.message(&format!("error: {message}")),
            reason => self.message(&format!("error: {reason}: {message}")),
        }
        if !next.is_empty() && next != message {
            self.message(&format!("next: {next}"));
        }
    }
}

/// A table without lines, as wide as it must be.
pub(crate) fn table<H, R, C>(header: H, rows: R) -> String
where
    H: IntoIterator<Item: Into<String>>,
    R: IntoIterator<Item = C>,
    C: IntoIterator<Item = String>,
{
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.into_iter().map(Into::into).collect::<Vec<String>>());
    for row in rows {
        table.add_row(row.into_iter().collect::<Vec<_>>());
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
