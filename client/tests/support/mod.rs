//! A server that answers as a test tells it, over a real socket.
#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use domicile_proto::reason::Reason;
use domicile_proto::v1;
use domicile_proto::v1::admin_service_server::{AdminService, AdminServiceServer};
use domicile_proto::v1::kv_service_server::{KvService, KvServiceServer};
use domicile_proto::v1::session_operation::Operation;
use domicile_proto::v1::session_result::Result as Outcome;
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt};

/// What the server does with an operation.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// Does it.
    Serve,
    /// Does it, and breaks the stream instead of answering.
    ServeAndBreak,
    /// Breaks the stream without doing it.
    Break,
    /// Does it and never answers.
    ServeAndHush,
    /// Never answers.
    Hush,
    /// Fails.
    Fail(v1::Failure),
}

type Script = Box<dyn FnMut(usize, &Operation) -> Act + Send>;

/// What the server holds and saw.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) records: BTreeMap<(String, Bytes), (Bytes, u64)>,
    /// Outcomes by client and sequence.
    pub(crate) outcomes: BTreeMap<(Bytes, u64), Outcome>,
    pub(crate) operations: Vec<(String, Operation)>,
    pub(crate) frames: Vec<usize>,
    pub(crate) sessions: usize,
    /// How often it was asked whether it serves a tag.
    pub(crate) located: usize,
    /// How many clients were registered. They count as no operation.
    pub(crate) registered: u64,
    pub(crate) applied: usize,
    pub(crate) version: u64,
}

/// A node for tests.
#[derive(Clone)]
pub(crate) struct Fake {
    pub(crate) seen: Arc<Mutex<Seen>>,
    script: Arc<Mutex<Script>>,
    count: Arc<AtomicUsize>,
    name: &'static str,
    /// What is answered to everything of a tag that is not served here.
    away: Arc<Mutex<Option<v1::Failure>>>,
    /// Its cluster, in hex.
    cluster: &'static str,
}

/// The cluster of a [`Fake`] that says no other.
const CLUSTER: &str = "6f3c1d0a000040008000000000000001";

/// A running [`Fake`].
pub(crate) struct Running {
    pub(crate) fake: Fake,
    pub(crate) address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Running {
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends it with all its connections.
    pub(crate) async fn stop(mut self) -> (Fake, SocketAddr) {
        self.stop.take();
        self.task.abort();
        (&mut self.task).await.ok();
        (self.fake.clone(), self.address)
    }
}

pub(crate) fn failure(reason: Reason, code: Code) -> v1::Failure {
    v1::Failure {
        code: code as i32,
        reason: reason.name().into(),
        message: reason.next().into(),
        ..v1::Failure::default()
    }
}

/// A port of before may be the source port of somebody's connection for a
/// moment, even of a client's attempt to reach it.
async fn bind(address: SocketAddr) -> TcpListener {
    for _ in 0..100 {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
        }
    }
    panic!("{address} stays in use");
}

fn status(failure: v1::Failure) -> Status {
    let mut details = ErrorDetails::with_error_info(
        failure.reason,
        domicile_proto::ERROR_DOMAIN,
        failure.metadata.into_iter().collect::<HashMap<_, _>>(),
    );
    if failure.retry_after_ms > 0 {
        details.set_retry_info(Some(std::time::Duration::from_millis(
            failure.retry_after_ms,
        )));
    }
    Status::with_error_details(Code::from_i32(failure.code), failure.message, details)
}

impl Fake {
    /// Serves everything.
    pub(crate) fn new() -> Self {
        Self::scripted(|_, _| Act::Serve)
    }

    /// The script is given the number of the operation, from 0.
    pub(crate) fn scripted(script: impl FnMut(usize, &Operation) -> Act + Send + 'static) -> Self {
        Fake {
            seen: Arc::default(),
            script: Arc::new(Mutex::new(Box::new(script))),
            count: Arc::default(),
            name: "eu/1",
            away: Arc::default(),
            cluster: CLUSTER,
        }
    }

    pub(crate) async fn start(self) -> Running {
        self.start_at(([127, 0, 0, 1], 0).into()).await
    }

    pub(crate) async fn start_at(self, address: SocketAddr) -> Running {
        let listener = bind(address).await;
        let address = listener.local_addr().expect("bound");
        let (stop, stopped) = oneshot::channel::<()>();
        let kv = KvServiceServer::new(self.clone()).max_decoding_message_size(8 << 20);
        let admin = AdminServiceServer::new(self.clone());
        // Its own runtime dies with all connections, as a process would.
        let (done, ended) = oneshot::channel();
        std::thread::spawn(move || {
            let listener = listener.into_std().expect("a socket");
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).expect("a socket");
                let server = tonic::transport::Server::builder()
                    .add_service(kv)
                    .add_service(admin)
                    .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)));
                tokio::select! {
                    result = server => result.expect("serves"),
                    _ = stopped => {}
                }
            });
            drop(runtime);
            done.send(()).ok();
        });
        let task = tokio::spawn(async move {
            ended.await.ok();
        });
        Running {
            fake: self,
            address,
            stop: Some(stop),
            task,
        }
    }

    fn meta(&self) -> v1::ReadMeta {
        v1::ReadMeta {
            level: v1::Level::Strong as i32,
            served_by: self.name.into(),
            as_of: self.seen.lock().version,
            lag_ms: Some(7),
            token: Bytes::from_static(b"token"),
        }
    }

    /// Is of another cluster.
    pub(crate) fn of_cluster(mut self, cluster: &'static str) -> Self {
        self.cluster = cluster;
        self
    }

    /// The same answer with the name of the cluster.
    fn named<T>(&self, answer: T) -> Response<T> {
        let mut answer = Response::new(answer);
        let cluster = self.cluster.parse().expect("hex");
        let metadata = answer.metadata_mut();
        metadata.insert(domicile_proto::CLUSTER_METADATA, cluster);
        answer
    }

    /// Serves nothing, and names the nodes that do.
    pub(crate) fn away(self, endpoints: &str) -> Self {
        let facts = [("endpoints".to_owned(), endpoints.to_owned())];
        let refused = v1::Failure {
            metadata: facts.into_iter().collect(),
            ..failure(Reason::NotHeldHere, Code::FailedPrecondition)
        };
        *self.away.lock() = Some(refused);
        self
    }

    fn decide(&self, tag: &str, operation: &Operation) -> Act {
        if let Some(failure) = self.away.lock().clone() {
            return Act::Fail(failure);
        }
        if matches!(operation, Operation::Register(_)) {
            return Act::Serve;
        }
        let number = self.count.fetch_add(1, Ordering::SeqCst);
        self.seen
            .lock()
            .operations
            .push((tag.to_owned(), operation.clone()));
        (self.script.lock())(number, operation)
    }

    fn serve(&self, tag: &str, operation: Operation) -> Outcome {
        let meta = self.meta();
        let mut seen = self.seen.lock();
        let id = match &operation {
            Operation::Put(put) => put.request_id.clone(),
            Operation::Delete(delete) => delete.request_id.clone(),
            _ => None,
        }
        .map(|id| (id.client, id.sequence));
        if let Some(outcome) = id.as_ref().and_then(|id| seen.outcomes.get(id)) {
            return outcome.clone();
        }
        let outcome = seen.apply(tag, operation, meta);
        if let Some(id) = id {
            seen.outcomes.insert(id, outcome.clone());
        }
        outcome
    }
}

impl Seen {
    fn holds(&self, at: &(String, Bytes), condition: &Option<v1::Condition>) -> bool {
        use v1::condition::Condition;
        let version = self.records.get(at).map(|(_, version)| *version);
        match condition.as_ref().and_then(|c| c.condition) {
            None => true,
            Some(Condition::IfAbsent(_)) => version.is_none(),
            Some(Condition::IfVersion(wanted)) => version == Some(wanted),
        }
    }

    fn apply(&mut self, tag: &str, operation: Operation, meta: v1::ReadMeta) -> Outcome {
        let refused = || Outcome::Failure(failure(Reason::ConditionFailed, Code::Aborted));
        match operation {
            Operation::Put(put) => {
                let at = (tag.to_owned(), put.key);
                if !self.holds(&at, &put.condition) {
                    return refused();
                }
                self.applied += 1;
                self.version += 1;
                self.records.insert(at, (put.value, self.version));
                Outcome::Put(v1::PutResponse {
                    version: self.version,
                    token: Bytes::new(),
                })
            }
            Operation::Delete(delete) => {
                let at = (tag.to_owned(), delete.key);
                if !self.holds(&at, &delete.condition) {
                    return refused();
                }
                self.applied += 1;
                self.version += 1;
                Outcome::Delete(v1::DeleteResponse {
                    version: self.version,
                    existed: self.records.remove(&at).is_some(),
                    token: Bytes::from_static(b"token"),
                })
            }
            Operation::Get(get) => {
                let at = (tag.to_owned(), get.key.clone());
                let record = self.records.get(&at).map(|(value, version)| v1::Record {
                    key: get.key,
                    value: value.clone(),
                    version: *version,
                });
                Outcome::Get(v1::GetResponse { record, meta: None })
            }
            Operation::Scan(scan) => Outcome::Scan(self.scan(tag, scan, meta)),
            Operation::Register(_) => {
                self.registered += 1;
                let client = u128::from(self.registered).to_be_bytes().to_vec().into();
                Outcome::Register(v1::RegisterResponse { client })
            }
        }
    }

    fn scan(&self, tag: &str, scan: v1::ScanRequest, meta: v1::ReadMeta) -> v1::ScanResponse {
        let size = match scan.page_size {
            0 => 1000,
            size => size as usize,
        };
        let from = scan.start.clone().max(scan.page_token.clone());
        let mut records: Vec<_> = self
            .records
            .iter()
            .filter(|((held, key), _)| {
                held == tag && *key >= from && (scan.end.is_empty() || *key < scan.end)
            })
            .take(size + 1)
            .map(|((_, key), (value, version))| v1::Record {
                key: key.clone(),
                value: value.clone(),
                version: *version,
            })
            .collect();
        let next_page_token = match records.len() > size {
            true => records.pop().expect("one more").key,
            false => Bytes::new(),
        };
        v1::ScanResponse {
            records,
            next_page_token,
            meta: Some(meta),
        }
    }
}

impl Fake {
    async fn unary<R>(
        &self,
        metadata: &tonic::metadata::MetadataMap,
        operation: Operation,
        pick: impl FnOnce(Outcome) -> Option<R>,
    ) -> Result<Response<R>, Status> {
        let tag = metadata
            .get(domicile_proto::TAG_METADATA)
            .and_then(|tag| tag.to_str().ok())
            .ok_or_else(|| Status::invalid_argument("no tag"))?
            .to_owned();
        let outcome = match self.decide(&tag, &operation) {
            Act::Serve => self.serve(&tag, operation),
            Act::ServeAndBreak => {
                self.serve(&tag, operation);
                return Err(Status::unavailable("broken"));
            }
            Act::Break => return Err(Status::unavailable("broken")),
            Act::ServeAndHush => {
                self.serve(&tag, operation);
                futures::future::pending().await
            }
            Act::Hush => futures::future::pending().await,
            Act::Fail(failure) => Outcome::Failure(failure),
        };
        match outcome {
            Outcome::Failure(failure) => Err(status(failure)),
            outcome => pick(outcome)
                .map(Response::new)
                .ok_or_else(|| Status::internal("the wrong outcome")),
        }
    }

    /// Answers a frame; `None` breaks the stream.
    fn frame(&self, frame: v1::SessionRequest) -> Option<v1::SessionResponse> {
        let mut results = Vec::new();
        let registers = |operation: &&v1::SessionOperation| {
            matches!(operation.operation, Some(Operation::Register(_)))
        };
        let registered = frame.operations.iter().filter(registers).count();
        if registered < frame.operations.len() {
            let counted = frame.operations.len() - registered;
            self.seen.lock().frames.push(counted);
        }
        for operation in frame.operations {
            let id = operation.id;
            let operation = operation.operation.expect("an operation");
            let outcome = match self.decide(&frame.tag, &operation) {
                Act::Serve => self.serve(&frame.tag, operation),
                Act::ServeAndBreak => {
                    self.serve(&frame.tag, operation);
                    return None;
                }
                Act::Break => return None,
                Act::ServeAndHush => {
                    self.serve(&frame.tag, operation);
                    continue;
                }
                Act::Hush => continue,
                Act::Fail(failure) => Outcome::Failure(failure),
            };
            results.push(v1::SessionResult {
                id,
                result: Some(outcome),
            });
        }
        // Any order is allowed.
        results.reverse();
        Some(v1::SessionResponse {
            results,
            meta: Some(self.meta()),
            closing: None,
            token: Bytes::from_static(b"token"),
        })
    }
}

#[tonic::async_trait]
impl KvService for Fake {
    async fn put(&self, r: Request<v1::PutRequest>) -> Result<Response<v1::PutResponse>, Status> {
        let (metadata, _, body) = r.into_parts();
        self.unary(&metadata, Operation::Put(body), |outcome| match outcome {
            Outcome::Put(put) => Some(v1::PutResponse {
                token: Bytes::from_static(b"token"),
                ..put
            }),
            _ => None,
        })
        .await
    }

    async fn get(&self, r: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        let (metadata, _, body) = r.into_parts();
        let meta = self.meta();
        self.unary(&metadata, Operation::Get(body), |outcome| match outcome {
            Outcome::Get(get) => Some(v1::GetResponse {
                meta: Some(meta),
                ..get
            }),
            _ => None,
        })
        .await
    }

    async fn delete(
        &self,
        r: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        let (metadata, _, body) = r.into_parts();
        self.unary(
            &metadata,
            Operation::Delete(body),
            |outcome| match outcome {
                Outcome::Delete(delete) => Some(delete),
                _ => None,
            },
        )
        .await
    }

    async fn scan(
        &self,
        r: Request<v1::ScanRequest>,
    ) -> Result<Response<v1::ScanResponse>, Status> {
        let (metadata, _, body) = r.into_parts();
        self.unary(&metadata, Operation::Scan(body), |outcome| match outcome {
            Outcome::Scan(scan) => Some(scan),
            _ => None,
        })
        .await
    }

    async fn locate(
        &self,
        _: Request<v1::LocateRequest>,
    ) -> Result<Response<v1::LocateResponse>, Status> {
        self.seen.lock().located += 1;
        match self.away.lock().clone() {
            Some(failure) => Err(status(failure)),
            None => Ok(self.named(v1::LocateResponse::default())),
        }
    }

    async fn register(
        &self,
        r: Request<v1::RegisterRequest>,
    ) -> Result<Response<v1::RegisterResponse>, Status> {
        let (metadata, _, body) = r.into_parts();
        let register = Operation::Register(body);
        self.unary(&metadata, register, |outcome| match outcome {
            Outcome::Register(registered) => Some(registered),
            _ => None,
        })
        .await
    }

    type SessionStream = Pin<Box<dyn Stream<Item = Result<v1::SessionResponse, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        self.seen.lock().sessions += 1;
        let mut inbound = request.into_inner();
        let (sender, receiver) = mpsc::channel(8);
        let fake = self.clone();
        tokio::spawn(async move {
            while let Some(Ok(frame)) = inbound.next().await {
                let answer = match fake.frame(frame) {
                    Some(response) if response.results.is_empty() => continue,
                    Some(response) => Ok(response),
                    None => Err(Status::unavailable("broken")),
                };
                let broken = answer.is_err();
                if sender.send(answer).await.is_err() || broken {
                    return;
                }
            }
        });
        Ok(self.named(ReceiverStream::new(receiver).boxed()))
    }
}

/// A cluster of three nodes of which one is gone.
pub(crate) fn cluster_status() -> v1::GetClusterStatusResponse {
    let replica = |node| v1::ReplicaStatus {
        replica: 10 + node,
        node,
        voter: true,
        matched: (node != 3).then_some(41),
        region: "eu".into(),
    };
    v1::GetClusterStatusResponse {
        cluster_id: CLUSTER.into(),
        name: "dev".into(),
        health: v1::Health::Degraded as i32,
        groups: vec![v1::GroupStatus {
            group: 2,
            kind: "data".into(),
            tag: "eu-only".into(),
            leader: Some(1),
            term: 7,
            last_index: 42,
            applied_index: 41,
            replicas: (1..=3).map(replica).collect(),
            health: v1::Health::Degraded as i32,
            role: "home".into(),
        }],
        nodes: nodes(),
        served_by: "eu/1".into(),
        level: 1,
    }
}

fn nodes() -> Vec<v1::NodeStatus> {
    (1..=3)
        .map(|node| v1::NodeStatus {
            node,
            region: "eu".into(),
            address: format!("127.0.0.1:740{node}"),
            reachable: node != 3,
            leads: u32::from(node == 1),
            version: "0.1.0".into(),
            level: if node == 3 { 0 } else { 2 },
            unreached_ms: if node == 3 { 125_000 } else { 0 },
            disk: match node {
                1 => v1::DiskState::Ok.into(),
                2 => v1::DiskState::Full.into(),
                _ => v1::DiskState::Unspecified.into(),
            },
            disk_lack: match node {
                2 => v1::DiskLack::Inodes.into(),
                _ => v1::DiskLack::Unspecified.into(),
            },
            clock_ahead_ms: (node == 2).then_some(-700),
            clock_off: node == 2,
            ..v1::NodeStatus::default()
        })
        .collect()
}

#[tonic::async_trait]
impl AdminService for Fake {
    async fn init_cluster(
        &self,
        r: Request<v1::InitClusterRequest>,
    ) -> Result<Response<v1::InitClusterResponse>, Status> {
        let request = r.into_inner();
        if request.name == "again" {
            return Err(status(failure(
                Reason::AlreadyFormed,
                Code::FailedPrecondition,
            )));
        }
        if request.policy.is_empty() || request.nodes.is_empty() {
            return Err(status(failure(
                Reason::PolicyInvalid,
                Code::InvalidArgument,
            )));
        }
        Ok(Response::new(v1::InitClusterResponse {
            cluster_id: format!("{}-{}", request.nodes[0].region, request.nodes.len()),
            warnings: Vec::new(),
        }))
    }

    async fn get_cluster_status(
        &self,
        _: Request<v1::GetClusterStatusRequest>,
    ) -> Result<Response<v1::GetClusterStatusResponse>, Status> {
        Ok(Response::new(v1::GetClusterStatusResponse {
            cluster_id: self.cluster.into(),
            ..cluster_status()
        }))
    }

    async fn list_nodes(
        &self,
        _: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesResponse>, Status> {
        Ok(Response::new(v1::ListNodesResponse { nodes: nodes() }))
    }

    async fn replace_node(
        &self,
        r: Request<v1::ReplaceNodeRequest>,
    ) -> Result<Response<v1::ReplaceNodeResponse>, Status> {
        let v1::ReplaceNodeRequest { region, node, .. } = r.into_inner();
        match (region.as_str(), node) {
            ("" | "eu", 3) => Ok(Response::new(v1::ReplaceNodeResponse {
                replicas: 2,
                unchanged: region.is_empty(),
            })),
            _ => Err(status(failure(Reason::UnknownNode, Code::NotFound))),
        }
    }

    async fn move_node(
        &self,
        r: Request<v1::MoveNodeRequest>,
    ) -> Result<Response<v1::MoveNodeResponse>, Status> {
        let v1::MoveNodeRequest { region, node, .. } = r.into_inner();
        match (region.as_str(), node) {
            ("eu", 2) => Ok(Response::new(v1::MoveNodeResponse { agreed: true })),
            _ => Err(status(failure(Reason::UnknownNode, Code::NotFound))),
        }
    }

    async fn rebuild_region(
        &self,
        r: Request<v1::RebuildRegionRequest>,
    ) -> Result<Response<v1::RebuildRegionResponse>, Status> {
        match r.into_inner().region.as_str() {
            "ap" => Ok(Response::new(v1::RebuildRegionResponse {
                nodes: 3,
                incarnation: 2,
                mirrors: vec!["global".into()],
                unchanged: false,
            })),
            _ => Err(status(failure(
                Reason::InvalidArgument,
                Code::InvalidArgument,
            ))),
        }
    }

    async fn refill_mirror(
        &self,
        r: Request<v1::RefillMirrorRequest>,
    ) -> Result<Response<v1::RefillMirrorResponse>, Status> {
        match r.into_inner().region.as_str() {
            "us" => Ok(Response::new(v1::RefillMirrorResponse { incarnation: 2 })),
            _ => Err(status(failure(
                Reason::InvalidArgument,
                Code::InvalidArgument,
            ))),
        }
    }

    async fn finalize_upgrade(
        &self,
        _: Request<v1::FinalizeUpgradeRequest>,
    ) -> Result<Response<v1::FinalizeUpgradeResponse>, Status> {
        let done = v1::FinalizeUpgradeResponse {
            before: 1,
            level: 2,
        };
        Ok(Response::new(done))
    }

    async fn transfer_leader(
        &self,
        _: Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::TransferLeaderResponse>, Status> {
        Ok(Response::new(v1::TransferLeaderResponse {}))
    }

    async fn get_placement(
        &self,
        _: Request<v1::GetPlacementRequest>,
    ) -> Result<Response<v1::GetPlacementResponse>, Status> {
        let region = |region: &str, role: &str, may_call| v1::TagRegion {
            region: region.into(),
            may_store: !role.is_empty(),
            may_serve: !role.is_empty(),
            may_call,
            role: role.into(),
        };
        Ok(Response::new(v1::GetPlacementResponse {
            policy_version: 1,
            tags: vec![v1::TagPlacement {
                tag: "eu-shared".into(),
                home: "eu".into(),
                epoch: 1,
                regions: vec![
                    region("ap", "", false),
                    region("eu", "home", true),
                    region("us", "", true),
                ],
            }],
        }))
    }

    async fn get_replication(
        &self,
        _: Request<v1::GetReplicationRequest>,
    ) -> Result<Response<v1::GetReplicationResponse>, Status> {
        Ok(Response::new(v1::GetReplicationResponse {
            outbound: vec![v1::OutboundReplication {
                tag: "global".into(),
                region: "us".into(),
                home_index: 42,
                mirror_index: 40,
                behind_ms: Some(120),
                state: "streaming".into(),
                why: String::new(),
                records: 40,
                range: 16,
            }],
            inbound: Vec::new(),
            lease_ms: 29_000,
            refusals: Vec::new(),
            served_by: "eu/1".into(),
        }))
    }

    async fn audit_node(
        &self,
        _: Request<v1::AuditNodeRequest>,
    ) -> Result<Response<v1::AuditNodeResponse>, Status> {
        Ok(Response::new(v1::AuditNodeResponse {
            report: Some(v1::NodeReport {
                region: "eu".into(),
                node: 1,
                cluster: vec![
                    0x6f, 0x3c, 0x1d, 0x0a, 0, 0, 0x40, 0, 0x80, 0, 0, 0, 0, 0, 0, 1,
                ]
                .into(),
                ..v1::NodeReport::default()
            }),
        }))
    }

    async fn list_regions(
        &self,
        _: Request<v1::ListRegionsRequest>,
    ) -> Result<Response<v1::ListRegionsResponse>, Status> {
        Ok(Response::new(v1::ListRegionsResponse {
            regions: vec![v1::RegionStatus {
                region: "eu".into(),
                jurisdiction: "DE".into(),
                nodes: 3,
                reachable: 2,
                homes: vec!["eu-only".into()],
                mirrors: Vec::new(),
            }],
        }))
    }

    async fn get_policy(
        &self,
        _: Request<v1::GetPolicyRequest>,
    ) -> Result<Response<v1::GetPolicyResponse>, Status> {
        Ok(Response::new(v1::GetPolicyResponse {
            version: 1,
            policy: "schema = \"domicile.policy/v1\"\n".into(),
            digest: "sha256:9f".into(),
        }))
    }
}
