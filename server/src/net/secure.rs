//! Sockets over which both ends have proved who they are.

use std::io;
use std::sync::Arc;

use domicile_proto::identity::Use;
use domicile_proto::identity::tls::Expected;
use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::cut::Cut;
use super::dial::{BoxedIo, Dial};
use crate::identity::Tls;

/// Opens sockets, and shakes hands over them with who is expected there.
///
/// A socket ends with an error once who is at its other end would not be let in any more.
pub struct SecureDial {
    inner: Arc<dyn Dial>,
    tls: Arc<Tls>,
}

impl SecureDial {
    /// Over the sockets that `inner` opens.
    pub fn new(inner: Arc<dyn Dial>, tls: Arc<Tls>) -> Self {
        SecureDial { inner, tls }
    }
}

impl Dial for SecureDial {
    fn dial(
        &self,
        address: String,
        expected: &Expected,
    ) -> BoxFuture<'static, io::Result<BoxedIo>> {
        let dialled = self.inner.dial(address, expected);
        let (tls, expected) = (self.tls.clone(), expected.clone());
        Box::pin(async move {
            let socket = dialled.await?;
            let shaken = tls.connect(socket, expected).await;
            let (stream, identity) = shaken.map_err(io::Error::other)?;
            let lapsed = tls.lapsed(identity, Use::Server).map(drop);
            Ok(BoxedIo::new(Cut::new(stream, lapsed.boxed())))
        })
    }

    fn changed(&self) -> BoxFuture<'static, ()> {
        let mut changes = self.tls.changes();
        Box::pin(async move {
            if changes.changed().await.is_err() {
                // The node ends.
                std::future::pending::<()>().await;
            }
        })
    }
}
