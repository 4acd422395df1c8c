//! Which faults are due.

use std::time::Duration;

use super::Span;

/// A plan while it is played.
pub struct Schedule<'a, F> {
    /// All faults, by their beginning.
    faults: &'a [Span<F>],
    /// How many of them have begun.
    begun: usize,
    /// Those that have begun and not ended.
    open: Vec<Span<F>>,
}

impl<'a, F: Clone> Schedule<'a, F> {
    /// Before the first of these faults, which are in the order of their
    /// beginning.
    pub fn new(faults: &'a [Span<F>]) -> Self {
        Schedule {
            faults,
            begun: 0,
            open: Vec::new(),
        }
    }

    /// The faults that end by this time since the start of the load.
    pub fn ended(&mut self, at: Duration) -> Vec<F> {
        let open = std::mem::take(&mut self.open).into_iter();
        let (ended, open) = open.partition(|span| span.ends <= at);
        self.open = open;
        faults(ended)
    }

    /// The next fault that begins by this time; it is open from now on.
    pub fn begun(&mut self, at: Duration) -> Option<F> {
        let span = self.faults.get(self.begun)?;
        if span.begins > at {
            return None;
        }
        self.begun += 1;
        self.open.push(span.clone());
        Some(span.fault.clone())
    }

    /// Ends every fault that is open.
    pub fn end_all(&mut self) -> Vec<F> {
        faults(std::mem::take(&mut self.open))
    }

    /// The faults that are open, by their beginning.
    pub fn open(&self) -> impl Iterator<Item = &F> {
        self.open.iter().map(|span| &span.fault)
    }
}

fn faults<F>(spans: Vec<Span<F>>) -> Vec<F> {
    spans.into_iter().map(|span| span.fault).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_begins_once_and_ends_once() {
        let span = |begins, ends, fault| Span {
            begins: Duration::from_secs(begins),
            ends: Duration::from_secs(ends),
            fault,
        };
        let plan = [span(1, 3, "a"), span(1, 2, "b"), span(4, 9, "c")];
        let mut schedule = Schedule::new(&plan);
        let second = Duration::from_secs;
        assert_eq!(schedule.begun(second(0)), None);
        assert_eq!(schedule.begun(second(1)), Some("a"));
        assert_eq!(schedule.begun(second(1)), Some("b"));
        assert_eq!(schedule.begun(second(1)), None);
        assert_eq!(schedule.ended(second(2)), ["b"]);
        assert!(schedule.open().eq(&["a"]));
        assert_eq!(schedule.begun(second(4)), Some("c"));
        assert_eq!(schedule.end_all(), ["a", "c"]);
        assert!(schedule.ended(second(9)).is_empty());
    }
}
