//! The way from one region to another: one shared object for each direction.
//!
//! What goes over a link arrives in order, later by its delay. While a link is
//! cut nothing arrives and nothing is lost, as with TCP: what waits goes on when
//! it is healed, unless an end gives up before.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use domicile_proto::address::RegionName;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::watch;

use crate::env::{Env, Instant, Task};
use crate::net::{BoxedIo, Io};

/// The bytes that are read at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// The bytes that may be on their way on one connection in one direction: with
/// 80 ms some 200 MB/s.
const IN_FLIGHT_BYTES: usize = 16 * 1024 * 1024;

/// How much later a lost packet arrives: it is sent again.
const RESEND_WAIT: Duration = Duration::from_millis(200);

/// How a link behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Condition {
    /// How long everything takes.
    pub(super) delay: Duration,
    /// How much longer it takes at most.
    pub(super) jitter: Duration,
    /// How many of a thousand chunks are lost and sent again.
    pub(super) lost_per_mille: u64,
    /// Whether nothing passes.
    pub(super) cut: bool,
}

/// One direction between two regions.
pub(super) struct Link {
    condition: watch::Sender<Condition>,
}

impl Link {
    fn new(condition: Condition) -> Arc<Link> {
        Arc::new(Link {
            condition: watch::channel(condition).0,
        })
    }

    /// How it behaves now.
    pub(super) fn condition(&self) -> Condition {
        *self.condition.borrow()
    }

    /// Changes how it behaves, for what is on its way, too.
    pub(super) fn set(&self, change: impl FnOnce(&mut Condition)) {
        self.condition.send_modify(change);
    }

    /// Waits until something that set out at `began` arrives.
    async fn cross(&self, env: &Env, began: Instant) {
        let condition = self.condition();
        let mut late = condition.delay;
        let jitter_us = condition.jitter.as_micros() as u64;
        if jitter_us > 0 {
            late += Duration::from_micros(env.random() % jitter_us);
        }
        if condition.lost_per_mille > 0 && env.random() % 1000 < condition.lost_per_mille {
            late += RESEND_WAIT;
        }
        tokio::time::sleep_until(began + late).await;
        let mut condition = self.condition.subscribe();
        // The sender lives as long as the link does.
        drop(condition.wait_for(|condition| !condition.cut).await);
    }
}

/// The links between all regions.
pub(super) struct Links {
    links: BTreeMap<(RegionName, RegionName), Arc<Link>>,
}

impl Links {
    /// Links with a delay each way between every two regions.
    pub(super) fn new(delays: &[(RegionName, RegionName, Duration)]) -> Links {
        let mut links = BTreeMap::new();
        for (one, other, delay) in delays {
            let condition = Condition {
                delay: *delay,
                jitter: *delay / 20,
                ..Condition::default()
            };
            links.insert((one.clone(), other.clone()), Link::new(condition));
            links.insert((other.clone(), one.clone()), Link::new(condition));
        }
        Links { links }
    }

    /// The link from one region to another; `None` within a region.
    pub(super) fn between(&self, from: &RegionName, to: &RegionName) -> Option<&Arc<Link>> {
        self.links.get(&(from.clone(), to.clone()))
    }

    /// Every link.
    pub(super) fn all(&self) -> impl Iterator<Item = (&(RegionName, RegionName), &Arc<Link>)> {
        self.links.iter()
    }
}

/// A socket whose other end is behind two links: what is written goes `out`,
/// what is read came `back`.
pub(super) fn through(env: &Env, io: impl Io, out: &Arc<Link>, back: &Arc<Link>) -> BoxedIo {
    let (near, far) = tokio::io::duplex(CHUNK_BYTES);
    let (far_read, far_write) = tokio::io::split(far);
    let (io_read, io_write) = tokio::io::split(io);
    let sending = carry(env, far_read, io_write, out.clone());
    let receiving = carry(env, io_read, far_write, back.clone());
    // The tasks end with the socket.
    BoxedIo::holding(near, [sending, receiving])
}

/// Carries bytes from one end to the other over a link.
fn carry<R: Io, W: Io>(env: &Env, from: ReadHalf<R>, to: WriteHalf<W>, link: Arc<Link>) -> Task {
    let carried = env.clone();
    env.spawn("link", async move {
        // An end that is gone ends the connection; the other end notices.
        drop(pump(&carried, from, to, &link).await);
    })
}

async fn pump<R: Io, W: Io>(
    env: &Env,
    mut from: ReadHalf<R>,
    mut to: WriteHalf<W>,
    link: &Link,
) -> io::Result<()> {
    let mut waiting: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut bytes = 0;
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut ended = false;
    loop {
        let first = waiting.front().map(|(began, _)| *began);
        tokio::select! {
            read = from.read(&mut buffer), if !ended && bytes < IN_FLIGHT_BYTES => match read? {
                0 => ended = true,
                read => {
                    bytes += read;
                    waiting.push_back((env.now(), buffer[..read].to_vec()));
                }
            },
            () = crossed(env, link, first), if first.is_some() => {
                if let Some((_, chunk)) = waiting.pop_front() {
                    bytes -= chunk.len();
                    to.write_all(&chunk).await?;
                }
            }
            else => return to.shutdown().await,
        }
    }
}

async fn crossed(env: &Env, link: &Link, began: Option<Instant>) {
    if let Some(began) = began {
        link.cross(env, began).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(name: &str) -> RegionName {
        RegionName::new(name).expect("a name")
    }

    fn pair(env: &Env, delay: Duration) -> (Links, BoxedIo, tokio::io::DuplexStream) {
        let links = Links::new(&[(region("a"), region("b"), delay)]);
        let (near, far) = tokio::io::duplex(1024);
        let out = links
            .between(&region("a"), &region("b"))
            .expect("there")
            .clone();
        let back = links
            .between(&region("b"), &region("a"))
            .expect("there")
            .clone();
        let io = through(env, near, &out, &back);
        (links, io, far)
    }

    #[tokio::test(start_paused = true)]
    async fn what_crosses_arrives_later_and_in_order() {
        let env = Env::real();
        let delay = Duration::from_millis(40);
        let (_links, mut io, mut far) = pair(&env, delay);
        let began = env.now();
        io.write_all(b"one").await.expect("open");
        io.write_all(b"two").await.expect("open");
        let mut read = [0; 6];
        far.read_exact(&mut read).await.expect("open");
        assert_eq!(&read, b"onetwo");
        let took = env.now().duration_since(began);
        assert!(took >= delay && took < delay * 2, "{took:?}");
        far.write_all(b"back").await.expect("open");
        let mut read = [0; 4];
        io.read_exact(&mut read).await.expect("open");
        assert!(env.now().duration_since(began) >= delay * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_link_holds_everything_until_it_is_healed() {
        let env = Env::real();
        let (links, mut io, mut far) = pair(&env, Duration::from_millis(10));
        for (_, link) in links.all() {
            link.set(|condition| condition.cut = true);
        }
        io.write_all(b"held").await.expect("open");
        let mut read = [0; 4];
        let early = tokio::time::timeout(Duration::from_secs(60), far.read_exact(&mut read));
        assert!(early.await.is_err());
        for (_, link) in links.all() {
            link.set(|condition| condition.cut = false);
        }
        far.read_exact(&mut read).await.expect("open");
        assert_eq!(&read, b"held");
    }
}
