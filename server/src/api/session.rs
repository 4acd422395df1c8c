//! The session stream: many operations with ids, several in a frame, answered
//! in any order.
//!
//! Local gets of a frame are answered at once. Strong gets of a frame wait for
//! one read barrier together. Gets of more bytes than one message takes are
//! answered in several frames, each with its own position. Writes go to the
//! group in one piece; each is answered when its log entry is applied, gathered
//! with whatever else is ready. A session with too many operations unanswered
//! is not read from until answers have gone out (backpressure).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use domicile_proto::address::RegionName;
use domicile_proto::limits::{SESSION_IN_FLIGHT_MAX, SESSION_OPERATIONS_MAX};
use domicile_proto::v1;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tracing::instrument;
use v1::session_operation::Operation;
use v1::session_result::Result as Answer;

use crate::api::replies::{Asked, Counted, Outbox, Replies, result};
use crate::api::status::failure;
use crate::env::Env;
use crate::error::{Error, Reason, Result};
use crate::kv::{self, Admitted, ReadOptions, Route, Scanner, Store, check_key};
use crate::raft::{Kind, Replier, Reply, Write};
use crate::telemetry::{self, Metrics};

/// Begins to serve a session.
pub(super) fn serve(
    env: &Env,
    store: Arc<Store>,
    metrics: Metrics,
    (caller, scanner): (RegionName, Scanner),
    requests: Streaming<v1::SessionRequest>,
    closing: CancellationToken,
) -> Replies {
    let (outbox, waiting) = Outbox::new();
    let slots = Arc::new(Semaphore::new(SESSION_IN_FLIGHT_MAX));
    let counted = Counted::begin(env.clone(), metrics.clone());
    let session = Session {
        env: env.clone(),
        store,
        metrics,
        caller,
        scanner,
        outbox,
        slots: slots.clone(),
    };
    let reader = env.spawn("session", session.run(requests, closing));
    Replies::new(waiting, slots, counted, reader)
}

struct Session {
    env: Env,
    store: Arc<Store>,
    metrics: Metrics,
    caller: RegionName,
    scanner: Scanner,
    outbox: Outbox,
    slots: Arc<Semaphore>,
}

/// What a frame asks of one range.
struct Batch {
    route: Arc<Route>,
    local: Vec<(u64, Bytes)>,
    strong: Vec<(u64, Bytes)>,
    writes: Vec<(Write, Reply)>,
    /// Who hears what comes of the writes, once there are any.
    asked: Option<Arc<Asked>>,
}

/// What a frame asks, by range.
#[derive(Default)]
struct Gathered {
    /// Few: a frame is of one tag, and most tags have one range.
    batches: Vec<Batch>,
}

impl Gathered {
    /// The batch of the range that has a key.
    fn of(&mut self, admitted: &Arc<Admitted>, key: &[u8]) -> &mut Batch {
        let known = |batch: &Batch| batch.route.span.covers(key);
        let at = self.batches.iter().position(known);
        let at = at.unwrap_or_else(|| {
            self.batches.push(Batch {
                route: Arc::new(admitted.of_key(key)),
                local: Vec::new(),
                strong: Vec::new(),
                writes: Vec::new(),
                asked: None,
            });
            self.batches.len() - 1
        });
        &mut self.batches[at]
    }
}

impl Session {
    async fn run(self, mut requests: Streaming<v1::SessionRequest>, closing: CancellationToken) {
        loop {
            let frame = tokio::select! {
                frame = requests.message() => frame,
                () = closing.cancelled() => {
                    let error = Error::new(
                        Reason::ShuttingDown,
                        "the node is shutting down; go on at another node",
                    );
                    self.outbox.close(error);
                    return;
                }
            };
            let frame = match frame {
                Ok(Some(frame)) => frame,
                Ok(None) | Err(_) => return,
            };
            if frame.operations.len() > SESSION_OPERATIONS_MAX {
                let error = Error::invalid(format!(
                    "a frame holds at most {SESSION_OPERATIONS_MAX} operations"
                ));
                self.outbox.close(error);
                return;
            }
            let Ok(slots) = self.slots.acquire_many(frame.operations.len() as u32).await else {
                return;
            };
            // Given back when the answers go out.
            slots.forget();
            self.serve(frame);
        }
    }

    #[instrument(level = "debug", skip_all, fields(operations = frame.operations.len()))]
    fn serve(&self, frame: v1::SessionRequest) {
        let admitted = match self.store.admit(&frame.tag, &self.caller) {
            Ok(admitted) => admitted,
            Err(error) => {
                for operation in frame.operations {
                    let error = error.again();
                    self.outbox.fail(operation.id, error);
                }
                return;
            }
        };
        let mut gathered = Gathered::default();
        for v1::SessionOperation { id, operation } in frame.operations {
            match operation {
                // Gets are gathered, and one that is malformed fails alone.
                Some(Operation::Get(get)) => match asked(&get) {
                    Ok(options) if options.is_local() => {
                        gathered.of(&admitted, &get.key).local.push((id, get.key));
                    }
                    Ok(options) if options == ReadOptions::default() => {
                        gathered.of(&admitted, &get.key).strong.push((id, get.key));
                    }
                    Ok(options) => {
                        let route = admitted.of_key(&get.key);
                        self.get(Arc::new(route), vec![(id, get.key)], options);
                    }
                    Err(error) => self.outbox.fail(id, error),
                },
                Some(Operation::Put(put)) => {
                    let batch = gathered.of(&admitted, &put.key);
                    self.write(batch, (id, Kind::Put), kv::put(put));
                }
                Some(Operation::Delete(delete)) => {
                    let batch = gathered.of(&admitted, &delete.key);
                    self.write(batch, (id, Kind::Delete), kv::delete(delete));
                }
                Some(Operation::Register(register)) => {
                    let batch = gathered.of(&admitted, &[]);
                    self.write(batch, (id, Kind::Register), Ok(kv::register(register)));
                }
                Some(Operation::Scan(scan)) => self.scan(id, admitted.clone(), scan),
                None => self.outbox.fail(
                    id,
                    Error::new(Reason::Unsupported, "the operation is not known here"),
                ),
            }
        }
        for batch in gathered.batches {
            self.serve_batch(batch);
        }
    }

    fn serve_batch(&self, batch: Batch) {
        if !batch.writes.is_empty() {
            self.store.write_each(&batch.route, batch.writes);
        }
        if !batch.local.is_empty() {
            self.get_local(&batch.route, batch.local);
        }
        if !batch.strong.is_empty() {
            self.get(batch.route, batch.strong, ReadOptions::default());
        }
    }

    /// Adds a write to its batch; one that is malformed is answered at once.
    fn write(&self, batch: &mut Batch, (id, kind): (u64, Kind), write: Result<Write>) {
        let asked = batch.asked.get_or_insert_with(|| {
            Arc::new(Asked {
                route: batch.route.clone(),
                outbox: self.outbox.clone(),
                metrics: self.metrics.clone(),
            })
        });
        let asked = asked.clone();
        match write {
            Ok(write) => batch.writes.push((write, Reply::through(asked, id, kind))),
            Err(refused) => asked.reply(id, kind, Err(refused)),
        }
    }

    /// Answers gets from what this node has, in as many frames as it takes.
    fn get_local(&self, route: &Arc<Route>, mut gets: Vec<(u64, Bytes)>) {
        while !gets.is_empty() {
            let mut results = Vec::with_capacity(gets.len());
            let mut failed = Vec::with_capacity(gets.len());
            let mut next = gets.iter();
            let keys = gets.iter().map(|(_, key)| key.clone());
            let meta = self.store.get_local(route, keys, |record| {
                let (id, _) = *next.next().expect("one answer for each key");
                failed.push(record.as_ref().err().map(|e| e.reason));
                let answer = match record {
                    Ok(record) => Answer::Get(v1::GetResponse { record, meta: None }),
                    Err(error) => Answer::Failure(failure(error)),
                };
                results.push(result(id, answer));
            });
            let Some(meta) = meta else {
                // The copy here cannot be read; what is done then takes its time.
                return self.get(route.clone(), gets, ReadOptions::local());
            };
            if let Some(lag_ms) = meta.lag_ms {
                self.metrics
                    .observe_staleness(Duration::from_millis(lag_ms));
            }
            gets.drain(..results.len());
            let refused = self.outbox.gets(results, meta);
            for failed in failed {
                self.metrics
                    .observe_operation(telemetry::Operation::Get, refused.or(failed));
            }
        }
    }

    /// Answers gets once their level is met, in as many frames as it takes.
    fn get(&self, route: Arc<Route>, gets: Vec<(u64, Bytes)>, options: ReadOptions) {
        let store = self.store.clone();
        let metrics = self.metrics.clone();
        let outbox = self.outbox.clone();
        self.env.spawn_brief(async move {
            let (ids, keys): (Vec<u64>, Vec<Bytes>) = gets.into_iter().unzip();
            let mut done = 0;
            while done < ids.len() {
                let answer = tokio::select! {
                    answer = store.get(&route, &keys[done..], &options) => answer,
                    () = outbox.gone() => return,
                };
                let (records, meta) = match answer {
                    Ok(answer) => answer,
                    Err(error) => {
                        for id in &ids[done..] {
                            metrics
                                .observe_operation(telemetry::Operation::Get, Some(error.reason));
                            outbox.fail(*id, error.again());
                        }
                        return;
                    }
                };
                let results: Vec<_> = ids[done..]
                    .iter()
                    .zip(records)
                    .map(|(id, record)| {
                        let get = v1::GetResponse { record, meta: None };
                        result(*id, Answer::Get(get))
                    })
                    .collect();
                let count = results.len();
                done += count;
                let refused = outbox.gets(results, meta);
                for _ in 0..count {
                    metrics.observe_operation(telemetry::Operation::Get, refused);
                }
            }
        });
    }

    fn scan(&self, id: u64, admitted: Arc<Admitted>, scan: v1::ScanRequest) {
        let store = self.store.clone();
        let metrics = self.metrics.clone();
        let outbox = self.outbox.clone();
        let scanner = self.scanner.clone();
        self.env.spawn_brief(async move {
            let page = tokio::select! {
                page = store.scan(&admitted, scan, &scanner) => page,
                () = outbox.gone() => return,
            };
            let failed = match page {
                Ok(page) => outbox.page(id, page),
                Err(error) => {
                    let reason = error.reason;
                    outbox.fail(id, error);
                    Some(reason)
                }
            };
            metrics.observe_operation(telemetry::Operation::Scan, failed);
        });
    }
}

/// How a get is to be read, if it is well formed.
fn asked(get: &v1::GetRequest) -> Result<ReadOptions> {
    check_key(&get.key)?;
    ReadOptions::from_wire(get.options.as_ref())
}
