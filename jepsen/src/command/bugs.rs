//! `jepsen bugs`: whether the simulation finds what was put in on purpose.

use std::process::{Command, ExitCode, Output};

use anyhow::{Result, ensure};
use domicile_server::seeded::{ALL, VARIABLE};

/// Put one bug after the other into the nodes of the simulation, and count the
/// seeds until each is found. One that is not found is a failure of the
/// harness.
#[derive(clap::Args, Debug)]
pub(crate) struct Bugs {
    /// Only these bugs.
    #[arg(value_name = "BUG")]
    names: Vec<String>,

    /// Only this many, from one that the number chooses: for runs that go
    /// round.
    #[arg(long, value_name = "NUMBER:COUNT", conflicts_with = "names")]
    rotate: Option<String>,

    /// The most seeds for each bug, of either shape.
    #[arg(long, default_value_t = 40)]
    seeds: u64,
}

/// How a bug was found.
struct Found {
    shape: &'static str,
    seeds: u64,
    how: String,
}

impl Bugs {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let mut missed = Vec::new();
        println!("| bug | what it does | found by | shape | seeds |\n|---|---|---|---|---|");
        for (name, what) in self.chosen()? {
            match find(name, self.seeds)? {
                Some(found) => println!(
                    "| {name} |{what} | {} | {} | {} |",
                    found.how, found.shape, found.seeds
                ),
                None => {
                    println!("| {name} |{what} | NOT FOUND | | {} |", self.seeds);
                    missed.push(name);
                }
            }
        }
        Ok(match missed.is_empty() {
            true => ExitCode::SUCCESS,
            false => {
                eprintln!("not found: {missed:?}");
                ExitCode::from(super::EXIT_HARNESS)
            }
        })
    }

    fn chosen(&self) -> Result<Vec<(&'static str, &'static str)>> {
        let all: Vec<_> = ALL.iter().map(|(_, name, what)| (*name, *what)).collect();
        for wanted in &self.names {
            ensure!(
                all.iter().any(|(name, _)| name == wanted),
                "there is no bug {wanted}; there are {:?}",
                all.iter().map(|(name, _)| name).collect::<Vec<_>>()
            );
        }
        if let Some(rotate) = &self.rotate {
            let (number, count) = rotate.split_once(':').unwrap_or((rotate, "2"));
            let (number, count): (usize, usize) = (number.parse()?, count.parse()?);
            let first = (number * count) % all.len();
            return Ok(all
                .iter()
                .cycle()
                .skip(first)
                .take(count)
                .copied()
                .collect());
        }
        let wanted = |name: &str| self.names.is_empty() || self.names.iter().any(|n| n == name);
        Ok(all.into_iter().filter(|(name, _)| wanted(name)).collect())
    }
}

/// The bug of one end that the other end must make good.
const SURVIVED: &str = "lying-sender";

/// The run must pass, and evidence of what was refused must be there.
fn survive(bug: &str) -> Result<Option<Found>> {
    let shape = "regions";
    let output = run(Some(bug), shape, 0)?;
    let said = String::from_utf8_lossy(&output.stdout);
    let line = said
        .lines()
        .find_map(|line| line.strip_prefix("ingress refusals: "));
    let refused: u64 = line.map_or(Ok(0), str::parse)?;
    Ok((output.status.success() && refused > 0).then(|| Found {
        shape,
        seeds: 1,
        how: format!("{refused} refusals at the receivers' gates; no promise broken"),
    }))
}

/// Runs seeds of both shapes by turns until one fails.
fn find(bug: &str, most: u64) -> Result<Option<Found>> {
    if bug == SURVIVED {
        return survive(bug);
    }
    let mut seeds = 0;
    for seed in 0..most {
        for shape in ["region", "regions"] {
            seeds += 1;
            let output = run(Some(bug), shape, seed)?;
            if caught(&output) {
                let without = run(None, shape, seed)?;
                ensure!(
                    without.status.success(),
                    "seed {seed} of {shape} fails without a bug, too: {}",
                    how(&without)
                );
                return Ok(Some(Found {
                    shape,
                    seeds,
                    how: how(&output),
                }));
            }
        }
    }
    Ok(None)
}

/// Whether a promise was seen broken. A run that exercised too little, or in
/// which the harness broke, has found nothing.
fn caught(output: &Output) -> bool {
    let broken = i32::from(super::EXIT_PRODUCT);
    let said = String::from_utf8_lossy(&output.stderr);
    output.status.code() == Some(broken) || said.contains("panicked at")
}

fn run(bug: Option<&str>, shape: &str, seed: u64) -> Result<Output> {
    let mut program = Command::new(std::env::current_exe()?);
    program.args(["sim", "--shape", shape, "--seeds", &seed.to_string()]);
    if let Some(bug) = bug {
        program.env(VARIABLE, bug);
    }
    Ok(program.output()?)
}

/// The checkers that found it.
fn how(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stdout);
    let mut ways: Vec<String> = said
        .lines()
        .filter_map(|line| {
            if let Some((property, _)) = line.split_once(": FAIL") {
                return (!property.starts_with("seed ")).then(|| property.to_owned());
            }
            let broken = line.strip_prefix("broken: ")?;
            Some(broken.split([':', ';']).next().unwrap_or(broken).to_owned())
        })
        .collect();
    if ways.is_empty() {
        let last = String::from_utf8_lossy(&output.stderr);
        let panic = last.lines().find(|line| line.contains("panicked"));
        ways.push(
            panic
                .map_or("the run did not end well", |_| "a panic")
                .to_owned(),
        );
    }
    ways.join(", ")
}
