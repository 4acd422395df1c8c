//! The lines of the log on their way to a stderr that may not take them.
//!
//! Who logs never waits: lines queue, and where the queue is full they are
//! dropped and counted. (`tracing-appender` does the same; but it prints on
//! stdout when its end takes too long, and does not count what could not be
//! written.)

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

use crate::error::{Error, Result};

/// How many lines wait at most: some seconds of a node in trouble, in about a
/// MiB of memory.
const WAITING_MAX: usize = 4096;

/// What the writing thread is sent.
enum Message {
    Line(Vec<u8>),
    /// To be answered once all lines before it are written.
    Flush(Sender<()>),
}

/// Takes lines, and writes them on a thread of its own.
#[derive(Clone)]
pub(super) struct Lines {
    queue: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

impl Lines {
    /// Starts to write lines to `out`.
    pub(super) fn start(out: impl Write + Send + 'static) -> Result<Lines> {
        let (queue, waiting) = sync_channel(WAITING_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let lines = Lines {
            queue,
            dropped: dropped.clone(),
        };
        std::thread::Builder::new()
            .name("log-lines".into())
            .spawn(move || write(out, &waiting, &dropped))
            .map_err(|e| Error::internal("no thread for the log").caused_by(e))?;
        Ok(lines)
    }

    /// How many lines were dropped.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Waits until the lines so far are written, but no longer than this.
    pub(super) fn flush(&self, most: Duration) {
        let (done, written) = channel();
        // A queue that is full is not written in time.
        if self.queue.try_send(Message::Flush(done)).is_ok() {
            written.recv_timeout(most).ok();
        }
    }
}

fn write(mut out: impl Write, waiting: &Receiver<Message>, dropped: &AtomicU64) {
    let mut told = 0;
    loop {
        let message = match waiting.try_recv() {
            Ok(message) => message,
            Err(TryRecvError::Disconnected) => return,
            Err(TryRecvError::Empty) => {
                let lost = dropped.load(Ordering::Relaxed);
                if lost > told {
                    tracing::warn!(
                        dropped = lost - told,
                        "lines of the log were dropped: nobody read it, or it could not be written"
                    );
                    told = lost;
                }
                let Ok(message) = waiting.recv() else { return };
                message
            }
        };
        match message {
            Message::Line(line) => {
                if out.write_all(&line).is_err() {
                    dropped.fetch_add(1, Ordering::Relaxed);
                    // That it failed is not to be said where it failed.
                    told += 1;
                }
            }
            Message::Flush(done) => {
                out.flush().ok();
                done.send(()).ok();
            }
        }
    }
}

impl Write for Lines {
    /// Takes a whole line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.queue.try_send(Message::Line(line.to_vec())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Lines;

    fn make_writer(&self) -> Lines {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    /// Gives way only when it is told to.
    struct Stuck {
        free: Receiver<()>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Stuck {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            self.free.recv().ok();
            self.written.lock().extend_from_slice(line);
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_log_that_nobody_reads_stops_nobody_and_loses_lines() {
        let (let_go, free) = channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        let stuck = Stuck {
            free,
            written: written.clone(),
        };
        let mut lines = Lines::start(stuck).unwrap();
        for _ in 0..2 * WAITING_MAX {
            lines.write_all(b"line\n").unwrap();
        }
        let lost = lines.dropped();
        // One may be in the hand of the thread.
        let kept = 2 * WAITING_MAX as u64 - lost;
        assert!(kept == WAITING_MAX as u64 || kept == WAITING_MAX as u64 + 1);
        lines.flush(Duration::from_millis(1));

        drop(let_go);
        let patient = Duration::from_secs(30);
        while written.lock().len() < 5 * kept as usize {
            lines.flush(patient);
        }
        assert_eq!(lines.dropped(), lost);
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }

            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
        let mut lines = Lines::start(Broken).unwrap();
        lines.write_all(b"one\n").unwrap();
        lines.write_all(b"two\n").unwrap();
        lines.flush(Duration::from_secs(30));
        assert_eq!(lines.dropped(), 2);
    }
}
