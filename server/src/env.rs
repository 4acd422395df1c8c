//! Time, randomness, ids and tasks: the only source of each.
//!
//! Everything in the server that reads a clock, draws a number or starts a task asks an
//! [`Env`], which is handed from room to room. In production it is the machine's; in
//! simulation a seed decides everything, so that one seed gives one run. Whether time
//! went on without a gap, for ages and leases, is watched by [`continuity`]; what the
//! other nodes' clocks say is kept by [`peers`].
//!
//! Not done here: setting any clock, and the timers of tasks, which are tokio's.

mod continuity;
mod peers;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use openraft_seed::scope;
use parking_lot::Mutex;
use rand::rngs::ChaCha8Rng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinHandle;

pub use continuity::Clocks;
use peers::PeerClocks;
pub use tokio::time::Instant;

use continuity::Continuity;

/// The seeds that openraft's runtime draws from are task-local; this is the
/// one place that enters their scope.
mod openraft_seed {
    use openraft_rt::deterministic_rng::DeterministicRng;
    use openraft_rt_tokio::TokioRuntime;
    use std::future::Future;

    pub(super) fn scope<F: Future>(
        seed: u64,
        future: F,
    ) -> impl Future<Output = F::Output> + use<F> {
        DeterministicRng::<TokioRuntime>::scope(seed, future)
    }
}

/// A wall clock: milliseconds since 1970, as this machine believes.
pub type WallClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// How far a wall clock may be from the other nodes' and still be used: more than
/// the way of an answer between regions, and than clocks that are synchronised
/// ever differ.
pub const WALL_OFF_MAX_MS: u64 = 500;

/// All clocks of a machine at one look.
type Look = Arc<dyn Fn() -> Clocks + Send + Sync>;

/// The source of time, randomness, ids and tasks. Cheap to clone.
#[derive(Clone)]
pub struct Env {
    wall: WallClock,
    look: Look,
    continuity: Arc<Continuity>,
    peers: Arc<PeerClocks>,
    rng: Arc<Mutex<ChaCha8Rng>>,
    simulated: bool,
}

impl Env {
    /// The machine's own clock and entropy.
    pub fn real() -> Self {
        #[allow(clippy::disallowed_methods)]
        let wall: WallClock = Arc::new(|| {
            std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |d| d.as_millis() as u64)
        });
        Env {
            look: machine_clocks(wall.clone()),
            continuity: Arc::default(),
            peers: Arc::default(),
            wall,
            rng: Arc::new(Mutex::new(rand::make_rng())),
            simulated: false,
        }
    }

    /// A seeded source with the given wall clock; monotonic time is tokio's,
    /// which the simulation drives.
    pub fn simulated(seed: u64, wall: WallClock) -> Self {
        Env {
            look: simulated_clocks(wall.clone()),
            continuity: Arc::default(),
            peers: Arc::default(),
            wall,
            rng: Arc::new(Mutex::new(ChaCha8Rng::seed_from_u64(seed))),
            simulated: true,
        }
    }

    /// Whether a simulation drives this process: then no threads are started.
    pub fn is_simulated(&self) -> bool {
        self.simulated
    }

    /// Monotonic time.
    #[allow(clippy::disallowed_methods)]
    pub fn now(&self) -> Instant {
        Instant::now()
    }

    /// The machine's own entropy, and clocks that a test sets.
    #[cfg(test)]
    pub(crate) fn with_clocks(look: impl Fn() -> Clocks + Send + Sync + 'static) -> Self {
        let look: Look = Arc::new(look);
        let of_wall = look.clone();
        Env {
            wall: Arc::new(move || of_wall().wall.as_millis() as u64),
            look,
            ..Env::real()
        }
    }

    /// How long ago a moment of this process was; `None`: that is not known,
    /// because the machine slept since, or its wall clock ran ahead by over a
    /// second, as after it was held from outside. For leases and for ages that
    /// must not be understated.
    pub fn age(&self, of: Instant) -> Option<Duration> {
        let now = self.now();
        let whole = self.continuity.is_whole_since(of, now, (self.look)());
        whole.then(|| now.saturating_duration_since(of))
    }

    /// Hears the wall clock of another node, as it is now but for the way of its
    /// answer.
    pub fn observe_clock(&self, node: &str, theirs_ms: u64) {
        let boot = (self.look)().boot;
        self.peers.hear(node, theirs_ms, boot, self.now());
    }

    /// How far this machine's wall clock is ahead of what the nodes believe
    /// together, in milliseconds; `None`: no other clock was heard of lately.
    pub fn wall_ahead_ms(&self) -> Option<i64> {
        let clocks = (self.look)();
        let own_ms = clocks.wall.as_millis() as u64;
        self.peers.ahead_ms(own_ms, clocks.boot, self.now())
    }

    /// The wall clock, where what all believe may follow from it: versions, and
    /// whether something is over. `None`: it is further than [`WALL_OFF_MAX_MS`]
    /// from the other nodes' clocks.
    pub fn common_wall_ms(&self) -> Option<u64> {
        let ahead_ms = self.wall_ahead_ms().unwrap_or(0);
        let relied_on = ahead_ms.unsigned_abs() <= WALL_OFF_MAX_MS;
        self.peers.note(ahead_ms, relied_on);
        relied_on.then(|| self.wall_ms())
    }

    /// Milliseconds since 1970, as this machine believes. Never used to order
    /// events of two machines.
    pub fn wall_ms(&self) -> u64 {
        (self.wall)()
    }

    /// A random number.
    pub fn random(&self) -> u64 {
        self.rng.lock().next_u64()
    }

    /// Random bytes, for ids and keys.
    pub fn random_bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.rng.lock().fill_bytes(&mut bytes);
        bytes
    }

    /// A duration drawn evenly between half of `most` and `most`, so that
    /// many waiters do not wake at once.
    pub fn jitter(&self, most: Duration) -> Duration {
        let half = most / 2;
        let span_us = half.as_micros().max(1) as u64;
        half + Duration::from_micros(self.random() % span_us)
    }

    /// Runs a future in the scope that Raft draws its random numbers from.
    /// Whatever calls into Raft from a task that [`Env::spawn`] did not start
    /// goes through here.
    pub fn scoped<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
        scope(self.random(), future)
    }

    /// Starts a task. It ends when the handle is dropped.
    pub fn spawn<F>(&self, name: &'static str, future: F) -> Task
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Task {
            name,
            handle: tokio::spawn(self.scoped(future)),
        }
    }

    /// Starts a task that ends by itself within a bounded time, such as one
    /// answer to one request.
    pub fn spawn_brief<F>(&self, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        drop(tokio::spawn(self.scoped(future)));
    }

    /// Runs what ends by itself within a bounded time to its end, even if
    /// whoever waits for it goes away. `None`: it panicked, or the program ends.
    pub async fn to_its_end<F>(&self, future: F) -> Option<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        tokio::spawn(self.scoped(future)).await.ok()
    }
}

/// The clocks of this machine.
#[allow(clippy::disallowed_methods)]
fn machine_clocks(wall: WallClock) -> Look {
    use rustix::time::{ClockId, clock_gettime};
    let boot = || {
        let now = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
    };
    // The clock that ages are counted by, read in the same way: what is held back
    // for one is for the other.
    let began = std::time::Instant::now();
    // In this order whoever is held up in between sees no gap.
    Arc::new(move || Clocks {
        wall: Duration::from_millis(wall()),
        boot: boot(),
        monotonic: began.elapsed(),
    })
}

/// The clocks of a simulated machine, which never sleeps: its wall clock jumps.
fn simulated_clocks(wall: WallClock) -> Look {
    #[allow(clippy::disallowed_methods)]
    let began = Instant::now();
    Arc::new(move || {
        let elapsed = began.elapsed();
        Clocks {
            wall: Duration::from_millis(wall()),
            boot: elapsed,
            monotonic: elapsed,
        }
    })
}

/// A running task. Dropping it ends the task.
#[derive(Debug)]
pub struct Task {
    name: &'static str,
    handle: JoinHandle<()>,
}

impl Task {
    /// Waits for the task to end by itself.
    pub async fn join(mut self) {
        if let Err(error) = (&mut self.handle).await
            && error.is_panic()
        {
            tracing::error!(task = self.name, "task panicked");
        }
    }

    /// Ends the task, and waits until it has ended.
    pub async fn end(mut self) {
        self.handle.abort();
        drop((&mut self.handle).await);
    }

    /// Whether the task has ended.
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}
