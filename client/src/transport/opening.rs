//! One connection to a node after the other.
//!
//! What a node says it may have counts for as long as it is certainly that node
//! which is spoken to: behind an address another one may answer at any time. So a
//! channel here is one connection. When it has ended nothing goes over it any more,
//! and the next one has another number.
//!
//! Not done here: the admin service, which carries no record, reconnects by itself.

use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use domicile_proto::limits::CLIENT_MESSAGE_BYTES_MAX;
use domicile_proto::v1::kv_service_client::KvServiceClient;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tonic::transport::{Channel, Uri};

use crate::transport::dial::{Dial, Socket};
use crate::transport::plain::Plain;
use crate::transport::tls::{Failed, Tls};

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

/// Where and how to connect.
#[derive(Clone, Debug)]
pub(crate) struct Way {
    /// The node.
    pub(crate) uri: Uri,
    /// What opens the sockets.
    pub(crate) dial: Arc<dyn Dial>,
    /// What makes connections of the sockets; `None`: they are as they are.
    pub(crate) tls: Option<Tls>,
    /// Whether the node was last heard to speak TLS where none was made: what the library
    /// says of such a connection does not tell.
    pub(crate) speaks_tls: Arc<AtomicBool>,
    /// How long that may take.
    pub(crate) timeout: Duration,
}

impl Way {
    /// A channel that connects when it is first used, and again when it has to.
    pub(crate) fn channel(&self) -> Channel {
        self.channel_while(|| true)
    }

    /// A channel that connects when it is first used, and never again.
    fn once(&self) -> Channel {
        let is_first = AtomicBool::new(true);
        self.channel_while(move || is_first.swap(false, Ordering::Relaxed))
    }

    fn channel_while(&self, may_dial: impl Fn() -> bool + Send + 'static) -> Channel {
        // The library would time a connection from outside, and then not tell that
        // there was none to send anything over.
        Channel::builder(self.uri.clone())
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .connect_with_connector_lazy(connector(self.clone(), may_dial))
    }
}

/// Connections that are made in time, for a channel.
fn connector(
    way: Way,
    may_dial: impl Fn() -> bool + Send + 'static,
) -> impl tower::Service<
    Uri,
    Response = TokioIo<Box<dyn Socket>>,
    Error = io::Error,
    Future = impl Future<Output = io::Result<TokioIo<Box<dyn Socket>>>> + Send,
> + Send
+ 'static {
    // Why the last attempt failed: where there is no other one, that is still why.
    let said = Arc::new(Mutex::new(None));
    tower::service_fn(move |uri: Uri| {
        let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
        let connecting = connect(way.clone(), authority);
        let connecting = may_dial().then(|| tokio::time::timeout(way.timeout, connecting));
        let said = said.clone();
        async move {
            let Some(connecting) = connecting else {
                let again = said.lock().as_ref().and_then(again);
                return Err(again.unwrap_or_else(|| io::Error::other("the connection has ended")));
            };
            let connected = connecting.await.map_err(|_| io::ErrorKind::TimedOut)?;
            if let Err(error) = &connected {
                *said.lock() = again(error);
            }
            connected.map(TokioIo::new)
        }
    })
}

async fn connect(way: Way, authority: String) -> io::Result<Box<dyn Socket>> {
    let socket = way.dial.dial(authority.clone()).await?;
    match way.tls {
        Some(tls) => tls.secure(socket, &authority).await,
        None => Ok(Box::new(Plain::new(socket, way.speaks_tls))),
    }
}

/// The same error once more, where it says something by itself.
fn again(error: &io::Error) -> Option<io::Error> {
    let failed = error.get_ref().and_then(|inner| inner.downcast_ref());
    match (error.raw_os_error(), failed) {
        (Some(code), _) => Some(io::Error::from_raw_os_error(code)),
        (None, Some(failed)) => Some(Failed::clone(failed).into()),
        (None, None) => None,
    }
}

/// One connection. It is made when first used.
pub(crate) struct Opening {
    /// Which one of its endpoint it is, from 1.
    pub(crate) number: u64,
    /// What goes over it.
    pub(crate) kv: KvServiceClient<Channel>,
}

impl fmt::Debug for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Opening").field(&self.number).finish()
    }
}

/// The connections of an endpoint, of which one is in use.
#[derive(Debug)]
pub(crate) struct Openings {
    way: Way,
    current: ArcSwap<Opening>,
}

impl Openings {
    /// Not connected yet.
    pub(crate) fn new(way: Way) -> Self {
        let first = Arc::new(open(&way, 1));
        Openings {
            way,
            current: ArcSwap::new(first),
        }
    }

    /// The connection in use.
    pub(crate) fn current(&self) -> Arc<Opening> {
        self.current.load_full()
    }

    /// Whether the node speaks TLS, and the client does not.
    pub(crate) fn lacks_tls(&self) -> bool {
        self.way.speaks_tls.load(Ordering::Relaxed)
    }

    /// The number of the connection in use.
    pub(crate) fn number(&self) -> u64 {
        self.current.load().number
    }

    /// Puts another one in the place of a connection that has ended, unless that
    /// was done.
    pub(crate) fn renew(&self, ended: u64) {
        self.current.rcu(|current| match current.number == ended {
            true => Arc::new(open(&self.way, ended + 1)),
            false => current.clone(),
        });
    }
}

fn open(way: &Way, number: u64) -> Opening {
    let kv = KvServiceClient::new(way.once())
        .max_decoding_message_size(CLIENT_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(CLIENT_MESSAGE_BYTES_MAX);
    Opening { number, kv }
}
