//! Results as tables: medians over the rounds, ratios, and the goals.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use crate::adapter::{Adapter, Workload};
use crate::compare::{Cell, Results};

/// What a goal is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Figure {
    /// Operations per second.
    Throughput,
    /// The median latency.
    P50,
    /// The 99th percentile of the latency.
    P99,
}

/// A goal, as a ratio of two systems.
#[derive(Clone, Debug, Serialize)]
pub struct Goal {
    /// The adapter that has the goal.
    pub system: &'static str,
    /// Its workload.
    pub workload: &'static str,
    /// How many operations are in flight.
    pub in_flight: usize,
    /// What is compared.
    pub figure: Figure,
    /// The adapter or ceiling it is compared with.
    pub reference: &'static str,
    /// The workload of the reference.
    pub reference_workload: &'static str,
    /// The ratio to reach: at least, for a throughput, at most, for a latency.
    pub goal: f64,
    /// The median of the rounds' ratios; absent: not measured.
    pub measured: Option<f64>,
}

impl Goal {
    /// Whether the goal is reached; absent: not measured.
    pub fn reached(&self) -> Option<bool> {
        self.measured.map(|measured| match self.figure {
            Figure::Throughput => measured >= self.goal,
            Figure::P50 | Figure::P99 => measured <= self.goal,
        })
    }
}

/// One row of the report: a system at a workload, over all rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The workload.
    pub workload: String,
    /// How many operations were in flight.
    pub in_flight: usize,
    /// The adapter or the ceiling.
    pub system: String,
    /// The median of operations per second.
    pub throughput: f64,
    /// The least and the most of operations per second.
    pub throughput_range: (f64, f64),
    /// The median of the rounds' throughputs, each over etcd's in the same
    /// round; absent: etcd was not measured.
    pub times_etcd: Option<f64>,
    /// The median of the rounds' median latencies, in milliseconds.
    pub p50_ms: f64,
    /// The median of the rounds' 99th percentiles, in milliseconds.
    pub p99_ms: f64,
    /// The median of the rounds' 99.9th percentiles, in milliseconds.
    pub p999_ms: f64,
    /// The median of the cores used by the system's processes.
    pub server_cores: f64,
    /// The median of the cores used by the load generator.
    pub load_cores: f64,
    /// The most cores used by anything else in a round.
    pub other_cores_max: f64,
    /// Failed operations of all rounds.
    pub errors: u64,
    /// Wrong answers of all rounds.
    pub wrong: u64,
}

/// Results, their rows and their goals, as the JSON file has them.
#[derive(Debug, Serialize)]
pub struct Report {
    /// One row per cell, over all rounds.
    pub rows: Vec<Row>,
    /// The goals.
    pub goals: Vec<Goal>,
    /// Everything that was measured.
    pub results: Results,
}

impl Report {
    /// Sums results up.
    pub fn new(results: Results) -> Report {
        Report {
            rows: rows(&results.cells),
            goals: goals(&results.cells),
            results,
        }
    }

    /// Wrong answers in all.
    pub fn wrong(&self) -> u64 {
        self.rows.iter().map(|row| row.wrong).sum()
    }

    /// The report as Markdown, for `docs/performance.md`.
    pub fn markdown(&self) -> String {
        let mut text = self.head();
        let (ceilings, systems): (Vec<&Row>, Vec<&Row>) =
            self.rows.iter().partition(|row| is_ceiling(&row.workload));
        if !systems.is_empty() {
            text.push_str("\n**Systems**\n\n");
            table(&mut text, &systems);
        }
        if !ceilings.is_empty() {
            text.push_str("\n**Ceilings**\n\n");
            table(&mut text, &ceilings);
        }
        if self.goals.iter().any(|goal| goal.measured.is_some()) {
            text.push_str("\n**Goals**\n\n");
            goal_table(&mut text, &self.goals);
        }
        text
    }

    /// When, where and how.
    fn head(&self) -> String {
        let results = &self.results;
        let machine = &results.machine;
        let versions = if results.versions.is_empty() {
            "ceilings only".to_owned()
        } else {
            let versions = results.versions.iter();
            let versions: Vec<String> = versions.map(|(k, v)| format!("{k} ({v})")).collect();
            versions.join(", ")
        };
        format!(
            "{}; {} cores shared by servers and load ({}), {} MiB, Linux {}, {}. {}. \
             Medians of {} round(s), {} s each after {} s of warm-up; {} keys, values of {} bytes, \
             {} connection(s), spread: {:?}.\n",
            results.date,
            machine.cores,
            machine.processor,
            machine.memory_mib,
            machine.kernel,
            machine.file_system,
            versions,
            results.plan.rounds,
            results.duration_seconds,
            results.warm_up_seconds,
            results.plan.keys,
            results.plan.value_bytes,
            results.plan.channels,
            results.plan.spread,
        )
    }
}

fn is_ceiling(workload: &str) -> bool {
    matches!(workload, "echo" | "sync")
}

/// The cells of one row, by round.
type Rounds<'a> = BTreeMap<usize, &'a Cell>;

fn rounds<'a>(cells: &'a [Cell], system: &str, workload: &str, in_flight: usize) -> Rounds<'a> {
    let same = cells.iter().filter(|cell| {
        cell.system == system && cell.workload == workload && cell.in_flight == in_flight
    });
    same.map(|cell| (cell.round, cell)).collect()
}

/// One row for each system, workload and number in flight, in the order of
/// workload, number in flight, and first appearance.
fn rows(cells: &[Cell]) -> Vec<Row> {
    let mut order: Vec<(&str, &str, usize)> = Vec::new();
    for cell in cells {
        let row = (cell.workload.as_str(), cell.system.as_str(), cell.in_flight);
        if !order.contains(&row) {
            order.push(row);
        }
    }
    let rank = |workload: &str| {
        let workloads = [Workload::Put, Workload::StrongGet, Workload::LocalGet];
        let rank = workloads.iter().position(|one| one.name() == workload);
        rank.unwrap_or(workloads.len())
    };
    order.sort_by_key(|(workload, system, in_flight)| {
        let ceiling = is_ceiling(workload).then(|| (*system).to_owned());
        (rank(workload), ceiling, *in_flight)
    });
    let rows = order.into_iter();
    rows.map(|(workload, system, in_flight)| row(cells, system, workload, in_flight))
        .collect()
}

fn row(cells: &[Cell], system: &str, workload: &str, in_flight: usize) -> Row {
    let own = rounds(cells, system, workload, in_flight);
    let etcd = rounds(cells, Adapter::Etcd.name(), workload, in_flight);
    let of = |figure: fn(&Cell) -> f64| own.values().map(|cell| figure(cell)).collect::<Vec<_>>();
    let throughputs = of(|cell| cell.measured.throughput);
    let least = throughputs.iter().copied().fold(f64::INFINITY, f64::min);
    let most = throughputs.iter().copied().fold(0.0, f64::max);
    let median_of = |figure| median(of(figure)).unwrap_or(0.0);
    Row {
        workload: workload.to_owned(),
        in_flight,
        system: system.to_owned(),
        throughput: median(throughputs).unwrap_or(0.0),
        throughput_range: (least, most),
        times_etcd: ratio(&own, &etcd, Figure::Throughput),
        p50_ms: median_of(|cell| cell.measured.p50_us / 1_000.0),
        p99_ms: median_of(|cell| cell.measured.p99_us / 1_000.0),
        p999_ms: median_of(|cell| cell.measured.p999_us / 1_000.0),
        server_cores: median_of(|cell| cell.server_cores),
        load_cores: median_of(|cell| cell.load_cores),
        other_cores_max: of(|cell| cell.other_cores).into_iter().fold(0.0, f64::max),
        errors: own.values().map(|cell| cell.measured.errors_total()).sum(),
        wrong: own.values().map(|cell| cell.measured.wrong).sum(),
    }
}

/// The median of the ratios of the rounds that both have.
fn ratio(own: &Rounds<'_>, reference: &Rounds<'_>, figure: Figure) -> Option<f64> {
    let of = |cell: &Cell| match figure {
        Figure::Throughput => cell.measured.throughput,
        Figure::P50 => cell.measured.p50_us,
        Figure::P99 => cell.measured.p99_us,
    };
    let ratios = own.iter().filter_map(|(round, cell)| {
        let reference = of(reference.get(round)?);
        (reference > 0.0).then(|| of(cell) / reference)
    });
    median(ratios.collect())
}

/// The median; of an even number, the mean of the two in the middle.
fn median(mut figures: Vec<f64>) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    match figures.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(figures[middle]),
        _ => Some(f64::midpoint(figures[middle - 1], figures[middle])),
    }
}

/// The goals that one run can show.
fn goals(cells: &[Cell]) -> Vec<Goal> {
    use Figure::{P50, P99, Throughput};
    let (session, unary) = ("domicile-session", "domicile-unary");
    let table = [
        (session, "put", 256, Throughput, "etcd", "put", 5.0),
        (
            session,
            "strong-get",
            256,
            Throughput,
            "etcd",
            "strong-get",
            10.0,
        ),
        (
            session,
            "local-get",
            256,
            Throughput,
            "etcd",
            "local-get",
            15.0,
        ),
        (unary, "put", 256, Throughput, "etcd", "put", 1.5),
        (
            unary,
            "strong-get",
            256,
            Throughput,
            "etcd",
            "strong-get",
            1.5,
        ),
        (
            unary,
            "local-get",
            256,
            Throughput,
            "echo-unary",
            "echo",
            0.8,
        ),
        (session, "put", 1, P50, "etcd", "put", 0.6),
        (session, "put", 64, P99, "etcd", "put", 0.5),
    ];
    table
        .into_iter()
        .map(
            |(system, workload, in_flight, figure, reference, reference_workload, goal)| Goal {
                system,
                workload,
                in_flight,
                figure,
                reference,
                reference_workload,
                goal,
                measured: ratio(
                    &rounds(cells, system, workload, in_flight),
                    &rounds(cells, reference, reference_workload, in_flight),
                    figure,
                ),
            },
        )
        .collect()
}

fn table(text: &mut String, rows: &[&Row]) {
    text.push_str(
        "| work | in flight | system | ops/s | least – most | × etcd | p50 ms | p99 ms | \
         p99.9 ms | server cores | load cores | other cores, at most | errors | wrong |\n\
         |---|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for row in rows {
        let times_etcd = row
            .times_etcd
            .map_or("–".to_owned(), |times| format!("{times:.2}"));
        writeln!(
            text,
            "| {} | {} | {} | {:.0} | {:.0} – {:.0} | {times_etcd} | {:.3} | {:.3} | {:.3} | \
             {:.2} | {:.2} | {:.2} | {} | {} |",
            row.workload,
            row.in_flight,
            row.system,
            row.throughput,
            row.throughput_range.0,
            row.throughput_range.1,
            row.p50_ms,
            row.p99_ms,
            row.p999_ms,
            row.server_cores,
            row.load_cores,
            row.other_cores_max,
            row.errors,
            row.wrong,
        )
        .expect("a string takes every write");
    }
}

fn goal_table(text: &mut String, goals: &[Goal]) {
    text.push_str("| goal | ratio | reached |\n|---|--:|---|\n");
    for goal in goals {
        let (figure, sign) = match goal.figure {
            Figure::Throughput => ("throughput", '≥'),
            Figure::P50 => ("p50", '≤'),
            Figure::P99 => ("p99", '≤'),
        };
        let (measured, reached) = match (goal.measured, goal.reached()) {
            (Some(measured), Some(reached)) => {
                (format!("{measured:.2}"), if reached { "yes" } else { "no" })
            }
            _ => ("–".to_owned(), "not measured"),
        };
        writeln!(
            text,
            "| {} {} {figure}, {} in flight, {sign} {} × {} {} | {measured} | {reached} |",
            goal.system,
            goal.workload,
            goal.in_flight,
            goal.goal,
            goal.reference,
            goal.reference_workload,
        )
        .expect("a string takes every write");
    }
}

#[cfg(test)]
mod tests {
    use super::{goals, median, rows};
    use crate::compare::Cell;
    use crate::measurement::Measurement;

    fn cell(round: usize, system: &str, in_flight: usize, throughput: f64, p50_us: f64) -> Cell {
        Cell {
            round,
            system: system.to_owned(),
            workload: "put".to_owned(),
            in_flight,
            measured: Measurement {
                throughput,
                p50_us,
                ..Measurement::default()
            },
            server_cores: 1.0,
            load_cores: 0.5,
            other_cores: 0.0,
        }
    }

    #[test]
    fn medians_of_odd_and_even_numbers() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let cells = [
            cell(1, "etcd", 256, 100.0, 10.0),
            cell(1, "domicile-session", 256, 600.0, 5.0),
            cell(2, "etcd", 256, 200.0, 10.0),
            cell(2, "domicile-session", 256, 800.0, 5.0),
            cell(3, "domicile-session", 256, 9_000.0, 5.0),
        ];
        let rows = rows(&cells);
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0].times_etcd, Some(1.0));
        assert_eq!(rows[1].times_etcd, Some(5.0), "6 and 4, without round 3");
        let goal = &goals(&cells)[0];
        assert_eq!(goal.measured, Some(5.0));
        assert_eq!(goal.reached(), Some(true));
    }

    #[test]
    fn a_latency_goal_is_reached_from_below() {
        let cells = [
            cell(1, "etcd", 1, 100.0, 10.0),
            cell(1, "domicile-session", 1, 100.0, 7.0),
        ];
        let goals = goals(&cells);
        let goal = goals.iter().find(|goal| goal.in_flight == 1);
        let goal = goal.expect("a goal for one client");
        assert_eq!(goal.measured, Some(0.7));
        assert_eq!(goal.reached(), Some(false));
    }
}
