//! One of the connections to one other node.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use domicile_proto::address::RegionName;
use domicile_proto::identity::tls::Expected;
use domicile_proto::limits::PEER_MESSAGE_BYTES_MAX;
use domicile_proto::peer::v1 as peer;
use domicile_proto::peer::v1::peer_service_client::PeerServiceClient;
use futures::future::BoxFuture;
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic_types::StatusExt;

use crate::env::{Env, Instant};
use crate::error::{Error, Reason, Result};
use crate::identity::unidentified;
use crate::net::contact::Contact;
use crate::net::dial::{Dial, KeepAlive, channel_kept};
use crate::net::queue::{Call, Queue, refuse};
use crate::net::speaker::Speaker;
use crate::raft::NodeId;
use crate::residency::{Gate, Untrusted};

/// The bytes of requests that are gathered into one frame.
const FRAME_BYTES_MAX: usize = 1024 * 1024;

/// The requests that are gathered into one frame.
const FRAME_REQUESTS_MAX: usize = 512;

/// The frames that may wait for the socket. What is in one can be taken back no
/// more, so that behind them requests wait in the queue.
const FRAMES_WAITING_MAX: usize = 2;

/// How long the other node may take to answer the hello.
const HELLO_WAIT: Duration = Duration::from_secs(2);

/// A connection on which requests wait and nothing comes back for this long is
/// given up: packets may vanish without an error.
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// The same of the bulk connection, while the quick one lives: the other node says
/// each second how it is, on both, and the largest answer takes seconds on a slow
/// link.
const BULK_SILENCE_MAX: Duration = Duration::from_secs(10);

/// How often silence is looked for, and what nobody waits for is dropped.
const SILENCE_CHECK: Duration = Duration::from_millis(500);

/// The quick connection is asked every second whether it lives: with it ends the
/// other one, which may wait for long.
const QUICK: KeepAlive = KeepAlive {
    interval: Duration::from_secs(1),
    wait: Duration::from_secs(4),
};

/// The bulk connection carries snapshots, which must outlive that the other node
/// stands still for a minute, and its questions wait behind what is large.
const BULK: KeepAlive = KeepAlive {
    interval: Duration::from_secs(10),
    wait: Duration::from_secs(90),
};

/// How long the other node may take to answer on a connection that outlived
/// another one.
const OUTLIVED_WAIT: Duration = Duration::from_secs(10);

/// How long a node may be empty while others are part of a cluster already, before that
/// is said.
const FORMING: Duration = Duration::from_secs(5);

/// The longest wait between two attempts to connect.
const RECONNECT_WAIT: Duration = Duration::from_millis(500);

/// What others may see of a connection.
pub(super) struct Link {
    connected: watch::Sender<bool>,
    version: Mutex<String>,
    level: AtomicU64,
    channel: Mutex<Option<Channel>>,
    /// What is heard over it.
    pub(super) contact: Contact,
    /// The frames that were sent.
    frames: AtomicU64,
}

impl Link {
    /// A connection that is not open yet.
    pub(super) fn new(now: Instant) -> Self {
        Link {
            connected: watch::Sender::new(false),
            version: Mutex::default(),
            level: AtomicU64::default(),
            channel: Mutex::default(),
            contact: Contact::new(now),
            frames: AtomicU64::default(),
        }
    }

    /// Whether the other node answers now.
    pub(super) fn is_connected(&self) -> bool {
        *self.connected.borrow()
    }

    /// Waits until the other node answers, or does not any more.
    async fn is(&self, connected: bool) {
        let mut changes = self.connected.subscribe();
        // It ends with its sender, which `self` holds.
        drop(changes.wait_for(|is| *is == connected).await);
    }

    /// The open connection; `None`: there is none.
    pub(super) fn channel(&self) -> Option<Channel> {
        self.channel.lock().clone().filter(|_| self.is_connected())
    }

    /// The highest feature level that the other node's program knows.
    pub(super) fn level(&self) -> u64 {
        self.level.load(Ordering::Relaxed)
    }

    /// The frames that were sent.
    #[cfg(test)]
    pub(super) fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    /// The version of the other node's program; empty: not known.
    pub(super) fn version(&self) -> String {
        self.version.lock().clone()
    }
}

/// Requests whose answer is awaited.
struct Pending {
    calls: BTreeMap<u64, oneshot::Sender<Untrusted<peer::PeerResponse>>>,
    next: u64,
    heard: Instant,
}

/// Keeps one connection to one node up and carries requests over it.
pub(super) struct Connection {
    pub(super) env: Env,
    pub(super) dial: Arc<dyn Dial>,
    pub(super) speaker: Speaker,
    pub(super) gate: Arc<Gate>,
    pub(super) region: RegionName,
    pub(super) node: NodeId,
    pub(super) address: watch::Receiver<String>,
    pub(super) queue: Arc<Queue>,
    pub(super) link: Arc<Link>,
    /// The bulk connection stands and falls with the quick one, which finds
    /// out sooner that the other node does not answer; `None`: this is it.
    pub(super) quick: Option<Arc<Link>>,
}

/// Why a connection ended that is made anew with another certificate.
const RENEWED: &str = "it is made anew with what is in force now";

/// How long at most after a change a connection is made anew: not all at once.
const RENEW_WAIT: Duration = Duration::from_secs(2);

/// How long what was asked may take to be answered before that, and how often it is
/// looked at.
const DRAIN_WAIT: Duration = Duration::from_secs(5);
const DRAIN_STEP: Duration = Duration::from_millis(2);

impl Connection {
    /// Runs until its task ends.
    pub(super) async fn run(mut self) {
        let mut refused: Option<(Reason, Instant, bool)> = None;
        loop {
            if let Some(quick) = &self.quick {
                quick.is(true).await;
            }
            let address = self.address.borrow_and_update().clone();
            // Before: a change meanwhile counts.
            let mut changed = self.dial.changed();
            match self.connect(&address).await {
                Ok(mut streams) => {
                    self.queue.open();
                    self.link.connected.send_replace(true);
                    self.link.contact.connected(self.env.now());
                    if self.quick.is_none() {
                        tracing::info!(region = %self.region, node = %self.node, "connected");
                    }
                    let why = loop {
                        let why = self.exchange(streams, changed).await;
                        if why != RENEWED {
                            break why;
                        }
                        // What is to be sent waits meanwhile.
                        changed = self.dial.changed();
                        match self.connect(&address).await {
                            Ok(renewed) => streams = renewed,
                            Err(_) => break why,
                        }
                    };
                    self.link.connected.send_replace(false);
                    self.link.contact.lost();
                    self.queue.shut();
                    *self.link.channel.lock() = None;
                    if self.quick.is_none() {
                        tracing::info!(region = %self.region, node = %self.node, why, "disconnected");
                    }
                }
                Err(error) if error.reason == Reason::Unreachable => {
                    self.link.contact.refused(None);
                    tracing::debug!(region = %self.region, node = %self.node, %error, "not connected");
                }
                // It answers and refuses: someone has to correct something.
                Err(error) => {
                    self.link.contact.refused(Some(&error));
                    let now = self.env.now();
                    let (since, said) = match refused {
                        Some((reason, since, said)) if reason == error.reason => (since, said),
                        _ => (now, false),
                    };
                    // While a cluster is formed, one node is part of it before another.
                    let is_due = error.reason != Reason::NotFormed || now - since >= FORMING;
                    if is_due && !said {
                        tracing::warn!(region = %self.region, node = %self.node, %error, "refused");
                    }
                    refused = Some((error.reason, since, said || is_due));
                }
            }
            tokio::time::sleep(self.env.jitter(RECONNECT_WAIT)).await;
        }
    }

    async fn connect(
        &self,
        address: &str,
    ) -> Result<(
        mpsc::Sender<peer::ExchangeRequest>,
        tonic::Streaming<peer::ExchangeResponse>,
    )> {
        let hello = self.speaker.hello(&self.region, self.node)?;
        let keep_alive = if self.quick.is_none() { QUICK } else { BULK };
        let expected = Expected::Node(self.region.clone(), self.node.0);
        let channel = channel_kept(self.dial.clone(), address, expected, keep_alive).await?;
        *self.link.channel.lock() = Some(channel.clone());
        let mut client = client(channel);
        let (frames, rx) = mpsc::channel(FRAMES_WAITING_MAX);
        let first = peer::ExchangeRequest {
            hello: Some(hello),
            requests: Vec::new(),
        };
        if frames.send(first).await.is_err() {
            return Err(Error::internal("the frame queue is closed"));
        }
        let lost = |what: &str| Error::new(Reason::Unreachable, what.to_owned());
        let exchange = async {
            let mut answers = client
                .exchange(ReceiverStream::new(rx))
                .await
                .map_err(|status| refusal(&status))?
                .into_inner();
            let first = answers
                .message()
                .await
                .map_err(|status| refusal(&status))?
                .ok_or_else(|| lost("the stream ended"))?;
            // Before the first request goes out: an older copy of a store must
            // not lead.
            let other = format!("{}/{}", self.region, self.node);
            self.speaker
                .told(&other, first.seen.as_slice(), first.replica)?;
            let seen = self.speaker.seen(&self.region, self.node);
            first.store.iter().for_each(|stamp| seen.note(stamp));
            *self.link.version.lock() = first.version;
            self.link.level.store(first.level, Ordering::Relaxed);
            Ok((frames, answers))
        };
        tokio::time::timeout(HELLO_WAIT, exchange)
            .await
            .map_err(|_| lost("no answer to the hello"))?
    }

    /// Carries requests and answers until it cannot any more, and says why.
    async fn exchange(
        &self,
        (frames, mut answers): (
            mpsc::Sender<peer::ExchangeRequest>,
            tonic::Streaming<peer::ExchangeResponse>,
        ),
        changed: BoxFuture<'static, ()>,
    ) -> &'static str {
        let is_renewing = AtomicBool::new(false);
        let pending = Mutex::new(Pending {
            calls: BTreeMap::new(),
            next: 1,
            heard: self.env.now(),
        });
        let write = async {
            loop {
                // Taken only when there is room for them.
                let Ok(room) = frames.reserve().await else {
                    return "the stream ended";
                };
                self.queue.arrived().await;
                if is_renewing.load(Ordering::Relaxed) {
                    std::future::pending::<()>().await;
                }
                let calls = self.queue.take(FRAME_REQUESTS_MAX, FRAME_BYTES_MAX);
                let frame = self.frame(&pending, calls);
                if !frame.requests.is_empty() {
                    self.link.frames.fetch_add(1, Ordering::Relaxed);
                    room.send(frame);
                }
            }
        };
        let seen = self.speaker.seen(&self.region, self.node);
        let other = format!("{}/{}", self.region, self.node);
        let read = async {
            loop {
                match answers.message().await {
                    Ok(Some(frame)) => {
                        frame.store.iter().for_each(|stamp| seen.note(stamp));
                        self.env.observe_clock(&other, frame.wall_ms);
                        self.link.contact.hear(self.env.now(), frame.state);
                        let mut pending = pending.lock();
                        pending.heard = self.env.now();
                        for answer in frame.responses {
                            if let Some(call) = pending.calls.remove(&answer.sequence) {
                                // The caller may have given up.
                                drop(call.send(Untrusted::received(answer)));
                            }
                        }
                    }
                    Ok(None) => return "the stream ended",
                    Err(_) => return "the connection broke",
                }
            }
        };
        let listen = async {
            loop {
                tokio::time::sleep(SILENCE_CHECK).await;
                self.queue.sweep();
                let mut pending = pending.lock();
                let patience = match &self.quick {
                    None => SILENCE_MAX,
                    Some(_) => BULK_SILENCE_MAX,
                };
                let is_silent = self.env.now().duration_since(pending.heard) > patience;
                if is_silent && !pending.calls.is_empty() {
                    return "nothing came back for a while";
                }
                // One replica that hangs leaves calls without an answer for as long as
                // the others are answered. The oldest stays: silence counts from it.
                let oldest = pending.calls.keys().next().copied();
                let is_kept = |sequence: &u64| Some(*sequence) == oldest;
                pending
                    .calls
                    .retain(|sequence, call| is_kept(sequence) || !call.is_closed());
            }
        };
        let mut address = self.address.clone();
        let moved = async {
            // An error means that the handle has gone; the task ends then.
            if address.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            "the node has moved"
        };
        let renewed = async {
            changed.await;
            tokio::time::sleep(self.env.jitter(RENEW_WAIT)).await;
            is_renewing.store(true, Ordering::Relaxed);
            let until = self.env.now() + DRAIN_WAIT;
            while !pending.lock().calls.is_empty() && self.env.now() < until {
                tokio::time::sleep(DRAIN_STEP).await;
            }
            RENEWED
        };
        let silent = async {
            match &self.quick {
                Some(quick) => quick.is(false).await,
                None => std::future::pending().await,
            }
            "the node does not answer"
        };
        tokio::select! {
            why = write => why,
            why = read => why,
            why = listen => why,
            why = moved => why,
            why = renewed => why,
            why = silent => why,
        }
    }

    /// A frame of calls. What may not leave any more is refused here.
    fn frame(&self, pending: &Mutex<Pending>, calls: Vec<Call>) -> peer::ExchangeRequest {
        let mut pending = pending.lock();
        if pending.calls.is_empty() {
            // Silence counts from the first request that waits.
            pending.heard = self.env.now();
        }
        let mut requests = Vec::with_capacity(calls.len());
        for (cleared, call) in calls {
            let mut request = match self.gate.frame(cleared, &self.region) {
                Ok(request) => request,
                Err(refused) => {
                    tracing::warn!(to = %self.region, reason = %refused.reason, "dropped at the gate");
                    refuse(call, &refused);
                    continue;
                }
            };
            request.sequence = pending.next;
            pending.next += 1;
            pending.calls.insert(request.sequence, call);
            requests.push(request);
        }
        peer::ExchangeRequest {
            hello: None,
            requests,
        }
    }
}

/// Why a hello was not taken: what the other node says, or that it says
/// nothing.
fn refusal(status: &tonic::Status) -> Error {
    if let Some(why) = unidentified(status) {
        return Error::new(Reason::IdentityRejected, why);
    }
    let info = status.get_details_error_info();
    let reason = info.and_then(|info| info.reason.parse().ok());
    Error::new(reason.unwrap_or(Reason::Unreachable), status.message())
}

fn client(channel: Channel) -> PeerServiceClient<Channel> {
    PeerServiceClient::new(channel)
        .max_decoding_message_size(PEER_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(PEER_MESSAGE_BYTES_MAX)
}

/// Sends a snapshot over the node's connection.
pub(super) async fn send_snapshot(
    link: Arc<Link>,
    parts: impl Stream<Item = Result<peer::SendSnapshotRequest>> + Send + 'static,
    env: Env,
) -> Result<Untrusted<peer::SendSnapshotResponse>> {
    let channel = link
        .channel
        .lock()
        .clone()
        .ok_or_else(|| Error::new(Reason::Unreachable, "the node is not connected"))?;
    let (sending, rx) = mpsc::channel(2);
    let feeding = env.spawn("snapshot-feed", async move {
        tokio::pin!(parts);
        while let Some(part) = parts.next().await {
            let part = match part {
                Ok(part) => part,
                Err(error) => {
                    // Ending without the end part makes the receiver refuse.
                    tracing::error!(%error, "the rest of a snapshot is not sent");
                    return;
                }
            };
            // The receiver may have gone; its answer says so.
            if sending.send(part).await.is_err() {
                return;
            }
        }
    });
    let mut receiver = client(channel.clone());
    let answer = tokio::select! {
        answer = receiver.send_snapshot(ReceiverStream::new(rx)) => answer.map_err(|status| {
            Error::new(Reason::Unreachable, "the snapshot was not taken").caused_by(status)
        })?,
        () = outlived(&link, channel) => {
            let lost = "the connection that a snapshot went over was lost";
            return Err(Error::new(Reason::Unreachable, lost));
        }
    };
    drop(feeding);
    Ok(Untrusted::received(answer.into_inner()))
}

/// Waits until the other node answers on a newer connection and not on this one.
/// It may have stood still meanwhile: then a snapshot goes on where it was.
async fn outlived(link: &Link, channel: Channel) {
    loop {
        link.is(false).await;
        link.is(true).await;
        // Any answer will do; this one says that there is no snapshot in it.
        let mut older = client(channel.clone());
        let asked = older.send_snapshot(futures::stream::empty());
        if tokio::time::timeout(OUTLIVED_WAIT, asked).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use domicile_proto::address::Tag;
    use peer::peer_request::Request;
    use peer::peer_response::Response;

    use super::*;
    use crate::net::TcpDial;
    use crate::policy::LEASE;
    use crate::raft::testing::Alone;
    use crate::residency::Side;
    use crate::state::Subject;

    /// A write for `global` that waits for the connection to a region.
    fn waiting(
        node: &Alone,
        to: &RegionName,
    ) -> (Call, oneshot::Receiver<Untrusted<peer::PeerResponse>>) {
        let request = peer::PeerRequest {
            request: Some(Request::Forward(peer::Forward {
                tag: "global".into(),
                ..peer::Forward::default()
            })),
            ..peer::PeerRequest::default()
        };
        let subject = Subject::Tag(Tag::new("global").expect("a tag"));
        let cleared = node.gate.egress(to, &subject, request).expect("cleared");
        let (call, answer) = oneshot::channel();
        ((cleared, call), answer)
    }

    /// What was cleared may wait long for a socket, and must not leave then.
    #[tokio::test(start_paused = true)]
    async fn what_may_not_leave_any_more_is_dropped_and_refused() {
        let node = Alone::new("eu");
        node.adopt_demo();
        node.gate.policy().lease().confirm(node.env.now());
        let names = ["us", "ap"].map(|name| RegionName::new(name).expect("a name"));
        let [us, ap] = &names;
        let connection = Connection {
            env: node.env.clone(),
            dial: Arc::new(TcpDial),
            speaker: Speaker::new(node.gate.region().clone(), NodeId(1)),
            gate: node.gate.clone(),
            region: us.clone(),
            node: NodeId(1),
            address: watch::channel(String::new()).1,
            queue: Arc::default(),
            link: Arc::new(Link::new(node.env.now())),
            quick: None,
        };
        let pending = Mutex::new(Pending {
            calls: BTreeMap::new(),
            next: 1,
            heard: node.env.now(),
        });
        let framed = |calls: Vec<Call>| {
            let frame = connection.frame(&pending, calls);
            frame.requests.len()
        };
        let (elsewhere, mut refused) = waiting(&node, ap);
        let (meant, mut waits) = waiting(&node, us);
        assert_eq!(framed(vec![elsewhere, meant]), 1);
        assert!(waits.try_recv().is_err(), "it waits for the other node");
        let reason = |answer: Untrusted<peer::PeerResponse>| {
            let opened = node.gate.ingress(us, &Subject::Control, answer);
            match opened.expect("it bears nothing").response {
                Some(Response::Refusal(refusal)) => refusal.reason,
                other => panic!("{other:?}"),
            }
        };
        let told = refused.try_recv().expect("answered");
        assert_eq!(reason(told), Reason::ResidencyViolation.name());

        let (late, mut refused) = waiting(&node, us);
        tokio::time::sleep(LEASE).await;
        assert_eq!(framed(vec![late]), 0);
        let told = refused.try_recv().expect("answered");
        assert_eq!(reason(told), Reason::NoQuorum.name());
        assert_eq!(pending.lock().calls.len(), 1);

        let refusals = node.gate.refusals();
        assert_eq!(refusals.len(), 2);
        for (cause, evidence) in refusals {
            assert_eq!((cause.side, evidence.count), (Side::Egress, 1));
            assert_eq!((&cause.region, cause.tag.as_str()), (us, "global"));
        }
    }
}
