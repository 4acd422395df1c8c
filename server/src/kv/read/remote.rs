//! Reads passed on to the home in another region, and served there.

use std::time::Duration;

use bytes::Bytes;
use domicile_proto::address::RegionName;
use domicile_proto::limits::SESSION_OPERATIONS_MAX;
use domicile_proto::peer::v1 as peer;
use domicile_proto::v1;
use peer::peer_request::Request;
use peer::peer_response::Response;
use peer::read::What;
use peer::read_result::Result as Wire;

use crate::error::{Error, Reason, Result};
use crate::kv::directory::{Admitted, Route};
use crate::kv::failure::elsewhere;
use crate::kv::failure::{SLOW_AFTER, error_of, failure, lasting};
use crate::kv::permits::Scanner;
use crate::kv::read::options::ReadOptions;
use crate::kv::store::Store;
use crate::kv::tokens;
use crate::raft::Transport;
use crate::state::Subject;

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
        let what = What::Keys(peer::ReadKeys {
            keys: keys.to_vec(),
        });
        let read = self.read_at_home(route, what, token).await?;
        let Wire::Records(read) = read else {
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
        admitted: &Admitted,
        request: v1::ScanRequest,
    ) -> Result<v1::ScanResponse> {
        let asked = self.env.now();
        let options = ReadOptions::from_wire(request.options.as_ref())?;
        let request = v1::ScanRequest {
            options: None,
            ..request
        };
        let what = What::Scan(request);
        let read = self.read_at_home(admitted, what, options.token()).await?;
        let Wire::Page(page) = read else {
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

    async fn read_at_home(&self, admitted: &Admitted, what: What, token: &Bytes) -> Result<Wire> {
        let home = &admitted.home;
        let subject = Subject::Tag(admitted.tag.clone());
        let mut last = self.unreachable(home);
        for attempt in 0..ATTEMPTS_MAX {
            let Some((peers, node)) = self.node_of(home, attempt) else {
                break;
            };
            let request = peer::PeerRequest {
                sequence: 0,
                group: 0,
                to_replica: 0,
                request: Some(Request::Read(peer::Read {
                    tag: admitted.tag.to_string(),
                    what: Some(what.clone()),
                    token: token.clone(),
                    caller: Some(admitted.on_behalf()),
                })),
            };
            let cleared = self.gate.egress(home, &subject, request)?;
            // Another node may be faster; at the last it is waited for longer.
            let wait = match attempt + 1 < ATTEMPTS_MAX && peers.answering().len() > 1 {
                true => SLOW_AFTER,
                false => REMOTE_WAIT,
            };
            let answer = match tokio::time::timeout(wait, peers.send(node, cleared)).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) => continue,
                Err(_) => {
                    peers.mark_slow(node);
                    last.message = format!(
                        "the nodes of the home {home} that were asked did not answer in time; try \
                         again"
                    );
                    continue;
                }
            };
            let answer = self.gate.ingress(home, &subject, answer)?;
            match answer.response {
                Some(Response::Read(peer::ReadResult {
                    result: Some(Wire::Failed(failed)),
                })) => {
                    let error = error_of(failed, Reason::Internal);
                    // Another node may have less to do.
                    if !matches!(error.reason, Reason::NoQuorum | Reason::Overloaded) {
                        return Err(error);
                    }
                    last = error;
                }
                Some(Response::Read(peer::ReadResult {
                    result: Some(read), ..
                })) => return Ok(read),
                Some(Response::Refusal(refusal)) => match lasting(&refusal) {
                    Some(refused) => return Err(refused),
                    None => last = not_now(self.unreachable(home), refusal),
                },
                _ => return Err(Error::internal("the home answered another question")),
            }
        }
        Err(last)
    }

    /// Serves a read that a node of region `from` passed on.
    pub async fn serve_remote(&self, from: &RegionName, read: peer::Read) -> peer::ReadResult {
        let result = match self.read_for(from, read).await {
            Ok(read) => read,
            Err(error) => Wire::Failed(failure(&error)),
        };
        peer::ReadResult {
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

    /// All of a region's callers wait for permits to read pages together.
    fn scanner_of(&self, region: &RegionName) -> Scanner {
        let mut scanners = self.scanners.lock();
        let scanner = scanners.entry(region.clone());
        scanner.or_insert_with(Scanner::passing_on).clone()
    }

    /// Reads what was passed on from what this node has: passed on once more, it
    /// would go to another node of the home, and from there back.
    async fn read_for(&self, from: &RegionName, read: peer::Read) -> Result<Wire> {
        let caller = read.caller.as_ref();
        let admitted = self.directory.admit_at_home(&read.tag, from, caller)?;
        match read.what {
            Some(What::Keys(keys)) => {
                if keys.keys.len() > SESSION_OPERATIONS_MAX {
                    return Err(Error::invalid(format!(
                        "a read has at most {SESSION_OPERATIONS_MAX} keys"
                    )));
                }
                // As many as are of one range: for the others the caller asks again.
                let first = keys.keys.first().map_or(&[][..], |key| key);
                let route = admitted.of_key(first);
                let mut all = keys.keys.iter();
                let others = all.position(|key| !route.span.covers(key));
                let asked = &keys.keys[..others.unwrap_or(keys.keys.len())];
                self.covers(&route, &read.token).await?;
                let options = ReadOptions::default();
                let read = self.get_here(&route, asked, &options).await?;
                let (records, meta) = read.ok_or_else(elsewhere)?;
                Ok(Wire::Records(peer::ReadRecords {
                    records: records
                        .into_iter()
                        .map(|record| peer::ReadRecord { record })
                        .collect(),
                    meta: Some(meta),
                }))
            }
            Some(What::Scan(scan)) => {
                for route in admitted.of_span(&scan.start, &scan.end) {
                    route.group().ok_or_else(elsewhere)?;
                    self.covers(&route, &read.token).await?;
                }
                let scanner = self.scanner_of(from);
                let page = self.scan_here(&admitted, &scan, &scanner).await?;
                page.map(Wire::Page).ok_or_else(elsewhere)
            }
            None => Err(Error::invalid("the read is not known here")),
        }
    }
}

/// The home, or this node's own gate, did not take a read and may at the next
/// attempt. Whichever of them says so, the reason is the one of a home that cannot
/// be reached.
fn not_now(mut unreachable: Error, refusal: peer::Refusal) -> Error {
    if refusal.reason != Reason::Unreachable.name() {
        unreachable.message = refusal.why;
    }
    unreachable
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lease may lapse before a read passes the gate, or while it waits for the
    /// socket.
    #[test]
    fn a_read_that_may_not_pass_now_has_one_reason_wherever_it_is_stopped() {
        let unreachable = || Error::new(Reason::NoQuorum, "no node").fact("home", "eu");
        let refusal = |reason: Reason, why: &str| peer::Refusal {
            why: why.into(),
            reason: reason.name().into(),
        };
        let stopped = not_now(unreachable(), refusal(Reason::NoQuorum, "the lease lapsed"));
        assert_eq!(stopped.reason, Reason::NoQuorum);
        assert_eq!(stopped.message, "the lease lapsed");
        assert_eq!(stopped.facts["home"], "eu");
        let unsent = not_now(unreachable(), refusal(Reason::Unreachable, "not connected"));
        assert_eq!(unsent.reason, Reason::NoQuorum);
        assert_eq!(unsent.message, "no node");
    }
}
