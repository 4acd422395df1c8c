//! Three nodes of etcd.

use std::path::Path;

use anyhow::Result;

use super::{Cluster, NODES};
use crate::process::{Process, free_addresses};

/// etcd stops taking writes when its store passes a quota, 2 GiB unless told;
/// a long run must not end there.
const QUOTA_BYTES: u64 = 8 * 1024 * 1024 * 1024;

/// Starts the nodes. Everything that is not about addresses, the quota or the
/// log is as etcd has it by default; fsync is on.
pub(super) fn start(etcd: &Path, directory: &Path) -> Result<Cluster> {
    let addresses = free_addresses(2 * NODES)?;
    let (clients, peers) = addresses.split_at(NODES);
    let members: Vec<String> = peers
        .iter()
        .enumerate()
        .map(|(node, peer)| format!("n{node}=http://{peer}"))
        .collect();
    let members = members.join(",");
    let mut processes = Vec::new();
    for (node, (client, peer)) in clients.iter().zip(peers).enumerate() {
        let data = directory.join(format!("n{node}"));
        let arguments = [
            format!("--name=n{node}"),
            format!("--data-dir={}", data.display()),
            format!("--listen-client-urls=http://{client}"),
            format!("--advertise-client-urls=http://{client}"),
            format!("--listen-peer-urls=http://{peer}"),
            format!("--initial-advertise-peer-urls=http://{peer}"),
            format!("--initial-cluster={members}"),
            "--initial-cluster-state=new".to_owned(),
            format!("--quota-backend-bytes={QUOTA_BYTES}"),
            "--log-level=error".to_owned(),
        ];
        let name = format!("etcd-{node}");
        processes.push(Process::start(&name, etcd, arguments, directory)?);
    }
    Ok(Cluster {
        processes,
        endpoints: clients.iter().map(ToString::to_string).collect(),
        leader: None,
        directory: directory.to_owned(),
    })
}
