//! `jepsen sim` and `jepsen meta`: simulated clusters, one process for a seed.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use domicile_jepsen::judge::Outcome;
use domicile_jepsen::sim::{self, Plan, Shape};

/// How often the running seeds are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How long the process of a seed may take: many times what any needs.
const SEED_WAIT: Duration = Duration::from_secs(600);

/// Run simulated clusters and judge what their clients were told. A seed
/// decides everything; it is repeated with the command that a failure prints.
#[derive(clap::Args, Debug)]
pub(crate) struct Sim {
    /// The seeds: `7`, or `0..100` without the last.
    #[arg(long, value_name = "A..B", required_unless_present = "file")]
    seeds: Option<Seeds>,

    /// A file of seeds, each line a shape and a seed, instead.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seeds", "shape"])]
    file: Option<PathBuf>,

    /// How many nodes there are.
    #[arg(long, value_enum, default_value_t = Form::Regions)]
    shape: Form,

    /// Runs at once; by default as many as there are processors.
    #[arg(long)]
    jobs: Option<usize>,

    /// Where seeds that failed are added, each with its shape.
    #[arg(long, value_name = "FILE")]
    append: Option<PathBuf>,

    /// Where the trace of a single seed goes.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,

    /// Where the history of a single seed goes.
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,

    /// Print the plan of a single seed and run nothing.
    #[arg(long)]
    plan: bool,
}

/// Run each seed in two processes and compare their traces byte for byte.
#[derive(clap::Args, Debug)]
pub(crate) struct Meta {
    /// The seeds: `7`, or `0..5` without the last.
    #[arg(long, value_name = "A..B")]
    seeds: Seeds,

    /// How many nodes there are.
    #[arg(long, value_enum, default_value_t = Form::Regions)]
    shape: Form,
}

/// The shape of a cluster.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Form {
    /// One node alone.
    Lone,
    /// Three nodes in one region.
    Region,
    /// Three regions of three nodes.
    Regions,
}

impl Form {
    fn shape(self) -> Shape {
        match self {
            Form::Lone => Shape::Lone,
            Form::Region => Shape::Region,
            Form::Regions => Shape::Regions,
        }
    }

    fn name(self) -> &'static str {
        self.shape().name()
    }
}

/// One seed, or those from the first to before the last.
#[derive(Clone, Debug)]
struct Seeds(Range<u64>);

impl FromStr for Seeds {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Seeds> {
        let seeds = match text.split_once("..") {
            Some((first, end)) => first.trim().parse()?..end.trim().parse()?,
            None => {
                let seed: u64 = text.trim().parse()?;
                seed..seed + 1
            }
        };
        ensure!(!seeds.is_empty(), "there is no seed in {text}");
        Ok(Seeds(seeds))
    }
}

impl Sim {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let runs = self.runs()?;
        if let ([(_, seed)], None) = (&runs[..], &self.file) {
            return self.one(*seed);
        }
        ensure!(
            self.trace.is_none() && self.history.is_none() && !self.plan,
            "a trace, a history or a plan is of a single seed"
        );
        let jobs = self.jobs.unwrap_or_else(|| {
            std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
        });
        self.many(runs, jobs.max(1))
    }

    /// The seeds to run, each with its shape.
    fn runs(&self) -> Result<Vec<(Form, u64)>> {
        if let Some(Seeds(seeds)) = &self.seeds {
            return Ok(seeds.clone().map(|seed| (self.shape, seed)).collect());
        }
        let path = self.file.as_deref().context("there are no seeds")?;
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines
            .filter(|line| !line.trim().is_empty())
            .map(|line| {
                let wrong = || format!("`{line}` is no shape and seed, as in `regions 7`");
                let (shape, seed) = line.trim().split_once(' ').with_context(wrong)?;
                let shape = Form::from_str(shape, false);
                let shape = shape.ok().with_context(wrong)?;
                Ok((shape, seed.parse().with_context(wrong)?))
            })
            .collect()
    }

    /// Runs a seed in this process.
    fn one(&self, seed: u64) -> Result<ExitCode> {
        let plan = Plan::draw(seed, self.shape.shape());
        if self.plan {
            print!("{plan}");
            return Ok(ExitCode::SUCCESS);
        }
        let ended = sim::run(&plan, self.trace.as_deref())?;
        if let Some(path) = &self.history {
            let file = File::create(path).context("no file for the history")?;
            ended.history.write(std::io::BufWriter::new(file))?;
        }
        for line in &ended.report.lines {
            println!("{line}");
        }
        println!("trace: {} lines, {}", ended.trace.0, ended.trace.1);
        println!("simulated: {} ms", ended.simulated.as_millis());
        println!("seed {seed}: {}", ended.report.outcome);
        Ok(match ended.report.outcome {
            Outcome::Pass => ExitCode::SUCCESS,
            Outcome::Fail | Outcome::Unknown => ExitCode::from(super::EXIT_PRODUCT),
            Outcome::Thin => ExitCode::from(super::EXIT_COVERAGE),
            Outcome::Harness | Outcome::Incomplete => ExitCode::from(super::EXIT_HARNESS),
        })
    }

    fn many(&self, runs: Vec<(Form, u64)>, jobs: usize) -> Result<ExitCode> {
        let began = now();
        let all = runs.len();
        let mut waiting = VecDeque::from(runs);
        let mut running: Vec<Seed> = Vec::new();
        let (mut passed, mut failed, mut simulated_ms) = (0_u64, Vec::new(), 0);
        while !waiting.is_empty() || !running.is_empty() {
            while running.len() < jobs
                && let Some((shape, seed)) = waiting.pop_front()
            {
                running.push(start(shape, seed)?);
            }
            std::thread::sleep(LOOK_EVERY);
            let mut at = 0;
            while at < running.len() {
                let Some(well) = running[at].ended()? else {
                    at += 1;
                    continue;
                };
                let mut ended = running.swap_remove(at);
                let (shape, seed, said) = (ended.shape, ended.seed, ended.said()?);
                simulated_ms += figure(&said, "simulated: ").unwrap_or(0);
                if well {
                    passed += 1;
                } else {
                    eprintln!("{said}");
                    eprintln!("again: jepsen sim --shape {} --seeds {seed}", shape.name());
                    failed.push(seed);
                    self.remember(shape, seed)?;
                }
                let share = passed as usize + failed.len();
                eprintln!("{share}/{all}: seed {seed}");
            }
        }
        let took = began.elapsed().as_secs_f64();
        println!(
            "{passed} seeds passed, {} failed {failed:?}; {:.2} cluster-hours in {took:.0} s, {:.1} times as fast as time",
            failed.len(),
            simulated_ms as f64 / 3.6e6,
            simulated_ms as f64 / 1000.0 / took
        );
        Ok(match failed.is_empty() {
            true => ExitCode::SUCCESS,
            false => ExitCode::from(super::EXIT_PRODUCT),
        })
    }

    /// Adds a seed to those that once failed.
    fn remember(&self, shape: Form, seed: u64) -> Result<()> {
        let Some(path) = &self.append else {
            return Ok(());
        };
        let mut file = OpenOptions::new().append(true).create(true).open(path)?;
        writeln!(file, "{} {seed}", shape.name())?;
        Ok(())
    }
}

/// A seed that runs in a process of its own.
struct Seed {
    shape: Form,
    seed: u64,
    child: Child,
    said: File,
    began: Instant,
}

impl Seed {
    /// Whether it ended well; `None`: it runs.
    fn ended(&mut self) -> Result<Option<bool>> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(Some(status.success()));
        }
        if self.began.elapsed() < SEED_WAIT {
            return Ok(None);
        }
        self.child.kill()?;
        self.child.wait()?;
        writeln!(self.said, "it did not end within {SEED_WAIT:?}")?;
        Ok(Some(false))
    }

    /// What it said.
    fn said(&mut self) -> Result<String> {
        let mut said = Vec::new();
        self.said.seek(SeekFrom::Start(0))?;
        self.said.read_to_end(&mut said)?;
        Ok(String::from_utf8_lossy(&said).into_owned())
    }
}

impl Meta {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let folder = std::env::temp_dir().join(format!("domicile-meta-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let compared = self.compare(&folder);
        std::fs::remove_dir_all(&folder)?;
        compared
    }

    fn compare(&self, folder: &Path) -> Result<ExitCode> {
        let Seeds(seeds) = &self.seeds;
        for seed in seeds.clone() {
            let mut traces = Vec::new();
            for number in 1..=2 {
                let trace = folder.join(format!("{seed}-{number}"));
                let arguments = ["--trace".as_ref(), trace.as_os_str()];
                let output = program(self.shape, seed)?.args(arguments).output()?;
                if !output.status.success() {
                    bail!(
                        "seed {seed} did not pass:\n{}",
                        String::from_utf8_lossy(&output.stdout)
                    );
                }
                traces.push(std::fs::read(&trace)?);
                std::fs::remove_file(&trace)?;
            }
            if traces[0] != traces[1] {
                println!("seed {seed}: {}", difference(&traces[0], &traces[1]));
                return Ok(ExitCode::from(super::EXIT_HARNESS));
            }
            println!(
                "seed {seed}: two traces of {} bytes are equal",
                traces[0].len()
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The first line in which two traces differ.
fn difference(one: &[u8], other: &[u8]) -> String {
    let lines = |trace: &[u8]| -> Vec<String> {
        let text = String::from_utf8_lossy(trace);
        text.lines().map(str::to_owned).collect()
    };
    let (one, other) = (lines(one), lines(other));
    let at = one.iter().zip(&other).position(|(a, b)| a != b);
    let at = at.unwrap_or(one.len().min(other.len()));
    let none = String::from("nothing");
    format!(
        "the traces differ in line {} of {} and {}:\n  {}\n  {}",
        at + 1,
        one.len(),
        other.len(),
        one.get(at).unwrap_or(&none),
        other.get(at).unwrap_or(&none)
    )
}

fn program(shape: Form, seed: u64) -> Result<std::process::Command> {
    let mut program = std::process::Command::new(std::env::current_exe()?);
    program.args(["sim", "--shape", shape.name(), "--seeds", &seed.to_string()]);
    Ok(program)
}

fn start(shape: Form, seed: u64) -> Result<Seed> {
    let mut program = program(shape, seed)?;
    // Into a file: a pipe that nobody reads would hold it up.
    let said = tempfile::tempfile().context("no file for what a seed says")?;
    let child = program.stdout(said.try_clone()?).stderr(said.try_clone()?);
    let child = child.spawn().context("a seed's process did not start")?;
    Ok(Seed {
        shape,
        seed,
        child,
        said,
        began: now(),
    })
}

fn figure(said: &str, name: &str) -> Option<u64> {
    let line = said.lines().find_map(|line| line.strip_prefix(name))?;
    line.split(' ').next()?.parse().ok()
}

/// The time of this machine, for the speed.
#[allow(clippy::disallowed_methods)]
fn now() -> Instant {
    Instant::now()
}
