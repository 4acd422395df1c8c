//! Calls to a node besides the stream: forming, placing, replacing.

use std::time::Duration;

use domicile_proto::peer::v1 as peer;
use domicile_proto::peer::v1::peer_service_client::PeerServiceClient;
use tonic::transport::Channel;
use tonic_types::StatusExt;

use super::Peers;
use super::dial::channel;
use crate::error::{Error, Reason, Result};
use crate::raft::NodeId;
use crate::residency::{Cleared, Untrusted};

/// How long a call may take.
const CALL_WAIT: Duration = Duration::from_secs(10);

/// How long the exchange of a member may take: the new one must catch up.
const REPLACE_WAIT: Duration = Duration::from_secs(130);

impl Peers {
    /// Tells an empty node at `host:port` that it belongs to a new cluster.
    pub async fn form(
        &self,
        address: &str,
        request: Cleared<peer::FormRequest>,
    ) -> Result<Untrusted<peer::FormResponse>> {
        let node = NodeId(request.message().node);
        let mut client = self.client(node, address).await?;
        let mut request = self.gate().frame(request, self.region())?;
        // This node may belong to no cluster yet either.
        let cluster = request.catalog.as_ref().map(|new| new.cluster.clone());
        request.hello = Some(self.hello_as_of(cluster, request.node)?);
        call(address, CALL_WAIT, client.form(request)).await
    }

    /// Tells a node at `host:port` to start a replica, or asks which one of the
    /// group is there.
    pub async fn place(
        &self,
        address: &str,
        request: Cleared<peer::PlaceRequest>,
    ) -> Result<Untrusted<peer::PlaceResponse>> {
        let node = NodeId(request.message().node);
        let mut client = self.client(node, address).await?;
        let mut request = self.gate().frame(request, self.region())?;
        request.hello = Some(self.hello_as_of(None, request.node)?);
        call(address, CALL_WAIT, client.place(request)).await
    }

    /// Asks the leader, which is `node` at `host:port`, to exchange a member of
    /// its group.
    pub async fn replace_member(
        &self,
        (node, address): (NodeId, &str),
        request: Cleared<peer::ReplaceMemberRequest>,
    ) -> Result<Untrusted<peer::ReplaceMemberResponse>> {
        let mut client = self.client(node, address).await?;
        let mut request = self.gate().frame(request, self.region())?;
        request.hello = Some(self.hello_as_of(None, node.0)?);
        call(address, REPLACE_WAIT, client.replace_member(request)).await
    }

    async fn client(&self, node: NodeId, address: &str) -> Result<PeerServiceClient<Channel>> {
        // The stream's own connection, where there is one: making another costs
        // two round trips.
        let channel = match self.channel_to(address) {
            Some(open) => open,
            None => channel(self.dial(), address, self.expected(node)).await?,
        };
        Ok(PeerServiceClient::new(channel))
    }
}

/// Bounds a call to another node, and reads its refusal.
async fn call<T>(
    address: &str,
    wait: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<Untrusted<T>> {
    let answer = tokio::time::timeout(wait, call).await.map_err(|_| {
        Error::new(
            Reason::Unreachable,
            format!("{address} did not answer in time; check that the node runs there"),
        )
    })?;
    let answer = answer.map(|answer| Untrusted::received(answer.into_inner()));
    answer.map_err(|status| {
        let reason = status
            .get_details_error_info()
            .and_then(|info| info.reason.parse().ok())
            .unwrap_or(Reason::Unreachable);
        Error::new(reason, format!("{address}: {}", status.message()))
    })
}
