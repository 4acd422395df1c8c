//! Why a run ends before its end.

use std::fmt;
use std::io::Write as _;

/// Something the product promised did not happen.
#[derive(Debug)]
pub struct Broken(String);

impl Broken {
    /// The error of a run that saw a broken promise.
    #[allow(clippy::new_ret_no_self)]
    pub fn new(what: impl Into<String>) -> anyhow::Error {
        Broken(what.into()).into()
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Broken {}

/// This machine cannot run the scenario, and why.
#[derive(Debug)]
pub struct Lacking(String);

impl Lacking {
    /// The error of a scenario that cannot be run here.
    #[allow(clippy::new_ret_no_self)]
    pub fn new(why: impl Into<String>) -> anyhow::Error {
        Lacking(why.into()).into()
    }
}

impl fmt::Display for Lacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Lacking {}

/// Says that something could not be tried on this machine, so that it is seen:
/// what a test prints is hidden when it passes.
pub fn incomplete(what: impl fmt::Display) {
    // Nobody may listen; then nobody misses it.
    drop(writeln!(std::io::stderr(), "INCOMPLETE: {what}"));
}
