//! Whether the process may have the threads that a node takes.

use std::sync::mpsc;
use std::thread;

use crate::error::{Error, Reason, Result};

/// The threads of a node with little to do. More come and go with its work.
const THREADS_MIN: usize = 32;

/// The stack of a thread that only waits.
const STACK_BYTES: usize = 64 * 1024;

/// An error where the system lets this process have too few threads: what starts them
/// later would end it without a word.
pub fn check_threads() -> Result<()> {
    may_have(THREADS_MIN, STACK_BYTES)
}

fn may_have(threads: usize, stack_bytes: usize) -> Result<()> {
    let mut waiting = Vec::with_capacity(threads);
    for number in 0..threads {
        let (hold, wait) = mpsc::channel::<()>();
        let begun = thread::Builder::new().stack_size(stack_bytes);
        let begun = begun.spawn(move || {
            // Its end is all that comes.
            wait.recv().ok();
        });
        let thread = begun.map_err(|error| {
            Error::new(
                Reason::Overloaded,
                format!(
                    "the system lets this process have {number} more threads, and a node takes \
                     {threads} at least; raise the limit of processes of its user (`ulimit -u`), \
                     or that of its control group (`pids.max`)"
                ),
            )
            .caused_by(error)
        })?;
        waiting.push((hold, thread));
    }
    for (hold, thread) in waiting {
        drop(hold);
        // It only waited.
        thread.join().ok();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_may_have_no_threads_is_told_of_the_limit() {
        may_have(4, STACK_BYTES).expect("it may");
        let refused = may_have(4, 1 << 60).expect_err("there is no such room");
        assert!(refused.message.contains("pids.max"), "{refused}");
    }
}
