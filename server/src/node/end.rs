//! Ends of the process that wait for nothing.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::console::last_words;

/// Whether everything that counts has ended.
static STOPPED: AtomicBool = AtomicBool::new(false);

/// Says that everything that counts has ended, in order: whatever a task meets from now
/// on, as that its runtime goes, changes nothing.
pub fn stopped() {
    STOPPED.store(true, Ordering::Release);
}

/// Ends the process at once. To exit would wait for RocksDB's threads, one of
/// which may wait for the disk for ever; to abort could leave a file of the
/// memory, records included.
pub fn end_now() {
    let own = rustix::process::getpid();
    if let Err(error) = rustix::process::kill_process(own, rustix::process::Signal::KILL) {
        last_words(&format!("domiciled: cannot be ended: {error}"));
    }
}

/// Makes every panic from now on, in whatever thread or task, end the process, until it has
/// [`stopped`].
/// A task that is gone leaves a node that takes what it can do no more, and what
/// it had in memory must not be trusted to reach the disk.
///
/// What is said is where it was and, if it is a constant of the program, why: a
/// text that was put together may hold part of a record.
pub fn end_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        if STOPPED.load(Ordering::Acquire) {
            return;
        }
        let place = panic.location().map(ToString::to_string);
        let why = panic.payload().downcast_ref::<&'static str>();
        let thread = std::thread::current();
        last_words(&format!(
            "domiciled: stopped for a panic at {} in thread {}{}; report it with these lines",
            place.as_deref().unwrap_or("an unknown place"),
            thread.name().unwrap_or("without a name"),
            why.map(|why| format!(": {why}")).unwrap_or_default(),
        ));
        end_now();
    }));
}
