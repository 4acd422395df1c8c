//! The ports of a node, and how it dials the others.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use domicile_proto::address::RegionName;
use domicile_proto::identity::tls::Expected;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use parking_lot::RwLock;
use tokio::net::TcpListener;

use super::link::{Links, through};
use crate::env::Env;
use crate::net::{BoxedIo, Dial, TcpDial};
use crate::node::accepted;

/// Which region a port belongs to.
pub(super) type Places = Arc<RwLock<BTreeMap<String, RegionName>>>;

/// Dials for a node of a region, over the links where the other end is in
/// another.
pub(super) struct LinkDial {
    pub(super) env: Env,
    pub(super) from: RegionName,
    pub(super) links: Arc<Links>,
    pub(super) places: Places,
}

impl Dial for LinkDial {
    fn dial(
        &self,
        address: String,
        expected: &Expected,
    ) -> BoxFuture<'static, io::Result<BoxedIo>> {
        let to = self.places.read().get(&address).cloned();
        let ways = to.and_then(|to| {
            let out = self.links.between(&self.from, &to)?.clone();
            let back = self.links.between(&to, &self.from)?.clone();
            Some((out, back))
        });
        let dialled = TcpDial.dial(address, expected);
        let env = self.env.clone();
        Box::pin(async move {
            let Some((out, back)) = ways else {
                return dialled.await;
            };
            if out.condition().cut || back.condition().cut {
                // Nothing comes back; the dialler gives up by itself.
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(out.condition().delay + back.condition().delay).await;
            let io = dialled.await?;
            Ok(through(&env, io, &out, &back))
        })
    }
}

/// Binds a port on loopback: a free one, or the one it had before.
pub(super) async fn bind(port: u16) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// The sockets of a port that callers of the node's own region use.
pub(super) fn near(
    env: Env,
    listener: TcpListener,
    region: RegionName,
) -> BoxStream<'static, io::Result<BoxedIo>> {
    accepted(listener, env)
        .map(move |io| {
            io.set_nodelay(true)?;
            let io = BoxedIo::new(io).on_loopback(true);
            Ok(io.called_from(region.clone()))
        })
        .boxed()
}

/// The sockets of a port that callers of another region use: they come over
/// the links.
pub(super) fn far(
    env: Env,
    listener: TcpListener,
    callers: RegionName,
    region: &RegionName,
    links: &Links,
) -> BoxStream<'static, io::Result<BoxedIo>> {
    let ways = links
        .between(region, &callers)
        .cloned()
        .zip(links.between(&callers, region).cloned());
    accepted(listener, env.clone())
        .map(move |io| {
            io.set_nodelay(true)?;
            let io = match &ways {
                // Seen from the node, what it writes goes out.
                Some((out, back)) => through(&env, io, out, back),
                None => BoxedIo::new(io),
            };
            Ok(io.on_loopback(true).called_from(callers.clone()))
        })
        .boxed()
}
