//! What crosses the borders of regions, as packets in a file, and as the streams they were.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use pcap_file::pcap::PcapReader;

use super::Place;

/// How long the program may take to begin.
const BEGIN_WAIT: Duration = Duration::from_secs(5);

/// Between two looks.
const STEP: Duration = Duration::from_millis(50);

/// The bytes of the header of a capture that has begun.
const HEADER_BYTES: u64 = 24;

/// A capture in progress. Dropping it ends it.
pub struct Capture {
    file: PathBuf,
    process: Child,
}

impl Capture {
    /// Begins to write what goes from one region to others into a file.
    pub(super) fn start(file: &Path, places: &[Place]) -> Result<Capture> {
        let mut regions: Vec<u8> = places.iter().map(|place| place.region).collect();
        regions.sort_unstable();
        regions.dedup();
        let crossing: Vec<String> = regions
            .iter()
            .map(|region| {
                let net = format!("127.77.{}.0/20", region * 16);
                format!("(src net {net} and not dst net {net})")
            })
            .collect();
        let mut process = Command::new("tcpdump")
            // What comes into the router: each packet once, lost ones, too.
            .args(["-i", "any", "-y", "LINUX_SLL", "-Q", "in", "-n", "-s", "0"])
            // In large buffers, as root, so that nothing is missed.
            .args(["-B", "65536", "-Z", "root", "-U", "-w"])
            .arg(file)
            .arg(format!("tcp and ({})", crossing.join(" or ")))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("tcpdump does not run")?;
        let mut waited = Duration::ZERO;
        while std::fs::metadata(file).map_or(0, |file| file.len()) < HEADER_BYTES {
            if let Some(status) = process.try_wait()? {
                bail!("tcpdump ended at once: {status}");
            }
            if waited > BEGIN_WAIT {
                bail!("tcpdump did not begin");
            }
            std::thread::sleep(STEP);
            waited += STEP;
        }
        Ok(Capture {
            file: file.to_owned(),
            process,
        })
    }

    /// Ends it and reads the streams.
    pub fn finish(mut self) -> Result<Vec<Stream>> {
        self.end()?;
        streams(&self.file)
    }

    fn end(&mut self) -> Result<()> {
        let pid = self.process.id().to_string();
        // So that it writes what it has; it may have ended by itself.
        drop(Command::new("kill").args(["-INT", &pid]).status());
        self.process.wait()?;
        Ok(())
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// One direction of one connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stream {
    /// The number of the region it comes from.
    pub from: u8,
    /// The number of the region it goes to.
    pub to: u8,
    /// Its bytes, in pieces where some were not seen.
    pub pieces: Vec<Vec<u8>>,
}

/// Who sends to whom on which ports.
type Flow = (Ipv4Addr, Ipv4Addr, u16, u16);

/// The segments of a flow by their place in it.
#[derive(Default)]
struct Segments {
    first: Option<u32>,
    bytes: BTreeMap<i64, Vec<u8>>,
}

fn streams(file: &Path) -> Result<Vec<Stream>> {
    let file = BufReader::new(File::open(file).context("no capture")?);
    let mut reader = PcapReader::new(file).context("the capture cannot be read")?;
    let mut flows: BTreeMap<Flow, Vec<Segments>> = BTreeMap::new();
    while let Some(packet) = reader.next_packet() {
        // The last one may be cut off.
        let Ok(packet) = packet else { break };
        let Ok(sliced) = SlicedPacket::from_linux_sll(&packet.data) else {
            continue;
        };
        let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Tcp(tcp))) =
            (&sliced.net, &sliced.transport)
        else {
            continue;
        };
        let ends = (
            ip.header().source_addr(),
            ip.header().destination_addr(),
            tcp.source_port(),
            tcp.destination_port(),
        );
        let flow = flows.entry(ends).or_default();
        // Ports come back: a greeting begins another connection.
        if tcp.syn() || flow.is_empty() {
            flow.push(Segments::default());
        }
        if let (Some(segments), false) = (flow.last_mut(), tcp.payload().is_empty()) {
            segments.add(tcp.sequence_number(), tcp.payload());
        }
    }
    let region = |address: Ipv4Addr| address.octets()[2] / 16;
    let streams = flows.into_iter().flat_map(|((from, to, _, _), flow)| {
        flow.into_iter().map(move |segments| Stream {
            from: region(from),
            to: region(to),
            pieces: segments.pieces(),
        })
    });
    Ok(streams.filter(|stream| !stream.pieces.is_empty()).collect())
}

impl Segments {
    fn add(&mut self, sequence: u32, bytes: &[u8]) {
        let first = *self.first.get_or_insert(sequence);
        // Numbers wrap; a flow of a test is shorter than half of their range.
        let place = i64::from(sequence.wrapping_sub(first) as i32);
        let known = self.bytes.entry(place).or_default();
        if known.len() < bytes.len() {
            *known = bytes.to_vec();
        }
    }

    fn pieces(self) -> Vec<Vec<u8>> {
        let mut pieces: Vec<Vec<u8>> = Vec::new();
        let mut end = i64::MIN;
        for (place, bytes) in self.bytes {
            let fresh = (end - place).max(0) as usize;
            match pieces.last_mut() {
                Some(last) if place <= end => {
                    last.extend(bytes.get(fresh..).unwrap_or_default());
                }
                _ => pieces.push(bytes.clone()),
            }
            end = end.max(place + bytes.len() as i64);
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_become_the_stream_whatever_their_order() {
        let mut segments = Segments::default();
        let start = u32::MAX - 2;
        segments.add(start, b"abc");
        segments.add(start.wrapping_add(6), b"ghi");
        segments.add(start.wrapping_add(2), b"cdef");
        segments.add(start.wrapping_add(3), b"de");
        segments.add(start.wrapping_add(20), b"later");
        let pieces = segments.pieces();
        assert_eq!(pieces, [b"abcdefghi".to_vec(), b"later".to_vec()]);
    }
}
