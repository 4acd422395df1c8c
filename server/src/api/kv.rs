//! The unary calls of the data API.

use std::sync::Arc;
use std::time::Duration;

use domicile_proto::CLUSTER_METADATA;
use domicile_proto::address::RegionName;
use domicile_proto::v1;
use domicile_proto::v1::kv_service_server::KvService;
use tonic::{Code, Request, Response, Status, Streaming};
use tracing::instrument;

use crate::api::replies::Replies;
use crate::api::session;
use crate::api::status::{code, code_name, status};
use crate::env::Env;
use crate::error::{Error, Reason, Result};
use crate::kv::{self, Admitted, ReadOptions, Scanner, Store};
use crate::net::Caller;
use crate::raft::{Answer, Write};
use crate::telemetry::{Metrics, Operation};
use tokio_util::sync::CancellationToken;

/// How long a call may take when its caller names no deadline.
const DEADLINE_DEFAULT: Duration = Duration::from_secs(10);

/// The longest deadline that is honoured.
const DEADLINE_MAX: Duration = Duration::from_secs(60);

/// How much before its caller's deadline a call is answered, at most, and at
/// most a tenth of the time: at the deadline itself the transport ends the call
/// and gives no reason.
const ANSWER_MARGIN_MAX: Duration = Duration::from_millis(50);

/// Serves the data API.
#[derive(Clone)]
pub struct KvApi {
    env: Env,
    store: Arc<Store>,
    metrics: Metrics,
    closing: CancellationToken,
}

impl KvApi {
    /// Serves a store until `closing`.
    pub fn new(env: Env, store: Arc<Store>, metrics: Metrics, closing: CancellationToken) -> Self {
        KvApi {
            env,
            store,
            metrics,
            closing,
        }
    }

    /// Where a unary call goes that was admitted in front of this service. Its body
    /// may have taken long to come.
    fn admitted<T>(&self, request: &Request<T>) -> Result<(Arc<Admitted>, Duration)> {
        let admitted = request.extensions().get::<Arc<Admitted>>().cloned();
        let admitted = admitted.ok_or_else(|| Error::internal("a call was not admitted"))?;
        self.store.admits_still(&admitted)?;
        Ok((admitted, deadline(request)))
    }

    /// Serves a unary call, and counts and times it.
    async fn observe<T>(
        &self,
        method: &'static str,
        kind: Operation,
        call: impl Future<Output = Result<T>>,
    ) -> Result<Response<T>, Status> {
        let began = self.env.now();
        let answer = call.await;
        let failed = answer.as_ref().err().map(|error| error.reason);
        self.metrics.observe_operation(kind, failed);
        let code = failed.map_or(Code::Ok, code);
        self.metrics
            .observe_rpc(method, code_name(code), self.env.now() - began);
        answer.map(Response::new).map_err(status)
    }

    /// The same answer with the name of the cluster: a client must not take nodes
    /// of two for one.
    fn named<T>(&self, mut answer: Response<T>) -> Response<T> {
        let cluster = self.store.cluster().map(hex::encode);
        if let Some(cluster) = cluster.and_then(|cluster| cluster.parse().ok()) {
            answer.metadata_mut().insert(CLUSTER_METADATA, cluster);
        }
        answer
    }

    #[instrument(level = "debug", skip_all)]
    async fn write(
        &self,
        admitted: Arc<Admitted>,
        deadline: Duration,
        write: Write,
    ) -> Result<Answer> {
        let route = admitted.of_key(&write.operation.key);
        let written = tokio::time::timeout(deadline, self.store.write(&route, write));
        written.await.unwrap_or_else(|_| Err(outcome_unknown()))
    }
}

/// The region of a caller, as its connection tells. Never a field of the request,
/// and never a guess.
pub(super) fn caller_of(extensions: &http::Extensions) -> Result<RegionName> {
    let caller = extensions.get::<Caller>();
    caller
        .and_then(|caller| caller.region().cloned())
        .ok_or_else(|| {
            Error::new(
                Reason::AccessRegionDenied,
                "nothing tells the region of the caller, so no tag is served; call at a port that \
                 is for callers of a region",
            )
        })
}

/// Who waits for turns at reading pages: the connection.
fn scanner_of(extensions: &http::Extensions) -> Scanner {
    extensions.get::<Scanner>().cloned().unwrap_or_default()
}

fn outcome_unknown() -> Error {
    Error::new(
        Reason::WriteOutcomeUnknown,
        "the deadline passed; the write may or may not have been applied; send it again with the \
         same request id",
    )
}

/// How long a call may take: what its caller says, within limits.
fn deadline<T>(request: &Request<T>) -> Duration {
    let asked = request.metadata().get("grpc-timeout");
    let asked = asked.and_then(|value| parse_timeout(value.to_str().ok()?));
    asked.map_or(DEADLINE_DEFAULT, |asked| {
        let margin = (asked / 10).min(ANSWER_MARGIN_MAX);
        DEADLINE_MAX.min(asked - margin)
    })
}

/// Reads a `grpc-timeout`: digits and a unit (gRPC over HTTP/2, "Timeout").
fn parse_timeout(value: &str) -> Option<Duration> {
    let unit = value.chars().last()?;
    let number: u64 = value.strip_suffix(unit)?.parse().ok()?;
    Some(match unit {
        'H' => Duration::from_secs(number.checked_mul(3600)?),
        'M' => Duration::from_secs(number.checked_mul(60)?),
        'S' => Duration::from_secs(number),
        'm' => Duration::from_millis(number),
        'u' => Duration::from_micros(number),
        'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Bounds a read by its deadline.
async fn within<T>(deadline: Duration, read: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(deadline, read).await.map_err(|_| {
        Error::new(
            Reason::Deadline,
            "the deadline passed before the read was served; try again with a longer one",
        )
    })?
}

#[tonic::async_trait]
impl KvService for KvApi {
    async fn put(
        &self,
        request: Request<v1::PutRequest>,
    ) -> Result<Response<v1::PutResponse>, Status> {
        let put = async {
            let (admitted, deadline) = self.admitted(&request)?;
            let put = kv::put(request.into_inner())?;
            let answer = self.write(admitted, deadline, put).await?;
            kv::put_response(answer.outcome, answer.token)
        };
        self.observe("Put", Operation::Put, put).await
    }

    async fn get(
        &self,
        request: Request<v1::GetRequest>,
    ) -> Result<Response<v1::GetResponse>, Status> {
        let get = async {
            let (admitted, deadline) = self.admitted(&request)?;
            let request = request.into_inner();
            let options = ReadOptions::from_wire(request.options.as_ref())?;
            let route = admitted.of_key(&request.key);
            let keys = [request.key];
            let read = self.store.get(&route, &keys, &options);
            let (records, meta) = within(deadline, read).await?;
            Ok(v1::GetResponse {
                record: records.into_iter().next().flatten(),
                meta: Some(meta),
            })
        };
        self.observe("Get", Operation::Get, get).await
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        let delete = async {
            let (admitted, deadline) = self.admitted(&request)?;
            let delete = kv::delete(request.into_inner())?;
            let answer = self.write(admitted, deadline, delete).await?;
            kv::delete_response(answer.outcome, answer.token)
        };
        self.observe("Delete", Operation::Delete, delete).await
    }

    async fn scan(
        &self,
        request: Request<v1::ScanRequest>,
    ) -> Result<Response<v1::ScanResponse>, Status> {
        let scan = async {
            let (admitted, deadline) = self.admitted(&request)?;
            let scanner = scanner_of(request.extensions());
            let scan = self.store.scan(&admitted, request.into_inner(), &scanner);
            within(deadline, scan).await
        };
        self.observe("Scan", Operation::Scan, scan).await
    }

    async fn register(
        &self,
        request: Request<v1::RegisterRequest>,
    ) -> Result<Response<v1::RegisterResponse>, Status> {
        let register = async {
            let (admitted, deadline) = self.admitted(&request)?;
            let register = kv::register(request.into_inner());
            let answer = self.write(admitted, deadline, register).await?;
            kv::register_response(answer.outcome)
        };
        self.observe("Register", Operation::Register, register)
            .await
    }

    async fn locate(
        &self,
        request: Request<v1::LocateRequest>,
    ) -> Result<Response<v1::LocateResponse>, Status> {
        let locate = async {
            let (admitted, _) = self.admitted(&request)?;
            Ok(self.store.located(&admitted))
        };
        let located = self.observe("Locate", Operation::Locate, locate).await;
        located.map(|located| self.named(located))
    }

    type SessionStream = Replies;

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Replies>, Status> {
        let replies = session::serve(
            &self.env,
            self.store.clone(),
            self.metrics.clone(),
            (
                caller_of(request.extensions()).map_err(status)?,
                scanner_of(request.extensions()),
            ),
            request.into_inner(),
            self.closing.clone(),
        );
        Ok(self.named(Response::new(replies)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_answered_before_its_deadline() {
        let within = |timeout: Option<Duration>| {
            let mut request = Request::new(());
            if let Some(timeout) = timeout {
                request.set_timeout(timeout);
            }
            deadline(&request)
        };
        let ms = Duration::from_millis;
        assert_eq!(within(None), DEADLINE_DEFAULT);
        assert_eq!(within(Some(ms(100))), ms(90));
        assert_eq!(within(Some(ms(2_000))), ms(1_950));
        assert_eq!(within(Some(ms(3_600_000))), DEADLINE_MAX);
    }

    #[test]
    fn timeouts_parse_in_every_unit() {
        assert_eq!(parse_timeout("2S"), Some(Duration::from_secs(2)));
        assert_eq!(parse_timeout("1500m"), Some(Duration::from_millis(1500)));
        assert_eq!(parse_timeout("1H"), Some(Duration::from_secs(3600)));
        assert_eq!(parse_timeout("7"), None);
        assert_eq!(parse_timeout("xS"), None);
        assert_eq!(parse_timeout(""), None);
    }
}
