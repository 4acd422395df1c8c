//! The answering half of a session: what is ready is gathered into frames.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use domicile_proto::limits::TOKEN_POSITIONS_MAX;
use domicile_proto::v1;
use futures::Stream;
use prost::Message;
use tokio::sync::{Semaphore, mpsc};
use tonic::{Code, Status};
use v1::session_result::Result as Answer;

use crate::api::status::{code, code_name, failure};
use crate::env::{Env, Instant, Task};
use crate::error::{Error, Reason, Result};
use crate::kv::{self, Route, covering_all, has_key};
use crate::raft::{self, Budget, Kind, Replier};
use crate::state::Outcome;
use crate::storage::{GroupId, Index};
use crate::telemetry::{Metrics, Operation};

/// The results that are gathered into one frame.
const FRAME_RESULTS_MAX: usize = 512;

/// The bytes of results that are gathered into one frame.
const FRAME_BYTES_MAX: usize = 1024 * 1024;

/// The bytes of records that may wait for the client of one session: some
/// seconds of a slow connection. A client that asks for more and does not read
/// is told to slow down.
const WAITING_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What a caller is advised to wait when too much waits for it.
const RETRY_OVERLOADED: Duration = Duration::from_millis(50);

/// What a session has to say.
enum Reply {
    /// A finished frame, and the bytes of the records in it.
    Frame(v1::SessionResponse, usize),
    /// One result, to be gathered with others, and the bytes of the records in
    /// it.
    One(v1::SessionResult, usize),
    /// One write that is in the log of the tag's home, to be gathered too.
    Written(u64, Kind, raft::Answer, Arc<Route>),
    /// The last word.
    Closing(Error),
}

/// Where the answers of a session are put until they go out. Clones are the
/// same.
#[derive(Clone)]
pub(super) struct Outbox {
    // Unbounded, because each reply answers an operation that holds a slot, and
    // the records in them have a budget.
    replies: mpsc::UnboundedSender<Reply>,
    waiting: Arc<Budget>,
}

impl Outbox {
    /// An empty one, and where its answers come out.
    pub(super) fn new() -> (Self, Waiting) {
        let (tx, replies) = mpsc::unbounded_channel();
        let waiting = Arc::new(Budget::new(WAITING_BYTES_MAX));
        let outbox = Outbox {
            replies: tx,
            waiting: waiting.clone(),
        };
        (outbox, Waiting { replies, waiting })
    }

    /// Says why an operation failed.
    pub(super) fn fail(&self, id: u64, error: Error) {
        let result = result(id, Answer::Failure(failure(error)));
        self.send(Reply::One(result, 0));
    }

    /// Answers gets that were read together. Answers why they failed, where
    /// too much waits already.
    pub(super) fn gets(
        &self,
        results: Vec<v1::SessionResult>,
        meta: v1::ReadMeta,
    ) -> Option<Reason> {
        let bytes = results.iter().map(record_bytes).sum();
        if !self.waiting.take(bytes) {
            for refused in results {
                self.fail(refused.id, overloaded());
            }
            return Some(Reason::Overloaded);
        }
        let frame = v1::SessionResponse {
            results,
            meta: Some(meta),
            ..v1::SessionResponse::default()
        };
        self.send(Reply::Frame(frame, bytes));
        None
    }

    /// Answers a scan. Answers why it failed, where too much waits already.
    pub(super) fn page(&self, id: u64, page: v1::ScanResponse) -> Option<Reason> {
        let result = result(id, Answer::Scan(page));
        let bytes = record_bytes(&result);
        if !self.waiting.take(bytes) {
            self.fail(id, overloaded());
            return Some(Reason::Overloaded);
        }
        self.send(Reply::One(result, bytes));
        None
    }

    /// Waits until the client has gone, so that nobody hears an answer.
    pub(super) async fn gone(&self) {
        self.replies.closed().await;
    }

    /// Says the last word.
    pub(super) fn close(&self, error: Error) {
        self.send(Reply::Closing(error));
    }

    fn send(&self, reply: Reply) {
        // The client may have gone; then nobody listens.
        drop(self.replies.send(reply));
    }
}

/// What a frame asks of one range; it hears what comes of the writes.
pub(super) struct Asked {
    /// The range.
    pub(super) route: Arc<Route>,
    /// Where the answers go.
    pub(super) outbox: Outbox,
    /// Counts the writes.
    pub(super) metrics: Metrics,
}

impl Replier for Asked {
    fn reply(self: Arc<Self>, number: u64, kind: Kind, answer: Result<raft::Answer>) {
        let counted = match kind {
            Kind::Put => Operation::Put,
            Kind::Delete => Operation::Delete,
            Kind::Register => Operation::Register,
        };
        let failed = answer.as_ref().err().map(|error| error.reason);
        self.metrics.observe_operation(counted, failed);
        match answer {
            Ok(answer) => {
                // Of what waits in it the outbox must not be a part.
                let written = Reply::Written(number, kind, answer, self.route.clone());
                self.outbox.send(written);
            }
            Err(error) => self.outbox.fail(number, error),
        }
    }
}

/// What was put into an [`Outbox`] and has not gone out.
pub(super) struct Waiting {
    replies: mpsc::UnboundedReceiver<Reply>,
    waiting: Arc<Budget>,
}

/// Counts a session when it ends.
pub(super) struct Counted {
    env: Env,
    metrics: Metrics,
    began: Instant,
    closed_for: Option<Reason>,
}

impl Counted {
    /// A session that begins now.
    pub(super) fn begin(env: Env, metrics: Metrics) -> Self {
        Counted {
            began: env.now(),
            env,
            metrics,
            closed_for: None,
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let code = self.closed_for.map_or(Code::Ok, code);
        let took = self.env.now() - self.began;
        self.metrics.observe_rpc("Session", code_name(code), took);
    }
}

/// The answering half of a session. Dropping it ends the session.
pub struct Replies {
    waiting: Waiting,
    gathered: Vec<Reply>,
    slots: Arc<Semaphore>,
    closed: bool,
    counted: Counted,
    _reader: Task,
}

impl Stream for Replies {
    type Item = Result<v1::SessionResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.closed {
            return Poll::Ready(None);
        }
        let this = &mut *self;
        if this.gathered.is_empty() {
            let received =
                this.waiting
                    .replies
                    .poll_recv_many(cx, &mut this.gathered, FRAME_RESULTS_MAX);
            match received {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(0) => {
                    this.closed = true;
                    return Poll::Ready(None);
                }
                Poll::Ready(_) => {}
            }
        }
        Poll::Ready(Some(Ok(this.frame())))
    }
}

impl Replies {
    /// What `reader` has to say, for as long as it is listened to.
    pub(super) fn new(
        waiting: Waiting,
        slots: Arc<Semaphore>,
        counted: Counted,
        reader: Task,
    ) -> Self {
        Replies {
            waiting,
            gathered: Vec::new(),
            slots,
            closed: false,
            counted,
            _reader: reader,
        }
    }

    /// The next frame of what is gathered.
    fn frame(&mut self) -> v1::SessionResponse {
        let mut frame = v1::SessionResponse::default();
        let mut bytes = 0;
        let mut taken = 0;
        let mut answered = 0;
        let mut gone = 0;
        let mut written: BTreeMap<GroupId, (Arc<Route>, Index)> = BTreeMap::new();
        for reply in &mut self.gathered {
            match reply {
                Reply::One(result, records) => {
                    bytes += frame_bytes(result);
                    // One result fits a message, whatever its size.
                    if taken > 0 && bytes > FRAME_BYTES_MAX {
                        break;
                    }
                    frame.results.push(std::mem::take(result));
                    gone += *records;
                    answered += 1;
                    taken += 1;
                }
                Reply::Written(id, kind, answer, route) => {
                    // With a key of the tag all of the frame have one token. Without,
                    // each has the one that another node gave.
                    if let Some(range) = route.range.filter(|_| has_key(route)) {
                        let is_full = written.len() == TOKEN_POSITIONS_MAX;
                        if is_full && !written.contains_key(&range) && taken > 0 {
                            break;
                        }
                        answer.token.clear();
                        let last = written.entry(range);
                        let last = last.or_insert_with(|| (route.clone(), answer.index));
                        last.1 = last.1.max(answer.index);
                    }
                    let token = std::mem::take(&mut answer.token);
                    let told = told(*kind, answer.outcome, token);
                    frame.results.push(result(*id, told));
                    answered += 1;
                    taken += 1;
                }
                // A frame has its own meta, so it goes alone.
                Reply::Frame(..) | Reply::Closing(_) if taken > 0 => break,
                Reply::Frame(ready, records) => {
                    frame = std::mem::take(ready);
                    gone += *records;
                    answered += frame.results.len();
                    taken += 1;
                    break;
                }
                Reply::Closing(error) => {
                    self.counted.closed_for = Some(error.reason);
                    let last = Error::new(error.reason, std::mem::take(&mut error.message));
                    frame.closing = Some(failure(last));
                    self.closed = true;
                    taken += 1;
                    break;
                }
            }
        }
        if !written.is_empty() {
            // One for all writes of the frame, with one position for each range.
            frame.token = covering_all(written.values().map(|(route, index)| (&**route, *index)));
        }
        self.gathered.drain(..taken);
        self.slots.add_permits(answered);
        self.waiting.waiting.give_back(gone);
        frame
    }
}

/// What a client is told of a write.
fn told(kind: Kind, outcome: Outcome, token: Bytes) -> Answer {
    let told = match kind {
        Kind::Put => kv::put_response(outcome, token).map(Answer::Put),
        Kind::Delete => kv::delete_response(outcome, token).map(Answer::Delete),
        Kind::Register => kv::register_response(outcome).map(Answer::Register),
    };
    told.unwrap_or_else(|error| Answer::Failure(failure(error)))
}

/// About how many bytes a result takes in a frame.
fn frame_bytes(result: &v1::SessionResult) -> usize {
    match &result.result {
        Some(Answer::Failure(failure)) => failure.encoded_len(),
        _ => record_bytes(result),
    }
}

/// The bytes of the records of a result.
fn record_bytes(result: &v1::SessionResult) -> usize {
    let record = |record: &v1::Record| record.key.len() + record.value.len();
    match &result.result {
        Some(Answer::Get(get)) => get.record.as_ref().map_or(0, record),
        Some(Answer::Scan(scan)) => scan.records.iter().map(record).sum(),
        _ => 0,
    }
}

/// The result of one operation.
pub(super) fn result(id: u64, answer: Answer) -> v1::SessionResult {
    v1::SessionResult {
        id,
        result: Some(answer),
    }
}

fn overloaded() -> Error {
    Error::new(
        Reason::Overloaded,
        "too many records wait for this session to read them; try again after the delay",
    )
    .retry_after(RETRY_OVERLOADED)
}

#[cfg(test)]
mod tests {
    use domicile_proto::token::Token;
    use futures::StreamExt;

    use super::*;
    use crate::kv::Directory;
    use crate::raft::testing::Alone;
    use crate::state::testing::identity;

    fn got(id: u64, bytes: usize) -> v1::SessionResult {
        let record = v1::Record {
            value: Bytes::from(vec![7; bytes]),
            ..v1::Record::default()
        };
        let get = v1::GetResponse {
            record: Some(record),
            meta: None,
        };
        result(id, Answer::Get(get))
    }

    /// A client that does not read cannot make the node hold all it asks for.
    #[test]
    fn the_records_that_wait_for_a_session_are_bounded() {
        let (outbox, mut waiting) = Outbox::new();
        let chunk = 1024 * 1024;
        let room = WAITING_BYTES_MAX / chunk;
        for id in 0..room as u64 {
            let refused = outbox.gets(vec![got(id, chunk)], v1::ReadMeta::default());
            assert_eq!(refused, None);
        }
        let refused = outbox.gets(vec![got(77, chunk)], v1::ReadMeta::default());
        assert_eq!(refused, Some(Reason::Overloaded));
        let page = v1::ScanResponse {
            records: vec![v1::Record {
                value: Bytes::from(vec![7; chunk]),
                ..v1::Record::default()
            }],
            ..v1::ScanResponse::default()
        };
        assert_eq!(outbox.page(78, page), Some(Reason::Overloaded));
        let mut failed = Vec::new();
        while let Ok(reply) = waiting.replies.try_recv() {
            if let Reply::One(result, 0) = reply
                && let Some(Answer::Failure(failure)) = result.result
            {
                assert_eq!(failure.reason, "OVERLOADED");
                assert!(failure.retry_after_ms > 0);
                failed.push(result.id);
            }
        }
        assert_eq!(failed, [77, 78]);
    }

    /// With a key of the tag the writes of a frame have one token together; without,
    /// each has the one that another node gave.
    #[tokio::test]
    async fn the_writes_of_a_frame_have_one_token() {
        let node = Alone::new("eu");
        node.adopt_demo();
        let directory = Directory::new(&node.gate, node.groups.clone());
        let mut frames = Vec::new();
        for has_key in [false, true] {
            if has_key {
                let group = node.lead(identity(18, "global", "eu")).await;
                raft::testing::put(&group, "a", "one").await;
            }
            let admitted = directory.admit("global", node.gate.region());
            let (outbox, waiting) = Outbox::new();
            let asked = Arc::new(Asked {
                route: Arc::new(admitted.expect("admitted").of_key(b"a")),
                outbox,
                metrics: Metrics::new(),
            });
            for (id, kind, index) in [(1, Kind::Put, 5), (2, Kind::Delete, 7), (3, Kind::Put, 6)] {
                let answer = raft::Answer {
                    outcome: Outcome::Written {
                        version: id,
                        before: None,
                    },
                    index: Index(index),
                    token: Bytes::from_static(b"given"),
                };
                asked.clone().reply(id, kind, Ok(answer));
            }
            let counted = Counted::begin(node.env.clone(), Metrics::new());
            let slots = Arc::new(Semaphore::new(0));
            let reader = node.env.spawn("reader", async {});
            let mut replies = Replies::new(waiting, slots.clone(), counted, reader);
            frames.push(replies.next().await.expect("a frame").expect("sound"));
            assert_eq!(slots.available_permits(), 3);
        }
        let tokens = |frame: &v1::SessionResponse| -> Vec<Bytes> {
            let tokens = frame.results.iter().map(|result| match &result.result {
                Some(Answer::Put(put)) => put.token.clone(),
                Some(Answer::Delete(delete)) => delete.token.clone(),
                other => panic!("{other:?}"),
            });
            tokens.collect()
        };
        assert_eq!(tokens(&frames[0]), ["given"; 3]);
        assert!(frames[0].token.is_empty());
        assert_eq!(tokens(&frames[1]), [""; 3]);
        let token = Token::decode(&frames[1].token).expect("a token");
        let positions: Vec<_> = token.positions().collect();
        let [(_, position)] = &positions[..] else {
            panic!("{positions:?}");
        };
        assert_eq!(position.index.get(), 7);
    }
}
