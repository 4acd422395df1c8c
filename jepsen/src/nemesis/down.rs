//! Which nodes do not run, and when they start again.

use std::collections::BTreeMap;
use std::time::Duration;

/// How long a supervisor waits before it starts a node again.
const RESTART_WAIT: Duration = Duration::from_secs(1);

/// The nodes that are kept down, and by how many faults.
pub struct Down<N>(BTreeMap<N, u32>);

impl<N: Ord> Default for Down<N> {
    fn default() -> Self {
        Down(BTreeMap::new())
    }
}

impl<N: Ord> Down<N> {
    /// One more fault keeps a node down. Answers whether none did before.
    pub fn take(&mut self, node: N) -> bool {
        let faults = self.0.entry(node).or_default();
        *faults += 1;
        *faults == 1
    }

    /// A fault that kept a node down is over. Answers whether none does any
    /// more; of a node that none did, it is not so.
    pub fn release(&mut self, node: &N) -> bool {
        let Some(faults) = self.0.get_mut(node) else {
            return false;
        };
        *faults -= 1;
        let last = *faults == 0;
        if last {
            self.0.remove(node);
        }
        last
    }

    /// Whether a fault keeps a node down.
    pub fn holds(&self, node: &N) -> bool {
        self.0.contains_key(node)
    }
}

/// Nodes that ended by themselves, and when they start again.
pub struct Restarts<N>(Vec<(Duration, N)>);

impl<N> Default for Restarts<N> {
    fn default() -> Self {
        Restarts(Vec::new())
    }
}

impl<N: PartialEq> Restarts<N> {
    /// A node starts again a while from now.
    pub fn put_off(&mut self, node: N, now: Duration) {
        self.0.push((now + RESTART_WAIT, node));
    }

    /// The nodes that start again now, in the order in which they ended.
    pub fn due(&mut self, now: Duration) -> Vec<N> {
        let all = std::mem::take(&mut self.0).into_iter();
        let (due, later): (Vec<_>, _) = all.partition(|(when, _)| *when <= now);
        self.0 = later;
        due.into_iter().map(|(_, node)| node).collect()
    }

    /// Nobody waits any longer.
    pub fn hasten(&mut self, now: Duration) {
        self.0.iter_mut().for_each(|(when, _)| *when = now);
    }

    /// Something else starts the node.
    pub fn forget(&mut self, node: &N) {
        self.0.retain(|(_, waiting)| waiting != node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_down_until_the_last_fault_that_keeps_it_down_is_over() {
        let mut down = Down::default();
        assert!(down.take(1));
        assert!(!down.take(1));
        assert!(!down.release(&1) && down.holds(&1));
        assert!(down.release(&1) && !down.holds(&1));
        assert!(!down.release(&1), "it runs");
    }

    #[test]
    fn a_node_that_ended_starts_again_once() {
        let mut restarts = Restarts::default();
        restarts.put_off("a", Duration::ZERO);
        restarts.put_off("b", Duration::ZERO);
        restarts.forget(&"b");
        assert!(restarts.due(Duration::ZERO).is_empty());
        restarts.hasten(Duration::ZERO);
        assert_eq!(restarts.due(Duration::ZERO), ["a"]);
        assert!(restarts.due(RESTART_WAIT).is_empty());
    }
}
