//! Unary gRPC calls as anyone makes them who has nothing but the `.proto` files.
//!
//! Each call goes once, to the next node in turn, whoever leads: what must be passed on to the leader or to the home is passed on by the node. Nothing is tried again and only a write that is sent twice on purpose has a request id, so every refusal shows as it was made and a lost answer leaves its write unknown.
//! A node that may not serve a tag names the home's nodes; that call has failed, and the next ones of the tag go there.
//!
//! Not done here: sessions, which the library uses.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use domicile_client::{Acknowledge, Meta as Told, Reason, RequestId};
use domicile_proto::identity::tls::Expected;
use domicile_proto::v1::kv_service_client::KvServiceClient;
use domicile_proto::{ERROR_DOMAIN, TAG_METADATA, v1};
use domicile_server::net::{Dial, channel};
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tonic_types::StatusExt as _;

use super::way::{Accepted, Change, Failed, Fresh, Listed, SCAN_RECORDS, Shown};
use crate::history::Version;

/// How long a call may take: longer than a home waits for mirrors, so that
/// what it says of them is heard.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The fact of a refusal that names the home's nodes.
const ENDPOINTS_FACT: &str = "endpoints";

type Kv = KvServiceClient<Channel>;

/// The nodes that are called.
pub(super) struct Raw {
    dial: Arc<dyn Dial>,
    here: Arc<Nodes>,
    /// The nodes of the homes of tags that the nodes here may not serve.
    away: Mutex<BTreeMap<String, Arc<Nodes>>>,
}

/// Nodes of one region.
struct Nodes {
    all: Vec<(String, OnceCell<Kv>)>,
    /// Whose turn it is.
    turn: AtomicU64,
}

impl Nodes {
    fn new<'a>(addresses: impl Iterator<Item = &'a str>, turn: u64) -> Nodes {
        let all = addresses.map(|address| {
            let address = address.trim_start_matches("http://");
            (address.to_owned(), OnceCell::new())
        });
        Nodes {
            all: all.collect(),
            turn: AtomicU64::new(turn),
        }
    }
}

impl Raw {
    /// Calls these nodes, first one that `turn` decides.
    pub(super) fn new(endpoints: &[String], dial: Arc<dyn Dial>, turn: u64) -> Raw {
        let here = Nodes::new(endpoints.iter().map(String::as_str), turn);
        Raw {
            dial,
            here: Arc::new(here),
            away: Mutex::default(),
        }
    }

    /// Sends a write.
    pub(super) async fn change(&self, tag: &str, change: &Change) -> Result<Accepted, Failed> {
        let Change { key, value, .. } = change.clone();
        let condition = change.condition.map(|condition| v1::Condition {
            condition: Some(condition),
        });
        let acknowledgement = change.acknowledge.as_ref().and_then(acknowledgement);
        let request_id = change.id.as_ref().map(request_id);
        let lost = Reason::WriteOutcomeUnknown;
        let Some(value) = value else {
            let delete = v1::DeleteRequest {
                key: key.into(),
                condition,
                request_id,
                acknowledgement,
            };
            let kv = self.next(tag).await?;
            let call = |mut kv: Kv, delete| async move { kv.delete(delete).await };
            let deleted = self.call(tag, kv, delete, lost, call).await?;
            let version = Version(deleted.version);
            return Ok(Accepted {
                version: deleted.existed.then_some(version),
                token: deleted.token.into(),
            });
        };
        let put = v1::PutRequest {
            key: key.into(),
            value: value.into(),
            condition,
            request_id,
            acknowledgement,
        };
        let kv = self.next(tag).await?;
        let call = |mut kv: Kv, put| async move { kv.put(put).await };
        let written = self.call(tag, kv, put, lost, call).await?;
        Ok(Accepted {
            version: Some(Version(written.version)),
            token: written.token.into(),
        })
    }

    /// Reads a record.
    pub(super) async fn get(
        &self,
        tag: &str,
        key: Vec<u8>,
        fresh: Fresh<'_>,
    ) -> Result<Shown, Failed> {
        let get = v1::GetRequest {
            key: key.into(),
            options: Some(fresh.options()),
        };
        let kv = self.next(tag).await?;
        let call = |mut kv: Kv, get| async move { kv.get(get).await };
        let got = self.call(tag, kv, get, Reason::Deadline, call).await?;
        Ok(Shown {
            record: got.record.map(|r| (r.value.to_vec(), r.version)),
            told: Told::from(got.meta.unwrap_or_default()),
        })
    }

    /// Reads all records of a prefix that ends with a slash, page by page, at
    /// one node.
    pub(super) async fn list(
        &self,
        tag: &str,
        prefix: Vec<u8>,
        fresh: Fresh<'_>,
    ) -> Result<Listed, Failed> {
        let mut end = prefix.clone();
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        let mut scan = v1::ScanRequest {
            start: prefix.into(),
            end: end.into(),
            page_size: SCAN_RECORDS as u32,
            page_token: Default::default(),
            options: Some(fresh.options()),
        };
        let kv = self.next(tag).await?;
        let mut listed = Listed::default();
        loop {
            let (kv, asked) = (kv.clone(), scan.clone());
            let call = |mut kv: Kv, scan| async move { kv.scan(scan).await };
            let page = self.call(tag, kv, asked, Reason::Deadline, call).await?;
            listed.served_by = page.meta.unwrap_or_default().served_by;
            let values = page.records.iter().map(|row| row.value.to_vec());
            listed.values.extend(values);
            if page.next_page_token.is_empty() {
                return Ok(listed);
            }
            scan.page_token = page.next_page_token;
        }
    }

    /// The node whose turn it is.
    async fn next(&self, tag: &str) -> Result<Kv, Failed> {
        let away = self.away.lock().get(tag).cloned();
        let nodes = away.unwrap_or_else(|| self.here.clone());
        let turn = nodes.turn.fetch_add(1, Ordering::Relaxed) % nodes.all.len().max(1) as u64;
        let (address, kv) = &nodes.all[turn as usize];
        let opening = async {
            let channel = channel(self.dial.clone(), address, Expected::AnyNode).await?;
            Ok(KvServiceClient::new(channel))
        };
        let opened = kv.get_or_try_init(|| opening).await;
        opened
            .cloned()
            .map_err(|error: domicile_server::error::Error| Failed {
                reason: Reason::Unreachable.name().to_owned(),
                said: error.to_string(),
                again: None,
            })
    }

    /// Makes a call; `lost` stands for an answer that never came.
    async fn call<B, T, F>(
        &self,
        tag: &str,
        kv: Kv,
        body: B,
        lost: Reason,
        call: impl FnOnce(Kv, Request<B>) -> F,
    ) -> Result<T, Failed>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut request = Request::new(body);
        request.set_timeout(TIMEOUT);
        let name = MetadataValue::try_from(tag).expect("the tag is well formed");
        request.metadata_mut().insert(TAG_METADATA, name);
        // The channel keeps the time of the request only once it is connected.
        let answer = tokio::time::timeout(TIMEOUT, call(kv, request)).await;
        let status = match answer {
            Ok(Ok(answer)) => return Ok(answer.into_inner()),
            Ok(Err(status)) => status,
            Err(_) => Status::deadline_exceeded("no answer came in time"),
        };
        if let Some(named) = home(&status) {
            let nodes = Arc::new(Nodes::new(named.split(','), 0));
            self.away.lock().insert(tag.to_owned(), nodes);
        }
        Err(failed(&status, lost))
    }
}

/// The home's nodes, where a refusal names them.
fn home(status: &Status) -> Option<String> {
    let mut info = status.get_details_error_info()?;
    let named = info.metadata.remove(ENDPOINTS_FACT)?;
    (info.reason == Reason::NotHeldHere.name() && !named.is_empty()).then_some(named)
}

/// What a status means. With our details a node refused; without, the answer
/// is lost, unless nothing was ever sent.
fn failed(status: &Status, lost: Reason) -> Failed {
    let info = status.get_details_error_info();
    let ours = info.filter(|info| info.domain == ERROR_DOMAIN);
    let reason = match ours {
        Some(info) => info.reason,
        None if is_unsent(status) => Reason::Unreachable.name().to_owned(),
        None => lost.name().to_owned(),
    };
    Failed {
        reason,
        said: status.to_string(),
        again: None,
    }
}

/// Whether no connection could be made.
fn is_unsent(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// A request id of a client that has heard no answer.
fn request_id(id: &RequestId) -> v1::RequestId {
    let text = id.to_string();
    let client = text.split(':').next().unwrap_or_default();
    let client = u128::from_str_radix(client, 16).expect("an id is 32 hex digits and a number");
    v1::RequestId {
        client: client.to_be_bytes().to_vec().into(),
        sequence: id.sequence(),
        acked_below: 0,
    }
}

fn acknowledgement(by: &Acknowledge) -> Option<v1::Acknowledgement> {
    use v1::acknowledgement::Acknowledgement as Wire;
    let wire = match by {
        Acknowledge::Mirrors(count) => Wire::Mirrors(*count),
        Acknowledge::Regions(regions) => Wire::Regions(v1::RegionSet {
            regions: regions.clone(),
        }),
        _ => return None,
    };
    Some(v1::Acknowledgement {
        acknowledgement: Some(wire),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;
    use tonic_types::ErrorDetails;

    fn refused(reason: Reason, domain: &str) -> Status {
        let facts = [(ENDPOINTS_FACT.to_owned(), "a:1,b:1".to_owned())];
        let details = ErrorDetails::with_error_info(reason.name(), domain, facts);
        Status::with_error_details(Code::Unavailable, "no", details)
    }

    fn ends_unknown(status: &Status) -> bool {
        failed(status, Reason::WriteOutcomeUnknown).is_unknown()
    }

    #[test]
    fn only_what_a_node_refused_or_never_heard_of_is_certain() {
        for reason in [Reason::NoQuorum, Reason::Overloaded, Reason::Deadline] {
            assert!(!ends_unknown(&refused(reason, ERROR_DOMAIN)));
        }
        let refusal = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let unsent = Status::from_error(Box::new(tonic::ConnectError(Box::new(refusal))));
        assert!(!ends_unknown(&unsent));
        let lost = [Code::Unavailable, Code::Cancelled, Code::DeadlineExceeded];
        for code in lost {
            assert!(ends_unknown(&Status::new(code, "gone")));
        }
        for reason in [Reason::WriteOutcomeUnknown, Reason::AckNotReached] {
            assert!(ends_unknown(&refused(reason, ERROR_DOMAIN)));
        }
        // Somebody between may say so, but does not know.
        assert!(ends_unknown(&refused(Reason::NoQuorum, "proxy.example")));
    }

    #[test]
    fn a_refusal_leads_home_only_for_a_tag_that_is_not_held() {
        let there = home(&refused(Reason::NotHeldHere, ERROR_DOMAIN));
        assert_eq!(there.as_deref(), Some("a:1,b:1"));
        assert_eq!(home(&refused(Reason::NoQuorum, ERROR_DOMAIN)), None);
    }
}
