//! The systems under load, behind one small interface.
//!
//! An adapter connects to a system. [`Workload`] decides what each of its workers
//! does, and [`crate::load`] drives them. Every answer of a read is checked against
//! [`Records`].
//!
//! Not done here: starting the systems (see [`crate::cluster`]), measuring (see
//! [`crate::load`]).

pub mod etcd;
pub mod session;
pub mod unary;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use bytes::Bytes;
use clap::ValueEnum;
use serde::Serialize;

use crate::load::{self, Window, Work};
use crate::measurement::{Failure, Measurement};
use crate::records::Records;

/// When an adapter gives an operation up.
pub const OPERATION_TIMEOUT: Duration = Duration::from_secs(20);

/// How many operations are in flight while the key space is filled.
const FILL_IN_FLIGHT: usize = 256;

/// A connection to a system. Clones share it.
pub trait Target: Clone + Send + 'static {
    /// Writes a record durably.
    fn put(&mut self, key: Bytes, value: Bytes)
    -> impl Future<Output = Result<(), Failure>> + Send;

    /// Reads a record; none is there: `None`.
    fn get(
        &mut self,
        key: Bytes,
        local: bool,
    ) -> impl Future<Output = Result<Option<Bytes>, Failure>> + Send;
}

/// How operations reach a system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Adapter {
    /// Domicile through its client library: one client, one session.
    DomicileSession,
    /// Domicile through plain unary gRPC calls.
    DomicileUnary,
    /// etcd through the crate `etcd-client`.
    Etcd,
}

impl Adapter {
    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Adapter::DomicileSession => "domicile-session",
            Adapter::DomicileUnary => "domicile-unary",
            Adapter::Etcd => "etcd",
        }
    }
}

/// What the workers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// Durable puts.
    Put,
    /// Linearizable gets.
    StrongGet,
    /// Gets from what the serving node has; etcd calls them serializable.
    LocalGet,
}

impl Workload {
    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Workload::Put => "put",
            Workload::StrongGet => "strong-get",
            Workload::LocalGet => "local-get",
        }
    }
}

/// Where the operations go.
#[derive(Clone, Debug)]
pub struct Place {
    /// `host:port` of the nodes to connect to.
    pub endpoints: Vec<String>,
    /// The residency tag of the records; etcd has none.
    pub tag: String,
    /// How many connections the workers share, where workers share any. A
    /// session is one connection always.
    pub channels: usize,
}

/// An adapter that is connected to its system.
#[derive(Clone)]
pub enum Connected {
    /// Domicile through its client library.
    Session(session::Session),
    /// Domicile through unary calls, over each of these connections.
    Unary(Vec<unary::Unary>),
    /// etcd, over each of these connections.
    Etcd(Vec<etcd::Etcd>),
}

impl Connected {
    /// Connects.
    pub async fn connect(adapter: Adapter, place: &Place) -> Result<Connected> {
        Ok(match adapter {
            Adapter::DomicileSession => Connected::Session(session::Session::connect(place).await?),
            Adapter::DomicileUnary => Connected::Unary(unary::connect(place).await?),
            Adapter::Etcd => Connected::Etcd(etcd::connect(place).await?),
        })
    }

    /// Runs a workload with so many operations in flight.
    pub async fn run(
        &self,
        workload: Workload,
        in_flight: usize,
        records: &Arc<Records>,
        window: Window,
    ) -> Result<Measurement> {
        match self {
            Connected::Session(client) => {
                let workers = workers(std::slice::from_ref(client), workload, in_flight, records);
                load::run(workers, window).await
            }
            Connected::Unary(clients) => {
                load::run(workers(clients, workload, in_flight, records), window).await
            }
            Connected::Etcd(clients) => {
                load::run(workers(clients, workload, in_flight, records), window).await
            }
        }
    }

    /// Puts every key of the key space once, so that every read finds one.
    pub async fn fill(&self, records: &Arc<Records>) -> Result<()> {
        match self {
            Connected::Session(client) => fill(std::slice::from_ref(client), records).await,
            Connected::Unary(clients) => fill(clients, records).await,
            Connected::Etcd(clients) => fill(clients, records).await,
        }
    }

    /// Puts one record, to see whether the system takes writes yet.
    pub async fn probe(&self, records: &Records) -> Result<(), Failure> {
        let (key, value) = (records.key(0), records.value(0));
        match self.clone() {
            Connected::Session(mut client) => client.put(key, value).await,
            Connected::Unary(mut clients) => clients[0].put(key, value).await,
            Connected::Etcd(mut clients) => clients[0].put(key, value).await,
        }
    }
}

/// One worker of a workload.
struct Worker<T> {
    /// Its connection.
    target: T,
    /// What it does.
    workload: Workload,
    /// The records it does it with.
    records: Arc<Records>,
}

impl<T: Target> Work for Worker<T> {
    async fn once(&mut self, random: u64) -> Result<(), Failure> {
        let number = random % self.records.keys();
        let key = self.records.key(number);
        let local = match self.workload {
            Workload::Put => return self.target.put(key, self.records.value(number)).await,
            Workload::StrongGet => false,
            Workload::LocalGet => true,
        };
        match self.target.get(key, local).await? {
            Some(value) if self.records.verify(number, &value) => Ok(()),
            Some(_) => Err(Failure::Wrong(format!("record {number}: another value"))),
            None => Err(Failure::Wrong(format!("record {number}: not found"))),
        }
    }
}

/// So many workers over so many connections, evenly.
fn workers<T: Target>(
    clients: &[T],
    workload: Workload,
    in_flight: usize,
    records: &Arc<Records>,
) -> Vec<Worker<T>> {
    clients
        .iter()
        .cycle()
        .take(in_flight)
        .map(|client| Worker {
            target: client.clone(),
            workload,
            records: Arc::clone(records),
        })
        .collect()
}

/// Puts every key once. The workers take the keys from one counter; the first
/// failure ends it all.
async fn fill<T: Target>(clients: &[T], records: &Arc<Records>) -> Result<()> {
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for client in clients.iter().cycle().take(FILL_IN_FLIGHT) {
        let mut client = client.clone();
        let records = Arc::clone(records);
        let next = Arc::clone(&next);
        tasks.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= records.keys() {
                    return Ok(());
                }
                client
                    .put(records.key(number), records.value(number))
                    .await?;
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        let ended: Result<(), Failure> = ended?;
        if let Err(failure) = ended {
            bail!("filling the key space failed: {failure:?}");
        }
    }
    Ok(())
}
