//! What can be typed.

use std::fmt;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use domicile_proto::address::RegionName;
use regex::Regex;

use super::name::Name;

/// What is said of the demo's own commands.
pub(super) const HELP: &str = "\
  get put delete scan ...        as with `domicile`; --from REGION says where the caller is
  status                         nodes, links, leaders, mirrors
  audit run                      where every byte is, against the policy
  kill NODE | restart NODE       NODE as eu/1; `kill leader TAG`, `restart all` pick themselves
  partition A B | isolate A      cut the links between two regions, or of one
  heal                           mend every link
  sleep SECONDS | help | exit
Anything else is run as `domicile ...`; try `placement matrix`, `cluster status`.";

/// A line that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Nothing to do.
    Nothing,
    /// Say what can be typed.
    Help,
    /// Leave.
    Exit,
    /// Show the nodes and links.
    Status,
    /// Stop a node at once.
    Kill(Name),
    /// Stop the node that leads a tag's home.
    KillLeader(String),
    /// Start a node again.
    Restart(Name),
    /// Start every node that is dead.
    RestartAll,
    /// Cut the links between two regions.
    Partition(RegionName, RegionName),
    /// Cut the links of a region.
    Isolate(RegionName),
    /// Mend every link.
    Heal,
    /// Wait.
    Sleep(Duration),
    /// Run the program `domicile` as a caller in a region.
    Domicile {
        /// Where the caller is.
        from: RegionName,
        /// The arguments.
        arguments: Vec<String>,
    },
}

impl Command {
    /// Reads a line. Callers are in `home` unless they say otherwise.
    pub(super) fn read(line: &str, home: &RegionName) -> Result<Command> {
        let Some(words) = shlex::split(line) else {
            bail!("a quote is not closed");
        };
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let region =
            |name: &str| RegionName::new(name).map_err(|e| anyhow!("`{name}` is no region: {e}"));
        Ok(match words.as_slice() {
            [] => Command::Nothing,
            [first, ..] if first.starts_with('#') => Command::Nothing,
            ["help" | "?"] => Command::Help,
            ["exit" | "quit"] => Command::Exit,
            ["status"] => Command::Status,
            ["kill", "leader", tag] => Command::KillLeader((*tag).to_owned()),
            ["kill", node] => Command::Kill(node.parse()?),
            ["restart", "all"] => Command::RestartAll,
            ["restart", node] => Command::Restart(node.parse()?),
            ["partition", one, other] => Command::Partition(region(one)?, region(other)?),
            ["isolate", one] => Command::Isolate(region(one)?),
            ["heal"] => Command::Heal,
            ["sleep", seconds] => {
                let seconds: f64 = seconds.parse()?;
                Command::Sleep(Duration::try_from_secs_f64(seconds)?)
            }
            [
                "kill" | "restart" | "partition" | "isolate" | "heal" | "sleep" | "status",
                ..,
            ] => {
                bail!("that is not complete; `help` shows how it is written")
            }
            words => {
                let mut from = home.clone();
                let mut arguments = Vec::new();
                let mut words = words.iter();
                while let Some(word) = words.next() {
                    match word.strip_prefix("--from") {
                        Some("") => {
                            let name = words.next();
                            from = region(name.ok_or_else(|| anyhow!("--from names a region"))?)?;
                        }
                        Some(rest) if rest.starts_with('=') => from = region(&rest[1..])?,
                        _ => arguments.push((*word).to_owned()),
                    }
                }
                Command::Domicile { from, arguments }
            }
        })
    }
}

/// What a line of a script should do.
#[derive(Clone, Debug)]
pub(super) struct Expected {
    /// The exit code.
    pub(super) code: u8,
    /// What it should print; empty: anything.
    text: String,
    /// What it should print, if that was written as `/PATTERN/`.
    pattern: Option<Regex>,
    /// How long it should take at least.
    after: Duration,
}

impl Expected {
    /// Splits a script's line into what it should do and the command.
    pub(super) fn read(line: &str) -> Result<(Expected, &str)> {
        let fine = Expected {
            code: 0,
            text: String::new(),
            pattern: None,
            after: Duration::ZERO,
        };
        let Some(rest) = line.trim().strip_prefix("expect ") else {
            return Ok((fine, line));
        };
        let (expected, command) = rest
            .split_once(": ")
            .ok_or_else(|| anyhow!("`expect N [after M] TEXT: COMMAND`; there is no colon"))?;
        let (code, rest) = expected.split_once(' ').unwrap_or((expected, ""));
        let code = code
            .parse()
            .map_err(|_| anyhow!("`{code}` is no exit code"))?;
        let (after, text) = match rest.strip_prefix("after ") {
            None => (Duration::ZERO, rest),
            Some(rest) => {
                let (after, text) = rest.split_once(' ').unwrap_or((rest, ""));
                let millis = after.strip_suffix("ms").and_then(|ms| ms.parse().ok());
                let millis = millis.ok_or_else(|| anyhow!("`{after}` is no time, as in 80ms"))?;
                (Duration::from_millis(millis), text)
            }
        };
        let pattern = text.strip_prefix('/').and_then(|t| t.strip_suffix('/'));
        let expected = Expected {
            code,
            text: text.to_owned(),
            pattern: pattern.map(Regex::new).transpose()?,
            after,
        };
        Ok((expected, command))
    }

    /// Whether a command did so.
    pub(super) fn is_met(&self, code: u8, text: &str, took: Duration) -> bool {
        let printed = match &self.pattern {
            Some(pattern) => pattern.is_match(text),
            None => text.contains(&self.text),
        };
        code == self.code && printed && took >= self.after
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}", self.code)?;
        if !self.after.is_zero() {
            write!(f, " after at least {:?}", self.after)?;
        }
        write!(f, " with `{}`", self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eu() -> RegionName {
        RegionName::new("eu").expect("a name")
    }

    #[test]
    fn commands_are_read_and_the_rest_is_passed_on() {
        let read = |line| Command::read(line, &eu()).expect("a command");
        assert_eq!(read("  # note"), Command::Nothing);
        assert_eq!(read("heal"), Command::Heal);
        assert_eq!(
            read("kill leader global"),
            Command::KillLeader("global".into())
        );
        let Command::Domicile { from, arguments } = read("put global/a 'b c' --from us") else {
            panic!("not passed on");
        };
        assert_eq!(from.as_str(), "us");
        assert_eq!(arguments, ["put", "global/a", "b c"]);
        assert!(Command::read("kill", &eu()).is_err());
        assert!(Command::read("put 'x", &eu()).is_err());
    }

    #[test]
    fn a_script_says_what_it_expects() {
        let short = Duration::from_millis(5);
        let read = |line| Expected::read(line).expect("read");
        let (expected, command) = read("expect 4 NOT: put a: b");
        assert_eq!(command, "put a: b");
        assert!(expected.is_met(4, "NOT HELD", short));
        assert!(!expected.is_met(0, "NOT HELD", short));
        assert!(!expected.is_met(4, "held", short));
        let (expected, command) = read("get a/b");
        assert_eq!((expected.code, command), (0, "get a/b"));
        let (expected, _) = read("expect 0 after 80ms eu/: get a");
        assert!(expected.is_met(0, "eu/1", Duration::from_millis(81)));
        assert!(!expected.is_met(0, "eu/1", short));
        let (expected, _) = read("expect 0 /lag_ms\\D+[0-9]{4}/: get a");
        assert!(expected.is_met(0, "\"lag_ms\": 2100", short));
        assert!(!expected.is_met(0, "\"lag_ms\": 210", short));
        assert!(Expected::read("expect 0 no colon").is_err());
    }
}
