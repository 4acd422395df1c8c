//! A graph of dependencies: strongly connected components (Tarjan, "Depth-first search and linear graph algorithms", 1972) and short cycles in them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::history::{Process, Value};

/// Why one transaction must come before another.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reason<'a> {
    /// Both appended, the second directly after the first.
    Ww {
        key: &'a Value,
        first: &'a Value,
        second: &'a Value,
    },
    /// The second saw the first's append as the newest.
    Wr { key: &'a Value, value: &'a Value },
    /// The first did not see the second's append.
    Rw { key: &'a Value, next: &'a Value },
    /// One process ran both in this order.
    Process(Process),
    /// The first returned before the second was invoked.
    RealTime,
}

/// One dependency.
#[derive(Clone, Copy, Debug)]
pub(super) struct Edge<'a> {
    /// The later transaction.
    pub(super) to: usize,
    /// Why it is later.
    pub(super) reason: Reason<'a>,
}

/// Edges tried per component before a cycle of several rw edges is accepted unexamined.
const TRIES_MAX: usize = 4096;

/// Dependencies between transactions, by number.
pub(super) struct Graph<'a> {
    out: Vec<Vec<Edge<'a>>>,
}

/// A cycle: each transaction with the edge that leaves it.
pub(super) type Cycle<'a> = Vec<(usize, Edge<'a>)>;

impl<'a> Graph<'a> {
    pub(super) fn new(len: usize) -> Graph<'a> {
        Graph {
            out: vec![Vec::new(); len],
        }
    }

    /// Adds a dependency; nobody depends on himself.
    pub(super) fn add(&mut self, from: usize, to: usize, reason: Reason<'a>) {
        if from != to {
            self.out[from].push(Edge { to, reason });
        }
    }

    /// The strongly connected components of more than one transaction, over the edges that fit.
    pub(super) fn components(&self, fits: &dyn Fn(&Edge<'a>) -> bool) -> Vec<BTreeSet<usize>> {
        const NEW: usize = usize::MAX;
        let len = self.out.len();
        let (mut order, mut low) = (vec![NEW; len], vec![0; len]);
        let (mut on_stack, mut stack) = (vec![false; len], Vec::new());
        let (mut clock, mut components) = (0, Vec::new());
        for root in 0..len {
            if order[root] != NEW {
                continue;
            }
            // Recursion made explicit: a node and the next of its edges to look at.
            let mut path: Vec<(usize, usize)> = vec![(root, 0)];
            while let Some(&mut (node, ref mut edge)) = path.last_mut() {
                if *edge == 0 && order[node] == NEW {
                    (order[node], low[node]) = (clock, clock);
                    clock += 1;
                    stack.push(node);
                    on_stack[node] = true;
                }
                if let Some(next) = self.out[node].get(*edge) {
                    *edge += 1;
                    if fits(next) && order[next.to] == NEW {
                        path.push((next.to, 0));
                    } else if fits(next) && on_stack[next.to] {
                        low[node] = low[node].min(order[next.to]);
                    }
                    continue;
                }
                path.pop();
                if let Some((parent, _)) = path.last() {
                    low[*parent] = low[*parent].min(low[node]);
                }
                if low[node] == order[node] {
                    let mut component = BTreeSet::new();
                    while let Some(member) = stack.pop() {
                        on_stack[member] = false;
                        component.insert(member);
                        if member == node {
                            break;
                        }
                    }
                    if component.len() > 1 {
                        components.push(component);
                    }
                }
            }
        }
        components
    }

    /// A short cycle of a class within a component, if it has one.
    ///
    /// The class decides one edge the cycle must contain and what the way back may use.
    pub(super) fn cycle(
        &self,
        class: &str,
        component: &BTreeSet<usize>,
        fits: &dyn Fn(&Edge<'a>) -> bool,
    ) -> Option<Cycle<'a>> {
        let starts = |edge: &Edge<'a>| match class {
            "G0" => matches!(edge.reason, Reason::Ww { .. }),
            "G1c" => matches!(edge.reason, Reason::Wr { .. }),
            _ => matches!(edge.reason, Reason::Rw { .. }),
        };
        let back = |edge: &Edge<'a>| {
            fits(edge) && (class != "G-single" || !matches!(edge.reason, Reason::Rw { .. }))
        };
        let mut shortest: Option<Cycle<'a>> = None;
        let mut tries = 0;
        for from in component {
            for edge in self.out[*from]
                .iter()
                .filter(|e| starts(e) && component.contains(&e.to))
            {
                tries += 1;
                if tries > TRIES_MAX {
                    return shortest;
                }
                let Some(way) = self.way(edge.to, *from, component, &back) else {
                    continue;
                };
                let mut cycle = vec![(*from, *edge)];
                cycle.extend(way);
                if cycle.len() == 2 {
                    return Some(cycle);
                }
                if shortest
                    .as_ref()
                    .is_none_or(|best| cycle.len() < best.len())
                {
                    shortest = Some(cycle);
                }
            }
        }
        shortest
    }

    /// The shortest way between two transactions of a component, by breadth first.
    fn way(
        &self,
        from: usize,
        to: usize,
        component: &BTreeSet<usize>,
        fits: &dyn Fn(&Edge<'a>) -> bool,
    ) -> Option<Cycle<'a>> {
        let mut reached: BTreeMap<usize, (usize, Edge<'a>)> = BTreeMap::new();
        let mut queue = VecDeque::from([from]);
        while let Some(node) = queue.pop_front() {
            if node == to {
                let mut way = Vec::new();
                let mut at = to;
                while at != from {
                    let (before, edge) = reached[&at];
                    way.push((before, edge));
                    at = before;
                }
                way.reverse();
                return Some(way);
            }
            for edge in self.out[node]
                .iter()
                .filter(|e| fits(e) && component.contains(&e.to))
            {
                if edge.to != from && !reached.contains_key(&edge.to) {
                    reached.insert(edge.to, (node, *edge));
                    queue.push_back(edge.to);
                }
            }
        }
        None
    }
}
