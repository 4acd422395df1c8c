//! The adapters of Domicile speak its protocol: both load a service that
//! keeps records in memory, and a service that answers wrongly is found out.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use domicile_benches::adapter::{Adapter, Connected, Place, Workload};
use domicile_benches::load::Window;
use domicile_benches::records::Records;
use domicile_proto::TAG_METADATA;
use domicile_proto::v1::kv_service_server::{KvService, KvServiceServer};
use domicile_proto::v1::session_operation::Operation;
use domicile_proto::v1::session_result;
use domicile_proto::v1::{
    DeleteRequest, DeleteResponse, GetRequest, GetResponse, LocateRequest, LocateResponse,
    PutRequest, PutResponse, ReadMeta, Record, RegisterRequest, RegisterResponse, ScanRequest,
    ScanResponse, SessionRequest, SessionResponse, SessionResult,
};
use parking_lot::Mutex;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

const TAG: &str = "orders";

const WINDOW: Window = Window {
    warm_up: Duration::from_millis(10),
    duration: Duration::from_millis(100),
};

/// A service of one tag that keeps its records in memory.
#[derive(Clone, Default)]
struct InMemory {
    /// The values by key.
    records: Arc<Mutex<BTreeMap<Bytes, Bytes>>>,
    /// Whether reads answer a value that nobody has put.
    wrong: bool,
}

impl InMemory {
    fn put(&self, request: PutRequest) -> PutResponse {
        self.records.lock().insert(request.key, request.value);
        PutResponse {
            version: 1,
            ..PutResponse::default()
        }
    }

    fn get(&self, request: GetRequest) -> GetResponse {
        let value = self.records.lock().get(&request.key).cloned();
        let value = if self.wrong {
            Some(Bytes::from_static(b"something else"))
        } else {
            value
        };
        GetResponse {
            record: value.map(|value| Record {
                key: request.key,
                value,
                version: 1,
            }),
            meta: Some(ReadMeta {
                level: request.options.map_or(1, |options| options.level.max(1)),
                served_by: "eu/1".to_owned(),
                ..ReadMeta::default()
            }),
        }
    }

    fn frame(&self, request: SessionRequest) -> SessionResponse {
        assert_eq!(request.tag, TAG);
        let results = request.operations.into_iter().map(|operation| {
            let result = match operation.operation {
                Some(Operation::Put(put)) => session_result::Result::Put(self.put(put)),
                Some(Operation::Get(get)) => session_result::Result::Get(self.get(get)),
                Some(Operation::Register(_)) => session_result::Result::Register(registered()),
                other => panic!("the load generator does not send {other:?}"),
            };
            SessionResult {
                id: operation.id,
                result: Some(result),
            }
        });
        SessionResponse {
            results: results.collect(),
            ..SessionResponse::default()
        }
    }
}

/// Every unary call names the tag.
fn require_tag<M>(request: Request<M>) -> M {
    let tag = request.metadata().get(TAG_METADATA);
    assert_eq!(tag.and_then(|tag| tag.to_str().ok()), Some(TAG));
    request.into_inner()
}

fn registered() -> RegisterResponse {
    RegisterResponse {
        client: vec![1; 16].into(),
    }
}

#[tonic::async_trait]
impl KvService for InMemory {
    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        Ok(Response::new(InMemory::put(self, require_tag(request))))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        Ok(Response::new(InMemory::get(self, require_tag(request))))
    }

    async fn delete(&self, _: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        Err(Status::unimplemented("not loaded"))
    }

    async fn scan(&self, _: Request<ScanRequest>) -> Result<Response<ScanResponse>, Status> {
        Err(Status::unimplemented("not loaded"))
    }

    async fn locate(&self, _: Request<LocateRequest>) -> Result<Response<LocateResponse>, Status> {
        Ok(Response::new(LocateResponse::default()))
    }

    async fn register(
        &self,
        _: Request<RegisterRequest>,
    ) -> Result<Response<RegisterResponse>, Status> {
        Ok(Response::new(registered()))
    }

    type SessionStream = Pin<Box<dyn Stream<Item = Result<SessionResponse, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let service = self.clone();
        let frames = request.into_inner();
        let answers = frames.map(move |frame| frame.map(|frame| service.frame(frame)));
        Ok(Response::new(Box::pin(answers)))
    }
}

/// Serves in the background of the test and tells where.
async fn serve(service: InMemory) -> Place {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a free port");
    let endpoint = listener.local_addr().expect("bound").to_string();
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(KvServiceServer::new(service))
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    Place {
        endpoints: vec![endpoint],
        tag: TAG.to_owned(),
        channels: 2,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_adapters_load_a_service() {
    let place = serve(InMemory::default()).await;
    for adapter in [Adapter::DomicileUnary, Adapter::DomicileSession] {
        let connected = Connected::connect(adapter, &place).await.expect("connects");
        let records = Arc::new(Records::new(100, 256));
        connected.fill(&records).await.expect("every put succeeds");
        for workload in [Workload::Put, Workload::StrongGet, Workload::LocalGet] {
            let measured = connected
                .run(workload, 16, &records, WINDOW)
                .await
                .expect("runs");
            assert!(measured.operations > 0, "{workload:?}: {measured:?}");
            assert_eq!(measured.errors_total() + measured.wrong, 0, "{measured:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_answers_are_found_out() {
    let place = serve(InMemory {
        wrong: true,
        ..InMemory::default()
    })
    .await;
    for adapter in [Adapter::DomicileUnary, Adapter::DomicileSession] {
        let connected = Connected::connect(adapter, &place).await.expect("connects");
        let records = Arc::new(Records::new(100, 256));
        let measured = connected
            .run(Workload::StrongGet, 4, &records, WINDOW)
            .await
            .expect("runs");
        assert!(
            measured.wrong > 0 && measured.operations == 0,
            "{measured:?}"
        );
    }
}
