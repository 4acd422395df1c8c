//! etcd through the crate `etcd-client`, as a Rust service would use it.

use anyhow::{Context, Result};
use bytes::Bytes;
use etcd_client::{Client, ConnectOptions, Error, GetOptions, KvClient};

use super::{OPERATION_TIMEOUT, Place, Target};
use crate::measurement::Failure;

/// A connection to etcd.
#[derive(Clone)]
pub struct Etcd {
    /// The client of etcd's key-value service.
    kv: KvClient,
}

/// Opens the connections of a place.
pub async fn connect(place: &Place) -> Result<Vec<Etcd>> {
    let mut clients = Vec::new();
    for _ in 0..place.channels.max(1) {
        let options = ConnectOptions::new().with_timeout(OPERATION_TIMEOUT);
        let client = Client::connect(&place.endpoints, Some(options))
            .await
            .context("connecting to etcd")?;
        clients.push(Etcd {
            kv: client.kv_client(),
        });
    }
    Ok(clients)
}

/// The endpoint among these that leads; none is known yet: `None`.
pub async fn leader(endpoints: &[String]) -> Option<String> {
    for endpoint in endpoints {
        let mut client = Client::connect([endpoint], None).await.ok()?;
        let status = client.status().await.ok()?;
        let member = status.header()?.member_id();
        if status.leader() != 0 && status.leader() == member {
            return Some(endpoint.clone());
        }
    }
    None
}

impl Target for Etcd {
    async fn put(&mut self, key: Bytes, value: Bytes) -> Result<(), Failure> {
        self.kv.put(key, value, None).await.map_err(failure)?;
        Ok(())
    }

    async fn get(&mut self, key: Bytes, local: bool) -> Result<Option<Bytes>, Failure> {
        let options = local.then(|| GetOptions::new().with_serializable());
        let mut response = self.kv.get(key, options).await.map_err(failure)?;
        let record = response.take_kvs().pop();
        Ok(record.map(|record| Bytes::from(record.into_key_value().1)))
    }
}

fn failure(error: Error) -> Failure {
    match error {
        Error::GRpcStatus(status) => status.into(),
        other => Failure::Error {
            kind: "client".to_owned(),
            message: other.to_string(),
        },
    }
}
