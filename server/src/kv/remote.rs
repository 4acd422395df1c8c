//! Reads passed on to the home in another region, and served there.

use std::time::Duration;

use bytes::Bytes;
use domicile_proto::address::RegionName;
use domicile_proto::internal::v1 as wire;
use domicile_proto::limits::SESSION_OPERATIONS_MAX;
use domicile_proto::v1;
use wire::peer_request::Request;
use wire::peer_response::Response;
use wire::read::What;
use wire::read_result::Result as Wire;

use super::directory::Route;
use super::forward::{SLOW_AFTER, error_of, failure, lasting};
use super::options::ReadOptions;
use super::store::{Store, elsewhere};
use super::tokens;
use crate::error::{Error, Reason, Result};
use crate::raft::Transport;
use crate::residency::Subject;

/// How long the home may take to answer one attempt.
const REMOTE_WAIT: Duration = Duration::from_secs(3);

/// How many nodes of the home are asked before the reader is told.
const ATTEMPTS_MAX: usize = 3;

impl Store {
    /// Reads the first keys strongly at the home, as many as it answers at once.
    pub(super) async fn get_at_home(
        &self,
        route: &Route,
        keys: &[Bytes],
        token: &Bytes,
    ) -> Result<(Vec<Option<v1::Record>>, v1::ReadMeta)> {
        let asked = self.env.now();
        let what = What::Keys(wire::ReadKeys {
            keys: keys.to_vec(),
        });
        let Wire::Records(read) = self.read_at_home(route, what, token).await? else {
            return Err(Error::internal("the home answered another question"));
        };
        if read.records.is_empty() || read.records.len() > keys.len() {
            return Err(Error::internal("the home answered other keys"));
        }
        let records = read.records.into_iter().map(|r| r.record).collect();
        let meta = self.counted_from(read.meta, asked);
        Ok((records, meta))
    }

    /// Reads a page of a scan strongly at the home.
    pub(super) async fn scan_at_home(
        &self,
        route: &Route,
        request: v1::ScanRequest,
    ) -> Result<v1::ScanResponse> {
        let asked = self.env.now();
        let options = ReadOptions::from_wire(request.options.as_ref())?;
        let request = v1::ScanRequest {
            options: None,
            ..request
        };
        let what = What::Scan(request);
        let Wire::Page(page) = self.read_at_home(route, what, options.token()).await? else {
            return Err(Error::internal("the home answered another question"));
        };
        // A later page may be of no known age.
        let known = page.meta.as_ref().and_then(|meta| meta.lag_ms);
        let meta = self.counted_from(page.meta.clone(), asked);
        Ok(v1::ScanResponse {
            meta: Some(v1::ReadMeta {
                lag_ms: known.and(meta.lag_ms),
                ..meta
            }),
            ..page
        })
    }

    /// What the home says of its answer, with the lag counted from here.
    fn counted_from(&self, meta: Option<v1::ReadMeta>, asked: crate::env::Instant) -> v1::ReadMeta {
        let lag = self.env.age(asked);
        v1::ReadMeta {
            lag_ms: lag.map(|lag| lag.as_micros().div_ceil(1000) as u64),
            ..meta.unwrap_or_default()
        }
    }

    async fn read_at_home(&self, route: &Route, what: What, token: &Bytes) -> Result<Wire> {
        let subject = Subject::Tag(route.tag.clone());
        let mut last = self.unreachable(&route.home);
        for attempt in 0..ATTEMPTS_MAX {
            let Some((peers, node)) = self.node_of(&route.home, attempt) else {
                break;
            };
            let request = wire::PeerRequest {
                sequence: 0,
                group: 0,
                to_replica: 0,
                request: Some(Request::Read(wire::Read {
                    tag: route.tag.to_string(),
                    what: Some(what.clone()),
                    token: token.clone(),
                    caller: Some(route.on_behalf()),
                })),
            };
            let cleared = self.gate.egress(&route.home, &subject, request)?;
            // Another node may be faster; at the last it is waited for longer.
            let wait = match attempt + 1 < ATTEMPTS_MAX && peers.answering().len() > 1 {
                true => SLOW_AFTER,
                false => REMOTE_WAIT,
            };
            let answer = match tokio::time::timeout(wait, peers.send(node, cleared)).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) => continue,
                Err(_) => {
                    peers.doubt(node);
                    continue;
                }
            };
            let answer = self.gate.ingress(&route.home, &subject, answer)?;
            match answer.response {
                Some(Response::Read(wire::ReadResult {
                    result: Some(Wire::Failed(failed)),
                })) => {
                    let error = error_of(failed, Reason::Internal);
                    if error.reason != Reason::NoQuorum {
                        return Err(error);
                    }
                    last = error;
                }
                Some(Response::Read(wire::ReadResult {
                    result: Some(read), ..
                })) => return Ok(read),
                Some(Response::Refusal(refusal)) => match lasting(&refusal) {
                    Some(refused) => return Err(refused),
                    None => last = Error::new(Reason::Unreachable, refusal.why),
                },
                _ => return Err(Error::internal("the home answered another question")),
            }
        }
        Err(last)
    }

    /// Serves a read that a node of region `from` passed on.
    pub async fn serve_remote(&self, from: &RegionName, read: wire::Read) -> wire::ReadResult {
        let result = match self.read_for(from, read).await {
            Ok(read) => read,
            Err(error) => Wire::Failed(failure(&error)),
        };
        wire::ReadResult {
            result: Some(result),
        }
    }

    /// Whether the home, of which this node has a replica, has all that a token
    /// covers.
    async fn covers(&self, route: &Route, token: &Bytes) -> Result<()> {
        if token.is_empty() {
            return Ok(());
        }
        let group = route.group().ok_or_else(elsewhere)?;
        let wanted = tokens::wanted_at_home(route, group, token).await?;
        if group.progress().index >= wanted {
            return Ok(());
        }
        tokens::not_lost(wanted, &group.read_barrier().await?)
    }

    async fn read_for(&self, from: &RegionName, read: wire::Read) -> Result<Wire> {
        let caller = read.caller.as_ref();
        let route = self.directory.route_home(&read.tag, from, caller)?;
        self.covers(&route, &read.token).await?;
        match read.what {
            Some(What::Keys(keys)) => {
                if keys.keys.len() > SESSION_OPERATIONS_MAX {
                    return Err(Error::invalid(format!(
                        "a read has at most {SESSION_OPERATIONS_MAX} keys"
                    )));
                }
                let options = ReadOptions::default();
                let (records, meta) = self.get(&route, &keys.keys, &options).await?;
                Ok(Wire::Records(wire::ReadRecords {
                    records: records
                        .into_iter()
                        .map(|record| wire::ReadRecord { record })
                        .collect(),
                    meta: Some(meta),
                }))
            }
            Some(What::Scan(scan)) => Ok(Wire::Page(self.scan(&route, scan).await?)),
            None => Err(Error::invalid("the read is not known here")),
        }
    }
}
