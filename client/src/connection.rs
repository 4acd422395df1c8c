//! One endpoint: its connection, and the two ways over it.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use domicile_proto::limits::CLIENT_MESSAGE_BYTES_MAX;
use domicile_proto::v1;
use domicile_proto::v1::admin_service_client::AdminServiceClient;
use domicile_proto::v1::kv_service_client::KvServiceClient;
use domicile_proto::v1::session_operation::Operation;
use hyper_util::rt::TokioIo;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Uri};

use crate::cluster::Clusters;
use crate::dial::{Dial, Socket};
use crate::env::{self, Instant};
use crate::error::{Error, Fault};
use crate::read::Meta;
use crate::route::TagRoute;
use crate::session::Session;

/// How long a connection may be silent with requests open before it is asked
/// whether it lives.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// How long it may take to answer that.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// How many bytes the server may send ahead on one stream: a few frames, so
/// that a window update is not waited for.
const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// The same over all streams of the connection.
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// What carries the operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Transport {
    /// One bidirectional stream for each endpoint, over which operations
    /// travel in frames. The fastest.
    #[default]
    Session,
    /// One gRPC call for each operation: for proxies that do not pass long
    /// streams on.
    Unary,
}

/// How to connect.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// What carries the operations.
    pub(crate) transport: Transport,
    /// How long making a connection may take.
    pub(crate) connect_timeout: Duration,
    /// The most operations of a session without an answer.
    pub(crate) in_flight_max: usize,
    /// What opens the sockets; `None`: TCP.
    pub(crate) dial: Option<Arc<dyn Dial>>,
    /// Which cluster each endpoint is of.
    pub(crate) clusters: Arc<Clusters>,
}

/// What a server answered to an operation.
#[derive(Debug)]
pub(crate) enum Reply {
    Put(v1::PutResponse),
    Get(Option<v1::Record>, Arc<Meta>),
    Delete(v1::DeleteResponse),
    Scan(v1::ScanResponse),
    Register(v1::RegisterResponse),
}

/// A node's address and the connection to it.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// As the caller wrote it.
    name: String,
    /// `host:port`.
    authority: String,
    kv: KvServiceClient<Channel>,
    admin: AdminServiceClient<Channel>,
    session: Option<Session>,
    clusters: Arc<Clusters>,
    /// Without a session: whether the last call was answered.
    answers: AtomicBool,
}

impl Endpoint {
    /// Prepares the connection; it is made when first used.
    pub(crate) fn new(name: &str, options: &Options) -> Result<Self, Error> {
        let uri = parse(name)?;
        let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
        let endpoint = Channel::builder(uri)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        let channel = match &options.dial {
            // The library would time it from outside, and then not tell that
            // there was no connection to send anything over.
            Some(dial) => {
                let connector = connector(dial.clone(), options.connect_timeout);
                endpoint.connect_with_connector_lazy(connector)
            }
            None => endpoint
                .connect_timeout(options.connect_timeout)
                .connect_lazy(),
        };
        let kv = KvServiceClient::new(channel.clone())
            .max_decoding_message_size(CLIENT_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(CLIENT_MESSAGE_BYTES_MAX);
        let admin = AdminServiceClient::new(channel)
            .max_decoding_message_size(CLIENT_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(CLIENT_MESSAGE_BYTES_MAX);
        let session = (options.transport == Transport::Session).then(|| {
            let (name, clusters) = (name.to_owned(), options.clusters.clone());
            let opened = move |metadata: &MetadataMap| clusters.hear(&name, metadata);
            Session::start(kv.clone(), options.in_flight_max, opened)
        });
        Ok(Endpoint {
            name: name.to_owned(),
            authority,
            kv,
            admin,
            session,
            clusters: options.clusters.clone(),
            answers: AtomicBool::new(true),
        })
    }

    /// The address as the caller wrote it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether this is the node at `host:port`.
    pub(crate) fn is_at(&self, address: &str) -> bool {
        self.authority == address
    }

    /// Whether an operation may go here before others are tried.
    pub(crate) fn is_up(&self) -> bool {
        match &self.session {
            Some(session) => session.is_open(),
            None => self.answers.load(Ordering::Relaxed),
        }
    }

    /// The admin service of the node.
    pub(crate) fn admin(&self) -> AdminServiceClient<Channel> {
        self.admin.clone()
    }

    /// Waits until the first attempt to open the session has ended; without a
    /// session there is nothing to wait for.
    pub(crate) async fn opened(&self) -> Result<(), Fault> {
        match &self.session {
            Some(session) => session.opened().await,
            None => Ok(()),
        }
    }

    /// Asks whether the node serves a tag; its refusal names the nodes that do.
    /// Neither key nor value goes with it.
    pub(crate) async fn locate(
        &self,
        tag: &TagRoute,
        deadline: Instant,
    ) -> Result<v1::LocateResponse, Fault> {
        let mut kv = self.kv.clone();
        let asked = kv.locate(request(tag, v1::LocateRequest {}, deadline));
        match tokio::time::timeout_at(deadline, asked).await {
            Ok(Ok(located)) => {
                self.clusters.hear(&self.name, located.metadata())?;
                Ok(located.into_inner())
            }
            // Of the operation that waits for it nothing was sent.
            Ok(Err(status)) => Err(Fault::from(status).before_sending()),
            Err(_) => Err(Fault::late(false)),
        }
    }

    /// Sends one operation and waits for its answer until the deadline.
    pub(crate) async fn call(
        &self,
        tag: &TagRoute,
        operation: Operation,
        deadline: Instant,
    ) -> Result<Reply, Fault> {
        if let Some(session) = &self.session {
            return session.call(&tag.tag, operation, deadline).await;
        }
        let answer = tokio::time::timeout_at(deadline, self.unary(tag, operation, deadline)).await;
        let result = answer.unwrap_or_else(|_| Err(Fault::late(true)));
        let answers = !matches!(result, Err(Fault::Lost { .. }));
        self.answers.store(answers, Ordering::Relaxed);
        result
    }

    async fn unary(
        &self,
        tag: &TagRoute,
        operation: Operation,
        deadline: Instant,
    ) -> Result<Reply, Fault> {
        let mut kv = self.kv.clone();
        Ok(match operation {
            Operation::Put(body) => {
                Reply::Put(kv.put(request(tag, body, deadline)).await?.into_inner())
            }
            Operation::Get(body) => {
                let got = kv.get(request(tag, body, deadline)).await?.into_inner();
                let meta = Meta::from(got.meta.unwrap_or_default());
                Reply::Get(got.record, Arc::new(meta))
            }
            Operation::Delete(body) => {
                Reply::Delete(kv.delete(request(tag, body, deadline)).await?.into_inner())
            }
            Operation::Scan(body) => {
                Reply::Scan(kv.scan(request(tag, body, deadline)).await?.into_inner())
            }
            Operation::Register(body) => {
                let registered = kv.register(request(tag, body, deadline)).await?;
                Reply::Register(registered.into_inner())
            }
        })
    }
}

/// Sockets that a [`Dial`] opens in time, for a channel.
fn connector(
    dial: Arc<dyn Dial>,
    timeout: Duration,
) -> impl tower::Service<
    Uri,
    Response = TokioIo<Box<dyn Socket>>,
    Error = io::Error,
    Future = impl Future<Output = io::Result<TokioIo<Box<dyn Socket>>>> + Send,
> + Send
+ 'static {
    tower::service_fn(move |uri: Uri| {
        let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
        let socket = tokio::time::timeout(timeout, dial.dial(authority));
        async move {
            let socket = socket.await.map_err(|_| io::ErrorKind::TimedOut)?;
            socket.map(TokioIo::new)
        }
    })
}

/// A unary request names its tag and its time in the metadata.
fn request<T>(tag: &TagRoute, body: T, deadline: Instant) -> tonic::Request<T> {
    let mut request = tonic::Request::new(body);
    request.set_timeout(deadline.saturating_duration_since(env::now()));
    request
        .metadata_mut()
        .insert(domicile_proto::TAG_METADATA, tag.metadata.clone());
    request
}

/// Reads `http://host:port` or `host:port`.
fn parse(name: &str) -> Result<Uri, Error> {
    let full = if name.contains("://") {
        name.to_owned()
    } else {
        format!("http://{name}")
    };
    let uri: Uri = full
        .parse()
        .map_err(|_| Error::invalid(format!("`{name}` is no endpoint: http://HOST:PORT")))?;
    // What stands before the host would go nowhere, and into messages.
    if uri
        .authority()
        .is_some_and(|authority| authority.as_str().contains('@'))
    {
        return Err(Error::invalid(
            "an endpoint is http://HOST:PORT, without a user name or a password",
        ));
    }
    let is_bare = uri.path_and_query().is_none_or(|path| path.as_str() == "/");
    match (uri.scheme_str(), uri.port()) {
        (Some("http"), Some(_)) if is_bare => Ok(uri),
        (Some("https"), _) => Err(Error::invalid(
            "https endpoints need TLS, which this version does not have yet; use http://",
        )),
        _ => Err(Error::invalid(format!(
            "`{name}` is no endpoint: http://HOST:PORT"
        ))),
    }
}
