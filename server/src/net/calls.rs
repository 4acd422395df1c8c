//! Calls to a node besides the stream: forming, placing, replacing.

use std::time::Duration;

use domicile_proto::internal::v1 as wire;
use domicile_proto::internal::v1::peer_service_client::PeerServiceClient;
use tonic::transport::Channel;
use tonic_types::StatusExt;

use super::Peers;
use super::dial::channel;
use crate::error::{Error, Reason, Result};

/// How long a call may take.
const CALL_WAIT: Duration = Duration::from_secs(10);

/// How long the exchange of a member may take: the new one must catch up.
const REPLACE_WAIT: Duration = Duration::from_secs(130);

impl Peers {
    /// Tells an empty node at `host:port` that it belongs to a new cluster.
    /// Answers whether it has applied the first entries of its groups.
    pub async fn form(&self, address: &str, request: wire::FormRequest) -> Result<bool> {
        let mut client = self.client(address).await?;
        let told = call(address, CALL_WAIT, client.form(request)).await?;
        Ok(told.formed)
    }

    /// Tells a node at `host:port` to start a replica, or asks which one of the
    /// group is there.
    pub async fn place(
        &self,
        address: &str,
        request: wire::PlaceRequest,
    ) -> Result<wire::PlaceResponse> {
        let mut client = self.client(address).await?;
        call(address, CALL_WAIT, client.place(request)).await
    }

    /// Asks the leader at `host:port` to exchange a member of its group.
    pub async fn replace_member(
        &self,
        address: &str,
        request: wire::ReplaceMemberRequest,
    ) -> Result<()> {
        let mut client = self.client(address).await?;
        call(address, REPLACE_WAIT, client.replace_member(request))
            .await
            .map(drop)
    }

    async fn client(&self, address: &str) -> Result<PeerServiceClient<Channel>> {
        // The stream's own connection, where there is one: making another costs
        // two round trips.
        let channel = match self.channel_to(address) {
            Some(open) => open,
            None => channel(self.dial(), address).await?,
        };
        Ok(PeerServiceClient::new(channel))
    }
}

/// Bounds a call to another node, and reads its refusal.
async fn call<T>(
    address: &str,
    wait: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T> {
    let answer = tokio::time::timeout(wait, call).await.map_err(|_| {
        Error::new(
            Reason::Unreachable,
            format!("{address} did not answer in time; check that the node runs there"),
        )
    })?;
    answer.map(tonic::Response::into_inner).map_err(|status| {
        let reason = status
            .get_details_error_info()
            .and_then(|info| info.reason.parse().ok())
            .unwrap_or(Reason::Unreachable);
        Error::new(reason, format!("{address}: {}", status.message()))
    })
}
