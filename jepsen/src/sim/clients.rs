//! The clients of a simulated cluster: one host in each region.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use domicile_proto::identity::tls::Expected;
use domicile_proto::v1::admin_service_client::AdminServiceClient;
use domicile_server::net::channel;

use super::host::{SimDial, endpoints, init};
use super::trace::Trace;
use crate::workload::{Clients, Shape};

/// How far all clients of a run are.
#[derive(Default)]
pub(super) struct Reached {
    /// The cluster is formed.
    pub(super) formed: AtomicBool,
    /// The client hosts that have read everything once more.
    pub(super) done: AtomicUsize,
}

/// Lives through a run on a client host: one of them forms the cluster; all
/// work, then read everything again.
pub(super) async fn live(
    clients: Arc<Clients>,
    reached: Arc<Reached>,
    trace: Trace,
) -> turmoil::Result {
    if clients.region == "eu" {
        form(clients.shape, &trace).await;
        reached.formed.store(true, Ordering::Relaxed);
    }
    while !reached.formed.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    clients.live().await?;
    reached.done.fetch_add(1, Ordering::Relaxed);
    std::future::pending().await
}

async fn form(shape: Shape, trace: &Trace) {
    let dial = Arc::new(SimDial {
        from: "client-eu".to_owned(),
        trace: trace.clone(),
    });
    let first = endpoints(shape, "eu").swap_remove(0);
    loop {
        let formed = async {
            let channel = channel(dial.clone(), &first, Expected::AnyNode).await?;
            let mut admin = AdminServiceClient::new(channel);
            admin.init_cluster(init(shape)).await?;
            anyhow::Ok(())
        };
        match formed.await {
            Ok(()) => return,
            Err(error) => trace.line(format_args!("not formed: {error:#}")),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
