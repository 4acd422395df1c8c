//! Which nodes were slow to answer lately.
//!
//! A node that is stopped or overloaded still has its connection for some
//! seconds. Whoever waited for it in vain says so, and for a time others are
//! asked instead.
//!
//! Not done here: whether a node is connected at all (`contact`).

use std::collections::BTreeMap;
use std::time::Duration;

use crate::env::Instant;
use crate::raft::NodeId;

/// For how long a node that was slow to answer is left out.
const AVOIDED_FOR: Duration = Duration::from_secs(5);

/// Nodes that were slow, and until when they are left out.
#[derive(Default)]
pub(super) struct Slow(BTreeMap<NodeId, Instant>);

impl Slow {
    /// Notes that a node was slow to answer.
    pub(super) fn mark_slow(&mut self, node: NodeId, now: Instant) {
        self.0.insert(node, now + AVOIDED_FOR);
    }

    /// The nodes without those that were slow lately; all of them if all were.
    pub(super) fn leave_out(&mut self, nodes: Vec<NodeId>, now: Instant) -> Vec<NodeId> {
        self.0.retain(|_, until| *until > now);
        let others = nodes.iter().filter(|node| !self.0.contains_key(node));
        let others: Vec<_> = others.copied().collect();
        match others.is_empty() {
            true => nodes,
            false => others,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::Env;

    #[test]
    fn a_slow_node_is_left_out_for_a_time_while_there_are_others() {
        let nodes = || vec![NodeId(1), NodeId(2)];
        let now = Env::real().now();
        let mut slow = Slow::default();
        assert_eq!(slow.leave_out(nodes(), now), nodes());
        slow.mark_slow(NodeId(1), now);
        assert_eq!(slow.leave_out(nodes(), now), [NodeId(2)]);
        slow.mark_slow(NodeId(2), now + AVOIDED_FOR / 2);
        assert_eq!(slow.leave_out(nodes(), now + AVOIDED_FOR / 2), nodes());
        // The first is trusted again.
        assert_eq!(slow.leave_out(nodes(), now + AVOIDED_FOR), [NodeId(1)]);
        assert_eq!(slow.leave_out(nodes(), now + AVOIDED_FOR * 2), nodes());
    }
}
