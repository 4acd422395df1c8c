//! What every scenario works with: the run's options, its recorder, its choices, its notes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use parking_lot::Mutex;

use super::chance::Chance;
use super::load::Load;
use crate::cluster::{Cluster, Programs};
use crate::workload::Recorder;

/// The load between two faults when `--seconds` is not given.
const BETWEEN: Duration = Duration::from_secs(2);

/// How a scenario is run.
#[derive(Clone, Debug)]
pub struct Run {
    /// Where the programs are.
    pub programs: Programs,
    /// Where everything of this run goes.
    pub folder: PathBuf,
    /// How often the fault happens; of `damage`, how many kinds of damage.
    pub rounds: u32,
    /// Decides the moments of the faults.
    pub seed: u64,
    /// How long the load runs in all, the time of healing aside; `None`: two seconds a round.
    pub seconds: Option<u64>,
    /// Turns every fsync of the nodes into nothing: `power-loss` must fail then.
    pub without_sync: bool,
}

/// A run in progress.
pub(super) struct Stage<'a> {
    /// How it is run.
    pub(super) run: &'a Run,
    /// What clients asked and were told.
    pub(super) recorder: Arc<Recorder>,
    /// The choices of this run.
    pub(super) chance: Mutex<Chance>,
    lines: Mutex<Vec<String>>,
}

impl<'a> Stage<'a> {
    /// A run that begins now.
    pub(super) fn new(run: &'a Run) -> Stage<'a> {
        Stage {
            run,
            recorder: Arc::new(Recorder::new()),
            chance: Mutex::new(Chance::new(run.seed)),
            lines: Mutex::default(),
        }
    }

    /// Notes a figure for whoever reads the outcome.
    pub(super) fn say(&self, line: impl Into<String>) {
        self.lines.lock().push(line.into());
    }

    /// What was noted.
    pub(super) fn lines(&self) -> Vec<String> {
        self.lines.lock().clone()
    }

    /// A formed cluster with the usual settings.
    pub(super) fn formed(&self) -> Result<Cluster> {
        Cluster::formed(&self.run.programs, &self.run.folder)
    }

    /// Starts readers and writers.
    pub(super) async fn load(&self, cluster: &Cluster) -> Result<Load> {
        Load::start(&cluster.endpoints(), self.recorder.clone()).await
    }

    /// Lets the load run for its share of time, never to the same moment.
    pub(super) async fn between(&self) {
        let share = match self.run.seconds {
            Some(seconds) => Duration::from_secs(seconds) / self.run.rounds.max(1),
            None => BETWEEN,
        };
        let moment = self.chance.lock().millis(0..500);
        tokio::time::sleep(share + moment).await;
    }

    /// Kills nodes at once, as bands in the history.
    pub(super) fn kill(&self, cluster: &mut Cluster, nodes: &[usize]) {
        for node in nodes {
            self.recorder.fault(&format!("kill-n{}", node + 1));
        }
        cluster.kill(nodes);
    }

    /// Starts every node that does not run and waits until all is well.
    pub(super) fn heal(&self, cluster: &mut Cluster) -> Result<()> {
        let down: Vec<usize> = (0..cluster.nodes.len())
            .filter(|n| cluster.nodes[*n].pid().is_none())
            .collect();
        cluster.start_all()?;
        for node in down {
            self.recorder.fault(&format!("restart-n{}", node + 1));
        }
        cluster.wait_healthy()
    }

    /// Starts a node whose store is gone, replaces it and waits until all is well.
    pub(super) fn heal_empty(&self, cluster: &mut Cluster, node: usize) -> Result<()> {
        cluster.start_all()?;
        self.recorder.fault(&format!("restart-n{}", node + 1));
        cluster.replace(node)?;
        cluster.wait_healthy()
    }
}
