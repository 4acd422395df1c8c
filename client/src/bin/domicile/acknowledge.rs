//! `--ack`: when a write counts as done.

use domicile_client::Acknowledge;

use crate::failure::Failure;

/// When a write counts as done.
#[derive(Debug, clap::Args)]
pub(crate) struct When {
    /// When the write counts as done: `home` once a quorum of the tag's home
    /// region has it on disk, `mirrors=N` once N mirror regions have it, too,
    /// `regions=A,B` once these have it, too.
    #[arg(long, value_name = "WHEN")]
    ack: Option<String>,
}

impl When {
    /// What was asked for; `None`: nothing.
    pub(crate) fn read(&self) -> Result<Option<Acknowledge>, Failure> {
        let Some(text) = self.ack.as_deref() else {
            return Ok(None);
        };
        let wrong = || {
            Failure::usage(format!(
                "`{text}` is not one of home, mirrors=N, regions=A,B"
            ))
        };
        let acknowledge = match text.split_once('=') {
            None if text == "home" => Acknowledge::Home,
            Some(("mirrors", count)) => Acknowledge::Mirrors(count.parse().map_err(|_| wrong())?),
            Some(("regions", names)) if !names.is_empty() => {
                Acknowledge::Regions(names.split(',').map(str::to_owned).collect())
            }
            _ => return Err(wrong()),
        };
        Ok(Some(acknowledge))
    }
}
