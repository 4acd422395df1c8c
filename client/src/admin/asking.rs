//! Which node is asked, and what is asked again.
//!
//! What only asks goes to the next endpoint when one does not answer. What changes
//! something is sent to a node that answers, and again only if it was refused or not
//! sent.

use std::collections::BTreeMap;
use std::time::Duration;

use domicile_proto::v1;
use domicile_proto::v1::admin_service_client::AdminServiceClient;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::admin::{Admin, Listener};
use crate::env;
use crate::error::{Cause, Error, Refusal};
use crate::transport::endpoint::Endpoint;
use crate::transport::fault::Fault;
use crate::transport::retry::{Attempts, Safety};

/// How long a node may take to say that it lives before a change goes to it:
/// several round trips round the world. One that is stopped still takes
/// connections.
const ANSWER_WAIT: Duration = Duration::from_secs(2);

/// How much longer than the first the others may take.
const OTHERS_WAIT: Duration = Duration::from_millis(300);

/// How long a change that is refused for now, or that no node takes, is tried: the
/// election of a leader takes two seconds, and an operator who waits longer should
/// hear why.
const CHANGE_TRIED_FOR: Duration = Duration::from_secs(15);

impl Admin {
    /// Asks one node after the other. One that does not answer must leave time for
    /// the others.
    pub(super) async fn ask<T: Clone, R>(
        &self,
        message: T,
        send: impl AsyncFn(AdminServiceClient<Channel>, Request<T>) -> Result<Response<R>, Status>,
    ) -> Result<R, Error> {
        self.ask_until(|_| true, message, send).await
    }

    /// The same, until an answer tells something. A node without a cluster, as one
    /// that lost its disk, does not: what it says counts if nobody else answers.
    pub(super) async fn ask_until<T: Clone, R>(
        &self,
        tells: impl Fn(&R) -> bool,
        message: T,
        send: impl AsyncFn(AdminServiceClient<Channel>, Request<T>) -> Result<Response<R>, Status>,
    ) -> Result<R, Error> {
        let deadline = env::after(self.timeout.unwrap_or(self.nodes.timeout()));
        let mut attempts = Attempts::new(Safety::Read, deadline);
        let endpoints = self.nodes.routes().silent_last();
        let mut empty = None;
        loop {
            for (index, endpoint) in endpoints.iter().enumerate() {
                let left = deadline.saturating_duration_since(env::now());
                let share = left / (endpoints.len() - index) as u32;
                let mut request = Request::new(message.clone());
                request.set_timeout(share);
                let answer = send(endpoint.admin(), request);
                let fault = match tokio::time::timeout(share, answer).await {
                    Ok(Ok(response)) => {
                        let answer = response.into_inner();
                        if tells(&answer) {
                            return Ok(answer);
                        }
                        empty.get_or_insert(answer);
                        continue;
                    }
                    Ok(Err(status)) => Fault::from(status),
                    Err(_) => Fault::late(true),
                };
                let others = index + 1 < endpoints.len();
                match attempts.failed(endpoint.explain(fault), others) {
                    Ok(pause) => tokio::time::sleep(pause).await,
                    Err(error) => return empty.ok_or(error),
                }
            }
            if let Some(answer) = empty.take() {
                return Ok(answer);
            }
        }
    }

    /// Has a node change something. It goes only to a node that answered just now:
    /// what becomes of a change that was sent to one that is stopped is unknown, and
    /// what was not sent may go to another.
    pub(super) async fn change<T: Clone, R>(
        &self,
        message: T,
        send: impl AsyncFn(AdminServiceClient<Channel>, Request<T>) -> Result<Response<R>, Status>,
    ) -> Result<R, Error> {
        let deadline = env::after(self.timeout.unwrap_or(self.nodes.timeout()));
        let tried_until = deadline.min(env::after(CHANGE_TRIED_FOR));
        let mut attempts = Attempts::new(Safety::Once, tried_until);
        loop {
            let asked = self.who_answers(deadline).await?;
            if asked.up.is_empty() {
                let fault = match asked.rejected {
                    Some(refusal) => Fault::Rejected(refusal),
                    None => Fault::lost(false, Cause::new(&asked.silent.join("; "))),
                };
                self.pause(&mut attempts, fault, false).await?;
            }
            for (index, endpoint) in asked.up.iter().enumerate() {
                let left = deadline.saturating_duration_since(env::now());
                let mut request = Request::new(message.clone());
                request.set_timeout(left);
                let answer = send(endpoint.admin(), request);
                let fault = match tokio::time::timeout(left, answer).await {
                    Ok(Ok(response)) => return Ok(response.into_inner()),
                    Ok(Err(status)) => Fault::from(status),
                    Err(_) => Fault::late(true),
                };
                let others = index + 1 < asked.up.len();
                let fault = endpoint.explain(fault);
                self.pause(&mut attempts, fault, others).await?;
            }
        }
    }

    /// Waits until a change may be tried again, if it may.
    async fn pause(
        &self,
        attempts: &mut Attempts,
        fault: Fault,
        others: bool,
    ) -> Result<(), Error> {
        let why = fault.cause();
        let pause = attempts.failed(fault, others)?;
        if let Some(Listener(hears)) = &self.retried {
            hears(&why.to_string());
        }
        tokio::time::sleep(pause).await;
        Ok(())
    }

    /// Checks that all endpoints are of one cluster, as far as they answer within a
    /// tenth of the time. Operations go first to one that does.
    pub async fn agree(&self) -> Result<(), Error> {
        let deadline = env::after(self.timeout.unwrap_or(self.nodes.timeout()) / 10);
        let asked = self.who_answers(deadline).await?;
        let up: Vec<_> = asked.up.iter().map(|endpoint| endpoint.name()).collect();
        self.nodes.routes().found_up(&up);
        Ok(())
    }

    /// Asks every endpoint at once which cluster it is of, and waits no longer for
    /// one than a node that lives may take, nor much longer than for the first.
    async fn who_answers(&self, deadline: env::Instant) -> Result<Asked<'_>, Error> {
        let endpoints = self.nodes.routes().endpoints();
        let wait = deadline.min(env::after(ANSWER_WAIT));
        let mut asking: FuturesUnordered<_> = endpoints
            .iter()
            .map(async |endpoint| (endpoint, is_of(endpoint, wait).await))
            .collect();
        let mut said = Vec::new();
        let mut until = wait;
        while let Ok(Some((endpoint, of))) = tokio::time::timeout_at(until, asking.next()).await {
            // One that is of no cluster tells nothing of those that are.
            if of.as_ref().is_ok_and(|cluster| !cluster.is_empty()) {
                until = until.min(env::after(OTHERS_WAIT));
            }
            said.push((endpoint.name(), of));
        }
        let mut up = Vec::new();
        let mut silent = Vec::new();
        let mut rejected = None;
        let mut clusters: BTreeMap<&str, &str> = BTreeMap::new();
        for endpoint in endpoints {
            match said.iter().find(|(name, _)| *name == endpoint.name()) {
                Some((name, Ok(cluster))) => {
                    up.push(endpoint);
                    if !cluster.is_empty() {
                        clusters.entry(cluster).or_insert(name);
                    }
                }
                Some((_, Err(fault))) => {
                    silent.push(fault.cause().to_string());
                    if let Fault::Rejected(refusal) = fault {
                        rejected.get_or_insert_with(|| refusal.clone());
                    }
                }
                None => silent.push(format!("{}: no answer came in time", endpoint.name())),
            }
        }
        match clusters.len() {
            0 | 1 => Ok(Asked {
                up,
                silent,
                rejected,
            }),
            _ => Err(Error::of_clusters(&clusters)),
        }
    }
}

/// What came of asking every endpoint.
struct Asked<'a> {
    /// The endpoints that answered, in the order of the caller.
    up: Vec<&'a Endpoint>,
    /// Those that did not, and why.
    silent: Vec<String>,
    /// Why there is no connection to one where a certificate was refused.
    rejected: Option<Refusal>,
}

/// The cluster that the node at an endpoint belongs to; empty: none.
async fn is_of(endpoint: &Endpoint, until: env::Instant) -> Result<String, Fault> {
    let mut request = Request::new(v1::GetClusterStatusRequest {});
    request.set_timeout(until.saturating_duration_since(env::now()));
    let mut admin = endpoint.admin();
    let answer = admin.get_cluster_status(request);
    match tokio::time::timeout_at(until, answer).await {
        Ok(Ok(status)) => Ok(status.into_inner().cluster_id),
        Ok(Err(status)) => match Fault::from(status) {
            Fault::Refused(_) => Ok(String::new()),
            fault => Err(endpoint.explain(fault)),
        },
        Err(_) => Err(endpoint.explain(Fault::late(false))),
    }
}
