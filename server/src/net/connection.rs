//! The connection to one other node.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use domicile_proto::address::RegionName;
use domicile_proto::internal::v1 as wire;
use domicile_proto::internal::v1::peer_service_client::PeerServiceClient;
use domicile_proto::limits::PEER_MESSAGE_BYTES_MAX;
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic_types::StatusExt;
use wire::peer_response::Response;

use crate::env::{Env, Instant};
use crate::error::{Error, Reason, Result};
use crate::net::dial::{Dial, channel};
use crate::net::peers::Speaker;
use crate::raft::NodeId;
use crate::residency::{Cleared, Gate, Untrusted};

/// The bytes of requests that are gathered into one frame.
const FRAME_BYTES_MAX: usize = 1024 * 1024;

/// The requests that are gathered into one frame.
const FRAME_REQUESTS_MAX: usize = 512;

/// The frames that may wait for the socket; behind them requests gather.
const FRAMES_WAITING_MAX: usize = 4;

/// How long the other node may take to answer the hello.
const HELLO_WAIT: Duration = Duration::from_secs(2);

/// A connection on which requests wait and nothing comes back for this long is
/// given up: packets may vanish without an error.
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// How often silence is looked for.
const SILENCE_CHECK: Duration = Duration::from_millis(500);

/// The longest wait between two attempts to connect.
const RECONNECT_WAIT: Duration = Duration::from_millis(500);

/// A request and who waits for its answer.
pub(super) type Call = (
    Cleared<wire::PeerRequest>,
    oneshot::Sender<Untrusted<wire::PeerResponse>>,
);

/// What others may see of a connection.
#[derive(Default)]
pub(super) struct Link {
    connected: AtomicBool,
    version: Mutex<String>,
    level: AtomicU64,
    channel: Mutex<Option<Channel>>,
}

impl Link {
    /// Whether the other node answers now.
    pub(super) fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// The open connection; `None`: there is none.
    pub(super) fn channel(&self) -> Option<Channel> {
        self.channel.lock().clone().filter(|_| self.is_connected())
    }

    /// The highest feature level that the other node's program knows.
    pub(super) fn level(&self) -> u64 {
        self.level.load(Ordering::Relaxed)
    }

    /// The version of the other node's program; empty: not known.
    pub(super) fn version(&self) -> String {
        self.version.lock().clone()
    }
}

/// Requests whose answer is awaited.
struct Pending {
    calls: BTreeMap<u64, oneshot::Sender<Untrusted<wire::PeerResponse>>>,
    next: u64,
    heard: Instant,
}

/// Keeps the connection to one node up and carries requests over it.
pub(super) struct Connection {
    pub(super) env: Env,
    pub(super) dial: Arc<dyn Dial>,
    pub(super) speaker: Speaker,
    pub(super) gate: Arc<Gate>,
    pub(super) region: RegionName,
    pub(super) node: NodeId,
    pub(super) address: watch::Receiver<String>,
    pub(super) link: Arc<Link>,
}

impl Connection {
    /// Runs until the handle's queue is closed.
    pub(super) async fn run(mut self, mut calls: mpsc::UnboundedReceiver<Call>) {
        let mut refused = None;
        loop {
            let address = self.address.borrow_and_update().clone();
            let connected = {
                let connecting = self.connect(&address);
                tokio::pin!(connecting);
                loop {
                    tokio::select! {
                        connected = &mut connecting => break connected,
                        // Nobody waits for a node that is not there: dropping
                        // the call fails it.
                        call = calls.recv() => if call.is_none() { return },
                    }
                }
            };
            match connected {
                Ok((frames, answers)) => {
                    self.link.connected.store(true, Ordering::Relaxed);
                    tracing::info!(region = %self.region, node = %self.node, "connected");
                    let ended = self.exchange(&mut calls, frames, answers).await;
                    self.link.connected.store(false, Ordering::Relaxed);
                    *self.link.channel.lock() = None;
                    match ended {
                        Ended::Closed => return,
                        Ended::Broken(why) => {
                            tracing::info!(region = %self.region, node = %self.node, why, "disconnected");
                        }
                    }
                }
                Err(error) if error.reason == Reason::Unreachable => {
                    tracing::debug!(region = %self.region, node = %self.node, %error, "not connected");
                }
                // It answers and refuses: someone has to correct something.
                Err(error) if refused != Some(error.reason) => {
                    tracing::warn!(region = %self.region, node = %self.node, %error, "refused");
                    refused = Some(error.reason);
                }
                Err(_) => {}
            }
            let pause = tokio::time::sleep(self.env.jitter(RECONNECT_WAIT));
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    call = calls.recv() => if call.is_none() { return },
                }
            }
        }
    }

    async fn connect(
        &self,
        address: &str,
    ) -> Result<(
        mpsc::Sender<wire::ExchangeRequest>,
        tonic::Streaming<wire::ExchangeResponse>,
    )> {
        let hello = self.speaker.hello(&self.region, self.node)?;
        let channel = channel(self.dial.clone(), address).await?;
        *self.link.channel.lock() = Some(channel.clone());
        let mut client = client(channel);
        let (frames, rx) = mpsc::channel(FRAMES_WAITING_MAX);
        let first = wire::ExchangeRequest {
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
            self.speaker.told(&other, first.seen.as_slice())?;
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

    async fn exchange(
        &self,
        calls: &mut mpsc::UnboundedReceiver<Call>,
        frames: mpsc::Sender<wire::ExchangeRequest>,
        mut answers: tonic::Streaming<wire::ExchangeResponse>,
    ) -> Ended {
        let pending = Mutex::new(Pending {
            calls: BTreeMap::new(),
            next: 1,
            heard: self.env.now(),
        });
        let write = async {
            let mut gathered = Vec::new();
            loop {
                if calls.recv_many(&mut gathered, FRAME_REQUESTS_MAX).await == 0 {
                    return Ended::Closed;
                }
                let mut gathered = gathered.drain(..).peekable();
                while gathered.peek().is_some() {
                    let frame = self.frame(&pending, &mut gathered);
                    if frame.requests.is_empty() {
                        continue;
                    }
                    if frames.send(frame).await.is_err() {
                        return Ended::Broken("the stream ended");
                    }
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
                        let (theirs, own) = (frame.wall_ms, self.env.wall_ms());
                        let clocks = self.env.peer_clocks();
                        clocks.hear(&other, theirs, own, self.env.now());
                        let mut pending = pending.lock();
                        pending.heard = self.env.now();
                        for answer in frame.responses {
                            if let Some(call) = pending.calls.remove(&answer.sequence) {
                                // The caller may have given up.
                                drop(call.send(Untrusted::received(answer)));
                            }
                        }
                    }
                    Ok(None) => return Ended::Broken("the stream ended"),
                    Err(_) => return Ended::Broken("the connection broke"),
                }
            }
        };
        let listen = async {
            loop {
                tokio::time::sleep(SILENCE_CHECK).await;
                let pending = pending.lock();
                if !pending.calls.is_empty()
                    && self.env.now().duration_since(pending.heard) > SILENCE_MAX
                {
                    return Ended::Broken("nothing came back for a while");
                }
            }
        };
        let mut address = self.address.clone();
        let moved = async {
            // An error means that the handle has gone; the queue closes then.
            if address.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            Ended::Broken("the node has moved")
        };
        tokio::select! {
            ended = write => ended,
            ended = read => ended,
            ended = listen => ended,
            ended = moved => ended,
        }
    }

    /// Takes as many calls as fit into one frame. What may not leave any more is
    /// refused here.
    fn frame(
        &self,
        pending: &Mutex<Pending>,
        gathered: &mut std::iter::Peekable<impl Iterator<Item = Call>>,
    ) -> wire::ExchangeRequest {
        let mut pending = pending.lock();
        if pending.calls.is_empty() {
            // Silence counts from the first request that waits.
            pending.heard = self.env.now();
        }
        let mut requests = Vec::new();
        let mut bytes = 0;
        while let Some((request, _)) = gathered.peek() {
            bytes += request.message().encoded_len();
            if !requests.is_empty() && bytes > FRAME_BYTES_MAX {
                break;
            }
            let Some((cleared, call)) = gathered.next() else {
                break;
            };
            let mut request = match self.gate.frame(cleared, &self.region) {
                Ok(request) => request,
                Err(refused) => {
                    tracing::warn!(to = %self.region, reason = %refused.reason, "dropped at the gate");
                    // As the other node would have: certainly nothing was done.
                    drop(call.send(Untrusted::received(wire::PeerResponse {
                        sequence: 0,
                        response: Some(Response::Refusal((&refused).into())),
                    })));
                    continue;
                }
            };
            request.sequence = pending.next;
            pending.next += 1;
            pending.calls.insert(request.sequence, call);
            requests.push(request);
        }
        wire::ExchangeRequest {
            hello: None,
            requests,
        }
    }
}

/// Why a hello was not taken: what the other node says, or that it says
/// nothing.
fn refusal(status: &tonic::Status) -> Error {
    let info = status.get_details_error_info();
    let reason = info.and_then(|info| info.reason.parse().ok());
    Error::new(reason.unwrap_or(Reason::Unreachable), status.message())
}

/// Why an exchange ended.
enum Ended {
    /// The handle was dropped.
    Closed,
    /// The connection is to be made again.
    Broken(&'static str),
}

fn client(channel: Channel) -> PeerServiceClient<Channel> {
    PeerServiceClient::new(channel)
        .max_decoding_message_size(PEER_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(PEER_MESSAGE_BYTES_MAX)
}

/// Sends a snapshot over the node's connection.
pub(super) async fn send_snapshot(
    link: Arc<Link>,
    parts: impl Stream<Item = Result<wire::SendSnapshotRequest>> + Send + 'static,
    env: Env,
) -> Result<Untrusted<wire::SendSnapshotResponse>> {
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
    let answer = client(channel)
        .send_snapshot(ReceiverStream::new(rx))
        .await
        .map_err(|status| {
            Error::new(Reason::Unreachable, "the snapshot was not taken").caused_by(status)
        })?
        .into_inner();
    drop(feeding);
    Ok(Untrusted::received(answer))
}

#[cfg(test)]
mod tests {
    use domicile_proto::address::Tag;
    use wire::peer_request::Request;

    use super::*;
    use crate::net::TcpDial;
    use crate::raft::testing::Alone;
    use crate::residency::{LEASE, Side, Subject};

    /// A write for `global` that waits for the connection to a region.
    fn waiting(
        node: &Alone,
        to: &RegionName,
    ) -> (Call, oneshot::Receiver<Untrusted<wire::PeerResponse>>) {
        let request = wire::PeerRequest {
            request: Some(Request::Forward(wire::Forward {
                tag: "global".into(),
                ..wire::Forward::default()
            })),
            ..wire::PeerRequest::default()
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
        node.gate.confirm_lease(node.env.now());
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
            link: Arc::default(),
        };
        let pending = Mutex::new(Pending {
            calls: BTreeMap::new(),
            next: 1,
            heard: node.env.now(),
        });
        let framed = |calls: Vec<Call>| {
            let frame = connection.frame(&pending, &mut calls.into_iter().peekable());
            frame.requests.len()
        };
        let (elsewhere, mut refused) = waiting(&node, ap);
        let (meant, mut waits) = waiting(&node, us);
        assert_eq!(framed(vec![elsewhere, meant]), 1);
        assert!(waits.try_recv().is_err(), "it waits for the other node");
        let reason = |answer: Untrusted<wire::PeerResponse>| {
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
