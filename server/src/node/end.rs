//! Ends of the process that wait for nothing.

use std::io::Write;
use std::time::Duration;

/// How long what is said of a panic may take. A log that nobody reads takes
/// nothing, and must not keep the process.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// Ends the process at once. To exit would wait for RocksDB's threads, one of
/// which may wait for the disk for ever; to abort could leave a file of the
/// memory, records included.
pub fn end_now() {
    let own = rustix::process::getpid();
    if let Err(error) = rustix::process::kill_process(own, rustix::process::Signal::KILL) {
        eprintln!("domiciled: cannot be ended: {error}");
    }
}

/// Makes every panic from now on, in whatever thread or task, end the process.
/// A task that is gone leaves a node that takes what it can do no more, and what
/// it had in memory must not be trusted to reach the disk.
///
/// What is said is where it was and, if it is a constant of the program, why: a
/// text that was put together may hold part of a record.
pub fn end_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        let why = panic.payload().downcast_ref::<&'static str>();
        let thread = std::thread::current();
        let words = format!(
            "domiciled: stopped for a panic at {} in thread {}{}; report it with these lines\n",
            place.as_deref().unwrap_or("an unknown place"),
            thread.name().unwrap_or("without a name"),
            why.map(|why| format!(": {why}")).unwrap_or_default(),
        );
        let said = std::thread::Builder::new().spawn(move || {
            // Whether it can be said or not, the process ends.
            drop(std::io::stderr().write_all(words.as_bytes()));
        });
        let deadline = std::thread::Builder::new().spawn(|| {
            std::thread::sleep(LAST_WORDS);
            end_now();
        });
        if let (Ok(said), Ok(_)) = (said, deadline) {
            drop(said.join());
        }
        end_now();
    }));
}
