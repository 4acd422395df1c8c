//! One endpoint: its connection, and the two ways over it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use domicile_proto::limits::CLIENT_MESSAGE_BYTES_MAX;
use domicile_proto::v1;
use domicile_proto::v1::admin_service_client::AdminServiceClient;
use domicile_proto::v1::session_operation::Operation;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Uri};

use crate::answer::Meta;
use crate::env::{self, Instant};
use crate::error::{Cause, Error};
use crate::transport::cluster::Clusters;
use crate::transport::dial::TcpDial;
use crate::transport::fault::Fault;
use crate::transport::header::TagHeader;
use crate::transport::opening::{Openings, Way};
use crate::transport::options::{Options, Transport};
use crate::transport::reply::Reply;
use crate::transport::session::Session;
use crate::transport::tls::Failed;

/// A node's address and the connection to it.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// As the caller wrote it.
    name: String,
    /// `host:port`.
    authority: String,
    openings: Arc<Openings>,
    admin: AdminServiceClient<Channel>,
    session: Option<Session>,
    clusters: Arc<Clusters>,
    /// Without a session: whether the last call was answered.
    answers: AtomicBool,
}

impl Endpoint {
    /// Prepares the connection; it is made when first used.
    pub(crate) fn new(name: &str, options: &Options) -> Result<Self, Error> {
        let uri = parse(name, options.tls.is_some())?;
        let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
        let dial = options.dial.clone();
        let way = Way {
            uri,
            dial: dial.unwrap_or_else(|| Arc::new(TcpDial)),
            tls: options.tls.clone(),
            speaks_tls: Arc::default(),
            timeout: options.connect_timeout,
        };
        let admin = AdminServiceClient::new(way.channel())
            .max_decoding_message_size(CLIENT_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(CLIENT_MESSAGE_BYTES_MAX);
        let openings = Arc::new(Openings::new(way));
        let session = (options.transport == Transport::Session).then(|| {
            let (name, clusters) = (name.to_owned(), options.clusters.clone());
            let opened = move |metadata: &MetadataMap| clusters.hear(&name, metadata);
            Session::start(openings.clone(), options.in_flight_max, opened)
        });
        Ok(Endpoint {
            name: name.to_owned(),
            authority,
            openings,
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
            Some(session) => session.opened().await.map_err(|fault| self.explain(fault)),
            None => Ok(()),
        }
    }

    /// Says of a fault what is known of the connection, and which endpoint it is of.
    pub(crate) fn explain(&self, fault: Fault) -> Fault {
        match fault {
            Fault::Lost { sent, .. } if self.openings.lacks_tls() => {
                let why = Failed::without_tls().to_string();
                Fault::lost(sent, Cause::new(&why)).at(&self.name)
            }
            fault => fault.at(&self.name),
        }
    }

    /// The number of the connection in use.
    pub(crate) fn opening(&self) -> u64 {
        self.openings.number()
    }

    /// Asks whether the node serves a tag; its refusal names the nodes that do.
    /// Neither key nor value goes with it. Answers on which connection it said so,
    /// too.
    pub(crate) async fn locate(
        &self,
        tag: &TagHeader,
        deadline: Instant,
    ) -> Result<(u64, v1::LocateResponse), Fault> {
        let opening = self.openings.current();
        let mut kv = opening.kv.clone();
        let asked = kv.locate(request(tag, v1::LocateRequest {}, deadline));
        // Of the operation that waits for it nothing was sent.
        let fault = match tokio::time::timeout_at(deadline, asked).await {
            Ok(Ok(located)) => {
                self.clusters.hear(&self.name, located.metadata())?;
                return Ok((opening.number, located.into_inner()));
            }
            Ok(Err(status)) => {
                let fault = Fault::from(status);
                // No session is on a connection that could not be made.
                if fault.is_of_no_connection() {
                    self.openings.renew(opening.number);
                }
                fault.before_sending()
            }
            Err(_) => Fault::late(false),
        };
        self.give_up(opening.number, &fault);
        Err(fault)
    }

    /// Sends one operation over the connection of this number, and waits for its
    /// answer until the deadline. Where that has ended nothing is sent.
    pub(crate) async fn call(
        &self,
        tag: &TagHeader,
        operation: Operation,
        opening: u64,
        deadline: Instant,
    ) -> Result<Reply, Fault> {
        if let Some(session) = &self.session {
            let called = session.call(&tag.tag, operation, opening, deadline);
            return called.await;
        }
        let answer = self.unary(tag, operation, opening, deadline);
        let answer = tokio::time::timeout_at(deadline, answer).await;
        let result = answer.unwrap_or_else(|_| Err(Fault::late(true)));
        let answers = matches!(result, Ok(_) | Err(Fault::Refused(_)));
        self.answers.store(answers, Ordering::Relaxed);
        if let Err(fault) = &result {
            self.give_up(opening, fault);
        }
        result
    }

    /// Leaves a connection that lost what went over it; a session makes the next one
    /// by itself.
    fn give_up(&self, opening: u64, fault: &Fault) {
        if self.session.is_none() && fault.is_broken() {
            self.openings.renew(opening);
        }
    }

    async fn unary(
        &self,
        tag: &TagHeader,
        operation: Operation,
        opening: u64,
        deadline: Instant,
    ) -> Result<Reply, Fault> {
        let current = self.openings.current();
        if current.number != opening {
            return Err(Fault::ended());
        }
        let mut kv = current.kv.clone();
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

/// A unary request names its tag and its time in the metadata.
fn request<T>(tag: &TagHeader, body: T, deadline: Instant) -> tonic::Request<T> {
    let mut request = tonic::Request::new(body);
    request.set_timeout(deadline.saturating_duration_since(env::now()));
    request
        .metadata_mut()
        .insert(domicile_proto::TAG_METADATA, tag.metadata.clone());
    request
}

/// Reads `http://HOST:PORT`, `https://HOST:PORT` or `HOST:PORT`. With a certificate all
/// of them speak TLS; `https` without one is refused.
fn parse(name: &str, has_tls: bool) -> Result<Uri, Error> {
    let scheme = match has_tls {
        true => "https",
        false => "http",
    };
    let full = match name.split_once("://") {
        // A node that is named without TLS is called with it all the same.
        Some((named, address)) if named.eq_ignore_ascii_case("http") => {
            format!("{scheme}://{address}")
        }
        Some(_) => name.to_owned(),
        None => format!("{scheme}://{name}"),
    };
    // What stands before the host would go nowhere, and into messages.
    if full.contains('@') {
        return Err(Error::invalid(
            "an endpoint is http://HOST:PORT, without a user name or a password",
        ));
    }
    let uri: Uri = full
        .parse()
        .map_err(|_| Error::invalid(format!("`{name}` is no endpoint: http://HOST:PORT")))?;
    let is_bare = uri.path_and_query().is_none_or(|path| path.as_str() == "/");
    match (uri.scheme_str(), uri.port()) {
        (Some("https"), _) if !has_tls => Err(Error::invalid(
            "https endpoints need a certificate: give the program --tls-dir, or the library \
             `Builder::tls`",
        )),
        (Some("http" | "https"), Some(_)) if is_bare => Ok(uri),
        _ => Err(Error::invalid(format!(
            "`{name}` is no endpoint: http://HOST:PORT"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Never in the clear by the way an endpoint is written.
    #[test]
    fn with_a_certificate_every_endpoint_speaks_tls() {
        for name in [
            "http://a:1",
            "https://a:1",
            "a:1",
            "HTTP://a:1",
            "http://a:1/",
        ] {
            let uri = parse(name, true).expect("an endpoint");
            assert_eq!(uri.scheme_str(), Some("https"), "{name}");
            assert_eq!(uri.authority().expect("there").as_str(), "a:1");
        }
        for name in ["http://a:1", "a:1"] {
            let uri = parse(name, false).expect("an endpoint");
            assert_eq!(uri.scheme_str(), Some("http"), "{name}");
        }
        let refused = parse("https://a:1", false).expect_err("no certificate");
        assert!(refused.to_string().contains("--tls-dir"), "{refused}");
        for wrong in ["ftp://a:1", "https://a", "https://u@a:1", "a:1/x"] {
            parse(wrong, true).expect_err(wrong);
        }
    }
}
