//! How many operations a session carries: `cargo bench -p domicile-client`.

use std::time::Duration;

use domicile_client::{Client, Transport};
use domicile_proto::v1;
use domicile_proto::v1::kv_service_server::{KvService, KvServiceServer};
use futures::{Stream, StreamExt, stream};
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

/// Answers reads with 100 bytes without looking anything up.
struct Echo;

#[tonic::async_trait]
impl KvService for Echo {
    async fn put(&self, _: Request<v1::PutRequest>) -> Result<Response<v1::PutResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn get(&self, r: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        Ok(Response::new(got(r.into_inner().key)))
    }
    async fn delete(
        &self,
        _: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn scan(
        &self,
        _: Request<v1::ScanRequest>,
    ) -> Result<Response<v1::ScanResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn locate(
        &self,
        _: Request<v1::LocateRequest>,
    ) -> Result<Response<v1::LocateResponse>, Status> {
        Ok(Response::new(v1::LocateResponse::default()))
    }
    async fn register(
        &self,
        _: Request<v1::RegisterRequest>,
    ) -> Result<Response<v1::RegisterResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    type SessionStream =
        std::pin::Pin<Box<dyn Stream<Item = Result<v1::SessionResponse, Status>> + Send>>;
    async fn session(
        &self,
        r: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let answers = r.into_inner().map(|frame| {
            let operations = frame?.operations.into_iter();
            let results = operations.filter_map(|operation| match operation.operation {
                Some(v1::session_operation::Operation::Get(get)) => Some(v1::SessionResult {
                    id: operation.id,
                    result: Some(v1::session_result::Result::Get(got(get.key))),
                }),
                _ => None,
            });
            Ok(v1::SessionResponse {
                results: results.collect(),
                meta: Some(v1::ReadMeta {
                    served_by: "eu/1".into(),
                    ..v1::ReadMeta::default()
                }),
                ..v1::SessionResponse::default()
            })
        });
        Ok(Response::new(answers.boxed()))
    }
}

fn got(key: bytes::Bytes) -> v1::GetResponse {
    v1::GetResponse {
        record: Some(v1::Record {
            key,
            value: bytes::Bytes::from_static(&[7; 100]),
            version: 1 << 60,
        }),
        meta: None,
    }
}

/// The processor time of this thread.
fn thread_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    let nanoseconds = text.split(' ').next().and_then(|n| n.parse().ok());
    Duration::from_nanos(nanoseconds.expect("a number"))
}

#[allow(clippy::disallowed_methods, reason = "it measures")]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}

fn main() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    listener.set_nonblocking(true).expect("a socket");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
            let server = tonic::transport::Server::builder()
                .initial_stream_window_size(4 << 20)
                .add_service(KvServiceServer::new(Echo));
            server
                .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)))
                .await
                .expect("serves");
        });
    });
    for (transport, threads, callers, seconds) in [
        (Transport::Session, 0, 1, 2),
        (Transport::Session, 0, 64, 2),
        (Transport::Session, 0, 256, 3),
        (Transport::Session, 0, 2048, 3),
        (Transport::Session, 2, 256, 3),
        (Transport::Unary, 0, 256, 2),
    ] {
        let runtime = match threads {
            0 => tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build(),
            _ => tokio::runtime::Builder::new_multi_thread()
                .worker_threads(threads)
                .enable_all()
                .build(),
        };
        runtime.expect("a runtime").block_on(async move {
            let client = Client::builder()
                .endpoints([address.to_string()])
                .transport(transport)
                .connect();
            let tag = client.await.expect("connects").tag("eu").expect("a tag");
            let (started, cpu) = (now(), thread_time());
            let until = started + Duration::from_secs(seconds);
            let tasks = (0..callers).map(|_| {
                let tag = tag.clone();
                tokio::spawn(async move {
                    let mut count = 0_u64;
                    let mut longest = Duration::ZERO;
                    let mut at = now();
                    while at < until {
                        tag.get("user/123456").local().send().await.expect("get");
                        count += 1;
                        let then = std::mem::replace(&mut at, now());
                        longest = longest.max(at - then);
                    }
                    (count, longest)
                })
            });
            let tasks: Vec<_> = tasks.collect();
            let (count, longest) = stream::iter(tasks)
                .then(|task| task)
                .fold((0, Duration::ZERO), |(count, longest), task| async move {
                    let (more, long) = task.expect("runs");
                    (count + more, longest.max(long))
                })
                .await;
            let rate = count as f64 / started.elapsed().as_secs_f64();
            let cpu = (thread_time() - cpu).as_nanos() as u64 / count.max(1);
            println!(
                "{transport:?} threads={threads} callers={callers}: {rate:.0}/s, \
                 mean {:.1} µs, longest {longest:?}, {cpu} ns of this thread each",
                callers as f64 / rate * 1e6
            );
        });
    }
}
