//! Domicile through plain unary gRPC, as a client in any language would use
//! it without Domicile's library: no session, no request ids, no retries.

use anyhow::{Context, Result};
use bytes::Bytes;
use domicile_proto::TAG_METADATA;
use domicile_proto::v1::admin_service_client::AdminServiceClient;
use domicile_proto::v1::kv_service_client::KvServiceClient;
use domicile_proto::v1::{
    GetClusterStatusRequest, GetRequest, Level, OnUnmet, PutRequest, ReadOptions,
};
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};

use super::{OPERATION_TIMEOUT, Place, Target};
use crate::measurement::Failure;

/// A connection to one node of Domicile.
#[derive(Clone)]
pub struct Unary {
    /// The generated client.
    kv: KvServiceClient<Channel>,
    /// The residency tag, as request metadata.
    tag: MetadataValue<Ascii>,
}

/// Opens the connections of a place, over its nodes in turn.
pub async fn connect(place: &Place) -> Result<Vec<Unary>> {
    let tag: MetadataValue<Ascii> = place.tag.parse().context("the tag is not ASCII")?;
    let mut clients = Vec::new();
    for endpoint in place.endpoints.iter().cycle().take(place.channels.max(1)) {
        let channel = channel(endpoint).await?;
        clients.push(Unary {
            kv: KvServiceClient::new(channel),
            tag: tag.clone(),
        });
    }
    Ok(clients)
}

/// The `host:port` of the node that leads the group of a tag, as far as one
/// of these nodes knows.
pub async fn leader(endpoints: &[String], tag: &str) -> Option<String> {
    for endpoint in endpoints {
        let Ok(channel) = channel(endpoint).await else {
            continue;
        };
        let mut admin = AdminServiceClient::new(channel);
        let Ok(status) = admin.get_cluster_status(GetClusterStatusRequest {}).await else {
            continue;
        };
        let status = status.into_inner();
        let leads = status
            .groups
            .iter()
            .find(|group| group.tag == tag)
            .and_then(|group| group.leader);
        let address = leads.and_then(|leader| {
            let node = status.nodes.iter().find(|node| node.node == leader)?;
            Some(node.address.clone())
        });
        if address.is_some() {
            return address;
        }
    }
    None
}

async fn channel(endpoint: &str) -> Result<Channel> {
    Endpoint::from_shared(format!("http://{endpoint}"))?
        .timeout(OPERATION_TIMEOUT)
        .tcp_nodelay(true)
        .connect()
        .await
        .with_context(|| format!("connecting to {endpoint}"))
}

impl Unary {
    /// A request with the tag in its metadata.
    fn request<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        request
            .metadata_mut()
            .insert(TAG_METADATA, self.tag.clone());
        request
    }
}

impl Target for Unary {
    async fn put(&mut self, key: Bytes, value: Bytes) -> Result<(), Failure> {
        let request = self.request(PutRequest {
            key,
            value,
            ..PutRequest::default()
        });
        self.kv.put(request).await?;
        Ok(())
    }

    async fn get(&mut self, key: Bytes, local: bool) -> Result<Option<Bytes>, Failure> {
        let level = if local { Level::Local } else { Level::Strong };
        let request = self.request(GetRequest {
            key,
            options: Some(ReadOptions {
                level: level.into(),
                on_unmet: OnUnmet::Fail.into(),
                ..ReadOptions::default()
            }),
        });
        let response = self.kv.get(request).await?.into_inner();
        let met = response.meta.map(|meta| meta.level());
        if met != Some(level) {
            return Err(Failure::Wrong(format!("asked for {level:?}, got {met:?}")));
        }
        Ok(response.record.map(|record| record.value))
    }
}
