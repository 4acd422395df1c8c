//! A bound on what may wait somewhere: what is beyond it is refused at once. Where
//! the asker is to wait instead, there is a [`Window`](super::Window).

use std::sync::atomic::{AtomicUsize, Ordering};

/// How much may wait somewhere, in whatever unit its owner counts.
#[derive(Debug)]
pub struct Budget {
    max: usize,
    taken: AtomicUsize,
}

impl Budget {
    /// Nothing waits yet.
    pub fn new(max: usize) -> Self {
        Budget {
            max,
            taken: AtomicUsize::new(0),
        }
    }

    /// Takes a part; `false`: there is no room. Where nothing waits there is
    /// room for whatever comes.
    pub fn take(&self, part: usize) -> bool {
        // Only counts; what waits is handed on by other means.
        let before = self.taken.fetch_add(part, Ordering::Relaxed);
        if before > 0 && before.saturating_add(part) > self.max {
            self.give_back(part);
            return false;
        }
        true
    }

    /// Gives back what was taken.
    pub fn give_back(&self, part: usize) {
        self.taken.fetch_sub(part, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_bounded() {
        let budget = Budget::new(10);
        assert!(budget.take(25), "nothing waits");
        assert!(!budget.take(1));
        budget.give_back(25);
        assert!(budget.take(4));
        assert!(budget.take(6));
        assert!(!budget.take(1));
        budget.give_back(6);
        assert!(!budget.take(7));
        assert!(budget.take(6));
    }
}
