//! What the program says outside its log: results on stdout, and last words on stderr.
//!
//! A result is printed at once ([`print()`]), and who printed it is told if nobody reads
//! it any more. Last words are given to a thread and waited for a moment
//! ([`last_words`]). So nothing here keeps the program from ending, whether its reader
//! has gone, a pipe is full, or a disk behind a redirection is.
//!
//! Not done here: the log (`telemetry`).

use std::fmt;
use std::io::{self, Write as _};
use std::sync::mpsc;
use std::time::Duration;

use rustix::fs::OFlags;

/// How long last words may take.
pub const LAST_WORDS: Duration = Duration::from_millis(300);

/// The exit code of a program whose reader has gone, as a shell names the
/// signal that ends other programs then.
pub const READER_GONE: u8 = 141;

/// Why something was not printed.
#[derive(Debug)]
pub enum Unprinted {
    /// Nobody reads any more; there is nobody to tell.
    ReaderGone,
    /// It could not be written.
    Failed(io::Error),
}

impl fmt::Display for Unprinted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unprinted::ReaderGone => f.write_str("nobody reads what is printed any more"),
            Unprinted::Failed(error) => write!(f, "cannot write to stdout: {error}"),
        }
    }
}

impl std::error::Error for Unprinted {}

/// Prints a text.
pub fn print(text: &str) -> Result<(), Unprinted> {
    let mut stdout = io::stdout().lock();
    let printed = stdout.write_all(text.as_bytes());
    let printed = printed.and_then(|()| stdout.flush());
    printed.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Unprinted::ReaderGone,
        _ => Unprinted::Failed(error),
    })
}

/// Says a line on stderr before the process ends. A stderr that takes nothing
/// does not hold it up.
pub fn last_words(line: &str) {
    let words = format!("{line}\n");
    let (done, waiting) = mpsc::channel();
    let said = words.clone();
    let said = std::thread::Builder::new().spawn(move || {
        // Whether it can be said or not, the process ends.
        io::stderr().write_all(said.as_bytes()).ok();
        done.send(()).ok();
    });
    match said {
        Ok(_) => drop(waiting.recv_timeout(LAST_WORDS)),
        // Where no thread is to be had, what is taken at once must do.
        Err(_) => say_at_once(&words),
    }
}

/// Writes to stderr what it takes without waiting.
fn say_at_once(words: &str) {
    let stderr = io::stderr();
    if let Ok(flags) = rustix::fs::fcntl_getfl(&stderr) {
        rustix::fs::fcntl_setfl(&stderr, flags | OFlags::NONBLOCK).ok();
        // Whether it can be said or not, the process ends.
        rustix::io::write(&stderr, words.as_bytes()).ok();
        // Others may have it, too.
        rustix::fs::fcntl_setfl(&stderr, flags).ok();
    }
}
