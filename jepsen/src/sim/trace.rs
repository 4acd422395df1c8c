//! Everything that happens, as lines whose digest two runs can compare.

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use domicile_server::net::Io;
use memchr::memmem::Finder;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

use super::plan::Plan;
use crate::workload::{Tag, mark};

/// The trace of a run. Clones are the same trace.
#[derive(Clone)]
pub(super) struct Trace(Arc<Mutex<Lines>>);

struct Lines {
    digest: Sha256,
    lines: u64,
    file: Option<BufWriter<File>>,
    /// The mark of each tag, and the regions that may have it.
    marks: Vec<(Finder<'static>, &'static Tag)>,
    /// What was said or sent that must not be.
    leaks: Vec<String>,
}

impl Lines {
    /// The tags whose mark is in these bytes.
    fn marked(&self, bytes: &[u8]) -> Vec<&'static Tag> {
        let marked = self.marks.iter();
        let marked = marked.filter(|(mark, _)| mark.find(bytes).is_some());
        marked.map(|(_, tag)| *tag).collect()
    }
}

impl Trace {
    /// The trace of a plan, kept in a file if that is wanted.
    pub(super) fn new(plan: &Plan, file: Option<&Path>) -> io::Result<Trace> {
        let file = file.map(File::create).transpose()?.map(BufWriter::new);
        let marks = plan.shape.tags().iter().map(|tag| {
            let mark = mark(plan.seed, tag.name);
            (Finder::new(mark.as_bytes()).into_owned(), tag)
        });
        Ok(Trace(Arc::new(Mutex::new(Lines {
            digest: Sha256::new(),
            lines: 0,
            file,
            marks: marks.collect(),
            leaks: Vec::new(),
        }))))
    }

    /// What nodes said in their logs, or sent to other regions, of tags that
    /// must not be there.
    pub(super) fn leaks(&self) -> Vec<String> {
        self.0.lock().leaks.clone()
    }

    /// Adds what was written to a socket that leads a way.
    fn wrote(&self, way: &str, bytes: &[u8]) {
        let (length, crc) = (bytes.len(), crc32fast::hash(bytes));
        self.line(format_args!("{way} {length} {crc:08x}"));
    }

    /// Looks at what a node says: nothing of any tag may be in it.
    fn said(&self, bytes: &[u8]) {
        let mut lines = self.0.lock();
        for tag in lines.marked(bytes) {
            let leak = format!("a log holds a key or a value of {}", tag.name);
            lines.leaks.push(leak);
        }
    }

    /// Looks at what a node sends to one of another region.
    fn sent(&self, way: &str, bytes: &[u8]) {
        let Some(region) = crossed(way) else { return };
        let mut lines = self.0.lock();
        for tag in lines.marked(bytes) {
            if !tag.stored.contains(&region) {
                let leak = format!("{way} carried a key or a value of {}", tag.name);
                lines.leaks.push(leak);
            }
        }
    }

    /// Lets the messages of the nodes stand in the trace. Once in a process.
    pub(super) fn listen(&self) {
        let filter = tracing_subscriber::EnvFilter::new("warn,domicile_server=debug");
        let listening = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(false)
            .with_timer(Now)
            .with_writer(self.clone())
            .try_init();
        debug_assert!(listening.is_ok(), "one process runs one seed");
    }

    /// Adds a line.
    pub(super) fn line(&self, line: fmt::Arguments<'_>) {
        self.add(format!("{} {line}\n", now_ms()).as_bytes());
    }

    fn add(&self, bytes: &[u8]) {
        let mut lines = self.0.lock();
        lines.digest.update(bytes);
        lines.lines += 1;
        if let Some(file) = &mut lines.file {
            // A full disk costs the file, not the run.
            drop(file.write_all(bytes));
        }
    }

    /// How many lines there are, and the digest of them.
    pub(super) fn digest(&self) -> (u64, String) {
        let mut lines = self.0.lock();
        if let Some(file) = &mut lines.file {
            drop(file.flush());
        }
        let digest = lines.digest.clone().finalize();
        let digest = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        (lines.lines, digest)
    }
}

/// The region into which a node's way to another one leads: `us-1>eu-2:7000`.
fn crossed(way: &str) -> Option<&str> {
    let (from, to) = way.split_once('>')?;
    let (from, _) = from.split_once('-')?;
    let (to, _) = to.split_once('-')?;
    (from != to && from != "client").then_some(to)
}

/// Milliseconds since the run began.
pub(super) fn now_ms() -> u64 {
    turmoil::sim_elapsed().map_or(0, |elapsed| elapsed.as_millis() as u64)
}

struct Now;

impl FormatTime for Now {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        write!(w, "{}", now_ms())
    }
}

impl io::Write for Trace {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.said(bytes);
        self.add(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Trace {
    type Writer = Trace;

    fn make_writer(&self) -> Trace {
        self.clone()
    }
}

/// A socket whose writes stand in the trace.
pub(super) struct Traced<T> {
    io: T,
    way: String,
    trace: Trace,
}

impl<T> Traced<T> {
    /// A socket that leads a way.
    pub(super) fn new(io: T, way: String, trace: Trace) -> Self {
        Traced { io, way, trace }
    }
}

impl<T: Io> AsyncRead for Traced<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: Io> AsyncWrite for Traced<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, buf))?;
        self.trace.sent(&self.way, &buf[..written]);
        self.trace.wrote(&self.way, &buf[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Shape;

    #[test]
    fn what_leaves_its_region_or_stands_in_a_log_is_a_leak() {
        let plan = Plan::draw(1, Shape::Regions);
        let trace = Trace::new(&plan, None).expect("no file");
        let kept = format!("key {}", mark(1, "eu-only"));
        let global = format!("key {}", mark(1, "global"));
        trace.sent("eu-1>us-2:7000", global.as_bytes());
        trace.sent("eu-1>eu-2:7000", kept.as_bytes());
        trace.sent("client-us>us-1:7000", kept.as_bytes());
        assert!(trace.leaks().is_empty());
        trace.sent("eu-1>us-2:7000", kept.as_bytes());
        trace.said(global.as_bytes());
        assert_eq!(trace.leaks().len(), 2);
    }
}
